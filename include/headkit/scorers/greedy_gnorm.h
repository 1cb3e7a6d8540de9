#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `GreedyGnormScorer`.
struct GreedyGnormOptions {
  /// Computes the products anew after every removal; false: once, and these are the scores.
  bool recompute = true;
};

/// |dL/dW_Q^h| |dL/dW_K^h| |dL/dW_V^h|, Frobenius norms of the gradients of the mean loss (biases
/// excluded). The head of least product is closed, the products are computed anew with it closed,
/// and so on; the score of a head is its place in that order, from 1. Heads that share keys and
/// values share their part; layers that share weights share the products of the whole.
/// One forward and one backward over the data for each head. Reads Taps::attention_calls.
/// Source: Greedy-Gnorm 2026 (arXiv 2602.04491).
class GreedyGnormScorer final : public HeadScorer {
 public:
  explicit GreedyGnormScorer(GreedyGnormOptions options = {}) : options_(options) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  GreedyGnormOptions options_;
};

}  // namespace headkit
