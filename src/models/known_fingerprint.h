#pragma once

#include <string>

#include "headkit/models/gated_model.h"

namespace headkit {

/// `model.fingerprint()` from a cache, for those who ask before every run. Hashed again once a
/// tensor of `parameters()` is another, or has another name, place, shape, dtype or version
/// counter, or (on CPU) other bytes at one of 64 places. An edit that PyTorch does not count and
/// that misses all of these needs `refresh_packed_weights`.
std::string known_fingerprint(GatedModel& model);

}  // namespace headkit
