#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace headkit {

/// Attention between the words of one sequence.
struct WordAttention {
  int64_t heads = 0, words = 0;
  std::vector<double> weight;   ///< [h, n, n]: rows without the word itself, sum 1 or all 0
  std::vector<double> left;     ///< [h, n]: mass of a row before it was made to sum to 1
  std::vector<bool> has_token;  ///< [n]

  const double* row(int64_t head, int64_t word) const {
    return weight.data() + (head * words + word) * words;
  }
  /// Whether a row has enough mass to be looked at.
  bool is_kept(int64_t head, int64_t word) const;
};

/// Sum over the tokens of the word that is looked at, mean over those of the word that looks;
/// tokens without a word and the word itself taken out; rows then made to sum to 1.
/// `probabilities`: float32 [h, T, T], contiguous; `word_of_token`: at least T entries.
WordAttention word_attention(const at::Tensor& probabilities,
                             const std::vector<int64_t>& word_of_token, int64_t words);

/// For each head and each column v < n the share of the largest weight of a row (stride 1) or of a
/// column (stride n) that v has: 1 for a single largest, 1/k for each of k equal ones, 0 elsewhere.
/// All 0 if nothing is there to look at.
void share_of_largest(const WordAttention& words, int64_t head, int64_t word, bool column,
                      double* share);

}  // namespace headkit
