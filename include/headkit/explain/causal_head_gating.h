#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"
#include "headkit/models/objective.h"

namespace headkit {

/// Settings of `causal_head_gating`.
struct CausalGatingOptions {
  int64_t fits = 5;             ///< at least 5: each from another start
  int64_t start_steps = 100;    ///< without pressure, from gates near 1/2
  int64_t pressed_steps = 200;  ///< of each of the two that go on from there
  double pressure = 0.1;        ///< times the mean gate, added to or taken from the loss
  double learning_rate = 0.1;
  uint64_t seed = 0;
  Progress progress = {};  ///< fits done
};

/// What soft gates that are pressed towards 1 and towards 0 settle at. Named by the direction of
/// the pressure.
struct CausalGating {
  at::Tensor pressed_up;    ///< double [fits, L, H]: G+
  at::Tensor pressed_down;  ///< double [fits, L, H]: G-
  /// Means over fits: facilitating G-, interfering 1 - G+, irrelevant G+ (1 - G-); double [L, H].
  at::Tensor facilitating, interfering, irrelevant;
  /// [L][H] by the mean gates, cut at 1/2: facilitating, interfering, irrelevant; inconsistent (low
  /// G+, high G-) is no label but a failed fit; empty for heads that are gone.
  std::vector<std::vector<std::string>> labels;
  at::Tensor agreement;  ///< double [L, H]: share of fits that by themselves give the same label
  std::string objective;
  int64_t examples = 0;

  /// Heads that both pressures left in the wrong order.
  int64_t inconsistent() const;
  std::string to_json() const;
};

/// Fits soft gates of a frozen model twice from a shared start that was fitted without pressure. A
/// label holds for `data`, never for one input. The loss is the mean of `objective`. Level L2:
/// gates scale heads towards nothing (zero ablation). Throws std::invalid_argument for options or
/// data that do not fit, std::runtime_error for a loss that is not finite. Source: Nam et al. 2025
/// (2505.13737); the cut, several fits and the fourth case are ours.
CausalGating causal_head_gating(GatedModel& model, const DataSource& data,
                                const Objective& objective,
                                const CausalGatingOptions& options = {});

/// The label of two gates in [0, 1].
std::string causal_label(double pressed_up, double pressed_down);

}  // namespace headkit
