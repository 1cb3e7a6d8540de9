#include "headkit/gates/escalation.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "gates/early_record.h"
#include "gates/policy_json.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"
#include "headkit/core/flops.h"

namespace headkit {
namespace {

constexpr auto kOperation = "escalation";

int64_t first_difference(const HeadMask& low, const HeadMask& high) {
  int64_t layer = 0;
  while (layer < low.layers() && low.layer_heads(layer) == high.layer_heads(layer)) ++layer;
  return layer;
}

GateSet rung(const HeadMask& mask, const at::Tensor& dropped_output, const at::Tensor& hidden) {
  GateSet gates;
  gates.heads = mask.keep().to(gate_options(hidden));
  gates.dropped_output = fitting_dropped_output(dropped_output, hidden);
  return gates;
}

void check_model(const GatedModel& model, const EscalationSettings& settings) {
  const HeadLayout layout = model.layout();
  HEADKIT_CHECK(
      settings.low.layers() == layout.layers && settings.low.heads() == layout.heads, kOperation,
      c10::str("a model of ", settings.low.layers(), " layers of ", settings.low.heads(), " heads"),
      layout.layers, " layers of ", layout.heads);
}

at::Tensor labels(const at::Tensor& logits) {
  return logits.size(1) == 1 ? (logits.select(1, 0) > 0).to(at::kLong) : logits.argmax(1);
}

void check_logits(const at::Tensor& logits) {
  HEADKIT_CHECK(logits.dim() == 2 && logits.size(1) >= 1, kOperation,
                "a model whose output is logits [batch, classes]", "output of shape ",
                logits.sizes());
}

// What the low set says of a batch, and where the high set goes on from.
struct FirstRun {
  HeadMask low, high;  // heads that are there
  int64_t shared = 0;  // layers in which they agree
  GateSet low_gates, high_gates;
  ModelState prefix;            // after the shared layers
  std::vector<int64_t> tokens;  // valid ones of each sample
  at::Tensor output, confidence;
};

FirstRun run_low(GatedModel& model, const Batch& batch, const EscalationSettings& settings) {
  check_model(model, settings);
  FirstRun first;
  first.low = settings.low.intersect(model.heads());
  first.high = settings.high.intersect(model.heads());
  first.shared = first_difference(first.low, first.high);
  const ModelState embedded = model.embed(batch);
  first.low_gates = rung(first.low, settings.dropped_output, embedded.hidden);
  first.high_gates = rung(first.high, settings.dropped_output, embedded.hidden);
  first.tokens = valid_tokens(embedded.hidden, embedded.attention_mask);
  first.prefix = model.run(embedded, 0, first.shared, first.low_gates);
  first.output =
      model.head(model.run(first.prefix, first.shared, first.low.layers(), first.low_gates));
  first.confidence = output_confidence(first.output);
  return first;
}

at::Tensor run_high(GatedModel& model, const ModelState& prefix, const FirstRun& first) {
  return model.head(model.run(prefix, first.shared, first.high.layers(), first.high_gates));
}

// The samples that run again. Written so that a NaN does.
at::Tensor unsure(const FirstRun& first, double threshold) {
  if (first.shared == first.low.layers()) return at::empty({0}, at::kLong);
  if (threshold >= 1) return at::arange(first.confidence.size(0), at::kLong);
  return (first.confidence >= threshold).logical_not().nonzero().flatten();
}

// `second`: outputs on the high set of the samples `again`; unused if there are none.
PolicyRun outcome(const HeadLayout& layout, const FirstRun& first, const at::Tensor& again,
                  const at::Tensor& second) {
  const int64_t samples = first.output.size(0), layers = first.low.layers();
  PolicyRun run;
  run.output = first.output;
  run.gates = first.low_gates;
  run.gates.heads = first.low_gates.heads.unsqueeze(0).repeat({samples, 1, 1});
  run.heads_run = at::full({samples}, first.low.count(), at::kLong);
  run.kv_heads_run = active_kv_heads(layout, first.low.keep()).expand({samples}).clone();
  run.layers_run = at::full({samples}, layers, at::kLong);
  const int64_t count = again.size(0);
  if (count == 0) return run;
  const at::Tensor index = again.to(run.output.device());
  run.output = run.output.index_copy(0, index, second);
  run.gates.heads.index_copy_(0, index, first.high_gates.heads.unsqueeze(0).repeat({count, 1, 1}));
  const at::Tensor extra = first.high.keep().slice(0, first.shared);
  run.heads_run.index_fill_(0, again, first.low.count() + extra.sum().item<int64_t>());
  run.kv_heads_run.index_add_(0, again, active_kv_heads(layout, extra).expand({count}));
  run.layers_run.index_fill_(0, again, 2 * layers - first.shared);
  return run;
}

}  // namespace

Escalation::Escalation(EscalationSettings settings) : settings_(std::move(settings)) {
  const HeadMask &low = settings_.low, &high = settings_.high;
  HEADKIT_CHECK(low.layers() > 0 && low.layers() == high.layers() && low.heads() == high.heads(),
                kOperation, "two masks of the same layers and heads", low.layers(), " x ",
                low.heads(), " and ", high.layers(), " x ", high.heads());
  if (!low.is_subset_of(high)) {
    std::string missing;
    for (const HeadId& id : high.removed()) {
      if (low.contains(id)) {
        missing += c10::str(missing.empty() ? "" : ", ", "layer ", id.layer, " head ", id.head);
      }
    }
    HEADKIT_CHECK(false, kOperation, "a high set that contains the low one", "it lacks ", missing);
  }
  HEADKIT_CHECK(settings_.threshold >= 0 && settings_.threshold <= 1, kOperation,
                "a threshold in [0, 1]", settings_.threshold);
  GateSet{{}, settings_.dropped_output}.check(kOperation, -1, low.layers(), low.heads());
}

GateSet Escalation::decide(const GateInput& input, State& state) const {
  throw std::invalid_argument(error_message(
      kOperation, "to drive the model itself: run_policy(model, batch, policy), hk.run in Python",
      "a question for gates; it decides after the output of a first run"));
}

int64_t Escalation::shared_layers() const {
  return first_difference(settings_.low, settings_.high);
}

at::Tensor output_confidence(const at::Tensor& logits) {
  check_logits(logits);
  const at::Tensor values = logits.detach().to(at::kCPU, at::kDouble);
  if (values.size(1) == 1) return (values.select(1, 0).abs() / 2).tanh();
  const at::Tensor best = std::get<0>(values.topk(2, 1));
  return ((best.select(1, 0) - best.select(1, 1)) / 2).tanh();
}

PolicyRun Escalation::run(GatedModel& model, const Batch& batch, const RunOptions& options) const {
  const FirstRun first = run_low(model, batch, settings_);
  const int64_t samples = first.output.size(0), layers = first.low.layers();
  const at::Tensor again = unsure(first, settings_.threshold);
  at::Tensor second;
  if (again.size(0) > 0) second = run_high(model, model.select(first.prefix, again), first);
  PolicyRun run = outcome(model.layout(), first, again, second);
  if (!options.record) return run;

  const HeadLayout layout = model.layout();
  const HeadMask &low = first.low, &high = first.high;
  const at::Tensor& confidence = first.confidence;
  const std::vector<int64_t>& tokens = first.tokens;
  GatePolicy::State state;
  state.next_input = options.first_input;
  state.layout = layout;
  state.weights_sha256 = options.weights_sha256;
  for (int64_t b = 0; b < samples; ++b) {
    DecisionRecord record = start_record(*this, state, layers, layout.heads, tokens[b]);
    state.next_input += 1;
    const bool escalated = run.layers_run[b].item<int64_t>() > layers;
    record.calibration = settings_.calibration;
    record.mode = escalated ? "escalated" : "dynamic";
    record.confidence = confidence[b].item<double>();
    record.threshold = settings_.threshold;
    record.risk_bound = settings_.risk;
    record.heads_run = run.heads_run[b].item<int64_t>();
    record.flops_run = attention_flops(layout, static_cast<double>(record.heads_run), tokens[b],
                                       run.kv_heads_run[b].item<double>()) +
                       run.layers_run[b].item<double>() * feed_forward_flops(layout, tokens[b]);
    record.flops_dense =
        encoder_flops(layout, static_cast<double>(layout.total_heads()), tokens[b]);
    for (int64_t l = 0; l < layers; ++l) {
      for (int64_t h = 0; h < layout.heads; ++h) {
        const HeadId id{l, h};
        HeadDecision decision;
        decision.layer = l;
        decision.head = h;
        decision.reason = "mask";
        if (low.contains(id)) {
          decision.state = "always_on";
        } else if (high.contains(id)) {
          decision.state = escalated ? "on" : "off";
          decision.reason = "confidence";
        } else {
          decision.state = "pruned";
          if (settings_.high.contains(id)) decision.reason = "removed";
        }
        decision.gate = low.contains(id) || (escalated && high.contains(id)) ? 1 : 0;
        record.heads.push_back(std::move(decision));
      }
    }
    run.records += record.to_json() + "\n";
  }
  return run;
}

std::vector<PolicyRun> Escalation::sweep(GatedModel& model, const Batch& batch,
                                         const std::vector<double>& lambdas) const {
  for (const double lambda : lambdas) check_lambda(kOperation, lambda);
  const FirstRun first = run_low(model, batch, settings_);
  at::Tensor all;
  std::vector<PolicyRun> runs;
  for (const double lambda : lambdas) {
    const at::Tensor again = unsure(first, lambda);
    if (again.size(0) > 0 && !all.defined()) all = run_high(model, first.prefix, first);
    runs.push_back(outcome(model.layout(), first, again,
                           all.defined() ? all.index_select(0, again.to(all.device())) : all));
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
  Json json = policy_json("escalation");
  json["low"] = parse_json(kOperation, settings_.low.to_json());
  json["high"] = parse_json(kOperation, settings_.high.to_json());
  json["threshold"] = settings_.threshold;
  json["risk"] = settings_.risk ? Json(*settings_.risk) : Json(nullptr);
  json["dropped_output"] = tensor_to_text(kOperation, settings_.dropped_output);
  json["calibration"] = settings_.calibration;
  return json.dump();
}

std::shared_ptr<Escalation> Escalation::from_json(const std::string& text) {
  const Json json = read_policy_json("escalation", text);
  EscalationSettings settings;
  settings.low = HeadMask::from_json(member(kOperation, json, "low").dump());
  settings.high = HeadMask::from_json(member(kOperation, json, "high").dump());
  settings.threshold = number_member(kOperation, json, "threshold");
  if (!member(kOperation, json, "risk").is_null()) {
    settings.risk = number_member(kOperation, json, "risk");
  }
  settings.dropped_output =
      tensor_from_text(kOperation, member(kOperation, json, "dropped_output"));
  settings.calibration = string_member(kOperation, json, "calibration");
  return std::make_shared<Escalation>(std::move(settings));
}

EscalationTrace trace_escalation(GatedModel& model, const DataSource& data,
                                 const EscalationSettings& settings, const Progress& progress) {
  const Escalation checked(settings);
  check_model(model, settings);
  EscalationTrace trace;
  std::vector<at::Tensor> confidence, changed;
  const int64_t total = data.size().value_or(-1);
  data.for_each([&](const Batch& batch) {
    const at::NoGradGuard no_grad;
    const FirstRun first = run_low(model, batch, settings);
    trace.low_heads = first.low.count();
    trace.extra_heads = first.high.keep().slice(0, first.shared).sum().item<int64_t>();
    const at::Tensor second = run_high(model, first.prefix, first);
    confidence.push_back(first.confidence);
    changed.push_back((labels(first.output) != labels(second)).to(at::kCPU, at::kDouble));
    if (progress) progress(static_cast<int64_t>(confidence.size()), total);
  });
  HEADKIT_CHECK(!confidence.empty(), kOperation, "calibration examples", "none");
  trace.confidence = at::cat(confidence);
  trace.changed = at::cat(changed);
  return trace;
}

double escalation_threshold(const EscalationTrace& trace, double mean_heads) {
  const int64_t samples = trace.confidence.size(0);
  const double low = static_cast<double>(trace.low_heads);
  const double extra = static_cast<double>(trace.extra_heads);
  HEADKIT_CHECK(samples > 0, kOperation, "a trace of calibration examples", "none");
  HEADKIT_CHECK(mean_heads >= low && mean_heads <= low + extra, kOperation,
                c10::str("mean_heads from ", low, " to ", low + extra), mean_heads);
  const at::Tensor sorted = std::get<0>(trace.confidence.sort());
  const double* const c = sorted.const_data_ptr<double>();
  int64_t again = extra > 0 ? static_cast<int64_t>(std::floor(
                                  (mean_heads - low) / extra * static_cast<double>(samples) + 1e-9))
                            : 0;
  if (again >= samples) return 1;
  while (again > 0 && !(c[again - 1] < c[again])) --again;
  if (again == 0) return 0;
  const double middle = c[again - 1] + (c[again] - c[again - 1]) / 2;
  return middle > c[again - 1] ? middle : c[again];
}

ConformalResult escalation_threshold_at_risk(const EscalationTrace& trace, double risk,
                                             int64_t steps) {
  HEADKIT_CHECK(steps >= 1, kOperation, "at least one step", steps);
  const at::Tensor grid = at::arange(steps + 1, at::kDouble) / static_cast<double>(steps);
  at::Tensor losses = trace.changed.unsqueeze(1) *
                      (trace.confidence.unsqueeze(1) >= grid.unsqueeze(0)).to(at::kDouble);
  losses.select(1, steps).zero_();  // threshold 1 runs everything on the high set
  return conformal_risk_control(losses, grid, {.risk = risk, .bound = 1.0});
}

}  // namespace headkit
