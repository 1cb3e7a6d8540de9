#include "headkit/gates/conformal.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>

namespace headkit {
namespace {

at::Tensor unit_grid(int64_t steps) { return at::arange(steps + 1, at::kDouble) / steps; }

// Label flips of samples with difficulty u: flipped at lambda exactly where u > lambda^2. The risk
// at lambda is 1 - lambda^2.
at::Tensor flips(int64_t samples, const at::Tensor& grid, const at::Generator& generator) {
  const at::Tensor difficulty = at::rand({samples, 1}, generator, at::kDouble);
  at::Tensor losses = (difficulty > grid.square().unsqueeze(0)).to(at::kDouble);
  losses.select(1, grid.size(0) - 1).zero_();
  return losses;
}

TEST(Conformal, TakesTheSmallestValueWhoseCorrectedRiskIsAdmitted) {
  // Ten samples; mean losses .3, .1, 0: corrected (10 * r + 1) / 11 = .364, .182, .091.
  at::Tensor losses = at::zeros({10, 3}, at::kDouble);
  losses.slice(0, 0, 3).select(1, 0).fill_(1);
  losses[0][1] = 1;
  const at::Tensor grid = unit_grid(2);
  EXPECT_EQ(conformal_risk_control(losses, grid, {.risk = 0.4}).lambda, 0.0);
  EXPECT_EQ(conformal_risk_control(losses, grid, {.risk = 0.2}).lambda, 0.5);
  EXPECT_EQ(conformal_risk_control(losses, grid, {.risk = 0.1}).lambda, 1.0);
  EXPECT_NEAR(conformal_risk_control(losses, grid, {.risk = 0.2}).corrected_risk, 2.0 / 11, 1e-12);
}

TEST(Conformal, UsesTheEnvelopeOfLossesThatRiseAgain) {
  // Plain means are .0 at lambda 0 and 1 at lambda .5: the envelope is 1 at both.
  at::Tensor losses = at::zeros({50, 3}, at::kDouble);
  losses.select(1, 1).fill_(1);
  EXPECT_EQ(conformal_risk_control(losses, unit_grid(2), {.risk = 0.05}).lambda, 1.0);
}

TEST(Conformal, RefusesTooFewSamplesAndSaysHowManyItNeeds) {
  EXPECT_EQ(conformal_samples_needed({.risk = 0.05}), 19);
  EXPECT_EQ(conformal_samples_needed({.risk = 0.01}), 99);
  EXPECT_EQ(conformal_samples_needed({.risk = 0.5, .bound = 2}), 3);
  const at::Tensor grid = unit_grid(4);
  EXPECT_NO_THROW(conformal_risk_control(at::zeros({19, 5}, at::kDouble), grid, {.risk = 0.05}));
  try {
    conformal_risk_control(at::zeros({18, 5}, at::kDouble), grid, {.risk = 0.05});
    FAIL() << "18 samples were accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("19"), std::string::npos) << error.what();
  }
}

TEST(Conformal, RefusesLossesAndGridsThatDoNotFit) {
  const at::Tensor losses = at::zeros({50, 3}, at::kDouble), grid = unit_grid(2);
  EXPECT_THROW(conformal_risk_control(losses, unit_grid(3)), std::invalid_argument);
  EXPECT_THROW(conformal_risk_control(losses, grid.flip(0)), std::invalid_argument);
  EXPECT_THROW(conformal_risk_control(losses + 2, grid), std::invalid_argument);
  EXPECT_THROW(conformal_risk_control(losses - 1, grid), std::invalid_argument);
  EXPECT_THROW(conformal_risk_control(losses * NAN, grid), std::invalid_argument);
  EXPECT_THROW(conformal_risk_control(losses, grid, {.risk = 0}), std::invalid_argument);
  EXPECT_THROW(conformal_risk_control(losses, grid, {.risk = 1}), std::invalid_argument);
  EXPECT_THROW(conformal_risk_control(losses.to(at::kFloat), grid), std::invalid_argument);
  at::Tensor dense_loses = losses.clone();
  dense_loses[0][2] = 1;
  EXPECT_THROW(conformal_risk_control(dense_loses, grid), std::invalid_argument);
}

// The theorem from both sides: the mean loss of a new sample is at most alpha, and (for losses
// without jumps, up to the coarseness of the grid) at least alpha - 2 B / (n + 1).
TEST(Conformal, KeepsThePromiseOnAverageAndDoesNotWasteIt) {
  constexpr int64_t kReplications = 1000, kSteps = 200;
  const at::Tensor grid = unit_grid(kSteps);
  for (const auto& [samples, risk] : {std::pair<int64_t, double>{99, 0.05}, {24, 0.2}}) {
    const at::Generator generator = at::detail::createCPUGenerator(samples);
    double sum = 0, sum_of_squares = 0;
    for (int64_t i = 0; i < kReplications; ++i) {
      const auto result =
          conformal_risk_control(flips(samples, grid, generator), grid, {.risk = risk});
      // The exact expected loss of a new sample at this lambda: no second simulation.
      const double loss = result.lambda >= 1 ? 0 : 1 - result.lambda * result.lambda;
      sum += loss;
      sum_of_squares += loss * loss;
    }
    const double mean = sum / kReplications;
    const double deviation = std::sqrt(sum_of_squares / kReplications - mean * mean);
    const double slack = 4 * deviation / std::sqrt(kReplications);
    EXPECT_LE(mean, risk + slack) << "n = " << samples;
    EXPECT_GE(mean, risk - 2.0 / (samples + 1) - 2.0 / kSteps - slack) << "n = " << samples;
  }
}

}  // namespace
}  // namespace headkit
