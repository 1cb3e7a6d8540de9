#pragma once

#include <ATen/core/Tensor.h>

#include <functional>

#include "distributed/measured_walk.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// A token of each example that is taken out of the attention: nothing, the first or the last valid
/// one.
enum class LeftOutToken { kNone, kFirst, kLast };

/// What the queries of one attention block do, one row for each head that is there; double, CPU.
struct AttentionRows {
  at::Tensor entropy;         ///< [B, h, T], in nats
  at::Tensor largest_weight;  ///< [B, h, T]
  at::Tensor log_sum_exp;     ///< [B, h, T], of the scores of the keys that are seen
  at::Tensor keys;            ///< [B, 1 or h, T]: keys that a query may see
};

/// With `left_out` the token is no key, and the rest is normalised anew. No probabilities lie in
/// memory where `pair_statistics` needs none.
AttentionRows attention_rows(const AttentionBlockCall& call, LeftOutToken left_out);

/// Bool [B, T]: the queries that are valid; without the token that is left out.
at::Tensor valid_queries(const at::Tensor& valid, const at::Tensor& x, LeftOutToken left_out);

/// Runs the dense model without a graph over `data`, and calls `measure` for every batch that holds
/// examples with what `taps` asks for, and `take` with what it found; both as for
/// for_each_measured. Returns the number of examples. Throws std::invalid_argument if the model
/// shows less than all of its blocks, or if there is no example.
int64_t for_each_run(const char* metric, GatedModel& model, const DataSource& data,
                     const Taps& taps, const Progress& progress,
                     const std::function<Measured(const Batch& batch, const Taps& seen)>& measure,
                     const std::function<void(const Measured& measured)>& take);

}  // namespace headkit
