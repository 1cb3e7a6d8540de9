#pragma once

#include <cstdint>
#include <string>

namespace headkit {

/// A head, named for ever by its place in the ORIGINAL model: removal never shifts an index.
struct HeadId {
  int64_t layer = 0;
  int64_t head = 0;
  bool operator==(const HeadId&) const = default;
};

/// The size of an original model, as far as heads and their cost are concerned.
struct HeadLayout {
  int64_t layers = 0;        ///< attention layers, L
  int64_t heads = 0;         ///< heads per layer, H
  int64_t head_dim = 0;      ///< width of one head, dh
  int64_t model_dim = 0;     ///< width of the residual stream, D
  int64_t feed_forward = 0;  ///< neurons of a layer's feed-forward block, F; 0 = none

  int64_t total_heads() const { return layers * heads; }
  bool operator==(const HeadLayout&) const = default;

  /// Throws std::invalid_argument unless every size is positive (`feed_forward` may be 0).
  void check(const char* operation) const;
  std::string to_json() const;
  static HeadLayout from_json(const std::string& text);  ///< std::invalid_argument on bad text
};

}  // namespace headkit
