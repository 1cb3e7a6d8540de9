#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "headkit/core/error.h"
#include "headkit/explain/measure_effects.h"
#include "headkit/scorers/bootstrap.h"

namespace headkit {
namespace {

constexpr auto kOperation = "mean_effects";
using Value = std::optional<double>;

// The values of all inputs, double [n]; undefined if one lacks it.
template <typename Get>
at::Tensor gathered(const std::vector<InputEffects>& inputs, const Get& get) {
  std::vector<double> values;
  for (const InputEffects& each : inputs) {
    const Value value = get(each);
    if (!value) return {};
    values.push_back(*value);
  }
  return at::tensor(values, at::kDouble);
}

template <typename Get>
Value mean_of(const std::vector<InputEffects>& inputs, const Get& get) {
  const at::Tensor values = gathered(inputs, get);
  return values.defined() ? Value(values.mean().item<double>()) : std::nullopt;
}

void check_alike(const std::vector<InputEffects>& inputs) {
  HEADKIT_CHECK(!inputs.empty(), kOperation, "effects of at least one input", "none");
  const InputEffects& first = inputs.front();
  for (const InputEffects& each : inputs) {
    const bool same_heads =
        std::equal(first.heads.begin(), first.heads.end(), each.heads.begin(), each.heads.end(),
                   [](const HeadEffects& a, const HeadEffects& b) { return a.head == b.head; });
    HEADKIT_CHECK(each.metric == first.metric && each.ablation == first.ablation && same_heads,
                  kOperation, "effects of one metric, ablation and model", each.metric, " under ",
                  each.ablation, " beside ", first.metric, " under ", first.ablation);
  }
}

}  // namespace

InputEffects mean_effects(const std::vector<InputEffects>& inputs, double confidence,
                          int64_t bootstrap, uint64_t seed) {
  check_alike(inputs);
  const BootstrapOptions draws{.resamples = bootstrap, .confidence = confidence, .seed = seed};
  const auto interval = [&](const at::Tensor& values, Value& lower, Value& upper) {
    if (values.size(0) < 2) return;
    const BootstrapInterval found = bootstrap_mean(values, BootstrapUnit::kExamples, draws);
    lower = found.lower;
    upper = found.upper;
  };
  const InputEffects& first = inputs.front();
  InputEffects mean;
  mean.input = static_cast<int64_t>(inputs.size());
  mean.metric = first.metric;
  mean.ablation = first.ablation;
  mean.reference = first.reference;
  mean.routing = first.routing;
  mean.value = *mean_of(inputs, [](const InputEffects& e) { return Value(e.value); });
  mean.value_without_heads =
      mean_of(inputs, [](const InputEffects& e) { return e.value_without_heads; });
  mean.path_gap = mean_of(inputs, [](const InputEffects& e) { return e.path_gap; });
  mean.direct_residual = mean_of(inputs, [](const InputEffects& e) { return e.direct_residual; });
  for (size_t h = 0; h < first.heads.size(); ++h) {
    const auto of = [&](auto member) {
      return mean_of(inputs, [&](const InputEffects& e) { return Value(e.heads[h].*member); });
    };
    HeadEffects head;
    head.head = first.heads[h].head;
    head.gate = *of(&HeadEffects::gate);
    head.write_norm = of(&HeadEffects::write_norm);
    head.relative_write_norm = of(&HeadEffects::relative_write_norm);
    head.direct = of(&HeadEffects::direct);
    head.gate_gradient = of(&HeadEffects::gate_gradient);
    head.integrated_gate_gradient = of(&HeadEffects::integrated_gate_gradient);
    head.shapley = of(&HeadEffects::shapley);
    head.direct_linearised = std::any_of(inputs.begin(), inputs.end(), [&](const InputEffects& e) {
      return e.heads[h].direct_linearised;
    });
    const bool one_kind = std::all_of(inputs.begin(), inputs.end(), [&](const InputEffects& e) {
      return e.heads[h].toggle && first.heads[h].toggle &&
             e.heads[h].toggle->ablation == first.heads[h].toggle->ablation;
    });
    if (one_kind) {
      const at::Tensor frozen =
          gathered(inputs, [&](const InputEffects& e) { return Value(e.heads[h].toggle->frozen); });
      ToggleEffect toggle{
          first.heads[h].toggle->ablation, frozen.mean().item<double>(), {}, {}, {}};
      toggle.redecided =
          mean_of(inputs, [&](const InputEffects& e) { return e.heads[h].toggle->redecided; });
      interval(frozen, toggle.lower, toggle.upper);
      head.toggle = toggle;
      const at::Tensor repair =
          gathered(inputs, [&](const InputEffects& e) { return e.heads[h].repair(); });
      if (repair.defined()) interval(repair, head.repair_lower, head.repair_upper);
    }
    mean.heads.push_back(head);
  }
  for (const PairEffect& pair : first.pairs) {
    const at::Tensor values = gathered(inputs, [&](const InputEffects& e) -> Value {
      const auto same = std::find_if(e.pairs.begin(), e.pairs.end(), [&](const PairEffect& other) {
        const bool straight = other.a == pair.a && other.b == pair.b;
        return (straight || (other.a == pair.b && other.b == pair.a)) && other.index == pair.index;
      });
      return same == e.pairs.end() ? std::nullopt : Value(same->value);
    });
    if (!values.defined()) continue;
    PairEffect whole{pair.a,        pair.b, pair.index, values.mean().item<double>(),
                     pair.ablation, {},     {}};
    interval(values, whole.lower, whole.upper);
    mean.pairs.push_back(whole);
  }
  mean.not_computed = first.not_computed;
  if (inputs.size() > 1) {
    std::erase_if(mean.not_computed,
                  [](const NotComputed& each) { return each.quantity == "toggle.interval"; });
  }
  return mean;
}

}  // namespace headkit
