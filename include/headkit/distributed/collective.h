#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace headkit {

/// Processes that do one job together. All of them call the same methods in the same order.
class Collective {
 public:
  virtual ~Collective() = default;
  virtual int64_t rank() const = 0;  ///< from 0
  virtual int64_t size() const = 0;  ///< number of processes
  /// What every process gives, by rank; any lengths. Throws std::runtime_error where one is lost.
  virtual std::vector<std::string> all_gather(const std::string& own) = 0;
};

}  // namespace headkit
