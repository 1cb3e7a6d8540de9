#include "pruners/held_out.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <cmath>
#include <limits>

#include "gates/units_there.h"
#include "headkit/core/error.h"
#include "headkit/gates/output_loss.h"

namespace headkit {
namespace {

constexpr auto kOperation = "fit_hybrid";
constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();

// Sums of each example's accuracy, where outputs are classes and there are labels.
double right_of(const at::Tensor& output, const Batch& batch) {
  const auto found = batch.find("labels");
  if (output.dim() != 2 || found == batch.end() || found->second.dim() != 1 ||
      found->second.scalar_type() != at::kLong) {
    return kUnknown;
  }
  const at::Tensor said =
      output.size(1) == 1 ? (output.select(1, 0) > 0).to(at::kLong) : output.argmax(1);
  return (said.to(at::kCPU) == found->second.to(at::kCPU)).sum().item<double>();
}

}  // namespace

HeldOut::HeldOut(GatedModel& model, const DataSource& data, const Objective& objective,
                 std::shared_ptr<const LatencyModel> latency)
    : data_(data),
      latency_(std::move(latency)),
      distance_(make_objective(objective.needs_dense() ? objective.name() : "kl_to_dense")),
      layout_(model.layout()) {
  const UnitsThere there(model);
  all_ = {static_cast<double>(layout_.total_heads()),
          static_cast<double>(layout_.layers * layout_.key_value_heads()),
          static_cast<double>(there.original_neurons())};
  const c10::NoGradGuard no_grad;
  double tokens = 0;
  data.for_each([&](const Batch& batch) {
    const ModelState state = model.embed(batch);
    const int64_t examples = state.hidden.size(0), length = state.hidden.size(1);
    if (batch_ == 0) {
      batch_ = examples;
      length_ = length;
    }
    tokens_.push_back(state.attention_mask.defined()
                          ? state.attention_mask.to(at::kCPU, at::kLong).sum(1)
                          : at::full({examples}, length, at::kLong));
    tokens += tokens_.back().sum().item<double>();
    examples_ += examples;
    original_.push_back(model.head(model.run(state, 0, layout_.layers, {})).cpu());
  });
  HEADKIT_CHECK(examples_ > 0, kOperation, "held-out examples", "none");
  mean_tokens_ = tokens / static_cast<double>(examples_);
}

HybridArm HeldOut::measure(const std::string& name,
                           const std::function<PolicyRun(const Batch& batch)>& run) const {
  const c10::NoGradGuard no_grad;
  const bool classes = !distance_->name().starts_with("cosine");
  const OutputLoss flip = make_output_loss("flip");
  double heads = 0, neurons = 0, kv_heads = 0, layers = 0, flops = 0, dense_flops = 0;
  double changed = 0, distance = 0, right = 0;
  size_t place = 0;
  data_.for_each([&](const Batch& batch) {
    HEADKIT_CHECK(place < original_.size(), kOperation, "the same held-out batches on each walk",
                  "more of them");
    const PolicyRun result = run(batch);
    const at::Tensor output = result.output.cpu(), &original = original_[place];
    const at::Tensor& tokens = tokens_[place++];
    const auto sum = [](const at::Tensor& counts) { return counts.sum().item<double>(); };
    heads += sum(result.heads_run);
    kv_heads += sum(result.kv_heads_run);
    neurons += sum(result.neurons_run);
    layers += sum(result.layers_run);
    flops += sum(run_flops(layout_, result, tokens));
    for (int64_t b = 0; b < tokens.size(0); ++b) {
      dense_flops += unit_flops(layout_, all_, static_cast<double>(tokens[b].item<int64_t>()));
    }
    changed += classes ? sum(flip(output, original, batch)) : kUnknown;
    distance += sum(distance_->loss(output, batch, original).to(at::kDouble));
    right += right_of(output, batch);
  });
  const auto count = static_cast<double>(examples_);
  return {name,
          heads / count,
          flops / dense_flops,
          milliseconds({heads / count, kv_heads / count, neurons / count}, layers / count),
          1 - changed / count,
          distance / count,
          right / count};
}

HybridArm HeldOut::measure(const std::string& name, GatedModel& model,
                           const GatePolicy& policy) const {
  return measure(name, [&](const Batch& batch) { return run_policy(model, batch, policy); });
}

double HeldOut::flops(const UnitCounts& counts) const {
  return unit_flops(layout_, counts, mean_tokens_) / unit_flops(layout_, all_, mean_tokens_);
}

double HeldOut::milliseconds(const UnitCounts& counts, double layers) const {
  if (latency_ == nullptr) return kUnknown;
  const double runs = std::max(layers / static_cast<double>(layout_.layers), 1.0);
  return runs *
         latency_->milliseconds(counts.heads / runs, counts.neurons / kNeuronBlock / runs, length_,
                                batch_) /
         static_cast<double>(batch_);
}

double HeldOut::cost(const HybridBudget& budget, const UnitCounts& counts, double layers) const {
  if (budget.mean_heads) return counts.heads;
  return budget.flops ? flops(counts) : milliseconds(counts, layers);
}

double HeldOut::cost(const HybridBudget& budget, const HybridArm& arm) {
  if (budget.mean_heads) return arm.heads;
  return budget.flops ? arm.flops : arm.milliseconds;
}

}  // namespace headkit
