#include "attention/input_weight.h"

#include "kernels/dispatch.h"
#include "operators/float32.h"

namespace headkit {
namespace {

// Tokens of a batch up to which laying out a weight in panels costs more than it saves.
constexpr int64_t kFewTokens = 192;

}  // namespace

InputWeight::InputWeight(const at::Tensor& weight, int64_t head_dim, const std::vector<bool>& open,
                         int64_t tokens, Arena& arena)
    : rows_(in_float32(weight)), head_dim_(head_dim) {
  const int64_t vector = kernels::kernel_table().vector_length;
  if (tokens <= kFewTokens && rows_.size(1) % vector == 0) return;
  panels_.emplace(pack_input_panels(weight, head_dim, open, arena));
}

}  // namespace headkit
