#include "headkit/gates/energy_meter.h"

#include <chrono>
#include <filesystem>
#include <fstream>
#include <optional>
#include <regex>
#include <system_error>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "energy_meter";
constexpr double kMicro = 1e-6;

std::optional<int64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  int64_t value = 0;
  if (!(file >> value)) return std::nullopt;
  return value;
}

}  // namespace

EnergyMeter::EnergyMeter(const std::string& folder) {
  // Packages only (intel-rapl:0): their parts (intel-rapl:0:0) are in them already.
  static const std::regex kPackage("intel-rapl:[0-9]+");
  std::string unreadable;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator(folder, error)) {
    if (!std::regex_match(entry.path().filename().string(), kPackage)) continue;
    const std::string counter = entry.path().string() + "/energy_uj";
    const auto now = read_number(counter);
    const auto range = read_number(entry.path().string() + "/max_energy_range_uj");
    if (!now || !range) {
      unreadable = counter;
      continue;
    }
    packages_.push_back({counter, *range, *now});
  }
  HEADKIT_CHECK_RUNTIME(
      unreadable.empty() && !packages_.empty(), kOperation,
      "RAPL counters that this process may read, " + folder + "/intel-rapl:*/energy_uj",
      unreadable.empty() ? "none" : unreadable + ", which it may not (root may)");
}

double EnergyMeter::joules() {
  double sum = 0;
  for (Package& package : packages_) {
    const auto now = read_number(package.counter);
    HEADKIT_CHECK_RUNTIME(now.has_value(), kOperation, "a readable counter", package.counter);
    int64_t used = *now - package.last;
    if (used < 0) used += package.range;
    package.last = *now;
    sum += static_cast<double>(used) * kMicro;
  }
  return sum;
}

double EnergyMeter::watts(const std::function<void()>& run, double seconds) {
  HEADKIT_CHECK(seconds >= 0, kOperation, "0 or more seconds", seconds);
  const auto start = std::chrono::steady_clock::now();
  joules();
  double passed = 0;
  do {
    run();
    passed = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  } while (passed < seconds || passed <= 0);
  return joules() / passed;
}

}  // namespace headkit
