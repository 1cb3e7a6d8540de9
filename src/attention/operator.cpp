#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <tuple>

#include "attention/attention_call.h"
#include "attention/composite_backward.h"
#include "attention/operator_signature.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

auto arguments(const AttentionCall& c) {
  return std::tie(c.x, c.q_weight, c.k_weight, c.v_weight, c.o_weight, c.num_heads, c.q_bias,
                  c.k_bias, c.v_bias, c.o_bias, c.num_kv_heads, c.kv, c.scale, c.gate, c.skip,
                  c.key_padding_mask, c.is_causal, c.attn_bias, c.dropped_output, c.rotary_cos,
                  c.rotary_sin, c.q_norm_weight, c.k_norm_weight, c.window, c.dropout_p,
                  c.dropout_seed);
}

at::Tensor run_forward(const AttentionCall& call) {
  const AttentionProblem problem = make_problem(call);
  const std::string backend = choose_backend(problem).name;
  if (backend == "cpu") return attention_cpu(problem);
  if (backend == "reference") {
    const at::NoGradGuard no_grad;
    return attention_reference(problem).contiguous();
  }
  return attention_composite(problem);
}

void check_backward(const at::Tensor& grad, const AttentionCall& call, const GradientMask& mask) {
  check_call(call);
  HEADKIT_CHECK(
      grad.sym_sizes() == call.x.sym_sizes() && grad.scalar_type() == call.x.scalar_type(),
      "gated_attention_backward", "grad of the shape and dtype of x", "shape ", grad.sym_sizes(),
      " and dtype ", grad.scalar_type(), " with x of shape ", call.x.sym_sizes());
  const DifferentiableTensors tensors = differentiable_tensors(call);
  for (size_t i = 0; i < kDifferentiable; ++i) {
    HEADKIT_CHECK(!mask[i] || tensors[i].defined(), "gated_attention_backward",
                  "output_mask to ask for arguments that are given", "argument ", i, " unset");
  }
}

std::vector<at::Tensor> run_backward(const at::Tensor& grad, const AttentionCall& call,
                                     GradientMask mask) {
  check_backward(grad, call, mask);
  const AttentionProblem problem = make_problem(call);
  const DifferentiableTensors gradients = choose_backend(problem).name == "reference"
                                              ? attention_reference_backward(call, grad, mask)
                                              : attention_composite_backward(problem, grad, mask);
  const DifferentiableTensors tensors = differentiable_tensors(call);
  std::vector<at::Tensor> result;
  for (size_t i = 0; i < kDifferentiable; ++i) {
    if (!mask[i]) continue;
    result.push_back(
        gradients[i].to(tensors[i].scalar_type()).reshape(tensors[i].sizes()).contiguous());
  }
  return result;
}

at::Tensor meta_forward(const AttentionCall& call) {
  check_call(call);
  return at::empty_symint(call.x.sym_sizes(), call.x.options());
}

std::vector<at::Tensor> meta_backward(const at::Tensor& grad, const AttentionCall& call,
                                      GradientMask mask) {
  check_backward(grad, call, mask);
  const DifferentiableTensors tensors = differentiable_tensors(call);
  std::vector<at::Tensor> result;
  for (size_t i = 0; i < kDifferentiable; ++i) {
    if (mask[i]) result.push_back(at::empty_symint(tensors[i].sym_sizes(), tensors[i].options()));
  }
  return result;
}

// The gate stays in float32: a decision must not flip because it was rounded.
template <at::DeviceType device>
at::Tensor autocast_forward(const AttentionCall& call) {
  const c10::impl::ExcludeDispatchKeyGuard below(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_autocast_dtype(device);
  DifferentiableTensors tensors = differentiable_tensors(call);
  for (size_t i = 0; i < kDifferentiable; ++i) {
    if (!tensors[i].defined()) continue;
    tensors[i] = at::autocast::cached_cast(i == kGate ? at::kFloat : dtype, tensors[i], device);
  }
  return dispatch_attention(with_differentiable(call, tensors));
}

}  // namespace

at::Tensor dispatch_attention(const AttentionCall& call) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("headkit::gated_attention", "")
                                 .typed<Operator::Forward>();
  return std::apply([](const auto&... args) { return handle.call(args...); }, arguments(call));
}

std::vector<at::Tensor> dispatch_attention_backward(const at::Tensor& grad,
                                                    const AttentionCall& call, GradientMask mask) {
  static const auto handle = c10::Dispatcher::singleton()
                                 .findSchemaOrThrow("headkit::gated_attention_backward", "")
                                 .typed<Operator::Backward>();
  return std::apply([&](const auto&... args) { return handle.call(grad, args..., mask); },
                    arguments(call));
}

TORCH_LIBRARY(headkit, m) {
  m.def(
      "gated_attention(Tensor x, Tensor q_weight, Tensor k_weight, Tensor v_weight, "
      "Tensor o_weight, int num_heads, *, Tensor? q_bias=None, Tensor? k_bias=None, "
      "Tensor? v_bias=None, Tensor? o_bias=None, int? num_kv_heads=None, Tensor? kv=None, "
      "float? scale=None, Tensor? gate=None, bool skip=True, Tensor? key_padding_mask=None, "
      "bool is_causal=False, Tensor? attn_bias=None, Tensor? dropped_output=None, "
      "Tensor? rotary_cos=None, Tensor? rotary_sin=None, Tensor? q_norm_weight=None, "
      "Tensor? k_norm_weight=None, int? window=None, float dropout_p=0.0, int dropout_seed=0) "
      "-> Tensor",
      {at::Tag::pt2_compliant_tag});
  // The gradients that output_mask asks for, in the order x, q, k, v, o weight, q, k, v, o bias,
  // gate, attn_bias, dropped_output.
  m.def(
      "gated_attention_backward(Tensor grad, Tensor x, Tensor q_weight, Tensor k_weight, "
      "Tensor v_weight, Tensor o_weight, int num_heads, *, Tensor? q_bias=None, "
      "Tensor? k_bias=None, Tensor? v_bias=None, Tensor? o_bias=None, int? num_kv_heads=None, "
      "Tensor? kv=None, float? scale=None, Tensor? gate=None, bool skip=True, "
      "Tensor? key_padding_mask=None, bool is_causal=False, Tensor? attn_bias=None, "
      "Tensor? dropped_output=None, Tensor? rotary_cos=None, Tensor? rotary_sin=None, "
      "Tensor? q_norm_weight=None, Tensor? k_norm_weight=None, int? window=None, "
      "float dropout_p=0.0, int dropout_seed=0, bool[12] output_mask) -> Tensor[]",
      {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(headkit, CPU, m) {
  m.impl("gated_attention", &Operator::forward<run_forward>);
  m.impl("gated_attention_backward", &Operator::backward<run_backward>);
}

TORCH_LIBRARY_IMPL(headkit, CUDA, m) {
  m.impl("gated_attention", &Operator::forward<run_forward>);
  m.impl("gated_attention_backward", &Operator::backward<run_backward>);
}

TORCH_LIBRARY_IMPL(headkit, Meta, m) {
  m.impl("gated_attention", &Operator::forward<meta_forward>);
  m.impl("gated_attention_backward", &Operator::backward<meta_backward>);
}

TORCH_LIBRARY_IMPL(headkit, Autograd, m) {
  m.impl("gated_attention", &Operator::forward<attention_autograd>);
  m.impl("gated_attention_backward", &Operator::backward<attention_backward_autograd>);
}

TORCH_LIBRARY_IMPL(headkit, AutocastCPU, m) {
  m.impl("gated_attention", &Operator::forward<autocast_forward<at::kCPU>>);
}

TORCH_LIBRARY_IMPL(headkit, AutocastCUDA, m) {
  m.impl("gated_attention", &Operator::forward<autocast_forward<at::kCUDA>>);
}

}  // namespace headkit
