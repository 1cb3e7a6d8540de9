#include "headkit/scorers/attention_entropy.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/scorers/ablation.h"
#include "headkit/scorers/agreement.h"
#include "scorers/ablation_sample.h"
#include "scorers/entropy_sample.h"
#include "scorers/resampling.h"

namespace headkit {
namespace {

constexpr char kName[] = "attention_entropy";

// Examples first .. last-1 of a source.
class ExampleRange final : public DataSource {
 public:
  ExampleRange(const DataSource& data, int64_t first, int64_t last)
      : data_(data), first_(first), last_(last) {}
  void for_each(const std::function<void(const Batch&)>& visit) const override {
    int64_t begin = 0;
    data_.for_each([&](const Batch& batch) {
      const int64_t size = batch_size(batch);
      const int64_t from = std::clamp(first_ - begin, int64_t{0}, size);
      const int64_t to = std::clamp(last_ - begin, int64_t{0}, size);
      begin += size;
      if (from >= to) return;
      visit(to - from == size ? batch : select_examples(batch, at::arange(from, to)));
    });
  }
  std::optional<int64_t> size() const override { return std::nullopt; }

 private:
  const DataSource& data_;
  int64_t first_, last_;
};

int64_t count_examples(const DataSource& data) {
  int64_t examples = 0;
  data.for_each([&](const Batch& batch) { examples += batch_size(batch); });
  return examples;
}

// Spearman over the heads that are there, for each row of [rows, L, H].
at::Tensor correlations(const at::Tensor& a, const at::Tensor& b, const at::Tensor& present) {
  const auto picked = [&](const at::Tensor& values) {
    return values.flatten(1).index_select(1, present).contiguous();
  };
  const at::Tensor left = picked(a), right = picked(b);
  const int64_t heads = left.size(1);
  at::Tensor found = at::empty({left.size(0)}, at::kDouble);
  double* out = found.mutable_data_ptr<double>();
  for (int64_t row = 0; row < left.size(0); ++row) {
    const auto span = [&](const at::Tensor& values) {
      return std::span<const double>(values.const_data_ptr<double>() + row * heads,
                                     static_cast<size_t>(heads));
    };
    const double value = spearman(span(left), span(right));
    out[row] = std::isnan(value) ? 0.0 : value;
  }
  return found;
}

struct Calibration {
  LeftOutToken left_out = LeftOutToken::kNone;
  double correlation = 0, lower = 0, upper = 0;
};

Calibration calibrate(const ScoreSample& entropy, const ScoreSample& ablation,
                      const at::Tensor& present, const ScoreOptions& options) {
  Calibration found;
  const at::Tensor all = at::ones({1, entropy.units()}, at::kDouble);
  found.correlation =
      correlations(entropy.means(all), ablation.means(all), present)[0].item<double>();
  std::mt19937_64 random(options.seed);
  const int64_t resamples = options.bootstrap > 0 ? options.bootstrap : 1000;
  const at::Tensor counts = draw_counts(random, resamples, entropy.units());
  const at::Tensor sorted =
      std::get<0>(correlations(entropy.means(counts), ablation.means(counts), present).sort(0));
  const double tail = (1 - options.confidence) / 2;
  found.lower = percentile(sorted, tail).item<double>();
  found.upper = percentile(sorted, 1 - tail).item<double>();
  return found;
}

void check_options(const EntropyOptions& options) {
  HEADKIT_CHECK(options.sign == "calibrated" || options.sign == "high" || options.sign == "low",
                kName, "sign calibrated, high or low", "'", options.sign, "'");
  HEADKIT_CHECK(options.first_token == "keep" || options.first_token == "drop" ||
                    options.first_token == "calibrated",
                kName, "first_token keep, drop or calibrated", "'", options.first_token, "'");
  HEADKIT_CHECK(options.calibration_share > 0 && options.calibration_share < 1, kName,
                "a calibration_share in (0, 1)", options.calibration_share);
}

}  // namespace

HeadScores AttentionEntropyScorer::score(GatedModel& model, const DataSource& data,
                                         const Objective& objective,
                                         const ScoreOptions& options) const {
  check_score_options(options);
  check_options(options_);
  const at::Tensor scored = scored_heads(model);
  Json settings = {{"normalization", options.normalization}, {"bootstrap", options.bootstrap}};
  LeftOutToken left_out =
      options_.first_token == "drop" ? LeftOutToken::kFirst : LeftOutToken::kNone;
  bool high = options_.sign == "high";
  int64_t held_out = 0;
  const int64_t examples = count_examples(data);
  if (options_.sign == "calibrated" || options_.first_token == "calibrated") {
    held_out =
        static_cast<int64_t>(std::ceil(options_.calibration_share * static_cast<double>(examples)));
    HEADKIT_CHECK(examples >= 2 && held_out < examples, kName,
                  "examples for the calibration and others for the scores (or a given sign)",
                  examples);
    const ExampleRange slice(data, 0, held_out);
    const at::Tensor present = scored.flatten().nonzero().flatten();
    const ScoreSample ablation = ablation_sample(kName, model, slice, objective, {}).deltas;
    std::vector<Calibration> tried;
    for (const LeftOutToken each : {LeftOutToken::kNone, LeftOutToken::kFirst}) {
      if (options_.first_token == "keep" && each == LeftOutToken::kFirst) continue;
      if (options_.first_token == "drop" && each == LeftOutToken::kNone) continue;
      tried.push_back(
          calibrate(entropy_sample(kName, model, slice, each, {}), ablation, present, options));
      tried.back().left_out = each;
    }
    const Calibration& best =
        *std::max_element(tried.begin(), tried.end(), [](const auto& a, const auto& b) {
          return std::abs(a.correlation) < std::abs(b.correlation);
        });
    left_out = best.left_out;
    if (options_.sign == "calibrated") high = best.correlation >= 0;
    settings["calibration"] = {{"examples", held_out},
                               {"objective", objective.name()},
                               {"correlation", best.correlation},
                               {"lower", best.lower},
                               {"upper", best.upper},
                               {"confidence", options.confidence}};
    if (best.lower <= 0 && best.upper >= 0) {
      settings["warning"] =
          "the rank correlation of attention entropy with ablation includes 0: the sign is a guess";
    }
  }
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  scores.samples = examples - held_out;
  const ScoreSample sample = entropy_sample(kName, model, ExampleRange(data, held_out, examples),
                                            left_out, options.progress);
  const auto signed_scores = [&](const at::Tensor& entropy) {
    return (high ? entropy : 1 - entropy) * scored;
  };
  summarise_scores(
      options, signed_scores(sample.mean()), sample.units(),
      [&](const at::Tensor& counts) { return signed_scores(sample.means(counts)); }, scores);
  settings["sign"] = high ? "high" : "low";
  settings["first_token"] = left_out == LeftOutToken::kFirst ? "drop" : "keep";
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
