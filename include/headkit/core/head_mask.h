#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

#include "headkit/core/head_layout.h"

namespace headkit {

/// Which heads are left after static pruning. An immutable value in original indices.
class HeadMask {
 public:
  HeadMask() = default;
  /// `keep`: bool or 0/1 numbers, [layers, heads], any device; true = the head stays. Copied.
  /// Throws std::invalid_argument for another shape, and for values other than 0 and 1.
  explicit HeadMask(const at::Tensor& keep);
  static HeadMask all(int64_t layers, int64_t heads);

  const at::Tensor& keep() const { return keep_; }  ///< bool, CPU, [layers, heads]; do not write
  int64_t layers() const { return keep_.defined() ? keep_.size(0) : 0; }
  int64_t heads() const { return keep_.defined() ? keep_.size(1) : 0; }
  int64_t count() const;                                  ///< heads that stay
  bool contains(HeadId id) const;                         ///< std::out_of_range outside the model
  std::vector<int64_t> layer_heads(int64_t layer) const;  ///< ascending indices that stay
  std::vector<HeadId> removed() const;                    ///< by layer, then head
  bool is_subset_of(const HeadMask& other) const;
  HeadMask intersect(const HeadMask& other) const;
  bool operator==(const HeadMask& other) const;

  std::string to_json() const;  ///< {"layers": L, "heads": H, "keep": [[head, ...] per layer]}
  static HeadMask from_json(const std::string& text);

 private:
  at::Tensor keep_;
};

}  // namespace headkit
