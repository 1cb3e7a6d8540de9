#pragma once

#include "kernels/cpu/attend.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// weighted += sum over the keys of a block of exp(score - largest) * (score - largest).
HEADKIT_INLINE void add_weighted_scores(const float* scores, int64_t count, int64_t vectors,
                                        const float* largest, float* weighted) {
  // A hidden key has no share: 0 * -infinity must not become one.
  const Vec lowest = broadcast(-88.0f);
  for (int64_t j = 0; j < vectors; ++j) {
    const Vec shift = load(largest + j * kLanes);
    Vec sum = load(weighted + j * kLanes);
    for (int64_t r = 0; r < count; ++r) {
      const Vec score = sub(load(scores + r * kPanel + j * kLanes), shift);
      sum = fma(exponential(score), max(score, lowest), sum);
    }
    store(weighted + j * kLanes, sum);
  }
}

// norm [t] = |gate| sqrt(context_t G context_t^T) for one panel of contexts.
template <int NV>
void contribution_norm(const StatisticsParams& p, const float* context, int64_t tokens,
                       float* product, float* norm) {
  const int64_t head_dim = p.head_dim;
  Vec sum[NV];
  for (Vec& s : sum) s = zero();
  for_chains(head_dim, [&](int64_t k, int64_t steps, bool first_chain, bool) {
    for_row_tiles<kTileRows[NV]>(head_dim, [&]<int MR>(int64_t i) {
      const float* a = p.output_gram + k * head_dim + i;
      tile<MR, NV>(1, steps, a, head_dim, OneSegment{context + k * kPanel}, kPanel, a, head_dim,
                   [&](int r, int j, Vec c) {
                     float* at = product + (i + r) * kPanel + j * kLanes;
                     store(at, first_chain ? c : add(load(at), c));
                   });
    });
  });
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int j = 0; j < NV; ++j) {
      const int64_t place = d * kPanel + j * kLanes;
      sum[j] = fma(load(product + place), load(context + place), sum[j]);
    }
  }
  float squares[kPanel];
  for (int j = 0; j < NV; ++j) store(squares + j * kLanes, square_root(max(sum[j], zero())));
  const float gate = p.gate < 0.0f ? -p.gate : p.gate;
  for (int64_t t = 0; t < tokens; ++t) norm[t] = gate * squares[t];
}

template <int NV>
void panel_statistics(const StatisticsParams& p, int64_t first_token) {
  const int64_t tokens = panel_size(first_token, p.num_tokens);
  const VisibleKeys keys = visible_keys(p.scores, p.num_keys, first_token, tokens);
  const float* largest = p.softmax + 2 * first_token;
  const float* sum = largest + kPanel;
  float weighted[kPanel] = {};
  for (int64_t block = keys.begin; block < keys.end; block += kKeyBlock) {
    const int64_t count = keys.end - block < kKeyBlock ? keys.end - block : kKeyBlock;
    score_keys<NV>(p.k, p.q + first_token * p.head_dim, p.head_dim, block, count, p.scratch);
    if (p.scores.bias != nullptr) {
      add_bias<NV>(p.scores, first_token, tokens, block, count, p.scratch,
                   p.scratch + block_scores(p.num_keys), SameBias{});
    }
    hide_keys<NV>(p.scores, first_token, block, count, p.scratch);
    add_weighted_scores(p.scratch, count, NV, largest, weighted);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t to = first_token + t;
    const bool sees = sum[t] > 0.0f;
    const float log_sum = sees ? __builtin_logf(sum[t]) : 0.0f;
    const float entropy = sees ? log_sum - weighted[t] / sum[t] : 0.0f;
    p.log_sum_exp[to] = sees ? largest[t] + log_sum : kMinusInfinity;
    p.entropy[to] = entropy > 0.0f ? entropy : 0.0f;
    p.largest_weight[to] = sees ? 1.0f / sum[t] : 0.0f;
  }
  contribution_norm<NV>(p, p.own_context + first_token * p.head_dim, tokens, p.scratch,
                        p.contribution_norm + first_token);
}

int64_t statistics_scratch_floats(int64_t num_keys, int64_t head_dim) {
  const int64_t of_scores = attend_scratch_floats(num_keys), of_norms = head_dim * kPanel;
  return of_scores > of_norms ? of_scores : of_norms;
}

void statistics(const StatisticsParams& p) {
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, p.num_tokens)),
                [&]<int NV>() { panel_statistics<NV>(p, token); });
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
