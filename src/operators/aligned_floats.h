#pragma once

#include <cstdint>
#include <memory>

namespace headkit {

/// Uninitialised floats, 64-byte aligned. Every whole huge page of a large block is one where the
/// system grants them: a product reads megabytes of weights, and every small page of them costs a
/// look-up.
using AlignedFloats = std::unique_ptr<float, void (*)(void*)>;
AlignedFloats aligned_floats(int64_t count);

/// Floats of a huge page.
inline constexpr int64_t kHugePageFloats = int64_t{1} << 19;

}  // namespace headkit
