#pragma once

#include <memory>

namespace headkit {

/// Beside GatedModel, what a model shows whose residual stream is known.
class DirectPaths {
 public:
  virtual ~DirectPaths() = default;
  /// While the returned object lives, gradients of this thread's runs flow along the residual
  /// stream alone: what attention and feed-forward blocks read is a constant, and norms keep their
  /// scale (LayerNorm still centres). Outputs stay as they are. Null = this model's stream is not
  /// known.
  virtual std::shared_ptr<void> direct_paths() = 0;
};

}  // namespace headkit
