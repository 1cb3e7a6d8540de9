#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_problem.h"

namespace headkit {

/// Whether the level in use multiplies bfloat16 natively and its kernels can run this problem: any
/// in bfloat16 without additive bias, window, offset of the queries or given keys and values.
/// Expects one that `attention_cpu_refusal` lets pass.
bool runs_in_bf16(const AttentionProblem& problem);

/// The output of such a problem, [B, T, D] bfloat16. Products of bfloat16 are summed in float32 and
/// rounded once on their way to the next product, queries and keys after their norm and rotary
/// embedding; so are the probabilities.
at::Tensor attention_bf16(const AttentionProblem& problem);

}  // namespace headkit
