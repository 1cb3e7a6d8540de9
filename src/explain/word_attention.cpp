#include "explain/word_attention.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace headkit {
namespace {

constexpr double kLeastMass = 1e-3;

}  // namespace

bool WordAttention::is_kept(int64_t head, int64_t word) const {
  return left[head * words + word] >= kLeastMass;
}

WordAttention word_attention(const at::Tensor& probabilities,
                             const std::vector<int64_t>& word_of_token, int64_t words) {
  const int64_t heads = probabilities.size(0), tokens = probabilities.size(1);
  WordAttention found{.heads = heads,
                      .words = words,
                      .weight = std::vector<double>(heads * words * words, 0.0),
                      .left = std::vector<double>(heads * words, 0.0),
                      .has_token = std::vector<bool>(words, false)};
  std::vector<double> pieces(words, 0.0);
  for (int64_t t = 0; t < tokens; ++t) {
    if (word_of_token[t] < 0) continue;
    pieces[word_of_token[t]] += 1;
    found.has_token[word_of_token[t]] = true;
  }
  const float* from = probabilities.const_data_ptr<float>();
  for (int64_t h = 0; h < heads; ++h) {
    double* matrix = found.weight.data() + h * words * words;
    for (int64_t t = 0; t < tokens; ++t, from += tokens) {
      const int64_t source = word_of_token[t];
      if (source < 0) continue;
      double* row = matrix + source * words;
      for (int64_t s = 0; s < tokens; ++s) {
        if (word_of_token[s] >= 0) row[word_of_token[s]] += static_cast<double>(from[s]);
      }
    }
    for (int64_t word = 0; word < words; ++word) {
      double* row = matrix + word * words;
      row[word] = 0;
      double mass = 0;
      for (int64_t v = 0; v < words; ++v) mass += row[v];
      if (mass <= 0) continue;
      found.left[h * words + word] = mass / pieces[word];
      for (int64_t v = 0; v < words; ++v) row[v] /= mass;
    }
  }
  return found;
}

void share_of_largest(const WordAttention& words, int64_t head, int64_t word, bool column,
                      double* share) {
  const int64_t n = words.words;
  const auto weight = [&](int64_t v) {
    return column ? words.row(head, v)[word] : words.row(head, word)[v];
  };
  const auto competes = [&](int64_t v) {
    return v != word && words.has_token[v] && (!column || words.is_kept(head, v));
  };
  std::fill(share, share + n, 0.0);
  double largest = -1;
  int64_t ties = 0;
  for (int64_t v = 0; v < n; ++v) {
    if (!competes(v)) continue;
    if (weight(v) > largest) {
      largest = weight(v);
      ties = 0;
    }
    if (weight(v) == largest) ++ties;
  }
  if (ties == 0) return;
  for (int64_t v = 0; v < n; ++v) {
    if (competes(v) && weight(v) == largest) share[v] = 1.0 / static_cast<double>(ties);
  }
}

}  // namespace headkit
