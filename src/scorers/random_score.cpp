#include "headkit/scorers/random_score.h"

#include <ATen/ATen.h>

#include <random>

namespace headkit {

HeadScores RandomScorer::score(GatedModel& model, const DataSource&, const Objective&,
                               const ScoreOptions& options) const {
  const HeadLayout layout = model.layout();
  HeadScores scores;
  scores.metric = "random";
  scores.settings = "{}";
  scores.seed = options.seed;
  scores.values = at::zeros({layout.layers, layout.heads}, at::kDouble);
  double* value = scores.values.mutable_data_ptr<double>();
  std::mt19937_64 random(options.seed);
  constexpr double kStep = 0x1p-53;
  for (int64_t i = 0; i < layout.total_heads(); ++i) {
    value[i] = static_cast<double>((random() >> 11) + 1) * kStep;
  }
  scores.values *= model.heads().keep().to(at::kDouble);
  return scores;
}

}  // namespace headkit
