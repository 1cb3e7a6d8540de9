#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "headkit/core/error.h"
#include "headkit/core/flops.h"
#include "headkit/core/gate_set.h"
#include "headkit/core/head_layout.h"
#include "headkit/core/head_mask.h"
#include "headkit/core/head_scores.h"

namespace headkit {
namespace {

TEST(ErrorTest, NamesOperationExpectationAndFinding) {
  try {
    HEADKIT_CHECK(false, "prune", "scores of shape [layers, heads]", "shape ", 3);
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(), "[prune] expected scores of shape [layers, heads]; found shape 3");
  }
  EXPECT_THROW(HEADKIT_CHECK_INDEX(false, "a", "b", "c"), std::out_of_range);
  EXPECT_THROW(HEADKIT_CHECK_RUNTIME(false, "a", "b", "c"), std::runtime_error);
}

TEST(HeadLayoutTest, RoundTripsAndRefusesBadText) {
  const HeadLayout layout{6, 12, 32, 384, 1536};
  EXPECT_EQ(HeadLayout::from_json(layout.to_json()), layout);
  for (
      const char* text :
      {"", "[]", "{", R"({"layers":1})",
       R"({"layers":0,"heads":1,"head_dim":1,"model_dim":1,"feed_forward":0})",
       R"({"layers":1.5,"heads":1,"head_dim":1,"model_dim":1,"feed_forward":0})",
       R"({"layers":99999999999999999999,"heads":1,"head_dim":1,"model_dim":1,"feed_forward":0})"}) {
    EXPECT_THROW(HeadLayout::from_json(text), std::invalid_argument) << text;
  }
  const std::string deep(100000, '[');
  EXPECT_THROW(HeadLayout::from_json(deep), std::invalid_argument);
}

TEST(HeadLayoutTest, KnowsSharedKvHeads) {
  const HeadLayout own{6, 12, 32, 384, 1536}, shared{6, 12, 32, 384, 1536, 4};
  EXPECT_EQ(own, (HeadLayout{6, 12, 32, 384, 1536, 12}));
  EXPECT_FALSE(own == shared);
  EXPECT_EQ(own.to_json().find("kv_heads"), std::string::npos);
  EXPECT_EQ((HeadLayout{6, 12, 32, 384, 1536, 12}).to_json(), own.to_json());
  EXPECT_EQ(HeadLayout::from_json(shared.to_json()), shared);
  EXPECT_EQ(HeadLayout::from_json(shared.to_json()).key_value_heads(), 4);

  const std::vector<int64_t> kept{0, 2, 7, 8, 9}, read{0, 2, 3}, places{0, 0, 1, 1, 2};
  EXPECT_EQ(shared.kv_heads_of(kept), read);
  EXPECT_EQ(shared.kv_places_of(kept), places);
  EXPECT_EQ(own.kv_heads_of(kept), kept);
  EXPECT_TRUE(shared.kv_heads_of({}).empty());

  EXPECT_THROW((HeadLayout{6, 12, 32, 384, 1536, 5}).check("test"), std::invalid_argument);
  EXPECT_THROW((HeadLayout{6, 12, 32, 384, 1536, -4}).check("test"), std::invalid_argument);
  EXPECT_THROW(
      HeadLayout::from_json(
          R"({"layers":1,"heads":2,"head_dim":1,"model_dim":1,"feed_forward":0,"kv_heads":0})"),
      std::invalid_argument);
}

// Multiply-adds of one layer of 4 heads and 2 KV heads, dh 3, D 5, T 7, counted matrix by matrix.
TEST(FlopsTest, CountAKvHeadOnce) {
  const HeadLayout layout{1, 4, 3, 5, 0, 2};
  const double projection = 2.0 * 7 * 5 * 3, core = 2.0 * 2 * 7 * 7 * 3;
  EXPECT_DOUBLE_EQ(attention_flops(layout, 3, 7, 1), 3 * (2 * projection + core) + 2 * projection);
  EXPECT_DOUBLE_EQ(attention_flops(layout, 3, 7, 2), 3 * (2 * projection + core) + 4 * projection);
  EXPECT_DOUBLE_EQ(attention_flops(layout, 4, 7), attention_flops(layout, 4, 7, 2));
  EXPECT_DOUBLE_EQ(attention_flops(layout, 1, 7), attention_flops(layout, 1, 7, 1));
  const HeadLayout own{1, 4, 3, 5, 0};
  EXPECT_DOUBLE_EQ(attention_flops(own, 3, 7), attention_flops(own, 3, 7, 3));

  const at::Tensor active =
      at::tensor({1, 1, 0, 0, /**/ 0, 1, 1, 0, /**/ 0, 0, 0, 0}).view({3, 1, 4});
  EXPECT_TRUE(at::equal(active_kv_heads(layout, active), at::tensor({1, 2, 0}, at::kLong)));
  EXPECT_TRUE(at::equal(active_kv_heads(own, active), at::tensor({2, 2, 0}, at::kLong)));
  EXPECT_THROW(active_kv_heads(layout, at::ones({3})), std::invalid_argument);
}

// Published totals: BERT-base at T = 128 costs 11,173,625,856 multiply-adds, GPT-2's shape at 1,024
// tokens 106,300,440,576 (both models have 12 layers of 12 heads, D 768, F 3072).
TEST(FlopsTest, MatchesPublishedTotals) {
  const HeadLayout layout{12, 12, 64, 768, 3072};
  EXPECT_DOUBLE_EQ(encoder_flops(layout, 144, 128), 2.0 * 11173625856.0);
  EXPECT_DOUBLE_EQ(encoder_flops(layout, 144, 1024), 2.0 * 106300440576.0);
  EXPECT_DOUBLE_EQ(attention_flops(layout, 1, 128), 2.0 * 27262976.0);
  EXPECT_DOUBLE_EQ(encoder_flops(layout, 0, 128), 12 * feed_forward_flops(layout, 128));
}

TEST(HeadMaskTest, KeepsOriginalIndices) {
  const HeadMask mask(at::tensor({1, 0, 1, 0, 0, 1}).reshape({2, 3}));
  EXPECT_EQ(mask.count(), 3);
  EXPECT_EQ(mask.layer_heads(0), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(mask.layer_heads(1), (std::vector<int64_t>{2}));
  EXPECT_EQ(mask.removed(), (std::vector<HeadId>{{0, 1}, {1, 0}, {1, 1}}));
  EXPECT_TRUE(mask.contains({1, 2}));
  EXPECT_TRUE(mask.is_subset_of(HeadMask::all(2, 3)));
  EXPECT_FALSE(HeadMask::all(2, 3).is_subset_of(mask));
  EXPECT_EQ(HeadMask::from_json(mask.to_json()), mask);
}

TEST(HeadMaskTest, DoesNotShareItsInput) {
  at::Tensor keep = at::ones({2, 3}, at::kBool);
  const HeadMask mask(keep);
  keep.zero_();
  EXPECT_EQ(mask.count(), 6);
}

TEST(HeadMaskTest, RefusesWhatIsNoMask) {
  EXPECT_THROW(HeadMask(at::ones({3})), std::invalid_argument);
  EXPECT_THROW(HeadMask(at::full({2, 3}, 0.5)), std::invalid_argument);
  EXPECT_THROW(HeadMask::all(2, 3).contains({2, 0}), std::out_of_range);
  EXPECT_THROW(HeadMask::all(2, 3).contains({0, -1}), std::out_of_range);
  EXPECT_THROW(HeadMask::all(2, 3).intersect(HeadMask::all(3, 2)), std::invalid_argument);
  for (const char* text :
       {R"({"layers":1,"heads":2,"keep":[[0,2]]})", R"({"layers":1,"heads":2,"keep":[[1,0]]})",
        R"({"layers":2,"heads":2,"keep":[[0]]})", R"({"layers":1,"heads":2,"keep":[0]})",
        R"({"layers":4611686018427387904,"heads":4,"keep":[]})",
        R"({"layers":1,"heads":2,"keep":[[0.5]]})"}) {
    EXPECT_THROW(HeadMask::from_json(text), std::invalid_argument) << text;
  }
}

TEST(HeadMaskTest, EmptyLayersAndEmptyMaskRoundTrip) {
  const HeadMask none(at::zeros({2, 3}, at::kBool));
  EXPECT_EQ(HeadMask::from_json(none.to_json()), none);
  EXPECT_TRUE(none.layer_heads(1).empty());
}

TEST(HeadScoresTest, RoundTripsEveryBit) {
  HeadScores scores;
  scores.values = at::tensor({0.1, 1.0 / 3.0, -2e-17, 5e300}, at::kDouble).reshape({2, 2});
  scores.lower = scores.values - 1;
  scores.upper = scores.values + 1;
  scores.metric = "gate_gradient";
  scores.objective = "cross_entropy";
  scores.settings = R"({"granularity":"example"})";
  scores.samples = 7;
  scores.seed = 18446744073709551615ull;
  const HeadScores again = HeadScores::from_json(scores.to_json());
  EXPECT_TRUE(at::equal(again.values, scores.values));
  EXPECT_TRUE(at::equal(again.lower, scores.lower));
  EXPECT_TRUE(at::equal(again.upper, scores.upper));
  EXPECT_EQ(again.metric, scores.metric);
  EXPECT_EQ(again.settings, scores.settings);
  EXPECT_EQ(again.samples, 7);
  EXPECT_EQ(again.seed, scores.seed);
}

TEST(HeadScoresTest, RefusesNanAndRaggedRows) {
  HeadScores scores;
  scores.values = at::full({2, 2}, std::nan(""), at::kDouble);
  EXPECT_THROW(scores.to_json(), std::invalid_argument);
  scores.values = at::zeros({4}, at::kDouble);
  EXPECT_THROW(scores.check("x"), std::invalid_argument);
  EXPECT_THROW(
      HeadScores::from_json(
          R"({"metric":"m","objective":"o","samples":1,"seed":0,"confidence":0.95,"settings":{},)"
          R"("lower":null,"upper":null,"values":[[1,2],[3]]})"),
      std::invalid_argument);
}

TEST(GateSetTest, SlicesByLayerAndSample) {
  GateSet gates;
  gates.heads = at::arange(24, at::kFloat).reshape({2, 3, 4});
  gates.dropped_output = at::arange(60, at::kFloat).reshape({3, 4, 5});
  gates.check("x", 2, 3, 4);
  EXPECT_TRUE(at::equal(gates.layer_gate(1), gates.heads.select(1, 1)));
  EXPECT_TRUE(at::equal(gates.layer_dropped_output(2), gates.dropped_output[2]));
  const GateSet second = gates.select_samples(at::tensor({1}));
  EXPECT_TRUE(at::equal(second.heads, gates.heads.slice(0, 1)));

  GateSet shared = GateSet::from_mask(HeadMask::all(3, 4));
  EXPECT_TRUE(at::equal(shared.layer_gate(0), at::ones({4})));
  EXPECT_TRUE(at::equal(shared.select_samples(at::tensor({0})).heads, shared.heads));
}

TEST(GateSetTest, UnitsBeyondHeadsSliceAndRoundTrip) {
  GateSet gates;
  EXPECT_TRUE(gates.empty());
  gates.neurons = at::arange(30, at::kDouble).reshape({2, 3, 5});
  gates.attention_sublayers = at::rand({2, 4});
  gates.feed_forward_sublayers = at::rand({3});
  gates.hidden = at::rand({6});
  EXPECT_FALSE(gates.empty());
  gates.check("x", 2, 4, 9);
  gates.check_feed_forward("x", 2, 3, 5);
  gates.check_hidden("x", 6);
  EXPECT_TRUE(at::equal(gates.layer_neurons(1), gates.neurons.select(1, 1)));
  EXPECT_TRUE(
      at::equal(gates.attention_factor(3).flatten(), gates.attention_sublayers.select(1, 3)));
  EXPECT_EQ(gates.attention_factor(3).dim(), 3);
  EXPECT_TRUE(at::equal(gates.feed_forward_factor(2), gates.feed_forward_sublayers[2]));
  const GateSet second = gates.select_samples(at::tensor({1}));
  EXPECT_TRUE(at::equal(second.neurons, gates.neurons.slice(0, 1)));
  EXPECT_TRUE(at::equal(second.attention_sublayers, gates.attention_sublayers.slice(0, 1)));
  EXPECT_TRUE(at::equal(second.feed_forward_sublayers, gates.feed_forward_sublayers));

  const GateSet again = GateSet::from_json(gates.to_json());
  EXPECT_EQ(again.neurons.scalar_type(), at::kDouble);
  EXPECT_TRUE(at::equal(again.neurons, gates.neurons));
  EXPECT_TRUE(at::equal(again.attention_sublayers, gates.attention_sublayers));
  EXPECT_TRUE(at::equal(again.feed_forward_sublayers, gates.feed_forward_sublayers));
  EXPECT_TRUE(at::equal(again.hidden, gates.hidden));

  EXPECT_THROW(gates.check("x", 2, 3, 9), std::invalid_argument);
  EXPECT_THROW(gates.check("x", 5, 4, 9), std::invalid_argument);
  EXPECT_THROW(gates.check_feed_forward("x", 2, 3, 4), std::invalid_argument);
  EXPECT_THROW(gates.check_feed_forward("x", 1, 3, 5), std::invalid_argument);
  EXPECT_THROW(gates.check_feed_forward("x", 2, 2, 5), std::invalid_argument);
  EXPECT_THROW(gates.check_hidden("x", 5), std::invalid_argument);
  EXPECT_THROW(
      GateSet::from_json(R"({"skip":true,"heads":null,"dropped_output":null,"hidden":[[1]],)"
                         R"("hidden_rank":2,"hidden_dtype":"float32"})"),
      std::invalid_argument);
}

TEST(GateSetTest, RefusesShapesThatDoNotFitTheModel) {
  GateSet gates;
  gates.heads = at::ones({3, 4});
  gates.check("x", 2, 3, 4);
  EXPECT_THROW(gates.check("x", 2, 4, 3), std::invalid_argument);
  gates.heads = at::ones({5, 3, 4});
  gates.check("x", -1, 3, 4);
  EXPECT_THROW(gates.check("x", 2, 3, 4), std::invalid_argument);
  gates.heads = at::ones({3, 4}, at::kBFloat16);
  EXPECT_THROW(gates.check("x", 2, 3, 4), std::invalid_argument);
  gates.heads = at::full({3, 4}, INFINITY);
  EXPECT_THROW(gates.check("x", 2, 3, 4), std::invalid_argument);
  gates.heads = at::Tensor();
  gates.dropped_output = at::ones({3, 5, 8});
  EXPECT_THROW(gates.check("x", 2, 3, 4), std::invalid_argument);
}

TEST(GateSetTest, RoundTripsThroughJson) {
  GateSet gates;
  gates.heads = at::rand({2, 3, 4});
  gates.dropped_output = at::randn({3, 4, 5});
  gates.skip = false;
  const GateSet again = GateSet::from_json(gates.to_json());
  EXPECT_TRUE(at::equal(again.heads, gates.heads));
  EXPECT_TRUE(at::equal(again.dropped_output, gates.dropped_output));
  EXPECT_FALSE(again.skip);
  EXPECT_TRUE(GateSet::from_json(GateSet{}.to_json()).empty());
  EXPECT_THROW(GateSet::from_json(R"({"skip":1,"heads":null,"dropped_output":null})"),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
