#include "headkit/pruners/backward_elimination.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <limits>

#include "headkit/core/error.h"
#include "headkit/pruners/mean_output.h"
#include "pruners/head_course.h"
#include "pruners/masked_model.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "backward_elimination";
constexpr int64_t kTokensAtOnce = 16384;  // bounds the memory of one gated forward

struct Losses {
  double now = 0;               // mean loss with all open heads
  std::vector<double> without;  // mean loss without each candidate
};

// Gates [variants * examples, L, H] under which each variant lacks one of the heads.
at::Tensor variant_gates(const std::vector<HeadId>& heads, int64_t examples,
                         const HeadLayout& layout, const at::TensorOptions& options) {
  at::Tensor gates = at::ones(
      {static_cast<int64_t>(heads.size()), examples, layout.layers, layout.heads}, options);
  for (size_t i = 0; i < heads.size(); ++i) {
    gates[static_cast<int64_t>(i)].select(1, heads[i].layer).select(1, heads[i].head).zero_();
  }
  return gates.flatten(0, 1);
}

// `candidates` by layer, ascending. `dropped_output`, where defined, replaces closed heads and
// candidates.
Losses losses_without(GatedModel& model, const DataSource& data, const Objective& objective,
                      const HeadMask& open, const std::vector<HeadId>& candidates,
                      const at::Tensor& dropped_output) {
  const HeadLayout layout = model.layout();
  MaskedModel masked(model, open, dropped_output);
  Losses losses;
  losses.without.assign(candidates.size(), 0);
  int64_t seen = 0;
  data.for_each([&](const Batch& batch) {
    const int64_t examples = batch_size(batch);
    if (examples == 0) return;
    std::vector<ModelState> inputs;
    ModelState state = masked.embed(batch);
    at::Tensor dense;
    if (objective.needs_dense()) {
      dense = model.head(model.run(state, 0, layout.layers, {}));
    }
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      inputs.push_back(state);
      state = masked.run(state, layer, layer + 1, {});
    }
    losses.now += checked_losses(kName, objective.loss(masked.head(state), batch, dense), examples)
                      .sum()
                      .item<double>();
    const at::Tensor& hidden = inputs.front().hidden;
    const auto variants_at_once = static_cast<size_t>(
        std::max<int64_t>(kTokensAtOnce / std::max<int64_t>(examples * hidden.size(1), 1), 1));
    const at::TensorOptions options =
        hidden.options().dtype(hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat);
    for (size_t first = 0; first < candidates.size();) {
      const int64_t layer = candidates[first].layer;
      size_t end = first;
      while (end < candidates.size() && end - first < variants_at_once &&
             candidates[end].layer == layer) {
        ++end;
      }
      const std::vector<HeadId> variants(candidates.begin() + static_cast<int64_t>(first),
                                         candidates.begin() + static_cast<int64_t>(end));
      const auto count = static_cast<int64_t>(variants.size());
      const at::Tensor index = at::arange(examples).repeat({count});
      GateSet gates;
      gates.heads = variant_gates(variants, examples, layout, options);
      if (dropped_output.defined()) gates.dropped_output = dropped_output.to(hidden.options());
      const at::Tensor output = masked.head(masked.run(
          masked.select(inputs[static_cast<size_t>(layer)], index), layer, layout.layers, gates));
      const at::Tensor repeated_dense =
          dense.defined() ? dense.index_select(0, index.to(dense.device())) : dense;
      const at::Tensor loss =
          checked_losses(kName,
                         objective.loss(output, select_examples(batch, index), repeated_dense),
                         count * examples)
              .reshape({count, examples})
              .sum(1);
      for (int64_t i = 0; i < count; ++i) {
        losses.without[first + static_cast<size_t>(i)] += loss[i].item<double>();
      }
      first = end;
    }
    seen += examples;
  });
  HEADKIT_CHECK(seen > 0, kName, "data with at least one example", "none");
  losses.now /= static_cast<double>(seen);
  for (double& each : losses.without) each /= static_cast<double>(seen);
  return losses;
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
