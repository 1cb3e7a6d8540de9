#include "feed_forward/feed_forward_call.h"

#include <ATen/ATen.h>

#include <utility>

#include "headkit/core/error.h"
#include "operators/argument_check.h"

namespace headkit {
namespace {

at::Tensor value(const std::optional<at::Tensor>& tensor) { return tensor.value_or(at::Tensor()); }

std::optional<at::Tensor> optional(const at::Tensor& tensor) {
  return tensor.defined() ? std::optional(tensor) : std::nullopt;
}

std::optional<kernels::Activation> activation_of(const std::string& name) {
  if (name == "gelu") return kernels::Activation::kGelu;
  if (name == "gelu_tanh") return kernels::Activation::kGeluTanh;
  if (name == "relu") return kernels::Activation::kRelu;
  if (name == "silu") return kernels::Activation::kSilu;
  return std::nullopt;
}

void check_gate(const ArgumentCheck& check, const FeedForwardCall& call, const c10::SymInt& batch,
                const c10::SymInt& blocks) {
  if (call.gate) {
    const at::Tensor& gate = *call.gate;
    HEADKIT_CHECK(!call.prefix, check.operation(), "gate or prefix", "both");
    HEADKIT_CHECK(check.has_shape(gate, {blocks}) || check.has_shape(gate, {batch, blocks}),
                  check.operation(), "gate of shape [N] or [B, N]", "shape ", gate.sym_sizes(),
                  check.context(), " and N = ", blocks);
    const auto dtype = call.x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
    HEADKIT_CHECK(gate.scalar_type() == dtype, check.operation(),
                  std::string("gate of dtype ") + c10::toString(dtype), "dtype ",
                  gate.scalar_type(), " with x of dtype ", call.x.scalar_type());
    check.device_and_layout(gate, "gate");
  }
  if (call.prefix) {
    HEADKIT_CHECK(check.has_shape(*call.prefix, {batch}) && call.prefix->scalar_type() == at::kLong,
                  check.operation(), "prefix of shape [B] and dtype Long", "shape ",
                  call.prefix->sym_sizes(), " and dtype ", call.prefix->scalar_type(),
                  check.context());
    check.device_and_layout(*call.prefix, "prefix");
  }
}

}  // namespace

FeedForwardCall feed_forward_call(
    const at::Tensor& x, const at::Tensor& in_weight, const at::Tensor& out_weight,
    const std::optional<at::Tensor>& in_bias, const std::optional<at::Tensor>& out_bias,
    const std::optional<at::Tensor>& up_weight, const std::optional<at::Tensor>& up_bias,
    std::string_view activation, int64_t block_size, const std::optional<at::Tensor>& gate,
    const std::optional<at::Tensor>& prefix, bool skip,
    const std::optional<at::Tensor>& dropped_output) {
  FeedForwardCall call;
  call.x = x;
  call.in_weight = in_weight;
  call.out_weight = out_weight;
  call.in_bias = in_bias;
  call.out_bias = out_bias;
  call.up_weight = up_weight;
  call.up_bias = up_bias;
  call.activation = std::string(activation);
  call.block_size = block_size;
  call.gate = gate;
  call.prefix = prefix;
  call.skip = skip;
  call.dropped_output = dropped_output;
  return call;
}

FeedForwardCall make_call(const at::Tensor& x, const FeedForwardWeights& weights,
                          const FeedForwardInput& input) {
  return feed_forward_call(x, weights.in, weights.out, optional(weights.in_bias),
                           optional(weights.out_bias), optional(weights.up),
                           optional(weights.up_bias), input.activation_, input.block_size_,
                           input.gate_, input.prefix_, input.skip_, input.dropped_output_);
}

FeedForwardTensors differentiable_tensors(const FeedForwardCall& call) {
  return {call.x,
          call.in_weight,
          call.out_weight,
          value(call.in_bias),
          value(call.out_bias),
          value(call.up_weight),
          value(call.up_bias),
          value(call.gate),
          value(call.dropped_output)};
}

FeedForwardCall with_differentiable(FeedForwardCall call, const FeedForwardTensors& tensors) {
  call.x = tensors[kFeedForwardX];
  call.in_weight = tensors[kInWeight];
  call.out_weight = tensors[kOutWeight];
  call.in_bias = optional(tensors[kInBias]);
  call.out_bias = optional(tensors[kOutBias]);
  call.up_weight = optional(tensors[kUpWeight]);
  call.up_bias = optional(tensors[kUpBias]);
  call.gate = optional(tensors[kBlockGate]);
  call.dropped_output = optional(tensors[kDroppedBlocks]);
  return call;
}

void check_call(const FeedForwardCall& call) {
  const ArgumentCheck check(FeedForwardCall::kOperation, "x", "[B, T, D]", call.x);
  HEADKIT_CHECK(activation_of(call.activation).has_value(), check.operation(),
                "activation gelu, gelu_tanh, relu or silu", "\"", call.activation, "\"");
  HEADKIT_CHECK(call.block_size >= 1, check.operation(), "block_size of at least 1",
                call.block_size);
  const c10::SymInt width = call.x.sym_size(2);
  HEADKIT_CHECK(call.in_weight.defined() && call.in_weight.dim() == 2, check.operation(),
                "in_weight of shape [F, D]", "shape ",
                call.in_weight.defined() ? call.in_weight.sym_sizes() : c10::SymIntArrayRef());
  const c10::SymInt neurons = call.in_weight.sym_size(0);
  check.tensor(call.in_weight, "in_weight", "[F, D]", {neurons, width});
  check.tensor(call.out_weight, "out_weight", "[D, F]", {width, neurons});
  if (call.in_bias) check.tensor(*call.in_bias, "in_bias", "[F]", {neurons});
  if (call.out_bias) check.tensor(*call.out_bias, "out_bias", "[D]", {width});
  if (call.up_weight) check.tensor(*call.up_weight, "up_weight", "[F, D]", {neurons, width});
  if (call.up_bias) {
    HEADKIT_CHECK(call.up_weight, check.operation(), "up_bias with up_weight", "up_bias alone");
    check.tensor(*call.up_bias, "up_bias", "[F]", {neurons});
  }
  const c10::SymInt blocks = (neurons + (call.block_size - 1)) / call.block_size;
  check_gate(check, call, call.x.sym_size(0), blocks);
  if (call.dropped_output) {
    check.tensor(*call.dropped_output, "dropped_output", "[N, D]", {blocks, width});
  }
}

FeedForwardProblem make_problem(const FeedForwardCall& call) {
  check_call(call);
  FeedForwardProblem problem;
  problem.x = call.x;
  problem.weights = {call.in_weight,      call.out_weight,     value(call.up_weight),
                     value(call.in_bias), value(call.up_bias), value(call.out_bias)};
  problem.activation = *activation_of(call.activation);
  problem.block_size = call.block_size;
  problem.neurons = call.in_weight.size(0);
  problem.blocks = (problem.neurons + call.block_size - 1) / call.block_size;
  problem.gate = value(call.gate);
  problem.dropped_output = value(call.dropped_output);
  problem.skip = call.skip;
  if (problem.gate.defined() && problem.gate.is_cpu()) {
    HEADKIT_CHECK(problem.gate.isfinite().all().item<bool>(), FeedForwardCall::kOperation,
                  "finite gates", "NaN or infinity");
  }
  if (call.prefix) {
    const at::Tensor& prefix = *call.prefix;
    HEADKIT_CHECK(
        !prefix.is_cpu() || prefix.ge(0).logical_and(prefix.le(problem.blocks)).all().item<bool>(),
        FeedForwardCall::kOperation, "prefix in [0, " + std::to_string(problem.blocks) + "]",
        "values outside");
    problem.gate = at::arange(problem.blocks, prefix.options())
                       .lt(prefix.unsqueeze(1))
                       .to(call.x.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  }
  return problem;
}

}  // namespace headkit
