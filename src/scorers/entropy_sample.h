#pragma once

#include "scorers/attention_rows.h"
#include "scorers/score_sample.h"

namespace headkit {

/// Normalised entropies of valid queries that see at least two keys, by example: their sum and
/// their number for each head.
ScoreSample entropy_sample(const char* metric, GatedModel& model, const DataSource& data,
                           LeftOutToken left_out, const Progress& progress);

/// [L, h present] rows of a block put at their places among all heads: values [B, h] into
/// sums[:, layer].
void put_heads(const at::Tensor& values, const std::vector<int64_t>& heads, int64_t layer,
               const at::Tensor& sums);

}  // namespace headkit
