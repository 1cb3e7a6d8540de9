#pragma once

#include <cstdint>
#include <string>
#include <vector>

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
  int64_t kv_heads = 0;      ///< heads of K and V per layer, Hkv, a divisor of H; 0 = as many as H

  int64_t total_heads() const { return layers * heads; }
  int64_t key_value_heads() const { return kv_heads == 0 ? heads : kv_heads; }
  /// The KV head that a head reads, h / (H / Hkv).
  int64_t kv_head(int64_t head) const { return head / (heads / key_value_heads()); }
  /// The KV heads that some heads read, ascending: those that stay when these heads stay.
  std::vector<int64_t> kv_heads_of(const std::vector<int64_t>& kept) const;
  /// For each of some heads the place of its KV head in `kv_heads_of(kept)`: what `gated_attention`
  /// takes as kv_head once the other heads are removed.
  std::vector<int64_t> kv_places_of(const std::vector<int64_t>& kept) const;
  bool operator==(const HeadLayout& other) const;

  /// Throws std::invalid_argument unless every size is positive (`feed_forward` may be 0) and Hkv
  /// divides H.
  void check(const char* operation) const;
  std::string to_json() const;
  static HeadLayout from_json(const std::string& text);  ///< std::invalid_argument on bad text
};

}  // namespace headkit
