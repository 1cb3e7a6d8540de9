#include "headkit/explain/simulatability.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <span>

#include "core/json_members.h"
#include "headkit/core/error.h"
#include "headkit/explain/gate_decomposition.h"
#include "headkit/scorers/agreement.h"

namespace headkit {
namespace {

constexpr auto kOperation = "simulatability";
constexpr auto kCheck = "check_randomisation";
constexpr int64_t kFewestTokens = 3;

double shown_margin(const HeadDecision& head, int64_t parts) {
  std::vector<LogitPart> sorted = head.parts;
  std::stable_sort(sorted.begin(), sorted.end(), [](const LogitPart& a, const LogitPart& b) {
    return std::abs(a.value) > std::abs(b.value);
  });
  double shown = *head.base;
  for (size_t i = 0; i < std::min(sorted.size(), static_cast<size_t>(parts)); ++i) {
    shown += sorted[i].value;
  }
  return shown - *head.threshold;
}

double share_of_majority(const std::vector<char>& open) {
  const auto on = static_cast<double>(std::count(open.begin(), open.end(), 1));
  const auto count = static_cast<double>(open.size());
  return std::max(on, count - on) / count;
}

std::span<const double> row_of(const at::Tensor& parts, int64_t row) {
  return {parts.const_data_ptr<double>() + row * parts.size(1), static_cast<size_t>(parts.size(1))};
}

}  // namespace

std::optional<double> auroc(const std::vector<double>& scores, const std::vector<char>& positive) {
  HEADKIT_CHECK(scores.size() == positive.size(), kOperation, "a class for each score",
                scores.size(), " scores and ", positive.size(), " classes");
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), size_t{0});
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  double ranks = 0, positives = 0;
  for (size_t first = 0, last = 0; first < order.size(); first = last) {
    while (last < order.size() && scores[order[last]] == scores[order[first]]) ++last;
    const double rank = 0.5 * static_cast<double>(first + last + 1);
    for (size_t i = first; i < last; ++i) {
      if (positive[order[i]] == 0) continue;
      ranks += rank;
      ++positives;
    }
  }
  const double negatives = static_cast<double>(scores.size()) - positives;
  if (positives == 0 || negatives == 0) return std::nullopt;
  return (ranks - positives * (positives + 1) / 2) / (positives * negatives);
}

Simulatability gate_simulatability(const std::vector<DecisionRecord>& records, int64_t shown_parts,
                                   const BootstrapOptions& options) {
  HEADKIT_CHECK(records.size() >= 2, kOperation, "records of at least two inputs", records.size());
  HEADKIT_CHECK(shown_parts >= 0, kOperation, "shown_parts of at least 0", shown_parts);
  const size_t heads = records.front().heads.size();
  std::vector<std::vector<double>> margins(heads);
  std::vector<std::vector<char>> open(heads);
  std::vector<double> right;
  for (const DecisionRecord& record : records) {
    HEADKIT_CHECK(record.heads.size() == heads, kOperation, "records of one model",
                  record.heads.size(), " and ", heads, " heads");
    double correct = 0, count = 0;
    for (size_t h = 0; h < heads; ++h) {
      const HeadDecision& head = record.heads[h];
      if ((head.state != "on" && head.state != "off") || !head.base || !head.threshold) continue;
      margins[h].push_back(shown_margin(head, shown_parts));
      open[h].push_back(head.state == "on");
      correct += (margins[h].back() >= 0) == (head.state == "on");
      ++count;
    }
    HEADKIT_CHECK(count > 0, kOperation, "records with logits that are decided by the input",
                  "none in input ", record.input);
    right.push_back(correct / count);
  }
  Simulatability result;
  result.inputs = static_cast<int64_t>(records.size());
  result.shown_parts = shown_parts;
  const BootstrapInterval interval =
      bootstrap_mean(at::tensor(right, at::kDouble), BootstrapUnit::kExamples, options);
  result.accuracy = interval.mean;
  result.lower = interval.lower;
  result.upper = interval.upper;
  std::vector<double> all_margins, by_head;
  std::vector<char> all_open;
  double majority = 0;
  for (size_t h = 0; h < heads; ++h) {
    if (open[h].empty()) continue;
    majority += share_of_majority(open[h]) * static_cast<double>(open[h].size());
    all_margins.insert(all_margins.end(), margins[h].begin(), margins[h].end());
    all_open.insert(all_open.end(), open[h].begin(), open[h].end());
    if (const std::optional<double> area = auroc(margins[h], open[h])) by_head.push_back(*area);
  }
  result.decisions = static_cast<int64_t>(all_open.size());
  result.majority = share_of_majority(all_open);
  result.majority_by_head = majority / static_cast<double>(all_open.size());
  result.auroc = auroc(all_margins, all_open);
  if (!by_head.empty()) {
    result.auroc_by_head =
        std::accumulate(by_head.begin(), by_head.end(), 0.0) / static_cast<double>(by_head.size());
  }
  return result;
}

std::string Simulatability::to_json() const {
  return Json{{"inputs", inputs},
              {"shown_parts", shown_parts},
              {"decisions", decisions},
              {"accuracy", accuracy},
              {"interval", {lower, upper}},
              {"majority", majority},
              {"majority_by_head", majority_by_head},
              {"auroc", nullable(auroc)},
              {"auroc_by_head", nullable(auroc_by_head)}}
      .dump();
}

std::vector<LinearLogits> reinitialised(std::vector<LinearLogits> gates, uint64_t seed) {
  at::Generator generator = at::globalContext().defaultGenerator(at::kCPU).clone();
  // Not the seed itself: whoever drew the gate with it would get the same gate again.
  generator.set_current_seed(seed ^ 0x9e3779b97f4a7c15);
  for (LinearLogits& gate : gates) {
    const at::Tensor spread = gate.weight.square().mean(1, true).sqrt();
    gate.weight = at::randn(gate.weight.sizes(), generator, gate.weight.options()) * spread;
  }
  return gates;
}

RandomisationCheck check_randomisation(GatedModel& model, const DataSource& data,
                                       const std::vector<LinearLogits>& gates,
                                       const std::vector<LinearLogits>& others, double limit,
                                       const BootstrapOptions& options) {
  bool same = !gates.empty() && gates.size() == others.size();
  for (size_t i = 0; same && i < gates.size(); ++i) {
    same = gates[i].layer == others[i].layer && gates[i].heads == others[i].heads;
  }
  HEADKIT_CHECK(same, kCheck, "decisions about the same heads at the same layers", gates.size(),
                " and ", others.size(), " decisions, or other heads");
  const at::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  RandomisationCheck result;
  result.limit = limit;
  for (const LinearLogits& gate : gates) result.heads += static_cast<int64_t>(gate.heads.size());
  std::vector<double> by_input;
  data.for_each([&](const Batch& batch) {
    ModelState state = model.embed(batch);
    const int64_t examples = state.hidden.size(0);
    std::vector<double> sum(static_cast<size_t>(examples), 0), count(sum);
    for (size_t i = 0; i < gates.size(); ++i) {
      if (gates[i].layer > state.layer) state = model.run(state, state.layer, gates[i].layer, {});
      for (int64_t b = 0; b < examples; ++b) {
        const at::Tensor valid =
            state.attention_mask.defined() ? state.attention_mask[b] : at::Tensor();
        const GateDecomposition one(gates[i], state.hidden[b], valid);
        const GateDecomposition other(others[i], state.hidden[b], valid);
        if (static_cast<int64_t>(one.tokens().size()) < kFewestTokens) continue;
        for (int64_t m = 0; m < one.token_parts().size(0); ++m) {
          const double alike =
              spearman(row_of(one.token_parts(), m), row_of(other.token_parts(), m));
          if (std::isnan(alike)) continue;
          sum[static_cast<size_t>(b)] += alike;
          ++count[static_cast<size_t>(b)];
        }
      }
    }
    for (size_t b = 0; b < sum.size(); ++b) {
      if (count[b] > 0) by_input.push_back(sum[b] / count[b]);
    }
  });
  HEADKIT_CHECK(by_input.size() >= 2, kCheck, "two inputs of at least three tokens",
                by_input.size());
  const BootstrapInterval interval =
      bootstrap_mean(at::tensor(by_input, at::kDouble), BootstrapUnit::kExamples, options);
  result.inputs = static_cast<int64_t>(by_input.size());
  result.similarity = interval.mean;
  result.lower = interval.lower;
  result.upper = interval.upper;
  result.changes = interval.upper < limit;
  return result;
}

std::string RandomisationCheck::to_json() const {
  return Json{{"inputs", inputs},           {"heads", heads}, {"similarity", similarity},
              {"interval", {lower, upper}}, {"limit", limit}, {"changes", changes}}
      .dump();
}

}  // namespace headkit
