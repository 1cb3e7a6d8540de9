#pragma once

#include <string>
#include <vector>

#include "headkit/models/objective.h"
#include "headkit/pruners/top_fraction.h"
#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `tune_hies`.
struct HiesTuningOptions {
  std::vector<double> alphas = {};  ///< tried, each in [0, 1]; empty = 0, 0.1, .. 1
  TopFractionOptions share = {};    ///< what is kept; `candidates` is set from the model
  /// Normalisation and compensation of the scores; `progress`: masks tried on validation data.
  ScoreOptions score = {};
};

/// The alpha of HiesScorer whose mask has the least loss, and what all of them came to.
struct HiesTuning {
  double alpha = 0;
  std::vector<double> alphas;   ///< tried, ascending
  std::vector<double> losses;   ///< mean loss of the validation data under the mask of each
  std::vector<HeadMask> masks;  ///< of each
  std::string data_hash, validation_hash;
};

/// Scores on `data`, then runs the model on `validation` under the mask of every alpha. Of alphas
/// with the same loss the largest, next to the gate gradient alone, is taken. Cost: two scorings,
/// and a forward of `validation` for each mask that differs. Throws std::invalid_argument for
/// alphas outside [0, 1], and where `validation` holds an example of `data`: alpha would be chosen
/// on what the heads were scored on. Source: HIES 2025 (arXiv 2510.13832).
HiesTuning tune_hies(GatedModel& model, const DataSource& data, const DataSource& validation,
                     const Objective& objective, const HiesTuningOptions& options = {});

}  // namespace headkit
