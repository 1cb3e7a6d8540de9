#include <algorithm>

#include "cpp/kernels/bf16_values.h"

namespace headkit::kernels {
namespace {

/// `p` with every value as bfloat16 holds it.
Problem narrowed(Problem p) {
  for (auto* values :
       {&p.x, &p.q, &p.k, &p.v, &p.o, &p.q_bias, &p.k_bias, &p.v_bias, &p.start, &p.score_bias}) {
    for (float& value : *values) value = from_bf16(to_bf16(value));
  }
  return p;
}

/// plain_output, but rounded to bfloat16 wherever operators on bfloat16 tensors round.
std::vector<float> dense_output(const Problem& p) {
  std::vector<double> out(p.tokens * p.width);
  for (int64_t i = 0; i < p.tokens * p.width; ++i) out[i] = p.start[i % p.width];
  const int64_t dh = p.head_dim, n = static_cast<int64_t>(p.keys.size());
  for (size_t place = 0; place < p.open.size(); ++place) {
    const int64_t head = p.open[place];
    const auto project = [&](const std::vector<float>& w, const std::vector<float>& b, int64_t t,
                             int64_t d) {
      double sum = b.empty() ? 0.0 : b[head * dh + d];
      for (int64_t i = 0; i < p.width; ++i) {
        sum += double(p.x[t * p.width + i]) * w[(head * dh + d) * p.width + i];
      }
      return rounded(sum);
    };
    std::vector<double> k(n * dh), v(n * dh);
    for (int64_t j = 0; j < n * dh; ++j) {
      k[j] = project(p.k, p.k_bias, p.keys[j / dh], j % dh);
      v[j] = project(p.v, p.v_bias, p.keys[j / dh], j % dh);
    }
    for (int64_t t = 0; t < p.tokens; ++t) {
      std::vector<double> q(dh), share(n, 0.0);
      for (int64_t d = 0; d < dh; ++d) q[d] = project(p.q, p.q_bias, t, d);
      double largest = -std::numeric_limits<double>::infinity(), sum = 0.0;
      for (int64_t j = 0; j < n; ++j) {
        double score = 0.0;
        for (int64_t d = 0; d < dh; ++d) score += q[d] * k[j * dh + d];
        share[j] = p.sees(t, p.keys[j]) ? score * p.scale() + p.bias_of(t, p.keys[j]) : largest;
        if (p.sees(t, p.keys[j])) largest = std::max(largest, share[j]);
      }
      for (int64_t j = 0; j < n; ++j) {
        share[j] = p.sees(t, p.keys[j]) ? std::exp(share[j] - largest) : 0.0;
        sum += share[j];
      }
      for (int64_t d = 0; d < dh && sum > 0.0; ++d) {
        double context = 0.0;
        for (int64_t j = 0; j < n; ++j) context += rounded(share[j]) * v[j * dh + d];
        context = rounded(context / sum * p.gates[place]);
        for (int64_t i = 0; i < p.width; ++i) {
          out[t * p.width + i] += context * p.o[i * p.heads * dh + head * dh + d];
        }
      }
    }
  }
  std::vector<float> narrow(out.size());
  std::transform(out.begin(), out.end(), narrow.begin(), rounded);
  return narrow;
}

class Bf16Test : public LevelTest {
 protected:
  const Bf16Kernels& bf16() const { return *table().bf16; }
  int64_t panel() const { return table().panel; }
  int64_t row(int64_t head_dim) const { return row_floats(table(), head_dim); }

  Floats pack_rows(const std::vector<Bf16>& x, int64_t tokens, int64_t width,
                   const std::vector<int32_t>* rows = nullptr) const {
    Floats packed(panel_floats(table(), tokens, pairs_of(width)));
    for (int64_t first = 0; first < tokens; first += panel()) {
      bf16().pack_tokens({.x = rows == nullptr ? x.data() + first * width : x.data(),
                          .rows = rows == nullptr ? nullptr : rows->data() + first,
                          .panel = pairs(packed) + first * pairs_of(width),
                          .row_stride = width,
                          .tokens = std::min(panel(), tokens - first),
                          .width = width});
    }
    EXPECT_TRUE(packed.intact()) << "written beyond the tokens";
    return packed;
  }

  Floats pack(bool blocks, const Bf16* from, int64_t stride, int64_t count, int64_t depth) const {
    Floats packed((blocks ? bf16().block_pairs : bf16().column_panel_pairs)(count, depth));
    (blocks ? bf16().pack_blocks : bf16().pack_column_panels)(
        {.from = from, .packed = pairs(packed), .stride = stride, .count = count, .depth = depth});
    EXPECT_TRUE(packed.intact()) << "written beyond the packed weights";
    return packed;
  }

  /// The whole layer, through every stage.
  std::vector<Bf16> run(const Problem& p, int64_t parts = 1) const {
    const int64_t dh = p.head_dim, num_keys = static_cast<int64_t>(p.keys.size());
    const int64_t inner = p.heads * dh, n = static_cast<int64_t>(p.open.size());
    const int64_t panels = (p.tokens + panel() - 1) / panel();
    const int64_t stride = n * pairs_of(dh) * panel();
    const std::vector<Bf16> x = in_bf16(p.x), q_w = in_bf16(p.q), k_w = in_bf16(p.k),
                            v_w = in_bf16(p.v), o_w = in_bf16(p.o);
    const Floats tokens = pack_rows(x, p.tokens, p.width);
    const Floats keys = pack_rows(x, num_keys, p.width, &p.keys);
    Floats context(panels * stride);
    std::vector<Floats> o;
    for (int64_t place = 0; place < n; ++place) {
      const int64_t head = p.open[place];
      Floats q(panel_floats(table(), p.tokens, pairs_of(dh)));
      Floats k(panel_floats(table(), num_keys, pairs_of(dh)));
      Floats v(pairs_of(num_keys) * row(dh));
      const auto project = [&](bool blocks, const Floats& from, const std::vector<Bf16>& weight,
                               const std::vector<float>& bias, int64_t count, float scale,
                               Floats& out) {
        const Floats packed =
            pack(blocks, weight.data() + head * dh * p.width, p.width, dh, p.width);
        Floats padded(row(dh), 0.0f);
        for (int64_t d = 0; d < dh && p.bias; ++d) padded[d] = bias[head * dh + d];
        (blocks ? bf16().project_panels
                : bf16().project_rows)({.tokens = pairs(from),
                                        .weights = pairs(packed),
                                        .bias = p.bias ? padded.data() : nullptr,
                                        .out = pairs(out),
                                        .num_tokens = count,
                                        .width = p.width,
                                        .head_dim = dh,
                                        .scale = scale});
        EXPECT_TRUE(out.intact()) << "written beyond a projection";
      };
      const float log2_e = 1.44269504f;
      project(true, tokens, q_w, p.q_bias, p.tokens, p.scale() * log2_e, q);
      project(true, keys, k_w, p.k_bias, num_keys, 1.0f, k);
      project(false, keys, v_w, p.v_bias, num_keys, 1.0f, v);
      Floats scratch(bf16().attend_scratch_floats(num_keys, dh));
      bf16().attend({.q = pairs(q),
                     .k = pairs(k),
                     .v = pairs(v),
                     .context = pairs(context) + place * pairs_of(dh) * panel(),
                     .scratch = scratch.data(),
                     .scores = p.scores(),
                     .num_tokens = p.tokens,
                     .num_keys = num_keys,
                     .head_dim = dh,
                     .context_stride = stride,
                     .gate = p.gates[place]});
      EXPECT_TRUE(scratch.intact()) << "written beyond the scratch";
      o.push_back(pack(false, o_w.data() + head * dh, inner, p.width, dh));
    }
    EXPECT_TRUE(context.intact()) << "written beyond the context";
    std::vector<const Bf16Pair*> weights;
    for (const Floats& part : o) weights.push_back(pairs(part));
    Floats start(p.width + table().vector_length, 0.0f);
    std::copy(p.start.begin(), p.start.end(), start.data());
    constexpr Bf16 kGuard = 0x1234;
    std::vector<Bf16> out(p.tokens * p.width + 64, kGuard);
    for (int64_t part = 0; part < parts; ++part) {
      bf16().sum_projections({.context = pairs(context),
                              .weights = weights.data(),
                              .start = start.data(),
                              .out = out.data(),
                              .num_segments = n,
                              .num_tokens = p.tokens,
                              .width = p.width,
                              .head_dim = dh,
                              .context_stride = stride,
                              .part = part,
                              .parts = parts});
    }
    for (size_t i = p.tokens * p.width; i < out.size(); ++i) {
      EXPECT_EQ(out[i], kGuard) << "written beyond the output";
    }
    out.resize(p.tokens * p.width);
    return out;
  }

  void expect_output(Problem p, uint32_t seed) {
    SCOPED_TRACE(testing::Message() << p.tokens << " tokens, " << p.keys.size() << " keys, width "
                                    << p.width << ", head size " << p.head_dim
                                    << (p.causal ? ", causal" : "") << (p.attn_bias ? ", bias" : "")
                                    << ", window " << p.window << ", offset " << p.query_offset);
    p.fill(seed);
    p = narrowed(p);
    const std::vector<double> exact = plain_output<double>(p);
    const std::vector<float> dense = dense_output(p);
    const std::vector<Bf16> found = run(p);
    double error = 0.0, dense_error = 0.0, largest = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) {
      const double value = from_bf16(found[i]);
      ASSERT_TRUE(std::isfinite(value)) << "at " << i;
      error = std::max(error, std::abs(value - exact[i]));
      dense_error = std::max(dense_error, std::abs(dense[i] - exact[i]));
      largest = std::max(largest, std::abs(exact[i]));
    }
    EXPECT_LE(error, 2.0 * dense_error + std::ldexp(largest, -6));
  }
};

TEST_P(Bf16Test, TokenPanelsHoldPairsAndZerosBehindThem) {
  for (const int64_t tokens : {1, 15, 16, 17, 48, 97}) {
    for (const int64_t width : {1, 2, 5, 32, 37, 64}) {
      const std::vector<Bf16> x = in_bf16(random_floats(tokens * width, 1));
      std::vector<int32_t> last_first(tokens);
      for (int64_t t = 0; t < tokens; ++t) last_first[t] = static_cast<int32_t>(tokens - 1 - t);
      const Floats packed = pack_rows(x, tokens, width);
      const Floats chosen = pack_rows(x, tokens, width, &last_first);
      const int64_t lanes = table().vector_length;
      for (int64_t t = 0; t < (tokens + lanes - 1) / lanes * lanes; ++t) {
        for (int64_t i = 0; i < 2 * pairs_of(width); ++i) {
          const int64_t at =
              t / panel() * panel() * pairs_of(width) + i / 2 * panel() + t % panel();
          const bool inside = t < tokens && i < width;
          ASSERT_EQ(half(packed, at, i % 2), inside ? x[t * width + i] : 0)
              << tokens << " x " << width;
          ASSERT_EQ(half(chosen, at, i % 2), inside ? x[(tokens - 1 - t) * width + i] : 0);
        }
      }
    }
  }
}

TEST_P(Bf16Test, PackedMatricesHoldEveryElementOnceAndZeros) {
  for (const bool blocks : {true, false}) {
    for (const int64_t count : {1, 5, 8, 47, 64, 130}) {
      for (const int64_t depth : {1, 7, 32, 65}) {
        std::vector<Bf16> matrix(count * depth);
        for (size_t i = 0; i < matrix.size(); ++i) matrix[i] = static_cast<Bf16>(i + 1);
        const Floats packed = pack(blocks, matrix.data(), depth, count, depth);
        std::vector<int64_t> seen(matrix.size() + 1, 0);
        // The rows that are multiplied: whole blocks, or whole vectors of a panel.
        const int64_t used = packed.size() / 16 * 16 - 15;
        for (int64_t i = 0; i < packed.size(); ++i) {
          for (const int64_t which : {0, 1}) {
            const Bf16 value = half(packed, i, which);
            if (value <= matrix.size()) {
              ++seen[value];
            } else {
              ASSERT_GE(i, used) << "unset within the matrix";
            }
          }
        }
        for (size_t value = 1; value < seen.size(); ++value) {
          ASSERT_EQ(seen[value], 1) << count << " x " << depth << ", element " << value - 1;
        }
      }
    }
  }
}

TEST_P(Bf16Test, WidePanelsRoundToTheNarrowOnes) {
  for (const int64_t tokens : {1, 17, 48, 97}) {
    for (const int64_t head_dim : {1, 8, 13}) {
      const int64_t width = 21;
      const std::vector<Bf16> x = in_bf16(random_floats(tokens * width, 1));
      const std::vector<Bf16> weight = in_bf16(random_floats(head_dim * width, 2));
      const std::vector<float> bias = random_floats(head_dim, 3);
      const Floats from = pack_rows(x, tokens, width);
      const Floats packed = pack(true, weight.data(), width, head_dim, width);
      Floats narrow(panel_floats(table(), tokens, pairs_of(head_dim)));
      Floats rounded_later(narrow.size()), wide(panel_floats(table(), tokens, head_dim));
      Bf16ProjectParams params{.tokens = pairs(from),
                               .weights = pairs(packed),
                               .bias = bias.data(),
                               .out = pairs(narrow),
                               .num_tokens = tokens,
                               .width = width,
                               .head_dim = head_dim,
                               .scale = 0.3f};
      bf16().project_panels(params);
      params.out = nullptr;
      params.wide = wide.data();
      bf16().project_panels(params);
      bf16().round_panels({.panels = wide.data(),
                           .out = pairs(rounded_later),
                           .num_tokens = tokens,
                           .head_dim = head_dim});
      EXPECT_TRUE(narrow.intact() && wide.intact() && rounded_later.intact());
      for (int64_t t = 0; t < tokens; ++t) {
        for (int64_t d = 0; d < head_dim; ++d) {
          const int64_t begin = t / panel() * panel(), lane = t % panel();
          const int64_t at = begin * pairs_of(head_dim) + d / 2 * panel() + lane;
          double exact = bias[d];
          for (int64_t i = 0; i < width; ++i) {
            exact += double(from_bf16(x[t * width + i])) * from_bf16(weight[d * width + i]);
          }
          ASSERT_NEAR(wide[begin * head_dim + d * panel() + lane], 0.3 * exact, 1e-5);
          ASSERT_EQ(half(narrow, at, d % 2), half(rounded_later, at, d % 2));
          ASSERT_EQ(half(narrow, at, d % 2), to_bf16(wide[begin * head_dim + d * panel() + lane]));
        }
      }
    }
  }
}

TEST_P(Bf16Test, AgreesWithFloat64OnAwkwardSizes) {
  for (const int64_t tokens : {1, 2, 7, 16, 33, 49, 97}) {
    for (const int64_t head_dim : {1, 5, 8, 24, 32, 64, 80}) {
      expect_output({.tokens = tokens, .width = 19, .heads = 2, .head_dim = head_dim},
                    tokens * 100 + head_dim);
    }
  }
  for (const int64_t width : {1, 16, 47, 65, 96}) {
    expect_output({.tokens = 50, .width = width, .heads = 5, .head_dim = 12, .open = {1, 3}},
                  width);
  }
}

TEST_P(Bf16Test, RunsOverSeveralBlocksOfKeys) {
  for (const bool causal : {false, true}) {
    expect_output({.tokens = 641, .width = 9, .heads = 1, .head_dim = 8, .causal = causal}, 5);
  }
}

TEST_P(Bf16Test, LeavesOutKeys) {
  for (const bool causal : {false, true}) {
    for (const int64_t tokens : {3, 40, 101}) {
      Problem padded{.tokens = tokens, .width = 12, .heads = 1, .head_dim = 5, .causal = causal};
      for (int32_t t = 0; t < tokens / 2 + 1; ++t) padded.keys.push_back(t);
      expect_output(padded, 6);
      Problem holes{.tokens = tokens, .width = 12, .heads = 1, .head_dim = 5, .causal = causal};
      for (int32_t t = 2; t < tokens; t += 1 + t % 3) holes.keys.push_back(t);
      expect_output(holes, 7);
    }
  }
}

TEST_P(Bf16Test, AddsBiasesAndLooksThroughWindows) {
  for (const bool attn_bias : {false, true}) {
    for (const int64_t window : {0, 1, 30, 200}) {
      for (const bool causal : {false, true}) {
        for (const int64_t tokens : {1, 49, 350}) {
          Problem p{.tokens = tokens,
                    .width = 9,
                    .heads = 1,
                    .head_dim = 6,
                    .causal = causal,
                    .window = window,
                    .attn_bias = attn_bias};
          expect_output(p, 13);
          p.query_offset = causal ? 5 : -40;
          for (int32_t t = 1; t < tokens; t += 1 + t % 2) p.keys.push_back(t);
          expect_output(p, 14);
        }
      }
    }
  }
}

TEST_P(Bf16Test, WorksWithoutBiasAndScalesByTheGate) {
  Problem p{.tokens = 20, .width = 16, .heads = 3, .head_dim = 16, .bias = false};
  p.open = {0, 2};
  p.gates = {0.25f, -3.0f};
  expect_output(p, 8);
}

TEST_P(Bf16Test, SurvivesScoresFarApart) {
  Problem p{.tokens = 30, .width = 8, .heads = 1, .head_dim = 4};
  p.fill(9);
  for (float& value : p.q) value *= 1e4f;
  for (const Bf16 value : run(narrowed(p))) ASSERT_TRUE(std::isfinite(from_bf16(value)));
}

TEST_P(Bf16Test, WithoutHeadsWritesTheStart) {
  Problem p{.tokens = 21, .width = 37, .heads = 1, .head_dim = 4};
  p.fill(11);
  p = narrowed(p);
  p.open.clear();
  const std::vector<Bf16> out = run(p);
  for (int64_t i = 0; i < p.tokens * p.width; ++i) {
    ASSERT_EQ(from_bf16(out[i]), p.start[i % p.width]);
  }
}

TEST_P(Bf16Test, PartsOfTheColumnsDoNotChangeABit) {
  for (const int64_t width : {5, 64, 131}) {
    Problem p{.tokens = 30, .width = width, .heads = 3, .head_dim = 7};
    p.fill(12);
    const std::vector<Bf16> whole = run(p);
    for (const int64_t parts : {2, 3, 16}) EXPECT_EQ(run(p, parts), whole);
  }
}

// What right-padding means: the same keys, more queries.
TEST_P(Bf16Test, PaddingDoesNotChangeABit) {
  for (const bool causal : {false, true}) {
    Problem p{.tokens = 61, .width = 33, .heads = 1, .head_dim = 20, .causal = causal};
    p.fill(10);
    Problem longer = p;
    longer.tokens = 150;
    longer.x.resize(longer.tokens * p.width, 0.5f);
    const std::vector<Bf16> part = run(p), whole = run(longer);
    EXPECT_TRUE(std::equal(part.begin(), part.end(), whole.begin()));
  }
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(Bf16Test);
INSTANTIATE_TEST_SUITE_P(Levels, Bf16Test, testing::ValuesIn(bf16_levels()), level_name);

}  // namespace
}  // namespace headkit::kernels
