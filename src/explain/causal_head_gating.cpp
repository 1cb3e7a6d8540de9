#include "headkit/explain/causal_head_gating.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/gates/train_gates.h"

namespace headkit {
namespace {

constexpr auto kOperation = "causal_head_gating";
constexpr double kStartDeviation = 0.1;
constexpr double kCut = 0.5;

// Sigmoid gates whose mean is pressed up (pressure > 0), down, or not at all.
class PressedGates final : public LearnedGates {
 public:
  PressedGates(const at::Tensor& logits, double pressure) : pressure_(pressure) {
    add_parameter("logits", logits);
  }
  std::string name() const override { return "pressed"; }
  GateSet sample(int64_t, int64_t, const at::Generator&) const override { return gates(); }
  GateSet soft(int64_t) const override { return gates(); }
  GateSet hard() const override {
    GateSet hardened;
    hardened.heads = values().ge(kCut).to(at::kDouble);
    return hardened;
  }
  at::Tensor penalty(int64_t) const override {
    return -pressure_ * parameter("logits").sigmoid().mean();
  }
  std::string describe(int64_t) const override { return Json{{"pressure", pressure_}}.dump(); }

  at::Tensor logits() const { return parameter("logits").detach().clone(); }
  at::Tensor values() const { return parameter("logits").detach().sigmoid(); }

 private:
  GateSet gates() const {
    GateSet soft;
    soft.heads = parameter("logits").sigmoid();
    soft.skip = false;
    return soft;
  }
  double pressure_;
};

void check_options(const CausalGatingOptions& options) {
  HEADKIT_CHECK(options.fits >= 5, kOperation, "at least 5 fits", options.fits);
  HEADKIT_CHECK(options.start_steps >= 1 && options.pressed_steps >= 1, kOperation,
                "at least one step", options.start_steps, " and ", options.pressed_steps);
  HEADKIT_CHECK(options.pressure > 0, kOperation, "a pressure above 0", options.pressure);
}

}  // namespace

std::string causal_label(double pressed_up, double pressed_down) {
  const bool up = pressed_up >= kCut, down = pressed_down >= kCut;
  if (up && down) return "facilitating";
  if (!up && !down) return "interfering";
  return up ? "irrelevant" : "inconsistent";
}

CausalGating causal_head_gating(GatedModel& model, const DataSource& data,
                                const Objective& objective, const CausalGatingOptions& options) {
  check_options(options);
  const HeadLayout layout = model.layout();
  const HeadMask there = model.heads();
  const auto fit = [&](PressedGates& gates, int64_t steps, uint64_t seed) {
    TrainGatesOptions training;
    training.steps = steps;
    training.learning_rate = options.learning_rate;
    training.seed = seed;
    train_gates(model, gates, data, objective, training);
  };
  std::vector<at::Tensor> up, down;
  for (int64_t number = 0; number < options.fits; ++number) {
    const uint64_t seed = options.seed + static_cast<uint64_t>(number);
    const at::Tensor noise =
        kStartDeviation *
        at::randn({layout.layers, layout.heads}, at::detail::createCPUGenerator(seed), at::kDouble);
    PressedGates start(noise, 0);
    fit(start, options.start_steps, seed);
    PressedGates raised(start.logits(), options.pressure),
        lowered(start.logits(), -options.pressure);
    fit(raised, options.pressed_steps, seed);
    fit(lowered, options.pressed_steps, seed);
    up.push_back(raised.values());
    down.push_back(lowered.values());
    if (options.progress) options.progress(number + 1, options.fits);
  }
  CausalGating found;
  found.pressed_up = at::stack(up);
  found.pressed_down = at::stack(down);
  found.facilitating = found.pressed_down.mean(0);
  found.interfering = (1 - found.pressed_up).mean(0);
  found.irrelevant = (found.pressed_up * (1 - found.pressed_down)).mean(0);
  found.objective = objective.name();
  data.for_each([&](const Batch& batch) { found.examples += batch_size(batch); });
  found.agreement = at::zeros({layout.layers, layout.heads}, at::kDouble);
  const auto of = [](const at::Tensor& gates, int64_t l, int64_t h) {
    return gates[l][h].item<double>();
  };
  const at::Tensor mean_up = found.pressed_up.mean(0), mean_down = found.pressed_down.mean(0);
  for (int64_t l = 0; l < layout.layers; ++l) {
    found.labels.emplace_back(static_cast<size_t>(layout.heads));
    for (const int64_t h : there.layer_heads(l)) {
      std::string& label = found.labels.back()[static_cast<size_t>(h)];
      label = causal_label(of(mean_up, l, h), of(mean_down, l, h));
      int64_t same = 0;
      for (int64_t number = 0; number < options.fits; ++number) {
        same += causal_label(of(found.pressed_up[number], l, h),
                             of(found.pressed_down[number], l, h)) == label
                    ? 1
                    : 0;
      }
      found.agreement[l][h] = static_cast<double>(same) / static_cast<double>(options.fits);
    }
  }
  return found;
}

int64_t CausalGating::inconsistent() const {
  int64_t count = 0;
  for (const auto& layer : labels) count += std::count(layer.begin(), layer.end(), "inconsistent");
  return count;
}

std::string CausalGating::to_json() const {
  return Json{{"objective", objective},
              {"examples", examples},
              {"fits", pressed_up.size(0)},
              {"level", "L2"},
              {"ablation", "zero"},
              {"pressed_up", tensor_to_json(kOperation, pressed_up.mean(0))},
              {"pressed_down", tensor_to_json(kOperation, pressed_down.mean(0))},
              {"facilitating", tensor_to_json(kOperation, facilitating)},
              {"interfering", tensor_to_json(kOperation, interfering)},
              {"irrelevant", tensor_to_json(kOperation, irrelevant)},
              {"agreement", tensor_to_json(kOperation, agreement)},
              {"labels", labels}}
      .dump();
}

}  // namespace headkit
