#include "headkit/explain/offset_baseline.h"

#include <algorithm>
#include <cstdlib>
#include <limits>

#include "explain/relation_labels.h"

namespace headkit {
namespace {

using Counts = std::vector<OffsetCounts>;

void count(const std::vector<SequenceSyntax>& sequences, RelationLabels& labels, Counts& counts) {
  for (const SequenceSyntax& syntax : sequences) {
    syntax.check();
    for (size_t word = 0; word < syntax.head_of_word.size(); ++word) {
      if (syntax.head_of_word[word] < 0) continue;
      for (const int64_t label : labels.of(syntax.relation[word])) {
        if (label >= static_cast<int64_t>(counts.size())) counts.resize(label + 1);
        counts[label].add(syntax.head_of_word[word] - static_cast<int64_t>(word));
      }
    }
  }
}

}  // namespace

std::vector<int64_t> RelationLabels::of(const std::string& relation) {
  std::vector<int64_t> found{number_of(relation)};
  const size_t colon = relation.find(':');
  if (colon != std::string::npos) found.push_back(number_of(relation.substr(0, colon)));
  return found;
}

int64_t RelationLabels::number_of(const std::string& name) {
  const auto [place, fresh] = numbers_.emplace(name, count());
  if (fresh) names_.push_back(name);
  return place->second;
}

void OffsetCounts::add(int64_t offset) {
  ++arcs_;
  if (std::abs(offset) <= kMaxArcOffset) ++counts_[offset];
}

int64_t OffsetCounts::best() const {
  int64_t best = 1, most = 0;
  for (int64_t distance = 1; distance <= kMaxArcOffset; ++distance) {
    for (const int64_t offset : {distance, -distance}) {
      const auto found = counts_.find(offset);
      if (found == counts_.end() || found->second <= most) continue;
      best = offset;
      most = found->second;
    }
  }
  return best;
}

double OffsetCounts::share(int64_t offset) const {
  if (arcs_ == 0) return std::numeric_limits<double>::quiet_NaN();
  const auto found = counts_.find(offset);
  return found == counts_.end() ? 0.0
                                : static_cast<double>(found->second) / static_cast<double>(arcs_);
}

std::vector<OffsetBaseline> offset_baselines(const std::vector<SequenceSyntax>& chosen_on,
                                             const std::vector<SequenceSyntax>& scored_on) {
  RelationLabels labels;
  Counts chosen, scored;
  count(chosen_on, labels, chosen);
  count(scored_on, labels, scored);
  chosen.resize(labels.count());
  scored.resize(labels.count());
  std::vector<OffsetBaseline> found;
  for (int64_t label = 0; label < labels.count(); ++label) {
    const int64_t offset = chosen[label].best();
    found.push_back(
        {labels.names()[label], offset, scored[label].arcs(), scored[label].share(offset)});
  }
  std::stable_sort(found.begin(), found.end(),
                   [](const auto& a, const auto& b) { return a.arcs > b.arcs; });
  return found;
}

}  // namespace headkit
