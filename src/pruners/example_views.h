#pragma once

#include <cstdint>
#include <optional>

#include "headkit/models/batch.h"

namespace headkit {

/// Every fourth example of a source, or all others. The source must outlive it.
class EveryFourth final : public DataSource {
 public:
  EveryFourth(const DataSource& data, bool others) : data_(data), others_(others) {}
  void for_each(const std::function<void(const Batch&)>& visit) const override;
  std::optional<int64_t> size() const override { return data_.size(); }

 private:
  const DataSource& data_;
  bool others_;
};

/// The first examples of a source, in memory.
BatchList first_examples(const DataSource& data, int64_t count);
int64_t count_examples(const DataSource& data);

}  // namespace headkit
