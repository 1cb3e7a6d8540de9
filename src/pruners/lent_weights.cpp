#include "pruners/lent_weights.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <set>

#include "headkit/core/error.h"

namespace headkit {

LentWeights::~LentWeights() {
  const c10::NoGradGuard no_grad;
  for (auto each = kept_.rbegin(); each != kept_.rend(); ++each) {
    at::Tensor tensor = each->tensor;
    tensor.copy_(each->values);
  }
}

void LentWeights::write(const at::Tensor& tensor, const at::Tensor& values) {
  const c10::NoGradGuard no_grad;
  kept_.push_back({tensor.detach(), tensor.detach().clone()});
  kept_.back().tensor.copy_(values);
}

void check_own_outputs(const char* operation, GatedModel& model, bool feed_forward) {
  std::set<const void*> seen;
  for (int64_t layer = 0; layer < model.layout().layers; ++layer) {
    bool fresh = seen.insert(model.attention(layer).o.const_data_ptr()).second;
    if (feed_forward) {
      fresh = seen.insert(model.feed_forward(layer).out.const_data_ptr()).second && fresh;
    }
    HEADKIT_CHECK(fresh, operation, "layers with output projections of their own",
                  "layers that share weights");
  }
}

}  // namespace headkit
