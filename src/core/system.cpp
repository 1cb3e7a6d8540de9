#include "headkit/core/system.h"

#include <ATen/Parallel.h>

#include <chrono>
#include <mutex>
#include <sstream>

#include "headkit/core/error.h"
#include "headkit/core/version.h"
#include "kernels/dispatch.h"

namespace headkit {

std::string show_config() {
  std::ostringstream text;
  const auto list = [](const std::vector<std::string>& names) {
    std::string joined;
    for (const std::string& name : names) joined += (joined.empty() ? "" : ", ") + name;
    return joined;
  };
  text << "headkit " << HEADKIT_VERSION << "\n"
       << "built with torch " << HEADKIT_TORCH_VERSION << "\n"
       << "compiler " << __VERSION__ << "\n"
       << "instruction set " << active_isa() << " (available: " << list(available_isas()) << ")\n"
       << "backends " << list(available_backends()) << "\n"
       << "threads " << at::get_num_threads() << "\n";
  return text.str();
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (int i = 0; i < kernels::isa_count(); ++i) names.emplace_back(kernels::isa_name(i));
  return names;
}

std::string active_isa() { return kernels::kernel_table().isa; }

double peak_flops(const std::string& dtype, double seconds) {
  using Clock = std::chrono::steady_clock;
  const kernels::KernelTable& table = kernels::kernel_table();
  const bool bf16 = dtype == "bfloat16";
  HEADKIT_CHECK(bf16 || dtype == "float32", "peak_flops", "dtype float32 or bfloat16", dtype);
  HEADKIT_CHECK(!bf16 || table.bf16 != nullptr, "peak_flops",
                "a level that multiplies bfloat16 natively", table.isa);
  const auto probe = bf16 ? table.bf16->probe : table.probe;
  std::mutex mutex;
  double total = 0.0;
  at::parallel_for(0, at::get_num_threads(), 1, [&](int64_t begin, int64_t end) {
    const auto start = Clock::now();
    double flops = 0.0, elapsed = 0.0;
    do {
      flops += probe(1000);
      elapsed = std::chrono::duration<double>(Clock::now() - start).count();
    } while (elapsed < seconds);
    const std::lock_guard<std::mutex> lock(mutex);
    total += flops / elapsed;
  });
  return total;
}

std::vector<std::string> available_backends() { return {"cpu", "aten", "reference"}; }

}  // namespace headkit
