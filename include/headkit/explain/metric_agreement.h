#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/core/head_layout.h"
#include "headkit/scorers/agreement.h"

namespace headkit {

/// A head that two metrics place far apart. Rank 1 = the largest value; ties share the mean rank.
struct RankGap {
  HeadId head;
  std::string first, second;  ///< metrics
  double first_rank = 0, second_rank = 0;
};

/// How far metrics of the same heads agree (attention mass, norm, direct effect, gate gradient,
/// toggle ...), and about which heads they do not. Disagreement is a result: show it.
struct MetricAgreement {
  Agreement agreement;        ///< Kendall's tau-b and others with bootstrap intervals
  double gap = 0;             ///< ranks: a quarter of the heads
  std::vector<RankGap> gaps;  ///< more than that apart, widest first
  std::string to_json() const;
};

/// Of two or more metrics, values [runs, layers, heads]; ranks are those of the mean over runs.
/// Throws what `agreement` throws.
MetricAgreement metric_agreement(const std::vector<ScoreSeries>& metrics,
                                 const AgreementOptions& options = {});

}  // namespace headkit
