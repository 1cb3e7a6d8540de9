#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

namespace headkit {

/// Tensors as bytes, for another process or a journal. Float64, float32, int64 and bool, on CPU;
/// undefined ones too. Little endian, as all machines that headkit builds on.
std::string pack(const std::vector<at::Tensor>& tensors);

/// Throws std::runtime_error for bytes that `pack` does not give; allocates no more than they hold.
std::vector<at::Tensor> unpack(std::string_view bytes);

}  // namespace headkit
