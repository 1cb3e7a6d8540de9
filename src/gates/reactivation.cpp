#include "headkit/gates/reactivation.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "gates/early_record.h"
#include "gates/ladder_run.h"
#include "gates/policy_json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "reactivation";

at::Tensor rows(const at::Tensor& low, const at::Tensor& high, int64_t layer, double missing) {
  if (low.is_same(high)) return low;
  const auto whole = [&](const at::Tensor& one, const at::Tensor& other) {
    return one.defined() ? one : at::full_like(other, missing);
  };
  const at::Tensor below = whole(low, high), above = whole(high, low);
  return at::cat({below.slice(0, 0, layer), above.slice(0, layer).to(below.options())});
}

Rung join_rungs(const Rung& low, const Rung& high, int64_t layer) {
  return {HeadMask(rows(low.heads.keep(), high.heads.keep(), layer, 1)),
          rows(low.blocks, high.blocks, layer, 1),
          rows(low.dropped_output, high.dropped_output, layer, 0),
          rows(low.dropped_blocks, high.dropped_blocks, layer, 0)};
}

void check_layer(const ReactivationSettings& settings) {
  HEADKIT_CHECK(settings.probe != nullptr, kOperation, "a probe", "none");
  const int64_t layer = settings.probe->layer(), layers = settings.ladder.layers();
  HEADKIT_CHECK(layer >= 1 && layer < layers, kOperation,
                c10::str("a probe before one of layers 1 to ", layers - 1), "layer ", layer);
}

// All rungs of a batch, reactivated, and what decides between them.
struct AllPaths {
  std::vector<at::Tensor> outputs;
  at::Tensor confidence;
  ModelState embedded;
};

AllPaths run_paths(GatedModel& model, const Batch& batch, const Reactivation& policy) {
  const ReactivationSettings& settings = policy.settings();
  settings.ladder.check_model(kOperation, model);
  const int64_t layer = settings.probe->layer(), layers = settings.ladder.layers();
  AllPaths all;
  all.embedded = model.embed(batch);
  const at::Tensor& hidden = all.embedded.hidden;
  const ModelState middle = model.run(all.embedded, 0, layer, policy.path(0).gates(hidden));
  all.confidence =
      probe_confidence(*settings.probe, settings.signal, middle.hidden, middle.attention_mask);
  for (int64_t r = 0; r < settings.ladder.size(); ++r) {
    all.outputs.push_back(
        model.head(model.run(middle, layer, layers, policy.path(r).gates(hidden))));
  }
  return all;
}

std::vector<Step> path_costs(const UnitsThere& there, const Reactivation& policy) {
  std::vector<Step> costs;
  for (int64_t r = 0; r <= policy.settings().ladder.size(); ++r) {
    costs.push_back(step_cost(there, policy.path(r), 0, there.layout().layers));
  }
  return costs;
}

}  // namespace

Reactivation::Reactivation(ReactivationSettings settings) : settings_(std::move(settings)) {
  const Ladder& ladder = settings_.ladder;
  HEADKIT_CHECK(ladder.size() > 0, kOperation, "a ladder of at least two rungs", "none");
  check_layer(settings_);
  check_signal(kOperation, *settings_.probe, settings_.signal);
  HEADKIT_CHECK(std::is_sorted(settings_.powers.begin(), settings_.powers.end()), kOperation,
                "ascending powers", at::ArrayRef<double>(settings_.powers));
  check_lambda(kOperation, settings_.lambda);
  thresholds_ = rung_thresholds(settings_.lambda, settings_.powers, ladder.size());
  for (const Rung& rung : ladder.rungs()) {
    paths_.push_back(join_rungs(ladder.rung(0), rung, settings_.probe->layer()));
  }
  paths_.push_back(ladder.rungs().back());
  // Where one path gates blocks, all do: then the gates of a batch tell of them whatever it holds.
  for (const Rung& gated : ladder.rungs()) {
    if (!gated.blocks.defined()) continue;
    for (Rung& path : paths_) {
      if (!path.blocks.defined()) path.blocks = at::ones_like(gated.blocks);
    }
  }
}

PolicyRun Reactivation::run(GatedModel& model, const Batch& batch,
                            const RunOptions& options) const {
  settings_.ladder.check_model(kOperation, model);
  return GatePolicy::run(model, batch, options);
}

std::vector<int64_t> Reactivation::decision_layers() const {
  if (settings_.lambda >= 1) return {0};
  return {0, settings_.probe->layer()};
}

const Rung& Reactivation::path(int64_t rung) const {
  HEADKIT_CHECK_INDEX(rung >= 0 && rung < static_cast<int64_t>(paths_.size()), kOperation,
                      c10::str("a path from 0 to ", paths_.size() - 1), rung);
  return paths_[static_cast<size_t>(rung)];
}

at::Tensor Reactivation::rungs_of(const at::Tensor& hidden,
                                  const at::Tensor& attention_mask) const {
  if (hidden.size(0) == 0) return at::zeros({0}, at::kLong);
  LadderTrace trace;
  trace.confidence = probe_confidence(*settings_.probe, settings_.signal, hidden, attention_mask)
                         .unsqueeze(1)
                         .expand({hidden.size(0), settings_.ladder.size() - 1});
  return trace.reached(thresholds_);
}

Reactivation::Choice Reactivation::choose(const GateInput& input) const {
  HEADKIT_CHECK(input.hidden.defined() && input.hidden.dim() == 3, kOperation,
                "hidden states of shape [batch, tokens, D]",
                input.hidden.defined() ? input.hidden.sizes() : at::IntArrayRef{});
  const int64_t samples = input.hidden.size(0);
  if (settings_.lambda >= 1) return {at::full({samples}, settings_.ladder.size(), at::kLong), {}};
  if (input.layer < settings_.probe->layer()) return {at::zeros({samples}, at::kLong), {}};
  Choice choice;
  choice.path = rungs_of(input.hidden, input.attention_mask);
  choice.confidence =
      probe_confidence(*settings_.probe, settings_.signal, input.hidden, input.attention_mask);
  return choice;
}

GateSet Reactivation::decide(const GateInput& input, State& state) const {
  const Choice choice = choose(input);
  const int64_t samples = choice.path.size(0);
  const bool shared = std::all_of(paths_.begin(), paths_.end(), [&](const Rung& path) {
    return same_compensation(path, paths_.front());
  });
  const bool alike =
      samples == 0 || choice.path.eq(choice.path[0].item<int64_t>()).all().item<bool>();
  HEADKIT_CHECK(shared || alike, kOperation,
                "to be asked in parts, because closed heads add different things on each rung",
                "a question for the gates of a whole batch");
  record(input, choice, state);
  if (shared) return gates_reached(paths_, choice.path, input.hidden);
  const Rung& path = paths_[static_cast<size_t>(choice.path[0].item<int64_t>())];
  return gates_reached({path}, at::zeros({samples}, at::kLong), input.hidden);
}

std::vector<GatePolicy::Part> Reactivation::decide_parts(const GateInput& input,
                                                         State& state) const {
  const Choice choice = choose(input);
  record(input, choice, state);
  std::vector<Part> parts;
  for (size_t r = 0; r < paths_.size(); ++r) {
    const at::Tensor samples = (choice.path == static_cast<int64_t>(r)).nonzero().flatten();
    if (samples.size(0) > 0) parts.push_back({samples, paths_[r].gates(input.hidden)});
  }
  if (parts.empty()) parts.push_back({choice.path, paths_.front().gates(input.hidden)});
  return parts;
}

void Reactivation::record(const GateInput& input, const Choice& choice, State& state) const {
  if (!state.record) return;
  const bool decides = settings_.lambda < 1;
  if (decides && input.layer < settings_.probe->layer()) return;
  const Ladder& ladder = settings_.ladder;
  const int64_t layers = ladder.layers(), heads = ladder.rung(0).heads.heads();
  const HeadMask there = state.present.layers() > 0 ? state.present : HeadMask::all(layers, heads);
  const std::vector<int64_t> tokens = valid_tokens(input.hidden, input.attention_mask);
  const Rung& low = decides ? paths_.front() : paths_.back();
  const Rung& high = decides ? paths_[paths_.size() - 2] : paths_.back();
  for (int64_t b = 0; b < choice.path.size(0); ++b) {
    DecisionRecord record = start_record(*this, state, layers, heads, tokens[b]);
    const int64_t path = choice.path[b].item<int64_t>();
    record.mode = decides ? "dynamic" : "static";
    record.calibration = settings_.calibration;
    record.threshold = thresholds_.front();
    record.risk_bound = settings_.risk;
    record.signal = settings_.signal;
    record.rung = std::min(path, ladder.size() - 1);
    record.rungs = ladder.size();
    if (decides) {
      record.confidence = choice.confidence[b].item<double>();
      record.decided_at = settings_.probe->layer();
    }
    record_rung(record, low, high, paths_[static_cast<size_t>(path)], there);
    finish_record(record, state);
  }
}

std::shared_ptr<GatePolicy> Reactivation::at(double lambda) const {
  check_lambda(kOperation, lambda);
  ReactivationSettings settings = settings_;
  settings.lambda = lambda;
  settings.risk.reset();
  return std::make_shared<Reactivation>(std::move(settings));
}

std::vector<PolicyRun> Reactivation::sweep(GatedModel& model, const Batch& batch,
                                           const std::vector<double>& lambdas) const {
  for (const double lambda : lambdas) check_lambda(kOperation, lambda);
  if (lambdas.empty()) return {};
  const UnitsThere there(model);
  const Ladder& ladder = settings_.ladder;
  AllPaths all = run_paths(model, batch, *this);
  const at::Tensor& hidden = all.embedded.hidden;
  const int64_t samples = hidden.size(0), whole = ladder.size();
  const bool dense = std::any_of(lambdas.begin(), lambdas.end(), [](double l) { return l >= 1; });
  all.outputs.push_back(
      dense ? model.head(model.run(all.embedded, 0, ladder.layers(), path(whole).gates(hidden)))
            : all.outputs.back());
  LadderTrace trace;
  trace.confidence = all.confidence.unsqueeze(1).expand({samples, whole - 1});
  const std::vector<Step> costs = path_costs(there, *this);
  std::vector<Rung> paths = paths_;
  for (Rung& path : paths) path.heads = path.heads.intersect(there.heads());
  std::vector<PolicyRun> runs;
  for (const double lambda : lambdas) {
    at::Tensor taken = at::full({samples}, whole, at::kLong);
    if (lambda < 1 && samples > 0) {
      taken = trace.reached(rung_thresholds(lambda, settings_.powers, whole));
    }
    PolicyRun run;
    run.output = all.outputs.front();
    for (int64_t r = 1; r <= whole; ++r) {
      const at::Tensor places = (taken == r).nonzero().flatten().to(run.output.device());
      run.output = run.output.index_copy(
          0, places, all.outputs[static_cast<size_t>(r)].index_select(0, places));
    }
    run.gates = gates_reached(paths, taken, hidden);
    fill_costs(run, costs, taken);
    runs.push_back(std::move(run));
  }
  return runs;
}

std::string Reactivation::to_json() const {
  Json json = policy_json(kOperation);
  json["ladder"] = parse_json(kOperation, settings_.ladder.to_json());
  json["probe"] = parse_json(kOperation, settings_.probe->to_json());
  json["signal"] = settings_.signal;
  json["lambda"] = settings_.lambda;
  json["powers"] = settings_.powers;
  json["risk"] = settings_.risk ? Json(*settings_.risk) : Json(nullptr);
  json["calibration"] = settings_.calibration;
  return json.dump();
}

std::shared_ptr<Reactivation> Reactivation::from_json(const std::string& text) {
  const Json json = read_policy_json(kOperation, text);
  ReactivationSettings settings;
  settings.ladder = Ladder::from_json(member(kOperation, json, "ladder").dump());
  settings.probe = std::make_shared<LinearProbe>(
      LinearProbe::from_json(member(kOperation, json, "probe").dump()));
  settings.signal = string_member(kOperation, json, "signal");
  settings.lambda = number_member(kOperation, json, "lambda");
  const Json& powers = member(kOperation, json, "powers");
  HEADKIT_CHECK(powers.is_array() && std::all_of(powers.begin(), powers.end(),
                                                 [](const Json& each) { return each.is_number(); }),
                kOperation, "a list of numbers as \"powers\"", powers.dump().substr(0, 80));
  settings.powers = powers.get<std::vector<double>>();
  if (!member(kOperation, json, "risk").is_null()) {
    settings.risk = number_member(kOperation, json, "risk");
  }
  settings.calibration = string_member(kOperation, json, "calibration");
  return std::make_shared<Reactivation>(std::move(settings));
}

LadderTrace trace_reactivation(GatedModel& model, const DataSource& data,
                               const ReactivationSettings& settings, const Progress& progress) {
  const Reactivation policy(settings);
  settings.ladder.check_model(kOperation, model);
  const c10::NoGradGuard no_grad;
  const UnitsThere there(model);
  std::vector<Step> costs = path_costs(there, policy);
  costs.pop_back();
  TraceBuilder trace(there, std::move(costs));
  const int64_t rungs = settings.ladder.size();
  int64_t done = 0;
  data.for_each([&](const Batch& batch) {
    const AllPaths all = run_paths(model, batch, policy);
    const ModelState& embedded = all.embedded;
    trace.add(batch, all.confidence.unsqueeze(1).expand({all.confidence.size(0), rungs - 1}),
              all.outputs,
              model.head(model.run(embedded, 0, settings.ladder.layers(),
                                   policy.path(rungs).gates(embedded.hidden))),
              valid_tokens(embedded.hidden, embedded.attention_mask));
    if (progress) progress(++done, data.size().value_or(-1));
  });
  return trace.finish(kOperation);
}

FittedReactivation fit_reactivation(GatedModel& model, const DataSource& train,
                                    const DataSource& calibration, const Ladder& ladder,
                                    const ReactivationFit& options) {
  ladder.check_model(kOperation, model);
  HEADKIT_CHECK(options.layer >= 1 && options.layer < ladder.layers(), kOperation,
                c10::str("a layer from 1 to ", ladder.layers() - 1), options.layer);
  HEADKIT_CHECK(options.signal == "probe_confidence" || options.signal == "predicted_loss",
                kOperation, "a signal of probe_confidence or predicted_loss", options.signal);
  const auto mode = model.evaluating();
  const std::shared_ptr<Objective> kl = kl_to_dense();
  LinearProbesFit fit;
  fit.layers = {options.layer};
  fit.task = options.signal == "probe_confidence";
  if (!fit.task) fit.objective = options.objective != nullptr ? options.objective : kl.get();
  fit.gates = ladder.rung(0).gates(model.attention(0).o);
  fit.fit = options.probe;
  fit.progress = options.progress;
  FittedProbe probe = fit_linear_probes(model, train, fit).front();

  ReactivationSettings settings;
  settings.ladder = ladder;
  settings.probe = std::make_shared<LinearProbe>(probe.probe);
  settings.signal = options.signal;
  LadderTrace trace = trace_reactivation(model, calibration, settings, options.progress);
  const auto mean_of = [](const at::Tensor& values, const at::Tensor& reached) {
    return values.gather(1, reached.unsqueeze(1)).mean().item<double>();
  };
  const int64_t rungs = ladder.size();
  double least = std::numeric_limits<double>::infinity();
  for (const double ratio : {1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0}) {
    if (rungs == 2 && ratio > 1) break;
    std::vector<double> powers;
    for (int64_t r = 0; r + 1 < rungs; ++r) {
      powers.push_back(std::pow(ratio, static_cast<double>(r)));
    }
    const double lambda = ladder_lambda(trace, options.budget, powers);
    const double loss = mean_of(trace.kl, trace.reached(rung_thresholds(lambda, powers, rungs)));
    if (loss < least) {
      least = loss;
      settings.lambda = lambda;
      settings.powers = ratio > 1 ? powers : std::vector<double>{};
    }
  }
  // At 1 the first layers run the top rung too, which costs more than the trace says.
  settings.lambda = std::min(settings.lambda, std::nextafter(1.0, 0.0));
  const at::Tensor reached =
      trace.reached(rung_thresholds(settings.lambda, settings.powers, rungs));
  settings.calibration =
      c10::str(options.budget.mean_heads ? "mean of heads " : "share of FLOPs ",
               options.budget.mean_heads ? *options.budget.mean_heads : *options.budget.flops_share,
               " over ", trace.confidence.size(0), " examples");
  FittedReactivation fitted{std::make_shared<Reactivation>(settings), std::move(probe), trace};
  fitted.mean_heads = trace.mean_heads(reached);
  fitted.flops_share = trace.flops_share(reached);
  fitted.changed = mean_of(trace.changed, reached);
  fitted.kl = mean_of(trace.kl, reached);
  return fitted;
}

}  // namespace headkit
