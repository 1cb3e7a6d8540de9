#include "headkit/explain/effect_faithfulness.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <numeric>

#include "explain/ablation_outputs.h"
#include "explain/input_runs.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "effect_faithfulness";
constexpr int64_t kSetsAtOnce = 64;

std::optional<double> effect_of(const HeadEffects& head, const std::string& by) {
  if (by == "gate_gradient") return head.gate_gradient;
  if (by == "direct") return head.direct;
  return head.toggle ? std::optional(head.toggle->frozen) : std::nullopt;
}

struct Ordered {
  std::vector<HeadId> heads;  // that are on
  std::vector<int64_t> order;
};

Ordered order_of(const InputEffects& effects, const std::string& by) {
  Ordered result;
  std::vector<double> values;
  for (const HeadEffects& head : effects.heads) {
    if (!head.on()) continue;
    const std::optional<double> value = effect_of(head, by);
    HEADKIT_CHECK(value, kOperation, "effects of every head that is on by " + by, "none of layer ",
                  head.head.layer, " head ", head.head.head);
    result.heads.push_back(head.head);
    values.push_back(*value);
  }
  HEADKIT_CHECK(!values.empty(), kOperation, "an input with a head that is on", "input ",
                effects.input);
  result.order.resize(values.size());
  std::iota(result.order.begin(), result.order.end(), int64_t{0});
  std::stable_sort(result.order.begin(), result.order.end(), [&](int64_t a, int64_t b) {
    return values[static_cast<size_t>(a)] > values[static_cast<size_t>(b)];
  });
  return result;
}

at::Tensor gates_of(const InputEffects& effects, const HeadLayout& layout) {
  at::Tensor gates = at::zeros({layout.layers, layout.heads}, at::kDouble);
  for (const HeadEffects& head : effects.heads) {
    HEADKIT_CHECK(head.head.layer < layout.layers && head.head.head < layout.heads, kOperation,
                  c10::str("effects of ", layout.layers, " layers of ", layout.heads, " heads"),
                  "layer ", head.head.layer, " head ", head.head.head);
    gates[head.head.layer][head.head.head] = head.gate;
  }
  return gates;
}

MetricChoice choice_of(const InputEffects& effects) {
  MetricChoice choice;
  if (effects.target) choice.target = at::full({1}, *effects.target, at::kLong);
  if (effects.distractor) choice.distractor = at::full({1}, *effects.distractor, at::kLong);
  return choice;
}

}  // namespace

std::vector<Faithfulness> effect_faithfulness(GatedModel& model, const Batch& batch,
                                              const OutputMetric& metric,
                                              const std::vector<InputEffects>& effects,
                                              const EffectFaithfulness& options) {
  HEADKIT_CHECK(options.by == "toggle" || options.by == "gate_gradient" || options.by == "direct",
                kOperation, "by of toggle, gate_gradient or direct", options.by);
  HEADKIT_CHECK(!effects.empty() && static_cast<int64_t>(effects.size()) == batch_size(batch),
                kOperation, c10::str("effects of ", batch_size(batch), " examples"),
                effects.size());
  for (const InputEffects& each : effects) {
    HEADKIT_CHECK(each.metric == metric.name() && each.ablation == effects[0].ablation &&
                      !each.ablation.empty(),
                  kOperation, "effects on " + metric.name() + " by one ablation", each.metric,
                  " by ", each.ablation.empty() ? "none" : each.ablation);
  }
  const at::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const HeadLayout layout = model.layout();
  const AblationOutputs ablation =
      ablation_outputs(kOperation, model, effects[0].ablation, options.reference, options.draws,
                       options.curves.seed);
  std::vector<Faithfulness> all;
  for (size_t i = 0; i < effects.size(); ++i) {
    const Ordered ordered = order_of(effects[i], options.by);
    const at::Tensor base = gates_of(effects[i], layout);
    GateSet gates;
    const bool wide = model.parameters().front().second.scalar_type() == at::kDouble;
    gates.heads = base.to(wide ? at::kDouble : at::kFloat);
    gates.dropped_output = options.dropped_output;
    const Batch example = select_examples(batch, at::full({1}, static_cast<int64_t>(i), at::kLong));
    const InputRuns input(kOperation, model, example, gates, metric, choice_of(effects[i]),
                          ablation);
    const SetValue value = [&](const at::Tensor& sets) {
      at::Tensor left = base.expand({sets.size(0), layout.layers, layout.heads}).clone();
      for (size_t h = 0; h < ordered.heads.size(); ++h) {
        left.select(1, ordered.heads[h].layer)
            .select(1, ordered.heads[h].head)
            .mul_(sets.select(1, static_cast<int64_t>(h)));
      }
      std::vector<at::Tensor> values;
      for (const at::Tensor& some : left.split(kSetsAtOnce)) {
        values.push_back(input.values(some).mean(0));
      }
      return at::cat(values);
    };
    FaithfulnessOptions curves = options.curves;
    curves.metric = effects[i].metric;
    curves.ablation = effects[i].ablation;
    all.push_back(faithfulness(ordered.order, value, curves));
  }
  return all;
}

}  // namespace headkit
