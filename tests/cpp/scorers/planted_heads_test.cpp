#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>

#include "headkit/pruners/top_fraction.h"
#include "headkit/scorers/head_scorer.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{.layers = 3, .heads = 4, .head_dim = 3, .model_dim = 10};
constexpr int64_t kNeeded = 4;
constexpr int64_t kClasses = 3;

// A transformer of which four heads, known, decide the labels. Each reads a feature of its own,
// dimensions 0 .. 3 of the input, and writes it where the classifier reads, dimensions 4 .. 7. The
// other heads are random; a little of what they write falls into both.
struct Planted {
  std::shared_ptr<testing::ToyModel> model;
  at::Tensor needed;  // bool [L, H]
  Batch batch;
};

Planted planted(uint64_t seed) {
  const at::Generator generator = at::detail::createCPUGenerator(seed);
  Planted made;
  const at::Tensor chosen =
      at::randperm(kLayout.total_heads(), generator, at::kLong).slice(0, 0, kNeeded);
  made.needed = at::zeros({kLayout.total_heads()}, at::kBool).index_fill_(0, chosen, true);
  made.needed = made.needed.reshape({kLayout.layers, kLayout.heads});
  const auto plain = testing::random_toy_model(kLayout, kClasses, seed);
  std::vector<AttentionWeights> layers;
  for (int64_t layer = 0; layer < kLayout.layers; ++layer) {
    const AttentionWeights& w = layers.emplace_back(plain->attention(layer));
    w.o.slice(0, 0, 4).mul_(0.1);
    w.o.slice(0, 4, 8).mul_(0.05);
    w.o_bias.zero_();
  }
  for (int64_t feature = 0; feature < kNeeded; ++feature) {
    const int64_t place = chosen[feature].item<int64_t>();
    const AttentionWeights& w = layers[static_cast<size_t>(place / kLayout.heads)];
    const int64_t row = place % kLayout.heads * kLayout.head_dim;
    w.v.slice(0, row, row + kLayout.head_dim).zero_();
    w.v_bias.slice(0, row, row + kLayout.head_dim).zero_();
    w.o.slice(1, row, row + kLayout.head_dim).zero_();
    w.v[row][feature] = 1;
    w.o[4 + feature][row] = 2;
  }
  at::Tensor classifier = at::zeros({kClasses, kLayout.model_dim}, at::kDouble);
  classifier.slice(1, 4, 8).copy_(
      at::tensor({1, 1, 1, -1, 1, -1, -1, 1, -1, 1, -1, 1}, at::kDouble).reshape({3, 4}));
  made.model = std::make_shared<testing::ToyModel>(kLayout, std::move(layers), classifier,
                                                   at::zeros({kClasses}, at::kDouble));
  made.batch = testing::random_toy_batch(kLayout, 200, 6, kClasses, seed);
  made.batch.at("x").slice(2, 4, 8).zero_();
  GateSet only_needed;
  only_needed.heads = made.needed.to(at::kDouble);
  made.batch["labels"] = (*made.model)(made.batch, only_needed)
                             .softmax(1)
                             .multinomial(1, /*replacement=*/false, generator)
                             .squeeze(1);
  return made;
}

at::Tensor scores_of(const char* metric, const char* settings, const Planted& made) {
  ScoreOptions options;
  options.bootstrap = 0;
  return make_scorer(metric, settings)
      ->score(*made.model, BatchList({made.batch}), *cross_entropy(), options)
      .values;
}

// Share of pairs of a needed and another head in which the needed one scores higher.
double area_under_curve(const at::Tensor& scores, const at::Tensor& needed) {
  const at::Tensor high = scores.masked_select(needed);
  const at::Tensor low = scores.masked_select(needed.logical_not());
  const at::Tensor wins = high.unsqueeze(1).gt(low.unsqueeze(0)).to(at::kDouble) +
                          0.5 * high.unsqueeze(1).eq(low.unsqueeze(0)).to(at::kDouble);
  return wins.mean().item<double>();
}

struct Case {
  const char* metric;
  const char* settings = "{}";
};

class PlantedHeads : public ::testing::TestWithParam<Case> {};

TEST_P(PlantedHeads, AreFound) {
  double sum = 0;
  for (uint64_t seed = 1; seed <= 5; ++seed) {
    const Planted made = planted(seed);
    sum += area_under_curve(scores_of(GetParam().metric, GetParam().settings, made), made.needed);
  }
  EXPECT_GE(sum / 5, 0.95);
}

INSTANTIATE_TEST_SUITE_P(Metrics, PlantedHeads,
                         ::testing::Values(Case{"gate_gradient"}, Case{"fisher"}, Case{"ablation"},
                                           Case{"kl_curvature"},
                                           Case{"shapley", R"({"permutations": 12})"}),
                         [](const ::testing::TestParamInfo<Case>& info) {
                           return info.param.metric;
                         });

// Rise of the mean loss without the heads that `scores` puts last.
double damage(const Planted& made, const at::Tensor& scores) {
  HeadScores ranked;
  ranked.values = scores.contiguous();
  const HeadMask mask = prune_top_fraction(ranked, {.keep = 2.0 / 3});
  const at::Tensor loss =
      cross_entropy()->loss((*made.model)(made.batch, GateSet::from_mask(mask)), made.batch, {});
  return loss.mean().item<double>();
}

double paired_t(const std::vector<double>& differences) {
  const at::Tensor d = at::tensor(differences, at::kDouble);
  return (d.mean() / (d.std() / std::sqrt(static_cast<double>(d.size(0))))).item<double>();
}

TEST(PlantedHeadsTest, RemovingTheTopHurtsMoreThanRandomAndThatMoreThanTheBottom) {
  std::vector<double> random_over_bottom, top_over_random;
  for (uint64_t seed = 11; seed <= 20; ++seed) {
    const Planted made = planted(seed);
    const at::Tensor scores = scores_of("gate_gradient", "{}", made);
    double random = 0;
    for (uint64_t draw = 0; draw < 5; ++draw) {
      ScoreOptions options;
      options.seed = 100 * seed + draw;
      random += damage(made, make_scorer("random")
                                 ->score(*made.model, BatchList({}), *cross_entropy(), options)
                                 .values) /
                5;
    }
    random_over_bottom.push_back(random - damage(made, scores));
    top_over_random.push_back(damage(made, -scores) - random);
  }
  constexpr double kOneSidedOnePercent = 2.821;  // t, 9 degrees of freedom
  EXPECT_GT(paired_t(random_over_bottom), kOneSidedOnePercent);
  EXPECT_GT(paired_t(top_over_random), kOneSidedOnePercent);
}

}  // namespace
}  // namespace headkit
