#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/Exception.h>

#include <optional>
#include <stdexcept>
#include <vector>

namespace headkit {

/// Runs a kernel's body. torch turns std::invalid_argument into RuntimeError, c10::ValueError into
/// ValueError, so the former leaves a kernel as the latter; the C++ face turns it back.
template <typename Run>
auto translated(const Run& run) {
  try {
    return run();
  } catch (const std::invalid_argument& error) {
    throw c10::ValueError({__func__, __FILE__, __LINE__}, error.what());
  }
}

/// And back, for the C++ face.
template <typename Run>
auto translated_back(const Run& run) {
  try {
    return run();
  } catch (const c10::ValueError& error) {
    throw std::invalid_argument(error.what_without_backtrace());
  }
}

/// The C++ types of a schema's arguments, taken from the function that makes a call of them, so
/// that they are written once for all kernels. `Signature<make>::Of<kernel>::run` is what
/// TORCH_LIBRARY_IMPL takes for a kernel of a call.
///
///     Call make(const at::Tensor& x, int64_t num_heads);
///     at::Tensor kernel(const Call& call);
template <auto Make>
struct Signature;

template <typename Call, typename... Args, Call (*Make)(Args...)>
struct Signature<Make> {
  template <typename Result>
  using Forward = Result(Args...);
  /// Of the backward operator: gradients of the results first, the mask last.
  template <typename Mask, typename... Grads>
  using Backward = std::vector<at::Tensor>(Grads..., Args..., Mask);
  /// The same with what the forward has saved, if anything, before the mask.
  template <typename Mask>
  using SavedBackward = std::vector<at::Tensor>(const at::Tensor&, Args...,
                                                const std::optional<at::Tensor>&, Mask);

  template <auto Kernel>
  struct Of;

  template <typename Result, Result (*Kernel)(const Call&)>
  struct Of<Kernel> {
    static Result run(Args... args) {
      return translated([&] { return Kernel(Make(args...)); });
    }
  };

  template <typename Mask, std::vector<at::Tensor> (*Kernel)(const at::Tensor&, const Call&, Mask)>
  struct Of<Kernel> {
    static std::vector<at::Tensor> run(const at::Tensor& grad, Args... args, Mask mask) {
      return translated([&] { return Kernel(grad, Make(args...), mask); });
    }
  };

  template <typename Mask,
            std::vector<at::Tensor> (*Kernel)(const at::Tensor&, const Call&,
                                              const std::optional<at::Tensor>&, Mask)>
  struct Of<Kernel> {
    static std::vector<at::Tensor> run(const at::Tensor& grad, Args... args,
                                       const std::optional<at::Tensor>& saved, Mask mask) {
      return translated([&] { return Kernel(grad, Make(args...), saved, mask); });
    }
  };

  template <typename Mask, std::vector<at::Tensor> (*Kernel)(const at::Tensor&, const at::Tensor&,
                                                             const Call&, Mask)>
  struct Of<Kernel> {
    static std::vector<at::Tensor> run(const at::Tensor& first_grad, const at::Tensor& second_grad,
                                       Args... args, Mask mask) {
      return translated([&] { return Kernel(first_grad, second_grad, Make(args...), mask); });
    }
  };
};

}  // namespace headkit
