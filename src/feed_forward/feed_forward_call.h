#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/SymInt.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "headkit/feed_forward/gated_feed_forward.h"
#include "kernels/params.h"

namespace headkit {

/// The arguments of `headkit::gated_feed_forward`. Schema: operator.cpp.
struct FeedForwardCall {
  static constexpr const char* kOperation = "gated_feed_forward";

  at::Tensor x, in_weight, out_weight;
  std::optional<at::Tensor> in_bias, out_bias, up_weight, up_bias;
  std::string activation = "gelu";
  int64_t block_size = 32;
  std::optional<at::Tensor> gate, prefix;
  bool skip = true;
  std::optional<at::Tensor> dropped_output;
};

/// The call of the arguments of the schema, in its order.
FeedForwardCall feed_forward_call(
    const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& out_weight,
    const std::optional<at::Tensor>& in_bias, const std::optional<at::Tensor>& out_bias,
    const std::optional<at::Tensor>& up_weight, const std::optional<at::Tensor>& up_bias,
    std::string_view activation, int64_t block_size, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& prefix, bool skip,
    const std::optional<at::Tensor>& dropped_output);

/// The call of the C++ face.
FeedForwardCall make_call(const at::Tensor& x, const FeedForwardWeights& weights,
                          const FeedForwardInput& input);

/// The differentiable arguments: the order of gradients and of the masks that ask for them.
enum FeedForwardArgument : size_t {
  kFeedForwardX,
  kInWeight,
  kOutWeight,
  kInBias,
  kOutBias,
  kUpWeight,
  kUpBias,
  kBlockGate,
  kDroppedBlocks,
  kFeedForwardArguments
};
using FeedForwardMask = std::array<bool, kFeedForwardArguments>;
using FeedForwardTensors = std::array<at::Tensor, kFeedForwardArguments>;

/// The differentiable arguments of a call; an absent one is undefined.
FeedForwardTensors differentiable_tensors(const FeedForwardCall& call);
/// The same call with other differentiable arguments.
FeedForwardCall with_differentiable(FeedForwardCall call, const FeedForwardTensors& tensors);

/// Throws std::invalid_argument naming the first argument that does not fit. Reads sizes, dtypes
/// and devices only, so that it serves tensors without data and symbolic sizes.
void check_call(const FeedForwardCall& call);

/// One call after its checks: what every backend may rely on.
struct FeedForwardProblem {
  at::Tensor x;                // [B, T, D]
  FeedForwardWeights weights;  // dtype and device of x
  kernels::Activation activation = kernels::Activation::kGelu;
  int64_t block_size = 32;
  int64_t neurons = 0;        // F; may be 0
  int64_t blocks = 0;         // N
  at::Tensor gate;            // undefined, [N] or [B, N]; a prefix is one of zeros and ones
  at::Tensor dropped_output;  // undefined or [N, D]
  bool skip = true;

  int64_t first_neuron(int64_t block) const { return block * block_size; }
  int64_t neurons_of(int64_t block) const {
    return std::min(block_size, neurons - first_neuron(block));
  }
};

/// Checks a call, its gate's values too where they lie on the CPU, and settles its defaults.
FeedForwardProblem make_problem(const FeedForwardCall& call);

/// Forward of one backend, [B, T, D], contiguous. None of them records a graph of its own, but for
/// the reference where autograd is on.
at::Tensor feed_forward_reference(const FeedForwardProblem& problem);  // reference.cpp
at::Tensor feed_forward_composite(const FeedForwardProblem& problem);  // composite.cpp: "aten"
/// Backend "cpu". `kept`: undefined, or where the inputs of the activation are left for the
/// backward, as `kept_shape` says.
at::Tensor feed_forward_cpu(const FeedForwardProblem& problem,
                            const at::Tensor& kept = {});  // launch.cpp

/// Gradients for `grad` [B, T, D]; undefined where `mask` is false. They touch open blocks only:
/// skipped blocks get gate gradient 0.
FeedForwardTensors feed_forward_composite_backward(const FeedForwardProblem& problem,
                                                   const at::Tensor& grad,
                                                   const FeedForwardMask& mask);
/// The same on the CPU kernels, bit for bit the same on any number of threads. `kept`: what the
/// forward left, or undefined: then it is computed again.
FeedForwardTensors feed_forward_cpu_backward(const FeedForwardProblem& problem,
                                             const at::Tensor& grad, const at::Tensor& kept,
                                             const FeedForwardMask& mask);  // cpu_backward.cpp
/// The same by autograd of the reference.
FeedForwardTensors feed_forward_reference_backward(const FeedForwardCall& call,
                                                   const at::Tensor& grad,
                                                   const FeedForwardMask& mask);

/// The backend of a problem: as `choose_backend` of operators/backend.h.
BackendChoice choose_backend(const FeedForwardProblem& problem);

/// Whether a forward whose graph is recorded keeps the inputs of the activation for its backward:
/// where the CPU kernels run it. A matter of device, dtype and HEADKIT_BACKEND alone.
bool keeps_hidden(const FeedForwardCall& call);
/// [B, T, F], float32; of a gated layer [B, T, 2 F]: then those of what multiplies the activation.
/// [0] where HEADKIT_BACKEND or the dtype keeps the CPU kernels away. Entries of closed blocks are
/// 0.
std::vector<c10::SymInt> kept_shape(const FeedForwardCall& call);

/// Calls the operator through the dispatcher (operator.cpp).
at::Tensor dispatch_feed_forward(const FeedForwardCall& call);
/// The output, and what is kept for the backward.
using KeepingResult = std::tuple<at::Tensor, at::Tensor>;
KeepingResult dispatch_feed_forward_keeping(const FeedForwardCall& call);
/// The gradients that `mask` asks for, in order.
std::vector<at::Tensor> dispatch_feed_forward_backward(const at::Tensor& grad,
                                                       const FeedForwardCall& call,
                                                       const std::optional<at::Tensor>& kept,
                                                       FeedForwardMask mask);

/// Kernels of the Autograd key (autograd.cpp).
at::Tensor feed_forward_autograd(const FeedForwardCall& call);
KeepingResult feed_forward_keeping_autograd(const FeedForwardCall& call);
std::vector<at::Tensor> feed_forward_backward_autograd(const at::Tensor& grad,
                                                       const FeedForwardCall& call,
                                                       const std::optional<at::Tensor>& kept,
                                                       FeedForwardMask mask);

}  // namespace headkit
