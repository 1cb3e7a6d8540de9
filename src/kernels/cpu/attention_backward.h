#pragma once

#include "kernels/cpu/attention.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// Floats of a row of dh: see `rows` in params.h.
HEADKIT_INLINE int64_t row_floats(int64_t head_dim) { return ceil_div(head_dim, kLanes) * kLanes; }

// Scratch of the backward of a pair. Of K and V both layouts are kept: a product takes its operand
// A from rows or from panels, whichever has the product's rows beside each other.
struct PairBackwardScratch {
  int64_t stride;          // of rows
  int64_t q, k, u;         // token panels [dh][P] of Q^T, K^T and dOut W_O
  int64_t v, k_rows;       // [keys] rows
  int64_t v_panels;        // [key panels][dh][P]
  int64_t scores;          // [keys][P] of one panel of queries: exponentials
  int64_t d_scores;        // as scores
  int64_t context;         // [dh][P] of one panel of queries
  int64_t d_context;       // as context
  int64_t q_rows;          // [P] rows of one panel of queries
  int64_t d_context_rows;  // as q_rows
  int64_t dk, dv;          // [keys] rows
  int64_t floats;

  PairBackwardScratch(int64_t num_tokens, int64_t num_keys, int64_t head_dim)
      : stride(row_floats(head_dim)) {
    int64_t at = 0;
    const auto place = [&at](int64_t count) {
      const int64_t offset = at;
      at += ceil_div(count, 16) * 16;
      return offset;
    };
    const int64_t queries = ceil_div(num_tokens, kPanel) * kPanel;
    const int64_t keys = ceil_div(num_keys, kPanel) * kPanel;
    q = place(queries * head_dim);
    k = place(keys * head_dim);
    u = place(queries * head_dim);
    v = place(num_keys * stride);
    k_rows = place(num_keys * stride);
    v_panels = place(keys * head_dim);
    scores = place(num_keys * kPanel);
    d_scores = place(num_keys * kPanel);
    context = place(head_dim * kPanel);
    d_context = place(head_dim * kPanel);
    q_rows = place(kPanel * stride);
    d_context_rows = place(kPanel * stride);
    dk = place(num_keys * stride);
    dv = place(num_keys * stride);
    floats = at;
  }
};

int64_t pair_backward_scratch_floats(int64_t num_tokens, int64_t num_keys, int64_t head_dim) {
  return PairBackwardScratch(num_tokens, num_keys, head_dim).floats;
}

// to [rows][to_stride] = finish(i, j, (add_to ? to : 0) + A B) for NV vectors of columns, with
// A(i, k) = a[k * a_stride + i * ARow].
template <int NV, int ARow = 1, class Finish>
HEADKIT_INLINE void multiply(int64_t rows, int64_t depth, const float* a, int64_t a_stride,
                             const float* b, int64_t b_stride, float* to, int64_t to_stride,
                             bool add_to, const Finish& finish) {
  for_chains(depth, [&](int64_t k, int64_t steps, bool first_chain, bool last_chain) {
    const bool adds = add_to || !first_chain;
    for_row_tiles<kTileRows[NV]>(rows, [&]<int MR>(int64_t i) {
      const float* from = a + k * a_stride + i * ARow;
      tile<MR, NV, ARow>(1, steps, from, a_stride, OneSegment{b + k * b_stride}, b_stride, from,
                         a_stride, [&](int r, int j, Vec c) {
                           float* at = to + (i + r) * to_stride + j * kLanes;
                           if (adds) c = add(load(at), c);
                           if (last_chain) c = finish(i + r, j, c);
                           store(at, c);
                         });
    });
  });
}

// to [rows] rows += A b, with A(i, k) = a[i * P + k] and b [depth] rows.
HEADKIT_INLINE void add_product(int64_t rows, int64_t depth, const float* a, const float* b,
                                int64_t head_dim, float* to) {
  const ColumnPanels panels(head_dim);
  const int64_t stride = row_floats(head_dim);
  for (int64_t panel = 0; panel < panels.panels; ++panel) {
    const int64_t column = panel * panels.width();
    for_vectors(panels.vectors_of(panel), [&]<int NV>() {
      multiply<NV, kPanel>(rows, depth, a, 1, b + column, stride, to + column, stride, true,
                           [](int64_t, int, Vec c) { return c; });
    });
  }
}

// [head_dim][P] -> `count` rows.
HEADKIT_INLINE void panel_to_rows(const float* panel, int64_t head_dim, int64_t count,
                                  float* rows) {
  const int64_t stride = row_floats(head_dim);
  pack_transposed([panel](int64_t d) { return panel + d * kPanel; }, head_dim, stride, count, rows,
                  stride);
}

// `count` rows -> [head_dim][P].
HEADKIT_INLINE void rows_to_panel(const float* rows, int64_t head_dim, int64_t count,
                                  float* panel) {
  const int64_t stride = row_floats(head_dim);
  pack_transposed([rows, stride](int64_t i) { return rows + i * stride; }, count,
                  vectors_of(count) * kLanes, head_dim, panel, kPanel);
}

HEADKIT_INLINE void clear(float* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = 0.0f;
}

// d_scores = scores o (d_scores - their mean weighted by the scores). The mean is of the products
// as they were rounded, not rowsum(d_context o context): so the gradients of a query's scores
// cancel as they must, and with one key are exactly 0.
HEADKIT_INLINE void softmax_backward(const float* scores, int64_t count, int64_t vectors,
                                     const Vec* inverse, float* d_scores) {
  for (int64_t j = 0; j < vectors; ++j) {
    const float* e = scores + j * kLanes;
    float* d = d_scores + j * kLanes;
    Vec s[4];
    for (Vec& v : s) v = zero();
    int64_t r = 0;
    for (; r + 4 <= count; r += 4) {
      for (int u = 0; u < 4; ++u) {
        s[u] = fma(load(e + (r + u) * kPanel), load(d + (r + u) * kPanel), s[u]);
      }
    }
    for (int u = 0; r < count; ++r, ++u)
      s[u] = fma(load(e + r * kPanel), load(d + r * kPanel), s[u]);
    const Vec mean = mul(add(add(s[0], s[1]), add(s[2], s[3])), inverse[j]);
    for (r = 0; r < count; ++r) {
      float* at = d + r * kPanel;
      store(at, mul(load(e + r * kPanel), sub(load(at), mean)));
    }
  }
}

// One panel of queries. Softmax divides a query's exponentials by their sum: here the sum divides
// the context and its gradient instead, and the exponentials stay as they are.
template <int NV>
void backward_panel(const PairBackwardParams& b, const PairBackwardScratch& at, int64_t first_token,
                    float* gate_gradient) {
  const PairParams& p = b.pair;
  const int64_t count = panel_size(first_token, p.num_tokens), head_dim = p.head_dim;
  const float* q = p.scratch + at.q + first_token * head_dim;
  const float* u = p.scratch + at.u + first_token * head_dim;
  float* scores = p.scratch + at.scores;
  float* d_scores = p.scratch + at.d_scores;
  float* context = p.scratch + at.context;
  float* d_context = p.scratch + at.d_context;
  float* dq = b.panels + first_token / kPanel * b.panel_stride;
  float* dq_rows = b.rows + first_token * at.stride;
  float* context_rows = b.rows + 3 * b.matrix_stride + first_token * at.stride;
  int64_t visible = p.num_keys;
  if (p.causal) {
    while (visible > 0 && p.key_position[visible - 1] >= first_token + count) --visible;
  }
  if (visible == 0) {
    clear(context_rows, count * at.stride);
    if (!b.scores) return;
    clear(dq_rows, count * at.stride);
    clear(dq, head_dim * kPanel);
    return;
  }

  score_keys<NV>(p.scratch + at.k, q, head_dim, 0, visible, scores);
  if (p.causal) {
    for (int64_t r = visible - 1; r >= 0 && p.key_position[r] > first_token; --r) {
      mask_diagonal(scores, r, p.key_position[r] - first_token);
    }
  }
  RunningSoftmax softmax;
  softmax_block(scores, visible, NV, true, softmax);
  Vec inverse[NV], product[NV];
  for (int j = 0; j < NV; ++j) {
    const Vec sum = load(softmax.sum + j * kLanes);
    inverse[j] = if_equal(sum, zero(), zero(), div(broadcast(1.0f), sum));
    product[j] = zero();
  }
  multiply<NV>(head_dim, visible, p.scratch + at.v, at.stride, scores, kPanel, context, kPanel,
               false, [&inverse](int64_t, int j, Vec c) { return mul(c, inverse[j]); });

  const Vec gate = broadcast(p.gate);
  for (int64_t d = 0; d < head_dim; ++d) {
    for (int j = 0; j < NV; ++j) {
      const int64_t place = d * kPanel + j * kLanes;
      const Vec from_output = load(u + place), value = load(context + place);
      product[j] = fma(from_output, value, product[j]);
      const Vec gradient = mul(from_output, mul(gate, inverse[j]));
      store(context + place, mul(gate, value));
      store(d_context + place, gradient);
    }
  }
  panel_to_rows(context, head_dim, count, context_rows);
  for (int j = 0; j < NV; ++j) {
    float* sum = gate_gradient + j * kLanes;
    store(sum, add(load(sum), product[j]));
  }
  if (!b.scores) return;

  for (int64_t key = 0; key < visible; key += kPanel) {
    multiply<NV>(panel_size(key, visible), head_dim, p.scratch + at.v_panels + key * head_dim,
                 kPanel, d_context, kPanel, d_scores + key * kPanel, kPanel, false,
                 [](int64_t, int, Vec c) { return c; });
  }
  softmax_backward(scores, visible, NV, inverse, d_scores);
  const Vec scale = broadcast(p.scale);
  multiply<NV>(head_dim, visible, p.scratch + at.k_rows, at.stride, d_scores, kPanel, dq, kPanel,
               false, [scale](int64_t, int, Vec c) { return mul(scale, c); });
  panel_to_rows(dq, head_dim, count, dq_rows);

  panel_to_rows(q, head_dim, count, p.scratch + at.q_rows);
  add_product(visible, count, d_scores, p.scratch + at.q_rows, head_dim, p.scratch + at.dk);
  panel_to_rows(d_context, head_dim, count, p.scratch + at.d_context_rows);
  add_product(visible, count, scores, p.scratch + at.d_context_rows, head_dim, p.scratch + at.dv);
}

// Rows of keys -> rows of tokens, zero where a token is no key, and their panels.
void place_keys(const PairBackwardParams& b, const float* of_keys, int matrix) {
  const PairParams& p = b.pair;
  const int64_t stride = row_floats(p.head_dim);
  float* rows = b.rows + matrix * b.matrix_stride;
  int64_t key = 0;
  for (int64_t token = 0; token < p.num_tokens; ++token) {
    float* to = rows + token * stride;
    if (key == p.num_keys || p.key_position[key] != token) {
      clear(to, stride);
      continue;
    }
    for (int64_t d = 0; d < stride; d += kLanes) store(to + d, load(of_keys + key * stride + d));
    ++key;
  }
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    rows_to_panel(rows + token * stride, p.head_dim, panel_size(token, p.num_tokens),
                  b.panels + token / kPanel * b.panel_stride + matrix * p.head_dim * kPanel);
  }
}

void attention_pair_backward(const PairBackwardParams& b) {
  const PairParams& p = b.pair;
  const PackedHeadBackward weights(p.width, p.head_dim);
  const PairBackwardScratch at(p.num_tokens, p.num_keys, p.head_dim);
  project_pair(p, p.scratch + at.q, p.scratch + at.k, p.scratch + at.v, at.stride);
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, p.num_tokens)), [&]<int NV>() {
      project_rows<NV>(b.head_backward + weights.o, nullptr, b.output_gradient + token * p.width,
                       p.width, p.head_dim, 1.0f, p.scratch + at.u + token * p.head_dim);
    });
  }
  if (b.scores) {
    for (int64_t key = 0; key < p.num_keys; key += kPanel) {
      const int64_t count = panel_size(key, p.num_keys);
      panel_to_rows(p.scratch + at.k + key * p.head_dim, p.head_dim, count,
                    p.scratch + at.k_rows + key * at.stride);
      rows_to_panel(p.scratch + at.v + key * at.stride, p.head_dim, count,
                    p.scratch + at.v_panels + key * p.head_dim);
    }
    clear(p.scratch + at.dk, p.num_keys * at.stride);
    clear(p.scratch + at.dv, p.num_keys * at.stride);
  }
  float gate_gradient[kPanel] = {};
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    for_vectors(vectors_of(panel_size(token, p.num_tokens)),
                [&]<int NV>() { backward_panel<NV>(b, at, token, gate_gradient); });
  }
  double sum = 0.0;
  for (const float lane : gate_gradient) sum += lane;
  *b.gate_gradient = static_cast<float>(sum);
  if (!b.scores) return;
  place_keys(b, p.scratch + at.dk, 1);
  place_keys(b, p.scratch + at.dv, 2);
}

void input_gradient(const OutputParams& p) {
  const PackedHeadBackward weights(p.width, p.head_dim);
  output_part(p, 3 * p.num_heads, [&](int64_t s) {
    return p.packed + p.head_index[s / 3] * weights.floats + s % 3 * weights.matrix;
  });
}

// Panels of columns of a weight's gradient that are summed up together: one block of rows serves
// them while it is in the second-level cache.
constexpr int64_t kGradientPanels = 4;

int64_t weight_gradient_scratch_floats(int64_t head_dim) {
  return kGradientPanels * head_dim * kPanel + kPanel * row_floats(head_dim);
}

// Sums of 16 rows, of 16 such sums, and of those: a running sum that only grows would lose digits
// that PyTorch's keeps.
void bias_gradient(const WeightGradientParams& p) {
  constexpr int64_t kSmall = 16;
  const int64_t stride = row_floats(p.head_dim);
  for (int64_t d = 0; d < stride; d += kLanes) {
    Vec total = zero();
    for_chains(p.num_samples * p.num_tokens, [&](int64_t k, int64_t steps, bool, bool) {
      Vec sum = zero();
      for (int64_t first = k; first < k + steps; first += kSmall) {
        const int64_t end = first + kSmall < k + steps ? first + kSmall : k + steps;
        Vec small = zero();
        for (int64_t i = first; i < end; ++i) small = add(small, load(p.rows + i * stride + d));
        sum = add(sum, small);
      }
      total = add(total, sum);
    });
    float lanes[kLanes];
    store(lanes, total);
    for (int64_t i = 0; i < kLanes && d + i < p.head_dim; ++i) {
      p.bias[d + i] = p.add ? p.bias[d + i] + lanes[i] : lanes[i];
    }
  }
}

// to [count] (+)= from
HEADKIT_INLINE void write(const float* from, int64_t count, bool add_to, float* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = add_to ? to[i] + from[i] : from[i];
}

void write_gradient_panel(const WeightGradientParams& p, const float* sum, int64_t panel_width,
                          int64_t column, float* scratch) {
  const int64_t used = p.width - column < panel_width ? p.width - column : panel_width;
  if (!p.transposed) {
    for (int64_t d = 0; d < p.head_dim; ++d) {
      write(sum + d * panel_width, used, p.add, p.out + d * p.out_stride + column);
    }
    return;
  }
  const int64_t stride = row_floats(p.head_dim);
  pack_transposed([sum, panel_width](int64_t d) { return sum + d * panel_width; }, p.head_dim,
                  stride, used, scratch, stride);
  for (int64_t j = 0; j < used; ++j) {
    write(scratch + j * stride, p.head_dim, p.add, p.out + (column + j) * p.out_stride);
  }
}

void weight_gradient(const WeightGradientParams& p) {
  const ColumnPanels panels(p.width);
  const int64_t width = panels.width(), stride = row_floats(p.head_dim);
  const int64_t sum_floats = p.head_dim * width;
  const int64_t group = p.num_tokens < kChain ? kChain / p.num_tokens : 1;
  const int64_t end = panels.panels * (p.part + 1) / p.parts;
  if (p.bias != nullptr && p.part == 0) bias_gradient(p);
  for (int64_t begin = panels.panels * p.part / p.parts; begin < end; begin += kGradientPanels) {
    const int64_t together = end - begin < kGradientPanels ? end - begin : kGradientPanels;
    for (int64_t s = 0; s < p.num_samples; s += group) {
      const int64_t samples = p.num_samples - s < group ? p.num_samples - s : group;
      for_chains(p.num_tokens, [&](int64_t k, int64_t steps, bool first_chain, bool) {
        const bool opens = s == 0 && first_chain;
        const float* rows = p.rows + (s * p.num_tokens + k) * stride;
        for (int64_t i = 0; i < together; ++i) {
          const int64_t column = (begin + i) * width;
          const auto b_of = [&](int64_t segment) {
            return p.columns + p.sample_index[s + segment] * p.sample_stride +
                   column * p.num_tokens + k * width;
          };
          for_vectors(panels.vectors_of(begin + i), [&]<int NV>() {
            for_row_tiles<kTileRows[NV]>(p.head_dim, [&]<int MR>(int64_t d) {
              float* to = p.scratch + i * sum_floats + d * width;
              const float* a = rows + d;
              tile<MR, NV>(samples, steps, a, stride, b_of, width, a + kAhead * stride, stride,
                           [&](int r, int j, Vec c) {
                             float* at = to + r * width + j * kLanes;
                             store(at, opens ? c : add(load(at), c));
                           });
            });
          });
        }
      });
    }
    for (int64_t i = 0; i < together; ++i) {
      write_gradient_panel(p, p.scratch + i * sum_floats, width, (begin + i) * width,
                           p.scratch + kGradientPanels * p.head_dim * kPanel);
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
