#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

namespace headkit {

/// Named tensors whose first axis is the example, for example input_ids [B, T], attention_mask
/// [B, T], labels [B].
using Batch = std::map<std::string, at::Tensor>;

/// Examples of a batch: the common first size. Throws std::invalid_argument if there is none.
int64_t batch_size(const Batch& batch);

/// The rows of these examples, in this order; `index`: int64 [n].
Batch select_examples(const Batch& batch, const at::Tensor& index);

/// A source of batches that can be walked any number of times and yields the same each time.
class DataSource {
 public:
  virtual ~DataSource() = default;
  /// Calls `visit` with every batch in order. An exception from `visit` ends the walk.
  virtual void for_each(const std::function<void(const Batch&)>& visit) const = 0;
  /// Number of batches, where known: for progress only.
  virtual std::optional<int64_t> size() const = 0;
};

/// Batches held in memory.
class BatchList final : public DataSource {
 public:
  explicit BatchList(std::vector<Batch> batches) : batches_(std::move(batches)) {}
  void for_each(const std::function<void(const Batch&)>& visit) const override;
  std::optional<int64_t> size() const override { return static_cast<int64_t>(batches_.size()); }

 private:
  std::vector<Batch> batches_;
};

/// Told after each unit of long work how many of `total` units are done (`total` < 0: unknown). It
/// may throw to interrupt the work; nothing is half-applied then.
using Progress = std::function<void(int64_t done, int64_t total)>;

}  // namespace headkit
