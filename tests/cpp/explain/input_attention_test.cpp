#include "headkit/explain/input_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/explain/attention_rows.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

TEST(InputAttention, CodesEveryHeadOfEveryExample) {
  const HeadLayout layout{.layers = 2, .heads = 3, .head_dim = 4, .model_dim = 6};
  const auto model = testing::random_toy_model(layout, 2, 3);
  const Batch batch = testing::random_toy_batch(layout, 2, 5, 2, 4);
  at::Tensor sinks = at::zeros({2, 5}, at::kBool);
  sinks.select(1, 0).fill_(true);
  const auto coded = input_attention(*model, batch, {}, sinks);
  ASSERT_EQ(coded.size(), 2u);
  for_each_attention(*model, BatchList({batch}), {}, [&](const SampleAttention& rows) {
    for (int64_t head = 0; head < 3; ++head) {
      const CodedAttention& found = *coded[rows.row][rows.layer * 3 + head];
      const at::Tensor p = rows.probabilities[head];
      ASSERT_EQ(static_cast<int64_t>(found.sink_mass.size()), p.size(0));
      for (int64_t i = 0; i < p.size(0); ++i) {
        EXPECT_NEAR(found.sink_mass[i], p[i][0].item<double>(), 1e-6);
        EXPECT_NEAR(found.kept_mass[i], 1, 1e-5) << "fewer than eight keys";
      }
      if (rows.layer > 0) continue;
      const AttentionWeights w = model->attention(0);
      const auto slice = [&](const at::Tensor& t) { return t.slice(0, 4 * head, 4 * head + 4); };
      const at::Tensor written = at::linear(batch.at("x")[rows.row], slice(w.v), slice(w.v_bias))
                                     .matmul(w.o.slice(1, 4 * head, 4 * head + 4).t());
      ASSERT_EQ(static_cast<int64_t>(found.value_norm.size()), p.size(1));
      for (int64_t j = 0; j < p.size(1); ++j) {
        EXPECT_NEAR(found.value_norm[j], written[j].norm().item<double>(), 1e-4);
      }
    }
  });
  EXPECT_THROW(input_attention(*model, batch, {}, at::zeros({3, 5}, at::kBool)),
               std::invalid_argument);
}

TEST(InputAttention, LeavesOutRemovedHeads) {
  const HeadLayout layout{.layers = 1, .heads = 3, .head_dim = 4, .model_dim = 6};
  const auto model = testing::random_toy_model(layout, 2, 3);
  const AttentionWeights w = model->attention(0);
  const at::Tensor kept = at::tensor({0, 1, 2, 3, 8, 9, 10, 11}, at::kLong);
  model->replace_attention(
      0,
      {w.q.index_select(0, kept), w.k.index_select(0, kept), w.v.index_select(0, kept),
       w.o.index_select(1, kept), w.q_bias.index_select(0, kept), w.k_bias.index_select(0, kept),
       w.v_bias.index_select(0, kept), w.o_bias},
      {0, 2});
  const Batch batch = testing::random_toy_batch(layout, 1, 5, 2, 4);
  const auto coded = input_attention(*model, batch, {}, {});
  EXPECT_TRUE(coded[0][0] && coded[0][2]);
  EXPECT_FALSE(coded[0][1]);
}

TEST(CodedAttentionJson, HoldsRoundedNumbersOnly) {
  CodedAttention coded = code_attention(at::full({1, 1, 3}, 1.0 / 3))[0];
  EXPECT_NE(coded.to_json().find("\"received\":[0.3333,0.3333,0.3333]"), std::string::npos);
  EXPECT_NE(coded.to_json().find("\"value_norm\":null"), std::string::npos);
  coded.value_norm = {NAN};
  EXPECT_THROW(coded.to_json(), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
