#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/dispatch.h"

namespace headkit::kernels {

/// 64-byte aligned floats with guard values behind them.
class Floats {
 public:
  explicit Floats(int64_t count, float value = std::numeric_limits<float>::quiet_NaN())
      : count_(count) {
    const size_t bytes = ((count + kGuards) * sizeof(float) + 63) / 64 * 64;
    data_.reset(static_cast<float*>(std::aligned_alloc(64, bytes)));
    for (int64_t i = 0; i < count; ++i) data_.get()[i] = value;
    for (int64_t i = 0; i < kGuards; ++i) data_.get()[count + i] = kGuard;
  }
  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  float& operator[](int64_t i) { return data_.get()[i]; }
  float operator[](int64_t i) const { return data_.get()[i]; }
  int64_t size() const { return count_; }
  bool intact() const {
    for (int64_t i = 0; i < kGuards; ++i) {
      if (data_.get()[count_ + i] != kGuard) return false;
    }
    return true;
  }

 private:
  struct Free {
    void operator()(float* data) const { std::free(data); }
  };
  static constexpr int64_t kGuards = 64;
  static constexpr float kGuard = 123.0f;
  int64_t count_;
  std::unique_ptr<float, Free> data_;
};

inline std::vector<float> random_floats(int64_t count, uint32_t seed, float scale = 1.0f) {
  std::mt19937 generator(seed);
  std::normal_distribution<float> normal(0.0f, scale);
  std::vector<float> values(count);
  for (float& value : values) value = normal(generator);
  return values;
}

/// One layer and one sample.
struct Problem {
  int64_t tokens = 1, width = 1, heads = 1, head_dim = 1;
  bool bias = true;
  bool causal = false;
  int64_t query_offset = 0, window = 0;
  bool attn_bias = false;
  std::vector<int32_t> keys = {};  ///< tokens that may be attended to, ascending
  std::vector<int32_t> open = {};  ///< heads that run
  std::vector<float> gates = {};   ///< of the open heads
  std::vector<float> x = {}, q = {}, k = {}, v = {}, o = {}, q_bias = {}, k_bias = {}, v_bias = {},
                     start = {}, score_bias = {};  ///< the last [tokens][largest key + 1]

  float scale() const { return 1.0f / std::sqrt(static_cast<float>(head_dim)); }

  void fill(uint32_t seed) {
    const int64_t inner = heads * head_dim;
    const float spread = 1.0f / std::sqrt(static_cast<float>(width));
    x = random_floats(tokens * width, seed);
    q = random_floats(inner * width, seed + 1, spread);
    k = random_floats(inner * width, seed + 2, spread);
    v = random_floats(inner * width, seed + 3, spread);
    o = random_floats(width * inner, seed + 4, 1.0f / std::sqrt(static_cast<float>(inner)));
    if (bias) {
      q_bias = random_floats(inner, seed + 5);
      k_bias = random_floats(inner, seed + 6);
      v_bias = random_floats(inner, seed + 7);
    }
    start = random_floats(width, seed + 8);
    // Queries attend to tokens of the same sample, so the largest position is the last token's.
    if (attn_bias) score_bias = random_floats(tokens * tokens, seed + 9);
    if (keys.empty()) {
      for (int32_t t = 0; t < tokens; ++t) keys.push_back(t);
    }
    if (open.empty()) {
      for (int32_t h = 0; h < heads; ++h) open.push_back(h);
    }
    if (gates.empty()) gates.assign(open.size(), 1.0f);
  }

  /// Whether query t may see the key at a position.
  bool sees(int64_t t, int64_t position) const {
    const int64_t distance = t + query_offset - position;
    return (!causal || distance >= 0) && (window == 0 || std::abs(distance) < window);
  }
  float bias_of(int64_t t, int64_t position) const {
    return attn_bias ? score_bias[t * tokens + position] : 0.0f;
  }

  ScoreParams scores() const {
    return {.key_position = keys.data(),
            .bias = attn_bias ? score_bias.data() : nullptr,
            .bias_query_stride = tokens,
            .bias_key_stride = 1,
            .query_offset = query_offset,
            .window = window,
            .causal = causal};
  }
};

/// Context of one open head, [tokens][head_dim], in the type `Number`.
template <typename Number>
std::vector<Number> plain_context(const Problem& p, int64_t place) {
  const int64_t head = p.open[place];
  const auto project = [&](const std::vector<float>& w, const std::vector<float>& b, int64_t t,
                           int64_t d) {
    Number sum = b.empty() ? Number(0) : Number(b[head * p.head_dim + d]);
    for (int64_t i = 0; i < p.width; ++i) {
      sum += Number(p.x[t * p.width + i]) * Number(w[(head * p.head_dim + d) * p.width + i]);
    }
    return sum;
  };
  const int64_t dh = p.head_dim, n = static_cast<int64_t>(p.keys.size());
  std::vector<Number> q(p.tokens * dh), k(n * dh), v(n * dh), context(p.tokens * dh, Number(0));
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t d = 0; d < dh; ++d) q[t * dh + d] = project(p.q, p.q_bias, t, d);
  }
  for (int64_t j = 0; j < n; ++j) {
    for (int64_t d = 0; d < dh; ++d) {
      k[j * dh + d] = project(p.k, p.k_bias, p.keys[j], d);
      v[j * dh + d] = project(p.v, p.v_bias, p.keys[j], d);
    }
  }
  for (int64_t t = 0; t < p.tokens; ++t) {
    std::vector<Number> weight;
    std::vector<int64_t> seen;
    Number largest = -std::numeric_limits<Number>::infinity(), sum = 0;
    for (int64_t j = 0; j < n; ++j) {
      if (!p.sees(t, p.keys[j])) continue;
      Number score = 0;
      for (int64_t d = 0; d < dh; ++d) score += q[t * dh + d] * k[j * dh + d];
      seen.push_back(j);
      weight.push_back(score * Number(p.scale()) + Number(p.bias_of(t, p.keys[j])));
      largest = std::max(largest, weight.back());
    }
    for (Number& w : weight) sum += w = std::exp(w - largest);
    for (size_t j = 0; j < weight.size(); ++j) {
      for (int64_t d = 0; d < dh; ++d) {
        context[t * dh + d] += weight[j] / sum * v[seen[j] * dh + d] * Number(p.gates[place]);
      }
    }
  }
  return context;
}

/// start + sum over open heads of context W_O^T, [tokens][width].
template <typename Number>
std::vector<Number> plain_output(const Problem& p) {
  std::vector<Number> out(p.tokens * p.width);
  for (int64_t t = 0; t < p.tokens; ++t) {
    for (int64_t i = 0; i < p.width; ++i) out[t * p.width + i] = Number(p.start[i]);
  }
  for (size_t place = 0; place < p.open.size(); ++place) {
    const std::vector<Number> context = plain_context<Number>(p, place);
    for (int64_t t = 0; t < p.tokens; ++t) {
      for (int64_t i = 0; i < p.width; ++i) {
        for (int64_t d = 0; d < p.head_dim; ++d) {
          out[t * p.width + i] +=
              context[t * p.head_dim + d] *
              Number(p.o[i * p.heads * p.head_dim + p.open[place] * p.head_dim + d]);
        }
      }
    }
  }
  return out;
}

/// Floats of one row of a head, and of the panels of some tokens.
inline int64_t row_floats(const KernelTable& table, int64_t head_dim) {
  return (head_dim + table.vector_length - 1) / table.vector_length * table.vector_length;
}
inline int64_t panel_floats(const KernelTable& table, int64_t tokens, int64_t width) {
  return (tokens + table.panel - 1) / table.panel * table.panel * width;
}

inline Floats pack_tokens(const KernelTable& table, const Problem& p,
                          const std::vector<int32_t>* rows = nullptr) {
  const int64_t count = rows == nullptr ? p.tokens : static_cast<int64_t>(rows->size());
  const int64_t panels = (count + table.panel - 1) / table.panel;
  Floats packed(panels * table.panel * p.width);
  for (int64_t first = 0; first < count; first += table.panel) {
    table.pack_tokens({.x = rows == nullptr ? p.x.data() + first * p.width : p.x.data(),
                       .rows = rows == nullptr ? nullptr : rows->data() + first,
                       .panel = packed.data() + first * p.width,
                       .row_stride = p.width,
                       .tokens = std::min(table.panel, count - first),
                       .width = p.width});
  }
  return packed;
}

/// Weights of a layer in the layouts of the kernels, one entry a head.
struct PackedLayer {
  std::vector<Floats> q, k, v, o, q_bias, k_bias, v_bias;

  bool intact() const {
    for (const auto* parts : {&q, &k, &v, &o, &q_bias, &k_bias, &v_bias}) {
      for (const Floats& part : *parts) {
        if (!part.intact()) return false;
      }
    }
    return true;
  }
};

inline Floats pack_blocks(const KernelTable& table, const PackMatrixParams& matrix) {
  Floats packed(table.block_floats(matrix.count, matrix.depth));
  PackMatrixParams params = matrix;
  params.packed = packed.data();
  table.pack_blocks(params);
  return packed;
}

inline Floats pack_column_panels(const KernelTable& table, const PackMatrixParams& matrix) {
  Floats packed(table.column_panel_floats(matrix.count, matrix.depth));
  PackMatrixParams params = matrix;
  params.packed = packed.data();
  table.pack_column_panels(params);
  return packed;
}

inline PackedLayer pack_heads(const KernelTable& table, const Problem& p) {
  PackedLayer packed;
  const int64_t dh = p.head_dim, row = row_floats(table, dh);
  const auto rows = [&](const std::vector<float>& weight, int64_t head) {
    return PackMatrixParams{.from = weight.data() + head * dh * p.width,
                            .packed = nullptr,
                            .stride = p.width,
                            .count = dh,
                            .depth = p.width,
                            .transposed = false};
  };
  const auto bias = [&](const std::vector<float>& values, int64_t head) {
    Floats padded(row, 0.0f);
    for (int64_t d = 0; d < dh && !values.empty(); ++d) padded[d] = values[head * dh + d];
    return padded;
  };
  for (int64_t head = 0; head < p.heads; ++head) {
    packed.q.push_back(pack_blocks(table, rows(p.q, head)));
    packed.k.push_back(pack_blocks(table, rows(p.k, head)));
    packed.v.push_back(pack_column_panels(table, rows(p.v, head)));
    packed.o.push_back(pack_column_panels(table, {.from = p.o.data() + head * dh,
                                                  .packed = nullptr,
                                                  .stride = p.heads * dh,
                                                  .count = p.width,
                                                  .depth = dh,
                                                  .transposed = false}));
    packed.q_bias.push_back(bias(p.q_bias, head));
    packed.k_bias.push_back(bias(p.k_bias, head));
    packed.v_bias.push_back(bias(p.v_bias, head));
  }
  return packed;
}

/// q and k in panels, v in rows, of one head.
struct HeadOperands {
  Floats q, k, v;
};

inline HeadOperands project(const KernelTable& table, const Problem& p, const PackedLayer& packed,
                            const Floats& tokens, const Floats& keys, int64_t head) {
  const int64_t num_keys = static_cast<int64_t>(p.keys.size());
  HeadOperands operands{Floats(panel_floats(table, p.tokens, p.head_dim)),
                        Floats(panel_floats(table, num_keys, p.head_dim)),
                        Floats(num_keys * row_floats(table, p.head_dim))};
  const auto params = [&](const Floats& from, const Floats& weights, const Floats& bias,
                          Floats& out, int64_t count, float scale) {
    return ProjectParams{.tokens = from.data(),
                         .weights = weights.data(),
                         .bias = p.bias ? bias.data() : nullptr,
                         .out = out.data(),
                         .num_tokens = count,
                         .width = p.width,
                         .head_dim = p.head_dim,
                         .scale = scale};
  };
  table.project_panels(
      params(tokens, packed.q[head], packed.q_bias[head], operands.q, p.tokens, p.scale()));
  table.project_panels(
      params(keys, packed.k[head], packed.k_bias[head], operands.k, num_keys, 1.0f));
  table.project_rows(params(keys, packed.v[head], packed.v_bias[head], operands.v, num_keys, 1.0f));
  EXPECT_TRUE(operands.q.intact() && operands.k.intact() && operands.v.intact());
  return operands;
}

/// All contexts of the sample, in the layout of the kernels.
inline Floats run_pairs(const KernelTable& table, const Problem& p, const PackedLayer& packed) {
  const Floats tokens = pack_tokens(table, p), keys = pack_tokens(table, p, &p.keys);
  const int64_t panels = (p.tokens + table.panel - 1) / table.panel;
  const int64_t stride = static_cast<int64_t>(p.open.size()) * p.head_dim * table.panel;
  const int64_t num_keys = static_cast<int64_t>(p.keys.size());
  Floats context(panels * stride);
  for (size_t place = 0; place < p.open.size(); ++place) {
    const HeadOperands operands = project(table, p, packed, tokens, keys, p.open[place]);
    Floats scratch(table.attend_scratch_floats(num_keys));
    table.attend(
        {.q = operands.q.data(),
         .k = operands.k.data(),
         .v = operands.v.data(),
         .context = context.data() + static_cast<int64_t>(place) * p.head_dim * table.panel,
         .own_context = nullptr,
         .softmax = nullptr,
         .scratch = scratch.data(),
         .scores = p.scores(),
         .num_tokens = p.tokens,
         .num_keys = num_keys,
         .head_dim = p.head_dim,
         .v_stride = row_floats(table, p.head_dim),
         .context_stride = stride,
         .gate = p.gates[place]});
    EXPECT_TRUE(scratch.intact()) << "written beyond the scratch";
  }
  EXPECT_TRUE(context.intact()) << "written beyond the context";
  return context;
}

inline std::vector<float> run_output(const KernelTable& table, const Problem& p,
                                     const PackedLayer& packed, const Floats& context,
                                     int64_t parts = 1) {
  std::vector<const float*> weights;
  for (const int32_t head : p.open) weights.push_back(packed.o[head].data());
  Floats start(p.width + table.vector_length, 0.0f);
  for (int64_t i = 0; i < p.width; ++i) start[i] = p.start[i];
  Floats out(p.tokens * p.width);
  for (int64_t part = 0; part < parts; ++part) {
    table.sum_projections(
        {.context = context.data(),
         .weights = weights.data(),
         .start = start.data(),
         .out = out.data(),
         .num_segments = static_cast<int64_t>(p.open.size()),
         .num_tokens = p.tokens,
         .width = p.width,
         .head_dim = p.head_dim,
         .context_stride = static_cast<int64_t>(p.open.size()) * p.head_dim * table.panel,
         .part = part,
         .parts = parts});
  }
  EXPECT_TRUE(out.intact()) << "written beyond the output";
  return {out.data(), out.data() + out.size()};
}

inline std::vector<float> run_all(const KernelTable& table, const Problem& p, int64_t parts = 1) {
  const PackedLayer packed = pack_heads(table, p);
  EXPECT_TRUE(packed.intact()) << "written beyond the packed weights";
  return run_output(table, p, packed, run_pairs(table, p, packed), parts);
}

/// The project's rule: twice the error of the plain float32 computation, plus two units in the last
/// place of the largest output.
template <typename Values>
void expect_accurate(const Values& found, const std::vector<float>& plain,
                     const std::vector<double>& exact) {
  ASSERT_EQ(static_cast<size_t>(found.size()), exact.size());
  double plain_error = 0.0, error = 0.0, largest = 0.0;
  for (size_t i = 0; i < exact.size(); ++i) {
    ASSERT_TRUE(std::isfinite(found[i])) << "at " << i << ": " << found[i];
    plain_error = std::max(plain_error, std::abs(plain[i] - exact[i]));
    error = std::max(error, std::abs(found[i] - exact[i]));
    largest = std::max(largest, std::abs(exact[i]));
  }
  EXPECT_LE(error, 2.0 * plain_error + 2.0 * std::numeric_limits<float>::epsilon() * largest);
}

/// Runs once for every level that this machine has.
class LevelTest : public testing::TestWithParam<int> {
 protected:
  const KernelTable& table() const { return kernel_table_at(GetParam()); }
};

inline auto every_level() { return testing::Range(0, isa_count()); }
inline std::string level_name(const testing::TestParamInfo<int>& info) {
  return isa_name(info.param);
}

}  // namespace headkit::kernels
