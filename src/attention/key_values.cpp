#include "headkit/attention/key_values.h"

#include <ATen/ATen.h>
#include <ATen/autocast_mode.h>
#include <ATen/functorch/DynamicLayer.h>
#include <ATen/functorch/PlumbingHelper.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>
#include <iterator>
#include <stdexcept>
#include <string>
#include <tuple>
#include <utility>
#include <vector>

#include "attention/attention_call.h"
#include "attention/kv_projection.h"
#include "headkit/core/error.h"
#include "operators/argument_check.h"
#include "operators/backend.h"
#include "operators/operator_signature.h"

namespace headkit {
namespace {

using OptionalTensor = std::optional<at::Tensor>;
using Projected = std::tuple<at::Tensor, at::Tensor>;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr const char* kName = "project_kv";

struct ProjectKvCall {
  at::Tensor kv, k_weight, v_weight;
  int64_t num_kv_heads = 0;
  OptionalTensor k_bias, v_bias, gate, rotary_cos, rotary_sin, k_norm_weight;
  double norm_eps = 1e-6;
};

ProjectKvCall project_kv_call(const at::Tensor& kv, const at::Tensor& k_weight,
                              const at::Tensor& v_weight, int64_t num_kv_heads,
                              const OptionalTensor& k_bias, const OptionalTensor& v_bias,
                              const OptionalTensor& gate, const OptionalTensor& rotary_cos,
                              const OptionalTensor& rotary_sin, const OptionalTensor& k_norm_weight,
                              double norm_eps) {
  return {kv,   k_weight,   v_weight,   num_kv_heads,  k_bias,  v_bias,
          gate, rotary_cos, rotary_sin, k_norm_weight, norm_eps};
}

using Operator = Signature<project_kv_call>;

auto arguments(const ProjectKvCall& c) {
  return std::tie(c.kv, c.k_weight, c.v_weight, c.num_kv_heads, c.k_bias, c.v_bias, c.gate,
                  c.rotary_cos, c.rotary_sin, c.k_norm_weight, c.norm_eps);
}

at::Tensor value(const OptionalTensor& tensor) { return tensor.value_or(at::Tensor()); }

KvTensors differentiable(const ProjectKvCall& call) {
  return {call.kv,
          call.k_weight,
          call.v_weight,
          value(call.k_bias),
          value(call.v_bias),
          value(call.k_norm_weight)};
}

ProjectKvCall with_tensors(ProjectKvCall call, const KvTensors& tensors) {
  const auto optional = [](const at::Tensor& tensor) {
    return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
  };
  call.kv = tensors[kSource];
  call.k_weight = tensors[kSourceKWeight];
  call.v_weight = tensors[kSourceVWeight];
  call.k_bias = optional(tensors[kSourceKBias]);
  call.v_bias = optional(tensors[kSourceVBias]);
  call.k_norm_weight = optional(tensors[kSourceKNorm]);
  return call;
}

// Returns dh.
c10::SymInt check_call(const ProjectKvCall& call) {
  const ArgumentCheck check(kName, "kv", "[B, S, Dk]", call.kv);
  HEADKIT_CHECK(call.num_kv_heads >= 0, kName, "num_kv_heads >= 0", call.num_kv_heads);
  const c10::SymInt heads = call.num_kv_heads;
  const at::Tensor& weight = call.k_weight;
  HEADKIT_CHECK(weight.defined(), kName, "k_weight", "none");
  HEADKIT_CHECK(
      weight.dim() == 2 && (call.num_kv_heads == 0 ? check.equal(weight.sym_size(0), 0)
                                                   : check.equal(weight.sym_size(0) % heads, 0)),
      kName, "k_weight of shape [Hkv * dh, Dk]", "shape ", weight.sym_sizes(),
      " with Hkv = ", heads);
  const c10::SymInt rows = weight.sym_size(0), width = call.kv.sym_size(2);
  const c10::SymInt head_dim = call.num_kv_heads == 0 ? c10::SymInt(0) : rows / heads;
  check.tensor(weight, "k_weight", "[Hkv * dh, Dk]", {rows, width});
  check.tensor(call.v_weight, "v_weight", "[Hkv * dh, Dk]", {rows, width});
  if (call.k_bias) check.tensor(*call.k_bias, "k_bias", "[Hkv * dh]", {rows});
  if (call.v_bias) check.tensor(*call.v_bias, "v_bias", "[Hkv * dh]", {rows});
  if (const auto& gate = call.gate) {
    HEADKIT_CHECK(
        gate->is_floating_point() && (check.has_shape(*gate, {heads}) ||
                                      check.has_shape(*gate, {call.kv.sym_size(0), heads})),
        kName, "gate of shape [Hkv] or [B, Hkv] and a floating dtype", "shape ", gate->sym_sizes(),
        " and dtype ", gate->scalar_type(), check.context(), " and Hkv = ", heads);
    check.device_and_layout(*gate, "gate");
  }
  if (call.num_kv_heads > 0) {
    check.rotary(call.rotary_cos, call.rotary_sin, "S", call.kv.sym_size(1), head_dim);
    check.norm(call.k_norm_weight, "k_norm_weight", head_dim, call.norm_eps);
  }
  return head_dim;
}

KvProblem make_problem(const ProjectKvCall& call) {
  const int64_t head_dim = check_call(call).guard_int(__FILE__, __LINE__);
  const int64_t batch = call.kv.size(0), heads = call.num_kv_heads;
  KvProblem problem;
  problem.source = call.kv;
  problem.k_weight = call.k_weight;
  problem.v_weight = call.v_weight;
  problem.k_bias = value(call.k_bias);
  problem.v_bias = value(call.v_bias);
  problem.heads = heads;
  problem.head_dim = head_dim;
  problem.transform = {value(call.k_norm_weight), call.norm_eps, value(call.rotary_cos),
                       value(call.rotary_sin)};
  problem.open =
      call.gate ? make_work_list(
                      call.gate->ne(0).expand({batch, heads}).to(at::kCPU, at::kFloat).contiguous())
                : make_dense_work_list(batch, heads);
  return problem;
}

std::string cpu_refusal(const at::Tensor& source) {
  if (!source.is_cpu()) return "kv is on " + source.device().str() + ", not on the CPU";
  if (source.scalar_type() == at::kDouble) return "the CPU kernels sum in float32, kv is Double";
  return "";
}

Projected run_forward(const ProjectKvCall& call) {
  const KvProblem problem = make_problem(call);
  if (choose_backend(kName, cpu_refusal(problem.source)).name == "cpu") {
    return project_keys_values_cpu(problem);
  }
  auto [k, v] = project_keys_values(problem);
  return {k.contiguous(), v.contiguous()};
}

std::vector<at::Tensor> run_backward(const at::Tensor& grad_k, const at::Tensor& grad_v,
                                     const ProjectKvCall& call, KvMask mask) {
  const KvProblem problem = make_problem(call);
  const auto wide = sum_dtype(call.kv.scalar_type());
  const KvTensors gradients =
      project_keys_values_backward(problem, grad_k.to(wide), grad_v.to(wide), mask);
  const KvTensors tensors = differentiable(call);
  std::vector<at::Tensor> result;
  for (size_t i = 0; i < kKvDifferentiable; ++i) {
    if (!mask[i]) continue;
    result.push_back(gradients[i].to(tensors[i].scalar_type()).reshape(tensors[i].sizes()));
  }
  return result;
}

Projected meta_forward(const ProjectKvCall& call) {
  const c10::SymInt head_dim = check_call(call);
  const std::vector<c10::SymInt> shape = {call.kv.sym_size(0), call.num_kv_heads,
                                          call.kv.sym_size(1), head_dim};
  return {at::empty_symint(shape, call.kv.options()), at::empty_symint(shape, call.kv.options())};
}

std::vector<at::Tensor> meta_backward(const at::Tensor&, const at::Tensor&,
                                      const ProjectKvCall& call, KvMask mask) {
  check_call(call);
  const KvTensors tensors = differentiable(call);
  std::vector<at::Tensor> result;
  for (size_t i = 0; i < kKvDifferentiable; ++i) {
    if (mask[i]) result.push_back(at::empty_symint(tensors[i].sym_sizes(), tensors[i].options()));
  }
  return result;
}

template <typename Function>
auto find(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Function>();
}

Projected dispatch(const ProjectKvCall& call) {
  static const auto handle = find<Operator::Forward<Projected>>("headkit::project_kv");
  return std::apply([](const auto&... args) { return handle.call(args...); }, arguments(call));
}

std::vector<at::Tensor> dispatch_backward(const at::Tensor& grad_k, const at::Tensor& grad_v,
                                          const ProjectKvCall& call, KvMask mask) {
  static const auto handle = find<Operator::Backward<KvMask, const at::Tensor&, const at::Tensor&>>(
      "headkit::project_kv_backward");
  return std::apply([&](const auto&... args) { return handle.call(grad_k, grad_v, args..., mask); },
                    arguments(call));
}

variable_list defined_only(const KvTensors& tensors) {
  variable_list list;
  std::copy_if(tensors.begin(), tensors.end(), std::back_inserter(list),
               [](const at::Tensor& tensor) { return tensor.defined(); });
  return list;
}

bool records_graph(at::TensorList tensors) {
  return at::GradMode::is_enabled() &&
         std::any_of(tensors.begin(), tensors.end(),
                     [](const at::Tensor& tensor) { return tensor.requires_grad(); });
}

class ProjectKv : public torch::autograd::Function<ProjectKv> {
 public:
  static variable_list forward(AutogradContext* ctx, at::TensorList, const ProjectKvCall& call) {
    const KvTensors tensors = differentiable(call);
    variable_list saved(tensors.begin(), tensors.end());
    for (const OptionalTensor& fixed : {call.gate, call.rotary_cos, call.rotary_sin}) {
      saved.push_back(value(fixed));
    }
    ctx->save_for_backward(std::move(saved));
    ctx->saved_data["num_kv_heads"] = call.num_kv_heads;
    ctx->saved_data["norm_eps"] = call.norm_eps;
    // Tells the kernel that somebody trains: packed weights may be stale.
    const at::AutoGradMode grad_mode(true);
    const at::AutoDispatchBelowADInplaceOrView below;
    auto [k, v] = dispatch(call);
    return {k, v};
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const variable_list saved = ctx->get_saved_variables();
    const auto fixed = [&](size_t i) {
      const at::Tensor& tensor = saved[kKvDifferentiable + i];
      return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
    };
    ProjectKvCall call;
    call.num_kv_heads = ctx->saved_data["num_kv_heads"].toInt();
    call.norm_eps = ctx->saved_data["norm_eps"].toDouble();
    call.gate = fixed(0);
    call.rotary_cos = fixed(1);
    call.rotary_sin = fixed(2);
    KvTensors tensors;
    std::copy_n(saved.begin(), kKvDifferentiable, tensors.begin());
    call = with_tensors(call, tensors);
    KvMask mask = {};
    size_t input = 0;
    for (size_t i = 0; i < kKvDifferentiable; ++i) {
      if (tensors[i].defined()) mask[i] = ctx->needs_input_grad(input++);
    }
    const std::vector<at::Tensor> found = dispatch_backward(grads[0], grads[1], call, mask);
    variable_list result(input + 1);  // the last for `call`, which has none
    size_t next = 0;
    input = 0;
    for (size_t i = 0; i < kKvDifferentiable; ++i) {
      if (!tensors[i].defined()) continue;
      if (mask[i]) result[input] = found[next++];
      ++input;
    }
    return result;
  }
};

class ProjectKvBackward : public torch::autograd::Function<ProjectKvBackward> {
 public:
  static variable_list forward(AutogradContext*, at::TensorList, const at::Tensor& grad_k,
                               const at::Tensor& grad_v, const ProjectKvCall& call,
                               const KvMask& mask) {
    const at::AutoDispatchBelowADInplaceOrView below;
    return dispatch_backward(grad_k, grad_v, call, mask);
  }

  static variable_list backward(AutogradContext*, variable_list) {
    throw std::runtime_error(
        error_message(kName, "to be differentiated once", "a backward through its backward"));
  }
};

Projected autograd_forward(const ProjectKvCall& call) {
  check_call(call);
  const variable_list tensors = defined_only(differentiable(call));
  if (records_graph(tensors)) {
    const variable_list both = ProjectKv::apply(at::TensorList(tensors), call);
    return {both[0], both[1]};
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch(call);
}

std::vector<at::Tensor> autograd_backward(const at::Tensor& grad_k, const at::Tensor& grad_v,
                                          const ProjectKvCall& call, KvMask mask) {
  variable_list tensors = defined_only(differentiable(call));
  tensors.push_back(grad_k);
  tensors.push_back(grad_v);
  if (records_graph(tensors)) {
    return ProjectKvBackward::apply(at::TensorList(tensors), grad_k, grad_v, call, mask);
  }
  const at::AutoDispatchBelowADInplaceOrView below;
  return dispatch_backward(grad_k, grad_v, call, mask);
}

template <at::DeviceType device>
Projected autocast_forward(const ProjectKvCall& call) {
  const c10::impl::ExcludeDispatchKeyGuard below(
      at::autocast::get_autocast_dispatch_key_from_device_type(device));
  const auto dtype = at::autocast::get_autocast_dtype(device);
  const auto cast = [&](at::Tensor& tensor) {
    if (tensor.defined()) tensor = at::autocast::cached_cast(dtype, tensor, device);
  };
  KvTensors tensors = differentiable(call);
  for (at::Tensor& tensor : tensors) cast(tensor);
  ProjectKvCall narrow = with_tensors(call, tensors);
  for (OptionalTensor* rotary : {&narrow.rotary_cos, &narrow.rotary_sin}) {
    if (*rotary) cast(**rotary);
  }
  return dispatch(narrow);
}

// One element of the mapped dimension after another.
class Mapped {
 public:
  Mapped(const ProjectKvCall& call, std::vector<at::Tensor> grads)
      : level_(at::functorch::maybeCurrentDynamicLayer()->layerId()), call_(call) {
    check_call(call);
    const KvTensors differentiable_ones = differentiable(call);
    tensors_.assign(differentiable_ones.begin(), differentiable_ones.end());
    for (const OptionalTensor& fixed : {call.gate, call.rotary_cos, call.rotary_sin}) {
      tensors_.push_back(value(fixed));
    }
    tensors_.insert(tensors_.end(), grads.begin(), grads.end());
    is_mapped_.resize(tensors_.size());
    for (size_t i = 0; i < tensors_.size(); ++i) {
      if (!tensors_[i].defined()) continue;
      auto [whole, dim] = at::functorch::unwrapTensorAtLevel(tensors_[i], level_);
      is_mapped_[i] = dim.has_value();
      tensors_[i] = dim ? whole.movedim(*dim, 0) : whole;
      if (dim) size_ = tensors_[i].size(0);
    }
  }

  bool any() const { return size_ >= 0; }

  // The results of `run(call, grads)`, stacked.
  template <typename Run>
  std::vector<at::Tensor> each(const Run& run) const {
    std::vector<std::vector<at::Tensor>> columns;
    for (int64_t i = 0; i < size_; ++i) {
      const std::vector<at::Tensor> results = element(i, run);
      columns.resize(results.size());
      for (size_t j = 0; j < results.size(); ++j) columns[j].push_back(results[j]);
    }
    std::vector<at::Tensor> stacked;
    for (const auto& column : columns) {
      stacked.push_back(at::functorch::makeBatched(at::stack(column), 0, level_));
    }
    return stacked;
  }

 private:
  template <typename Run>
  std::vector<at::Tensor> element(int64_t index, const Run& run) const {
    std::vector<at::Tensor> parts = tensors_;
    for (size_t i = 0; i < parts.size(); ++i) {
      if (is_mapped_[i]) parts[i] = parts[i].select(0, index);
    }
    KvTensors chosen;
    std::copy_n(parts.begin(), kKvDifferentiable, chosen.begin());
    ProjectKvCall call = with_tensors(call_, chosen);
    OptionalTensor* fixed[] = {&call.gate, &call.rotary_cos, &call.rotary_sin};
    for (size_t i = 0; i < 3; ++i) {
      if (*fixed[i]) *fixed[i] = parts[kKvDifferentiable + i];
    }
    return run(call, std::vector<at::Tensor>(parts.begin() + kKvDifferentiable + 3, parts.end()));
  }

  int64_t level_;
  const ProjectKvCall& call_;
  std::vector<at::Tensor> tensors_;
  std::vector<bool> is_mapped_;
  int64_t size_ = -1;  // none
};

Projected forward_rule(const ProjectKvCall& call) {
  const Mapped mapped(call, {});
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  if (!mapped.any()) return dispatch(call);
  const std::vector<at::Tensor> both = mapped.each([](const ProjectKvCall& one, const auto&) {
    auto [k, v] = dispatch(one);
    return std::vector<at::Tensor>{k, v};
  });
  return {both[0], both[1]};
}

std::vector<at::Tensor> backward_rule(const at::Tensor& grad_k, const at::Tensor& grad_v,
                                      const ProjectKvCall& call, KvMask mask) {
  const Mapped mapped(call, {grad_k, grad_v});
  const c10::impl::ExcludeDispatchKeyGuard below(c10::DispatchKey::FuncTorchBatched);
  if (!mapped.any()) return dispatch_backward(grad_k, grad_v, call, mask);
  return mapped.each([&](const ProjectKvCall& one, const auto& grads) {
    return dispatch_backward(grads[0], grads[1], one, mask);
  });
}

}  // namespace

TORCH_LIBRARY_FRAGMENT(headkit, m) {
  const std::string arguments =
      "Tensor kv, Tensor k_weight, Tensor v_weight, int num_kv_heads, *, Tensor? k_bias=None, "
      "Tensor? v_bias=None, Tensor? gate=None, Tensor? rotary_cos=None, Tensor? rotary_sin=None, "
      "Tensor? k_norm_weight=None, float norm_eps=1e-6";
  const std::string forward = "project_kv(" + arguments + ") -> (Tensor, Tensor)";
  m.def(forward.c_str(), {at::Tag::pt2_compliant_tag});
  // The gradients that output_mask asks for, in the order kv, k, v weight, k, v bias, k norm
  // weight.
  const std::string backward = "project_kv_backward(Tensor grad_k, Tensor grad_v, " + arguments +
                               ", bool[6] output_mask) -> Tensor[]";
  m.def(backward.c_str(), {at::Tag::pt2_compliant_tag});
}

TORCH_LIBRARY_IMPL(headkit, CPU, m) {
  m.impl("project_kv", &Operator::Of<run_forward>::run);
  m.impl("project_kv_backward", &Operator::Of<run_backward>::run);
}

TORCH_LIBRARY_IMPL(headkit, CUDA, m) {
  m.impl("project_kv", &Operator::Of<run_forward>::run);
  m.impl("project_kv_backward", &Operator::Of<run_backward>::run);
}

TORCH_LIBRARY_IMPL(headkit, Meta, m) {
  m.impl("project_kv", &Operator::Of<meta_forward>::run);
  m.impl("project_kv_backward", &Operator::Of<meta_backward>::run);
}

TORCH_LIBRARY_IMPL(headkit, Autograd, m) {
  m.impl("project_kv", &Operator::Of<autograd_forward>::run);
  m.impl("project_kv_backward", &Operator::Of<autograd_backward>::run);
}

TORCH_LIBRARY_IMPL(headkit, AutocastCPU, m) {
  m.impl("project_kv", &Operator::Of<autocast_forward<at::kCPU>>::run);
}

TORCH_LIBRARY_IMPL(headkit, AutocastCUDA, m) {
  m.impl("project_kv", &Operator::Of<autocast_forward<at::kCUDA>>::run);
}

TORCH_LIBRARY_IMPL(headkit, FuncTorchBatched, m) {
  m.impl("project_kv", &Operator::Of<forward_rule>::run);
  m.impl("project_kv_backward", &Operator::Of<backward_rule>::run);
}

KeyValues project_kv(const at::Tensor& kv, const AttentionWeights& weights, int64_t num_kv_heads,
                     const ProjectKvOptions& options) {
  const auto optional = [](const at::Tensor& tensor) {
    return tensor.defined() ? OptionalTensor(tensor) : std::nullopt;
  };
  return translated_back([&] {
    auto [k, v] = dispatch({kv, weights.k, weights.v, num_kv_heads, optional(weights.k_bias),
                            optional(weights.v_bias), options.gate, options.rotary_cos,
                            options.rotary_sin, options.k_norm_weight, options.norm_eps});
    return KeyValues{k, v};
  });
}

at::Tensor attend(const at::Tensor& x, const KeyValues& keys_values,
                  const AttentionWeights& weights, int64_t num_heads, const AttentionInput& input) {
  return gated_attention(x, weights, num_heads,
                         AttentionInput(input).keys_values(keys_values.k, keys_values.v));
}

}  // namespace headkit
