#include "headkit/explain/corpus_view.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <set>
#include <span>

#include "core/json_members.h"
#include "headkit/core/error.h"
#include "headkit/scorers/agreement.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr auto kOperation = "corpus_view";

// Fisher's z with the variance of Bonett and Wright (2000) for Spearman's coefficient.
CorpusCorrelation correlate(const std::string& property, std::span<const double> a,
                            std::span<const double> b, double z) {
  CorpusCorrelation result{property, {}, {}, {}};
  const double r = spearman(a, b);
  if (std::isnan(r)) return result;
  result.spearman = r;
  const auto n = static_cast<double>(a.size());
  if (n <= 3) return result;
  if (std::abs(r) >= 1) {
    result.lower = result.upper = r;
    return result;
  }
  const double width = z * std::sqrt((1 + r * r / 2) / (n - 3));
  result.lower = std::tanh(std::atanh(r) - width);
  result.upper = std::tanh(std::atanh(r) + width);
  return result;
}

std::vector<double> numbers(const std::vector<bool>& open) { return {open.begin(), open.end()}; }

Json correlations_json(const std::vector<CorpusCorrelation>& all) {
  Json json = Json::object();
  for (const CorpusCorrelation& each : all) {
    json[each.property] = {{"spearman", nullable(each.spearman)},
                           {"interval", nullable_interval(each.lower, each.upper)}};
  }
  return json;
}

double mean_of(std::span<const double> values) {
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

}  // namespace

CorpusView::CorpusView(std::vector<std::string> properties) : properties_(std::move(properties)) {
  properties_.insert(properties_.begin(), "length");
  const std::set<std::string> once(properties_.begin(), properties_.end());
  HEADKIT_CHECK(once.size() == properties_.size() && once.count("") == 0, kOperation,
                "properties with names that differ, none of them length", c10::str(properties_));
  values_.resize(properties_.size());
}

void CorpusView::add(const DecisionRecord& record, const std::vector<double>& values,
                     const std::string& label) {
  HEADKIT_CHECK(values.size() + 1 == properties_.size(), kOperation,
                c10::str("values of ", properties_.size() - 1, " properties"), values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    HEADKIT_CHECK(std::isfinite(values[i]), kOperation, "a finite " + properties_[i + 1],
                  values[i]);
  }
  const size_t heads = record.heads.size();
  if (selected_.empty()) {
    layout_ = record.layout;
    policy_ = record.policy;
    open_.resize(heads);
    for (const HeadDecision& head : record.heads) state_.push_back(head.state);
    margins_.assign(heads, 0);
    squares_.assign(heads, 0);
    margin_counts_.assign(heads, 0);
  }
  HEADKIT_CHECK(heads == open_.size() && record.layout == layout_, kOperation,
                c10::str("records of a model of ", layout_.layers, " layers of ", layout_.heads),
                record.layout.layers, " layers of ", record.layout.heads);
  for (size_t h = 0; h < heads; ++h) {
    const HeadDecision& head = record.heads[h];
    open_[h].push_back(head.gate != 0);
    if (head.state != state_[h]) state_[h] = "mixed";
    if (!head.margin) continue;
    const double gap = *head.margin - margins_[h];
    margins_[h] += gap / static_cast<double>(++margin_counts_[h]);
    squares_[h] += gap * (*head.margin - margins_[h]);
  }
  values_[0].push_back(static_cast<double>(record.tokens));
  for (size_t i = 0; i < values.size(); ++i) values_[i + 1].push_back(values[i]);
  selected_.push_back(static_cast<double>(record.active()));
  labels_.push_back(label);
}

CorpusReport CorpusView::report(double confidence) const {
  HEADKIT_CHECK(selected_.size() >= 2, kOperation, "at least two inputs", selected_.size());
  HEADKIT_CHECK(confidence > 0 && confidence < 1, kOperation, "a confidence level in (0, 1)",
                confidence);
  const double z = normal_quantile(0.5 + 0.5 * confidence);
  const auto n = static_cast<double>(selected_.size());
  CorpusReport result;
  result.inputs = static_cast<int64_t>(selected_.size());
  result.layout = layout_;
  result.policy = policy_;
  result.confidence = confidence;
  for (const double count : selected_) ++result.selected[static_cast<int64_t>(count)];
  result.mean_selected = mean_of(selected_);
  double square = 0;
  for (const double count : selected_)
    square += (count - result.mean_selected) * (count - result.mean_selected);
  result.selected_spread = std::sqrt(square / (n - 1));
  for (size_t p = 0; p < properties_.size(); ++p) {
    result.selected_correlations.push_back(correlate(properties_[p], selected_, values_[p], z));
  }
  for (size_t i = 0; i < labels_.size(); ++i) {
    if (labels_[i].empty()) continue;
    ++result.classes[labels_[i]];
    result.selected_by_class[labels_[i]] += selected_[i];
  }
  for (auto& [label, sum] : result.selected_by_class) {
    sum /= static_cast<double>(result.classes.at(label));
  }

  std::vector<double> first, second;
  double spread = 0;
  for (size_t h = 0; h < open_.size(); ++h) {
    const std::vector<double> open = numbers(open_[h]);
    CorpusHead head;
    head.head = {static_cast<int64_t>(h) / layout_.heads, static_cast<int64_t>(h) % layout_.heads};
    head.frequency = mean_of(open);
    head.state = state_[h];
    const double centre = (head.frequency + z * z / (2 * n)) / (1 + z * z / n);
    const double width = z / (1 + z * z / n) *
                         std::sqrt(head.frequency * (1 - head.frequency) / n + z * z / (4 * n * n));
    head.lower = std::max(0.0, centre - width);
    head.upper = std::min(1.0, centre + width);
    if (margin_counts_[h] > 0) head.mean_margin = margins_[h];
    if (margin_counts_[h] > 1) {
      head.margin_spread = std::sqrt(squares_[h] / static_cast<double>(margin_counts_[h] - 1));
    }
    for (size_t p = 0; p < properties_.size(); ++p) {
      head.correlations.push_back(correlate(properties_[p], open, values_[p], z));
    }
    for (size_t i = 0; i < labels_.size(); ++i) {
      if (!labels_[i].empty()) head.by_class[labels_[i]] += open[i];
    }
    for (auto& [label, sum] : head.by_class) {
      sum /= static_cast<double>(result.classes.at(label));
    }
    double halves[2] = {0, 0};
    for (size_t i = 0; i < open.size(); ++i) halves[i % 2] += open[i];
    first.push_back(halves[0]);
    second.push_back(halves[1]);
    spread += head.frequency * (1 - head.frequency);
    result.heads.push_back(std::move(head));
  }
  const auto heads = static_cast<double>(open_.size());
  const double chance = result.mean_selected / heads * (1 - result.mean_selected / heads);
  if (chance > 0) result.same_for_all = 1 - spread / heads * n / (n - 1) / chance;
  const double again = spearman(first, second);
  if (!std::isnan(again)) result.split_half = again;
  return result;
}

std::string CorpusReport::to_json() const {
  Json all = Json::array();
  for (const CorpusHead& head : heads) {
    all.push_back({{"layer", head.head.layer},
                   {"head", head.head.head},
                   {"state", head.state},
                   {"frequency", head.frequency},
                   {"interval", {head.lower, head.upper}},
                   {"mean_margin", nullable(head.mean_margin)},
                   {"margin_spread", nullable(head.margin_spread)},
                   {"correlations", correlations_json(head.correlations)},
                   {"by_class", head.by_class}});
  }
  Json counts = Json::array();
  for (const auto& [count, number] : selected) {
    counts.push_back({{"heads", count}, {"inputs", number}});
  }
  return Json{
      {"inputs", inputs},
      {"layers", layout.layers},
      {"heads_per_layer", layout.heads},
      {"policy", policy},
      {"confidence", confidence},
      {"selected",
       {{"mean", mean_selected},
        {"spread", selected_spread},
        {"distribution", std::move(counts)},
        {"correlations", correlations_json(selected_correlations)},
        {"by_class", selected_by_class}}},
      {"classes", classes},
      {"stability",
       {{"same_for_all_inputs", nullable(same_for_all)}, {"split_half", nullable(split_half)}}},
      {"heads", std::move(all)}}
      .dump();
}

}  // namespace headkit
