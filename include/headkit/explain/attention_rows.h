#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// What the heads of one attention block look at in one sample: a row for each query.
///
/// Padding behind the last token is cut off, so T and S are those of the sample alone.
struct SampleAttention {
  int64_t sample = 0;            ///< number of the example in the data, from 0
  int64_t layer = 0;             ///< the block, as in HeadLayout
  std::vector<int64_t> heads;    ///< original indices of the h heads that are there
  at::Tensor probabilities;      ///< [h, T, S], float32, CPU, contiguous; 0 where not allowed
  at::Tensor key_allowed;        ///< bool [1 or h, T, S]: keys that a query may see
  at::Tensor query_valid;        ///< bool [T]: tokens, no padding, that may see a key
  at::Tensor output_norm;        ///< [h, T]: |o W_O^T|, what a head writes under a gate of 1
  at::Tensor value_norm;         ///< [h, S]: |v W_O^T|, what it would write for one key alone
  int64_t block_queries = 0;     ///< T before the padding was cut off
  int64_t block_keys = 0;        ///< S before that
  bool cross = false;            ///< keys are of another sequence than queries
  const Batch* batch = nullptr;  ///< where the sample comes from; valid during the visit
  int64_t row = 0;               ///< its place in the batch
};

/// What `for_each_attention` runs and asks for.
struct AttentionRowOptions {
  GateSet gates = {};         ///< of the run: [L, H], or [B, L, H] for data of one batch
  bool output_norms = false;  ///< ask for `output_norm` and `value_norm`
  Progress progress = {};     ///< batches done
};

/// Runs the model over the data and shows the attention of every (block, sample), one at a time:
/// attention is never held for more than that. All blocks of a sample come before those of the
/// next sample of a batch.
///
/// Self, cross, causal, biased, rotary and grouped attention; closed heads too, whose gate does not
/// change what they look at. Dropout is off. A bias of -1e4 or less counts as not allowed. Beside
/// the forward it costs the products of queries and keys, and of values with `output_norms`.
///
/// Throws std::invalid_argument if the model does not show the calls of all its blocks, or if the
/// gates do not fit.
void for_each_attention(GatedModel& model, const DataSource& data,
                        const AttentionRowOptions& options,
                        const std::function<void(const SampleAttention&)>& visit);

}  // namespace headkit
