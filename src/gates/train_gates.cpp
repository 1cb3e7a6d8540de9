#include "headkit/gates/train_gates.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "gates/adam.h"
#include "gates/fitting.h"
#include "gates/training_values.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "train_gates";
constexpr double kProjectionRate = 1e-3;

struct EnoughSteps {};

void check_options(const TrainGatesOptions& options, const Objective& objective) {
  HEADKIT_CHECK(options.steps >= 1, kOperation, "at least one step", options.steps);
  HEADKIT_CHECK(options.learning_rate > 0 && std::isfinite(options.learning_rate), kOperation,
                "a learning rate above 0", options.learning_rate);
  HEADKIT_CHECK(options.weight_learning_rate >= 0 && options.weight_decay >= 0 &&
                    options.max_norm >= 0 && options.max_weight_norm >= 0,
                kOperation, "rates, decay and norms of at least 0", options.weight_learning_rate,
                ", ", options.weight_decay, ", ", options.max_norm, ", ", options.max_weight_norm);
  const bool compares = objective.needs_dense() || options.distillation != nullptr;
  HEADKIT_CHECK(
      !(compares && options.weight_learning_rate > 0 && options.teacher == nullptr), kOperation,
      "a teacher beside weights that train, because the model itself does not stay dense",
      options.distillation != nullptr ? "distillation" : objective.name(), " without one");
}

class Training {
 public:
  Training(GatedModel& model, LearnedGates& gates, const Objective& objective,
           const TrainGatesOptions& options)
      : model_(model),
        gates_(gates),
        objective_(objective),
        options_(options),
        gate_values_(values_of(gates, /*ascend=*/false)),
        multiplier_values_(values_of(gates, /*ascend=*/true)),
        projection_values_(options.distillation == nullptr
                               ? std::vector<at::Tensor>()
                               : std::vector<at::Tensor>{options.distillation->projection()}),
        weight_values_(options.weight_learning_rate > 0 ? trainable_weights(kOperation, model)
                                                        : std::vector<at::Tensor>()),
        gate_optimizer_(gate_values_,
                        {.learning_rate = options.learning_rate, .max_norm = options.max_norm}),
        multiplier_optimizer_(multiplier_values_, {.learning_rate = options.learning_rate}),
        projection_optimizer_(projection_values_, {.learning_rate = kProjectionRate}),
        weight_optimizer_(weight_values_, {.learning_rate = options.weight_learning_rate,
                                           .weight_decay = options.weight_decay,
                                           .max_norm = options.max_weight_norm}),
        generator_(at::detail::createCPUGenerator(options.seed)) {}

  void step(const Batch& batch) {
    const int64_t examples = batch_size(batch);
    if (examples == 0) return;
    const int64_t number = options_.first_step + done_.steps();
    const c10::AutoGradMode with_grad(true);
    const ModelState state = [&] {
      const c10::AutoGradMode embedding(!weight_values_.empty());
      return model_.embed(batch);
    }();
    const GateSet sampled = fitting(gates_.sample(number, examples, generator_), state.hidden);
    const at::Tensor loss = loss_under(sampled, batch, state);
    HEADKIT_CHECK_RUNTIME(std::isfinite(loss.item<double>()), kOperation, "a finite loss",
                          loss.item<double>(), " at step ", number);
    HEADKIT_CHECK_RUNTIME(loss.requires_grad(), kOperation, "a loss that depends on the gates",
                          "one without a gradient");
    const at::Tensor penalty = gates_.penalty(number);
    update(loss + penalty.to(loss.options()));
    gates_.after_step();
    done_.loss.push_back(loss.item<double>());
    done_.penalty.push_back(penalty.item<double>());
  }

  bool finished() const { return done_.steps() >= options_.steps; }
  const GateTraining& done() const { return done_; }

  std::vector<at::Tensor> all_values() const {
    std::vector<at::Tensor> all = gate_values_;
    all.insert(all.end(), multiplier_values_.begin(), multiplier_values_.end());
    all.insert(all.end(), projection_values_.begin(), projection_values_.end());
    all.insert(all.end(), weight_values_.begin(), weight_values_.end());
    return all;
  }

 private:
  static std::vector<at::Tensor> values_of(const LearnedGates& gates, bool ascend) {
    std::vector<at::Tensor> values;
    for (const GateParameter& each : gates.parameters()) {
      if (each.ascend == ascend) values.push_back(each.value);
    }
    return values;
  }

  at::Tensor loss_under(const GateSet& gates, const Batch& batch, const ModelState& state) {
    if (options_.distillation != nullptr) {
      GatedModel& teacher = options_.teacher == nullptr ? model_ : *options_.teacher;
      return options_.distillation->loss(model_, state, teacher, gates);
    }
    const at::Tensor dense = dense_output(batch, state);
    const at::Tensor output = model_.head(model_.run(state, 0, model_.layout().layers, gates));
    return objective_.loss(output, batch, dense).mean();
  }

  at::Tensor dense_output(const Batch& batch, const ModelState& state) {
    if (!objective_.needs_dense()) return {};
    const c10::NoGradGuard no_grad;
    if (options_.teacher == nullptr) {
      return model_.head(model_.run(state, 0, model_.layout().layers, {}));
    }
    const auto mode = options_.teacher->evaluating();
    return (*options_.teacher)(batch);
  }

  void update(const at::Tensor& total) {
    const std::vector<at::Tensor> inputs = all_values();
    const auto gradients = torch::autograd::grad({total}, inputs, {}, std::nullopt, false,
                                                 /*allow_unused=*/true);
    auto next = gradients.begin();
    const auto take = [&](size_t count) {
      const std::vector<at::Tensor> taken(next, next + static_cast<std::ptrdiff_t>(count));
      next += static_cast<std::ptrdiff_t>(count);
      return taken;
    };
    gate_optimizer_.step(take(gate_values_.size()));
    std::vector<at::Tensor> ascent = take(multiplier_values_.size());
    for (at::Tensor& gradient : ascent) {
      if (gradient.defined()) gradient = -gradient;
    }
    multiplier_optimizer_.step(ascent);
    projection_optimizer_.step(take(projection_values_.size()));
    weight_optimizer_.step(take(weight_values_.size()));
  }

  GatedModel& model_;
  LearnedGates& gates_;
  const Objective& objective_;
  const TrainGatesOptions& options_;
  std::vector<at::Tensor> gate_values_, multiplier_values_, projection_values_, weight_values_;
  Adam gate_optimizer_, multiplier_optimizer_, projection_optimizer_, weight_optimizer_;
  at::Generator generator_;
  GateTraining done_;
};

}  // namespace

GateTraining train_gates(GatedModel& model, LearnedGates& gates, const DataSource& data,
                         const Objective& objective, const TrainGatesOptions& options) {
  check_options(options, objective);
  model.check(kOperation, -1, gates.hard());
  const auto mode = options.weight_learning_rate > 0 ? nullptr : model.evaluating();
  Training training(model, gates, objective, options);
  Restore restore(training.all_values());
  try {
    while (true) {
      const int64_t before = training.done().steps();
      data.for_each([&](const Batch& batch) {
        training.step(batch);
        if (options.progress) options.progress(training.done().steps(), options.steps);
        if (training.finished()) throw EnoughSteps();
      });
      HEADKIT_CHECK(training.done().steps() > before, kOperation, "data with at least one example",
                    "none");
    }
  } catch (const EnoughSteps&) {
    restore.keep();
  }
  return training.done();
}

}  // namespace headkit
