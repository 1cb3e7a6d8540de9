#include "headkit/gates/energy_meter.h"

#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <fstream>

#include "support/scratch_folder.h"

namespace headkit {
namespace {

void put(const std::string& path, int64_t value) {
  std::filesystem::create_directories(std::filesystem::path(path).parent_path());
  std::ofstream(path) << value << "\n";
}

TEST(EnergyMeterTest, AddsUpPackagesAndSurvivesAWrap) {
  const testing::ScratchFolder folder;
  for (const char* package : {"intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"}) {
    put(folder / (std::string(package) + "/energy_uj"), 9000000);
    put(folder / (std::string(package) + "/max_energy_range_uj"), 10000000);
  }
  EnergyMeter meter(folder / "");
  EXPECT_EQ(meter.joules(), 0);
  put(folder / "intel-rapl:0/energy_uj", 9500000);
  put(folder / "intel-rapl:0:0/energy_uj", 9500000);  // a part of package 0: not counted again
  put(folder / "intel-rapl:1/energy_uj", 2000000);    // wrapped
  EXPECT_NEAR(meter.joules(), 0.5 + 3, 1e-9);
  EXPECT_EQ(meter.joules(), 0);
}

TEST(EnergyMeterTest, TellsTheMeanPowerOfWhatRuns) {
  const testing::ScratchFolder folder;
  const std::string counter = folder / "intel-rapl:0/energy_uj";
  put(counter, 0);
  put(folder / "intel-rapl:0/max_energy_range_uj", 1000000000);
  EnergyMeter meter(folder / "");
  put(counter, 5000000);  // used before the run: not its own
  int64_t runs = 0;
  const auto start = std::chrono::steady_clock::now();
  const double watts = meter.watts([&] { put(counter, 5000000 + 2000000 * ++runs); }, 0.01);
  const double most =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_GE(runs, 1);
  EXPECT_GE(watts * most, 2.0 * static_cast<double>(runs) * (1 - 1e-9));
  EXPECT_LE(watts * 0.01, 2.0 * static_cast<double>(runs) * (1 + 1e-9));
  EXPECT_THROW(meter.watts([] {}, -1), std::invalid_argument);
}

TEST(EnergyMeterTest, SaysWhatIsMissing) {
  const testing::ScratchFolder folder;
  for (const std::string& place : {folder / "", folder / "nowhere"}) {
    try {
      EnergyMeter meter(place);
      FAIL() << place;
    } catch (const std::runtime_error& error) {
      EXPECT_NE(std::string(error.what()).find("RAPL"), std::string::npos) << error.what();
    }
  }
  put(folder / "intel-rapl:0/max_energy_range_uj", 10);
  EXPECT_THROW(EnergyMeter(folder / ""), std::runtime_error);
}

}  // namespace
}  // namespace headkit
