#include "attention/packed_weights.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include "kernels/dispatch.h"
#include "operators/float32.h"

namespace headkit {
namespace {

// Weights as the kernels read them, and the arguments of the packing of each head.
class HeadWeights {
 public:
  HeadWeights(const AttentionWeights& weights, int64_t head_dim)
      : q_(in_float32(weights.q)),
        k_(in_float32(weights.k)),
        v_(in_float32(weights.v)),
        o_(in_float32(weights.o)),
        q_bias_(in_float32(weights.q_bias)),
        k_bias_(in_float32(weights.k_bias)),
        v_bias_(in_float32(weights.v_bias)),
        head_dim_(head_dim) {}

  int64_t width() const { return q_.size(1); }

  kernels::PackHeadParams of(int64_t head, float* packed) const {
    const auto row = [&](const at::Tensor& tensor) -> const float* {
      if (!tensor.defined()) return nullptr;
      return tensor.const_data_ptr<float>() +
             head * head_dim_ * (tensor.dim() == 2 ? tensor.size(1) : 1);
    };
    return {.q = row(q_),
            .k = row(k_),
            .v = row(v_),
            .o = o_.const_data_ptr<float>() + head * head_dim_,
            .q_bias = row(q_bias_),
            .k_bias = row(k_bias_),
            .v_bias = row(v_bias_),
            .packed = packed,
            .width = width(),
            .head_dim = head_dim_,
            .o_stride = o_.size(1)};
  }

 private:
  const at::Tensor q_, k_, v_, o_, q_bias_, k_bias_, v_bias_;
  const int64_t head_dim_;
};

PackedWeights room_for(int64_t heads, int64_t head_floats) {
  PackedWeights packed;
  packed.head_floats = head_floats;
  packed.data = aligned_floats(heads * head_floats);
  return packed;
}

std::shared_ptr<const PackedWeights> pack(const AttentionWeights& weights, int64_t heads,
                                          int64_t head_dim) {
  const kernels::KernelTable& table = kernels::kernel_table();
  const HeadWeights from(weights, head_dim);
  auto packed = std::make_shared<PackedWeights>(
      room_for(heads, table.packed_head_floats(from.width(), head_dim)));
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      table.pack_head(from.of(head, packed->data.get() + head * packed->head_floats));
    }
  });
  return packed;
}

}  // namespace

std::shared_ptr<const PackedWeights> packed_weights(const AttentionWeights& weights, int64_t heads,
                                                    int64_t head_dim) {
  return std::static_pointer_cast<const PackedWeights>(cached_packing(
      {weights.q, weights.k, weights.v, weights.o, weights.q_bias, weights.k_bias, weights.v_bias},
      {kAttentionPacking, heads}, [&] { return pack(weights, heads, head_dim); }));
}

PackedBackwardWeights pack_backward_weights(const AttentionWeights& weights,
                                            const std::vector<bool>& wanted, int64_t head_dim) {
  const kernels::KernelTable& table = kernels::kernel_table();
  const HeadWeights from(weights, head_dim);
  const int64_t heads = static_cast<int64_t>(wanted.size());
  PackedBackwardWeights packed{
      room_for(heads, table.packed_head_floats(from.width(), head_dim)),
      room_for(heads, table.packed_head_backward_floats(from.width(), head_dim))};
  at::parallel_for(0, heads, 1, [&](int64_t begin, int64_t end) {
    for (int64_t head = begin; head < end; ++head) {
      if (!wanted[head]) continue;
      table.pack_head(from.of(head, packed.forward.data.get() + head * packed.forward.head_floats));
      table.pack_head_backward(
          from.of(head, packed.backward.data.get() + head * packed.backward.head_floats));
    }
  });
  return packed;
}

}  // namespace headkit
