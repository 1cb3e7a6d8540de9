#include "headkit/gates/train_ladder.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>

#include "gates/adam.h"
#include "gates/training_values.h"
#include "headkit/core/error.h"
#include "headkit/pruners/mean_activation.h"
#include "headkit/pruners/mean_output.h"

namespace headkit {
namespace {

constexpr auto kOperation = "train_ladder";

struct EnoughSteps {};

void check_options(const TrainLadderOptions& options, const Objective& distillation) {
  HEADKIT_CHECK(options.steps >= 1, kOperation, "at least one step", options.steps);
  HEADKIT_CHECK(options.learning_rate > 0 && std::isfinite(options.learning_rate), kOperation,
                "a learning rate above 0", options.learning_rate);
  HEADKIT_CHECK(options.weight_decay >= 0 && options.max_norm >= 0 && options.task_weight >= 0 &&
                    std::isfinite(options.task_weight),
                kOperation, "decay, norm and task weight of at least 0", options.weight_decay, ", ",
                options.max_norm, ", ", options.task_weight);
  HEADKIT_CHECK(distillation.needs_dense(), kOperation,
                "an objective that compares with dense outputs, for example kl_to_dense",
                distillation.name());
}

class SandwichTraining {
 public:
  SandwichTraining(GatedModel& model, const Ladder& ladder, const Objective& distillation,
                   const TrainLadderOptions& options, LadderTraining& done)
      : model_(model),
        ladder_(ladder),
        distillation_(distillation),
        options_(options),
        done_(done),
        optimizer_(trainable_weights(kOperation, model), {.learning_rate = options.learning_rate,
                                                          .weight_decay = options.weight_decay,
                                                          .max_norm = options.max_norm}),
        generator_(at::detail::createCPUGenerator(options.seed)) {}

  const std::vector<at::Tensor>& weights() const { return optimizer_.parameters(); }

  void step(const Batch& batch, const at::Tensor& dense) {
    gradients_.assign(weights().size(), at::Tensor());
    const int64_t top = ladder_.size() - 1;
    done_.low.push_back(learn(0, batch, dense));
    if (top > 1) {
      const int64_t between = at::randint(1, top, {1}, generator_, at::kLong).item<int64_t>();
      done_.rungs.push_back(between);
      done_.drawn.push_back(learn(between, batch, dense));
    }
    done_.top.push_back(learn(top, batch, dense));
    optimizer_.step(gradients_);
  }

 private:
  // Adds the gradients of one rung; returns its distillation loss.
  double learn(int64_t rung, const Batch& batch, const at::Tensor& dense) {
    const c10::AutoGradMode with_grad(true);
    const ModelState state = model_.embed(batch);
    const at::Tensor output = model_.head(
        model_.run(state, 0, model_.layout().layers, ladder_.rung(rung).gates(state.hidden)));
    const at::Tensor distilled = distillation_.loss(output, batch, dense).mean();
    at::Tensor loss = distilled;
    if (options_.task != nullptr && rung + 1 < ladder_.size()) {
      loss = loss + options_.task_weight * options_.task->loss(output, batch, dense).mean();
    }
    const auto value = loss.item<double>();
    HEADKIT_CHECK_RUNTIME(std::isfinite(value), kOperation, "a finite loss", value, " of rung ",
                          rung, " at step ", done_.top.size());
    const auto gradients = torch::autograd::grad({loss}, weights(), {}, std::nullopt, false,
                                                 /*allow_unused=*/true);
    for (size_t i = 0; i < gradients.size(); ++i) {
      if (!gradients[i].defined()) continue;
      gradients_[i] = gradients_[i].defined() ? gradients_[i] + gradients[i] : gradients[i];
    }
    return distilled.item<double>();
  }

  GatedModel& model_;
  const Ladder& ladder_;
  const Objective& distillation_;
  const TrainLadderOptions& options_;
  LadderTraining& done_;
  Adam optimizer_;
  at::Generator generator_;
  std::vector<at::Tensor> gradients_;
};

// Dense outputs of all batches, in the order of the walk.
std::vector<at::Tensor> dense_outputs(GatedModel& model, const DataSource& data,
                                      const TrainLadderOptions& options) {
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  std::vector<at::Tensor> outputs;
  data.for_each([&](const Batch& batch) {
    if (batch_size(batch) == 0) return;
    // No batch beyond the last step is needed.
    if (static_cast<int64_t>(outputs.size()) < options.steps) outputs.push_back(model(batch));
  });
  return outputs;
}

Ladder with_measured_outputs(GatedModel& model, const Ladder& ladder, const DataSource& data) {
  std::vector<Rung> rungs = ladder.rungs();
  for (Rung& rung : rungs) {
    MeanOutputOptions measure;
    measure.decide = [&](const ModelState& state) { return rung.gates(state.hidden); };
    if (rung.dropped_output.defined()) {
      rung.dropped_output = mean_head_outputs(model, data, measure);
    }
    if (rung.dropped_blocks.defined()) {
      rung.dropped_blocks = mean_block_outputs(model, data, measure);
    }
  }
  return Ladder(std::move(rungs));
}

}  // namespace

LadderTraining train_ladder(GatedModel& model, const Ladder& ladder, const DataSource& data,
                            const Objective& distillation, const TrainLadderOptions& options) {
  check_options(options, distillation);
  HEADKIT_CHECK(ladder.size() >= 2, kOperation, "a ladder of at least two rungs", ladder.size());
  ladder.check_model(kOperation, model);
  LadderTraining done;
  SandwichTraining training(model, ladder, distillation, options, done);
  const std::vector<at::Tensor> dense =
      options.dense ? std::vector<at::Tensor>() : dense_outputs(model, data, options);
  Restore restore(training.weights());
  const auto steps = [&] { return static_cast<int64_t>(done.top.size()); };
  try {
    while (true) {
      const int64_t before = steps();
      size_t place = 0;
      data.for_each([&](const Batch& batch) {
        if (batch_size(batch) == 0) return;
        HEADKIT_CHECK(options.dense || place < dense.size(), kOperation,
                      "the same batches on each walk", "more than ", dense.size());
        const at::Tensor target = options.dense ? options.dense(batch) : dense[place++];
        training.step(batch, target.detach());
        if (options.progress) options.progress(steps(), options.steps);
        if (steps() >= options.steps) throw EnoughSteps();
      });
      HEADKIT_CHECK(steps() > before, kOperation, "data with at least one example", "none");
    }
  } catch (const EnoughSteps&) {
  }
  const auto mode = model.evaluating();
  done.ladder = options.compensate ? with_measured_outputs(model, ladder, data) : ladder;
  restore.keep();
  return done;
}

}  // namespace headkit
