#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace headkit {

/// NaN where one side is constant.
double pearson(std::span<const double> a, std::span<const double> b);
/// Of average ranks; NaN where one side is constant.
double spearman(std::span<const double> a, std::span<const double> b);

/// Kendall's rank correlation, with the counts behind it.
struct KendallTau {
  double tau_b = 0;  ///< NaN where one side is constant
  int64_t concordant = 0;
  int64_t discordant = 0;
};
/// Kendall's tau-b. O(n^2).
KendallTau kendall_tau(std::span<const double> a, std::span<const double> b);

/// The k largest of two rankings; ties go to the lower place.
struct TopKOverlap {
  std::vector<int64_t> top_a, top_b;  ///< ascending places
  double overlap = 0;                 ///< |A and B| / k
  double chance = 0;                  ///< what two random sets give: k / N
  double kuncheva = 0;                ///< (overlap - chance) / (1 - chance); NaN at k = N
  double jaccard = 0;                 ///< |A and B| / |A or B|; misleading for k near N
  double p_value = 1;                 ///< of at least this overlap by chance, hypergeometric
};
/// Source: Kuncheva 2007. 1 <= k <= N.
TopKOverlap top_k_overlap(std::span<const double> a, std::span<const double> b, int64_t k);

/// One way to score heads, measured once or several times.
struct ScoreSeries {
  std::string name;
  at::Tensor values;  ///< double, CPU, [runs, layers, heads]
};

/// What the runs of a series are, and so what an interval is over.
enum class SeriesRuns {
  kRepeats,   ///< seeds: each run is a whole measurement; agreement is the mean over runs
  kExamples,  ///< contributions of examples: their mean is the measurement
};

/// Settings of `agreement`.
struct AgreementOptions {
  SeriesRuns runs = SeriesRuns::kRepeats;
  int64_t top_k = 0;  ///< of the overlap; 0 = half of the heads
  double confidence = 0.95;
  int64_t resamples = 1000;  ///< of runs, the same for all series; 0 = no interval
  uint64_t seed = 0;
};

/// A statistic of every pair of series, [n, n] double; lower and upper undefined without interval.
/// Undefined correlations are NaN.
struct PairMatrix {
  at::Tensor values, lower, upper;
};

/// How far ways to score heads agree.
struct Agreement {
  std::vector<std::string> names;
  int64_t runs = 0;
  int64_t top_k = 0;
  double confidence = 0.95;
  bool over_examples = false;
  PairMatrix pearson, spearman, kendall;
  PairMatrix overlap;  ///< of the top k; by chance top_k / (layers * heads)
  double chance = 0;
  /// With repeats: Spearman between different runs of one series, mean over pairs, [n]; NaN with
  /// one run.
  at::Tensor between_runs;
  /// Standard deviation over series of a head's mean rank (1 = least important), [layers, heads]:
  /// where they disagree most.
  at::Tensor rank_spread;

  std::string to_json() const;
};

/// Every pair of series, run by run. Throws std::invalid_argument for fewer than two series,
/// shapes or numbers of runs that differ, values that are not finite, repeated names, and options
/// out of range. O(resamples * series^2 * heads^2) with examples.
Agreement agreement(const std::vector<ScoreSeries>& series, const AgreementOptions& options = {});

}  // namespace headkit
