#include <algorithm>
#include <string>
#include <utility>

#include "cpp/kernels/kernel_problem.h"

namespace headkit::kernels {
namespace {

/// Of the sum of output * seed, in PyTorch's layouts; `gate` of the open heads, `scores` that of a
/// bias [tokens][tokens] that all of them share.
template <typename Number>
struct Gradients {
  std::vector<Number> x, q, k, v, o, q_bias, k_bias, v_bias, gate, scores;

  std::vector<std::pair<std::string, const std::vector<Number>*>> named() const {
    return {{"x", &x},       {"q", &q},           {"k", &k},           {"v", &v},
            {"o", &o},       {"q_bias", &q_bias}, {"k_bias", &k_bias}, {"v_bias", &v_bias},
            {"gate", &gate}, {"scores", &scores}};
  }

  void append(const Gradients& other) {
    const auto add = [](std::vector<Number>& to, const std::vector<Number>& from) {
      to.insert(to.end(), from.begin(), from.end());
    };
    add(x, other.x), add(q, other.q), add(k, other.k), add(v, other.v), add(o, other.o);
    add(q_bias, other.q_bias), add(k_bias, other.k_bias), add(v_bias, other.v_bias);
    add(gate, other.gate), add(scores, other.scores);
  }

  /// Moves each bias to the end of its weight.
  void join_biases() {
    for (auto [weight, bias] : {std::pair(&q, &q_bias), {&k, &k_bias}, {&v, &v_bias}}) {
      weight->insert(weight->end(), bias->begin(), bias->end());
      bias->clear();
    }
  }
};

template <typename Number>
Gradients<Number> zero_gradients(const Problem& p) {
  const int64_t inner = p.heads * p.head_dim;
  const std::vector<Number> weight(inner * p.width, Number(0)), bias(inner, Number(0));
  return {std::vector<Number>(p.tokens * p.width, Number(0)),
          weight,
          weight,
          weight,
          weight,
          bias,
          bias,
          bias,
          std::vector<Number>(p.open.size(), Number(0)),
          std::vector<Number>(p.tokens * p.tokens, Number(0))};
}

/// The chain rule, written out.
template <typename Number>
Gradients<Number> plain_gradients(const Problem& p, const std::vector<float>& seed) {
  Gradients<Number> g = zero_gradients<Number>(p);
  const int64_t T = p.tokens, D = p.width, dh = p.head_dim;
  const int64_t n = static_cast<int64_t>(p.keys.size()), inner = p.heads * dh;
  const Number scale(p.scale());
  for (size_t place = 0; place < p.open.size(); ++place) {
    const int64_t first = p.open[place] * dh;
    const Number gate(p.gates[place]);
    const auto project = [&](const std::vector<float>& w, const std::vector<float>& b, int64_t t,
                             int64_t d) {
      Number sum = b.empty() ? Number(0) : Number(b[first + d]);
      for (int64_t i = 0; i < D; ++i)
        sum += Number(p.x[t * D + i]) * Number(w[(first + d) * D + i]);
      return sum;
    };
    std::vector<Number> q(T * dh), k(n * dh), v(n * dh), u(T * dh), weight(T * n, Number(0));
    std::vector<Number> dq(T * dh, Number(0)), dk(T * dh, Number(0)), dv(T * dh, Number(0));
    for (int64_t d = 0; d < dh; ++d) {
      for (int64_t t = 0; t < T; ++t) {
        q[t * dh + d] = project(p.q, p.q_bias, t, d);
        for (int64_t i = 0; i < D; ++i) {
          u[t * dh + d] += Number(seed[t * D + i]) * Number(p.o[i * inner + first + d]);
        }
      }
      for (int64_t j = 0; j < n; ++j) {
        k[j * dh + d] = project(p.k, p.k_bias, p.keys[j], d);
        v[j * dh + d] = project(p.v, p.v_bias, p.keys[j], d);
      }
    }
    const std::vector<Number> scaled_context = plain_context<Number>(p, place);
    Problem open_gate = p;
    open_gate.gates[place] = 1.0f;
    const std::vector<Number> context = plain_context<Number>(open_gate, place);
    for (int64_t t = 0; t < T; ++t) {
      std::vector<int64_t> seen;
      Number largest = -std::numeric_limits<Number>::infinity(), sum = 0;
      for (int64_t j = 0; j < n; ++j) {
        if (!p.sees(t, p.keys[j])) continue;
        Number score = 0;
        for (int64_t d = 0; d < dh; ++d) score += q[t * dh + d] * k[j * dh + d];
        score = score * scale + Number(p.bias_of(t, p.keys[j]));
        weight[t * n + j] = score;
        largest = std::max(largest, score);
        seen.push_back(j);
      }
      for (const int64_t j : seen) {
        sum += weight[t * n + j] = std::exp(weight[t * n + j] - largest);
      }
      Number delta = 0;
      for (int64_t d = 0; d < dh; ++d) {
        g.gate[place] += u[t * dh + d] * context[t * dh + d];
        delta += gate * u[t * dh + d] * context[t * dh + d];
      }
      for (const int64_t j : seen) {
        const Number probability = weight[t * n + j] / sum;
        Number dp = 0;
        for (int64_t d = 0; d < dh; ++d) dp += gate * u[t * dh + d] * v[j * dh + d];
        const Number ds = probability * (dp - delta) * scale;
        g.scores[t * T + p.keys[j]] += probability * (dp - delta);
        for (int64_t d = 0; d < dh; ++d) {
          dq[t * dh + d] += ds * k[j * dh + d];
          dk[p.keys[j] * dh + d] += ds * q[t * dh + d];
          dv[p.keys[j] * dh + d] += probability * gate * u[t * dh + d];
        }
      }
    }
    const auto through = [&](const std::vector<Number>& dy, const std::vector<float>& w,
                             std::vector<Number>& dw, std::vector<Number>& db) {
      for (int64_t t = 0; t < T; ++t) {
        for (int64_t d = 0; d < dh; ++d) {
          db[first + d] += dy[t * dh + d];
          for (int64_t i = 0; i < D; ++i) {
            g.x[t * D + i] += dy[t * dh + d] * Number(w[(first + d) * D + i]);
            dw[(first + d) * D + i] += dy[t * dh + d] * Number(p.x[t * D + i]);
          }
        }
      }
    };
    through(dq, p.q, g.q, g.q_bias);
    through(dk, p.k, g.k, g.k_bias);
    through(dv, p.v, g.v, g.v_bias);
    for (int64_t t = 0; t < T; ++t) {
      for (int64_t i = 0; i < D; ++i) {
        for (int64_t d = 0; d < dh; ++d) {
          g.o[i * inner + first + d] += Number(seed[t * D + i]) * scaled_context[t * dh + d];
        }
      }
    }
  }
  return g;
}

Floats token_panels(const KernelTable& table, const Problem& p, const std::vector<float>& x) {
  Problem other{.tokens = p.tokens, .width = p.width};
  other.x = x;
  return pack_tokens(table, other);
}

Floats column_panels(const KernelTable& table, const std::vector<float>& x, int64_t rows,
                     int64_t width) {
  Floats panels = pack_column_panels(table, {.from = x.data(),
                                             .packed = nullptr,
                                             .stride = width,
                                             .count = width,
                                             .depth = rows,
                                             .transposed = true});
  EXPECT_TRUE(panels.intact()) << "written beyond the column panels";
  return panels;
}

// Weights of one head as the backward reads them.
struct BackwardWeights {
  Floats q, k, v, o;
};

BackwardWeights pack_backward(const KernelTable& table, const Problem& p, int64_t head) {
  const auto panels = [&](const std::vector<float>& weight) {
    return pack_column_panels(table, {.from = weight.data() + head * p.head_dim * p.width,
                                      .packed = nullptr,
                                      .stride = p.width,
                                      .count = p.width,
                                      .depth = p.head_dim,
                                      .transposed = true});
  };
  return {panels(p.q), panels(p.k), panels(p.v),
          pack_blocks(table, {.from = p.o.data() + head * p.head_dim,
                              .packed = nullptr,
                              .stride = p.heads * p.head_dim,
                              .count = p.head_dim,
                              .depth = p.width,
                              .transposed = true})};
}

struct PairGradients {
  Floats panels, rows, gate;
  std::vector<double> scores;  // [tokens][tokens]
  int64_t matrix, row;         // strides of `rows`
};

PairGradients run_pairs_backward(const KernelTable& table, const Problem& p,
                                 const std::vector<float>& seed, bool of_scores = true) {
  const int64_t n = static_cast<int64_t>(p.open.size()), P = table.panel;
  const int64_t num_keys = static_cast<int64_t>(p.keys.size());
  const int64_t row = row_floats(table, p.head_dim);
  const int64_t panels = (p.tokens + P - 1) / P, stride = 3 * n * p.head_dim * P;
  const PackedLayer packed = pack_heads(table, p);
  const Floats tokens = pack_tokens(table, p), keys = pack_tokens(table, p, &p.keys);
  const Floats output = token_panels(table, p, seed);
  PairGradients found{.panels = Floats(panels * stride),
                      .rows = Floats(n * 4 * p.tokens * row),
                      .gate = Floats(n),
                      .scores = std::vector<double>(p.tokens * p.tokens, 0.0),
                      .matrix = n * p.tokens * row,
                      .row = row};
  for (int64_t place = 0; place < n; ++place) {
    const BackwardWeights weights = pack_backward(table, p, p.open[place]);
    const HeadOperands operands = project(table, p, packed, tokens, keys, p.open[place]);
    Floats u(panel_floats(table, p.tokens, p.head_dim));
    table.project_panels({.tokens = output.data(),
                          .weights = weights.o.data(),
                          .bias = nullptr,
                          .out = u.data(),
                          .num_tokens = p.tokens,
                          .width = p.width,
                          .head_dim = p.head_dim,
                          .scale = 1.0f});
    Floats forward_scratch(table.attend_scratch_floats(num_keys));
    Floats gated(panel_floats(table, p.tokens, p.head_dim)), context(gated.size());
    Floats softmax(panel_floats(table, p.tokens, 2));
    table.attend({.q = operands.q.data(),
                  .k = operands.k.data(),
                  .v = operands.v.data(),
                  .context = gated.data(),
                  .own_context = context.data(),
                  .softmax = softmax.data(),
                  .scratch = forward_scratch.data(),
                  .scores = p.scores(),
                  .num_tokens = p.tokens,
                  .num_keys = num_keys,
                  .head_dim = p.head_dim,
                  .v_stride = row,
                  .context_stride = p.head_dim * P,
                  .gate = p.gates[place]});
    Floats k_rows(num_keys * row), v_panels(panel_floats(table, num_keys, p.head_dim));
    table.prepare_keys({.k = operands.k.data(),
                        .v = operands.v.data(),
                        .k_rows = k_rows.data(),
                        .v_panels = v_panels.data(),
                        .num_keys = num_keys,
                        .head_dim = p.head_dim});
    EXPECT_TRUE(k_rows.intact() && v_panels.intact());
    Floats dk(num_keys * row, 0.0f), dv(num_keys * row, 0.0f);
    Floats scratch(table.attend_backward_scratch_floats(num_keys, p.head_dim));
    float* to_panels = found.panels.data() + place * 3 * p.head_dim * P;
    float* to_rows = found.rows.data() + place * p.tokens * row;
    Floats d_scores(panel_floats(table, p.tokens, num_keys));
    table.attend_backward({.q = operands.q.data(),
                           .k = operands.k.data(),
                           .k_rows = k_rows.data(),
                           .v_panels = v_panels.data(),
                           .context = context.data(),
                           .softmax = softmax.data(),
                           .u = u.data(),
                           .dq = to_panels,
                           .context_rows = to_rows + 3 * found.matrix,
                           .dk = dk.data(),
                           .dv = dv.data(),
                           .d_scores = p.attn_bias ? d_scores.data() : nullptr,
                           .gate_gradient = found.gate.data() + place,
                           .scratch = scratch.data(),
                           .scores = p.scores(),
                           .num_tokens = p.tokens,
                           .num_keys = num_keys,
                           .head_dim = p.head_dim,
                           .dq_stride = stride,
                           .gate = p.gates[place],
                           .scale = p.scale(),
                           .of_scores = of_scores});
    EXPECT_TRUE(scratch.intact() && dk.intact() && dv.intact()) << "written beyond the room";
    if (!of_scores) continue;
    table.panels_to_rows({.panels = to_panels,
                          .rows = to_rows,
                          .num_tokens = p.tokens,
                          .head_dim = p.head_dim,
                          .panel_stride = stride});
    if (p.attn_bias) {
      Floats turned(table.bias_gradient_scratch_floats());
      table.bias_gradient({.d_scores = d_scores.data(),
                           .key_position = p.keys.data(),
                           .out = found.scores.data(),
                           .scratch = turned.data(),
                           .query_stride = p.tokens,
                           .key_stride = 1,
                           .num_tokens = p.tokens,
                           .num_keys = num_keys});
      EXPECT_TRUE(d_scores.intact() && turned.intact()) << "written beyond the room";
    }
    for (int m = 1; m < 3; ++m) {
      table.place_keys({.of_keys = m == 1 ? dk.data() : dv.data(),
                        .key_position = p.keys.data(),
                        .rows = to_rows + m * found.matrix,
                        .panels = to_panels + m * p.head_dim * P,
                        .num_keys = num_keys,
                        .num_tokens = p.tokens,
                        .head_dim = p.head_dim,
                        .panel_stride = stride});
    }
  }
  EXPECT_TRUE(found.panels.intact() && found.rows.intact() && found.gate.intact());
  return found;
}

Gradients<float> run_backward(const KernelTable& table, const Problem& p,
                              const std::vector<float>& seed, int64_t parts = 1) {
  Gradients<float> g = zero_gradients<float>(p);
  const int64_t n = static_cast<int64_t>(p.open.size()), P = table.panel, dh = p.head_dim;
  const PairGradients pairs = run_pairs_backward(table, p, seed);
  std::vector<BackwardWeights> packed;
  std::vector<const float*> segments;
  for (const int32_t head : p.open) packed.push_back(pack_backward(table, p, head));
  for (const BackwardWeights& w : packed) {
    segments.insert(segments.end(), {w.q.data(), w.k.data(), w.v.data()});
  }
  const Floats start(p.width + table.vector_length, 0.0f);
  Floats dx(p.tokens * p.width);
  for (int64_t part = 0; part < parts; ++part) {
    table.sum_projections({.context = pairs.panels.data(),
                           .weights = segments.data(),
                           .start = start.data(),
                           .out = dx.data(),
                           .num_segments = 3 * n,
                           .num_tokens = p.tokens,
                           .width = p.width,
                           .head_dim = dh,
                           .context_stride = 3 * n * dh * P,
                           .part = part,
                           .parts = parts});
  }
  EXPECT_TRUE(dx.intact()) << "written beyond the gradient of the input";
  g.x.assign(dx.data(), dx.data() + dx.size());

  const Floats x = column_panels(table, p.x, p.tokens, p.width);
  const Floats output = column_panels(table, seed, p.tokens, p.width);
  const int32_t sample = 0;
  std::vector<float>* weights[4] = {&g.q, &g.k, &g.v, &g.o};
  std::vector<float>* biases[4] = {&g.q_bias, &g.k_bias, &g.v_bias, nullptr};
  for (int64_t place = 0; place < n; ++place) {
    const int64_t head = p.open[place];
    for (int m = 0; m < 4; ++m) {
      Floats scratch(table.weight_gradient_scratch_floats(dh));
      for (int64_t part = 0; part < parts; ++part) {
        table.weight_gradient(
            {.rows = pairs.rows.data() + m * pairs.matrix + place * p.tokens * pairs.row,
             .columns = m == 3 ? output.data() : x.data(),
             .sample_index = &sample,
             .out = weights[m]->data() + head * dh * (m == 3 ? 1 : p.width),
             .bias = m == 3 ? nullptr : biases[m]->data() + head * dh,
             .scratch = scratch.data(),
             .num_samples = 1,
             .num_tokens = p.tokens,
             .width = p.width,
             .head_dim = dh,
             .sample_stride = 0,
             .out_stride = m == 3 ? p.heads * dh : p.width,
             .transposed = m == 3,
             .add = false,
             .part = part,
             .parts = parts});
      }
      EXPECT_TRUE(scratch.intact()) << "written beyond the scratch";
    }
  }
  g.gate.assign(pairs.gate.data(), pairs.gate.data() + n);
  g.scores.assign(pairs.scores.begin(), pairs.scores.end());
  return g;
}

class AttendBackwardTest : public LevelTest {
 protected:
  // The rule of `expect_accurate`, over four random fillings together, a bias as the weight of a
  // constant 1: alone they have so few gradients that the largest error is luck.
  void expect_gradients(const Problem& unfilled, uint32_t first_seed) {
    SCOPED_TRACE(testing::Message()
                 << unfilled.tokens << " tokens, " << unfilled.keys.size() << " keys, width "
                 << unfilled.width << ", head size " << unfilled.head_dim
                 << (unfilled.causal ? ", causal" : "") << ", window " << unfilled.window
                 << ", offset " << unfilled.query_offset);
    Gradients<float> found, plain;
    Gradients<double> exact;
    for (uint32_t i = 0; i < 4; ++i) {
      Problem p = unfilled;
      p.fill(first_seed + 10 * i);
      const std::vector<float> seed = random_floats(p.tokens * p.width, first_seed + 10 * i + 9);
      found.append(run_backward(table(), p, seed));
      plain.append(plain_gradients<float>(p, seed));
      exact.append(plain_gradients<double>(p, seed));
    }
    if (!unfilled.attn_bias) {
      for (auto* scores : {&found.scores, &plain.scores}) scores->clear();
      exact.scores.clear();
    }
    found.join_biases();
    plain.join_biases();
    exact.join_biases();
    for (size_t i = 0; i < found.named().size(); ++i) {
      SCOPED_TRACE(found.named()[i].first);
      expect_accurate(*found.named()[i].second, *plain.named()[i].second, *exact.named()[i].second);
    }
  }
};

TEST_P(AttendBackwardTest, AgreesWithFloat64OnAwkwardSizes) {
  for (const int64_t tokens : {1, 2, 17, 49, 97}) {
    for (const int64_t head_dim : {1, 5, 24, 64, 80}) {
      Problem p{.tokens = tokens, .width = 11, .heads = 2, .head_dim = head_dim};
      expect_gradients(p, tokens * 100 + head_dim);
    }
  }
}

TEST_P(AttendBackwardTest, AgreesWithFloat64OnAnyWidth) {
  for (const int64_t width : {3, 16, 47, 65, 300}) {
    Problem p{.tokens = 21, .width = width, .heads = 3, .head_dim = 6, .open = {0, 2}};
    p.gates = {0.5f, -2.0f};
    expect_gradients(p, width);
  }
}

TEST_P(AttendBackwardTest, LeavesOutKeys) {
  for (const bool causal : {false, true}) {
    for (const int64_t tokens : {3, 40, 101}) {
      Problem padded{.tokens = tokens, .width = 12, .heads = 1, .head_dim = 5, .causal = causal};
      for (int32_t t = 0; t < tokens / 2 + 1; ++t) padded.keys.push_back(t);
      expect_gradients(padded, 6);
      Problem holes{.tokens = tokens, .width = 12, .heads = 1, .head_dim = 5, .causal = causal};
      for (int32_t t = 2; t < tokens; t += 1 + t % 3) holes.keys.push_back(t);
      expect_gradients(holes, 7);
    }
  }
}

TEST_P(AttendBackwardTest, KnowsWindowsOffsetsAndBiases) {
  for (const int64_t tokens : {1, 5, 50, 131}) {
    for (const bool causal : {false, true}) {
      for (const int64_t window : {0, 4, 60}) {
        for (const int64_t offset : {0, -3, 7}) {
          Problem p{.tokens = tokens, .width = 9, .heads = 2, .head_dim = 6, .causal = causal};
          p.window = window, p.query_offset = offset, p.attn_bias = true;
          if (offset < 0) {
            for (int32_t t = 0; t < tokens; t += 1 + t % 2) p.keys.push_back(t);
          }
          expect_gradients(p, tokens);
        }
      }
    }
  }
}

TEST_P(AttendBackwardTest, RunsOverManyKeys) {
  for (const bool causal : {false, true}) {
    Problem p{.tokens = 601, .width = 9, .heads = 1, .head_dim = 8, .causal = causal};
    expect_gradients(p, 5);
  }
}

TEST_P(AttendBackwardTest, WorksWithoutBias) {
  Problem p{.tokens = 20, .width = 16, .heads = 2, .head_dim = 16, .bias = false};
  expect_gradients(p, 8);
}

TEST_P(AttendBackwardTest, PartsOfTheColumnsDoNotChangeABit) {
  for (const int64_t width : {5, 300}) {
    Problem p{.tokens = 30, .width = width, .heads = 2, .head_dim = 7};
    p.fill(12);
    const std::vector<float> seed = random_floats(p.tokens * p.width, 1);
    const Gradients<float> whole = run_backward(table(), p, seed);
    for (const int64_t parts : {2, 5}) {
      const Gradients<float> cut = run_backward(table(), p, seed, parts);
      for (size_t i = 0; i < whole.named().size(); ++i) {
        EXPECT_EQ(*cut.named()[i].second, *whole.named()[i].second) << whole.named()[i].first;
      }
    }
  }
}

TEST_P(AttendBackwardTest, GateAndContextDoNotNeedTheScores) {
  Problem p{.tokens = 53, .width = 20, .heads = 2, .head_dim = 12, .gates = {0.5f, 2.0f}};
  p.fill(13);
  const std::vector<float> seed = random_floats(p.tokens * p.width, 1);
  const PairGradients all = run_pairs_backward(table(), p, seed);
  const PairGradients few = run_pairs_backward(table(), p, seed, false);
  for (int64_t i = 0; i < 2; ++i) EXPECT_EQ(few.gate[i], all.gate[i]);
  for (int64_t i = 3 * all.matrix; i < 4 * all.matrix; ++i) ASSERT_EQ(few.rows[i], all.rows[i]);
}

TEST_P(AttendBackwardTest, WeightGradientSumsOverSamples) {
  const int64_t batch = 6, width = 70, head_dim = 13;
  const int64_t VL = table().vector_length, row = (head_dim + VL - 1) / VL * VL;
  const std::vector<int32_t> samples = {0, 1, 3, 4};
  const int64_t n = static_cast<int64_t>(samples.size());
  for (const int64_t tokens : {1, 40, 130, 300}) {
    const std::vector<float> x = random_floats(batch * tokens * width, tokens);
    const std::vector<float> given = random_floats(n * tokens * head_dim, 2);
    Floats rows(n * tokens * row, 0.0f);
    for (int64_t i = 0; i < n * tokens; ++i) {
      for (int64_t d = 0; d < head_dim; ++d) rows[i * row + d] = given[i * head_dim + d];
    }
    const int64_t stride = table().column_panel_floats(width, tokens);
    Floats columns(batch * stride);
    for (int64_t b = 0; b < batch; ++b) {
      table().pack_column_panels({.from = x.data() + b * tokens * width,
                                  .packed = columns.data() + b * stride,
                                  .stride = width,
                                  .count = width,
                                  .depth = tokens,
                                  .transposed = true});
    }
    for (const bool transposed : {false, true}) {
      for (const bool add : {false, true}) {
        std::vector<float> plain(head_dim * width, 0.0f), plain_bias(head_dim, 0.0f);
        std::vector<double> exact(head_dim * width, 0.0), exact_bias(head_dim, 0.0);
        Floats out(head_dim * width, 3.0f), bias(head_dim, 3.0f);
        Floats scratch(table().weight_gradient_scratch_floats(head_dim));
        table().weight_gradient({.rows = rows.data(),
                                 .columns = columns.data(),
                                 .sample_index = samples.data(),
                                 .out = out.data(),
                                 .bias = bias.data(),
                                 .scratch = scratch.data(),
                                 .num_samples = n,
                                 .num_tokens = tokens,
                                 .width = width,
                                 .head_dim = head_dim,
                                 .sample_stride = stride,
                                 .out_stride = transposed ? head_dim : width,
                                 .transposed = transposed,
                                 .add = add,
                                 .part = 0,
                                 .parts = 1});
        ASSERT_TRUE(out.intact() && bias.intact() && scratch.intact());
        for (int64_t i = 0; i < n * tokens; ++i) {
          const float* of_token = x.data() + (samples[i / tokens] * tokens + i % tokens) * width;
          for (int64_t d = 0; d < head_dim; ++d) {
            plain_bias[d] += given[i * head_dim + d];
            exact_bias[d] += given[i * head_dim + d];
            for (int64_t j = 0; j < width; ++j) {
              const int64_t at = transposed ? j * head_dim + d : d * width + j;
              plain[at] += given[i * head_dim + d] * of_token[j];
              exact[at] += static_cast<double>(given[i * head_dim + d]) * of_token[j];
            }
          }
        }
        for (auto* values : {&exact, &exact_bias}) {
          for (double& value : *values) value += add ? 3.0 : 0.0;
        }
        for (auto* values : {&plain, &plain_bias}) {
          for (float& value : *values) value += add ? 3.0f : 0.0f;
        }
        expect_accurate(out, plain, exact);
        expect_accurate(bias, plain_bias, exact_bias);
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, AttendBackwardTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
