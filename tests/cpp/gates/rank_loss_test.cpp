#include "gates/rank_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "gates/ridge_regression.h"

namespace headkit {
namespace {

const std::vector<RankGroup> kGroups{{{0, 2, 5}, 1}, {{1, 3, 4, 6}, 2}, {{7}, 1}};

// The definition, head by head.
double plain_loss(const at::Tensor& targets, const at::Tensor& logits) {
  double total = 0;
  for (int64_t b = 0; b < targets.size(0); ++b) {
    for (const RankGroup& group : kGroups) {
      if (group.columns.size() < 2) continue;
      const auto value = [&](const at::Tensor& t, int64_t c) { return t[b][c].item<double>(); };
      double sum = 0, weights = 0;
      for (const int64_t i : group.columns) {
        int64_t above = 0;
        for (const int64_t c : group.columns) {
          above += value(targets, c) > value(targets, i) ||
                   (value(targets, c) == value(targets, i) && c < i);
        }
        if (above >= group.top) continue;
        for (const int64_t j : group.columns) {
          int64_t better = 0;
          for (const int64_t c : group.columns) {
            better += value(targets, c) > value(targets, j) ||
                      (value(targets, c) == value(targets, j) && c < j);
          }
          if (better < group.top) continue;
          const double weight = value(targets, i) - value(targets, j);
          sum += weight * std::log1p(std::exp(value(logits, j) - value(logits, i)));
          weights += weight;
        }
      }
      if (weights > 0) total += sum / weights;
    }
  }
  return total / static_cast<double>(targets.size(0));
}

TEST(RankLoss, IsTheDefinitionAndItsGradientTheSlope) {
  at::manual_seed(5);
  at::Tensor targets = at::randn({6, 8}, at::kDouble);
  targets[1][2] = targets[1][0];  // a tie at the boundary or not
  targets[2].fill_(1);            // nothing to rank
  const at::Tensor logits = at::randn({6, 8}, at::kDouble);
  const RankLoss loss(targets, kGroups);
  EXPECT_NEAR(loss.value(logits), plain_loss(targets, logits), 1e-12);
  const at::Tensor gradient = loss.gradient(logits) / 6;
  constexpr double kStep = 1e-5;
  for (int64_t b = 0; b < 6; ++b) {
    for (int64_t c = 0; c < 8; ++c) {
      at::Tensor up = logits.clone(), down = logits.clone();
      up[b][c] += kStep;
      down[b][c] -= kStep;
      EXPECT_NEAR(gradient[b][c].item<double>(),
                  (plain_loss(targets, up) - plain_loss(targets, down)) / (2 * kStep), 1e-9);
    }
  }
}

TEST(RankLoss, HasNoMoreCurvatureThanItSays) {
  at::manual_seed(6);
  const at::Tensor targets = at::randn({40, 8}, at::kDouble);
  const RankLoss loss(targets, kGroups);
  for (int trial = 0; trial < 50; ++trial) {
    const at::Tensor at = at::randn({40, 8}, at::kDouble) * 0.1;
    const at::Tensor step = at::randn({40, 8}, at::kDouble) * 0.1;
    const double bent =
        ((loss.gradient(at + step) - loss.gradient(at)) * step).sum().item<double>();
    EXPECT_LE(bent, RankLoss::kCurvature * step.square().sum().item<double>() + 1e-12);
  }
}

// The minimum of what ridge_regression says it minimises: no slope is left.
TEST(RankLoss, IsMinimisedTogetherWithTheRobustSquares) {
  at::manual_seed(7);
  at::Tensor features = at::randn({50, 4}, at::kDouble);
  features = features - features.mean(0);
  at::Tensor targets =
      features.matmul(at::randn({4, 8}, at::kDouble)) + at::randn({50, 8}, at::kDouble) * 2;
  const RankLoss loss(targets, kGroups);
  targets = targets - targets.mean(0);
  const at::Tensor offset = at::randn({8}, at::kDouble);
  for (const double huber : {0.0, 1.345}) {
    constexpr double kRidge = 0.1, kWeight = 3;
    const RidgeRegression plain = ridge_regression(features, targets, kRidge, huber);
    const RidgeRegression both = ridge_regression(
        features, targets, kRidge, huber,
        {kWeight, [&](const at::Tensor& fitted) { return loss.gradient(fitted + offset); },
         RankLoss::kCurvature});
    const at::Tensor gram = features.t().matmul(features) / 50;
    const double penalty = kRidge * at::linalg_eigvalsh(gram).mean().item<double>();
    // Limits of the robust loss are those of the least-squares fit.
    const at::Tensor squares = at::linalg_solve(gram + penalty * at::eye(4, at::kDouble),
                                                features.t().matmul(targets) / 50);
    const at::Tensor limit =
        huber * 1.4826 * std::get<0>((targets - features.matmul(squares)).abs().median(0));
    const at::Tensor fitted = features.matmul(both.weight.t());
    at::Tensor residual = targets - fitted;
    if (huber > 0) residual = at::minimum(at::maximum(residual, -limit), limit);
    const at::Tensor slope =
        features.t().matmul(kWeight * loss.gradient(fitted + offset) - residual) / 50 +
        penalty * both.weight.t();
    EXPECT_LT(slope.abs().max().item<double>(), 1e-5);
    EXPECT_LT(loss.value(fitted + offset), loss.value(features.matmul(plain.weight.t()) + offset));
  }
}

}  // namespace
}  // namespace headkit
