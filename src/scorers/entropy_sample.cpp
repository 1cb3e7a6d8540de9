#include "scorers/entropy_sample.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"

namespace headkit {

void put_heads(const at::Tensor& values, const std::vector<int64_t>& heads, int64_t layer,
               const at::Tensor& sums) {
  sums.select(1, layer).index_copy_(1, at::tensor(heads, at::kLong), values);
}

ScoreSample entropy_sample(const char* metric, GatedModel& model, const DataSource& data,
                           LeftOutToken left_out, const Progress& progress) {
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  ScoreSample sample;
  double rows = 0;
  for_each_run(
      metric, model, data, {.attention_calls = true}, progress,
      [&](const Batch& batch, const Taps& seen) -> Measured {
        const at::Tensor sums =
            at::zeros({batch_size(batch), layout.layers, layout.heads}, at::kDouble);
        const at::Tensor counts = at::zeros_like(sums);
        for (int64_t layer = 0; layer < layout.layers; ++layer) {
          const std::vector<int64_t> heads = present.layer_heads(layer);
          if (heads.empty()) continue;
          const AttentionBlockCall& call = seen.attention_call[layer];
          const AttentionRows found = attention_rows(call, left_out);
          const at::Tensor counted = valid_queries(seen.valid[layer], call.x, LeftOutToken::kNone)
                                         .unsqueeze(1)
                                         .logical_and(found.keys.gt(1.5))
                                         .expand_as(found.entropy);
          const at::Tensor share = found.entropy / found.keys.clamp_min(2).log();
          put_heads(at::where(counted, share, at::zeros_like(share)).sum(2), heads, layer, sums);
          put_heads(counted.sum(2).to(at::kDouble), heads, layer, counts);
        }
        return {sums, counts};
      },
      [&](const Measured& measured) {
        rows += measured[1].sum().item<double>();
        sample.add(measured[0], measured[1]);
      });
  HEADKIT_CHECK(rows > 0, metric, "queries that may see at least two keys", "none");
  return sample;
}

}  // namespace headkit
