#include "headkit/models/batch.h"

#include "headkit/core/error.h"

namespace headkit {

int64_t batch_size(const Batch& batch) {
  HEADKIT_CHECK(!batch.empty(), "batch", "at least one tensor", "an empty batch");
  int64_t size = -1;
  for (const auto& [name, tensor] : batch) {
    HEADKIT_CHECK(tensor.defined() && tensor.dim() >= 1, "batch",
                  "tensors whose first axis is the example",
                  "'" + name + "' " + (tensor.defined() ? "without an axis" : "undefined"));
    if (size < 0) size = tensor.size(0);
    HEADKIT_CHECK(tensor.size(0) == size, "batch",
                  "the same number of examples in every tensor (" + std::to_string(size) + ")", "'",
                  name, "' of shape ", tensor.sizes());
  }
  return size;
}

Batch select_examples(const Batch& batch, const at::Tensor& index) {
  Batch selected;
  for (const auto& [name, tensor] : batch) {
    selected[name] = tensor.index_select(0, index.to(tensor.device()));
  }
  return selected;
}

void BatchList::for_each(const std::function<void(const Batch&)>& visit) const {
  for (const Batch& batch : batches_) visit(batch);
}

}  // namespace headkit
