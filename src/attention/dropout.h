#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_problem.h"
#include "attention/key_positions.h"

namespace headkit {

/// What dropout multiplies the probabilities of some pairs with: 0 or 1 / (1 - p), of shape
/// [samples, heads, T, keys], in `dtype`. An entry depends on the seed and its own place (sample,
/// head, query, key) in the problem alone, so neither on the backend nor on what is skipped.
/// `samples` and `heads` are int64 indices on the device of x.
at::Tensor dropout_factor(const AttentionProblem& problem, const at::Tensor& samples,
                          const at::Tensor& heads, const KeyRange& keys, at::ScalarType dtype);

}  // namespace headkit
