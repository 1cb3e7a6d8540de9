#pragma once

#include "kernels/cpu/packing.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Keys that are scored at a time: whole panels, and one chain of the product with V. Fixed, so that
// the blocks of a sample do not depend on its padding.
constexpr int64_t kKeyBlock = kChain / kPanel * kPanel;

// Scratch of a pair: [token panels][dh][P] of Q^T and K^T, [keys][dh rounded up to VL] of V, one
// block of scores [keys][P], and what the running softmax remembers of each query.
struct PairScratch {
  int64_t v_stride;
  int64_t q, k, v, scores, floats;

  PairScratch(int64_t num_tokens, int64_t num_keys, int64_t head_dim) {
    v_stride = ceil_div(head_dim, kLanes) * kLanes;
    int64_t at = 0;
    const auto place = [&at](int64_t count) {
      const int64_t offset = at;
      at += ceil_div(count, 16) * 16;
      return offset;
    };
    q = place(ceil_div(num_tokens, kPanel) * head_dim * kPanel);
    k = place(ceil_div(num_keys, kPanel) * head_dim * kPanel);
    v = place(num_keys * v_stride);
    scores = place((num_keys < kKeyBlock ? num_keys : kKeyBlock) * kPanel);
    floats = at;
  }
};

int64_t pair_scratch_floats(int64_t num_tokens, int64_t num_keys, int64_t head_dim) {
  return PairScratch(num_tokens, num_keys, head_dim).floats;
}

constexpr int64_t kLine = 16;   // floats of a cache line
constexpr int64_t kAhead = 24;  // steps between a fetch of weights and their use

// Floats of token panels that stay in a second-level cache beside one weight matrix of a head.
constexpr int64_t kCachedTokens = 160 * 1024;

// Tokens of the panel that begins at `first`.
HEADKIT_INLINE int64_t panel_size(int64_t first, int64_t count) {
  return count - first < kPanel ? count - first : kPanel;
}

HEADKIT_INLINE int64_t vectors_of(int64_t tokens) { return ceil_div(tokens, kLanes); }

// out [rows][P] = scale * (W x + bias), for W in blocks of R rows and one token panel x; `bias` may
// be nullptr.
template <int NV>
void project_rows(const float* weights, const float* bias, const float* x, int64_t width,
                  int64_t rows, float scale, float* out) {
  for_chains(width, [&](int64_t k, int64_t steps, bool first_chain, bool last_chain) {
    for (int64_t first = 0; first < rows; first += kWeightRows) {
      const int64_t count = rows - first < kWeightRows ? rows - first : kWeightRows;
      for_row_tiles<kWeightRows>(count, [&]<int MR>(int64_t i) {
        float* to = out + (first + i) * kPanel;
        const float* row_bias = bias == nullptr ? nullptr : bias + first + i;
        const float* a = weights + first * width + k * kWeightRows + i;
        tile<MR, NV>(1, steps, a, kWeightRows, OneSegment{x + k * kPanel}, kPanel,
                     a + kAhead * kWeightRows, kWeightRows, [&](int r, int j, Vec c) {
                       float* at = to + r * kPanel + j * kLanes;
                       if (!first_chain) c = add(load(at), c);
                       if (last_chain && row_bias != nullptr) c = add(c, broadcast(row_bias[r]));
                       if (last_chain) c = mul(broadcast(scale), c);
                       store(at, c);
                     });
      });
    }
  });
}

// out [tokens][stride] = x^T W + bias, for one token panel x and W in column panels.
void project_columns(const float* x, int64_t tokens, const float* weights,
                     const ColumnPanels& panels, const float* bias, int64_t width, float* out,
                     int64_t stride) {
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t column = panel * panels.width();
    const float* from = weights + column * width;
    for_vectors(panels.vectors_of(panel), [&]<int NV>() {
      for_chains(width, [&](int64_t k, int64_t steps, bool first_chain, bool last_chain) {
        for_row_tiles<kTileRows[NV]>(tokens, [&]<int MR>(int64_t i) {
          float* to = out + i * stride + column;
          // The next chain's weights, a line at each step of each tile.
          const float* ahead = from + (k + steps) * panels.width() + i / MR * steps * kLine;
          tile<MR, NV>(1, steps, x + k * kPanel + i, kPanel, OneSegment{from + k * panels.width()},
                       panels.width(), ahead, kLine, [&](int r, int j, Vec c) {
                         float* at = to + r * stride + j * kLanes;
                         if (!first_chain) c = add(load(at), c);
                         if (last_chain) c = add(c, load(bias + column + j * kLanes));
                         store(at, c);
                       });
        });
      });
    });
  }
}

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

const float kMinusInfinity = -__builtin_inff();

// Row r of the scores belongs to a key that the queries from lane `row - first_masked + 1` on may
// see; lanes before it do not.
HEADKIT_INLINE void mask_diagonal(float* scores, int64_t row, int64_t hidden_lanes) {
  float* at = scores + row * kPanel;
  for (int64_t lane = 0; lane < hidden_lanes; ++lane) at[lane] = kMinusInfinity;
}

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

// context [head_dim][P] = (first ? 0 : context * rescale) + V^T scores, times `finish` if given.
template <int NV>
void weigh_values(const float* v, int64_t v_stride, const float* scores, int64_t count,
                  int64_t head_dim, const float* rescale, const float* finish, float* context) {
  for_row_tiles<kTileRows[NV]>(head_dim, [&]<int MR>(int64_t i) {
    float* to = context + i * kPanel;
    tile<MR, NV>(1, count, v + i, v_stride, OneSegment{scores}, kPanel, v + i, v_stride,
                 [to, rescale, finish](int r, int j, Vec c) {
                   if (rescale != nullptr) {
                     c = fma(load(to + r * kPanel + j * kLanes), load(rescale + j * kLanes), c);
                   }
                   if (finish != nullptr) c = mul(c, load(finish + j * kLanes));
                   store(to + r * kPanel + j * kLanes, c);
                 });
  });
}

// Context of one panel of queries, [head_dim][P].
template <int NV>
void attend_panel(const PairParams& p, const float* q, const float* keys, const float* v,
                  int64_t v_stride, int64_t first_token, float* scores, float* context) {
  const int64_t last_token =
      first_token + kPanel < p.num_tokens ? first_token + kPanel - 1 : p.num_tokens - 1;
  int64_t visible = p.num_keys;
  if (p.causal) {
    while (visible > 0 && p.key_position[visible - 1] > last_token) --visible;
  }
  if (visible == 0) {
    for (int64_t i = 0; i < p.head_dim; ++i) {
      for (int j = 0; j < NV; ++j) store(context + i * kPanel + j * kLanes, zero());
    }
    return;
  }
  RunningSoftmax running;
  for (int64_t block = 0; block < visible; block += kKeyBlock) {
    const int64_t count = visible - block < kKeyBlock ? visible - block : kKeyBlock;
    score_keys<NV>(keys, q, p.head_dim, block, count, scores);
    if (p.causal) {
      for (int64_t r = count - 1; r >= 0 && p.key_position[block + r] > first_token; --r) {
        mask_diagonal(scores, r, p.key_position[block + r] - first_token);
      }
    }
    softmax_block(scores, count, NV, block == 0, running);
    const bool last = block + count == visible;
    float finish[NV * kLanes];
    if (last) {
      for (int j = 0; j < NV; ++j) {
        const Vec sum = load(running.sum + j * kLanes);
        const Vec scaled = div(broadcast(p.gate), sum);
        store(finish + j * kLanes, if_equal(sum, zero(), zero(), scaled));
      }
    }
    weigh_values<NV>(v + block * v_stride, v_stride, scores, count, p.head_dim,
                     block == 0 ? nullptr : running.rescale, last ? finish : nullptr, context);
  }
}

// q^T and k^T [token panels][head_dim][P] and v [keys][v_stride] of a pair.
void project_pair(const PairParams& p, float* q, float* k, float* v, int64_t v_stride) {
  const PackedHead head(p.width, p.head_dim);
  // One weight matrix at a time while the tokens fit into a second-level cache beside it, else one
  // token panel at a time through all three.
  const int64_t longest = p.num_tokens > p.num_keys ? p.num_tokens : p.num_keys;
  const int64_t step = longest * p.width <= kCachedTokens ? longest : kPanel;
  for (int64_t begin = 0; begin < longest; begin += step) {
    const int64_t query_end = begin + step < p.num_tokens ? begin + step : p.num_tokens;
    const int64_t key_end = begin + step < p.num_keys ? begin + step : p.num_keys;
    for (int64_t token = begin; token < query_end; token += kPanel) {
      for_vectors(vectors_of(panel_size(token, p.num_tokens)), [&]<int NV>() {
        project_rows<NV>(p.head + head.q, p.head + head.q_bias, p.tokens + token * p.width, p.width,
                         p.head_dim, p.scale, q + token * p.head_dim);
      });
    }
    for (int64_t token = begin; token < key_end; token += kPanel) {
      for_vectors(vectors_of(panel_size(token, p.num_keys)), [&]<int NV>() {
        project_rows<NV>(p.head + head.k, p.head + head.k_bias, p.keys + token * p.width, p.width,
                         p.head_dim, 1.0f, k + token * p.head_dim);
      });
    }
    for (int64_t token = begin; token < key_end; token += kPanel) {
      project_columns(p.keys + token * p.width, panel_size(token, p.num_keys), p.head + head.v,
                      head.v_panels, p.head + head.v_bias, p.width, v + token * v_stride, v_stride);
    }
  }
}

void attention_pair(const PairParams& p) {
  const PairScratch at(p.num_tokens, p.num_keys, p.head_dim);
  float* q = p.scratch + at.q;
  float* k = p.scratch + at.k;
  float* v = p.scratch + at.v;
  project_pair(p, q, k, v, at.v_stride);
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    const int64_t left = p.num_tokens - token;
    for_vectors(vectors_of(left < kPanel ? left : kPanel), [&]<int NV>() {
      attend_panel<NV>(p, q + token * p.head_dim, k, v, at.v_stride, token, p.scratch + at.scores,
                       p.context + token / kPanel * p.context_stride);
    });
  }
}

// Rows [first, first + count) of one panel of columns of the output; `first` is at the start of a
// token panel. A chain covers whole segments of head_dim steps as far as they fit into it; the
// weights of segment s are `weights_of(s)`, [panels of columns][head_dim][panel width].
template <int NV, class WeightsOf>
void output_panel(const OutputParams& p, int64_t segments, const WeightsOf& weights_of,
                  int64_t panel_width, int64_t column, int64_t first, int64_t count, float* out,
                  int64_t stride) {
  const int64_t group = p.head_dim < kChain ? kChain / p.head_dim : 1;
  const float* start = p.start + column;
  for (int64_t s = 0; s < segments; s += group) {
    const int64_t in_chain = segments - s < group ? segments - s : group;
    for_chains(p.head_dim, [&](int64_t k, int64_t steps, bool first_chain, bool last_chain) {
      const bool opens = s == 0 && first_chain && !p.add;
      const bool closes = s + in_chain == segments && last_chain && p.finish;
      const auto b_of = [&](int64_t i) {
        return weights_of(s + i) + column * p.head_dim + k * panel_width;
      };
      // While this chain runs, the weights of the next one come closer: one segment a tile.
      const bool next_panel = s + in_chain == segments;
      const int64_t next = next_panel ? 0 : s + in_chain;
      const int64_t next_offset = (column + (next_panel ? panel_width : 0)) * p.head_dim;
      int64_t tiles = 0;
      for (int64_t token = 0; token < count; token += kPanel) {
        const int64_t left = count - token < kPanel ? count - token : kPanel;
        const float* context =
            p.context + (first + token) / kPanel * p.context_stride + (s * p.head_dim + k) * kPanel;
        for_row_tiles<kTileRows[NV]>(left, [&]<int MR>(int64_t i) {
          float* to = out + (token + i) * stride;
          const float* ahead = context;
          if (tiles < in_chain && next + tiles < segments) {
            ahead = weights_of(next + tiles) + next_offset;
          }
          ++tiles;
          tile<MR, NV>(in_chain, steps, context + i, kPanel, b_of, panel_width, ahead, kLine,
                       [&](int r, int j, Vec c) {
                         float* at = to + r * stride + j * kLanes;
                         if (!opens) c = add(load(at), c);
                         if (closes) c = add(c, load(start + j * kLanes));
                         store(at, c);
                       });
        });
      }
    });
  }
}

// The part of the columns of out = start + sum over segments of context W.
template <class WeightsOf>
HEADKIT_INLINE void output_part(const OutputParams& p, int64_t segments,
                                const WeightsOf& weights_of) {
  if (segments == 0) {
    for (int64_t t = 0; t < p.num_tokens && p.part == 0; ++t) {
      for (int64_t i = 0; i < p.width; ++i) p.out[t * p.width + i] = p.start[i];
    }
    return;
  }
  const ColumnPanels panels(p.width);
  const int64_t end = panels.panels * (p.part + 1) / p.parts;
  for (int64_t panel = panels.panels * p.part / p.parts; panel < end; ++panel) {
    const int64_t column = panel * panels.width();
    const int64_t vectors = panels.vectors_of(panel);
    const int64_t left = p.width - column;
    if (left >= vectors * kLanes) {
      for_vectors(vectors, [&]<int NV>() {
        output_panel<NV>(p, segments, weights_of, panels.width(), column, 0, p.num_tokens,
                         p.out + column, p.width);
      });
      continue;
    }
    // The last columns of a width that is no multiple of VL go through a buffer: nothing is ever
    // written beyond the output.
    for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
      const int64_t count = p.num_tokens - token < kPanel ? p.num_tokens - token : kPanel;
      float buffer[kPanel * kPanel];
      for (int64_t i = 0; i < count && p.add; ++i) {
        for (int64_t j = 0; j < kPanel; ++j) {
          buffer[i * kPanel + j] = j < left ? p.out[(token + i) * p.width + column + j] : 0.0f;
        }
      }
      for_vectors(vectors, [&]<int NV>() {
        output_panel<NV>(p, segments, weights_of, panels.width(), column, token, count, buffer,
                         kPanel);
      });
      for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < left; ++j) {
          p.out[(token + i) * p.width + column + j] = buffer[i * kPanel + j];
        }
      }
    }
  }
}

void attention_output(const OutputParams& p) {
  const PackedHead head(p.width, p.head_dim);
  output_part(p, p.num_heads,
              [&](int64_t s) { return p.packed + p.head_index[s] * head.floats + head.o; });
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
