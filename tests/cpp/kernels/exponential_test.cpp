#include "cpp/kernels/kernel_problem.h"

namespace headkit::kernels {
namespace {

using ExponentialTest = LevelTest;

TEST_P(ExponentialTest, StaysWithinTwoUnitsInTheLastPlace) {
  std::vector<float> x;
  for (float value = -87.33f; value <= 10.0f; value += 0.00193f) x.push_back(value);
  std::vector<float> y(x.size());
  table().exponential(x.data(), y.data(), x.size());
  double worst = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double exact = std::exp(static_cast<double>(x[i]));
    worst = std::max(worst, std::abs(y[i] - exact) / exact);
  }
  EXPECT_LE(worst, 2.0 * std::numeric_limits<float>::epsilon());
}

TEST_P(ExponentialTest, FlushesToZeroAndKeepsNan) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {0.0f, -0.0f, -87.4f, -100.0f, -1e30f, -infinity, NAN};
  std::vector<float> y(x.size());
  table().exponential(x.data(), y.data(), x.size());
  EXPECT_EQ(y[0], 1.0f);
  EXPECT_EQ(y[1], 1.0f);
  for (int i = 2; i < 6; ++i) EXPECT_EQ(y[i], 0.0f) << x[i];
  EXPECT_TRUE(std::isnan(y[6]));
}

TEST_P(ExponentialTest, NeverGivesADenormal) {
  std::vector<float> x, y;
  for (float value = -87.5f; value < -87.2f; value = std::nextafter(value, 0.0f))
    x.push_back(value);
  y.resize(x.size());
  table().exponential(x.data(), y.data(), x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    ASSERT_TRUE(y[i] == 0.0f || y[i] >= std::numeric_limits<float>::min()) << x[i] << " " << y[i];
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, ExponentialTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
