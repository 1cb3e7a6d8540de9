#include "headkit/explain/audio_roles.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <string>

#include "explain/row_cursor.h"
#include "headkit/core/error.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

constexpr char kOperation[] = "audio_roles";

double entropy_term(double p) { return p > 0 ? -p * std::log(p) : 0; }

// Share of pairs (a, b) of two ascending lists with b >= a.
double share_in_order(const std::vector<int64_t>& before, const std::vector<int64_t>& after) {
  int64_t pairs = 0, below = 0;
  for (const int64_t b : after) {
    while (below < static_cast<int64_t>(before.size()) && before[below] <= b) ++below;
    pairs += below;
  }
  return static_cast<double>(pairs) / static_cast<double>(before.size() * after.size());
}

class AudioRoles final : public RoleAccumulator {
 public:
  AudioRoles(const HeadLayout& layout, double hop)
      : globalness_("globalness", "", layout),
        verticality_("verticality", "", layout),
        distance_("diag_distance", "", layout),
        cumulative_("diag_cumulative", "", layout),
        monotonicity_("monotonicity", "", layout),
        seconds_(layout.total_heads(), 0.0),
        heads_(layout.heads),
        hop_(hop) {
    HEADKIT_CHECK(std::isfinite(hop) && hop > 0, kOperation, "a hop above 0 seconds", hop);
  }

  void add(const RoleRows& rows) override {
    if (!rows.same_tokens()) return;
    for (int64_t h = 0; h < rows.heads(); ++h) {
      add_rows(rows, h);
      add_mean_row(rows, h);
      add_order(rows, h);
    }
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const AudioRoles&>(other);
    globalness_.merge(from.globalness_);
    verticality_.merge(from.verticality_);
    distance_.merge(from.distance_);
    cumulative_.merge(from.cumulative_);
    monotonicity_.merge(from.monotonicity_);
    for (size_t i = 0; i < seconds_.size(); ++i) seconds_[i] += from.seconds_[i];
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    constexpr char kNone[] = "no frame that may see another";
    add_scores(globalness_.scores(end, {}, kNone), table);
    add_scores(verticality_.scores(end, {}, kNone), table);
    add_scores(distance_.scores(end, {}, kNone), table);
    std::vector<RoleScore> cumulative = cumulative_.scores(end, {}, kNone);
    for (size_t i = 0; i < cumulative.size(); ++i) {
      if (!cumulative[i].assessed) continue;
      cumulative[i].details.emplace_back("mean_distance_seconds",
                                         seconds_[i] / static_cast<double>(cumulative[i].rows));
    }
    add_scores(cumulative, table);
    add_scores(monotonicity_.scores(end, {}, kNone), table);
  }

 private:
  struct Place {
    RoleSums::Sums& sums;
    RoleSums::Totals& totals;
    void add(double score, double uniform) const {
      sums.score += score;
      sums.rows += 1;
      totals.uniform += uniform;
    }
  };
  static Place at(RoleSums& sums, const SampleAttention& attention, int64_t h) {
    const int64_t head = attention.heads[h];
    return {sums.of(attention.sample, attention.layer, head), sums.totals(attention.layer, head)};
  }

  void add_rows(const RoleRows& rows, int64_t h) {
    const SampleAttention& attention = rows.attention;
    const Place globalness = at(globalness_, attention, h), distance = at(distance_, attention, h),
                cumulative = at(cumulative_, attention, h);
    double& seconds = seconds_[attention.layer * heads_ + attention.heads[h]];
    const auto frames = static_cast<double>(attention.query_valid.sum().item<int64_t>());
    RowCursor row(rows, h);
    for (int64_t i = 0; i < rows.queries(); ++i) {
      row.move_to(i);
      if (!row.valid || row.keys_allowed < 2) continue;
      double entropy = 0, mean = 0, even = 0, farthest = 0;
      for (int64_t j = 0; j < rows.keys(); ++j) {
        if (!row.allowed[j]) continue;
        const auto frames_away = static_cast<double>(std::abs(i - j));
        entropy += entropy_term(row.weights[j]);
        mean += row.weights[j] * frames_away;
        even += frames_away / row.keys_allowed;
        farthest = std::max(farthest, frames_away);
      }
      globalness.add(entropy / std::log(row.keys_allowed), 1);
      distance.add(1 - mean / farthest, 1 - even / farthest);
      // The mean over r of the mass within r T of the diagonal is 1 - mean distance / T.
      cumulative.add(1 - mean / frames, 1 - even / frames);
      seconds += mean * hop_;
    }
  }

  void add_mean_row(const RoleRows& rows, int64_t h) {
    std::vector<double> mean(rows.keys(), 0.0), even(rows.keys(), 0.0);
    double queries = 0;
    std::vector<bool> seen(rows.keys(), false);
    RowCursor row(rows, h);
    for (int64_t i = 0; i < rows.queries(); ++i) {
      row.move_to(i);
      if (!row.valid) continue;
      queries += 1;
      for (int64_t j = 0; j < rows.keys(); ++j) {
        if (!row.allowed[j]) continue;
        seen[j] = true;
        mean[j] += row.weights[j];
        even[j] += 1 / row.keys_allowed;
      }
    }
    const auto keys = static_cast<double>(std::count(seen.begin(), seen.end(), true));
    if (keys < 2) return;
    double entropy = 0, even_entropy = 0;
    for (int64_t j = 0; j < rows.keys(); ++j) {
      entropy += entropy_term(mean[j] / queries);
      even_entropy += entropy_term(even[j] / queries);
    }
    at(verticality_, rows.attention, h)
        .add(1 - entropy / std::log(keys), 1 - even_entropy / std::log(keys));
  }

  void add_order(const RoleRows& rows, int64_t h) {
    const Place order = at(monotonicity_, rows.attention, h);
    std::vector<int64_t> before, even_before;
    RowCursor row(rows, h);
    for (int64_t i = 0; i < rows.queries(); ++i) {
      row.move_to(i);
      if (!row.valid) continue;
      std::vector<int64_t> largest, allowed;
      for (int64_t j = 0; j < rows.keys(); ++j) {
        if (!row.allowed[j]) continue;
        allowed.push_back(j);
        if (row.weights[j] == row.largest) largest.push_back(j);
      }
      if (!before.empty()) {
        order.add(share_in_order(before, largest), share_in_order(even_before, allowed));
      }
      before = std::move(largest);
      even_before = std::move(allowed);
    }
  }

  RoleSums globalness_, verticality_, distance_, cumulative_, monotonicity_;
  std::vector<double> seconds_;  // [layers, heads]: sums over the rows of `cumulative_`
  int64_t heads_;
  double hop_;
};

}  // namespace

std::unique_ptr<RoleAccumulator> audio_roles(const HeadLayout& layout, double hop) {
  return std::make_unique<AudioRoles>(layout, hop);
}

}  // namespace headkit
