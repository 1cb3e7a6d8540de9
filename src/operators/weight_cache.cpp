#include "operators/weight_cache.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <list>
#include <mutex>
#include <utility>

#include "headkit/core/backend.h"

namespace headkit {
namespace {

constexpr size_t kMaxEntries = 1024;

using WeakTensor = c10::weak_intrusive_ptr<c10::TensorImpl>;

// What must not have changed for a packed form to be right.
struct TensorKey {
  const c10::TensorImpl* owner = nullptr;
  const void* data = nullptr;
  std::vector<int64_t> sizes, strides;
  uint32_t version = 0;
  at::ScalarType dtype = at::kFloat;
  bool operator==(const TensorKey&) const = default;
};

// A slice of a larger parameter is a new tensor at every call; the parameter behind it is not.
at::TensorBase owner_of(const at::Tensor& tensor) {
  return tensor.is_view() ? tensor._base() : at::TensorBase(tensor);
}

TensorKey key_of(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  return {owner_of(tensor).unsafeGetTensorImpl(),
          tensor.const_data_ptr(),
          tensor.sizes().vec(),
          tensor.strides().vec(),
          static_cast<uint32_t>(tensor._version()),
          tensor.scalar_type()};
}

struct Entry {
  std::vector<TensorKey> keys;
  // Hold no memory of the weights, but keep the addresses in `keys` from being given to others.
  std::vector<WeakTensor> owners;
  std::vector<int64_t> settings;
  std::shared_ptr<const void> packed;

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

}  // namespace

std::shared_ptr<const void> cached_packing(
    const std::vector<at::Tensor>& weights, const std::vector<int64_t>& settings,
    const std::function<std::shared_ptr<const void>()>& pack) {
  bool countable = true, trained = false;
  for (const at::Tensor& tensor : weights) {
    if (!tensor.defined()) continue;
    countable = countable && !tensor.is_inference();
    trained = trained || (c10::GradMode::is_enabled() && tensor.requires_grad());
  }
  if (!countable) return pack();

  std::vector<TensorKey> keys;
  for (const at::Tensor& tensor : weights) keys.push_back(key_of(tensor));
  const auto same_place = [&](const Entry& entry) {
    return entry.settings.front() == settings.front() &&
           std::equal(entry.keys.begin(), entry.keys.end(), keys.begin(), keys.end(),
                      [](const TensorKey& a, const TensorKey& b) {
                        return a.owner == b.owner && a.data == b.data;
                      });
  };
  Cache& known = cache();
  {
    const std::lock_guard<std::mutex> lock(known.mutex);
    const auto found = std::find_if(known.entries.begin(), known.entries.end(), same_place);
    if (found != known.entries.end()) {
      if (!trained && found->keys == keys && found->settings == settings) {
        known.entries.splice(known.entries.begin(), known.entries, found);
        return found->packed;
      }
      known.entries.erase(found);
    }
  }

  std::shared_ptr<const void> packed = pack();
  if (trained) return packed;
  Entry entry{keys, {}, settings, packed};
  for (const at::Tensor& tensor : weights) {
    if (tensor.defined()) entry.owners.emplace_back(owner_of(tensor).getIntrusivePtr());
  }
  const std::lock_guard<std::mutex> lock(known.mutex);
  known.entries.remove_if([&](const Entry& other) { return other.expired() || same_place(other); });
  known.entries.push_front(std::move(entry));
  while (known.entries.size() > kMaxEntries) known.entries.pop_back();
  return packed;
}

void refresh_packed_weights() {
  const std::lock_guard<std::mutex> lock(cache().mutex);
  cache().entries.clear();
}

}  // namespace headkit
