#pragma once

#include <map>
#include <string>

#include "headkit/persistence/safetensors.h"
#include "persistence/atomic_file.h"

namespace headkit {

/// As the public function, into a file whose name is not known yet: the caller commits it.
std::string write_safetensors(AtomicFile& file, const NamedTensors& tensors,
                              const std::map<std::string, std::string>& metadata);

}  // namespace headkit
