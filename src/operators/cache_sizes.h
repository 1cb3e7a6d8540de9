#pragma once

#include <cstdint>

namespace headkit {

/// Rows that share a pass over weights, about: each panel of weights comes from memory once for
/// them.
inline constexpr int64_t kPassRows = 192;
/// Floats of token panels that stay in a second-level cache beside one weight matrix of a head.
inline constexpr int64_t kCachedTokens = 160 * 1024;

}  // namespace headkit
