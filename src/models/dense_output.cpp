#include "models/dense_output.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "models/model_view.h"

namespace headkit {
namespace {

GatedModel& whole_model(GatedModel& model) {
  auto* const view = dynamic_cast<ModelView*>(&model);
  return view == nullptr ? model : view->whole();
}

}  // namespace

at::Tensor dense_output(GatedModel& model, const Objective& objective, const ModelState& embedded,
                        const at::Tensor& output) {
  if (!objective.needs_dense()) return {};
  GatedModel& dense = whole_model(model);
  if (output.defined() && &dense == &model) return output.detach();
  const c10::NoGradGuard no_grad;
  return dense.head(dense.run(embedded, 0, dense.layout().layers, {}));
}

}  // namespace headkit
