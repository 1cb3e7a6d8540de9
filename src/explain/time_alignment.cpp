#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <string>

#include "explain/permute.h"
#include "explain/row_cursor.h"
#include "headkit/core/error.h"
#include "headkit/explain/audio_roles.h"
#include "headkit/explain/role_sums.h"

namespace headkit {
namespace {

constexpr char kOperation[] = "time_alignment";
constexpr size_t kLeastTokens = 3;

// Pearson; 0 where either does not change.
double correlation(const std::vector<double>& a, const std::vector<double>& b) {
  const auto n = static_cast<double>(a.size());
  double mean_a = 0, mean_b = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    mean_a += a[i] / n;
    mean_b += b[i] / n;
  }
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    ab += (a[i] - mean_a) * (b[i] - mean_b);
    aa += (a[i] - mean_a) * (a[i] - mean_a);
    bb += (b[i] - mean_b) * (b[i] - mean_b);
  }
  // What rounding leaves of a constant is no change.
  const double least = 1e-20 * n * (1 + mean_a * mean_a);
  return aa <= least || bb == 0 ? 0 : ab / std::sqrt(aa * bb);
}

double median(std::vector<float> values) {
  const size_t half = values.size() / 2;
  std::nth_element(values.begin(), values.begin() + half, values.end());
  const float upper = values[half];
  if (values.size() % 2 == 1) return upper;
  return (*std::max_element(values.begin(), values.begin() + half) + upper) / 2.0;
}

class TimeAlignment final : public RoleAccumulator {
 public:
  TimeAlignment(const HeadLayout& layout, double hop, std::vector<std::vector<double>> times,
                const RoleMeasure& measure)
      : sums_(kOperation, "", layout),
        errors_(layout.total_heads()),
        heads_(layout.heads),
        hop_(hop),
        times_(std::move(times)),
        measure_(measure) {
    HEADKIT_CHECK(std::isfinite(hop) && hop > 0, kOperation, "a hop above 0 seconds", hop);
    for (const std::vector<double>& each : times_) {
      for (const double time : each) {
        HEADKIT_CHECK(!std::isinf(time), kOperation, "finite times, or NaN", time);
      }
    }
  }

  void add(const RoleRows& rows) override {
    const SampleAttention& attention = rows.attention;
    if (!attention.cross) return;
    read_sample(rows);
    if (queries_.size() < kLeastTokens) return;
    const auto tokens = static_cast<double>(queries_.size());
    for (int64_t h = 0; h < rows.heads(); ++h) {
      const int64_t head = attention.heads[h];
      std::vector<double> looked(queries_.size(), 0.0);
      RowCursor row(rows, h);
      for (size_t i = 0; i < queries_.size(); ++i) {
        row.move_to(queries_[i]);
        for (int64_t j = 0; j < rows.keys(); ++j) {
          looked[i] += row.weights[j] * static_cast<double>(j) * hop_;
        }
      }
      RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
      sums.score += tokens * correlation(looked, known_);
      sums.rows += tokens;
      std::vector<RoleSums::Sums>& draws = sums_.draws(attention.layer, head);
      draws.resize(permuted_.size());
      for (size_t draw = 0; draw < permuted_.size(); ++draw) {
        draws[draw].score += tokens * correlation(looked, permuted_[draw]);
        draws[draw].rows += tokens;
      }
      std::vector<float>& errors = errors_[attention.layer * heads_ + head];
      for (size_t i = 0; i < known_.size(); ++i) {
        errors.push_back(static_cast<float>(std::abs(looked[i] - known_[i])));
      }
    }
  }

  void merge(const RoleAccumulator& other) override {
    const auto& from = dynamic_cast<const TimeAlignment&>(other);
    sums_.merge(from.sums_);
    for (size_t i = 0; i < errors_.size(); ++i) {
      errors_[i].insert(errors_[i].end(), from.errors_[i].begin(), from.errors_[i].end());
    }
  }

  void finish(const RoleEnd& end, RoleTable& table) const override {
    std::vector<RoleScore> scores = sums_.scores(end, {.uniform = false, .drawn = true},
                                                 "no cross-attention from tokens with a time");
    for (size_t i = 0; i < scores.size(); ++i) {
      if (errors_[i].empty()) continue;
      scores[i].details.emplace_back("median_error_seconds", median(errors_[i]));
    }
    add_scores(scores, table);
  }

 private:
  void read_sample(const RoleRows& rows) {
    const int64_t sample = rows.attention.sample;
    if (sample == sample_) return;
    HEADKIT_CHECK(sample < static_cast<int64_t>(times_.size()), kOperation,
                  "no more examples than the " + std::to_string(times_.size()) + " lists of times",
                  "example ", sample);
    const std::vector<double>& times = times_[sample];
    HEADKIT_CHECK(rows.queries() <= static_cast<int64_t>(times.size()), kOperation,
                  "the time of each of " + std::to_string(rows.queries()) +
                      " decoder tokens of example " + std::to_string(sample),
                  times.size());
    queries_.clear();
    known_.clear();
    const bool* valid = rows.attention.query_valid.const_data_ptr<bool>();
    for (int64_t i = 0; i < rows.queries(); ++i) {
      if (std::isnan(times[i]) || !valid[i]) continue;
      queries_.push_back(i);
      known_.push_back(times[i]);
    }
    std::mt19937_64 random(measure_.seed * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(sample));
    permuted_.assign(measure_.draws, known_);
    for (std::vector<double>& draw : permuted_) permute(random, draw);
    sample_ = sample;
  }

  RoleSums sums_;
  std::vector<std::vector<float>> errors_;  // [layers * heads]: seconds, by token
  int64_t heads_;
  double hop_;
  std::vector<std::vector<double>> times_;
  RoleMeasure measure_;
  int64_t sample_ = -1;
  std::vector<int64_t> queries_;
  std::vector<double> known_;
  std::vector<std::vector<double>> permuted_;
};

}  // namespace

std::unique_ptr<RoleAccumulator> time_alignment_role(const HeadLayout& layout, double hop,
                                                     std::vector<std::vector<double>> times,
                                                     const RoleMeasure& measure) {
  return std::make_unique<TimeAlignment>(layout, hop, std::move(times), measure);
}

}  // namespace headkit
