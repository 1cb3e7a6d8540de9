#include "cpp/kernels/kernel_problem.h"

namespace headkit::kernels {
namespace {

// Of each query, in float64, from probabilities that are written out.
struct Plain {
  std::vector<double> log_sum_exp, entropy, largest_weight, contribution_norm;
};

class StatisticsTest : public LevelTest {
 protected:
  double value(const Floats& panels, const Problem& p, int64_t t, int64_t d) const {
    return panels[t / table().panel * table().panel * p.head_dim + d * table().panel +
                  t % table().panel];
  }

  void run(const Problem& p, const HeadOperands& operands, const std::vector<float>& gram,
           Floats& scratch, Floats& log_sum_exp, Floats& entropy, Floats& weight,
           Floats& norm) const {
    const int64_t keys = static_cast<int64_t>(p.keys.size());
    Floats context(panel_floats(table(), p.tokens, p.head_dim));
    Floats own_context(context.size()), softmax(panel_floats(table(), p.tokens, 2));
    Floats of_attend(table().attend_scratch_floats(keys));
    table().attend({.q = operands.q.data(),
                    .k = operands.k.data(),
                    .v = operands.v.data(),
                    .context = context.data(),
                    .own_context = own_context.data(),
                    .softmax = softmax.data(),
                    .scratch = of_attend.data(),
                    .scores = p.scores(),
                    .num_tokens = p.tokens,
                    .num_keys = keys,
                    .head_dim = p.head_dim,
                    .v_stride = row_floats(table(), p.head_dim),
                    .context_stride = p.head_dim * table().panel,
                    .gate = p.gates[0]});
    table().statistics({.q = operands.q.data(),
                        .k = operands.k.data(),
                        .own_context = own_context.data(),
                        .softmax = softmax.data(),
                        .scratch = scratch.data(),
                        .scores = p.scores(),
                        .output_gram = gram.data(),
                        .log_sum_exp = log_sum_exp.data(),
                        .entropy = entropy.data(),
                        .largest_weight = weight.data(),
                        .contribution_norm = norm.data(),
                        .num_tokens = p.tokens,
                        .num_keys = keys,
                        .head_dim = p.head_dim,
                        .gate = p.gates[0]});
  }

  Plain plain(const Problem& p, const HeadOperands& operands) const {
    Plain found;
    const int64_t n = static_cast<int64_t>(p.keys.size());
    const std::vector<double> context = plain_context<double>(p, 0);
    for (int64_t t = 0; t < p.tokens; ++t) {
      std::vector<double> scores;
      for (int64_t j = 0; j < n; ++j) {
        if (!p.sees(t, p.keys[j])) continue;
        double score = p.bias_of(t, p.keys[j]);
        for (int64_t d = 0; d < p.head_dim; ++d) {
          score += value(operands.q, p, t, d) * value(operands.k, p, j, d);
        }
        scores.push_back(score);
      }
      double sum = 0.0, entropy = 0.0, largest = 0.0, square = 0.0;
      for (const double score : scores) sum += std::exp(score);
      for (const double score : scores) {
        const double weight = std::exp(score) / sum;
        entropy -= weight > 0.0 ? weight * std::log(weight) : 0.0;
        largest = std::max(largest, weight);
      }
      for (int64_t i = 0; i < p.width; ++i) {
        double y = 0.0;
        for (int64_t d = 0; d < p.head_dim; ++d) {
          y += context[t * p.head_dim + d] * p.o[i * p.head_dim + d];
        }
        square += y * y;
      }
      found.log_sum_exp.push_back(std::log(sum));
      found.entropy.push_back(entropy);
      found.largest_weight.push_back(largest);
      found.contribution_norm.push_back(std::sqrt(square));
    }
    return found;
  }

  void expect_statistics(Problem p) {
    SCOPED_TRACE(testing::Message() << p.tokens << " tokens, head size " << p.head_dim);
    const int64_t keys = static_cast<int64_t>(p.keys.size());
    const PackedLayer packed = pack_heads(table(), p);
    const HeadOperands operands =
        project(table(), p, packed, pack_tokens(table(), p), pack_tokens(table(), p, &p.keys), 0);
    std::vector<float> gram(p.head_dim * p.head_dim, 0.0f);
    for (int64_t i = 0; i < p.head_dim; ++i) {
      for (int64_t j = 0; j < p.head_dim; ++j) {
        for (int64_t row = 0; row < p.width; ++row) {
          gram[i * p.head_dim + j] += p.o[row * p.head_dim + i] * p.o[row * p.head_dim + j];
        }
      }
    }
    Floats log_sum_exp(p.tokens), entropy(p.tokens), weight(p.tokens), norm(p.tokens);
    Floats scratch(table().statistics_scratch_floats(keys, p.head_dim));
    run(p, operands, gram, scratch, log_sum_exp, entropy, weight, norm);
    ASSERT_TRUE(scratch.intact() && log_sum_exp.intact() && entropy.intact());
    ASSERT_TRUE(weight.intact() && norm.intact());
    const Plain exact = plain(p, operands);
    for (int64_t t = 0; t < p.tokens; ++t) {
      if (std::isinf(exact.log_sum_exp[t])) {
        EXPECT_EQ(log_sum_exp[t], -std::numeric_limits<float>::infinity()) << t;
      } else {
        EXPECT_NEAR(log_sum_exp[t], exact.log_sum_exp[t], 2e-5) << t;
      }
      EXPECT_NEAR(entropy[t], exact.entropy[t], 2e-5) << t;
      EXPECT_NEAR(weight[t], exact.largest_weight[t], 2e-6) << t;
      EXPECT_NEAR(norm[t], exact.contribution_norm[t],
                  1e-5 * std::max(1.0, exact.contribution_norm[t]))
          << t;
    }
  }
};

TEST_P(StatisticsTest, AgreeWithProbabilitiesWrittenOut) {
  for (const int64_t tokens : {1, 7, 50, 301}) {
    for (const int64_t head_dim : {1, 5, 24, 64}) {
      Problem p{.tokens = tokens, .width = 19, .heads = 1, .head_dim = head_dim};
      p.fill(tokens + head_dim);
      expect_statistics(p);
      p.causal = true, p.window = 20, p.query_offset = -2, p.attn_bias = true;
      p.gates = {0.5f};
      p.fill(tokens + head_dim);
      expect_statistics(p);
    }
  }
}

// Entropy 0 and log n, whatever the size of the scores.
TEST_P(StatisticsTest, KnowTheExtremes) {
  Problem p{.tokens = 300, .width = 4, .heads = 1, .head_dim = 3, .bias = false};
  p.fill(1);
  std::fill(p.q.begin(), p.q.end(), 0.0f);
  expect_statistics(p);
  p.fill(2);
  for (float& value : p.q) value *= 40.0f;
  p.attn_bias = true;
  p.score_bias.assign(p.tokens * p.tokens, 0.0f);
  for (int64_t t = 0; t < p.tokens; ++t) p.score_bias[t * p.tokens + t] = 2000.0f;
  std::fill(p.q.begin(), p.q.end(), 0.0f);
  const PackedLayer packed = pack_heads(table(), p);
  const Floats tokens = pack_tokens(table(), p);
  const HeadOperands operands = project(table(), p, packed, tokens, tokens, 0);
  Floats log_sum_exp(p.tokens), entropy(p.tokens), weight(p.tokens), norm(p.tokens);
  Floats scratch(table().statistics_scratch_floats(p.tokens, 3));
  run(p, operands, std::vector<float>(9, 0.0f), scratch, log_sum_exp, entropy, weight, norm);
  for (int64_t t = 0; t < p.tokens; ++t) {
    ASSERT_EQ(entropy[t], 0.0f);
    ASSERT_EQ(weight[t], 1.0f);
    ASSERT_EQ(log_sum_exp[t], 2000.0f);
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, StatisticsTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
