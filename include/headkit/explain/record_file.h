#pragma once

#include <cstdint>
#include <mutex>
#include <string>

namespace headkit {

/// A file of JSON lines that grows while a program runs, for example of decision records. Each line
/// is handed to the system whole and at once, so an interrupt leaves whole lines; many threads may
/// write.
class RecordFile {
 public:
  /// Opens `path` to append, creating it. A last line that an interrupt cut short (no newline) is
  /// removed. Throws std::runtime_error if the file cannot be opened.
  explicit RecordFile(const std::string& path);
  ~RecordFile();
  RecordFile(const RecordFile&) = delete;
  RecordFile& operator=(const RecordFile&) = delete;

  /// Appends lines, each ending with a newline. Throws std::invalid_argument if the last does not,
  /// std::runtime_error if writing fails.
  void write(const std::string& lines);
  const std::string& path() const { return path_; }
  int64_t written() const;  ///< lines, by this object

 private:
  std::string path_;
  int file_ = -1;
  mutable std::mutex mutex_;
  int64_t written_ = 0;
};

}  // namespace headkit
