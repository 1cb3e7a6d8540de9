#pragma once

#include <string>

#include "headkit/persistence/safetensors.h"

namespace headkit {

/// The tensors of a Hugging Face folder: of model.safetensors, or of the files that
/// model.safetensors.index.json names. They share mappings of the files. Throws std::runtime_error
/// if a file or a tensor is missing, or a file is not sound.
NamedTensors read_checkpoint(const std::string& folder);

}  // namespace headkit
