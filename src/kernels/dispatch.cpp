#include "kernels/dispatch.h"

#include <cstdlib>
#include <string>

#include "headkit/core/error.h"

namespace headkit::kernels {

namespace scalar {
const KernelTable& table();
}
#ifdef HEADKIT_HAS_AVX2
namespace avx2 {
const KernelTable& table();
}
#endif
#ifdef HEADKIT_HAS_AVX512
namespace avx512 {
const KernelTable& table();
}
#endif
#ifdef HEADKIT_HAS_AVX512_BF16
namespace avx512_bf16 {
const Bf16Kernels& table();
}
#endif

namespace {

struct Levels {
  const KernelTable* tables[4];
  int count = 0;
  KernelTable with_bf16;

  Levels() {
    tables[count++] = &scalar::table();
#ifdef HEADKIT_HAS_AVX2
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
      tables[count++] = &avx2::table();
    }
#endif
#ifdef HEADKIT_HAS_AVX512
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      tables[count++] = &avx512::table();
#ifdef HEADKIT_HAS_AVX512_BF16
      if (__builtin_cpu_supports("avx512bf16")) {
        with_bf16 = avx512::table();
        with_bf16.isa = "avx512_bf16";
        with_bf16.bf16 = &avx512_bf16::table();
        tables[count++] = &with_bf16;
      }
#endif
    }
#endif
  }
};

const Levels& levels() {
  static const Levels kLevels;
  return kLevels;
}

const KernelTable& choose() {
  const char* wanted = std::getenv("HEADKIT_ISA");
  if (wanted == nullptr || *wanted == '\0') return kernel_table_at(isa_count() - 1);
  std::string known;
  for (int i = 0; i < isa_count(); ++i) {
    if (std::string(wanted) == isa_name(i)) return kernel_table_at(i);
    known += (i == 0 ? "" : ", ") + std::string(isa_name(i));
  }
  throw std::runtime_error(
      error_message("isa", "one of " + known + " (what this build and this machine can run)",
                    "HEADKIT_ISA=", wanted));
}

}  // namespace

int isa_count() { return levels().count; }

const char* isa_name(int index) { return kernel_table_at(index).isa; }

const KernelTable& kernel_table_at(int index) { return *levels().tables[index]; }

const KernelTable& kernel_table() {
  static const KernelTable& table = choose();
  return table;
}

}  // namespace headkit::kernels
