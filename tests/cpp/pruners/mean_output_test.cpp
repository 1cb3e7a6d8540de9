#include "headkit/pruners/mean_output.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "headkit/attention/reference.h"
#include "headkit/pruners/removal.h"
#include "support/golden.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 2, .model_dim = 5};

TEST(MeanOutputTest, GoldenCompensation) {
  const auto& golden = testing::golden_case("toy.mean_compensation");
  const auto model = testing::golden_toy_model();
  const Batch batch = testing::golden_toy_batch();
  const at::Tensor dense = (*model)(batch);
  const at::Tensor mean = mean_head_outputs(*model, BatchList({batch}));
  const HeadMask mask(at::tensor({1, 0, 1, 1, 1, 1}).reshape({2, 3}));
  const auto rms = [&](const at::Tensor& logits) {
    return at::tensor(std::sqrt((logits - dense).square().mean().item<double>()), at::kDouble);
  };
  const auto compensated = testing::golden_toy_model();
  remove_heads(*compensated, mask, mean);
  testing::expect_golden((*compensated)(batch), golden, "logits_compensated");
  EXPECT_NEAR(rms((*compensated)(batch)).item<double>(),
              golden["expected"]["rms_change_compensated"], 1e-9);
  remove_heads(*model, mask);
  testing::expect_golden((*model)(batch), golden, "logits_removed");
  EXPECT_NEAR(rms((*model)(batch)).item<double>(), golden["expected"]["rms_change_removed"], 1e-9);
}

// Mean of a_h (W_O^h)^T over the valid tokens of the samples in `counts`, layer by layer from the
// definition.
at::Tensor by_definition(testing::ToyModel& model, const Batch& batch, const GateSet& gates,
                         const at::Tensor& counts /* [B, L, H] */) {
  const HeadLayout layout = model.layout();
  at::Tensor mean = at::zeros({layout.layers, layout.heads, layout.model_dim}, at::kDouble);
  ModelState state = model.embed(batch);
  for (int64_t l = 0; l < layout.layers; ++l) {
    const AttentionWeights w = model.attention(l);
    for (int64_t h = 0; h < layout.heads; ++h) {
      AttentionWeights alone = slice_heads(w, layout.heads, {h});
      alone.o_bias = at::Tensor();
      const at::Tensor output = reference_attention(
          state.hidden, alone, 1, AttentionInput().key_padding_mask(state.attention_mask));
      const at::Tensor weight =
          state.attention_mask.to(at::kDouble) * counts.select(1, l).select(1, h).unsqueeze(1);
      mean[l][h] = (output * weight.unsqueeze(2)).sum({0, 1}) / weight.sum();
    }
    state = model.run(state, l, l + 1, gates);
  }
  return mean;
}

TEST(MeanOutputTest, IsTheMeanOverValidTokensWhateverTheBatches) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch all = testing::random_toy_batch(kLayout, 9, 7, 3, 2);
  const at::Tensor expected = by_definition(*model, all, {}, at::ones({9, 3, 4}, at::kDouble));
  EXPECT_TRUE(at::allclose(mean_head_outputs(*model, BatchList({all})), expected, 1e-10, 1e-12));

  std::vector<Batch> pieces;
  for (const auto& [first, last] : {std::pair{5, 9}, {0, 2}, {2, 5}}) {
    Batch piece = select_examples(all, at::arange(first, last));
    piece["x"] = at::constant_pad_nd(piece["x"], {0, 0, 0, first}, 3.0);
    piece["attention_mask"] = at::constant_pad_nd(piece["attention_mask"], {0, first}, false);
    pieces.push_back(piece);
  }
  EXPECT_TRUE(at::allclose(mean_head_outputs(*model, BatchList(pieces)), expected, 1e-10, 1e-12));
}

TEST(MeanOutputTest, WithGatesIsConditionalOnBeingClosed) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 8, 6, 3, 2);
  at::Tensor heads = at::ones({8, 3, 4}, at::kDouble);
  heads.select(1, 0).select(1, 2).slice(0, 0, 3).zero_();
  heads.select(1, 1).select(1, 0).slice(0, 4, 8).zero_();
  heads.select(1, 2).select(1, 1).zero_();
  GateSet gates;
  gates.heads = heads;
  MeanOutputOptions options;
  options.decide = [&](const ModelState& state) {
    EXPECT_EQ(state.layer, 0);
    return gates;
  };
  at::Tensor counts = heads.eq(0).to(at::kDouble);
  counts = at::where(counts.sum(0, true).gt(0), counts, at::ones({}, at::kDouble));
  const at::Tensor found = mean_head_outputs(*model, BatchList({batch}), options);
  EXPECT_TRUE(at::allclose(found, by_definition(*model, batch, gates, counts), 1e-10, 1e-12));

  MeanOutputOptions fixed;
  fixed.gates.heads = heads[0];
  EXPECT_TRUE(at::allclose(
      mean_head_outputs(*model, BatchList({batch}), fixed),
      by_definition(*model, batch, fixed.gates, at::ones({8, 3, 4}, at::kDouble)), 1e-10, 1e-12));
}

// A causal block over x [B, T, D], then a block in which y [B, U, D] attends to its result; the
// heads of both share KV heads.
class CausalThenCross final : public GatedModel {
 public:
  CausalThenCross() : toy_(testing::random_toy_model(layout(), 3, 1)) {}
  HeadLayout layout() const override { return {2, 4, 2, 5, 0, 2}; }
  HeadMask heads() const override { return HeadMask::all(2, 4); }
  ModelState embed(const Batch& batch) override { return toy_->embed(batch); }
  at::Tensor head(const ModelState& state) override { return state.hidden; }
  AttentionWeights attention(int64_t layer) override { return toy_->attention(layer); }
  void replace_attention(int64_t, const AttentionWeights&, const std::vector<int64_t>&) override {}
  std::vector<std::pair<std::string, at::Tensor>> parameters() override { return {}; }

  /// Query tokens and what else block `layer` is given.
  std::pair<at::Tensor, AttentionInput> call(int64_t layer, const ModelState& state) const {
    AttentionInput input;
    input.num_kv_heads(2).key_padding_mask(state.attention_mask);
    if (layer == 0) return {state.hidden, input.is_causal(true)};
    return {state.batch.at("y"), input.kv(state.hidden)};
  }

  ModelState run(const ModelState& state, int64_t first, int64_t last, const GateSet&,
                 Taps* taps) override {
    ModelState next = state;
    for (int64_t layer = first; layer < last; ++layer) {
      const auto [x, input] = call(layer, next);
      if (taps != nullptr && taps->head_contexts) {
        taps->head_context.push_back(head_contexts(x, attention(layer), 4, input));
        taps->valid.push_back(layer == 0 ? next.attention_mask : at::Tensor());
      }
      next.hidden = x + gated_attention(x, attention(layer), 4, input);
    }
    next.layer = last;
    return next;
  }

 private:
  std::shared_ptr<testing::ToyModel> toy_;
};

TEST(MeanOutputTest, IsRightForCausalAndCrossAttentionOfOtherLengths) {
  CausalThenCross model;
  Batch batch = testing::random_toy_batch(model.layout(), 4, 6, 3, 2);
  batch["y"] = at::randn({4, 3, 5}, at::kDouble);
  at::Tensor expected = at::zeros({2, 4, 5}, at::kDouble);
  ModelState state = model.embed(batch);
  for (int64_t layer = 0; layer < 2; ++layer) {
    const auto [x, input] = model.call(layer, state);
    for (int64_t h = 0; h < 4; ++h) {
      AttentionWeights alone = slice_heads(model.attention(layer), 4, {h});
      alone.o_bias = at::Tensor();
      const at::Tensor output =
          reference_attention(x, alone, 1, AttentionInput(input).num_kv_heads(1));
      expected[layer][h] =
          layer == 0 ? output.index({state.attention_mask}).mean(0) : output.mean({0, 1});
    }
    state = model.run(state, layer, layer + 1, {}, nullptr);
  }
  EXPECT_TRUE(at::allclose(mean_head_outputs(model, BatchList({batch})), expected, 1e-10, 1e-12));
}

TEST(MeanOutputTest, RemovedHeadsHaveNone) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  const BatchList data({testing::random_toy_batch(kLayout, 8, 6, 3, 2)});
  at::Tensor keep = at::ones({3, 4}, at::kBool);
  keep[2][1] = false;
  keep[1].zero_();
  const at::Tensor dense = mean_head_outputs(*model, data);
  remove_heads(*model, HeadMask(keep));
  const at::Tensor left = mean_head_outputs(*model, data);
  EXPECT_TRUE(at::equal(left[2][1], at::zeros({5}, at::kDouble)));
  EXPECT_TRUE(at::equal(left[1], at::zeros({4, 5}, at::kDouble)));
  EXPECT_TRUE(at::allclose(left[0], dense[0], 1e-10, 1e-12));
}

TEST(MeanOutputTest, RefusesWhatDoesNotFit) {
  const auto model = testing::random_toy_model(kLayout, 3, 1);
  EXPECT_THROW(mean_head_outputs(*model, BatchList({})), std::invalid_argument);
  MeanOutputOptions options;
  options.gates.heads = at::ones({4, 3});
  EXPECT_THROW(mean_head_outputs(
                   *model, BatchList({testing::random_toy_batch(kLayout, 2, 3, 3, 2)}), options),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
