#include "headkit/gates/escalation.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <map>
#include <set>

#include "gates/early_record.h"
#include "gates/ladder_run.h"
#include "gates/policy_json.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"
#include "headkit/core/flops.h"

namespace headkit {
namespace {

constexpr auto kOperation = "escalation";
constexpr auto kOutputMargin = "output_margin";

// One batch on its way up: the states of the samples that are left, where the rungs above go on.
class Climb {
 public:
  struct Outcome {
    at::Tensor output, confidence;
  };

  Climb(GatedModel& model, const Batch& batch, const EscalationSettings& settings)
      : model_(model), settings_(settings), there_(model) {
    settings.ladder.check_model(kOperation, model);
    ladder_ = of_heads_there(settings.ladder, there_.heads());
    if (settings.probe) {
      HEADKIT_CHECK(settings.probe->layer() < ladder_.layers(), kOperation,
                    c10::str("a probe before a layer below ", ladder_.layers()),
                    settings.probe->layer());
    }
    states_[0] = model.embed(batch);
    samples_ = states_[0].hidden.size(0);
    tokens_ = valid_tokens(states_[0].hidden, states_[0].attention_mask);
    for (int64_t r = 0; r < ladder_.size(); ++r) {
      const int64_t first = r == 0 ? 0 : ladder_.shared_layers(r);
      Step step = step_cost(there_, ladder_.rung(r), first, ladder_.layers());
      if (r > 0) {
        const Step& below = totals_.back();
        step = {step.heads + below.heads, step.kv_heads + below.kv_heads,
                step.neurons + below.neurons, step.layers + below.layers};
      }
      totals_.push_back(step);
    }
  }

  int64_t samples() const { return samples_; }
  const Ladder& ladder() const { return ladder_; }
  const UnitsThere& there() const { return there_; }
  const std::vector<int64_t>& tokens() const { return tokens_; }
  const std::vector<Step>& totals() const { return totals_; }
  const at::Tensor& embedded() const { return states_.at(0).hidden; }

  // Runs the next rung for these of the samples that ran the last one.
  Outcome next(const at::Tensor& samples) {
    ++rung_;
    const int64_t layers = ladder_.layers();
    const int64_t first = rung_ == 0 ? 0 : ladder_.shared_layers(rung_);
    states_.erase(states_.upper_bound(first), states_.end());
    if (samples.size(0) < states_.at(first).hidden.size(0)) {
      for (auto& [layer, state] : states_) state = model_.select(state, samples);
      if (signal_.defined()) signal_ = signal_.index_select(0, samples);
    }
    std::set<int64_t> stops{layers};
    for (int64_t r = rung_ + 1; r < ladder_.size(); ++r) stops.insert(ladder_.shared_layers(r));
    if (settings_.probe) stops.insert(settings_.probe->layer());
    const GateSet gates = ladder_.rung(rung_).gates(states_.at(first).hidden);
    ModelState state = states_.at(first);
    look(state);
    for (const int64_t stop : stops) {
      if (stop <= state.layer) continue;
      state = model_.run(state, state.layer, stop, gates);
      look(state);
      states_[stop] = state;
    }
    Outcome outcome{model_.head(state), signal_};
    if (settings_.signal == kOutputMargin) outcome.confidence = output_confidence(outcome.output);
    return outcome;
  }

 private:
  void look(const ModelState& state) {
    if (!settings_.probe || state.layer != settings_.probe->layer()) return;
    signal_ =
        probe_confidence(*settings_.probe, settings_.signal, state.hidden, state.attention_mask);
  }

  GatedModel& model_;
  const EscalationSettings& settings_;
  UnitsThere there_;
  Ladder ladder_;
  std::map<int64_t, ModelState> states_;  // by layer
  std::vector<int64_t> tokens_;
  std::vector<Step> totals_;
  at::Tensor signal_;
  int64_t rung_ = -1, samples_ = 0;
};

// Places of the samples that climb. Written so that a NaN does.
at::Tensor unsure(const at::Tensor& confidence, double threshold) {
  if (threshold >= 1) return at::arange(confidence.size(0), at::kLong);
  return (confidence >= threshold).logical_not().nonzero().flatten();
}

PolicyRun outcome(const Climb& climb, const at::Tensor& output, const at::Tensor& reached) {
  PolicyRun run;
  run.output = output;
  run.gates = gates_reached(climb.ladder().rungs(), reached, climb.embedded());
  fill_costs(run, climb.totals(), reached);
  return run;
}

// Outputs of all rungs, and confidence of all but the top, [B, R - 1].
std::pair<std::vector<at::Tensor>, at::Tensor> run_all(Climb& climb) {
  const at::Tensor all = at::arange(climb.samples(), at::kLong);
  std::vector<at::Tensor> outputs, confidence;
  for (int64_t r = 0; r < climb.ladder().size(); ++r) {
    const Climb::Outcome rung = climb.next(all);
    outputs.push_back(rung.output);
    if (r + 1 < climb.ladder().size()) confidence.push_back(rung.confidence);
  }
  return {outputs, at::stack(confidence, 1)};
}

}  // namespace

Escalation::Escalation(EscalationSettings settings) : settings_(std::move(settings)) {
  HEADKIT_CHECK(settings_.ladder.size() > 0, kOperation, "a ladder of at least two rungs", "none");
  HEADKIT_CHECK(settings_.threshold >= 0 && settings_.threshold <= 1, kOperation,
                "a threshold in [0, 1]", settings_.threshold);
  if (settings_.signal == kOutputMargin) {
    HEADKIT_CHECK(!settings_.probe, kOperation, "no probe beside the signal output_margin",
                  "a probe");
    return;
  }
  HEADKIT_CHECK(settings_.probe != nullptr, kOperation,
                "a signal of output_margin, or a probe beside it", settings_.signal);
  check_signal(kOperation, *settings_.probe, settings_.signal);
}

GateSet Escalation::decide(const GateInput& input, State& state) const {
  throw std::invalid_argument(error_message(
      kOperation, "to drive the model itself: run_policy(model, batch, policy), hk.run in Python",
      "a question for gates; it decides after the output of a first run"));
}

at::Tensor output_confidence(const at::Tensor& logits) {
  check_logits(kOperation, logits);
  const at::Tensor values = logits.detach().to(at::kCPU, at::kDouble);
  if (values.size(1) == 1) return (values.select(1, 0).abs() / 2).tanh();
  const at::Tensor best = std::get<0>(values.topk(2, 1));
  return ((best.select(1, 0) - best.select(1, 1)) / 2).tanh();
}

Ladder ladder_of_masks(const std::vector<HeadMask>& masks, const at::Tensor& dropped_output) {
  std::vector<Rung> rungs;
  for (const HeadMask& mask : masks) rungs.push_back({mask, {}, dropped_output, {}});
  return Ladder(std::move(rungs));
}

PolicyRun Escalation::run(GatedModel& model, const Batch& batch, const RunOptions& options) const {
  Climb climb(model, batch, settings_);
  const int64_t samples = climb.samples(), top = settings_.ladder.size() - 1;
  at::Tensor current = at::arange(samples, at::kLong);  // samples on the rung that ran last
  Climb::Outcome rung = climb.next(current);
  at::Tensor output = rung.output, confidence = rung.confidence.clone();
  at::Tensor reached = at::zeros({samples}, at::kLong);
  for (int64_t r = 0; r < top; ++r) {
    confidence.index_copy_(0, current, rung.confidence);
    const at::Tensor places = unsure(rung.confidence, settings_.threshold);
    if (places.size(0) == 0) break;
    current = current.index_select(0, places);
    rung = climb.next(places);
    output = output.index_copy(0, current.to(output.device()), rung.output);
    reached.index_fill_(0, current, r + 1);
  }
  PolicyRun run = outcome(climb, output, reached);
  if (!options.record) return run;

  const UnitsThere& there = climb.there();
  const HeadLayout& layout = there.layout();
  const std::vector<int64_t>& tokens = climb.tokens();
  const Ladder& ladder = settings_.ladder;
  GatePolicy::State state;
  state.next_input = options.first_input;
  state.layout = layout;
  state.weights_sha256 = options.weights_sha256;
  for (int64_t b = 0; b < samples; ++b) {
    DecisionRecord record = start_record(*this, state, layout.layers, layout.heads, tokens[b]);
    state.next_input += 1;
    const int64_t at = reached[b].item<int64_t>();
    record.calibration = settings_.calibration;
    record.mode = at > 0 ? "escalated" : "dynamic";
    record.confidence = confidence[b].item<double>();
    record.threshold = settings_.threshold;
    record.signal = settings_.signal;
    record.rung = at;
    record.rungs = ladder.size();
    if (settings_.probe) record.decided_at = settings_.probe->layer();
    record.risk_bound = settings_.risk;
    const Step& total = climb.totals()[static_cast<size_t>(at)];
    record.heads_run = total.heads;
    record.flops_run =
        unit_flops(layout,
                   {static_cast<double>(total.heads), static_cast<double>(total.kv_heads),
                    static_cast<double>(total.neurons)},
                   static_cast<double>(tokens[b]));
    record.flops_dense =
        encoder_flops(layout, static_cast<double>(layout.total_heads()), tokens[b]);
    record_rung(record, ladder.rung(0), ladder.rung(top), ladder.rung(at), there.heads());
    run.records.push_back(std::move(record));
  }
  return run;
}

std::vector<PolicyRun> Escalation::sweep(GatedModel& model, const Batch& batch,
                                         const std::vector<double>& lambdas) const {
  for (const double lambda : lambdas) check_lambda(kOperation, lambda);
  if (lambdas.empty()) return {};
  Climb climb(model, batch, settings_);
  const auto [outputs, confidence] = run_all(climb);
  LadderTrace trace;
  trace.confidence = confidence;
  std::vector<PolicyRun> runs;
  for (const double lambda : lambdas) {
    const at::Tensor reached =
        climb.samples() > 0 ? trace.reached({lambda}) : at::zeros({0}, at::kLong);
    at::Tensor output = outputs.front();
    for (int64_t r = 1; r < settings_.ladder.size(); ++r) {
      const at::Tensor there = (reached == r).nonzero().flatten().to(output.device());
      output = output.index_copy(0, there, outputs[static_cast<size_t>(r)].index_select(0, there));
    }
    runs.push_back(outcome(climb, output, reached));
  }
  return runs;
}

std::shared_ptr<GatePolicy> Escalation::at(double lambda) const {
  check_lambda(kOperation, lambda);
  EscalationSettings settings = settings_;
  settings.threshold = lambda;
  settings.risk.reset();
  return std::make_shared<Escalation>(std::move(settings));
}

std::string Escalation::to_json() const {
  Json json = policy_json(kOperation, 2);
  json["ladder"] = parse_json(kOperation, settings_.ladder.to_json());
  json["threshold"] = settings_.threshold;
  json["signal"] = settings_.signal;
  json["probe"] =
      settings_.probe ? parse_json(kOperation, settings_.probe->to_json()) : Json(nullptr);
  json["risk"] = settings_.risk ? Json(*settings_.risk) : Json(nullptr);
  json["calibration"] = settings_.calibration;
  return json.dump();
}

std::shared_ptr<Escalation> Escalation::from_json(const std::string& text) {
  const Json json = read_policy_json(kOperation, text, 2);
  EscalationSettings settings;
  if (integer_member(kOperation, json, "version") == 1) {
    settings.ladder =
        ladder_of_masks({HeadMask::from_json(member(kOperation, json, "low").dump()),
                         HeadMask::from_json(member(kOperation, json, "high").dump())},
                        tensor_from_text(kOperation, member(kOperation, json, "dropped_output")));
  } else {
    settings.ladder = Ladder::from_json(member(kOperation, json, "ladder").dump());
    settings.signal = string_member(kOperation, json, "signal");
    if (const Json& probe = member(kOperation, json, "probe"); !probe.is_null()) {
      settings.probe = std::make_shared<LinearProbe>(LinearProbe::from_json(probe.dump()));
    }
  }
  settings.threshold = number_member(kOperation, json, "threshold");
  if (!member(kOperation, json, "risk").is_null()) {
    settings.risk = number_member(kOperation, json, "risk");
  }
  settings.calibration = string_member(kOperation, json, "calibration");
  return std::make_shared<Escalation>(std::move(settings));
}

LadderTrace trace_escalation(GatedModel& model, const DataSource& data,
                             const EscalationSettings& settings, const Progress& progress) {
  const Escalation checked(settings);
  settings.ladder.check_model(kOperation, model);
  const at::NoGradGuard no_grad;
  const UnitsThere there(model);
  std::optional<TraceBuilder> trace;
  int64_t done = 0;
  data.for_each([&](const Batch& batch) {
    Climb climb(model, batch, settings);
    const auto [outputs, confidence] = run_all(climb);
    if (!trace) trace.emplace(there, climb.totals());
    trace->add(batch, confidence, outputs, outputs.back(), climb.tokens());
    if (progress) progress(++done, data.size().value_or(-1));
  });
  HEADKIT_CHECK(trace.has_value(), kOperation, "calibration examples", "none");
  return trace->finish(kOperation);
}

}  // namespace headkit
