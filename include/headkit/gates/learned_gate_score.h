#pragma once

#include <string>

#include "headkit/core/head_scores.h"
#include "headkit/gates/learned_gates.h"

namespace headkit {

/// What trained gates say of heads: the parameter that decides about them (log_alpha, or the w of a
/// subset), which ranks also where the gates themselves are clipped. `parameter`: its name; empty =
/// the first with the axes [layers, heads]. Throws std::invalid_argument if there is none.
HeadScores learned_gate_scores(const LearnedGates& gates, const std::string& parameter = "");

}  // namespace headkit
