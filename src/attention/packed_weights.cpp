#include "attention/packed_weights.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <list>
#include <mutex>
#include <new>
#include <vector>

#include "kernels/dispatch.h"

namespace headkit {
namespace {

constexpr size_t kPackedTensors = 7;
constexpr size_t kMaxEntries = 1024;

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl>;

std::array<const at::Tensor*, kPackedTensors> tensors_of(const AttentionWeights& w) {
  return {&w.q, &w.k, &w.v, &w.o, &w.q_bias, &w.k_bias, &w.v_bias};
}

// What must not have changed for a packed form to be right.
struct TensorKey {
  const c10::TensorImpl* owner = nullptr;
  const void* data = nullptr;
  std::vector<int64_t> sizes, strides;
  uint32_t version = 0;
  bool operator==(const TensorKey&) const = default;
};

// A slice of a larger parameter is a new tensor at every call; the parameter behind it is not.
at::TensorBase owner_of(const at::Tensor& tensor) {
  return tensor.is_view() ? tensor._base() : at::TensorBase(tensor);
}

TensorKey key_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {owner_of(tensor).unsafeGetTensorImpl(), tensor.const_data_ptr(), tensor.sizes().vec(),
          tensor.strides().vec(), static_cast<uint32_t>(tensor._version())};
}

struct Entry {
  std::array<TensorKey, kPackedTensors> keys;
  // Hold no memory of the weights, but keep the addresses in `keys` from being given to others.
  std::vector<WeakTensor> owners;
  int64_t heads = 0;
  std::shared_ptr<const PackedWeights> packed;

  bool expired() const {
    return std::any_of(owners.begin(), owners.end(),
                       [](const WeakTensor& owner) { return owner.expired(); });
  }
};

struct Cache {
  std::mutex mutex;
  std::list<Entry> entries;  // the last used first
};

Cache& cache() {
  static Cache* instance = new Cache;  // outlives every thread that may still compute at exit
  return *instance;
}

// Weights as the kernels read them, and the arguments of the packing of each head.
class HeadWeights {
 public:
  HeadWeights(const AttentionWeights& weights, int64_t head_dim)
      : q_(weights.q.contiguous()),
        k_(weights.k.contiguous()),
        v_(weights.v.contiguous()),
        o_(weights.o.contiguous()),
        head_dim_(head_dim) {
    const auto contiguous = [](const at::Tensor& bias) {
      return bias.defined() ? bias.contiguous() : bias;
    };
    q_bias_ = contiguous(weights.q_bias);
    k_bias_ = contiguous(weights.k_bias);
    v_bias_ = contiguous(weights.v_bias);
  }

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
  at::Tensor q_, k_, v_, o_, q_bias_, k_bias_, v_bias_;
  int64_t head_dim_;
};

PackedWeights room_for(int64_t heads, int64_t head_floats) {
  PackedWeights packed;
  packed.head_floats = head_floats;
  const size_t bytes = std::max<size_t>(1, heads * head_floats * sizeof(float));
  packed.data = {static_cast<float*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)), std::free};
  if (packed.data == nullptr) throw std::bad_alloc();
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
  const auto tensors = tensors_of(weights);
  bool countable = true, trained = false;
  for (const at::Tensor* tensor : tensors) {
    if (!tensor->defined()) continue;
    countable = countable && !tensor->is_inference();
    trained = trained || (c10::GradMode::is_enabled() && tensor->requires_grad());
  }
  if (!countable) return pack(weights, heads, head_dim);

  std::array<TensorKey, kPackedTensors> keys;
  for (size_t i = 0; i < kPackedTensors; ++i) keys[i] = key_of(*tensors[i]);
  const auto same_place = [&keys](const Entry& entry) {
    for (size_t i = 0; i < kPackedTensors; ++i) {
      if (entry.keys[i].owner != keys[i].owner || entry.keys[i].data != keys[i].data) return false;
    }
    return true;
  };
  Cache& known = cache();
  {
    const std::lock_guard<std::mutex> lock(known.mutex);
    const auto found = std::find_if(known.entries.begin(), known.entries.end(), same_place);
    if (found != known.entries.end()) {
      if (!trained && found->keys == keys && found->heads == heads) {
        known.entries.splice(known.entries.begin(), known.entries, found);
        return found->packed;
      }
      known.entries.erase(found);
    }
  }

  auto packed = pack(weights, heads, head_dim);
  if (trained) return packed;
  Entry entry{keys, {}, heads, packed};
  for (const at::Tensor* tensor : tensors) {
    if (tensor->defined()) entry.owners.emplace_back(owner_of(*tensor).getIntrusivePtr());
  }
  const std::lock_guard<std::mutex> lock(known.mutex);
  known.entries.remove_if([&](const Entry& other) { return other.expired() || same_place(other); });
  known.entries.push_front(std::move(entry));
  while (known.entries.size() > kMaxEntries) known.entries.pop_back();
  return packed;
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

int64_t packed_weights_count() {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  return static_cast<int64_t>(cache().entries.size());
}

void refresh_packed_weights() {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  cache().entries.clear();
}

}  // namespace headkit
