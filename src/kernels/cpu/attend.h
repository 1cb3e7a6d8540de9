#pragma once

#include "kernels/cpu/project.h"
#include "kernels/cpu/visible_keys.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Keys that are scored at a time: whole panels, and one chain of the product with V. Fixed, so that
// the blocks of a sample do not depend on its padding.
constexpr int64_t kKeyBlock = kChain / kPanel * kPanel;

// scores [count][P] = K q for keys [first, first + count); `first` is at the start of a key panel.
template <int NV>
void score_keys(const float* keys, const float* q, int64_t head_dim, int64_t first, int64_t count,
                float* scores) {
  for (int64_t key = 0; key < count; key += kPanel) {
    const float* panel = keys + (first + key) * head_dim;
    const int64_t in_panel = count - key < kPanel ? count - key : kPanel;
    for_chains(head_dim, [&](int64_t k, int64_t steps, bool first_chain, bool) {
      for_row_tiles<kTileRows[NV]>(in_panel, [&]<int MR>(int64_t i) {
        float* to = scores + (key + i) * kPanel;
        const float* a = panel + k * kPanel + i;
        tile<MR, NV>(1, steps, a, kPanel, OneSegment{q + k * kPanel}, kPanel, a, kPanel,
                     [&](int r, int j, Vec c) {
                       float* at = to + r * kPanel + j * kLanes;
                       store(at, first_chain ? c : add(load(at), c));
                     });
      });
    });
  }
}

// What the softmax of one panel of queries remembers between blocks of keys.
struct RunningSoftmax {
  float largest[kPanel];
  float sum[kPanel];
  float rescale[kPanel];  // of what the earlier blocks gave, to the new maximum
};

// Turns scores into exp(score - maximum) and folds the block into the running maximum and sum, one
// vector of queries at a time: the softmax runs down the rows, so nothing is reduced across lanes.
HEADKIT_INLINE void softmax_block(float* scores, int64_t count, int64_t vectors, bool first,
                                  RunningSoftmax& running) {
  for (int64_t j = 0; j < vectors; ++j) {
    float* column = scores + j * kLanes;
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
    // A query that has seen no key yet: its scores are -infinity, and their exponentials 0.
    const Vec shift = if_equal(largest, broadcast(kMinusInfinity), zero(), largest);
    Vec s[4];
    for (Vec& v : s) v = zero();
    for (r = 0; r + 4 <= count; r += 4) {
      for (int u = 0; u < 4; ++u) {
        float* at = column + (r + u) * kPanel;
        const Vec e = exponential(sub(load(at), shift));
        store(at, e);
        s[u] = add(s[u], e);
      }
    }
    for (int u = 0; r < count; ++r, ++u) {
      float* at = column + r * kPanel;
      const Vec e = exponential(sub(load(at), shift));
      store(at, e);
      s[u] = add(s[u], e);
    }
    Vec sum = add(add(s[0], s[1]), add(s[2], s[3]));
    if (!first) {
      const Vec rescale = exponential(sub(before, shift));
      store(running.rescale + j * kLanes, rescale);
      sum = fma(load(running.sum + j * kLanes), rescale, sum);
    }
    store(running.largest + j * kLanes, largest);
    store(running.sum + j * kLanes, sum);
  }
}

// What ends the context of one panel: one factor for each query.
struct ContextFinish {
  const float* gated;    // gate / sum
  const float* inverse;  // 1 / sum
  float* own_context;    // [head_dim][P] or nullptr
};

// context [head_dim][P] = (first ? 0 : context * rescale) + V^T scores, finished if `finish` is
// given.
template <int NV>
void weigh_values(const float* v, int64_t v_stride, const float* scores, int64_t count,
                  int64_t head_dim, const float* rescale, const ContextFinish* finish,
                  float* context) {
  for_row_tiles<kTileRows[NV]>(head_dim, [&]<int MR>(int64_t i) {
    float* to = context + i * kPanel;
    tile<MR, NV>(1, count, v + i, v_stride, OneSegment{scores}, kPanel, v + i, v_stride,
                 [to, i, rescale, finish](int r, int j, Vec c) {
                   if (rescale != nullptr) {
                     c = fma(load(to + r * kPanel + j * kLanes), load(rescale + j * kLanes), c);
                   }
                   if (finish != nullptr) {
                     if (finish->own_context != nullptr) {
                       store(finish->own_context + (i + r) * kPanel + j * kLanes,
                             mul(c, load(finish->inverse + j * kLanes)));
                     }
                     c = mul(c, load(finish->gated + j * kLanes));
                   }
                   store(to + r * kPanel + j * kLanes, c);
                 });
  });
}

// Scratch: one block of scores, [keys][P], and as much for a bias.
HEADKIT_INLINE int64_t block_scores(int64_t num_keys) {
  return (num_keys < kKeyBlock ? num_keys : kKeyBlock) * kPanel;
}

int64_t attend_scratch_floats(int64_t num_keys) { return 2 * block_scores(num_keys); }

// One panel of queries.
template <int NV>
void attend_panel(const AttendParams& p, int64_t first_token, float* context) {
  const int64_t tokens = panel_size(first_token, p.num_tokens);
  const VisibleKeys keys = visible_keys(p.scores, p.num_keys, first_token, tokens);
  float* own_context =
      p.own_context == nullptr ? nullptr : p.own_context + first_token * p.head_dim;
  RunningSoftmax running;
  for (int64_t block = keys.begin; block < keys.end; block += kKeyBlock) {
    const int64_t count = keys.end - block < kKeyBlock ? keys.end - block : kKeyBlock;
    score_keys<NV>(p.k, p.q + first_token * p.head_dim, p.head_dim, block, count, p.scratch);
    if (p.scores.bias != nullptr) {
      add_bias<NV>(p.scores, first_token, tokens, block, count, p.scratch,
                   p.scratch + block_scores(p.num_keys), SameBias{});
    }
    hide_keys<NV>(p.scores, first_token, block, count, p.scratch);
    softmax_block(p.scratch, count, NV, block == keys.begin, running);
    const bool last = block + count == keys.end;
    float gated[NV * kLanes], inverse[NV * kLanes];
    if (last) {
      for (int j = 0; j < NV; ++j) {
        const Vec sum = load(running.sum + j * kLanes);
        const auto over_sum = [sum](float x) {
          return if_equal(sum, zero(), zero(), div(broadcast(x), sum));
        };
        store(gated + j * kLanes, over_sum(p.gate));
        store(inverse + j * kLanes, over_sum(1.0f));
      }
    }
    const ContextFinish finish{gated, inverse, own_context};
    weigh_values<NV>(p.v + block * p.v_stride, p.v_stride, p.scratch, count, p.head_dim,
                     block == keys.begin ? nullptr : running.rescale, last ? &finish : nullptr,
                     context);
  }
  if (keys.end == 0) {
    for (int64_t i = 0; i < p.head_dim; ++i) {
      for (int j = 0; j < NV; ++j) {
        store(context + i * kPanel + j * kLanes, zero());
        if (own_context != nullptr) store(own_context + i * kPanel + j * kLanes, zero());
      }
    }
  }
  if (p.softmax == nullptr) return;
  float* softmax = p.softmax + 2 * first_token;
  for (int j = 0; j < NV; ++j) {
    const bool sees = keys.end > 0;
    store(softmax + j * kLanes,
          sees ? load(running.largest + j * kLanes) : broadcast(kMinusInfinity));
    store(softmax + kPanel + j * kLanes, sees ? load(running.sum + j * kLanes) : zero());
  }
}

void attend(const AttendParams& p) {
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, p.num_tokens)), [&]<int NV>() {
      attend_panel<NV>(p, token, p.context + token / kPanel * p.context_stride);
    });
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
