#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "headkit/core/gate_set.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Sums over valid tokens, double on CPU: of the inputs x of an output projection in the model that
/// is pruned (all units that are physically there, whatever their gates), and of the outputs y,
/// without its bias, that would lead to what the dense model has after the block.
struct ProjectionMoments {
  at::Tensor gram;        // [n, n], sum x x^T
  at::Tensor cross;       // [D, n], sum y x^T
  at::Tensor input_sum;   // [n]
  at::Tensor target_sum;  // [D]
  double tokens = 0;

  /// Of x and y less their means.
  ProjectionMoments centred() const;
  /// Of these places of x.
  ProjectionMoments select(const at::Tensor& index) const;
};

/// The dense model and the one that is being pruned, side by side through the layers: each layer is
/// fitted to the dense model's outputs while it sees the inputs that pruning below has left it.
/// Needs a model with one attention block a layer. For each layer: `begin`, any number of looks at
/// its blocks, `end`. Weights of a layer may change between `begin` and `end`.
class DenseWalk {
 public:
  /// Looks at the first `examples` examples at most, whole batches; 0 = all.
  DenseWalk(GatedModel& model, const DataSource& data, int64_t examples);

  void begin(int64_t layer);
  ProjectionMoments attention(const GateSet& gates);
  ProjectionMoments feed_forward(const GateSet& gates);
  void end(const GateSet& gates);
  int64_t examples() const { return examples_; }

 private:
  // One batch.
  struct Place {
    ModelState dense, pruned;  // before the layer
    ModelState dense_next;
    at::Tensor attention_target, feed_forward_target;  // residual + output without bias, [B, T, D]
    bool norm_first = false;  // the feed-forward block adds to the same stream as the attention
  };

  GatedModel& model_;
  int64_t layer_ = 0, examples_ = 0;
  bool feed_forward_ = false;
  std::vector<Place> places_;
};

}  // namespace headkit
