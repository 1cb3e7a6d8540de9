#include "headkit/explain/measure_effects.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "explain/ablation_outputs.h"
#include "explain/direct_effects.h"
#include "explain/gauss_legendre.h"
#include "explain/input_runs.h"
#include "explain/redecided_run.h"
#include "explain/write_norms.h"
#include "headkit/core/error.h"
#include "headkit/explain/interactions.h"
#include "headkit/scorers/bootstrap.h"
#include "headkit/scorers/shapley.h"

namespace headkit {
namespace {

constexpr auto kOperation = "effects";
constexpr int64_t kMostExactSii = 12;

void check_options(const EffectOptions& options) {
  HEADKIT_CHECK(options.path_nodes >= 0 && options.path_nodes <= 256, kOperation,
                "0 to 256 nodes of a path", options.path_nodes);
  HEADKIT_CHECK(options.pair_heads >= 0 && options.pair_heads != 1 && options.game_heads >= 0 &&
                    options.game_heads != 1,
                kOperation, "at least two heads, or 0, for pairs and games", options.pair_heads,
                " and ", options.game_heads);
  HEADKIT_CHECK(options.toggles || (options.pair_heads == 0 && options.game_heads == 0), kOperation,
                "toggles, which choose the heads of pairs and games", "none");
  HEADKIT_CHECK(options.orders >= 4 && options.orders % 2 == 0, kOperation,
                "an even number of orders, 4 or more", options.orders);
  const std::string& index = options.interaction;
  HEADKIT_CHECK(index == "fsii" || index == "sii" || index == "none", kOperation,
                "an interaction of fsii, sii or none", index);
  HEADKIT_CHECK(index != "sii" || options.game_heads <= kMostExactSii, kOperation,
                c10::str("at most ", kMostExactSii, " heads for sii"), options.game_heads);
  HEADKIT_CHECK(options.confidence > 0 && options.confidence < 1, kOperation,
                "a confidence level in (0, 1)", options.confidence);
  HEADKIT_CHECK(options.bootstrap >= 1, kOperation, "at least one resample", options.bootstrap);
  HEADKIT_CHECK(options.policy == nullptr || options.gates.empty(), kOperation, "gates or a policy",
                "both");
}

std::optional<int64_t> number_of(const at::Tensor& index) {
  if (!index.defined()) return std::nullopt;
  return index.item<int64_t>();
}

MetricChoice choice_of(const MetricChoice& all, int64_t example) {
  const auto one = [&](const at::Tensor& values) {
    return values.defined() ? values.narrow(0, example, 1) : values;
  };
  return {one(all.target), one(all.distractor), one(all.position)};
}

void check_choice(const MetricChoice& choice, int64_t examples) {
  for (const at::Tensor& each : {choice.target, choice.distractor, choice.position}) {
    HEADKIT_CHECK(!each.defined() || (each.dim() == 1 && each.size(0) == examples), kOperation,
                  c10::str("targets, distractors and positions of shape [", examples, "]"),
                  "shape ", each.sizes());
  }
}

// Measures one input.
class Measurement {
 public:
  Measurement(GatedModel& model, const InputRuns& input, const EffectOptions& options,
              const AblationOutputs& ablation)
      : model_(model), input_(input), options_(options), ablation_(ablation) {
    for (const HeadId& head : input.present()) {
      HeadEffects effects;
      effects.head = head;
      effects.gate = gate(head);
      found_.heads.push_back(effects);
    }
    found_.value = input.value();
    found_.target = number_of(input.target().target);
    found_.distractor = number_of(input.target().distractor);
  }

  InputEffects take() { return std::move(found_); }

  void norms() {
    const WriteNorms norms = write_norms(model_, input_);
    for (HeadEffects& each : found_.heads) {
      each.write_norm = at_head(norms.write, each.head);
      each.relative_write_norm = at_head(norms.relative, each.head);
    }
  }

  void gradient() {
    const at::Tensor slopes = input_.slopes(input_.heads().unsqueeze(0)).slopes[0];
    for (HeadEffects& each : found_.heads) {
      each.gate_gradient = (each.on() ? each.gate : 1) * at_head(slopes, each.head);
    }
  }

  void direct() {
    const auto direct = direct_effects(model_, input_);
    if (!direct) {
      missing("direct", "the model does not show its residual stream, or has more than one");
      return;
    }
    found_.direct_residual = direct->residual;
    if (!direct->residual) {
      missing("direct_residual", "blocks without gates, or biases without gradients");
    }
    for (HeadEffects& each : found_.heads) {
      each.direct = at_head(direct->heads, each.head);
      each.direct_linearised = direct->linearised;
    }
  }

  void path() {
    std::vector<at::Tensor> points{at::zeros_like(input_.heads())};
    const auto nodes = gauss_legendre(static_cast<int>(options_.path_nodes));
    for (const QuadratureNode& node : nodes) points.push_back(node.place * input_.heads());
    const MetricSlopes found = input_.slopes(at::stack(points));
    at::Tensor mean = at::zeros_like(input_.heads());
    for (size_t i = 0; i < nodes.size(); ++i) {
      mean += nodes[i].weight * found.slopes[static_cast<int64_t>(i) + 1];
    }
    found_.value_without_heads = found.values[0].item<double>();
    double sum = 0;
    for (HeadEffects& each : found_.heads) {
      if (!each.on()) continue;
      each.integrated_gate_gradient = each.gate * at_head(mean, each.head);
      sum += *each.integrated_gate_gradient;
    }
    found_.path_gap = found_.value - *found_.value_without_heads - sum;
  }

  void toggles() {
    const at::Tensor rows = toggled();
    const at::Tensor values = input_.values(rows);  // [draws, n]
    for (size_t i = 0; i < found_.heads.size(); ++i) {
      HeadEffects& each = found_.heads[i];
      const at::Tensor by_draw = signed_effect(each, values.select(1, static_cast<int64_t>(i)));
      ToggleEffect toggle;
      toggle.ablation = each.on()                                 ? ablation_.kind
                        : input_.gates().dropped_output.defined() ? "compensation"
                                                                  : "zero";
      toggle.frozen = by_draw.mean().item<double>();
      if (each.on()) interval(by_draw, toggle.lower, toggle.upper);
      each.toggle = toggle;
    }
    if (options_.policy != nullptr) redecide(rows);
  }

  void pairs() {
    const std::vector<HeadEffects*> top = largest(options_.pair_heads);
    const auto count = static_cast<int64_t>(top.size());
    if (count < 2) {
      missing("synergy", "fewer than two heads are on");
      return;
    }
    std::vector<at::Tensor> rows;
    for (int64_t a = 0; a < count; ++a) rows.push_back(without({top[a]->head}));
    for (int64_t a = 0; a < count; ++a) {
      for (int64_t b = a + 1; b < count; ++b) {
        rows.push_back(without({top[a]->head, top[b]->head}));
      }
    }
    const at::Tensor values = input_.values(at::stack(rows));
    int64_t next = count;
    for (int64_t a = 0; a < count; ++a) {
      for (int64_t b = a + 1; b < count; ++b) {
        const at::Tensor by_draw =
            found_.value - values.select(1, a) - values.select(1, b) + values.select(1, next++);
        PairEffect pair{top[a]->head,   top[b]->head, "synergy", by_draw.mean().item<double>(),
                        ablation_.kind, {},           {}};
        interval(by_draw, pair.lower, pair.upper);
        found_.pairs.push_back(pair);
      }
    }
  }

  void game() {
    const std::vector<HeadEffects*> top = largest(options_.game_heads);
    const auto players = static_cast<int64_t>(top.size());
    if (players < 2) {
      missing("shapley", "fewer than two heads are on");
      return;
    }
    const SetWorth play = [&](const at::Tensor& sets) {
      at::Tensor rows = input_.heads().unsqueeze(0).repeat({sets.size(0), 1, 1});
      for (int64_t p = 0; p < players; ++p) {
        rows.select(1, top[p]->head.layer).select(1, top[p]->head.head).mul_(sets.select(1, p));
      }
      return input_.values(rows).mean(0);
    };
    const bool all_sets = players <= 20 && int64_t{1} << players <= options_.orders * players;
    if (!all_sets && options_.interaction != "sii") {
      const SampledShapley sample = sample_shapley(play, players, options_.orders, options_.seed);
      for (int64_t p = 0; p < players; ++p) {
        top[p]->shapley = sample.values[p].item<double>();
        top[p]->shapley_error = sample.errors[p].item<double>();
      }
      if (options_.interaction == "fsii") {
        const int64_t unknown = players * (players + 1) / 2;
        const auto fit = faithful_interactions(
            play, players, std::max(options_.orders * players, 2 * unknown), options_.seed);
        add_interactions(top, fit.pairs, "fsii");
      }
      return;
    }
    const at::Tensor worth = worth_of_all_sets(play, players);
    const at::Tensor values = shapley_values(worth);
    for (int64_t p = 0; p < players; ++p) top[p]->shapley = values[p].item<double>();
    if (options_.interaction == "sii") add_interactions(top, shapley_interactions(worth), "sii");
    if (options_.interaction != "fsii") return;
    const at::Tensor bit = at::pow(2, at::arange(players)).to(at::kDouble);
    const SetWorth known = [&](const at::Tensor& sets) {
      return worth.index_select(0, at::mv(sets, bit).to(at::kLong));
    };
    add_interactions(top, faithful_interactions(known, players, worth.size(0), 0).pairs, "fsii");
  }

  void missing(std::string quantity, std::string reason) {
    found_.not_computed.push_back({std::move(quantity), std::move(reason)});
  }

 private:
  static double at_head(const at::Tensor& values, const HeadId& head) {
    return values[head.layer][head.head].item<double>();
  }
  double gate(const HeadId& head) const { return at_head(input_.heads(), head); }

  at::Tensor without(const std::vector<HeadId>& heads) const {
    at::Tensor row = input_.heads().clone();
    for (const HeadId& head : heads) row[head.layer][head.head] = 0;
    return row;
  }

  // A row a head: off where it is on, on where it is off.
  at::Tensor toggled() const {
    std::vector<at::Tensor> rows;
    for (const HeadEffects& each : found_.heads) {
      rows.push_back(input_.heads().clone());
      rows.back()[each.head.layer][each.head.head] = each.on() ? 0.0 : 1.0;
    }
    return at::stack(rows);
  }

  at::Tensor signed_effect(const HeadEffects& head, const at::Tensor& changed) const {
    return head.on() ? found_.value - changed : changed - found_.value;
  }

  void interval(const at::Tensor& by_draw, std::optional<double>& lower,
                std::optional<double>& upper) const {
    if (by_draw.size(0) < 2) return;
    const BootstrapInterval found = bootstrap_mean(by_draw, BootstrapUnit::kExamples,
                                                   {.resamples = options_.bootstrap,
                                                    .confidence = options_.confidence,
                                                    .seed = options_.seed});
    lower = found.lower;
    upper = found.upper;
  }

  // Heads that are on, largest toggles first; ties to the lower place.
  std::vector<HeadEffects*> largest(int64_t count) {
    std::vector<HeadEffects*> on;
    for (HeadEffects& each : found_.heads) {
      if (each.on()) on.push_back(&each);
    }
    std::stable_sort(on.begin(), on.end(), [](const HeadEffects* a, const HeadEffects* b) {
      return std::abs(a->toggle->frozen) > std::abs(b->toggle->frozen);
    });
    if (static_cast<int64_t>(on.size()) > count) on.resize(static_cast<size_t>(count));
    return on;
  }

  void add_interactions(const std::vector<HeadEffects*>& top, const at::Tensor& values,
                        const char* index) {
    for (size_t a = 0; a < top.size(); ++a) {
      for (size_t b = a + 1; b < top.size(); ++b) {
        const double value =
            values[static_cast<int64_t>(a)][static_cast<int64_t>(b)].item<double>();
        found_.pairs.push_back({top[a]->head, top[b]->head, index, value, ablation_.kind, {}, {}});
      }
    }
  }

  void redecide(const at::Tensor& rows) {
    const int64_t last = options_.policy->decision_layers().back();
    found_.routing = last == 0 ? "by_construction" : "measured";
    for (size_t i = 0; i < found_.heads.size(); ++i) {
      found_.heads[i].toggle->redecided = found_.heads[i].toggle->frozen;
    }
    const auto count = static_cast<int64_t>(found_.heads.size());
    for (int64_t first = 0, end = 0; first < count; first = end) {
      const int64_t layer = found_.heads[static_cast<size_t>(first)].head.layer;
      while (end < count && found_.heads[static_cast<size_t>(end)].head.layer == layer &&
             end - first < input_.runs().copies_at_once()) {
        ++end;
      }
      if (layer < last) redecide_layer(rows.slice(0, first, end), layer, first);
    }
  }

  void redecide_layer(const at::Tensor& rows, int64_t layer, int64_t first) {
    const int64_t count = rows.size(0), draws = input_.draws();
    const PrefixRuns& runs = input_.runs();
    std::vector<at::Tensor> values;
    at::Tensor flips = at::zeros_like(rows);
    for (int64_t draw = 0; draw < draws; ++draw) {
      const auto state = policy_state(model_, *options_.policy);
      const RedecidedRun run = run_redecided(
          model_, *options_.policy, *state, model_.select(runs.before(layer), runs.rows(count)),
          runs.gates(rows, input_.stand_in(draw)), /*ask=*/false);
      values.push_back(input_.measure(run.output));
      const at::Tensor there = model_.heads().keep();
      const at::Tensor open = run.gates.heads.detach().to(at::kCPU).ne(0).logical_and(there);
      flips += open.ne(input_.heads().ne(0)).to(at::kDouble);
    }
    const at::Tensor by_draw = at::stack(values);
    for (int64_t i = 0; i < count; ++i) {
      HeadEffects& each = found_.heads[static_cast<size_t>(first + i)];
      each.toggle->redecided = signed_effect(each, by_draw.select(1, i)).mean().item<double>();
      const at::Tensor moved = flips[i].mul(2).gt(static_cast<double>(draws)).nonzero();
      for (int64_t f = 0; f < moved.size(0); ++f) {
        const HeadId head{moved[f][0].item<int64_t>(), moved[f][1].item<int64_t>()};
        if (head != each.head) each.flipped_gates.push_back({head, !input_.on(head)});
      }
    }
  }

  GatedModel& model_;
  const InputRuns& input_;
  const EffectOptions& options_;
  const AblationOutputs& ablation_;
  InputEffects found_;
};

InputEffects measure_input(GatedModel& model, const Batch& example, const GateSet& gates,
                           const OutputMetric& metric, const MetricChoice& choice,
                           const AblationOutputs& ablation, const EffectOptions& options) {
  const InputRuns input(kOperation, model, example, gates, metric, choice, ablation);
  Measurement measurement(model, input, options, ablation);
  measurement.norms();
  const bool at_maximum =
      metric.needs_dense() && at::equal(input.heads(), model.heads().keep().to(at::kDouble));
  if (at_maximum) {
    for (const char* const each : {"gate_gradient", "direct"}) {
      measurement.missing(each, metric.name() + " has its maximum at the dense model");
    }
  } else {
    measurement.gradient();
    measurement.direct();
  }
  if (options.path_nodes > 0) measurement.path();
  if (options.toggles) measurement.toggles();
  if (options.pair_heads > 0) measurement.pairs();
  if (options.game_heads > 0) measurement.game();
  const auto unasked = [&](bool unwanted, const char* quantity, const char* reason) {
    if (unwanted) measurement.missing(quantity, reason);
  };
  unasked(options.path_nodes == 0, "integrated_gate_gradient", "not asked for");
  unasked(!options.toggles, "toggle", "not asked for");
  unasked(options.toggles && input.draws() < 2, "toggle.interval", "one input and one draw");
  unasked(options.toggles && options.policy == nullptr, "toggle.redecided", "no policy decides");
  unasked(options.pair_heads == 0, "synergy", "not asked for");
  unasked(options.game_heads == 0, "shapley", "not asked for");
  return measurement.take();
}

}  // namespace

std::vector<InputEffects> measure_effects(GatedModel& model, const Batch& batch,
                                          const OutputMetric& metric,
                                          const EffectOptions& options) {
  check_options(options);
  const int64_t examples = batch_size(batch);
  check_choice(options.choice, examples);
  model.check(kOperation, examples, options.gates);
  const auto mode = model.evaluating();
  const c10::NoGradGuard no_grad;
  const AblationOutputs ablation = ablation_outputs(kOperation, model, options.ablation,
                                                    options.reference, options.draws, options.seed);
  std::vector<InputEffects> all;
  for (int64_t i = 0; i < examples; ++i) {
    const at::Tensor place = at::full({1}, i, at::kLong);
    const Batch example = select_examples(batch, place);
    GateSet gates = options.gates.select_samples(place);
    if (options.policy != nullptr) {
      const auto state = policy_state(model, *options.policy);
      gates = run_redecided(model, *options.policy, *state, model.embed(example), {}, /*ask=*/true)
                  .gates;
    }
    InputEffects found = measure_input(model, example, gates, metric, choice_of(options.choice, i),
                                       ablation, options);
    found.input = i;
    found.metric = metric.name();
    found.ablation = ablation.kind;
    found.reference = ablation.reference;
    all.push_back(std::move(found));
    if (options.progress) options.progress(i + 1, examples);
  }
  return all;
}

}  // namespace headkit
