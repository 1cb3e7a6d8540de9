#include "headkit/explain/explain_decisions.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>

#include "core/json.h"
#include "core/sha256.h"
#include "headkit/core/error.h"
#include "headkit/explain/gate_decomposition.h"
#include "headkit/explain/head_explanation.h"
#include "headkit/gates/linear_logits.h"
#include "headkit/gates/run_policy.h"

namespace headkit {
namespace {

constexpr auto kOperation = "explain_decisions";
constexpr auto kInModel = "heads.why.flip.in_model";

at::Tensor valid_of(const ModelState& state, int64_t example) {
  return state.attention_mask.defined() ? state.attention_mask[example].to(at::kCPU, at::kBool)
                                        : at::ones({state.hidden.size(1)}, at::kBool);
}

// Visits each decision of a policy with the state that it was taken from.
template <typename Visit>
void for_each_decision(GatedModel& model, const Batch& batch, const GatePolicy& policy,
                       const GateSet& gates, Visit visit) {
  ModelState state = model.embed(batch);
  for (const LinearLogits& decision : linear_logits(policy)) {
    if (decision.layer > state.layer) {
      state = model.run(state, state.layer, decision.layer, gates);
    }
    visit(decision.in(model.heads()), state);
  }
}

// The `count` largest of `parts` and the sum of the others.
FeatureParts listed(std::vector<FeaturePart> parts, int64_t count) {
  const auto kept = std::min(parts.size(), static_cast<size_t>(count));
  std::partial_sort(parts.begin(), parts.begin() + static_cast<int64_t>(kept), parts.end(),
                    [](const FeaturePart& a, const FeaturePart& b) {
                      return std::abs(a.value) > std::abs(b.value);
                    });
  FeatureParts result;
  for (size_t i = kept; i < parts.size(); ++i) result.rest += parts[i].value;
  parts.resize(kept);
  result.parts = std::move(parts);
  return result;
}

FeatureParts parts_by_feature(const GateDecomposition& found, int64_t index, int64_t count) {
  const at::Tensor values = found.feature_parts()[index].contiguous();
  const int64_t width = found.gate().width();
  std::vector<FeaturePart> parts;
  for (int64_t k = 0; k < values.size(0); ++k) {
    const double value = values.const_data_ptr<double>()[k];
    if (k < width) {
      parts.push_back({.dimension = k, .value = value});
    } else {
      parts.push_back(
          {.scalar = found.gate().features[static_cast<size_t>(k - width)], .value = value});
    }
  }
  return listed(std::move(parts), count);
}

FeatureParts joint_parts(const GateDecomposition& found, int64_t index, int64_t count) {
  const at::Tensor values = found.joint(index).contiguous();
  const int64_t width = found.gate().width();
  std::vector<FeaturePart> parts;
  parts.reserve(static_cast<size_t>(values.numel()));
  for (int64_t i = 0; i < values.numel(); ++i) {
    parts.push_back({.token = found.tokens()[static_cast<size_t>(i / width)],
                     .dimension = i % width,
                     .value = values.const_data_ptr<double>()[i]});
  }
  const at::Tensor scalars = found.scalar_parts()[index].contiguous();
  for (int64_t k = 0; k < scalars.size(0); ++k) {
    parts.push_back({.scalar = found.gate().features[static_cast<size_t>(k)],
                     .value = scalars.const_data_ptr<double>()[k]});
  }
  return listed(std::move(parts), count);
}

HeadExplanation explain_head(const GateDecomposition& found, int64_t index, double spread,
                             const std::optional<double>& control,
                             const DecisionExplanation& options) {
  HeadExplanation explained;
  GateCut cut = found.cut(index);
  explained.reference = found.gate().reference_name;
  explained.distance = cut.distance;
  explained.rank = cut.rank;
  explained.rivals = std::move(cut.rivals);
  if (cut.margin && spread > 0) explained.margin_std = *cut.margin / spread;
  explained.features = parts_by_feature(found, index, options.listed_parts);
  explained.joint = joint_parts(found, index, options.listed_parts);
  explained.flip = found.flip(index);
  explained.control_share = control;
  return explained;
}

// One example without some tokens; empty if the batch has no tensor by token.
Batch without_tokens(const Batch& batch, int64_t example, int64_t tokens,
                     const std::vector<int64_t>& removed) {
  std::vector<int64_t> kept;
  for (int64_t t = 0; t < tokens; ++t) {
    if (std::find(removed.begin(), removed.end(), t) == removed.end()) kept.push_back(t);
  }
  const at::Tensor places = at::tensor(kept, at::kLong);
  Batch fewer = select_examples(batch, at::tensor({example}, at::kLong));
  bool any = false;
  for (auto& [name, tensor] : fewer) {
    if (tensor.dim() < 2 || tensor.size(1) != tokens) continue;
    tensor = tensor.index_select(1, places.to(tensor.device()));
    any = true;
  }
  return any ? fewer : Batch();
}

// Takes the tokens of the flips of the closest decisions out of the model's input.
void try_removals(GatedModel& model, const Batch& batch, const GatePolicy& policy, int64_t example,
                  int64_t tokens, int64_t limit, DecisionRecord& record) {
  std::vector<HeadDecision*> heads;
  for (HeadDecision& head : record.heads) {
    if (head.explained && head.explained->flip && !head.explained->flip->removed.empty() &&
        static_cast<int64_t>(head.explained->flip->removed.size()) < record.tokens) {
      heads.push_back(&head);
    }
  }
  std::stable_sort(heads.begin(), heads.end(), [](const HeadDecision* a, const HeadDecision* b) {
    return std::abs(a->margin.value_or(0)) < std::abs(b->margin.value_or(0));
  });
  const auto note = [&](const std::string& reason) {
    RecordDetails details = record.details.value_or_new();
    details.missing.push_back({kInModel, reason});
    record.details = std::move(details);
  };
  if (limit >= 0 && static_cast<size_t>(limit) < heads.size()) {
    heads.resize(static_cast<size_t>(limit));
    note(c10::str("asked for the ", limit, " closest decisions"));
  }
  std::map<std::vector<int64_t>, DecisionRecord> decided;
  for (HeadDecision* const head : heads) {
    std::vector<int64_t> removed = head->explained->flip->removed;
    std::sort(removed.begin(), removed.end());
    auto place = decided.find(removed);
    if (place == decided.end()) {
      const Batch fewer = without_tokens(batch, example, tokens, removed);
      if (fewer.empty()) return note("the input has no axis of tokens");
      const PolicyRun run = run_policy(model, fewer, policy, {.record = true});
      DecisionRecord record_of_fewer = run.records.at(0);
      if (record_of_fewer.tokens != record.tokens - static_cast<int64_t>(removed.size())) {
        return note("the model does not read its input token by token");
      }
      place = decided.emplace(std::move(removed), std::move(record_of_fewer)).first;
    }
    const HeadDecision& after =
        place->second.heads[static_cast<size_t>(head->layer * record.layout.heads + head->head)];
    HeadExplanation explained = *head->explained;
    explained.removal = TokenRemoval{after.state, after.logit, after.state != head->state};
    head->explained = std::move(explained);
  }
}

void tell_policy(const GatePolicy& policy, RecordDetails& details) {
  const std::string text = policy.to_json();
  const Json json = parse_json(kOperation, text);
  details.policy_sha256 = sha256_hex(text);
  if (const auto version = json.find("version"); version != json.end()) {
    details.policy_version = version->is_string() ? version->get<std::string>() : version->dump();
  }
  if (const auto calibration = json.find("calibration");
      calibration != json.end() && calibration->is_object()) {
    details.calibration_sha256 = sha256_hex(calibration->dump());
  }
  details.granularity = "sequence";
  const std::vector<LinearLogits> decisions = linear_logits(policy);
  if (decisions.empty()) return;
  const DecisionRule& rule = decisions.front().rule;
  details.policy_kind = rule.name();
  details.policy_parameters = {{"min_heads", static_cast<double>(rule.min_heads)},
                               {"threshold", rule.threshold}};
}

}  // namespace

std::string example_fingerprint(const Batch& batch, int64_t example, const at::Tensor& valid) {
  const int64_t tokens = valid.size(0);
  const at::Tensor places = valid.to(at::kCPU, at::kBool).nonzero().flatten();
  Sha256 sum;
  for (const auto& [name, tensor] : batch) {
    if (name == "labels" || name == "attention_mask") continue;
    HEADKIT_CHECK_INDEX(example >= 0 && example < tensor.size(0), kOperation,
                        c10::str("examples from 0 to ", tensor.size(0) - 1), example);
    at::Tensor own = tensor.detach()[example].cpu();
    if (own.dim() >= 1 && own.size(0) == tokens) own = own.index_select(0, places);
    own = own.contiguous();
    sum.update(c10::str(name.size(), ":", name, " ", own.dtype().name(), " ", own.sizes()));
    sum.update(own.const_data_ptr(), own.nbytes());
  }
  return sum.hex();
}

std::vector<DecisionRecord> explain_decisions(GatedModel& model, const Batch& batch,
                                              const GatePolicy& policy,
                                              const DecisionExplanation& options) {
  const HeadLayout layout = model.layout();
  const int64_t examples = batch_size(batch);
  HEADKIT_CHECK(options.listed_parts >= 1, kOperation, "listed_parts of at least 1",
                options.listed_parts);
  HEADKIT_CHECK(
      !options.logit_spread.defined() ||
          (options.logit_spread.scalar_type() == at::kDouble && options.logit_spread.is_cpu() &&
           options.logit_spread.sizes() == at::IntArrayRef({layout.layers, layout.heads})),
      kOperation,
      c10::str("a float64 logit_spread of shape [", layout.layers, ", ", layout.heads, "]"),
      options.logit_spread.defined()
          ? c10::str(options.logit_spread.scalar_type(), " ", options.logit_spread.sizes())
          : "none");
  HEADKIT_CHECK(options.units.empty() || static_cast<int64_t>(options.units.size()) == examples,
                kOperation, c10::str("units of ", examples, " examples"), options.units.size());
  const at::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const PolicyRun run =
      run_policy(model, batch, policy,
                 {.record = true,
                  .first_input = options.first_input,
                  .weights_sha256 = options.weights_sha256.empty() ? model.fingerprint()
                                                                   : options.weights_sha256});
  std::vector<DecisionRecord> records = run.records;
  const at::Tensor spread =
      options.logit_spread.defined() ? options.logit_spread.contiguous() : at::Tensor();

  for_each_decision(
      model, batch, policy, run.gates, [&](const LinearLogits& decision, const ModelState& state) {
        for (int64_t b = 0; b < examples; ++b) {
          const GateDecomposition found(decision, state.hidden[b], valid_of(state, b));
          const std::optional<double> control = found.control_share();
          DecisionRecord& record = records[static_cast<size_t>(b)];
          record.reference = decision.reference_name;
          for (size_t m = 0; m < decision.heads.size(); ++m) {
            const HeadId id = decision.heads[m];
            const int64_t place = id.layer * layout.heads + id.head;
            HeadDecision& head = record.heads[static_cast<size_t>(place)];
            HEADKIT_CHECK_RUNTIME(
                (head.gate != 0) == (found.open()[m] != 0), kOperation,
                c10::str("the decision of the run about layer ", id.layer, " head ", id.head),
                "another one when it was taken again");
            head.explained = explain_head(
                found, static_cast<int64_t>(m),
                spread.defined() ? spread.const_data_ptr<double>()[place] : 0, control, options);
          }
        }
      });

  const ModelState embedded = model.embed(batch);
  RecordDetails about = options.about;
  tell_policy(policy, about);
  for (int64_t b = 0; b < examples; ++b) {
    DecisionRecord& record = records[static_cast<size_t>(b)];
    RecordDetails details = about;
    details.input_sha256 = example_fingerprint(batch, b, valid_of(embedded, b));
    if (!options.units.empty()) details.units = options.units[static_cast<size_t>(b)];
    if (!spread.defined()) {
      details.missing.push_back(
          {"heads.margin_std", "no spread over calibration inputs was given"});
    }
    record.details = std::move(details);
    try_removals(model, batch, policy, b, embedded.hidden.size(1), options.removals, record);
  }
  return records;
}

at::Tensor logit_spread(GatedModel& model, const DataSource& data, const GatePolicy& policy) {
  const HeadLayout layout = model.layout();
  HEADKIT_CHECK(!linear_logits(policy).empty(), "logit_spread", "a policy with linear logits",
                policy.name());
  const at::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const std::vector<int64_t> shape{layout.layers, layout.heads};
  at::Tensor mean = at::zeros(shape, at::kDouble), square = at::zeros(shape, at::kDouble);
  double count = 0;
  data.for_each([&](const Batch& batch) {
    const GateSet gates = run_policy(model, batch, policy).gates;
    const int64_t examples = batch_size(batch);
    at::Tensor logits = at::zeros({examples, layout.layers, layout.heads}, at::kDouble);
    for_each_decision(model, batch, policy, gates,
                      [&](const LinearLogits& decision, const ModelState& state) {
                        const at::Tensor z = decision.logits(state.hidden, state.attention_mask);
                        for (size_t m = 0; m < decision.heads.size(); ++m) {
                          const HeadId id = decision.heads[m];
                          logits.select(1, id.layer)
                              .select(1, id.head)
                              .copy_(z.select(1, static_cast<int64_t>(m)));
                        }
                      });
    // Welford's update, so that a large mean does not eat the spread.
    for (int64_t b = 0; b < examples; ++b) {
      ++count;
      const at::Tensor gap = logits[b] - mean;
      mean += gap / count;
      square += gap * (logits[b] - mean);
    }
  });
  HEADKIT_CHECK(count >= 2, "logit_spread", "at least two examples", count);
  return (square / (count - 1)).sqrt();
}

}  // namespace headkit
