#pragma once

#include "headkit/scorers/head_scorer.h"

namespace headkit {

/// Settings of `FlapScorer`.
struct FlapOptions {
  bool standardize = true;  ///< z-scores over the channels of each layer, so that layers compare
  bool square = false;      ///< squares the channel scores first, as the released code does
};

/// Channels of the head outputs before the output projection, over the valid tokens of all data;
/// double, CPU, [L, H, dh]. Heads that are gone have 0.
struct ChannelFluctuation {
  at::Tensor mean;
  at::Tensor variance;  ///< of the population
  at::Tensor score;     ///< variance times the squared norm of the channel's column of W_O
};

/// One forward. Means and variances of examples are merged pairwise (Chan, Golub, LeVeque 1983), so
/// that nothing cancels and no example is lost. Throws std::invalid_argument for data without
/// tokens.
ChannelFluctuation channel_fluctuation(GatedModel& model, const DataSource& data,
                                       const Progress& progress = {});

/// The same of the neurons of feed-forward blocks, by their columns of the second linear map;
/// double, CPU, [L, F]. Neurons that are gone have 0.
struct NeuronFluctuation {
  at::Tensor mean, variance, score;
};

/// One forward, merged as channel_fluctuation does. Throws std::invalid_argument for a model that
/// does not show its neurons, and for data without tokens.
NeuronFluctuation neuron_fluctuation(GatedModel& model, const DataSource& data,
                                     const Progress& progress = {});

/// Scores of heads [L, H] from those of their channels [L, H, dh]; heads outside `present` get 0.
at::Tensor head_fluctuation(const at::Tensor& channels, const HeadMask& present,
                            const FlapOptions& options = {});
/// Scores of neurons [L, F], standardised over those of a layer that are there (bool [L, F]).
at::Tensor standardised_neurons(const at::Tensor& scores, const at::Tensor& present);

/// What a constant could not replace: mean over the channels of a head of their standardised
/// fluctuation. Looks at no label and no loss. Negative = below the mean of the layer.
/// Source: An et al. 2024 (FLAP).
class FlapScorer final : public HeadScorer {
 public:
  explicit FlapScorer(FlapOptions options = {}) : options_(options) {}
  HeadScores score(GatedModel& model, const DataSource& data, const Objective& objective,
                   const ScoreOptions& options) const override;

 private:
  FlapOptions options_;
};

}  // namespace headkit
