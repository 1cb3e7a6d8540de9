#pragma once

#include "headkit/models/gated_model.h"

namespace headkit {

/// Beside GatedModel, what a view of another model shows that keeps some of its heads closed.
/// States of the two are the same.
class ModelView {
 public:
  virtual ~ModelView() = default;
  /// The model without the view: what objectives take for dense.
  virtual GatedModel& whole() = 0;
};

}  // namespace headkit
