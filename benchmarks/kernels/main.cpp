#include <benchmark/benchmark.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <vector>

#include "kernels/level.h"

namespace headkit::kernels {
namespace {

// The best of some readings: a disturbance only makes one smaller.
double measure_peak(double (*probe)(int64_t iterations)) {
  using Clock = std::chrono::steady_clock;
  double best = 0.0;
  for (int reading = 0; reading < 20; ++reading) {
    const auto start = Clock::now();
    const double flops = probe(20000);
    best = std::max(best, flops / std::chrono::duration<double>(Clock::now() - start).count());
  }
  return best;
}

}  // namespace
}  // namespace headkit::kernels

// One thread, every level that the machine can run. Pin it: taskset -c 1 kernel_benchmarks
int main(int argc, char** argv) {
  using namespace headkit::kernels;
  benchmark::Initialize(&argc, argv);
  if (benchmark::ReportUnrecognizedArguments(argc, argv)) return 1;
  std::vector<Level> levels;
  for (int i = 0; i < isa_count(); ++i) {
    const KernelTable& table = kernel_table_at(i);
    levels.push_back({table, measure_peak(table.probe)});
    std::fprintf(stderr, "%s: peak %.1f GFLOP/s\n", table.isa, levels.back().peak / 1e9);
  }
  for (const auto add :
       {add_packing, add_project, add_attend, add_sum_projections, add_attend_backward,
        add_weight_gradient, add_feed_forward, add_activation}) {
    for (const Level& level : levels) add(level);
  }
  for (const Level& level : levels) {
    const Bf16Kernels* bf16 = level.table.bf16;
    if (bf16 != nullptr) add_bf16({level.table, measure_peak(bf16->probe)});
  }
  benchmark::RunSpecifiedBenchmarks();
  benchmark::Shutdown();
}
