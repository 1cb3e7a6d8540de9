#pragma once

#include "attention/attention_problem.h"

namespace headkit {

/// Whether backend "cpu" multiplies bfloat16 in this problem, which it does not refuse: where the
/// level in use has an instruction for it. Few queries on given keys are summed in float32.
bool runs_in_bf16(const AttentionProblem& problem);

}  // namespace headkit
