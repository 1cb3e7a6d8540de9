#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <vector>

namespace headkit {

/// What one head looks at in one input, small enough to keep: the eight largest keys of each query.
///
/// `data` is base64 of 24 bytes a query: eight times the key (16 bits, little endian) and its
/// attention probability in 255ths (8 bits), largest first, the lower key first among equals. What
/// that leaves out is told exactly: `kept_mass` and `sink_mass` are sums of the probabilities
/// before rounding. Queries that are not valid hold zeros everywhere.
struct CodedAttention {
  std::string encoding = "top8_u16_u8";
  std::string data;
  std::vector<double> kept_mass;  ///< by query: of the keys in `data`
  std::vector<double> sink_mass;  ///< by query: of the sink keys, in `data` or not
  std::vector<double> received;   ///< by key: mean probability over the valid queries
  /// By key: |v_j W_O^T|, what the head would write for that key alone; empty = not computed.
  std::vector<double> value_norm = {};

  /// One JSON object; numbers are rounded to four decimals.
  std::string to_json() const;
  bool operator==(const CodedAttention&) const = default;
};

/// Codes the attention of the heads of a layer for one input.
///
/// `probabilities`: [H, T, S] floating point, rows of valid queries sum to 1; `valid`: bool [T],
/// undefined = all queries; `sink`: bool [S], keys whose mass is split off, such as special tokens;
/// undefined = none. Throws std::invalid_argument on other shapes, more than 65,536 keys, or values
/// outside 0 .. 1.
std::vector<CodedAttention> code_attention(const at::Tensor& probabilities,
                                           const at::Tensor& valid = {},
                                           const at::Tensor& sink = {});

}  // namespace headkit
