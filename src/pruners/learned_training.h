#pragma once

#include <string>

#include "core/json.h"
#include "core/method_settings.h"
#include "headkit/gates/harden.h"
#include "headkit/gates/layer_distillation.h"
#include "headkit/gates/learned_gates.h"
#include "headkit/pruners/learned_pruning.h"

namespace headkit {

/// Reads the settings that all pruners by learned gates share.
void read_training_settings(MethodSettings& settings, LearnedPruningOptions& options);
/// What all methods share, from the options of any method.
LearnedPruningOptions learned_pruning(const PruneOptions& given, LearnedPruningOptions standard);

/// Throws std::invalid_argument on shares and steps out of range, before any work.
void check_training(const char* method, const LearnedPruningOptions& options);
/// Heads that stay, and in a model that lost heads at most those that it has.
int64_t heads_to_keep(GatedModel& model, const TopFractionOptions& share);
/// Closes the gates of heads that the model lost for good: no gradient brings them back.
void close_lost_heads(GatedModel& model, const at::Tensor& parameter);

/// Trains `gates` as the options say; `progress` continues at `done` of `total` steps.
void train(GatedModel& model, LearnedGates& gates, const DataSource& data,
           const Objective& objective, const LearnedPruningOptions& options, int64_t done,
           int64_t total, const LayerDistillation* distillation = nullptr);

/// The heads of largest `values` [L, H] as a pruning; `details` is completed by method, settings
/// and the losses of hardening.
StaticPruning prune_by_values(GatedModel& model, const DataSource& data, const Objective& objective,
                              const LearnedGates& gates, const at::Tensor& values,
                              const LearnedPruningOptions& options, Json details);
/// Adds to `details` what is the same for all, and the losses of hardening.
void add_details(Json& details, const LearnedGates& gates, const Objective& objective,
                 const LearnedPruningOptions& options, const HardenedGates& hardened);
HardenedGates hardened(GatedModel& model, const LearnedGates& gates, const DataSource& data,
                       const Objective& objective, const LearnedPruningOptions& options);

}  // namespace headkit
