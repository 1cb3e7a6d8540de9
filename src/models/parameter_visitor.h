#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

namespace headkit {

/// Shown each parameter of a part of an encoder, in the order of the state dictionary: its name,
/// its place, and its shape.
using ParameterVisitor = std::function<void(const std::string& name, at::Tensor& place,
                                            const std::vector<int64_t>& shape)>;

/// Weight [rows, columns] and bias [rows] of a linear map.
struct Linear {
  at::Tensor weight, bias;

  void visit(const std::string& name, int64_t rows, int64_t columns,
             const ParameterVisitor& visitor) {
    visitor(name + ".weight", weight, {rows, columns});
    visitor(name + ".bias", bias, {rows});
  }
};

}  // namespace headkit
