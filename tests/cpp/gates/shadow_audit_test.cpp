#include "headkit/gates/shadow_audit.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "headkit/gates/calibration.h"

namespace headkit {
namespace {

TEST(ShadowAuditTest, ChoosesAShareByTheIdAlone) {
  const ShadowAudit audit({.share = 0.1}), again({.share = 0.1}),
      salted({.share = 0.1, .salt = "other"});
  const ShadowAudit none({.share = 0}), all({.share = 1});
  int64_t chosen = 0, same = 0;
  constexpr int64_t kRequests = 4000;
  for (int64_t i = 0; i < kRequests; ++i) {
    const std::string id = "request-" + std::to_string(i);
    EXPECT_EQ(audit.chosen(id), again.chosen(id));
    chosen += audit.chosen(id);
    same += audit.chosen(id) && salted.chosen(id);
    EXPECT_FALSE(none.chosen(id));
    EXPECT_TRUE(all.chosen(id));
  }
  EXPECT_NEAR(chosen, 400, 4 * std::sqrt(4000 * 0.09));
  EXPECT_NEAR(same, 40, 4 * std::sqrt(4000 * 0.0099));
}

TEST(ShadowAuditTest, LowerBoundIsHoeffdingsAtPowersOfTwo) {
  ShadowAudit audit({.risk = 0.5, .bound = 2, .epsilon = 0.1});
  double sum = 0;
  for (int64_t n = 1; n <= 16; ++n) {
    const double loss = n % 3 == 0 ? 1.5 : 0.25;
    sum += loss;
    EXPECT_FALSE(audit.observe(loss));
    const AuditState state = audit.state();
    EXPECT_NEAR(state.mean_loss, sum / n, 1e-12);
    if (n == 4 || n == 16) {
      const double j = n == 4 ? 2 : 4;
      EXPECT_NEAR(state.lower_bound,
                  sum / n - 2 * std::sqrt(std::log(j * (j + 1) / 0.1) / (2.0 * n)), 1e-12);
    }
  }
}

// At the promised risk exactly, over replications of 1024 audits each.
TEST(ShadowAuditTest, FalseAlarmsAreRarerThanEpsilon) {
  constexpr int64_t kReplications = 1000;
  const double epsilon = 0.1, risk = 0.3;
  std::mt19937_64 random(1);
  std::bernoulli_distribution flip(risk);
  int64_t alarms = 0;
  for (int64_t i = 0; i < kReplications; ++i) {
    ShadowAudit audit({.risk = risk, .epsilon = epsilon});
    for (int64_t n = 0; n < 1024; ++n) audit.observe(flip(random));
    alarms += audit.state().alarms > 0;
  }
  EXPECT_LE(static_cast<double>(alarms) / kReplications,
            epsilon + 4 * std::sqrt(epsilon * (1 - epsilon) / kReplications));
}

TEST(ShadowAuditTest, StepsUpThenReturnsToDense) {
  const std::vector<double> grid{0, 0.25, 0.5, 1};
  ShadowAudit audit({.risk = 0.1});
  EXPECT_EQ(audit.lambda(0.25, grid), 0.25);
  int64_t first = 0;
  while (!audit.observe(1)) ++first;
  EXPECT_LT(first, 32);
  EXPECT_EQ(audit.state().action, "step_up");
  EXPECT_EQ(audit.state().watched, 0);
  EXPECT_EQ(audit.lambda(0.25, grid), 0.5);
  EXPECT_EQ(audit.lambda(1, grid), 1);
  while (!audit.observe(1)) {
  }
  EXPECT_EQ(audit.state().action, "dense");
  EXPECT_EQ(audit.lambda(0.25, grid), 1);
  for (int64_t i = 0; i < 1000; ++i) audit.observe(0);
  EXPECT_EQ(audit.state().action, "dense");  // no way back by itself
  ShadowAudit far({.risk = 0.1});
  far.out_of_distribution();
  EXPECT_EQ(far.lambda(0, grid), 1);
}

// Longer inputs are harder: lambda calibrated on short ones breaks its promise on long ones, which
// are not exchangeable with them, and the audit finds out; on short ones it stays silent.
TEST(ShadowAuditTest, DetectsAShiftOfLength) {
  constexpr int64_t kSamples = 500;
  std::mt19937_64 random(7);
  std::uniform_real_distribution<double> uniform;
  std::vector<double> grid;
  for (int64_t j = 0; j <= 32; ++j) grid.push_back(j / 32.0);
  const auto difficulty = [&](int64_t tokens) {
    return uniform(random) * static_cast<double>(tokens) / 64;
  };
  PolicyTrace trace;
  trace.grid = grid;
  trace.losses = at::zeros({kSamples, 33}, at::kDouble);
  trace.heads_run = trace.flops = trace.losses;
  trace.drift = at::zeros({kSamples}, at::kDouble);
  trace.tokens = at::randint(4, 17, {kSamples}, at::kLong);
  trace.task = at::zeros({kSamples}, at::kLong);
  for (int64_t i = 0; i < kSamples; ++i) {
    const double hard = difficulty(trace.tokens[i].item<int64_t>());
    for (int64_t j = 0; j < 33; ++j) trace.losses[i][j] = hard > grid[j] ? 1.0 : 0.0;
  }
  const double lambda = calibrate(trace, {.risk = 0.1}).lambda;
  ASSERT_LT(lambda, 1);
  const auto watch = [&](int64_t shortest, int64_t longest) {
    ShadowAudit audit({.risk = 0.1, .epsilon = 0.01});
    std::uniform_int_distribution<int64_t> tokens(shortest, longest);
    for (int64_t i = 0; i < 2048; ++i) audit.observe(difficulty(tokens(random)) > lambda);
    return audit.state();
  };
  EXPECT_EQ(watch(4, 16).action, "none");
  EXPECT_EQ(watch(32, 64).action, "dense");
}

TEST(ShadowAuditTest, RefusesWhatItCannotWatch) {
  EXPECT_THROW(ShadowAudit({.share = 2}), std::invalid_argument);
  EXPECT_THROW(ShadowAudit({.risk = 0}), std::invalid_argument);
  EXPECT_THROW(ShadowAudit({.epsilon = 0}), std::invalid_argument);
  ShadowAudit audit({});
  EXPECT_THROW(audit.observe(NAN), std::invalid_argument);
  EXPECT_THROW(audit.observe(1.5), std::invalid_argument);
  EXPECT_EQ(audit.state().audited, 0);
}

}  // namespace
}  // namespace headkit
