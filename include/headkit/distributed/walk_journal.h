#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace headkit {

/// A file that keeps what was measured of each batch, so that a job that was killed goes on where
/// it was. Each entry is written at once; half of one, at the end, is cut off by the next reader.
class WalkJournal {
 public:
  /// Opens or makes the file. `identity` says which job it is of: model, data, settings.
  /// Throws std::invalid_argument for a file that is no journal, or one of another job;
  /// std::runtime_error where it cannot be read or written, or another process has it.
  WalkJournal(const std::string& path, const std::string& identity);
  ~WalkJournal();
  WalkJournal(const WalkJournal&) = delete;
  WalkJournal& operator=(const WalkJournal&) = delete;

  /// Batches of the job's n-th walk over data that are there, ascending.
  std::vector<int64_t> batches(int64_t walk) const;
  /// The bytes of one of them; std::out_of_range if it is not there.
  std::string read(int64_t walk, int64_t batch) const;
  void add(int64_t walk, int64_t batch, const std::string& bytes);

 private:
  struct Place {
    int64_t offset = 0, length = 0;
  };
  void find_entries(const std::string& identity);

  std::string path_;
  int file_ = -1;
  int64_t end_ = 0;
  std::map<std::pair<int64_t, int64_t>, Place> places_;
};

}  // namespace headkit
