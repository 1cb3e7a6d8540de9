#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <vector>

#include "attention/attention_call.h"

namespace headkit {

using OptionalTensor = std::optional<at::Tensor>;

/// The C++ types of the schema's arguments, written once for all kernels of both operators.
/// `Signature::forward<kernel>` is what TORCH_LIBRARY_IMPL takes for a kernel of an AttentionCall.
///
/// torch turns std::invalid_argument into RuntimeError, c10::ValueError into ValueError, so the
/// former leaves a kernel as the latter; `gated_attention` turns it back.
template <typename... Args>
struct Signature {
  using Forward = at::Tensor(Args...);
  using Backward = std::vector<at::Tensor>(const at::Tensor&, Args..., GradientMask);

  template <at::Tensor (*Kernel)(const AttentionCall&)>
  static at::Tensor forward(Args... args) {
    return translated([&] { return Kernel(AttentionCall{args...}); });
  }

  template <std::vector<at::Tensor> (*Kernel)(const at::Tensor&, const AttentionCall&,
                                              GradientMask)>
  static std::vector<at::Tensor> backward(const at::Tensor& grad, Args... args, GradientMask mask) {
    return translated([&] { return Kernel(grad, AttentionCall{args...}, mask); });
  }

 private:
  template <typename Run>
  static auto translated(const Run& run) {
    try {
      return run();
    } catch (const std::invalid_argument& error) {
      throw c10::ValueError({__func__, __FILE__, __LINE__}, error.what());
    }
  }
};

using Operator =
    Signature<const at::Tensor&, const at::Tensor&, const at::Tensor&, const at::Tensor&,
              const at::Tensor&, int64_t, const OptionalTensor&, const OptionalTensor&,
              const OptionalTensor&, const OptionalTensor&, std::optional<int64_t>,
              const OptionalTensor&, std::optional<double>, const OptionalTensor&, bool,
              const OptionalTensor&, bool, const OptionalTensor&, const OptionalTensor&,
              const OptionalTensor&, const OptionalTensor&, const OptionalTensor&,
              const OptionalTensor&, std::optional<int64_t>, double, int64_t>;

}  // namespace headkit
