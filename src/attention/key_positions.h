#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_problem.h"

namespace headkit {

/// Keys first .. first + count - 1.
struct KeyRange {
  int64_t first = 0;
  int64_t count = 0;

  /// These keys of `tensor` along `dim`, a view. A dimension of size 1 that stands for all keys is
  /// returned as it is.
  at::Tensor of(const at::Tensor& tensor, int64_t dim, int64_t num_keys) const;
};

/// The keys that some query may see as far as is_causal and window decide: nobody reads the others.
KeyRange reachable_keys(const AttentionProblem& problem);

/// Which query may see which key of the range by is_causal and window: bool [T, count]. Undefined
/// if every query sees all of them.
at::Tensor position_mask(const AttentionProblem& problem, const KeyRange& keys);

/// Whether the mask of these keys is that of scaled_dot_product_attention's is_causal.
bool is_plain_causal(const AttentionProblem& problem, const KeyRange& keys);

}  // namespace headkit
