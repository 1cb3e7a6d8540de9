#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

namespace headkit {

/// What `pack` makes of some weights on CPU, from a cache where that is safe. Undefined tensors are
/// absent weights; `settings` are the numbers that the packing depends on, the first of which says
/// what is packed.
///
/// An entry is found again only through the same tensors (or views of the same tensors) with the
/// same storages, offsets, shapes, dtypes and version counters. It is not used, and dropped, while
/// somebody trains these weights: grad mode is on and one of them requires grad. Inference tensors
/// count no versions and are packed at every call. An entry whose weights are gone goes at the next
/// miss; at most 1024 entries stay. Thread-safe; the result stays valid however long its owner
/// holds it.
std::shared_ptr<const void> cached_packing(
    const std::vector<at::Tensor>& weights, const std::vector<int64_t>& settings,
    const std::function<std::shared_ptr<const void>()>& pack);

/// The first of the settings of each kind of packing.
enum PackingKind : int64_t {
  kQueryPacking,
  kKeyValuePacking,
  kOutputPacking,
  kRowsPacking,
  kBf16QueryPacking,
  kBf16KeyValuePacking,
  kBf16OutputPacking,
  kFeedForwardPacking,
  kBf16FeedForwardPacking,
  kFingerprint
};

}  // namespace headkit
