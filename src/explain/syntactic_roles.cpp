#include "headkit/explain/syntactic_roles.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <random>
#include <string>

#include "explain/permute.h"
#include "explain/relation_labels.h"
#include "explain/word_attention.h"
#include "headkit/core/error.h"
#include "headkit/explain/offset_baseline.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr char kOperation[] = "syntactic_roles";
constexpr double kMarginOverOffset = 0.10;
constexpr double kBestOfQuantile = 0.95;
constexpr float kDropped = std::numeric_limits<float>::quiet_NaN();
constexpr int64_t kDirections = 2;
constexpr const char* kDirectionNames[kDirections] = {"row", "column"};

struct Arc {
  int64_t dependent = 0, head = 0;
  std::vector<int64_t> labels;
};

struct ArcRange {
  int64_t first = 0, last = 0;  // one after the last
  int64_t count() const { return last - first; }
};

// Arcs of one label, sequence by sequence.
using ArcsBySequence = std::vector<std::vector<int64_t>>;

// Heads and offsets are chosen on the other sequences.
bool is_reported(int64_t sequence) { return sequence % 2 == 1; }

// Attention that is spread evenly over the keys that each query may see, [1, T, T].
at::Tensor even_rows(const at::Tensor& key_allowed) {
  const at::Tensor allowed = key_allowed.slice(0, 0, 1).to(at::kFloat);
  return (allowed / allowed.sum(-1, true).clamp_min(1)).contiguous();
}

struct Part {
  double hits = 0;
  int64_t arcs = 0, dropped = 0, sequences = 0;
  double share() const { return hits / static_cast<double>(arcs); }
};

class SyntacticRoles final : public RoleAccumulator {
 public:
  SyntacticRoles(const HeadLayout& layout, std::vector<SequenceSyntax> sequences,
                 const RoleMeasure& measure, int64_t minimum_arcs)
      : layout_(layout),
        measure_(measure),
        minimum_arcs_(minimum_arcs),
        cells_(layout.total_heads() * kDirections),
        syntax_(std::move(sequences)) {
    index_arcs();
    HEADKIT_CHECK(!arcs_.empty(), kOperation, "sequences with at least one arc", "none");
    hits_.assign(arcs_.size() * cells_, kDropped);
    even_hits_.assign(arcs_.size() * layout.layers * kDirections, kDropped);
    shuffled_.assign(labels_.count() * measure.draws * cells_, 0.0);
    excluded_.assign(layout.total_heads(), 0.0);
    excluded_rows_.assign(layout.total_heads(), 0.0);
    seen_.assign(ranges_.size(), false);
  }

  void add(const RoleRows& rows) override {
    const SampleAttention& attention = rows.attention;
    const int64_t number = attention.sample;
    HEADKIT_CHECK(number < static_cast<int64_t>(ranges_.size()), kOperation,
                  "no more examples than the " + std::to_string(ranges_.size()) + " sequences",
                  "example ", number);
    if (!rows.same_tokens()) return;
    const SequenceSyntax& syntax = syntax_[number];
    HEADKIT_CHECK(rows.queries() <= static_cast<int64_t>(syntax.word_of_token.size()), kOperation,
                  "the word of each of " + std::to_string(rows.queries()) + " tokens of example " +
                      std::to_string(number),
                  syntax.word_of_token.size());
    seen_[number] = true;
    if (ranges_[number].count() == 0) return;
    if (is_reported(number)) permute_arcs(number);
    const auto count = static_cast<int64_t>(syntax.head_of_word.size());
    const WordAttention words =
        word_attention(attention.probabilities, syntax.word_of_token, count);
    for (int64_t h = 0; h < rows.heads(); ++h) {
      add_head(words, number, attention.layer, h, attention.heads[h]);
    }
    if (is_reported(number)) {
      add_even(word_attention(even_rows(attention.key_allowed), syntax.word_of_token, count),
               number, attention.layer);
    }
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const SyntacticRoles&>(other);
    HEADKIT_CHECK(from.hits_.size() == hits_.size() && from.shuffled_.size() == shuffled_.size(),
                  "roles", "roles of the same sequences and model", "others");
    for (size_t number = 0; number < seen_.size(); ++number) {
      if (!from.seen_[number]) continue;
      HEADKIT_CHECK(!seen_[number], "roles", "samples that were not seen yet", number);
      seen_[number] = true;
      const auto [first, last] = ranges_[number];
      std::copy(from.hits_.begin() + first * cells_, from.hits_.begin() + last * cells_,
                hits_.begin() + first * cells_);
      const int64_t even = layout_.layers * kDirections;
      std::copy(from.even_hits_.begin() + first * even, from.even_hits_.begin() + last * even,
                even_hits_.begin() + first * even);
    }
    for (size_t i = 0; i < shuffled_.size(); ++i) shuffled_[i] += from.shuffled_[i];
    for (size_t i = 0; i < excluded_.size(); ++i) {
      excluded_[i] += from.excluded_[i];
      excluded_rows_[i] += from.excluded_rows_[i];
    }
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    for (int64_t label = 0; label < labels_.count(); ++label) finish_label(label, end, table);
  }

 private:
  int64_t cell(int64_t layer, int64_t head, int64_t direction) const {
    return (layer * layout_.heads + head) * kDirections + direction;
  }

  void index_arcs() {
    for (const SequenceSyntax& syntax : syntax_) {
      syntax.check();
      ArcRange range{.first = static_cast<int64_t>(arcs_.size())};
      for (size_t word = 0; word < syntax.head_of_word.size(); ++word) {
        if (syntax.head_of_word[word] < 0) continue;
        arcs_.push_back({static_cast<int64_t>(word), syntax.head_of_word[word],
                         labels_.of(syntax.relation[word])});
      }
      range.last = static_cast<int64_t>(arcs_.size());
      ranges_.push_back(range);
    }
  }

  // The heads of the arcs of a sequence in random orders, the same for all heads of the model.
  void permute_arcs(int64_t number) {
    if (permuted_sequence_ == number) return;
    permuted_sequence_ = number;
    std::vector<int64_t> heads;
    for (int64_t arc = ranges_[number].first; arc < ranges_[number].last; ++arc) {
      heads.push_back(arcs_[arc].head);
    }
    std::mt19937_64 random(measure_.seed * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(number));
    permuted_.assign(measure_.draws, heads);
    for (std::vector<int64_t>& draw : permuted_) permute(random, draw);
  }

  // What of the hit each word would have; nothing if the arc is dropped.
  bool look(const WordAttention& words, int64_t h, const Arc& arc, int64_t direction,
            std::vector<double>& share) const {
    const bool column = direction == 1;
    if (!words.is_kept(h, column ? arc.head : arc.dependent)) return false;
    share_of_largest(words, h, arc.dependent, column, share.data());
    return true;
  }

  void add_head(const WordAttention& words, int64_t number, int64_t layer, int64_t h,
                int64_t head) {
    std::vector<double> share(words.words);
    const int64_t place = layer * layout_.heads + head;
    for (int64_t arc = ranges_[number].first; arc < ranges_[number].last; ++arc) {
      excluded_[place] += 1 - words.left[h * words.words + arcs_[arc].dependent];
      excluded_rows_[place] += 1;
      for (int64_t direction = 0; direction < kDirections; ++direction) {
        if (!look(words, h, arcs_[arc], direction, share)) continue;
        const int64_t at = cell(layer, head, direction);
        hits_[arc * cells_ + at] = static_cast<float>(share[arcs_[arc].head]);
        if (is_reported(number)) add_shuffled(number, arc, share, at);
      }
    }
  }

  void add_shuffled(int64_t number, int64_t arc, const std::vector<double>& share, int64_t at) {
    const int64_t here = arc - ranges_[number].first;
    for (int64_t draw = 0; draw < measure_.draws; ++draw) {
      const double hit = share[permuted_[draw][here]];
      if (hit == 0) continue;
      for (const int64_t label : arcs_[arc].labels) {
        shuffled_[(label * measure_.draws + draw) * cells_ + at] += hit;
      }
    }
  }

  void add_even(const WordAttention& words, int64_t number, int64_t layer) {
    std::vector<double> share(words.words);
    for (int64_t arc = ranges_[number].first; arc < ranges_[number].last; ++arc) {
      for (int64_t direction = 0; direction < kDirections; ++direction) {
        if (!look(words, 0, arcs_[arc], direction, share)) continue;
        even_hits_[(arc * layout_.layers + layer) * kDirections + direction] =
            static_cast<float>(share[arcs_[arc].head]);
      }
    }
  }

  // Sequences without an arc of the label are left out.
  ArcsBySequence arcs_of(int64_t label, bool reported) const {
    ArcsBySequence found;
    for (int64_t number = 0; number < static_cast<int64_t>(ranges_.size()); ++number) {
      if (is_reported(number) != reported || !seen_[number]) continue;
      std::vector<int64_t> here;
      for (int64_t arc = ranges_[number].first; arc < ranges_[number].last; ++arc) {
        const std::vector<int64_t>& labels = arcs_[arc].labels;
        if (std::find(labels.begin(), labels.end(), label) != labels.end()) here.push_back(arc);
      }
      if (!here.empty()) found.push_back(std::move(here));
    }
    return found;
  }

  Part part_of(const ArcsBySequence& arcs, int64_t at) const {
    Part part;
    for (const std::vector<int64_t>& here : arcs) {
      bool any = false;
      for (const int64_t arc : here) {
        const float hit = hits_[arc * cells_ + at];
        if (std::isnan(hit)) {
          ++part.dropped;
        } else {
          part.hits += hit;
          ++part.arcs;
          any = true;
        }
      }
      part.sequences += any;
    }
    return part;
  }

  OffsetCounts offsets_of(const ArcsBySequence& arcs) const {
    OffsetCounts counts;
    for (const std::vector<int64_t>& here : arcs) {
      for (const int64_t arc : here) counts.add(arcs_[arc].head - arcs_[arc].dependent);
    }
    return counts;
  }

  double even_share(const ArcsBySequence& arcs, int64_t layer, int64_t direction) const {
    double sum = 0, counted = 0;
    for (const std::vector<int64_t>& here : arcs) {
      for (const int64_t arc : here) {
        const float hit = even_hits_[(arc * layout_.layers + layer) * kDirections + direction];
        if (std::isnan(hit)) continue;
        sum += hit;
        counted += 1;
      }
    }
    return counted > 0 ? sum / counted : 0;
  }

  // Accuracies of resampled sequences, double [resamples, cells], each cell sorted.
  at::Tensor resampled(const ArcsBySequence& arcs) const {
    const auto rows = static_cast<int64_t>(arcs.size());
    const at::Tensor hits = at::zeros({rows, cells_}, at::kDouble);
    const at::Tensor counted = at::zeros({rows, cells_}, at::kDouble);
    double* hit = hits.mutable_data_ptr<double>();
    double* count = counted.mutable_data_ptr<double>();
    for (const std::vector<int64_t>& here : arcs) {
      for (const int64_t arc : here) {
        for (int64_t at = 0; at < cells_; ++at) {
          const float value = hits_[arc * cells_ + at];
          if (std::isnan(value)) continue;
          hit[at] += value;
          count[at] += 1;
        }
      }
      hit += cells_;
      count += cells_;
    }
    std::mt19937_64 random(measure_.seed);
    const at::Tensor draws = draw_counts(random, measure_.bootstrap, rows);
    return std::get<0>((at::mm(draws, hits) / at::mm(draws, counted).clamp_min(1)).sort(0));
  }

  double mean_shuffled(int64_t label, int64_t at, int64_t arcs) const {
    double sum = 0;
    for (int64_t draw = 0; draw < measure_.draws; ++draw) {
      sum += shuffled_[(label * measure_.draws + draw) * cells_ + at];
    }
    return sum / static_cast<double>(measure_.draws * arcs);
  }

  // Over draws the 95 % quantile of the best head and direction.
  std::optional<double> best_of_heads(int64_t label, const ArcsBySequence& reported) const {
    if (measure_.draws == 0) return std::nullopt;
    at::Tensor best = at::zeros({measure_.draws}, at::kDouble);
    double* of_draw = best.mutable_data_ptr<double>();
    for (int64_t at = 0; at < cells_; ++at) {
      const auto arcs = static_cast<double>(part_of(reported, at).arcs);
      if (arcs == 0) continue;
      for (int64_t draw = 0; draw < measure_.draws; ++draw) {
        of_draw[draw] = std::max(of_draw[draw],
                                 shuffled_[(label * measure_.draws + draw) * cells_ + at] / arcs);
      }
    }
    return percentile(std::get<0>(best.sort()), kBestOfQuantile).item<double>();
  }

  void finish_label(int64_t label, const RoleEnd& end, RoleTable& table) const {
    const ArcsBySequence reported = arcs_of(label, true), chosen_on = arcs_of(label, false);
    const OffsetCounts offsets = offsets_of(reported), chosen_offsets = offsets_of(chosen_on);
    if (offsets.arcs() == 0 || offsets.arcs() < minimum_arcs_) return;
    const int64_t offset = chosen_offsets.best();
    const double baseline = offsets.share(offset), chosen_baseline = chosen_offsets.share(offset);
    const std::optional<double> best_of_n = best_of_heads(label, reported);
    at::Tensor lower, upper;
    if (measure_.bootstrap > 0 && reported.size() > 1) {
      const at::Tensor sorted = resampled(reported);
      const double tail = (1 - measure_.confidence) / 2;
      lower = percentile(sorted, tail).contiguous();
      upper = percentile(sorted, 1 - tail).contiguous();
    }
    for (int64_t at = 0; at < cells_; ++at) {
      const int64_t direction = at % kDirections, place = at / kDirections;
      const int64_t layer = place / layout_.heads, head = place % layout_.heads;
      if (excluded_rows_[place] == 0) continue;  // a block of another kind, or a head that is gone
      const Part part = part_of(reported, at), chosen = part_of(chosen_on, at);
      RoleScore score;
      score.role = "syntactic";
      score.variant = labels_.names()[label] + "/" + kDirectionNames[direction];
      score.score = part.share();
      score.sequences = part.sequences;
      score.rows = part.arcs;
      score.dropped_rows = part.dropped;
      score.excluded_mass = excluded_[place] / excluded_rows_[place];
      score.threshold = baseline + kMarginOverOffset;
      if (lower.defined()) {
        score.lower = lower.const_data_ptr<double>()[at];
        score.upper = upper.const_data_ptr<double>()[at];
      }
      score.nulls = {{"uniform", even_share(reported, layer, direction)},
                     {"best_offset", baseline}};
      if (best_of_n && part.arcs > 0) {
        score.nulls.push_back({"shuffle", mean_shuffled(label, at, part.arcs)});
        score.nulls.push_back({"best_of_n", *best_of_n});
      }
      score.details = {{"best_offset", static_cast<double>(offset)}};
      const bool was_chosen =
          chosen.arcs > 0 && chosen.share() >= chosen_baseline + kMarginOverOffset;
      if (chosen.arcs > 0) {
        score.details.emplace_back("score_where_chosen", chosen.share());
        score.details.emplace_back("best_offset_where_chosen", chosen_baseline);
      }
      judge(score);
      if (score.assigned && !was_chosen) {
        score.assigned = false;
        score.reason = "not found on the part that heads are chosen on";
      }
      table.add(layer, head, std::move(score));
    }
  }

  HeadLayout layout_;
  RoleMeasure measure_;
  int64_t minimum_arcs_;
  int64_t cells_;  // one for each layer, head and direction
  std::vector<SequenceSyntax> syntax_;
  RelationLabels labels_;
  std::vector<Arc> arcs_;
  std::vector<ArcRange> ranges_;  // by sequence
  std::vector<bool> seen_;        // by sequence
  std::vector<float> hits_;       // [arcs, cells]
  std::vector<float> even_hits_;  // [arcs, layers, directions]: of uniform attention
  std::vector<double> shuffled_;  // [labels, draws, cells]: sums, reported part
  std::vector<double> excluded_, excluded_rows_;  // [layers, heads]
  int64_t permuted_sequence_ = -1;
  std::vector<std::vector<int64_t>> permuted_;  // [draws][arcs of that sequence]
};

}  // namespace

std::unique_ptr<RoleAccumulator> syntactic_roles(const HeadLayout& layout,
                                                 std::vector<SequenceSyntax> sequences,
                                                 const RoleMeasure& measure, int64_t minimum_arcs) {
  return std::make_unique<SyntacticRoles>(layout, std::move(sequences), measure, minimum_arcs);
}

}  // namespace headkit
