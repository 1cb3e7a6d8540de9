#pragma once

#include "kernels/cpu/bf16_project.h"
#include "kernels/cpu/visible_keys.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Keys that are scored at a time: whole panels. Fixed, so that the blocks of a sample do not depend
// on its padding.
constexpr int64_t kPairKeyBlock = 6 * kPanel;

// A bias for scores of a softmax of base 2. One that means minus infinity without being it stays
// finite: a query that sees only such keys sees them all alike.
struct BiasOfBaseTwo {
  HEADKIT_INLINE Vec operator()(Vec bias) const {
    const Vec finite = max(bias, broadcast(-2e38f));
    const Vec hides = broadcast(kMinusInfinity);
    return mul(if_equal(bias, hides, hides, finite), broadcast(1.44269504f));
  }
};

// 2^x to 2^-13 of itself, a tenth of what bfloat16 can tell; 0 for -infinity.
HEADKIT_INLINE Vec power_of_two(Vec x) {
  x = max(x, broadcast(-200.0f));
  const Vec n = round(x);
  const Vec r = sub(x, n);
  Vec p = broadcast(5.51716648e-2f);  // fitted to 2^r on [-1/2, 1/2]
  p = fma(p, r, broadcast(2.42611125e-1f));
  p = fma(p, r, broadcast(6.93260968e-1f));
  p = fma(p, r, broadcast(9.99928057e-1f));
  return scale_by_power(p, n);
}

// scores [count][P] = K q for keys [first, first + count); `first` is at the start of a key panel.
template <int NV>
void score_pair_keys(const Bf16Pair* keys, const Bf16Pair* q, int64_t depth, int64_t first,
                     int64_t count, float* scores) {
  for (int64_t key = 0; key < count; key += kPanel) {
    const Bf16Pair* panel = keys + (first + key) * depth;
    for_row_tiles<kTileRows[NV]>(panel_size(key, count), [&]<int MR>(int64_t i) {
      float* to = scores + (key + i) * kPanel;
      const Bf16Pair* a = panel + i;
      pair_tile<MR, NV>(1, depth, a, kPanel, OnePairSegment{q}, kPanel, a, kPanel,
                        [&](int r, int j, Vec c, Vec d) {
                          store(to + r * kPanel + j * kLanes, c);
                          if (MR > 1) store(to + (r + 1) * kPanel + j * kLanes, d);
                        });
    });
  }
}

// What the softmax of one panel of queries remembers between blocks of keys.
struct RunningPairSoftmax {
  float largest[kPanel];
  float sum[kPanel];
  float rescale[kPanel];  // of what the earlier blocks gave, to the new maximum
};

// Turns `count` rows of scores into pair rows of 2^(score - maximum), in place, and folds the block
// into the running maximum and sum. The softmax runs down the rows, so nothing is reduced across
// lanes.
HEADKIT_INLINE void softmax_pair_block(float* scores, int64_t count, int64_t vectors, bool first,
                                       RunningPairSoftmax& running) {
  Bf16Pair* shares = reinterpret_cast<Bf16Pair*>(scores);
  for (int64_t j = 0; j < vectors; ++j) {
    const float* column = scores + j * kLanes;
    Vec m[4];
    for (Vec& v : m) v = broadcast(kMinusInfinity);
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) {
      for (int u = 0; u < 4; ++u) m[u] = max(m[u], load(column + (r + u) * kPanel));
    }
    for (; r < count; ++r) m[0] = max(m[0], load(column + r * kPanel));
    Vec largest = max(max(m[0], m[1]), max(m[2], m[3]));
    Vec before = broadcast(kMinusInfinity);
    if (!first) {
      before = load(running.largest + j * kLanes);
      largest = max(largest, before);
    }
    // A query that has seen no key yet: its scores are -infinity, and their powers 0.
    const Vec shift = if_equal(largest, broadcast(kMinusInfinity), zero(), largest);
    Vec s[2] = {zero(), zero()};
    for (r = 0; r + 2 <= count; r += 2) {
      const Vec a = power_of_two(sub(load(column + r * kPanel), shift));
      const Vec b = power_of_two(sub(load(column + (r + 1) * kPanel), shift));
      store(shares + r / 2 * kPanel + j * kLanes, round_pairs(a, b));
      s[0] = add(s[0], a);
      s[1] = add(s[1], b);
    }
    if (r < count) {
      const Vec a = power_of_two(sub(load(column + r * kPanel), shift));
      store(shares + r / 2 * kPanel + j * kLanes, round_pairs(a, zero()));
      s[0] = add(s[0], a);
    }
    Vec sum = add(s[0], s[1]);
    if (!first) {
      const Vec rescale = power_of_two(sub(before, shift));
      store(running.rescale + j * kLanes, rescale);
      sum = fma(load(running.sum + j * kLanes), rescale, sum);
    }
    store(running.largest + j * kLanes, largest);
    store(running.sum + j * kLanes, sum);
  }
}

// sums [head_dim][P] = (rescale given ? sums * rescale : 0) + V^T shares. Where `finish` is given,
// the sums times that are the context, [ceil(head_dim / 2)][P].
template <int NV>
void weigh_pair_values(const Bf16Pair* v, int64_t v_stride, const Bf16Pair* shares, int64_t depth,
                       int64_t head_dim, const float* rescale, const float* finish, float* sums,
                       Bf16Pair* context) {
  for_row_tiles<kTileRows[NV]>(head_dim, [&]<int MR>(int64_t i) {
    float* so_far = sums + i * kPanel;
    Bf16Pair* to = context + i / 2 * kPanel;
    pair_tile<MR, NV>(1, depth, v + i, v_stride, OnePairSegment{shares}, kPanel, v + i, v_stride,
                      [&](int r, int j, Vec c, Vec d) {
                        float* first = so_far + r * kPanel + j * kLanes;
                        if (rescale != nullptr) {
                          const Vec factor = load(rescale + j * kLanes);
                          c = fma(load(first), factor, c);
                          if (MR > 1) d = fma(load(first + kPanel), factor, d);
                        }
                        if (finish != nullptr) {
                          const Vec factor = load(finish + j * kLanes);
                          store(to + r / 2 * kPanel + j * kLanes,
                                round_pairs(mul(c, factor), mul(d, factor)));
                          return;
                        }
                        store(first, c);
                        if (MR > 1) store(first + kPanel, d);
                      });
  });
}

// Scratch: one block of scores [keys][P], sums [dh][P], and room for the bias of a block.
HEADKIT_INLINE int64_t pair_block_scores(int64_t num_keys) {
  return (num_keys < kPairKeyBlock ? num_keys : kPairKeyBlock) * kPanel;
}

int64_t pair_attend_scratch_floats(int64_t num_keys, int64_t head_dim) {
  return 2 * pair_block_scores(num_keys) + head_dim * kPanel;
}

// One panel of queries.
template <int NV>
void attend_pair_panel(const Bf16AttendParams& p, int64_t first_token, Bf16Pair* context) {
  const int64_t depth = pairs_of(p.head_dim), v_stride = row_floats(p.head_dim);
  const int64_t tokens = panel_size(first_token, p.num_tokens);
  const VisibleKeys keys = visible_keys(p.scores, p.num_keys, first_token, tokens);
  float* scores = p.scratch;
  float* sums = scores + pair_block_scores(p.num_keys);
  float* bias = sums + p.head_dim * kPanel;
  RunningPairSoftmax running;
  for (int64_t block = keys.begin; block < keys.end; block += kPairKeyBlock) {
    const int64_t count = keys.end - block < kPairKeyBlock ? keys.end - block : kPairKeyBlock;
    score_pair_keys<NV>(p.k, p.q + first_token * depth, depth, block, count, scores);
    if (p.scores.bias != nullptr) {
      add_bias<NV>(p.scores, first_token, tokens, block, count, scores, bias, BiasOfBaseTwo{});
    }
    hide_keys<NV>(p.scores, first_token, block, count, scores);
    softmax_pair_block(scores, count, NV, block == keys.begin, running);
    const bool last = block + count == keys.end;
    float finish[NV * kLanes];
    if (last) {
      for (int j = 0; j < NV; ++j) {
        const Vec sum = load(running.sum + j * kLanes);
        const Vec scaled = div(broadcast(p.gate), sum);
        store(finish + j * kLanes, if_equal(sum, zero(), zero(), scaled));
      }
    }
    weigh_pair_values<NV>(p.v + block / 2 * v_stride, v_stride,
                          reinterpret_cast<const Bf16Pair*>(scores), pairs_of(count), p.head_dim,
                          block == keys.begin ? nullptr : running.rescale, last ? finish : nullptr,
                          sums, context);
  }
  if (keys.end > 0) return;
  for (int64_t i = 0; i < depth; ++i) {
    for (int j = 0; j < NV; ++j) store(context + i * kPanel + j * kLanes, broadcast(Bf16Pair{0}));
  }
}

void attend_pairs(const Bf16AttendParams& p) {
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, p.num_tokens)), [&]<int NV>() {
      attend_pair_panel<NV>(p, token, p.context + token / kPanel * p.context_stride);
    });
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
