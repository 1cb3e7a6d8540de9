#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

namespace headkit {

/// Energy that the processor packages used, by the RAPL counters of the power-capping interface of
/// Linux. It is that of the whole machine: keep other work away, and measure for seconds.
class EnergyMeter {
 public:
  /// Throws std::runtime_error where there are no counters or they cannot be read (on many systems
  /// only by root).
  explicit EnergyMeter(const std::string& folder = "/sys/class/powercap");
  /// Joules since the last call, or since the meter was made. Counters that wrapped once are right.
  double joules();
  /// Mean power while `run` runs again and again, for at least `seconds` and at least once. Throws
  /// std::invalid_argument unless `seconds` >= 0.
  double watts(const std::function<void()>& run, double seconds);

 private:
  struct Package {
    std::string counter;  // file
    int64_t range;        // in microjoules
    int64_t last;
  };
  std::vector<Package> packages_;
};

}  // namespace headkit
