#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <cstdlib>
#include <string>

#include "feed_forward/feed_forward_call.h"
#include "headkit/core/error.h"
#include "operators/backend.h"
#include "operators/operator_signature.h"

namespace headkit {
namespace {

using Schema = Signature<feed_forward_call>;

std::string cpu_refusal(const FeedForwardProblem& problem) {
  if (!problem.x.is_cpu()) return "x is on " + problem.x.device().str() + ", not on the CPU";
  if (problem.x.scalar_type() == at::kDouble) return "the CPU kernels sum in float32, x is Double";
  return "";
}

at::Tensor run_forward(const FeedForwardCall& call) {
  const FeedForwardProblem problem = make_problem(call);
  const std::string backend = choose_backend(problem).name;
  if (backend == "cpu") return feed_forward_cpu(problem);
  if (backend == "reference") {
    const at::NoGradGuard no_grad;
    return feed_forward_reference(problem).contiguous();
  }
  return feed_forward_composite(problem);
}

KeepingResult run_keeping(const FeedForwardCall& call) {
  if (!keeps_hidden(call)) {
    const auto options = call.x.options().dtype(at::kFloat);
    return {run_forward(call), at::zeros_symint(kept_shape(call), options)};
  }
  const FeedForwardProblem problem = make_problem(call);
  const auto options = call.x.options().dtype(at::kFloat);
  const std::vector<c10::SymInt> shape = kept_shape(call);
  const at::Tensor kept = problem.gate.defined() && problem.skip ? at::zeros_symint(shape, options)
                                                                 : at::empty_symint(shape, options);
  return {feed_forward_cpu(problem, kept), kept};
}

void check_backward(const at::Tensor& grad, const FeedForwardCall& call,
                    const std::optional<at::Tensor>& kept, const FeedForwardMask& mask) {
  check_call(call);
  HEADKIT_CHECK(
      grad.sym_sizes() == call.x.sym_sizes() && grad.scalar_type() == call.x.scalar_type(),
      FeedForwardCall::kOperation, "grad of the shape and dtype of x", "shape ", grad.sym_sizes(),
      " and dtype ", grad.scalar_type(), " with x of shape ", call.x.sym_sizes());
  // Where nothing is kept, or was on another backend, the backward does not look at it.
  HEADKIT_CHECK(!kept || !keeps_hidden(call) ||
                    (kept->sym_sizes() == c10::SymIntArrayRef(kept_shape(call)) &&
                     kept->scalar_type() == at::kFloat && kept->device() == call.x.device()),
                FeedForwardCall::kOperation, "what the forward of the same call kept", "shape ",
                kept ? kept->sym_sizes() : c10::SymIntArrayRef());
  const FeedForwardTensors tensors = differentiable_tensors(call);
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    HEADKIT_CHECK(!mask[i] || tensors[i].defined(), FeedForwardCall::kOperation,
                  "output_mask to ask for arguments that are given", "argument ", i, " unset");
  }
}

std::vector<at::Tensor> run_backward(const at::Tensor& grad, const FeedForwardCall& call,
                                     const std::optional<at::Tensor>& kept, FeedForwardMask mask) {
  check_backward(grad, call, kept, mask);
  const FeedForwardProblem problem = make_problem(call);
  const std::string backend = choose_backend(problem).name;
  const FeedForwardTensors gradients =
      backend == "cpu" ? feed_forward_cpu_backward(problem, grad, kept.value_or(at::Tensor()), mask)
      : backend == "reference" ? feed_forward_reference_backward(call, grad, mask)
                               : feed_forward_composite_backward(problem, grad, mask);
  const FeedForwardTensors tensors = differentiable_tensors(call);
  std::vector<at::Tensor> result;
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    if (!mask[i]) continue;
    result.push_back(
        gradients[i].defined()
            ? gradients[i].to(tensors[i].scalar_type()).reshape(tensors[i].sizes()).contiguous()
            : at::zeros(tensors[i].sizes(), tensors[i].options()));
  }
  return result;
}

at::Tensor meta_forward(const FeedForwardCall& call) {
  check_call(call);
  return at::empty_symint(call.x.sym_sizes(), call.x.options());
}

KeepingResult meta_keeping(const FeedForwardCall& call) {
  return {meta_forward(call),
          at::empty_symint(kept_shape(call), call.x.options().dtype(at::kFloat))};
}

std::vector<at::Tensor> meta_backward(const at::Tensor& grad, const FeedForwardCall& call,
                                      const std::optional<at::Tensor>& kept, FeedForwardMask mask) {
  check_backward(grad, call, kept, mask);
  const FeedForwardTensors tensors = differentiable_tensors(call);
  std::vector<at::Tensor> result;
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    if (mask[i]) result.push_back(at::empty_symint(tensors[i].sym_sizes(), tensors[i].options()));
  }
  return result;
}

// The gate stays in float32: a decision must not flip because it was rounded.
template <at::DeviceType device>
at::Tensor autocast_forward(const FeedForwardCall& call) {
  const c10::impl::ExcludeDispatchKeyGuard below(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_autocast_dtype(device);
  FeedForwardTensors tensors = differentiable_tensors(call);
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    if (!tensors[i].defined()) continue;
    tensors[i] =
        at::autocast::cached_cast(i == kBlockGate ? at::kFloat : dtype, tensors[i], device);
  }
  return dispatch_feed_forward(with_differentiable(call, tensors));
}

template <typename Run>
auto with_arguments(const FeedForwardCall& c, const Run& run) {
  return run(c.x, c.in_weight, c.out_weight, c.in_bias, c.out_bias, c.up_weight, c.up_bias,
             c.activation, c.block_size, c.gate, c.prefix, c.skip, c.dropped_output);
}

template <typename Function>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

bool keeps_hidden(const FeedForwardCall& call) {
  return call.x.is_cpu() && kept_shape(call).size() == 3;
}

std::vector<c10::SymInt> kept_shape(const FeedForwardCall& call) {
  const char* forced = std::getenv("HEADKIT_BACKEND");
  const bool runs = forced == nullptr || *forced == '\0' || std::string(forced) == "cpu";
  if (!runs || call.x.scalar_type() == at::kDouble) return {0};
  return {call.x.sym_size(0), call.x.sym_size(1),
          call.in_weight.sym_size(0) * (call.up_weight ? 2 : 1)};
}

BackendChoice choose_backend(const FeedForwardProblem& problem) {
  return choose_backend(FeedForwardCall::kOperation, cpu_refusal(problem));
}

at::Tensor dispatch_feed_forward(const FeedForwardCall& call) {
  static const auto forward = find<Schema::Forward<at::Tensor>>("headkit::gated_feed_forward");
  return with_arguments(call, [](const auto&... args) { return forward.call(args...); });
}

KeepingResult dispatch_feed_forward_keeping(const FeedForwardCall& call) {
  static const auto forward =
      find<Schema::Forward<KeepingResult>>("headkit::gated_feed_forward_keeping");
  return with_arguments(call, [](const auto&... args) { return forward.call(args...); });
}

std::vector<at::Tensor> dispatch_feed_forward_backward(const at::Tensor& grad,
                                                       const FeedForwardCall& call,
                                                       const std::optional<at::Tensor>& kept,
                                                       FeedForwardMask mask) {
  static const auto backward =
      find<Schema::SavedBackward<FeedForwardMask>>("headkit::gated_feed_forward_backward");
  return with_arguments(
      call, [&](const auto&... args) { return backward.call(grad, args..., kept, mask); });
}

TORCH_LIBRARY_FRAGMENT(headkit, m) {
  const std::string arguments =
      "Tensor x, Tensor in_weight, Tensor out_weight, *, Tensor? in_bias=None, "
      "Tensor? out_bias=None, Tensor? up_weight=None, Tensor? up_bias=None, "
      "str activation='gelu', int block_size=32, Tensor? gate=None, Tensor? prefix=None, "
      "bool skip=True, Tensor? dropped_output=None";
  const auto define = [&](const std::string& schema) {
    m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  };
  define("gated_feed_forward(" + arguments + ") -> Tensor");
  // The output, and what the backward would compute again: see kept_shape.
  define("gated_feed_forward_keeping(" + arguments + ") -> (Tensor, Tensor)");
  // The gradients that output_mask asks for, in the order x, in, out weight, in, out bias, up
  // weight, up bias, gate, dropped_output.
  define("gated_feed_forward_backward(Tensor grad, " + arguments +
         ", Tensor? kept=None, bool[9] output_mask) -> Tensor[]");
}

TORCH_LIBRARY_IMPL(headkit, CPU, m) {
  m.impl("gated_feed_forward", &Schema::Of<run_forward>::run);
  m.impl("gated_feed_forward_keeping", &Schema::Of<run_keeping>::run);
  m.impl("gated_feed_forward_backward", &Schema::Of<run_backward>::run);
}

TORCH_LIBRARY_IMPL(headkit, CUDA, m) {
  m.impl("gated_feed_forward", &Schema::Of<run_forward>::run);
  m.impl("gated_feed_forward_keeping", &Schema::Of<run_keeping>::run);
  m.impl("gated_feed_forward_backward", &Schema::Of<run_backward>::run);
}

TORCH_LIBRARY_IMPL(headkit, Meta, m) {
  m.impl("gated_feed_forward", &Schema::Of<meta_forward>::run);
  m.impl("gated_feed_forward_keeping", &Schema::Of<meta_keeping>::run);
  m.impl("gated_feed_forward_backward", &Schema::Of<meta_backward>::run);
}

TORCH_LIBRARY_IMPL(headkit, Autograd, m) {
  m.impl("gated_feed_forward", &Schema::Of<feed_forward_autograd>::run);
  m.impl("gated_feed_forward_keeping", &Schema::Of<feed_forward_keeping_autograd>::run);
  m.impl("gated_feed_forward_backward", &Schema::Of<feed_forward_backward_autograd>::run);
}

TORCH_LIBRARY_IMPL(headkit, AutocastCPU, m) {
  m.impl("gated_feed_forward", &Schema::Of<autocast_forward<at::kCPU>>::run);
}

TORCH_LIBRARY_IMPL(headkit, AutocastCUDA, m) {
  m.impl("gated_feed_forward", &Schema::Of<autocast_forward<at::kCUDA>>::run);
}

}  // namespace headkit
