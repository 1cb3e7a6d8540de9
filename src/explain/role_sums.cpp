#include "headkit/explain/role_sums.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <numeric>
#include <random>

#include "headkit/core/error.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr double kBestOfQuantile = 0.95;

// [n, L * H], by sample.
struct SequenceSums {
  at::Tensor score, rows;
};

double number(const at::Tensor& values, int64_t place) {
  return values.const_data_ptr<double>()[place];
}

}  // namespace

void OffsetHits::merge(const OffsetHits& other) {
  for (size_t i = 0; i < halves_.size(); ++i) {
    halves_[i].rows += other.halves_.at(i).rows;
    for (const auto& [offset, hits] : other.halves_[i].hits) halves_[i].hits[offset] += hits;
  }
}

std::optional<OffsetHits::Best> OffsetHits::best(int64_t layer) const {
  const Half& chosen = halves_.at(static_cast<size_t>(2 * layer));
  const Half& scored = halves_.at(static_cast<size_t>(2 * layer + 1));
  if (chosen.rows == 0 || scored.rows == 0 || chosen.hits.empty()) return std::nullopt;
  const auto most =
      std::max_element(chosen.hits.begin(), chosen.hits.end(),
                       [](const auto& a, const auto& b) { return a.second < b.second; });
  const auto found = scored.hits.find(most->first);
  const int64_t hits = found == scored.hits.end() ? 0 : found->second;
  return Best{most->first, static_cast<double>(hits) / static_cast<double>(scored.rows)};
}

RoleSums::RoleSums(std::string role, std::string variant, const HeadLayout& layout)
    : role_(std::move(role)),
      variant_(std::move(variant)),
      layout_(layout),
      totals_(static_cast<size_t>(layout.total_heads())),
      draws_(totals_.size()) {}

RoleSums::Sums& RoleSums::of(int64_t sample, int64_t layer, int64_t head) {
  if (sample != last_sample_) {
    const auto [found, is_new] = slots_.try_emplace(sample, samples_.size());
    if (is_new) {
      samples_.push_back(sample);
      sums_.resize(sums_.size() + totals_.size());
    }
    last_sample_ = sample;
    last_slot_ = found->second;
  }
  return sums_[last_slot_ * totals_.size() + place(layer, head)];
}

void RoleSums::merge(const RoleSums& other) {
  HEADKIT_CHECK(role_ == other.role_ && variant_ == other.variant_ && layout_ == other.layout_,
                "roles", "sums of the same role and model", "those of ", other.role_);
  for (const int64_t sample : other.samples_) {
    HEADKIT_CHECK(slots_.count(sample) == 0, "roles", "samples that were not seen yet", sample);
  }
  const size_t heads = totals_.size();
  for (size_t slot = 0; slot < other.samples_.size(); ++slot) {
    slots_.emplace(other.samples_[slot], samples_.size());
    samples_.push_back(other.samples_[slot]);
    const auto first = other.sums_.begin() + static_cast<std::ptrdiff_t>(slot * heads);
    sums_.insert(sums_.end(), first, first + static_cast<std::ptrdiff_t>(heads));
  }
  for (size_t i = 0; i < heads; ++i) {
    totals_[i].uniform += other.totals_[i].uniform;
    totals_[i].variance += other.totals_[i].variance;
    totals_[i].excluded += other.totals_[i].excluded;
    totals_[i].seen += other.totals_[i].seen;
    totals_[i].dropped += other.totals_[i].dropped;
  }
  for (size_t place = 0; place < heads; ++place) {
    const std::vector<Sums>& draws = other.draws_[place];
    std::vector<Sums>& own = draws_[place];
    own.resize(std::max(own.size(), draws.size()));
    for (size_t draw = 0; draw < draws.size(); ++draw) {
      own[draw].score += draws[draw].score;
      own[draw].rows += draws[draw].rows;
    }
  }
}

std::vector<RoleScore> RoleSums::scores(const RoleEnd& end, const Nulls& nulls,
                                        const std::string& reason) const {
  return scores(end, nulls, reason, [](const at::Tensor& means) { return means; });
}

std::vector<RoleScore> RoleSums::scores(const RoleEnd& end, const Nulls& nulls,
                                        const std::string& reason,
                                        const Statistic& statistic) const {
  const int64_t heads = layout_.total_heads(), sequences = static_cast<int64_t>(samples_.size());
  // By number of the sample, so that the order in which samples came does not show.
  std::vector<size_t> order(samples_.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return samples_[a] < samples_[b]; });
  const SequenceSums sums{at::zeros({sequences, heads}, at::kDouble),
                          at::zeros({sequences, heads}, at::kDouble)};
  double* score = sums.score.mutable_data_ptr<double>();
  double* rows = sums.rows.mutable_data_ptr<double>();
  for (const size_t slot : order) {
    for (int64_t i = 0; i < heads; ++i) {
      const Sums& own = sums_[slot * static_cast<size_t>(heads) + static_cast<size_t>(i)];
      *score++ = own.score;
      *rows++ = own.rows;
    }
  }
  const auto shaped = [&](const at::Tensor& means) {
    return statistic(means.reshape({-1, layout_.layers, layout_.heads})).reshape({-1, heads});
  };
  const at::Tensor all_rows = sums.rows.sum(0).unsqueeze(0).contiguous();
  const at::Tensor means = (sums.score.sum(0).unsqueeze(0) / all_rows).contiguous();
  const at::Tensor value = shaped(means).contiguous();
  const at::Tensor holders = sums.rows.gt(0).sum(0).to(at::kDouble).contiguous();

  at::Tensor lower, upper;
  if (end.measure.bootstrap > 0 && sequences > 1) {
    std::mt19937_64 random(end.measure.seed);
    std::vector<at::Tensor> draws;
    const int64_t at_once = rows_at_once(sequences);
    for (int64_t done = 0; done < end.measure.bootstrap; done += at_once) {
      const at::Tensor counts =
          draw_counts(random, std::min(at_once, end.measure.bootstrap - done), sequences);
      const at::Tensor drawn_rows = counts.matmul(sums.rows);
      // A resample without a row of a head says nothing new of it.
      draws.push_back(shaped(at::where(drawn_rows.gt(0), counts.matmul(sums.score) / drawn_rows,
                                       means.expand_as(drawn_rows))));
    }
    const at::Tensor sorted = std::get<0>(at::cat(draws).sort(0));
    const double tail = (1 - end.measure.confidence) / 2;
    lower = percentile(sorted, tail).contiguous();
    upper = percentile(sorted, 1 - tail).contiguous();
  }

  const double sign = role_info(role_).low ? -1 : 1;
  const int64_t draws = end.measure.draws;
  at::Tensor shuffled;  // [draws, heads]
  if (nulls.permuted_keys && draws > 0) {
    const at::Generator generator = at::detail::createCPUGenerator(end.measure.seed);
    shuffled = at::randn({draws, heads}, generator, at::kDouble);
    double* out = shuffled.mutable_data_ptr<double>();
    for (int64_t draw = 0; draw < draws; ++draw) {
      for (int64_t i = 0; i < heads; ++i, ++out) {
        const Totals& total = totals_[static_cast<size_t>(i)];
        *out =
            (total.uniform + *out * std::sqrt(std::max(total.variance, 0.0))) / number(all_rows, i);
      }
    }
  } else if (nulls.drawn && draws > 0) {
    shuffled = at::full({draws, heads}, std::numeric_limits<double>::quiet_NaN(), at::kDouble);
    double* out = shuffled.mutable_data_ptr<double>();
    for (int64_t i = 0; i < heads; ++i) {
      const std::vector<Sums>& own = draws_[static_cast<size_t>(i)];
      for (size_t draw = 0; draw < own.size(); ++draw) {
        if (own[draw].rows > 0) {
          out[static_cast<int64_t>(draw) * heads + i] = own[draw].score / own[draw].rows;
        }
      }
    }
  }
  std::optional<double> best_of_n;
  if (shuffled.defined()) {
    const at::Tensor known = (sign * shuffled).nan_to_num(-HUGE_VAL, -HUGE_VAL, -HUGE_VAL);
    const at::Tensor best = std::get<0>(known.amax(1).sort(0));
    const double found = percentile(best, kBestOfQuantile).item<double>();
    if (std::isfinite(found)) best_of_n = sign * found;
  }

  std::vector<RoleScore> found;
  for (int64_t i = 0; i < heads; ++i) {
    const int64_t layer = i / layout_.heads, head = i % layout_.heads;
    const Totals& total = totals_[static_cast<size_t>(i)];
    RoleScore one;
    one.role = role_;
    one.variant = variant_;
    one.rows = std::llround(number(all_rows, i));
    one.sequences = std::llround(number(holders, i));
    one.dropped_rows = std::llround(total.dropped);
    one.excluded_mass = total.seen > 0 ? total.excluded / total.seen : 0;
    if (!end.present.contains({layer, head})) {
      one.reason = "the head was removed";
    } else if (one.rows == 0) {
      one.reason = reason;
    } else {
      one.score = number(value, i);
      if (lower.defined()) {
        one.lower = number(lower, i);
        one.upper = number(upper, i);
      }
      if (nulls.uniform) one.nulls.push_back({"uniform", total.uniform / number(all_rows, i)});
      if (nulls.offsets != nullptr) {
        if (const auto best = nulls.offsets->best(layer)) {
          one.nulls.push_back({"best_offset", best->score});
          one.details.emplace_back("best_offset", static_cast<double>(best->offset));
        }
      }
      if (nulls.drawn && shuffled.defined()) {
        const double mean = shuffled.select(1, i).nanmean().item<double>();
        if (std::isfinite(mean)) one.nulls.push_back({"shuffle", mean});
      }
      if (best_of_n) one.nulls.push_back({"best_of_n", *best_of_n});
    }
    judge(one);
    found.push_back(std::move(one));
  }
  return found;
}

void add_scores(const std::vector<RoleScore>& scores, RoleTable& table) {
  for (size_t i = 0; i < scores.size(); ++i) {
    const auto place = static_cast<int64_t>(i);
    table.add(place / table.layout.heads, place % table.layout.heads, scores[i]);
  }
}

}  // namespace headkit
