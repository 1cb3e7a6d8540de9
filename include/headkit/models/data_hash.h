#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/models/batch.h"

namespace headkit {

/// SHA-256 of each example of a batch: of its names, dtypes, shapes and bytes. Places that
/// batch["attention_mask"] [B, T] leaves out do not count, so that padding does not show.
std::vector<std::string> example_hashes(const Batch& batch);

/// SHA-256 of a set of examples, whatever their order and batches, 64 hexadecimal digits: says
/// whether two results come from the same data. Empty for data without examples. Scorers made by
/// name leave it as "data_hash" in the settings of their scores, prune in its details.
std::string data_hash(const DataSource& data);

/// How many examples of `data` are among those of `other`.
int64_t shared_examples(const DataSource& data, const DataSource& other);

/// Data that remember what was seen of them: `hash` is data_hash after the first whole walk, empty
/// before.
class HashedData final : public DataSource {
 public:
  explicit HashedData(const DataSource& data) : data_(data) {}
  void for_each(const std::function<void(const Batch&)>& visit) const override;
  std::optional<int64_t> size() const override { return data_.size(); }
  const std::string& hash() const { return hash_; }

 private:
  const DataSource& data_;
  mutable std::string hash_;
};

}  // namespace headkit
