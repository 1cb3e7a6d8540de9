#include "headkit/explain/gold_alignment.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include "explain/permute.h"
#include "explain/row_cursor.h"
#include "headkit/core/error.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

constexpr char kOperation[] = "gold_alignment";

class GoldAlignmentRole final : public RoleAccumulator {
 public:
  GoldAlignmentRole(const HeadLayout& layout, std::vector<GoldAlignment> sequences,
                    const RoleMeasure& measure, bool cross)
      : sums_(kOperation, "", layout),
        offsets_(layout.layers),
        measure_(measure),
        sequences_(std::move(sequences)),
        cross_(cross) {
    for (const GoldAlignment& each : sequences_) {
      for (const int64_t target : each.target_of_token) {
        HEADKIT_CHECK(target >= -1, kOperation, "targets of at least -1", target);
      }
      for (const int64_t key : each.candidates) {
        HEADKIT_CHECK(key >= 0, kOperation, "candidates of at least 0", key);
      }
    }
  }

  void add(const RoleRows& rows) override {
    const SampleAttention& attention = rows.attention;
    if (attention.cross != cross_) return;
    HEADKIT_CHECK(attention.sample < static_cast<int64_t>(sequences_.size()), kOperation,
                  "no more examples than the " + std::to_string(sequences_.size()) + " sequences",
                  "example ", attention.sample);
    read_sample(rows);
    for (const Row& row : rows_) {
      offsets_.add_hit(attention.sample, attention.layer, row.target - row.query);
    }
    offsets_.add_rows(attention.sample, attention.layer, static_cast<int64_t>(rows_.size()));
    for (int64_t h = 0; h < rows.heads(); ++h) add_head(rows, h);
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const GoldAlignmentRole&>(other);
    sums_.merge(from.sums_);
    offsets_.merge(from.offsets_);
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    add_scores(sums_.scores(end, {.drawn = true, .offsets = &offsets_}, "no token has a partner"),
               table);
  }

 private:
  struct Row {
    int64_t query, target;
  };

  // Rows, candidates and permuted targets of a sample, kept for all of its blocks.
  void read_sample(const RoleRows& rows) {
    const int64_t sample = rows.attention.sample;
    if (sample == sample_) return;
    const GoldAlignment& gold = sequences_[sample];
    const int64_t tokens = rows.queries(), keys = rows.keys();
    rows_.clear();
    for (int64_t i = 0; i < static_cast<int64_t>(gold.target_of_token.size()); ++i) {
      const int64_t target = gold.target_of_token[i];
      if (target < 0) continue;
      HEADKIT_CHECK(i < tokens && target < keys, kOperation,
                    "tokens below " + std::to_string(tokens) + " and targets below " +
                        std::to_string(keys) + " in example " + std::to_string(sample),
                    "token ", i, " with target ", target);
      rows_.push_back({i, target});
    }
    candidates_ = gold.candidates;
    for (const int64_t key : candidates_) {
      HEADKIT_CHECK(
          key < keys, kOperation,
          "candidates below " + std::to_string(keys) + " in example " + std::to_string(sample),
          key);
    }
    if (candidates_.empty()) {
      candidates_.resize(keys);
      std::iota(candidates_.begin(), candidates_.end(), 0);
    }
    std::mt19937_64 random(measure_.seed * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(sample));
    std::vector<int64_t> targets;
    for (const Row& row : rows_) targets.push_back(row.target);
    permuted_.assign(measure_.draws, targets);
    for (std::vector<int64_t>& draw : permuted_) permute(random, draw);
    sample_ = sample;
  }

  void add_head(const RoleRows& rows, int64_t h) {
    const SampleAttention& attention = rows.attention;
    const int64_t head = attention.heads[h];
    RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
    RoleSums::Totals& totals = sums_.totals(attention.layer, head);
    // What each candidate has of the hit, for each row; nothing where the row is dropped.
    share_.assign(rows_.size() * rows.keys(), 0.0F);
    kept_.assign(rows_.size(), false);
    RowCursor row(rows, h);
    for (size_t r = 0; r < rows_.size(); ++r) {
      row.move_to(rows_[r].query);
      double mass = 0, seen = 0;
      float largest = 0;
      int64_t ties = 0;
      for (const int64_t key : candidates_) {
        if (!row.allowed[key]) continue;
        seen += 1;
        mass += row.weights[key];
        if (row.weights[key] > largest) {
          largest = row.weights[key];
          ties = 0;
        }
        ties += row.weights[key] == largest;
      }
      totals.seen += 1;
      totals.excluded += 1 - mass;
      if (!row.valid || mass < kLeastMass) {
        totals.dropped += 1;
        continue;
      }
      kept_[r] = true;
      float* share = share_.data() + r * rows.keys();
      bool reachable = false;
      for (const int64_t key : candidates_) {
        if (!row.allowed[key]) continue;
        reachable = reachable || key == rows_[r].target;
        if (row.weights[key] == largest) share[key] = 1.0F / static_cast<float>(ties);
      }
      sums.score += share[rows_[r].target];
      sums.rows += 1;
      totals.uniform += reachable ? 1 / seen : 0;
    }
    std::vector<RoleSums::Sums>& draws = sums_.draws(attention.layer, head);
    draws.resize(permuted_.size());
    for (size_t draw = 0; draw < permuted_.size(); ++draw) {
      for (size_t r = 0; r < rows_.size(); ++r) {
        if (!kept_[r]) continue;
        draws[draw].score += share_[r * rows.keys() + permuted_[draw][r]];
        draws[draw].rows += 1;
      }
    }
  }

  RoleSums sums_;
  OffsetHits offsets_;
  RoleMeasure measure_;
  std::vector<GoldAlignment> sequences_;
  bool cross_;
  int64_t sample_ = -1;
  std::vector<Row> rows_;
  std::vector<int64_t> candidates_;
  std::vector<std::vector<int64_t>> permuted_;  // by draw: targets of the rows
  std::vector<float> share_;                    // [rows, keys]
  std::vector<bool> kept_;
};

}  // namespace

std::unique_ptr<RoleAccumulator> gold_alignment_role(const HeadLayout& layout,
                                                     std::vector<GoldAlignment> sequences,
                                                     const RoleMeasure& measure, bool cross) {
  return std::make_unique<GoldAlignmentRole>(layout, std::move(sequences), measure, cross);
}

}  // namespace headkit
