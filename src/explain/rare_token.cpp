#include <ATen/ATen.h>

#include <algorithm>
#include <random>

#include "explain/row_cursor.h"
#include "explain/text_roles.h"
#include "headkit/explain/role_sums.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

class RareToken final : public RoleAccumulator {
 public:
  RareToken(const HeadLayout& layout, const RoleMeasure& measure, TokenCounts counts)
      : sums_("rare_token", "", layout), measure_(measure), counts_(std::move(counts)) {}

  void add(const RoleRows& rows) override {
    if (!rows.same_tokens() || !rows.key_tokens.defined()) return;
    // Tokens are those of the sample in all of its blocks, or in all of one of its sequences.
    if (sample_ != rows.attention.sample || !at::equal(tokens_, rows.key_tokens)) {
      sample_ = rows.attention.sample;
      tokens_ = rows.key_tokens;
      found_ = candidates(rows);
    }
    if (found_.rarest.empty()) return;
    for (int64_t h = 0; h < rows.heads(); ++h) add_head(rows, h, found_);
  }

  void merge(const RoleAccumulator& other) override {
    sums_.merge(dynamic_cast<const RareToken&>(other).sums_);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    add_scores(sums_.scores(end, {.drawn = true}, "tokens are not known"), table);
  }

 private:
  // Positions of the least frequent token, and those that a shuffle moves it to: of the rarer half
  // of the sequence, so that a head that likes rare words gains nothing by that alone.
  struct Candidates {
    std::vector<int64_t> rarest, rarer;
    std::vector<std::vector<int64_t>> moved;  // of each draw
  };

  Candidates candidates(const RoleRows& rows) const {
    const int64_t* tokens = rows.key_tokens.const_data_ptr<int64_t>();
    const bool* special = rows.special_keys.const_data_ptr<bool>();
    const bool* valid = rows.attention.query_valid.const_data_ptr<bool>();
    std::vector<std::pair<int64_t, int64_t>> places;  // frequency, position
    for (int64_t j = 0; j < rows.keys(); ++j) {
      if (special[j] || !valid[j]) continue;
      const auto known = counts_.find(tokens[j]);
      places.emplace_back(known == counts_.end() ? 0 : known->second, j);
    }
    Candidates found;
    if (places.size() < 2) return found;
    std::sort(places.begin(), places.end());
    const size_t half = (places.size() + 1) / 2;
    for (size_t i = 0; i < places.size(); ++i) {
      if (places[i].first == places.front().first) found.rarest.push_back(places[i].second);
      if (i < half || places[i].first == places[half - 1].first) {
        found.rarer.push_back(places[i].second);
      }
    }
    std::mt19937_64 random(measure_.seed * 0x9E3779B97F4A7C15ULL +
                           static_cast<uint64_t>(rows.attention.sample));
    std::vector<int64_t> order = found.rarer;
    for (int64_t draw = 0; draw < measure_.draws; ++draw) {
      for (size_t i = 0; i < found.rarest.size(); ++i) {
        const int64_t other = draw_below(random, static_cast<int64_t>(order.size() - i));
        std::swap(order[i], order[i + static_cast<size_t>(other)]);
      }
      found.moved.emplace_back(order.begin(),
                               order.begin() + static_cast<std::ptrdiff_t>(found.rarest.size()));
    }
    return found;
  }

  void add_head(const RoleRows& rows, int64_t h, const Candidates& found) {
    const SampleAttention& attention = rows.attention;
    const int64_t head = attention.heads[static_cast<size_t>(h)];
    RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
    RoleSums::Totals& totals = sums_.totals(attention.layer, head);
    const at::Tensor content = rows.special_keys.logical_not().to(at::kFloat);
    const float* counted = content.const_data_ptr<float>();
    const int64_t keys = rows.keys();
    std::vector<double> looks(static_cast<size_t>(keys)), sights(looks.size());
    std::vector<float> room(looks.size());
    float* kept = room.data();
    double scored_rows = 0;
    RowCursor row(rows, h);
    for (int64_t i = 0; i < rows.queries(); ++i) {
      row.move_to(i);
      if (!row.valid) continue;
      totals.seen += 1;
      totals.excluded += row.special_mass;
      if (1 - row.special_mass < kLeastMass) {
        totals.dropped += 1;
        continue;
      }
      float most = 0, ties = 0;
#pragma omp simd reduction(max : most)
      for (int64_t j = 0; j < keys; ++j) {
        kept[j] = row.weights[j] * counted[j];
        most = kept[j] > most ? kept[j] : most;
      }
#pragma omp simd reduction(+ : ties)
      for (int64_t j = 0; j < keys; ++j) {
        ties += kept[j] == most ? 1.0F : 0.0F;
      }
      looks[static_cast<size_t>(std::find(kept, kept + keys, most) - kept)] += 1;
      scored_rows += 1;
      for (const int64_t key : found.rarer) {
        if (rows.all_allowed) break;
        sights[static_cast<size_t>(key)] += row.allowed[key] ? 1 : 0;
      }
      double hits = 0, rare_seen = 0;
      for (const int64_t key : found.rarest) {
        rare_seen += row.allowed[key] ? 1 : 0;
        hits += kept[key] == most ? 1 : 0;
      }
      if (rare_seen == 0) continue;
      sums.score += hits / ties;
      sums.rows += 1;
      totals.uniform += rare_seen / row.content_keys;
    }
    // Rows that look at the moved label, and rows that may see it: of several positions those that
    // may see the most seen one, as what queries may see is nested.
    std::vector<RoleSums::Sums>& draws = sums_.draws(attention.layer, head);
    draws.resize(found.moved.size());
    for (size_t draw = 0; draw < draws.size(); ++draw) {
      double most = 0;
      for (const int64_t place : found.moved[draw]) {
        draws[draw].score += looks[static_cast<size_t>(place)];
        const double sight = rows.all_allowed ? scored_rows : sights[static_cast<size_t>(place)];
        most = std::max(most, sight);
      }
      draws[draw].rows += most;
    }
  }

  RoleSums sums_;
  RoleMeasure measure_;
  TokenCounts counts_;
  int64_t sample_ = -1;
  at::Tensor tokens_;
  Candidates found_;
};

}  // namespace

RolePointer rare_token_role(const HeadLayout& layout, const RoleMeasure& measure,
                            TokenCounts counts) {
  return std::make_unique<RareToken>(layout, measure, std::move(counts));
}

}  // namespace headkit
