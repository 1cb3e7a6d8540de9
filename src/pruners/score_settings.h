#pragma once

#include "core/method_settings.h"
#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// The settings of scores that methods with scores inside share.
void read_score_settings(MethodSettings& settings, ScoreOptions& score);

}  // namespace headkit
