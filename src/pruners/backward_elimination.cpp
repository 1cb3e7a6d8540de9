#include "headkit/pruners/backward_elimination.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <limits>

#include "headkit/core/error.h"
#include "headkit/pruners/mean_output.h"
#include "pruners/head_course.h"
#include "pruners/masked_model.h"
#include "scorers/layer_variants.h"

namespace headkit {
namespace {

constexpr char kName[] = "backward_elimination";

struct Losses {
  double now = 0;               // mean loss with all open heads
  std::vector<double> without;  // mean loss without each candidate
};

// `candidates` by layer, ascending. `dropped_output`, where defined, replaces closed heads and
// candidates.
Losses losses_without(GatedModel& model, const DataSource& data, const Objective& objective,
                      const HeadMask& open, const std::vector<HeadId>& candidates,
                      const at::Tensor& dropped_output) {
  MaskedModel masked(model, open, dropped_output);
  std::vector<LayerVariant> variants;
  for (HeadId each : candidates) variants.push_back({each.layer, {each.head}});
  double now = 0;
  at::Tensor without = at::zeros({static_cast<int64_t>(candidates.size())}, at::kDouble);
  int64_t seen = 0;
  data.for_each([&](const Batch& batch) {
    const int64_t examples = batch_size(batch);
    if (examples == 0) return;
    const VariantLosses losses =
        variant_losses(kName, masked, batch, objective, variants, dropped_output);
    now += losses.open.sum().item<double>();
    without += losses.closed.sum(1);
    seen += examples;
  });
  HEADKIT_CHECK(seen > 0, kName, "data with at least one example", "none");
  without /= static_cast<double>(seen);
  const double* each = without.const_data_ptr<double>();
  return {now / static_cast<double>(seen), {each, each + without.numel()}};
}

double& value_of(HeadScores& scores, HeadId head) {
  return scores.values.mutable_data_ptr<double>()[head.layer * scores.values.size(1) + head.head];
}

// The `count` candidates of least value, by layer; all where count is 0.
std::vector<HeadId> shortlisted(std::vector<HeadId> candidates, HeadScores& harm, int64_t count) {
  if (count == 0 || count >= static_cast<int64_t>(candidates.size())) return candidates;
  std::stable_sort(candidates.begin(), candidates.end(),
                   [&](HeadId a, HeadId b) { return value_of(harm, a) < value_of(harm, b); });
  candidates.resize(static_cast<size_t>(count));
  std::sort(candidates.begin(), candidates.end(), [](HeadId a, HeadId b) {
    return a.layer != b.layer ? a.layer < b.layer : a.head < b.head;
  });
  return candidates;
}

}  // namespace

StaticPruning prune_by_elimination(GatedModel& model, const DataSource& data,
                                   const Objective& objective,
                                   const BackwardEliminationOptions& options) {
  HEADKIT_CHECK(options.shortlist >= 0, kName, "a shortlist of at least 0 heads",
                options.shortlist);
  HEADKIT_CHECK(options.shortlist == 0 || options.shortlist >= options.step, kName,
                "a shortlist of at least the " + std::to_string(options.step) + " heads of a step",
                options.shortlist);
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  HeadCourse course(options.share, model.heads(), options.step);
  const int64_t going = course.to_go();
  const auto means = [&] {
    return options.compensate
               ? mean_head_outputs(model, data, {.gates = GateSet::from_mask(course.open())})
               : at::Tensor();
  };
  // What a step does not try keeps the harm of the last step that tried it, and may not go now.
  HeadScores harm;
  harm.values = at::zeros({model.layout().layers, model.layout().heads}, at::kDouble);
  Json loss = Json::array();
  while (!course.done()) {
    const bool first = course.order().empty();
    const std::vector<HeadId> tried =
        shortlisted(course.candidates(), harm, first ? 0 : options.shortlist);
    const Losses found = losses_without(model, data, objective, course.open(), tried, means());
    loss.push_back(found.now);
    HeadScores now;
    now.values = at::full_like(harm.values, std::numeric_limits<double>::max());
    for (size_t i = 0; i < tried.size(); ++i) {
      value_of(harm, tried[i]) = found.without[i] - found.now;
      value_of(now, tried[i]) = found.without[i];
    }
    course.close(now);
    if (options.progress) options.progress(static_cast<int64_t>(course.order().size()), going);
  }
  StaticPruning pruning{.heads = course.open()};
  pruning.gates.dropped_output = means();
  loss.push_back(
      losses_without(model, data, objective, course.open(), {}, pruning.gates.dropped_output).now);
  pruning.details = Json{
      {"method", kName},
      {"objective", objective.name()},
      {"step", options.step},
      {"shortlist", options.shortlist},
      {"compensate", options.compensate},
      {"order", heads_to_json(course.order())},
      {"loss", loss}}.dump();
  return pruning;
}

}  // namespace headkit
