#include "operators/aligned_floats.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <new>

#include "operators/rounding.h"

namespace headkit {

AlignedFloats aligned_floats(int64_t count) {
  constexpr int64_t kLine = 64, kHugePage = kHugePageFloats * sizeof(float);
  const int64_t bytes = std::max<int64_t>(1, count * static_cast<int64_t>(sizeof(float)));
  const int64_t alignment = bytes >= kHugePage ? kHugePage : kLine;
  // Only its own whole huge pages are asked for; the rest stays small, so that no memory is wasted.
  void* memory = std::aligned_alloc(alignment, round_up(bytes, kLine));
  if (memory == nullptr) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  // A refusal changes no result.
  if (bytes >= kHugePage) madvise(memory, bytes / kHugePage * kHugePage, MADV_HUGEPAGE);
#endif
  return {static_cast<float*>(memory), std::free};
}

}  // namespace headkit
