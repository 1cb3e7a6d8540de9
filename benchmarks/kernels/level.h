#pragma once

#include <benchmark/benchmark.h>

#include <cstdlib>
#include <memory>
#include <string>
#include <utility>

#include "kernels/dispatch.h"

namespace headkit::kernels {

/// Kernels of one instruction-set level, and what its probe reached before the benchmarks, FLOP/s.
struct Level {
  const KernelTable& table;
  double peak;
};

/// Random floats in [-1, 1), 64-byte aligned, readable up to a vector beyond the last.
class Floats {
 public:
  explicit Floats(int64_t count) {
    const size_t bytes = ((count + kBeyond) * sizeof(float) + 63) / 64 * 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    uint32_t state = 1;
    for (int64_t i = 0; i < count + kBeyond; ++i) {
      state = state * 1664525u + 1013904223u;
      data_.get()[i] = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
    }
  }
  float* data() const { return data_.get(); }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  static constexpr int64_t kBeyond = 16;
  std::unique_ptr<float, Free> data_;
};

inline int64_t ceil_to(int64_t count, int64_t multiple) {
  return (count + multiple - 1) / multiple * multiple;
}
inline int64_t panel_floats(const KernelTable& table, int64_t tokens, int64_t width) {
  return ceil_to(tokens, table.panel) * width;
}
inline int64_t row_floats(const KernelTable& table, int64_t head_dim) {
  return ceil_to(head_dim, table.vector_length);
}

/// Registers `kernel/shape/isa`. `make()` returns the call that is timed, with all that it needs.
template <typename Make>
void add(const Level& level, const std::string& name, double flops, double bytes, Make make) {
  const auto run = [make, flops, bytes, peak = level.peak](benchmark::State& state) {
    const auto call = make();
    for (auto _ : state) {
      call();
      benchmark::ClobberMemory();
    }
    using benchmark::Counter;
    constexpr auto kRate = Counter::kIsIterationInvariantRate;
    if (flops > 0) {
      state.counters["FLOP/s"] = Counter(flops, kRate);
      state.counters["of_peak"] = Counter(flops / peak, kRate);
    }
    if (bytes > 0) state.counters["bytes/s"] = Counter(bytes, kRate, Counter::kIs1024);
  };
  benchmark::RegisterBenchmark((name + "/" + level.table.isa).c_str(), run)
      ->Unit(benchmark::kMicrosecond);
}

/// One of the names and sizes in a benchmark's name.
inline std::string size(const char* name, int64_t value) {
  return std::string("/") + name + ":" + std::to_string(value);
}

void add_packing(const Level& level);
void add_project(const Level& level);
void add_attend(const Level& level);
void add_sum_projections(const Level& level);
void add_attend_backward(const Level& level);
void add_weight_gradient(const Level& level);
void add_feed_forward(const Level& level);
void add_activation(const Level& level);
/// Of a level whose table has bfloat16 kernels; its peak is that of their probe.
void add_bf16(const Level& level);

}  // namespace headkit::kernels
