#include "headkit/explain/attention_rows.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "headkit/core/error.h"
#include "planted_attention.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using testing::PlantedAttention;
using testing::PlantedHead;
using testing::PlantedSizes;

std::vector<SampleAttention> rows_of(GatedModel& model, const std::vector<Batch>& batches,
                                     const AttentionRowOptions& options = {}) {
  std::vector<SampleAttention> all;
  for_each_attention(model, BatchList(batches), options,
                     [&](const SampleAttention& rows) { all.push_back(rows); });
  return all;
}

// By loops in float64: softmax of scaled products over the valid keys.
at::Tensor brute_force(const at::Tensor& x, const AttentionWeights& w, int64_t head, int64_t dh,
                       int64_t valid) {
  const auto slice = [&](const at::Tensor& t) { return t.slice(0, head * dh, (head + 1) * dh); };
  const at::Tensor q = at::linear(x, slice(w.q), slice(w.q_bias));
  const at::Tensor k = at::linear(x, slice(w.k), slice(w.k_bias));
  at::Tensor all = at::zeros({x.size(0), x.size(0)}, at::kDouble);
  for (int64_t i = 0; i < x.size(0); ++i) {
    double sum = 0;
    for (int64_t j = 0; j < valid; ++j) {
      sum += std::exp(q[i].dot(k[j]).item<double>() / std::sqrt(static_cast<double>(dh)));
    }
    for (int64_t j = 0; j < valid; ++j) {
      all[i][j] =
          std::exp(q[i].dot(k[j]).item<double>() / std::sqrt(static_cast<double>(dh))) / sum;
    }
  }
  return all;
}

TEST(AttentionRowsTest, ShowsTheAttentionOfEveryHeadAndSample) {
  const HeadLayout layout{.layers = 1, .heads = 3, .head_dim = 4, .model_dim = 6};
  const auto model = testing::random_toy_model(layout, 2, 3);
  const Batch batch = testing::random_toy_batch(layout, 4, 5, 2, 4);
  const auto all = rows_of(*model, {batch}, {.output_norms = true});
  ASSERT_EQ(all.size(), 4u);
  const AttentionWeights w = model->attention(0);
  for (const SampleAttention& rows : all) {
    const int64_t valid = batch.at("attention_mask")[rows.row].sum().item<int64_t>();
    const at::Tensor x = batch.at("x")[rows.row].slice(0, 0, valid);
    EXPECT_EQ(rows.probabilities.sizes(), (at::IntArrayRef{3, valid, valid}));
    EXPECT_EQ(rows.block_queries, 5);
    EXPECT_TRUE(rows.query_valid.all().item<bool>());
    EXPECT_TRUE(rows.key_allowed.all().item<bool>());
    for (int64_t head = 0; head < 3; ++head) {
      const at::Tensor exact = brute_force(x, w, head, 4, valid);
      EXPECT_LT((rows.probabilities[head] - exact).abs().max().item<double>(), 1e-6);
      const at::Tensor v = at::linear(x, w.v.slice(0, 4 * head, 4 * head + 4),
                                      w.v_bias.slice(0, 4 * head, 4 * head + 4));
      const at::Tensor written =
          exact.matmul(v).matmul(w.o.slice(1, 4 * head, 4 * head + 4).t()).norm(2, {1});
      EXPECT_LT((rows.output_norm[head] - written).abs().max().item<double>(), 1e-5);
    }
  }
}

TEST(AttentionRowsTest, BatchesAndPaddingDoNotShow) {
  const HeadLayout layout{.layers = 2, .heads = 4, .head_dim = 3, .model_dim = 6, .kv_heads = 2};
  const auto model = testing::random_toy_model(layout, 2, 5);
  const Batch batch = testing::random_toy_batch(layout, 3, 6, 2, 6);
  const auto together = rows_of(*model, {batch});
  std::vector<Batch> singles;
  for (int64_t b = 0; b < 3; ++b) {
    const int64_t valid = batch.at("attention_mask")[b].sum().item<int64_t>();
    Batch one = select_examples(batch, at::tensor({b}));
    one["x"] = one.at("x").slice(1, 0, valid);
    one["attention_mask"] = one.at("attention_mask").slice(1, 0, valid);
    singles.push_back(one);
  }
  const auto apart = rows_of(*model, singles);
  ASSERT_EQ(together.size(), apart.size());
  for (size_t i = 0; i < apart.size(); ++i) {
    EXPECT_EQ(together[i].sample, apart[i].sample);
    EXPECT_EQ(together[i].layer, apart[i].layer);
    EXPECT_LT((together[i].probabilities - apart[i].probabilities).abs().max().item<double>(),
              1e-6);
  }
}

TEST(AttentionRowsTest, CausalRowsSeeNoLaterKey) {
  const PlantedSizes sizes{.vocabulary = 4, .positions = 5};
  PlantedAttention model(sizes, {{PlantedHead(sizes)}}, /*causal=*/true);
  const Batch batch{{"input_ids", at::tensor({0, 1, 2, 3, 1}, at::kLong).reshape({1, 5})}};
  const auto all = rows_of(model, {batch});
  const at::Tensor lower = at::ones({5, 5}).tril();
  EXPECT_TRUE(at::equal(all[0].key_allowed[0], lower.to(at::kBool)));
  EXPECT_LT((all[0].probabilities[0] - lower / lower.sum(1, true)).abs().max().item<double>(),
            1e-7);
}

TEST(AttentionRowsTest, ASampleOfPaddingAloneHasNoRows) {
  const HeadLayout layout{.layers = 1, .heads = 2, .head_dim = 2, .model_dim = 4};
  const auto model = testing::random_toy_model(layout, 2, 7);
  Batch batch = testing::random_toy_batch(layout, 2, 3, 2, 8);
  batch.at("attention_mask")[0].fill_(false);
  const auto all = rows_of(*model, {batch}, {.output_norms = true});
  EXPECT_EQ(all[0].probabilities.sizes(), (at::IntArrayRef{2, 0, 0}));
  EXPECT_EQ(all[0].query_valid.size(0), 0);
  EXPECT_EQ(all[0].output_norm.sizes(), (at::IntArrayRef{2, 0}));
}

TEST(AttentionRowsTest, AClosedHeadLooksAsBeforeAndLaterLayersSeeTheGate) {
  const HeadLayout layout{.layers = 2, .heads = 2, .head_dim = 2, .model_dim = 4};
  const auto model = testing::random_toy_model(layout, 2, 9);
  const Batch batch = testing::random_toy_batch(layout, 1, 4, 2, 10);
  AttentionRowOptions options;
  options.gates.heads = at::tensor({0., 1., 1., 1.}, at::kDouble).reshape({2, 2});
  const auto dense = rows_of(*model, {batch});
  const auto gated = rows_of(*model, {batch}, options);
  EXPECT_TRUE(at::equal(dense[0].probabilities, gated[0].probabilities));
  EXPECT_FALSE(at::equal(dense[1].probabilities, gated[1].probabilities));
}

TEST(AttentionRowsTest, ABiasOfMinusTheLargestNumberIsNotAllowed) {
  const HeadLayout layout{.layers = 1, .heads = 1, .head_dim = 2, .model_dim = 4};
  const auto plain = testing::random_toy_model(layout, 2, 11);
  // A model that shows its call with the mask as a bias, as others write it.
  class Biased final : public GatedModel {
   public:
    explicit Biased(std::shared_ptr<testing::ToyModel> model) : model_(std::move(model)) {}
    HeadLayout layout() const override { return model_->layout(); }
    HeadMask heads() const override { return model_->heads(); }
    ModelState embed(const Batch& batch) override { return model_->embed(batch); }
    ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet& gates,
                   Taps* taps) override {
      const ModelState next = model_->run(state, first, last, gates, taps);
      for (AttentionBlockCall& call : taps->attention_call) {
        at::Tensor bias = at::zeros({1, 1, 1, 3}, at::kDouble);
        bias[0][0][0][1] = -std::numeric_limits<float>::max();
        call.input.attn_bias(bias);
      }
      return next;
    }
    at::Tensor head(const ModelState& state) override { return model_->head(state); }
    AttentionWeights attention(int64_t layer) override { return model_->attention(layer); }
    void replace_attention(int64_t, const AttentionWeights&, const std::vector<int64_t>&) override {
    }
    std::vector<std::pair<std::string, at::Tensor>> parameters() override { return {}; }

   private:
    std::shared_ptr<testing::ToyModel> model_;
  } model(plain);
  const Batch batch{{"x", at::randn({1, 3, 4}, at::kDouble)}};
  const auto all = rows_of(model, {batch});
  EXPECT_TRUE(at::equal(all[0].key_allowed[0][0], at::tensor({1, 0, 1}, at::kLong).to(at::kBool)));
  EXPECT_EQ(all[0].probabilities.select(2, 1).abs().max().item<double>(), 0);
}

TEST(AttentionRowsTest, RefusesGatesThatDoNotFit) {
  const HeadLayout layout{.layers = 1, .heads = 2, .head_dim = 2, .model_dim = 4};
  const auto model = testing::random_toy_model(layout, 2, 7);
  AttentionRowOptions options;
  options.gates.heads = at::ones({1, 3}, at::kDouble);
  EXPECT_THROW(rows_of(*model, {testing::random_toy_batch(layout, 1, 3, 2, 8)}, options),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
