#include "headkit/gates/train_ladder.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <c10/core/GradMode.h>

#include "gates/training_values.h"
#include "headkit/core/error.h"
#include "headkit/gates/rung_trainer.h"
#include "headkit/pruners/mean_activation.h"
#include "headkit/pruners/mean_output.h"

namespace headkit {
namespace {

constexpr auto kOperation = "train_ladder";

struct EnoughSteps {};

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
  HEADKIT_CHECK(options.steps >= 1, kOperation, "at least one step", options.steps);
  HEADKIT_CHECK(ladder.size() >= 2, kOperation, "a ladder of at least two rungs", ladder.size());
  ladder.check_model(kOperation, model);
  LadderTraining done;
  RungTrainer trainer(model, ladder.rungs(), distillation,
                      {.learning_rate = options.learning_rate,
                       .weight_decay = options.weight_decay,
                       .max_norm = options.max_norm,
                       .task = options.task,
                       .task_weight = options.task_weight});
  at::Generator generator = at::detail::createCPUGenerator(options.seed);
  const int64_t top = ladder.size() - 1;
  const auto step = [&](const Batch& batch, const at::Tensor& target) {
    std::vector<int64_t> rungs{0, top};
    if (top > 1) {
      done.rungs.push_back(at::randint(1, top, {1}, generator, at::kLong).item<int64_t>());
      rungs.insert(rungs.begin() + 1, done.rungs.back());
    }
    const std::vector<double> losses = trainer.step(batch, target, rungs);
    done.low.push_back(losses.front());
    if (top > 1) done.drawn.push_back(losses[1]);
    done.top.push_back(losses.back());
  };
  const std::vector<at::Tensor> dense =
      options.dense ? std::vector<at::Tensor>() : dense_outputs(model, data, options);
  Restore restore(trainer.weights());
  try {
    while (true) {
      const int64_t before = trainer.steps();
      size_t place = 0;
      data.for_each([&](const Batch& batch) {
        if (batch_size(batch) == 0) return;
        HEADKIT_CHECK(options.dense || place < dense.size(), kOperation,
                      "the same batches on each walk", "more than ", dense.size());
        const at::Tensor target = options.dense ? options.dense(batch) : dense[place++];
        step(batch, target);
        if (options.progress) options.progress(trainer.steps(), options.steps);
        if (trainer.steps() >= options.steps) throw EnoughSteps();
      });
      HEADKIT_CHECK(trainer.steps() > before, kOperation, "data with at least one example", "none");
    }
  } catch (const EnoughSteps&) {
  }
  const auto mode = model.evaluating();
  done.ladder = options.compensate ? with_measured_outputs(model, ladder, data) : ladder;
  restore.keep();
  return done;
}

}  // namespace headkit
