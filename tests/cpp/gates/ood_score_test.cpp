#include "headkit/gates/ood_score.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace headkit {
namespace {

at::Tensor correlated(int64_t samples, const at::Generator& generator) {
  const at::Tensor mix =
      at::tensor({1.0, 0.0, 0.0, 2.0, 0.5, 0.0, -1.0, 1.0, 3.0}, at::kDouble).reshape({3, 3});
  return at::randn({samples, 3}, generator, at::kDouble).matmul(mix.t()) + 1;
}

TEST(OodScoreTest, IsTheMahalanobisDistance) {
  const at::Generator generator = at::detail::createCPUGenerator(1);
  const at::Tensor seen = correlated(40, generator), others = correlated(30, generator);
  const OodScore score = OodScore::fit(seen, others, 0.1, 0.2);
  const at::Tensor centred = seen - seen.mean(0);
  const at::Tensor covariance = centred.t().matmul(centred) / 39;
  const at::Tensor shrunk =
      0.8 * covariance + 0.2 * covariance.trace() / 3 * at::eye(3, at::kDouble);
  const at::Tensor x = others - seen.mean(0);
  const at::Tensor expected = (x.matmul(shrunk.inverse()) * x).sum(1).sqrt();
  EXPECT_TRUE(at::allclose(score(others), expected, 1e-10, 1e-12));
  // 31 * .9 = 27.9: the 28th smallest.
  EXPECT_NEAR(score.limit(), std::get<0>(expected.sort())[27].item<double>(), 1e-12);
  EXPECT_TRUE(at::equal(score(others.slice(0, 4, 5)), score(others).slice(0, 4, 5)));
}

TEST(OodScoreTest, LimitIsExceededByOneInOneOverEpsilon) {
  const at::Generator generator = at::detail::createCPUGenerator(2);
  double sum = 0;
  constexpr int64_t kReplications = 300;
  for (int64_t i = 0; i < kReplications; ++i) {
    const OodScore score = OodScore::fit(correlated(30, generator), correlated(19, generator), 0.1);
    sum +=
        (score(correlated(100, generator)) > score.limit()).to(at::kDouble).mean().item<double>();
  }
  // Exactly epsilon on average: the rank (m + 1)(1 - epsilon) is whole.
  EXPECT_NEAR(sum / kReplications, 0.1, 0.02);
}

TEST(OodScoreTest, FarAndBrokenInputsAreOutside) {
  const at::Generator generator = at::detail::createCPUGenerator(3);
  const OodScore score = OodScore::fit(correlated(200, generator), correlated(200, generator));
  at::Tensor far = at::full({2, 3}, 50.0, at::kDouble);
  far[1][0] = NAN;
  EXPECT_GT(score(far)[0].item<double>(), score.limit());
  EXPECT_EQ(score(far)[1].item<double>(), std::numeric_limits<double>::infinity());
  const OodScore again = OodScore::from_json(score.to_json());
  EXPECT_TRUE(at::equal(again(far), score(far)));
  EXPECT_EQ(again.limit(), score.limit());
  EXPECT_EQ(score(at::empty({0, 3}, at::kDouble)).numel(), 0);
}

TEST(OodScoreTest, RefusesTooFewSamplesAndFeaturesThatDoNotDiffer) {
  const at::Generator generator = at::detail::createCPUGenerator(4);
  const at::Tensor seen = correlated(20, generator);
  try {
    OodScore::fit(seen, correlated(98, generator), 0.01);
    FAIL() << "98 samples were accepted";
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("at least 99"), std::string::npos) << error.what();
  }
  EXPECT_THROW(OodScore::fit(at::ones({20, 3}, at::kDouble), correlated(99, generator)),
               std::invalid_argument);
  EXPECT_THROW(OodScore::fit(seen * NAN, correlated(99, generator)), std::invalid_argument);
  EXPECT_THROW(OodScore::fit(seen, at::zeros({99, 2}, at::kDouble)), std::invalid_argument);
  EXPECT_THROW(OodScore::from_json("{}"), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
