#include "headkit/scorers/confidence.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "scorers/entropy_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "confidence";

}  // namespace

HeadScores ConfidenceScorer::score(GatedModel& model, const DataSource& data, const Objective&,
                                   const ScoreOptions& options) const {
  check_score_options(options);
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  const LeftOutToken left_out = options_.exclude_end ? LeftOutToken::kLast : LeftOutToken::kNone;
  HeadScores scores;
  scores.metric = kName;
  ScoreSample sample;
  double rows = 0;
  scores.samples = for_each_run(
      kName, model, data, {.attention_calls = true}, options.progress,
      [&](const Batch& batch, const Taps& seen) -> Measured {
        const at::Tensor sums =
            at::zeros({batch_size(batch), layout.layers, layout.heads}, at::kDouble);
        const at::Tensor counts = at::zeros_like(sums);
        for (int64_t layer = 0; layer < layout.layers; ++layer) {
          const std::vector<int64_t> heads = present.layer_heads(layer);
          if (heads.empty()) continue;
          const AttentionBlockCall& call = seen.attention_call[layer];
          AttentionRows found = attention_rows(call, left_out);
          if (left_out != LeftOutToken::kNone) {
            // The end keeps what it takes: the largest of the other weights as they are.
            const at::Tensor all = attention_rows(call, LeftOutToken::kNone).log_sum_exp;
            found.largest_weight = found.largest_weight * (found.log_sum_exp - all).exp();
          }
          const at::Tensor counted = valid_queries(seen.valid[layer], call.x, left_out)
                                         .unsqueeze(1)
                                         .logical_and(found.keys.gt(0.5))
                                         .expand_as(found.entropy);
          put_heads(at::where(counted, found.largest_weight, at::zeros_like(found.entropy)).sum(2),
                    heads, layer, sums);
          put_heads(counted.sum(2).to(at::kDouble), heads, layer, counts);
        }
        return {sums, counts};
      },
      [&](const Measured& measured) {
        rows += measured[1].sum().item<double>();
        sample.add(measured[0], measured[1]);
      });
  HEADKIT_CHECK(rows > 0, kName,
                options_.exclude_end ? "examples of at least two tokens" : "queries that see a key",
                "none");
  sample.summarise(options, scores);
  scores.settings = Json{{"normalization", options.normalization},
                         {"bootstrap", options.bootstrap},
                         {"exclude_end", options_.exclude_end}}
                        .dump();
  return scores;
}

}  // namespace headkit
