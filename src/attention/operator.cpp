#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <torch/library.h>

#include <string>

#include "attention/attention_call.h"
#include "attention/composite_backward.h"
#include "attention/saved_pairs.h"
#include "headkit/core/error.h"
#include "operators/operator_signature.h"

namespace headkit {
namespace {

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

void check_saving(const AttentionCall& call) {
  check_call(call);
  HEADKIT_CHECK(SavedPairs::kept(call), call.operation(),
                "a call on backend cpu in float32, to keep what its backward wants",
                "backend or dtype ", call.x.scalar_type(), " without that");
}

SavingResult run_saving(const AttentionCall& call) {
  check_saving(call);
  const AttentionProblem problem = make_problem(call);
  const at::Tensor saved = at::empty({SavedPairs::floats(problem)}, problem.x.options());
  return {attention_cpu_saving(problem, saved), saved};
}

void check_backward(const at::Tensor& grad, const AttentionCall& call, const GradientMask& mask) {
  check_call(call);
  HEADKIT_CHECK(
      grad.sym_sizes() == call.x.sym_sizes() && grad.scalar_type() == call.x.scalar_type(),
      call.operation(), "grad of the shape and dtype of x", "shape ", grad.sym_sizes(),
      " and dtype ", grad.scalar_type(), " with x of shape ", call.x.sym_sizes());
  const DifferentiableTensors tensors = differentiable_tensors(call);
  for (size_t i = 0; i < kDifferentiable; ++i) {
    HEADKIT_CHECK(!mask[i] || tensors[i].defined(), call.operation(),
                  "output_mask to ask for arguments that are given", "argument ", i, " unset");
  }
}

std::vector<at::Tensor> run_backward(const at::Tensor& grad, const AttentionCall& call,
                                     const std::optional<at::Tensor>& saved, GradientMask mask) {
  check_backward(grad, call, mask);
  const AttentionProblem problem = make_problem(call);
  const std::string backend = choose_backend(problem).name;
  const DifferentiableTensors gradients =
      backend == "cpu" ? attention_cpu_backward(problem, grad, saved.value_or(at::Tensor()), mask)
      : backend == "reference" ? attention_reference_backward(call, grad, mask)
                               : attention_composite_backward(problem, grad, mask);
  const DifferentiableTensors tensors = differentiable_tensors(call);
  std::vector<at::Tensor> result;
  for (size_t i = 0; i < kDifferentiable; ++i) {
    if (!mask[i]) continue;
    result.push_back(
        gradients[i].defined()
            ? gradients[i].to(tensors[i].scalar_type()).reshape(tensors[i].sizes()).contiguous()
            : at::zeros(tensors[i].sizes(), tensors[i].options()));
  }
  return result;
}

at::Tensor meta_forward(const AttentionCall& call) {
  check_call(call);
  return at::empty_symint(call.x.sym_sizes(), call.x.options());
}

SavingResult meta_saving(const AttentionCall& call) {
  check_call(call);
  return {at::empty_symint(call.x.sym_sizes(), call.x.options()),
          at::empty_symint({SavedPairs::floats(call)}, call.x.options())};
}

std::vector<at::Tensor> meta_backward(const at::Tensor& grad, const AttentionCall& call,
                                      const std::optional<at::Tensor>&, GradientMask mask) {
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
  FixedTensors fixed = fixed_tensors(call);
  for (const Fixed i : {kRotaryCos, kRotarySin}) {
    if (fixed[i].defined()) fixed[i] = at::autocast::cached_cast(dtype, fixed[i], device);
  }
  return dispatch_attention(with_fixed(with_differentiable(call, tensors), fixed));
}

using GatedAttention = Signature<gated_attention_call>;
using Attend = Signature<attend_call>;

at::OptionalIntArrayRef list_of(const std::optional<std::vector<int64_t>>& values) {
  return values ? at::OptionalIntArrayRef(*values) : std::nullopt;
}

template <typename Run>
auto with_arguments(const AttentionCall& c, const Run& run) {
  return run(c.x, c.q_weight, c.k_weight, c.v_weight, c.o_weight, c.num_heads, c.q_bias, c.k_bias,
             c.v_bias, c.o_bias, c.num_kv_heads, c.kv, c.scale, c.gate, c.skip, c.key_padding_mask,
             c.is_causal, c.attn_bias, c.dropped_output, c.rotary_cos, c.rotary_sin,
             c.q_norm_weight, c.k_norm_weight, c.window, c.dropout_p, c.dropout_seed, c.norm_eps,
             list_of(c.kv_head));
}

template <typename Run>
auto with_attend_arguments(const AttentionCall& c, const Run& run) {
  return run(c.x, c.k, c.v, c.q_weight, c.o_weight, c.num_heads, c.q_bias, c.o_bias,
             list_of(c.kv_head), c.scale, c.gate, c.skip, c.key_padding_mask, c.is_causal,
             c.query_offset, c.attn_bias, c.dropped_output, c.rotary_cos, c.rotary_sin,
             c.q_norm_weight, c.norm_eps, c.window, c.dropout_p, c.dropout_seed);
}

template <typename Function>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

}  // namespace

at::Tensor dispatch_attention(const AttentionCall& call) {
  if (call.keys_given) {
    static const auto attend = find<Attend::Forward<at::Tensor>>("headkit::attend");
    return with_attend_arguments(call, [](const auto&... args) { return attend.call(args...); });
  }
  static const auto fused = find<GatedAttention::Forward<at::Tensor>>("headkit::gated_attention");
  return with_arguments(call, [](const auto&... args) { return fused.call(args...); });
}

SavingResult dispatch_attention_saving(const AttentionCall& call) {
  if (call.keys_given) {
    static const auto attend = find<Attend::Forward<SavingResult>>("headkit::attend_saving");
    return with_attend_arguments(call, [](const auto&... args) { return attend.call(args...); });
  }
  static const auto fused =
      find<GatedAttention::Forward<SavingResult>>("headkit::gated_attention_saving");
  return with_arguments(call, [](const auto&... args) { return fused.call(args...); });
}

std::vector<at::Tensor> dispatch_attention_backward(const at::Tensor& grad,
                                                    const AttentionCall& call,
                                                    const std::optional<at::Tensor>& saved,
                                                    GradientMask mask) {
  if (call.keys_given) {
    static const auto attend =
        find<Attend::SavedBackward<GradientMask>>("headkit::attend_backward");
    return with_attend_arguments(
        call, [&](const auto&... args) { return attend.call(grad, args..., saved, mask); });
  }
  static const auto fused =
      find<GatedAttention::SavedBackward<GradientMask>>("headkit::gated_attention_backward");
  return with_arguments(
      call, [&](const auto&... args) { return fused.call(grad, args..., saved, mask); });
}

TORCH_LIBRARY(headkit, m) {
  const std::string fused =
      "Tensor x, Tensor q_weight, Tensor k_weight, Tensor v_weight, Tensor o_weight, "
      "int num_heads, *, Tensor? q_bias=None, Tensor? k_bias=None, Tensor? v_bias=None, "
      "Tensor? o_bias=None, int? num_kv_heads=None, Tensor? kv=None, float? scale=None, "
      "Tensor? gate=None, bool skip=True, Tensor? key_padding_mask=None, bool is_causal=False, "
      "Tensor? attn_bias=None, Tensor? dropped_output=None, Tensor? rotary_cos=None, "
      "Tensor? rotary_sin=None, Tensor? q_norm_weight=None, Tensor? k_norm_weight=None, "
      "int? window=None, float dropout_p=0.0, int dropout_seed=0, float norm_eps=1e-6, "
      "int[]? kv_head=None";
  const std::string attend =
      "Tensor x, Tensor k, Tensor v, Tensor q_weight, Tensor o_weight, int num_heads, *, "
      "Tensor? q_bias=None, Tensor? o_bias=None, int[]? kv_head=None, float? scale=None, "
      "Tensor? gate=None, bool skip=True, Tensor? key_padding_mask=None, bool is_causal=False, "
      "SymInt query_offset=0, Tensor? attn_bias=None, Tensor? dropped_output=None, "
      "Tensor? rotary_cos=None, Tensor? rotary_sin=None, Tensor? q_norm_weight=None, "
      "float norm_eps=1e-6, int? window=None, float dropout_p=0.0, int dropout_seed=0";
  const auto define = [&](const std::string& schema) {
    m.def(schema.c_str(), {at::Tag::pt2_compliant_tag});
  };
  define("gated_attention(" + fused + ") -> Tensor");
  define("attend(" + attend + ") -> Tensor");
  // What autograd calls where the backward has use for more than the arguments: the output, and
  // `saved` of the backward (saved_pairs.h).
  define("gated_attention_saving(" + fused + ") -> (Tensor, Tensor)");
  define("attend_saving(" + attend + ") -> (Tensor, Tensor)");
  // The gradients that output_mask asks for, in the order x, kv, k, v, q, k, v, o weight, q, k, v,
  // o bias, gate, attn_bias, dropped_output, q, k norm weight; what a schema lacks stays false.
  const std::string mask = ", Tensor? saved=None, bool[17] output_mask) -> Tensor[]";
  define("gated_attention_backward(Tensor grad, " + fused + mask);
  define("attend_backward(Tensor grad, " + attend + mask);
}

TORCH_LIBRARY_IMPL(headkit, CPU, m) {
  m.impl("gated_attention", &GatedAttention::Of<run_forward>::run);
  m.impl("gated_attention_backward", &GatedAttention::Of<run_backward>::run);
  m.impl("attend", &Attend::Of<run_forward>::run);
  m.impl("attend_backward", &Attend::Of<run_backward>::run);
  m.impl("gated_attention_saving", &GatedAttention::Of<run_saving>::run);
  m.impl("attend_saving", &Attend::Of<run_saving>::run);
}

TORCH_LIBRARY_IMPL(headkit, CUDA, m) {
  m.impl("gated_attention", &GatedAttention::Of<run_forward>::run);
  m.impl("gated_attention_backward", &GatedAttention::Of<run_backward>::run);
  m.impl("attend", &Attend::Of<run_forward>::run);
  m.impl("attend_backward", &Attend::Of<run_backward>::run);
}

TORCH_LIBRARY_IMPL(headkit, Meta, m) {
  m.impl("gated_attention", &GatedAttention::Of<meta_forward>::run);
  m.impl("gated_attention_backward", &GatedAttention::Of<meta_backward>::run);
  m.impl("attend", &Attend::Of<meta_forward>::run);
  m.impl("attend_backward", &Attend::Of<meta_backward>::run);
  m.impl("gated_attention_saving", &GatedAttention::Of<meta_saving>::run);
  m.impl("attend_saving", &Attend::Of<meta_saving>::run);
}

TORCH_LIBRARY_IMPL(headkit, Autograd, m) {
  m.impl("gated_attention", &GatedAttention::Of<attention_autograd>::run);
  m.impl("gated_attention_backward", &GatedAttention::Of<attention_backward_autograd>::run);
  m.impl("attend", &Attend::Of<attention_autograd>::run);
  m.impl("attend_backward", &Attend::Of<attention_backward_autograd>::run);
  m.impl("gated_attention_saving", &GatedAttention::Of<attention_saving_autograd>::run);
  m.impl("attend_saving", &Attend::Of<attention_saving_autograd>::run);
}

TORCH_LIBRARY_IMPL(headkit, AutocastCPU, m) {
  m.impl("gated_attention", &GatedAttention::Of<autocast_forward<at::kCPU>>::run);
  m.impl("attend", &Attend::Of<autocast_forward<at::kCPU>>::run);
}

TORCH_LIBRARY_IMPL(headkit, AutocastCUDA, m) {
  m.impl("gated_attention", &GatedAttention::Of<autocast_forward<at::kCUDA>>::run);
  m.impl("attend", &Attend::Of<autocast_forward<at::kCUDA>>::run);
}

}  // namespace headkit
