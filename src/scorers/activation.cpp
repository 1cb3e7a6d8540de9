#include "headkit/scorers/activation.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/context_moments.h"
#include "scorers/entropy_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "activation";

}  // namespace

HeadScores ActivationScorer::score(GatedModel& model, const DataSource& data, const Objective&,
                                   const ScoreOptions& options) const {
  check_score_options(options);
  const std::string& statistic = options_.statistic;
  HEADKIT_CHECK(statistic == "energy" || statistic == "norm" || statistic == "raw_norm", kName,
                "statistic energy, norm or raw_norm", "'", statistic, "'");
  const HeadLayout layout = model.layout();
  // |a W_O^T|^2 = a W_O^T W_O a^T
  std::vector<at::Tensor> grams;
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    const at::Tensor o = output_slices(model, layer);  // [h, D, dh]
    grams.push_back(o.transpose(1, 2).matmul(o));
  }
  HeadScores scores;
  scores.metric = kName;
  ScoreSample sample;
  scores.samples = for_each_context(
      kName, model, data, options.progress,
      [&](int64_t examples) -> Measured {
        return {at::zeros({examples, layout.layers, layout.heads}, at::kDouble),
                at::zeros({examples, layout.layers, 1}, at::kDouble)};
      },
      [&](int64_t layer, const std::vector<int64_t>& heads, const at::Tensor& context,
          const at::Tensor& valid, const Measured& room) {
        at::Tensor squares = statistic == "raw_norm" ? context.square().sum(3)
                                                     : at::einsum("bthd,hde,bthe->bth",
                                                                  {context, grams[layer], context});
        if (statistic != "energy") squares = squares.clamp_min(0).sqrt();
        put_heads(at::einsum("bth,bt->bh", {squares, valid}), heads, layer, room[0]);
        room[1].select(1, layer).copy_(valid.sum(1, /*keepdim=*/true));
      },
      [&](const Measured& measured) { sample.add(measured[0], measured[1]); });
  sample.summarise(options, scores);
  scores.settings = Json{
      {"normalization", options.normalization},
      {"bootstrap", options.bootstrap},
      {"statistic",
       statistic}}.dump();
  return scores;
}

}  // namespace headkit
