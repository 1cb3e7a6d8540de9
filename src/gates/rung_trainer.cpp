#include "headkit/gates/rung_trainer.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <cmath>

#include "gates/adam.h"
#include "gates/training_values.h"
#include "gates/units_there.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "rung_trainer";

void check_options(const RungTrainerOptions& options, const Objective& distillation) {
  HEADKIT_CHECK(options.learning_rate > 0 && std::isfinite(options.learning_rate), kOperation,
                "a learning rate above 0", options.learning_rate);
  HEADKIT_CHECK(options.weight_decay >= 0 && options.max_norm >= 0 && options.task_weight >= 0 &&
                    std::isfinite(options.task_weight),
                kOperation, "decay, norm and task weight of at least 0", options.weight_decay, ", ",
                options.max_norm, ", ", options.task_weight);
  HEADKIT_CHECK(options.warmup_steps >= 0 && options.total_steps >= 0 &&
                    (options.total_steps == 0 || options.warmup_steps <= options.total_steps),
                kOperation, "as many steps in all as the rate climbs, or more",
                options.warmup_steps, " of ", options.total_steps);
  HEADKIT_CHECK(distillation.needs_dense(), kOperation,
                "an objective that compares with dense outputs, for example kl_to_dense",
                distillation.name());
}

}  // namespace

struct RungTrainer::Body {
  GatedModel& model;
  std::vector<Rung> rungs;
  const Objective& distillation;
  RungTrainerOptions options;
  Adam optimizer;
  std::vector<at::Tensor> gradients;

  // Adds the gradients of one rung; returns its distillation loss.
  double learn(int64_t rung, const Batch& batch, const at::Tensor& dense) {
    const c10::AutoGradMode with_grad(true);
    const ModelState state = model.embed(batch);
    const GateSet gates = rungs[static_cast<size_t>(rung)].gates(state.hidden);
    const at::Tensor output = model.head(model.run(state, 0, model.layout().layers, gates));
    const at::Tensor distilled = distillation.loss(output, batch, dense).mean();
    at::Tensor loss = distilled;
    const bool last = rung + 1 == static_cast<int64_t>(rungs.size());
    if (options.task != nullptr && !(last && options.last_without_task)) {
      loss = loss + options.task_weight * options.task->loss(output, batch, dense).mean();
    }
    const auto value = loss.item<double>();
    HEADKIT_CHECK_RUNTIME(std::isfinite(value), kOperation, "a finite loss", value, " of rung ",
                          rung, " at step ", optimizer.steps());
    const auto found = torch::autograd::grad({loss}, optimizer.parameters(), {}, std::nullopt,
                                             false, /*allow_unused=*/true);
    for (size_t i = 0; i < found.size(); ++i) {
      if (!found[i].defined()) continue;
      gradients[i] = gradients[i].defined() ? gradients[i] + found[i] : found[i];
    }
    return distilled.item<double>();
  }

  double rate() const {
    const auto done = static_cast<double>(optimizer.steps());
    const auto climb = static_cast<double>(options.warmup_steps);
    const auto total = static_cast<double>(options.total_steps);
    double share = climb > 0 ? std::min(1.0, (done + 1) / climb) : 1;
    if (total > 0) {
      share = std::min(share, std::max(0.0, (total - done) / std::max(1.0, total - climb + 1)));
    }
    return options.learning_rate * share;
  }
};

RungTrainer::RungTrainer(GatedModel& model, std::vector<Rung> rungs, const Objective& distillation,
                         const RungTrainerOptions& options) {
  check_options(options, distillation);
  HEADKIT_CHECK(!rungs.empty(), kOperation, "at least one rung", "none");
  for (const Rung& rung : rungs) check_rung(kOperation, model, rung);
  body_ = std::make_unique<Body>(
      Body{model,
           std::move(rungs),
           distillation,
           options,
           Adam(trainable_weights(kOperation, model), {.learning_rate = options.learning_rate,
                                                       .weight_decay = options.weight_decay,
                                                       .max_norm = options.max_norm}),
           {}});
}

RungTrainer::~RungTrainer() = default;

std::vector<double> RungTrainer::step(const Batch& batch, const at::Tensor& dense,
                                      const std::vector<int64_t>& rungs) {
  const auto count = static_cast<int64_t>(body_->rungs.size());
  for (const int64_t rung : rungs) {
    HEADKIT_CHECK_INDEX(rung >= 0 && rung < count, kOperation, c10::str("rungs below ", count),
                        rung);
  }
  HEADKIT_CHECK(!rungs.empty(), kOperation, "at least one rung in a step", "none");
  body_->gradients.assign(weights().size(), at::Tensor());
  std::vector<double> losses;
  for (const int64_t rung : rungs) losses.push_back(body_->learn(rung, batch, dense.detach()));
  body_->optimizer.step(body_->gradients, learning_rate());
  body_->gradients.clear();
  return losses;
}

int64_t RungTrainer::steps() const { return body_->optimizer.steps(); }

double RungTrainer::learning_rate() const { return body_->rate(); }

const std::vector<at::Tensor>& RungTrainer::weights() const {
  return body_->optimizer.parameters();
}

RungTrainerState RungTrainer::state() const {
  RungTrainerState state{steps(), {}, {}};
  for (const at::Tensor& each : body_->optimizer.mean()) state.mean.push_back(each.clone());
  for (const at::Tensor& each : body_->optimizer.square()) state.square.push_back(each.clone());
  return state;
}

void RungTrainer::adopt(const RungTrainerState& state) {
  const std::vector<at::Tensor>& own = weights();
  HEADKIT_CHECK(state.steps >= 0, kOperation, "a state of 0 or more steps", state.steps);
  for (const auto* moments : {&state.mean, &state.square}) {
    HEADKIT_CHECK(moments->size() == own.size(), kOperation,
                  c10::str("a state of ", own.size(), " weights"), moments->size());
    for (size_t i = 0; i < own.size(); ++i) {
      const at::Tensor& one = (*moments)[i];
      HEADKIT_CHECK(one.defined() && one.sizes() == own[i].sizes() &&
                        one.scalar_type() == own[i].scalar_type(),
                    kOperation, c10::str("a state whose weight ", i, " has shape ", own[i].sizes()),
                    one.defined() ? c10::str("shape ", one.sizes()) : "none");
    }
  }
  body_->optimizer.adopt(state.steps, state.mean, state.square);
}

}  // namespace headkit
