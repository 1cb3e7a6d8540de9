#include "headkit/explain/input_attention.h"

#include <ATen/ATen.h>

#include "headkit/core/error.h"
#include "headkit/explain/attention_rows.h"

namespace headkit {

std::vector<std::vector<std::optional<CodedAttention>>> input_attention(GatedModel& model,
                                                                        const Batch& batch,
                                                                        const GateSet& gates,
                                                                        const at::Tensor& sinks) {
  const int64_t samples = batch_size(batch);
  HEADKIT_CHECK(!sinks.defined() || (sinks.dim() == 2 && sinks.size(0) == samples &&
                                     sinks.scalar_type() == at::kBool),
                "input_attention", "sinks of shape [batch, tokens], bool", sinks.sizes());
  const int64_t heads = model.layout().heads;
  std::vector<std::vector<std::optional<CodedAttention>>> coded(
      static_cast<size_t>(samples),
      std::vector<std::optional<CodedAttention>>(model.layout().total_heads()));
  const BatchList data({batch});
  for_each_attention(
      model, data, {.gates = gates, .output_norms = true}, [&](const SampleAttention& rows) {
        const int64_t keys = rows.probabilities.size(2);
        if (rows.cross || (sinks.defined() && sinks.size(1) != rows.block_keys)) return;
        const at::Tensor sink =
            sinks.defined() ? sinks[rows.row].cpu().narrow(0, 0, keys) : at::Tensor();
        std::vector<CodedAttention> found =
            code_attention(rows.probabilities, rows.query_valid, sink);
        for (size_t n = 0; n < found.size(); ++n) {
          const at::Tensor norms = rows.value_norm[static_cast<int64_t>(n)].contiguous();
          const float* values = norms.const_data_ptr<float>();
          found[n].value_norm.assign(values, values + keys);
          coded[rows.row][rows.layer * heads + rows.heads[n]] = std::move(found[n]);
        }
      });
  return coded;
}

}  // namespace headkit
