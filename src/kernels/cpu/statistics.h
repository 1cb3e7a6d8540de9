#pragma once

#include "kernels/cpu/attend.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// What the probabilities of one panel of queries are summed up to, a block of keys at a time.
struct RunningStatistics {
  float largest[kPanel];
  float sum[kPanel];       // of exp(score - largest)
  float weighted[kPanel];  // of exp(score - largest) * (score - largest)
};

HEADKIT_INLINE void add_block(const float* scores, int64_t count, int64_t vectors,
                              RunningStatistics& running) {
  for (int64_t j = 0; j < vectors; ++j) {
    const float* column = scores + j * kLanes;
    const Vec before = load(running.largest + j * kLanes);
    Vec largest = before;
    for (int64_t r = 0; r < count; ++r) largest = max(largest, load(column + r * kPanel));
    const Vec shift = if_equal(largest, broadcast(kMinusInfinity), zero(), largest);
    // A hidden key has no share in either sum: 0 * -infinity must not become one.
    const Vec lowest = broadcast(-88.0f);
    Vec sum = zero(), weighted = zero();
    for (int64_t r = 0; r < count; ++r) {
      const Vec score = sub(load(column + r * kPanel), shift), e = exponential(score);
      sum = add(sum, e);
      weighted = fma(e, max(score, lowest), weighted);
    }
    // The earlier sums are of differences to another maximum.
    const Vec moved = max(sub(before, shift), lowest), rescale = exponential(sub(before, shift));
    const Vec old_sum = load(running.sum + j * kLanes);
    const Vec old = fma(moved, old_sum, load(running.weighted + j * kLanes));
    store(running.weighted + j * kLanes, fma(old, rescale, weighted));
    store(running.sum + j * kLanes, fma(old_sum, rescale, sum));
    store(running.largest + j * kLanes, largest);
  }
}

// norm [t] = sqrt(context_t G context_t^T) for one panel of contexts.
template <int NV>
void contribution_norm(const StatisticsParams& p, const float* context, int64_t tokens,
                       float* product, float* norm) {
  const int64_t head_dim = p.attend.head_dim;
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
  for (int64_t t = 0; t < tokens; ++t) norm[t] = squares[t];
}

template <int NV>
void panel_statistics(const StatisticsParams& p, int64_t first_token) {
  const AttendParams& a = p.attend;
  const int64_t tokens = panel_size(first_token, a.num_tokens);
  const VisibleKeys keys = visible_keys(a.scores, a.num_keys, first_token, tokens);
  RunningStatistics running;
  for (int64_t t = 0; t < kPanel; ++t) {
    running.largest[t] = kMinusInfinity;
    running.sum[t] = running.weighted[t] = 0.0f;
  }
  for (int64_t block = keys.begin; block < keys.end; block += kKeyBlock) {
    const int64_t count = keys.end - block < kKeyBlock ? keys.end - block : kKeyBlock;
    score_keys<NV>(a.k, a.q + first_token * a.head_dim, a.head_dim, block, count, a.scratch);
    if (a.scores.bias != nullptr) {
      add_bias<NV>(a.scores, first_token, tokens, block, count, a.scratch,
                   a.scratch + block_scores(a.num_keys));
    }
    hide_keys<NV>(a.scores, first_token, block, count, a.scratch);
    add_block(a.scratch, count, NV, running);
  }
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t to = first_token + t;
    const float sum = running.sum[t];
    const bool sees = sum > 0.0f;
    const float log_sum = sees ? __builtin_logf(sum) : 0.0f;
    p.log_sum_exp[to] = sees ? running.largest[t] + log_sum : kMinusInfinity;
    const float entropy = sees ? log_sum - running.weighted[t] / sum : 0.0f;
    p.entropy[to] = entropy > 0.0f ? entropy : 0.0f;
    p.largest_weight[to] = sees ? 1.0f / sum : 0.0f;
  }
  contribution_norm<NV>(p, a.context + first_token / kPanel * a.context_stride, tokens, a.scratch,
                        p.contribution_norm + first_token);
}

int64_t statistics_scratch_floats(int64_t num_keys, int64_t head_dim) {
  const int64_t of_scores = attend_scratch_floats(num_keys), of_norms = head_dim * kPanel;
  return of_scores > of_norms ? of_scores : of_norms;
}

void statistics(const StatisticsParams& p) {
  for (int64_t token = 0; token < p.attend.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, p.attend.num_tokens)),
                [&]<int NV>() { panel_statistics<NV>(p, token); });
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
