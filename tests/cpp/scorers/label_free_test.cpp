#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "headkit/scorers/ablation.h"
#include "headkit/scorers/activation.h"
#include "headkit/scorers/agreement.h"
#include "headkit/scorers/attention_entropy.h"
#include "headkit/scorers/confidence.h"
#include "headkit/scorers/flap.h"
#include "headkit/scorers/weight_norm.h"
#include "scorers/attention_rows.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

HeadScores score(const HeadScorer& scorer, GatedModel& model, const std::vector<Batch>& batches,
                 const ScoreOptions& options = {}) {
  return scorer.score(model, BatchList(batches), *cross_entropy(), options);
}

// Attention probabilities of layer 0, head by head and query by query, [H][T][S], of one example.
std::vector<at::Tensor> first_layer_probabilities(GatedModel& model, const Batch& one) {
  const HeadLayout layout = model.layout();
  const AttentionWeights w = model.attention(0);
  const int64_t tokens = one.at("attention_mask")[0].sum().item<int64_t>();
  const at::Tensor x = one.at("x")[0].slice(0, 0, tokens);
  std::vector<at::Tensor> all;
  for (int64_t head = 0; head < layout.heads; ++head) {
    const auto rows = [&](const at::Tensor& t) {
      return t.slice(0, head * layout.head_dim, (head + 1) * layout.head_dim);
    };
    const at::Tensor q = at::linear(x, rows(w.q), rows(w.q_bias));
    const at::Tensor k = at::linear(x, rows(w.k), rows(w.k_bias));
    all.push_back((q.matmul(k.t()) / std::sqrt(static_cast<double>(layout.head_dim))).softmax(-1));
  }
  return all;
}

TEST(ActivationTest, GoldenStatistics) {
  const auto& golden = testing::golden_case("toy.activation");
  const auto model = testing::golden_toy_model();
  for (const char* statistic : {"energy", "norm", "raw_norm"}) {
    const HeadScores scores =
        score(ActivationScorer({.statistic = statistic}), *model, {testing::golden_toy_batch()});
    testing::expect_golden(scores.values, golden, statistic);
    EXPECT_EQ(scores.samples, 3);
    EXPECT_TRUE(scores.lower.le(scores.values + 1e-9).all().item<bool>());
  }
}

TEST(ActivationTest, IsTakenAfterTheOutputProjection) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 3, 2);
  model->attention(1).o.slice(1, 2, 4).zero_();
  EXPECT_EQ(score(ActivationScorer(), *model, {batch}).values[1][1].item<double>(), 0);
  EXPECT_GT(score(ActivationScorer({.statistic = "raw_norm"}), *model, {batch})
                .values[1][1]
                .item<double>(),
            0);
}

TEST(FlapTest, GoldenChannelsAndHeads) {
  const auto& golden = testing::golden_case("toy.flap");
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  const std::vector<Batch> apart{select_examples(batch, at::arange(1)),
                                 select_examples(batch, at::arange(1, 3))};
  for (const auto& data : {std::vector<Batch>{batch}, apart}) {
    const ChannelFluctuation found = channel_fluctuation(*model, BatchList(data));
    testing::expect_golden(found.mean.flatten(1), golden, "channel_mean");
    testing::expect_golden(found.variance.flatten(1), golden, "channel_variance");
    testing::expect_golden(found.score.flatten(1), golden, "channel_score");
    testing::expect_golden(score(FlapScorer({.standardize = false}), *model, data).values, golden,
                           "head_score");
    testing::expect_golden(score(FlapScorer(), *model, data).values, golden, "head_z");
  }
  const at::Tensor squared =
      score(FlapScorer({.standardize = false, .square = true}), *model, {batch}).values;
  const at::Tensor channels = testing::golden_tensor(golden["expected"]["channel_score"]);
  EXPECT_TRUE(at::allclose(squared, channels.square().reshape({2, 3, 2}).mean(2), 1e-8, 1e-9));
}

// Running variances that alias old and new means, or leave out the first sample, fail this.
TEST(FlapTest, VarianceIsThatOfTwoPassesFarFromZeroAndWithTheFirstSample) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  for (int64_t layer = 0; layer < 3; ++layer) model->attention(layer).v_bias.add_(1e5);
  Batch batch = testing::random_toy_batch(kLayout, 6, 4, 3, 2);
  Taps taps;
  taps.head_contexts = true;
  model->run(model->embed(batch), 0, 3, {}, &taps);
  std::vector<Batch> singles;
  for (int64_t i = 0; i < 6; ++i) singles.push_back(select_examples(batch, at::arange(i, i + 1)));
  const ChannelFluctuation found = channel_fluctuation(*model, BatchList(singles));
  for (int64_t layer = 0; layer < 3; ++layer) {
    const at::Tensor rows =
        taps.head_context[layer].index({batch.at("attention_mask").to(at::kBool)});
    const at::Tensor mean = rows.mean(0);
    EXPECT_TRUE(at::allclose(found.mean[layer], mean, 1e-12, 1e-6));
    EXPECT_TRUE(at::allclose(found.variance[layer], (rows - mean).square().mean(0), 1e-6, 1e-9));
  }
}

TEST(AttentionEntropyTest, GoldenNormalisedEntropy) {
  const auto& golden = testing::golden_case("toy.attention_statistics");
  const auto model = testing::golden_toy_model();
  const std::vector<Batch> data{testing::golden_toy_batch()};
  testing::expect_golden(score(AttentionEntropyScorer({.sign = "high"}), *model, data).values,
                         golden, "entropy_normalised");
  testing::expect_golden(1 - score(AttentionEntropyScorer({.sign = "low"}), *model, data).values,
                         golden, "entropy_normalised");
  testing::expect_golden(score(ConfidenceScorer({.exclude_end = false}), *model, data).values,
                         golden, "confidence");
}

TEST(AttentionEntropyTest, AHeadThatLooksEverywhereAlikeScoresOneAtAnyLength) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const AttentionWeights w = model->attention(0);
  w.q.slice(0, 0, 2).zero_();
  w.q_bias.slice(0, 0, 2).zero_();
  w.q.slice(0, 2, 4).mul_(1e4);  // head 1 looks at one key
  const Batch batch = testing::random_toy_batch(kLayout, 9, 6, 3, 2);
  const at::Tensor entropy =
      score(AttentionEntropyScorer({.sign = "high"}), *model, {batch}).values;
  EXPECT_NEAR(entropy[0][0].item<double>(), 1, 1e-12);
  EXPECT_NEAR(entropy[0][1].item<double>(), 0, 1e-2);
  const at::Tensor confidence =
      score(ConfidenceScorer({.exclude_end = false}), *model, {batch}).values;
  const at::Tensor lengths = batch.at("attention_mask").sum(1).to(at::kDouble);
  EXPECT_NEAR(confidence[0][0].item<double>(), 9 / lengths.sum().item<double>(), 1e-12);
  EXPECT_NEAR(confidence[0][1].item<double>(), 1, 1e-2);
}

TEST(AttentionEntropyTest, TheFirstTokenAndTheEndAreLeftOutAsBruteForceDoes) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 7, 6, 3, 2);
  std::vector<double> entropy(4), rows(4), confidence(4), queries(4);
  for (int64_t i = 0; i < 7; ++i) {
    const auto p = first_layer_probabilities(*model, select_examples(batch, at::arange(i, i + 1)));
    const int64_t tokens = p[0].size(0);
    for (int64_t head = 0; head < 4; ++head) {
      for (int64_t t = 0; t < tokens; ++t) {
        if (tokens > 2) {
          const at::Tensor rest = p[head][t].slice(0, 1) / p[head][t].slice(0, 1).sum();
          entropy[head] -= (rest * rest.log()).sum().item<double>() / std::log(tokens - 1.0);
          rows[head] += 1;
        }
        if (t + 1 < tokens) {
          confidence[head] += p[head][t].slice(0, 0, tokens - 1).max().item<double>();
          queries[head] += 1;
        }
      }
    }
  }
  const at::Tensor entropies =
      score(AttentionEntropyScorer({.sign = "high", .first_token = "drop"}), *model, {batch})
          .values;
  const at::Tensor confidences = score(ConfidenceScorer(), *model, {batch}).values;
  for (int64_t head = 0; head < 4; ++head) {
    EXPECT_NEAR(entropies[0][head].item<double>(), entropy[head] / rows[head], 1e-10);
    EXPECT_NEAR(confidences[0][head].item<double>(), confidence[head] / queries[head], 1e-10);
  }
}

TEST(AttentionEntropyTest, TheSignIsThatOfTheRankCorrelationWithAblationOnHeldOutExamples) {
  const Batch batch = testing::random_toy_batch(kLayout, 16, 6, 3, 2);
  const Batch first = select_examples(batch, at::arange(4));
  const Batch rest = select_examples(batch, at::arange(4, 16));
  std::vector<std::string> signs;
  int warned = 0;
  for (uint64_t seed = 1; seed < 9; ++seed) {
    const auto model = testing::random_toy_model(kLayout, 3, seed);
    const at::Tensor ablation = score(AblationScorer(), *model, {first}).values.contiguous();
    const at::Tensor entropy =
        score(AttentionEntropyScorer({.sign = "high"}), *model, {first}).values.contiguous();
    const double expected =
        spearman({entropy.const_data_ptr<double>(), 12}, {ablation.const_data_ptr<double>(), 12});
    const HeadScores scores = score(AttentionEntropyScorer(), *model, {batch});
    const auto settings = nlohmann::json::parse(scores.settings);
    EXPECT_NEAR(settings["calibration"]["correlation"].get<double>(), expected, 1e-12);
    EXPECT_EQ(settings["sign"], expected >= 0 ? "high" : "low");
    EXPECT_EQ(scores.samples, 12);
    const EntropyOptions given{.sign = settings["sign"].get<std::string>()};
    EXPECT_TRUE(at::allclose(scores.values,
                             score(AttentionEntropyScorer(given), *model, {rest}).values, 1e-12));
    const bool unsure = settings["calibration"]["lower"].get<double>() <= 0 &&
                        settings["calibration"]["upper"].get<double>() >= 0;
    EXPECT_EQ(settings.contains("warning"), unsure);
    warned += unsure ? 1 : 0;
    signs.push_back(settings["sign"]);
  }
  EXPECT_GT(std::count(signs.begin(), signs.end(), "high"), 0);
  EXPECT_GT(std::count(signs.begin(), signs.end(), "low"), 0);
  EXPECT_GT(warned, 0);
}

TEST(AttentionEntropyTest, RefusesDataThatCannotBeSplitOrSayNothing) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch one = testing::random_toy_batch(kLayout, 1, 6, 3, 2);
  EXPECT_THROW(score(AttentionEntropyScorer(), *model, {one}), std::invalid_argument);
  EXPECT_THROW(score(AttentionEntropyScorer({.sign = "high"}), *model, {}), std::invalid_argument);
  const Batch short_one = testing::random_toy_batch(kLayout, 3, 1, 3, 2);
  EXPECT_THROW(score(AttentionEntropyScorer({.sign = "high"}), *model, {short_one}),
               std::invalid_argument);
  EXPECT_THROW(score(ConfidenceScorer(), *model, {short_one}), std::invalid_argument);
  EXPECT_THROW(score(AttentionEntropyScorer({.sign = "up"}), *model, {one}), std::invalid_argument);
}

TEST(AttentionRowsTest, KeysAndEntropiesUnderMasksAreThoseOfBruteForce) {
  constexpr int64_t kTokens = 7, kHeads = 3, kHeadDim = 2, kWidth = 5;
  at::manual_seed(1);
  const auto normal = [](at::IntArrayRef shape) { return at::randn(shape, at::kDouble); };
  const AttentionWeights w{normal({6, kWidth}),
                           normal({6, kWidth}),
                           normal({6, kWidth}),
                           normal({kWidth, 6}),
                           {},
                           {},
                           {},
                           {}};
  const at::Tensor x = normal({2, kTokens, kWidth});
  at::Tensor padding = at::ones({2, kTokens}, at::kBool);
  padding[0].slice(0, 5).fill_(false);
  padding[1][0] = false;
  at::Tensor bias = at::zeros({1, 1, kTokens, kTokens}, at::kDouble);
  bias.slice(3, 2, 3).fill_(-std::numeric_limits<double>::infinity());
  for (const bool causal : {false, true}) {
    for (const int64_t window : {int64_t{0}, int64_t{3}}) {
      for (const bool biased : {false, true}) {
        for (const auto left_out :
             {LeftOutToken::kNone, LeftOutToken::kFirst, LeftOutToken::kLast}) {
          AttentionInput input;
          input.key_padding_mask(padding).is_causal(causal);
          if (window > 0) input.window(window);
          if (biased) input.attn_bias(bias);
          const AttentionRows found = attention_rows({x, w, kHeads, input}, left_out);
          const at::Tensor keys = found.keys.expand({2, kHeads, kTokens});
          for (int64_t b = 0; b < 2; ++b) {
            const int64_t first = b == 0 ? 0 : 1, last = b == 0 ? 4 : 6;
            for (int64_t h = 0; h < kHeads; ++h) {
              const at::Tensor q = at::linear(x[b], w.q.slice(0, 2 * h, 2 * h + 2));
              const at::Tensor k = at::linear(x[b], w.k.slice(0, 2 * h, 2 * h + 2));
              for (int64_t t = 0; t < kTokens; ++t) {
                std::vector<double> scores;
                for (int64_t s = 0; s < kTokens; ++s) {
                  const bool hidden = !padding[b][s].item<bool>() || (causal && s > t) ||
                                      (window > 0 && std::abs(t - s) >= window) ||
                                      (biased && s == 2) ||
                                      (left_out == LeftOutToken::kFirst && s == first) ||
                                      (left_out == LeftOutToken::kLast && s == last);
                  if (!hidden) scores.push_back((q[t] * k[s]).sum().item<double>());
                }
                EXPECT_EQ(keys[b][h][t].item<double>(), scores.size());
                if (scores.empty()) continue;
                const at::Tensor p =
                    (at::tensor(scores, at::kDouble) / std::sqrt(double{kHeadDim})).softmax(0);
                EXPECT_NEAR(found.entropy[b][h][t].item<double>(),
                            -(p * p.log()).sum().item<double>(), 1e-10);
                EXPECT_NEAR(found.largest_weight[b][h][t].item<double>(), p.max().item<double>(),
                            1e-10);
              }
            }
          }
        }
      }
    }
  }
}

TEST(WeightNormTest, GoldenNorms) {
  const auto& golden = testing::golden_case("toy.weight_norms");
  const auto model = testing::golden_toy_model();
  for (const char* kind : {"output", "ov", "qk", "all"}) {
    testing::expect_golden(score(WeightNormScorer({.kind = kind}), *model, {}).values, golden,
                           kind);
  }
  EXPECT_THROW(score(WeightNormScorer({.kind = "spectral"}), *model, {}), std::invalid_argument);
}

TEST(WeightNormTest, HeadsThatShareKeysAndValuesShareTheirPart) {
  const HeadLayout shared{.layers = 1, .heads = 4, .head_dim = 2, .model_dim = 5, .kv_heads = 2};
  const auto model = testing::random_toy_model(shared, 3, 1);
  const AttentionWeights w = model->attention(0);
  const at::Tensor found = score(WeightNormScorer({.kind = "qk"}), *model, {}).values;
  for (int64_t head = 0; head < 4; ++head) {
    const at::Tensor q = w.q.slice(0, 2 * head, 2 * head + 2);
    const int64_t kv = head / 2;
    const at::Tensor k = w.k.slice(0, 2 * kv, 2 * kv + 2);
    EXPECT_NEAR(found[0][head].item<double>(), q.t().matmul(k).norm().item<double>(), 1e-12);
  }
}

}  // namespace
}  // namespace headkit
