#include "explain/input_runs.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>

#include "headkit/core/error.h"

namespace headkit {

InputRuns::InputRuns(const char* operation, GatedModel& model, const Batch& example,
                     const GateSet& gates, const OutputMetric& metric, const MetricChoice& choice,
                     const AblationOutputs& ablation)
    : operation_(operation), model_(model), metric_(metric), gates_(gates) {
  const HeadLayout layout = model.layout();
  const HeadMask there = model.heads();
  HEADKIT_CHECK(batch_size(example) == 1, operation, "one example", batch_size(example));
  model.check(operation, 1, gates);
  HEADKIT_CHECK(!gates.heads.defined() || gates.heads.dim() <= 3, operation,
                "gates of heads by input, [layers, heads] or [batch, layers, heads]", "shape ",
                gates.heads.sizes());
  const at::Tensor given =
      gates.heads.defined()
          ? gates.heads.detach().to(at::kCPU, at::kDouble).reshape({layout.layers, layout.heads})
          : at::ones({layout.layers, layout.heads}, at::kDouble);
  heads_ = given * there.keep().to(at::kDouble);
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    for (const int64_t head : there.layer_heads(layer)) present_.push_back({layer, head});
  }
  for (const at::Tensor& draw : ablation.draws) stand_ins_.push_back(stand_in_for(draw));
  mean_stand_in_ = stand_ins_.front();
  if (draws() > 1) mean_stand_in_ = at::stack(stand_ins_).mean(0);
  const bool partly = heads_.ne(0).logical_and(heads_.ne(1)).any().item<bool>();
  HEADKIT_CHECK(!partly || !mean_stand_in_.defined(), operation,
                "gates of 0 and 1 where a closed head adds something", "others");

  gates_.heads = given.unsqueeze(0);
  const at::Tensor options_like = model.attention(0).o;
  gates_.heads = gates_.heads.to(
      options_like.device(), options_like.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
  taps_.head_contexts = true;
  runs_.emplace(model, example, gates_, &taps_);
  const at::Tensor& output = runs_->output();
  at::Tensor dense;
  if (metric.needs_dense()) {
    const c10::NoGradGuard no_grad;
    dense = model(example);
  }
  target_ = metric.choose(output, runs_->before(layout.layers).attention_mask, dense, choice);
  value_ = measure(output).item<double>();
}

// Heads that are off go on adding what they add.
at::Tensor InputRuns::stand_in_for(const at::Tensor& ablated) const {
  const at::Tensor& kept = gates_.dropped_output;
  if (!ablated.defined() && !kept.defined()) return {};
  const at::Tensor& like = kept.defined() ? kept : ablated;
  const auto or_zero = [&](const at::Tensor& values) {
    return values.defined() ? values.to(like.options()) : at::zeros_like(like);
  };
  return at::where(heads_.ne(0).unsqueeze(2).to(like.device()), or_zero(ablated), or_zero(kept));
}

bool InputRuns::on(const HeadId& head) const {
  return heads_[head.layer][head.head].item<double>() != 0;
}

at::Tensor InputRuns::differentiable(const at::Tensor& output) const {
  return metric_.values(output, target_.select(at::zeros({output.size(0)}, at::kLong)));
}

at::Tensor InputRuns::measure(const at::Tensor& output) const {
  const at::Tensor values = differentiable(output).detach().to(at::kCPU, at::kDouble);
  HEADKIT_CHECK_RUNTIME(values.isfinite().all().item<bool>(), operation_,
                        "finite values of " + metric_.name(), "NaN or infinity");
  return values;
}

at::Tensor InputRuns::values(const at::Tensor& heads) const {
  const at::Tensor differs = heads.ne(heads_).any(2).to(at::kLong);  // [n, L]
  const at::Tensor first =
      at::where(differs.any(1), differs.argmax(1), at::full({1}, heads_.size(0), at::kLong));
  std::vector<at::Tensor> found;
  for (const at::Tensor& each : stand_ins_) found.push_back(values_of_draw(heads, first, each));
  return at::stack(found);
}

at::Tensor InputRuns::values_of_draw(const at::Tensor& heads, const at::Tensor& first,
                                     const at::Tensor& stand_in) const {
  at::Tensor found = at::full({heads.size(0)}, value_, at::kDouble);
  for (int64_t layer = 0; layer < heads_.size(0); ++layer) {
    const at::Tensor places = first.eq(layer).nonzero().flatten();
    for (const at::Tensor& some : places.split(runs_->copies_at_once())) {
      if (some.size(0) == 0) continue;
      const at::Tensor output =
          runs_->rerun(layer, runs_->gates(heads.index_select(0, some), stand_in));
      found.index_copy_(0, some, measure(output));
    }
  }
  return found;
}

MetricSlopes InputRuns::slopes(const at::Tensor& heads) const {
  const int64_t layers = heads_.size(0);
  std::vector<at::Tensor> values, slopes;
  // A graph keeps several times what a forward does.
  for (const at::Tensor& some : heads.split(std::max<int64_t>(runs_->copies_at_once() / 8, 1))) {
    GateSet gates = runs_->gates(some, mean_stand_in_);
    gates.skip = false;
    const c10::AutoGradMode with_grad(true);
    gates.heads = gates.heads.detach().clone().set_requires_grad(true);
    const at::Tensor rows = runs_->rows(some.size(0));
    const at::Tensor output =
        model_.head(model_.run(model_.select(runs_->before(0), rows), 0, layers, gates));
    const at::Tensor m = differentiable(output);
    HEADKIT_CHECK_RUNTIME(m.requires_grad(), operation_, "an output that depends on the gates",
                          "one without a gradient: does the model run under no_grad or detach?");
    const auto gradient = torch::autograd::grad({m.sum()}, {gates.heads});
    values.push_back(m.detach().to(at::kCPU, at::kDouble));
    slopes.push_back(gradient[0].detach().to(at::kCPU, at::kDouble));
    HEADKIT_CHECK_RUNTIME(slopes.back().isfinite().all().item<bool>(), operation_,
                          "finite gate gradients", "NaN or infinity");
  }
  return {at::cat(values), at::cat(slopes)};
}

}  // namespace headkit
