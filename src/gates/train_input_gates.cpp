#include "headkit/gates/train_input_gates.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "gates/adam.h"
#include "gates/early_record.h"
#include "gates/head_rule.h"
#include "gates/training_values.h"
#include "headkit/core/error.h"
#include "headkit/gates/lagrangian.h"
#include "headkit/pruners/mean_output.h"

namespace headkit {
namespace {

constexpr auto kOperation = "train_input_gates";
constexpr double kLittleVariance = 0.01;

struct EnoughSteps {};

// One decision: the heads of `layers` layers from `layer` on, from the state before it.
struct Stop {
  int64_t layer, layers;
  const LinearProbe* probe;
  at::Tensor reference, scale;  // [F]
  at::Tensor weight, logits;    // [layers * H, F] of features of unit variance, [layers * H]
};

at::Tensor drawn_noise(const at::Tensor& logits, const at::Generator& generator) {
  return at::rand(logits.sizes(), generator, logits.options().requires_grad(false))
      .clamp(1e-6, 1 - 1e-6);
}

double contested_spread(const at::Tensor& logits, const at::Tensor& fixed) {
  const at::Tensor contested = logits.masked_select(fixed == 0);
  if (contested.numel() < 2) return 0;
  return (contested - contested.mean()).square().mean().sqrt().item<double>();
}

}  // namespace

struct InputGates::Parts {
  std::vector<Stop> stops;
  std::vector<std::string> features;
  at::Tensor fixed;  // int8 [L, H]
  at::Tensor dropped_output;
  at::Tensor multipliers;  // [2]
  InputGateSettings settings;
  std::vector<GateParameter> parameters;
  std::unique_ptr<LinearGate> linear;  // the start: its settings are those of the result
  std::unique_ptr<LayerGate> layer;
  double factor = 1;       // z of training = factor * (z of the start - its threshold)
  double start_share = 1;  // of the cost, at the start

  at::Tensor cost() const {
    return settings.costs.defined() ? settings.costs : at::ones(fixed.sizes(), at::kDouble);
  }

  void finish(const at::Tensor& static_logits, double threshold) {
    const InputGateSettings& s = settings;
    HEADKIT_CHECK(s.budget > 0 && s.budget <= 1, kOperation, "a budget in (0, 1]", s.budget);
    HEADKIT_CHECK(s.temperature > 0 && s.start_spread > 0 && s.weight_penalty >= 0 &&
                      s.ramp_steps >= 0 && std::isfinite(s.weight_penalty),
                  kOperation, "a temperature and spread above 0, a penalty and ramp of at least 0",
                  s.temperature, ", ", s.start_spread, ", ", s.weight_penalty, ", ", s.ramp_steps);
    s.shape.check(kOperation);
    HEADKIT_CHECK(!s.costs.defined() ||
                      (s.costs.sizes() == fixed.sizes() && s.costs.scalar_type() == at::kDouble &&
                       s.costs.is_cpu() && s.costs.isfinite().all().item<bool>() &&
                       s.costs.ge(0).all().item<bool>() && s.costs.sum().item<double>() > 0),
                  kOperation, c10::str("float64 costs >= 0 of shape ", fixed.sizes()),
                  s.costs.defined() ? c10::str(s.costs.sizes()) : "none");
    const double spread = contested_spread(static_logits, fixed);
    factor = spread > 0 ? s.start_spread / spread : 1;
    for (Stop& stop : stops) {
      HEADKIT_CHECK(stop.scale.defined() && stop.scale.sizes() == stop.reference.sizes(),
                    kOperation, c10::str("feature scales of shape ", stop.reference.sizes()),
                    stop.scale.defined() ? c10::str(stop.scale.sizes()) : "none");
      stop.scale = at::where(stop.scale > 1e-12, stop.scale, at::ones_like(stop.scale));
      stop.weight = (stop.weight * stop.scale * factor).detach().clone().set_requires_grad(true);
      stop.logits = ((stop.logits - threshold) * factor).detach().clone().set_requires_grad(true);
      const std::string number = stops.size() == 1 ? "" : std::to_string(stop.layer);
      parameters.push_back({"weight" + number, stop.weight});
      parameters.push_back({"logits" + number, stop.logits});
    }
    multipliers = at::zeros({2}, at::kDouble).set_requires_grad(true);
    parameters.push_back({"multipliers", multipliers, true});
    const at::Tensor on = at::where(fixed == 0, static_logits >= threshold, fixed > 0);
    start_share = (on.to(at::kDouble) * cost()).sum().item<double>() / cost().sum().item<double>();
  }

  // P(open) of logits [B, heads] with fixed heads [heads].
  at::Tensor probability(const at::Tensor& z, const at::Tensor& is_fixed) const {
    const at::Tensor open = settings.relaxation == GateRelaxation::kStraightThrough
                                ? z.sigmoid()
                                : hard_concrete_open_probability(z, settings.shape);
    return at::where(is_fixed == 0, open, (is_fixed > 0).to(z.dtype()));
  }

  at::Tensor gate(const at::Tensor& z, const at::Tensor& is_fixed,
                  const at::Generator& generator) const {
    at::Tensor value;
    if (!generator.defined()) {
      value = (z >= 0).to(z.dtype());
    } else if (settings.relaxation == GateRelaxation::kStraightThrough) {
      const at::Tensor noisy = z + drawn_noise(z, generator).logit();
      const at::Tensor soft = (noisy / settings.temperature).sigmoid();
      value = (noisy > 0).to(z.dtype()) + soft - soft.detach();
    } else {
      value = hard_concrete_sample(z, drawn_noise(z, generator), settings.shape);
    }
    return at::where(is_fixed == 0, value, (is_fixed > 0).to(z.dtype()));
  }
};

InputGates::InputGates(const LinearGate& start, std::vector<at::Tensor> scale,
                       InputGateSettings settings)
    : parts_(std::make_unique<Parts>()) {
  Parts& p = *parts_;
  p.linear = std::make_unique<LinearGate>(start);
  const LinearGateSettings& s = p.linear->settings();
  HEADKIT_CHECK(scale.size() == 1, kOperation, "the scales of one decision", scale.size());
  p.settings = std::move(settings);
  p.features = s.features;
  p.fixed = s.fixed;
  p.dropped_output = s.dropped_output;
  const int64_t layers = s.weight.size(0), heads = s.weight.size(1);
  p.stops = {{0, layers, s.probe ? &*s.probe : nullptr, s.reference, scale.front(),
              s.weight.reshape({layers * heads, -1}), s.static_logits.flatten()}};
  p.finish(s.static_logits, s.threshold);
}

InputGates::InputGates(const LayerGate& start, std::vector<at::Tensor> scale,
                       InputGateSettings settings)
    : parts_(std::make_unique<Parts>()) {
  Parts& p = *parts_;
  p.layer = std::make_unique<LayerGate>(start);
  const LayerGateSettings& s = p.layer->settings();
  const int64_t layers = s.weight.size(0);
  HEADKIT_CHECK(static_cast<int64_t>(scale.size()) == layers, kOperation,
                c10::str("the scales of ", layers, " decisions"), scale.size());
  p.settings = std::move(settings);
  p.features = s.features;
  p.fixed = s.fixed;
  p.dropped_output = s.dropped_output;
  for (int64_t l = 0; l < layers; ++l) {
    const auto place = static_cast<size_t>(l);
    p.stops.push_back({l, 1, s.probes.empty() ? nullptr : &s.probes[place], s.reference[l],
                       scale[place], s.weight[l], s.static_logits[l]});
  }
  p.finish(s.static_logits, s.threshold);
}

InputGates::~InputGates() = default;
InputGates::InputGates(InputGates&&) noexcept = default;

const std::vector<GateParameter>& InputGates::parameters() const { return parts_->parameters; }

InputGates::Run InputGates::run(GatedModel& model, const ModelState& embedded,
                                const at::Generator& generator) const {
  const Parts& p = *parts_;
  const int64_t samples = embedded.hidden.size(0), layers = p.fixed.size(0),
                heads = p.fixed.size(1);
  const at::Tensor fixed = fixed_heads(kOperation, p.fixed, model.heads());
  ModelState state = embedded;
  std::vector<at::Tensor> all_logits, all_open;
  for (const Stop& stop : p.stops) {
    const at::Tensor features = differentiable_gate_features(p.features, stop.probe, state.hidden,
                                                             state.attention_mask, stop.reference);
    const at::Tensor z =
        at::linear((features.cpu() - stop.reference) / stop.scale, stop.weight, stop.logits);
    const at::Tensor is_fixed = fixed.narrow(0, stop.layer, stop.layers).reshape({-1});
    const at::Tensor value = p.gate(z, is_fixed, generator).reshape({samples, stop.layers, heads});
    GateSet gates;
    std::vector<at::Tensor> rows;
    if (stop.layer > 0) rows.push_back(at::ones({samples, stop.layer, heads}, z.options()));
    rows.push_back(value);
    const int64_t after = layers - stop.layer - stop.layers;
    if (after > 0) rows.push_back(at::ones({samples, after, heads}, z.options()));
    gates.heads = at::cat(rows, 1).to(gate_options(state.hidden));
    gates.dropped_output = fitting_dropped_output(p.dropped_output, state.hidden);
    gates.skip = false;
    state = model.run(state, stop.layer, stop.layer + stop.layers, gates);
    all_logits.push_back(z.reshape({samples, stop.layers, heads}));
    all_open.push_back(p.probability(z, is_fixed).reshape({samples, stop.layers, heads}));
  }
  return {model.head(state), at::cat(all_logits, 1), at::cat(all_open, 1)};
}

at::Tensor InputGates::cost_share(const at::Tensor& open) const {
  const at::Tensor cost = parts_->cost();
  return (open.mean(0) * cost).sum() / cost.sum();
}

at::Tensor InputGates::penalty(const at::Tensor& open, int64_t step) const {
  const Parts& p = *parts_;
  const double target = ramped(p.start_share, p.settings.budget, step, p.settings.ramp_steps);
  at::Tensor total = lagrangian(cost_share(open) - target, p.multipliers);
  int64_t numbers = 0;
  at::Tensor squares = at::zeros({}, at::kDouble);
  for (const Stop& stop : p.stops) {
    squares = squares + stop.weight.square().sum();
    numbers += stop.weight.numel();
  }
  return total + p.settings.weight_penalty * squares / static_cast<double>(numbers);
}

LinearGate InputGates::linear_gate() const {
  const Parts& p = *parts_;
  if (!p.linear) throw std::logic_error("[train_input_gates] these gates are a layer gate");
  LinearGateSettings settings = p.linear->settings();
  const Stop& stop = p.stops.front();
  settings.weight = (stop.weight.detach() / stop.scale).reshape(settings.weight.sizes());
  settings.static_logits = stop.logits.detach().clone().reshape(settings.static_logits.sizes());
  settings.threshold = 0;
  settings.calibration = "trained end to end";
  return LinearGate(std::move(settings));
}

LayerGate InputGates::layer_gate() const {
  const Parts& p = *parts_;
  if (!p.layer) throw std::logic_error("[train_input_gates] these gates are a linear gate");
  LayerGateSettings settings = p.layer->settings();
  std::vector<at::Tensor> weight, logits;
  for (const Stop& stop : p.stops) {
    weight.push_back(stop.weight.detach() / stop.scale);
    logits.push_back(stop.logits.detach());
  }
  settings.weight = at::stack(weight);
  settings.static_logits = at::stack(logits);
  settings.threshold = 0;
  settings.calibration = "trained end to end";
  return LayerGate(std::move(settings));
}

namespace {

// What differs between the two kinds of gates.
template <typename Gate>
struct Kind;

template <>
struct Kind<LinearGate> {
  static std::vector<int64_t> stops(const LinearGate&) { return {0}; }
  static std::vector<int64_t> decisions(const LinearGate&) { return {0}; }
  static const LinearProbe* probe(const LinearGate& gate, size_t) {
    return gate.settings().probe ? &*gate.settings().probe : nullptr;
  }
  static at::Tensor reference(const LinearGate& gate) {
    return gate.settings().reference.unsqueeze(0);
  }
  static LinearGate with_reference(const LinearGate& gate, const at::Tensor& reference) {
    LinearGateSettings settings = gate.settings();
    settings.reference = reference[0].contiguous();
    return LinearGate(std::move(settings));
  }
  static LinearGate trained(const InputGates& gates) { return gates.linear_gate(); }
  static at::Tensor logits(GatedModel& model, const DataSource& data, const LinearGate& gate) {
    const c10::NoGradGuard no_grad;
    std::vector<at::Tensor> all;
    data.for_each([&](const Batch& batch) {
      const ModelState state = model.embed(batch);
      all.push_back(gate.logits(state.hidden, state.attention_mask));
    });
    HEADKIT_CHECK(!all.empty(), kOperation, "calibration data with at least one example", "none");
    return at::cat(all);
  }
  static LinearGate at_mean(GatedModel& model, const DataSource& data, const LinearGate& gate,
                            double heads) {
    return gate.with_mean_heads(logits(model, data, gate), heads);
  }
};

template <>
struct Kind<LayerGate> {
  static std::vector<int64_t> stops(const LayerGate& gate) {
    std::vector<int64_t> all(static_cast<size_t>(gate.settings().weight.size(0)));
    for (size_t l = 0; l < all.size(); ++l) all[l] = static_cast<int64_t>(l);
    return all;
  }
  static std::vector<int64_t> decisions(const LayerGate& gate) { return gate.decision_layers(); }
  static const LinearProbe* probe(const LayerGate& gate, size_t stop) {
    return gate.settings().probes.empty() ? nullptr : &gate.settings().probes[stop];
  }
  static at::Tensor reference(const LayerGate& gate) { return gate.settings().reference; }
  static LayerGate with_reference(const LayerGate& gate, const at::Tensor& reference) {
    LayerGateSettings settings = gate.settings();
    settings.reference = reference.contiguous();
    return LayerGate(std::move(settings));
  }
  static LayerGate trained(const InputGates& gates) { return gates.layer_gate(); }
  static at::Tensor logits(GatedModel& model, const DataSource& data, const LayerGate& gate) {
    return layer_gate_logits(model, data, gate);
  }
  static LayerGate at_mean(GatedModel& model, const DataSource& data, const LayerGate& gate,
                           double heads) {
    return with_mean_heads(model, data, gate, heads);
  }
};

// Gates of all layers, from the state before layer 0.
template <typename Gate>
GateSet decided(GatedModel& model, const Gate& gate, const ModelState& embedded) {
  const c10::NoGradGuard no_grad;
  const auto state = gate.start();
  state->present = model.heads();
  const std::vector<int64_t> stops = Kind<Gate>::decisions(gate);
  ModelState at = embedded;
  GateSet all;
  for (size_t i = 0; i < stops.size(); ++i) {
    const GateSet gates = gate.decide({stops[i], at.hidden, at.attention_mask}, *state);
    if (i == 0) {
      all = gates;
    } else {
      const int64_t rest = all.heads.size(1) - stops[i];
      all.heads.narrow(1, stops[i], rest).copy_(gates.heads.narrow(1, stops[i], rest));
    }
    if (i + 1 < stops.size()) at = model.run(at, stops[i], stops[i + 1], gates);
  }
  return all;
}

void check_options(const TrainInputGatesOptions& options, const Objective& objective) {
  HEADKIT_CHECK(options.steps >= 1 && options.draws >= 1, kOperation, "at least one step and draw",
                options.steps, " and ", options.draws);
  HEADKIT_CHECK(options.learning_rate > 0 && options.weight_learning_rate >= 0 &&
                    options.model_learning_rate >= 0 && options.max_norm >= 0,
                kOperation, "a learning rate above 0, others and the norm of at least 0",
                options.learning_rate, ", ", options.weight_learning_rate, ", ",
                options.model_learning_rate, ", ", options.max_norm);
  HEADKIT_CHECK(options.settled_share >= 0 && options.settled_share < 0.5, kOperation,
                "settled_share in [0, 0.5)", options.settled_share);
  HEADKIT_CHECK(
      !(objective.needs_dense() && options.model_learning_rate > 0 && options.teacher == nullptr),
      kOperation,
      "a teacher beside weights that train, because the model itself does not stay dense",
      objective.name(), " without one");
}

at::Tensor dense_output(GatedModel& model, const ModelState& state, const Batch& batch,
                        const Objective& objective, GatedModel* teacher) {
  if (!objective.needs_dense()) return {};
  const c10::NoGradGuard no_grad;
  if (teacher == nullptr) return model.head(model.run(state, 0, model.layout().layers, {}));
  const auto mode = teacher->evaluating();
  return (*teacher)(batch);
}

struct FeatureMoments {
  at::Tensor mean;                // [stops, F]
  std::vector<at::Tensor> scale;  // [F] each
};

// Mean and standard deviation of the features of each decision, under the gate of the start.
template <typename Gate>
FeatureMoments feature_moments(GatedModel& model, const Gate& gate, const DataSource& data) {
  const c10::NoGradGuard no_grad;
  const std::vector<int64_t> stops = Kind<Gate>::stops(gate);
  std::vector<std::vector<at::Tensor>> features(stops.size());
  data.for_each([&](const Batch& batch) {
    if (batch_size(batch) == 0) return;
    ModelState state = model.embed(batch);
    const GateSet gates = decided(model, gate, state);
    for (size_t i = 0; i < stops.size(); ++i) {
      if (stops[i] > state.layer) state = model.run(state, state.layer, stops[i], gates);
      features[i].push_back(gate_features(kOperation, gate.settings().features,
                                          Kind<Gate>::probe(gate, i), state.hidden,
                                          state.attention_mask));
    }
  });
  HEADKIT_CHECK(!features.front().empty(), kOperation, "training data with at least one example",
                "none");
  FeatureMoments moments;
  std::vector<at::Tensor> mean;
  for (const auto& each : features) {
    const at::Tensor all = at::cat(each);
    mean.push_back(all.mean(0));
    moments.scale.push_back((all - mean.back()).square().mean(0).sqrt());
  }
  moments.mean = at::stack(mean);
  return moments;
}

template <typename Run>
double mean_loss(GatedModel& model, const DataSource& data, const Objective& objective,
                 GatedModel* teacher, const Run& run) {
  const c10::NoGradGuard no_grad;
  double sum = 0;
  int64_t examples = 0;
  data.for_each([&](const Batch& batch) {
    if (batch_size(batch) == 0) return;
    const ModelState state = model.embed(batch);
    const at::Tensor dense = dense_output(model, state, batch, objective, teacher);
    sum += objective.loss(run(state), batch, dense).to(at::kDouble).sum().template item<double>();
    examples += batch_size(batch);
  });
  HEADKIT_CHECK(examples > 0, kOperation, "calibration data with at least one example", "none");
  return sum / static_cast<double>(examples);
}

// The heads that are open most often, `count` of them; ties go to the lower head.
at::Tensor most_open(const at::Tensor& open, int64_t count) {
  const at::Tensor order = std::get<1>(open.mean(0).flatten().sort(true, 0, true));
  at::Tensor mask = at::zeros({open.size(1) * open.size(2)}, at::kDouble);
  mask.index_fill_(0, order.slice(0, 0, count), 1);
  return mask.reshape({open.size(1), open.size(2)});
}

template <typename Gate>
class Training {
 public:
  Training(GatedModel& model, InputGates& gates, const Objective& objective,
           const TrainInputGatesOptions& options, InputGateReport& report)
      : model_(model),
        gates_(gates),
        objective_(objective),
        options_(options),
        report_(report),
        weight_(named("weight", false),
                {.learning_rate = options.weight_learning_rate, .max_norm = options.max_norm}),
        logits_(named("logits", false),
                {.learning_rate = options.learning_rate, .max_norm = options.max_norm}),
        multipliers_(named("multipliers", true), {.learning_rate = options.learning_rate}),
        model_weights_(options.model_learning_rate > 0 ? trainable_weights(kOperation, model)
                                                       : std::vector<at::Tensor>(),
                       {.learning_rate = options.model_learning_rate,
                        .weight_decay = 0.01,
                        .max_norm = options.max_norm}),
        generator_(at::detail::createCPUGenerator(options.seed)) {}

  std::vector<at::Tensor> model_weights() const { return model_weights_.parameters(); }
  int64_t steps() const { return static_cast<int64_t>(report_.loss.size()); }

  void step(const Batch& batch) {
    if (batch_size(batch) == 0) return;
    const c10::AutoGradMode with_grad(true);
    const ModelState state = [&] {
      const c10::AutoGradMode embedding(!model_weights_.parameters().empty());
      return model_.embed(batch);
    }();
    const at::Tensor dense = dense_output(model_, state, batch, objective_, options_.teacher);
    const InputGates::Run run = gates_.run(model_, state, generator_);
    const at::Tensor loss = objective_.loss(run.output, batch, dense).mean();
    const auto value = loss.item<double>();
    HEADKIT_CHECK_RUNTIME(std::isfinite(value), kOperation, "a finite loss", value, " at step ",
                          steps());
    report_.loss.push_back(value);
    report_.cost_share.push_back(gates_.cost_share(run.open).template item<double>());
    update(loss + gates_.penalty(run.open, steps() - 1).to(loss.options()));
  }

 private:
  std::vector<at::Tensor> named(const char* name, bool ascend) const {
    std::vector<at::Tensor> values;
    for (const GateParameter& each : gates_.parameters()) {
      if (each.ascend == ascend && each.name.rfind(name, 0) == 0) values.push_back(each.value);
    }
    return values;
  }

  void update(const at::Tensor& total) {
    std::vector<at::Tensor> inputs;
    const std::vector<Adam*> optimizers{&weight_, &logits_, &multipliers_, &model_weights_};
    for (const Adam* each : optimizers) {
      inputs.insert(inputs.end(), each->parameters().begin(), each->parameters().end());
    }
    const auto gradients = torch::autograd::grad({total}, inputs, {}, std::nullopt, false,
                                                 /*allow_unused=*/true);
    auto next = gradients.begin();
    for (Adam* each : optimizers) {
      const auto count = static_cast<std::ptrdiff_t>(each->parameters().size());
      std::vector<at::Tensor> own(next, next + count);
      next += count;
      if (each == &multipliers_) {
        for (at::Tensor& gradient : own) gradient = -gradient;
      }
      each->step(own);
    }
  }

  GatedModel& model_;
  InputGates& gates_;
  const Objective& objective_;
  const TrainInputGatesOptions& options_;
  InputGateReport& report_;
  Adam weight_, logits_, multipliers_, model_weights_;
  at::Generator generator_;
};

template <typename Gate>
Gate settled_gate(const Gate& gate, const at::Tensor& open, double share) {
  auto settings = gate.settings();
  const at::Tensor opened = open.mean(0);
  settings.fixed = at::where(settings.fixed == 0,
                             at::zeros_like(settings.fixed)
                                 .masked_fill(opened <= share, -1)
                                 .masked_fill(opened >= 1 - share, 1),
                             settings.fixed)
                       .contiguous();
  return Gate(std::move(settings));
}

template <typename Gate, typename Trained>
Trained train(GatedModel& model, const Gate& given, const DataSource& data,
              const DataSource& calibration, const Objective& objective,
              const TrainInputGatesOptions& options) {
  check_options(options, objective);
  const HeadLayout layout = model.layout();
  HEADKIT_CHECK(given.settings().fixed.sizes() == at::IntArrayRef({layout.layers, layout.heads}),
                kOperation,
                c10::str("a gate of ", layout.layers, " layers and ", layout.heads, " heads"),
                given.settings().fixed.sizes());
  Gate start = given;
  FeatureMoments moments = [&] {
    const auto mode = model.evaluating();
    return feature_moments(model, start, data);
  }();
  // A gate without weights may read its features against any reference: against their mean it
  // stays what it is when weights come.
  if (start.settings().weight.eq(0).all().template item<bool>()) {
    start = Kind<Gate>::with_reference(start, moments.mean);
  }
  InputGates gates(start, moments.scale, options.gates);
  Trained trained;
  InputGateReport& report = trained.report;
  Training<Gate> training(model, gates, objective, options, report);
  Restore restore(training.model_weights());
  {
    const auto mode = options.model_learning_rate > 0 ? nullptr : model.evaluating();
    try {
      while (true) {
        const int64_t before = training.steps();
        data.for_each([&](const Batch& batch) {
          training.step(batch);
          if (options.progress) options.progress(training.steps(), options.steps);
          if (training.steps() >= options.steps) throw EnoughSteps();
        });
        HEADKIT_CHECK(training.steps() > before, kOperation, "data with at least one example",
                      "none");
      }
    } catch (const EnoughSteps&) {
    }
  }

  const auto mode = model.evaluating();
  const double heads = options.gates.budget * static_cast<double>(layout.total_heads());
  Gate gate = Kind<Gate>::at_mean(model, calibration, Kind<Gate>::trained(gates), heads);
  at::Tensor logits = Kind<Gate>::logits(model, calibration, gate);
  gate = Kind<Gate>::at_mean(model, calibration,
                             settled_gate(gate, gate.open_heads(logits), options.settled_share),
                             heads);
  if (options.compensate) {
    MeanOutputOptions measure;
    measure.decide = [&](const ModelState& state) { return decided(model, gate, state); };
    gate = gate.with_dropped_output(mean_head_outputs(model, data, measure));
  }
  logits = Kind<Gate>::logits(model, calibration, gate);
  const at::Tensor open = gate.open_heads(logits).to(at::kDouble);
  const auto examples = static_cast<double>(open.size(0));
  report.mean_heads = open.sum().template item<double>() / examples;
  report.contested = (gate.settings().fixed == 0).sum().template item<int64_t>();
  const at::Tensor present = model.heads().keep().flatten().nonzero().flatten();
  const at::Tensor spread = logits.reshape({logits.size(0), -1}).index_select(1, present);
  const double all_variance = spread.var(false).template item<double>();
  report.input_variance =
      all_variance > 0 ? spread.var(0, false).mean().template item<double>() / all_variance : 0;

  at::Generator noise = at::detail::createCPUGenerator(options.seed);
  for (int64_t draw = 0; draw < options.draws; ++draw) {
    report.sampled_loss +=
        mean_loss(model, calibration, objective, options.teacher,
                  [&](const ModelState& state) { return gates.run(model, state, noise).output; }) /
        static_cast<double>(options.draws);
  }
  const auto under = [&](const ModelState& state, const GateSet& set) {
    return model.head(model.run(state, 0, layout.layers, set));
  };
  report.hard_loss =
      mean_loss(model, calibration, objective, options.teacher,
                [&](const ModelState& state) { return under(state, decided(model, gate, state)); });
  const at::Tensor mask =
      most_open(open, static_cast<int64_t>(std::ceil(report.mean_heads - 1e-9)));
  report.static_loss =
      mean_loss(model, calibration, objective, options.teacher, [&](const ModelState& state) {
        GateSet set;
        set.heads = mask.to(gate_options(state.hidden));
        set.dropped_output = fitting_dropped_output(gate.settings().dropped_output, state.hidden);
        return under(state, set);
      });
  if (report.contested == 0 || report.input_variance < kLittleVariance) {
    report.warning = c10::str("the gate became static: inputs explain ",
                              100 * report.input_variance, " % of the variance of its logits, ",
                              report.contested, " heads are contested; a mask does the same");
  }
  trained.gate = std::make_shared<Gate>(std::move(gate));
  restore.keep();
  return trained;
}

// s of the heads by rank of their scores, and the threshold between the last that runs and the
// next.
std::pair<at::Tensor, double> static_rule(GatedModel& model, const at::Tensor& scores,
                                          int64_t heads) {
  const at::Tensor present = model.heads().keep();
  HEADKIT_CHECK(scores.defined() && scores.sizes() == present.sizes() &&
                    scores.is_floating_point() && scores.isfinite().all().item<bool>(),
                "static_gate", c10::str("finite scores of shape ", present.sizes()),
                scores.defined() ? c10::str(scores.sizes()) : "none");
  const int64_t there = model.heads().count();
  HEADKIT_CHECK(heads >= 0 && heads <= there, "static_gate", c10::str("heads from 0 to ", there),
                heads);
  const at::Tensor values = scores.detach().to(at::kCPU, at::kDouble).contiguous();
  // Equal scores are told apart by place, so that exactly so many heads run: logits are ranks.
  const at::Tensor order = std::get<1>(
      values.masked_fill(present.logical_not(), -INFINITY).flatten().sort(true, 0, true));
  at::Tensor rank = at::empty_like(order);
  rank.index_copy_(0, order, at::arange(order.numel(), at::kLong));
  return {-rank.reshape(values.sizes()).to(at::kDouble), 0.5 - static_cast<double>(heads)};
}

}  // namespace

TrainedLinearGate train_input_gates(GatedModel& model, const LinearGate& start,
                                    const DataSource& data, const DataSource& calibration,
                                    const Objective& objective,
                                    const TrainInputGatesOptions& options) {
  return train<LinearGate, TrainedLinearGate>(model, start, data, calibration, objective, options);
}

TrainedLayerGate train_input_gates(GatedModel& model, const LayerGate& start,
                                   const DataSource& data, const DataSource& calibration,
                                   const Objective& objective,
                                   const TrainInputGatesOptions& options) {
  return train<LayerGate, TrainedLayerGate>(model, start, data, calibration, objective, options);
}

LinearGate static_linear_gate(GatedModel& model, const at::Tensor& scores, int64_t heads,
                              const at::Tensor& dropped_output) {
  const HeadLayout layout = model.layout();
  const auto [logits, threshold] = static_rule(model, scores, heads);
  LinearGateSettings settings;
  settings.weight = at::zeros({layout.layers, layout.heads, layout.model_dim}, at::kDouble);
  settings.reference = at::zeros({layout.model_dim}, at::kDouble);
  settings.static_logits = logits;
  settings.fixed = fixed_heads("static_gate", at::zeros(logits.sizes(), at::kChar), model.heads());
  settings.threshold = threshold;
  settings.min_heads = 0;
  settings.dropped_output = dropped_output;
  return LinearGate(std::move(settings));
}

LayerGate static_layer_gate(GatedModel& model, const at::Tensor& scores, int64_t heads,
                            const at::Tensor& dropped_output) {
  const HeadLayout layout = model.layout();
  const auto [logits, threshold] = static_rule(model, scores, heads);
  LayerGateSettings settings;
  settings.weight = at::zeros({layout.layers, layout.heads, layout.model_dim}, at::kDouble);
  settings.reference = at::zeros({layout.layers, layout.model_dim}, at::kDouble);
  settings.static_logits = logits;
  settings.fixed = fixed_heads("static_gate", at::zeros(logits.sizes(), at::kChar), model.heads());
  settings.threshold = threshold;
  settings.dropped_output = dropped_output;
  return LayerGate(std::move(settings));
}

}  // namespace headkit
