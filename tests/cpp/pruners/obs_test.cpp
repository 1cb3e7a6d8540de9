#include "headkit/pruners/obs.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "headkit/core/flops.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 2, .heads = 3, .head_dim = 2, .model_dim = 5, .feed_forward = 6};

struct Problem {
  std::shared_ptr<testing::ToyModel> model = testing::random_toy_model(kLayout, 3, 1);
  Batch batch = testing::random_toy_batch(kLayout, 30, 6, 3, 2);
  BatchList data{{batch}};

  StaticPruning prune(ObsOptions options) const {
    return prune_obs(*model, data, *cross_entropy(), options);
  }
};

TEST(ObsTest, StaysWithinTheBudgetAndLeavesTheModel) {
  Problem p;
  const std::string before = p.model->fingerprint();
  const UnitCosts costs =
      unit_macs(kLayout, p.batch.at("attention_mask").sum().item<double>() / 30);
  for (const double keep : {0.0, 0.3, 0.6, 1.0}) {
    const StaticPruning found = p.prune({.keep = keep});
    const double spent = costs.total(found.heads.keep().sum().item<double>(),
                                     found.gates.neurons.sum().item<double>());
    EXPECT_LE(spent, keep * costs.total(6, 12) + 1e-9);
    EXPECT_GE(spent + costs.head, keep * costs.total(6, 12) - 1e-9);
    EXPECT_NEAR(nlohmann::json::parse(found.details)["cost"], spent, 1e-9);
    Problem other;
    apply_pruning(*other.model, found);
    EXPECT_EQ(other.model->heads(), found.heads);
    EXPECT_TRUE(at::equal(other.model->neurons(), found.gates.neurons.ne(0)));
    const at::Tensor dense = (*p.model)(p.batch);
    const double error = ((*other.model)(p.batch) - dense).square().mean().item<double>();
    const double masked =
        ((*p.model)(p.batch, found.all_gates()) - dense).square().mean().item<double>();
    if (keep == 1) {
      EXPECT_LT(error, 1e-12);
    } else {
      EXPECT_LT(error, masked);
    }
  }
  EXPECT_EQ(p.model->fingerprint(), before);
}

// One layer, one unit to lose: the head whose best replacement by the others is best.
TEST(ObsTest, TheFirstHeadToGoIsTheOneThatTheOthersReplaceBest) {
  const HeadLayout layout{.layers = 1, .heads = 4, .head_dim = 2, .model_dim = 5};
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const auto model = testing::random_toy_model(layout, 3, seed);
    const Batch batch = testing::random_toy_batch(layout, 40, 5, 3, 2);
    Taps taps;
    taps.head_contexts = taps.attention_outputs = true;
    model->run(model->embed(batch), 0, 1, {}, &taps);
    const at::Tensor valid = batch.at("attention_mask").flatten().nonzero().flatten();
    const at::Tensor inputs = taps.head_context[0].flatten(2).flatten(0, 1).index_select(0, valid);
    const at::Tensor targets = taps.attention_output[0].flatten(0, 1).index_select(0, valid);
    double least = INFINITY;
    int64_t best = -1;
    for (int64_t head = 0; head < 4; ++head) {
      at::Tensor rest = at::ones({8}, at::kBool);
      rest.narrow(0, 2 * head, 2).fill_(false);
      const at::Tensor x =
          at::constant_pad_nd(inputs.index_select(1, rest.nonzero().flatten()), {0, 1}, 1);
      const at::Tensor w = std::get<0>(at::linalg_lstsq(x, targets, std::nullopt, "gelsd"));
      const double error = (at::mm(x, w) - targets).square().sum().item<double>();
      if (error < least) std::tie(least, best) = std::pair(error, head);
    }
    const StaticPruning found =
        prune_obs(*model, BatchList({batch}), *cross_entropy(), {.keep = 0.75, .damping = 1e-9});
    ASSERT_EQ(found.heads.removed().size(), 1u);
    EXPECT_EQ(found.heads.removed()[0].head, best) << seed;
  }
}

TEST(ObsTest, RefusesWhatCannotBe) {
  Problem p;
  EXPECT_THROW(p.prune({.keep = 0.01, .neurons = false}), std::invalid_argument);
  EXPECT_THROW(p.prune({.damping = 0}), std::invalid_argument);
  EXPECT_EQ(p.prune({.keep = 0.8, .neurons = false}).refits.size(), 2u);
}

}  // namespace
}  // namespace headkit
