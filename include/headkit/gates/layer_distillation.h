#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// How student layers are matched with those of the teacher, anew for each batch.
enum class LayerMatching {
  kNearest,  ///< each teacher layer takes the nearest student layer
  kOrdered,  ///< from the top down, among open layers below the one taken before: order is kept
};

/// For each teacher layer the student layer it is compared with, or -1 where none is left.
/// `distance`: [teacher layers, student layers]; `open`: the student layers that may be taken
/// (kNearest ignores it); ties go to the lower layer. Source: Xia, Zhong, Chen 2022 (versions 3 and
/// 4 of its code, which fails where no layer is left).
std::vector<int64_t> match_layers(const at::Tensor& distance, LayerMatching matching,
                                  const std::vector<bool>& open);

/// Settings of `LayerDistillation`.
struct LayerDistillationSettings {
  int64_t model_dim = 0;
  /// Teacher outputs to match, after so many layers, ascending, each >= 1; for 12 layers published
  /// as 3, 6, 9, 12.
  std::vector<int64_t> teacher_layers = {};
  LayerMatching matching = LayerMatching::kOrdered;
  double layer_weight = 0.9;       ///< of the layer loss; published: .9, .7, .5
  double prediction_weight = 0.1;  ///< of the prediction loss; published: .1, .3, .5
  double temperature = 2;          ///< of the prediction loss, which is multiplied by its square
};

/// Replaces the task loss while a student is pruned:
/// prediction_weight * tau^2 KL(teacher || student) + layer_weight * sum over teacher layers of
/// the mean square of W h_student - h_teacher over valid tokens. W [D, D] is shared, trained, and
/// the identity at the start.
class LayerDistillation {
 public:
  /// Throws std::invalid_argument on settings out of range.
  explicit LayerDistillation(LayerDistillationSettings settings);
  const LayerDistillationSettings& settings() const { return settings_; }
  const at::Tensor& projection() const { return projection_; }  ///< W, float32, a leaf

  /// Mean over the batch of the distillation loss, a differentiable scalar. `embedded` is a state
  /// of the student before layer 0, `gates` are its gates; layers whose attention sublayer is
  /// closed are not matched by kOrdered. The teacher runs dense, without dropout and gradient.
  at::Tensor loss(GatedModel& student, const ModelState& embedded, GatedModel& teacher,
                  const GateSet& gates) const;
  /// The layer part alone. `student`, `teacher`: hidden states [B, T, D] of each student layer and
  /// each matched teacher layer; `valid`: bool [B, T] or undefined.
  at::Tensor layer_loss(const std::vector<at::Tensor>& student,
                        const std::vector<at::Tensor>& teacher, const at::Tensor& valid,
                        const std::vector<bool>& open) const;

 private:
  LayerDistillationSettings settings_;
  at::Tensor projection_;
};

}  // namespace headkit
