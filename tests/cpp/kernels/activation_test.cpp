#include "cpp/kernels/kernel_problem.h"
#include "cpp/kernels/plain_activation.h"

namespace headkit::kernels {
namespace {

using ActivationTest = LevelTest;

// z of the exponential exp(-z) in an activation at |x|: it carries the rounding of z, so its
// relative error grows with z.
double exponent(Activation kind, double x) {
  const double z = kind == Activation::kGelu       ? x * x / 2
                   : kind == Activation::kGeluTanh ? 1.6 * x * (1 + 0.0447 * x * x)
                                                   : x;
  return std::min(z, 90.0);
}

TEST_P(ActivationTest, StaysWithinAFewRoundings) {
  std::vector<float> x;
  for (float v = -30.0f; v <= 30.0f; v += 0.00137f) x.push_back(v);
  for (const float v : {0.0f, -0.0f, 1e-8f, -1e-8f, 1e-30f, 88.5f, -88.5f, 1e4f, -1e4f, 1e30f}) {
    x.push_back(v);
  }
  std::vector<float> value(x.size()), slope(x.size());
  const double eps = std::numeric_limits<float>::epsilon();
  for (const Activation kind : kActivations) {
    table().activate(kind, x.data(), value.data(), slope.data(), x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      const double exact = plain_activation<double>(kind, x[i]);
      const double z = exponent(kind, std::abs(x[i]));
      ASSERT_NEAR(value[i], exact, eps * ((3.0 + 2.0 * z) * std::abs(exact)) + 1e-36)
          << "kind " << static_cast<int>(kind) << " at " << x[i];
      ASSERT_NEAR(slope[i], plain_slope(kind, x[i]), 4.0 * eps)
          << "slope, kind " << static_cast<int>(kind) << " at " << x[i];
    }
  }
}

TEST_P(ActivationTest, KeepsNanAndGrowsToInfinity) {
  const float infinity = std::numeric_limits<float>::infinity();
  const std::vector<float> x = {NAN, infinity};
  std::vector<float> value(x.size()), slope(x.size());
  for (const Activation kind : kActivations) {
    table().activate(kind, x.data(), value.data(), slope.data(), x.size());
    EXPECT_TRUE(std::isnan(value[0])) << static_cast<int>(kind);
    EXPECT_EQ(value[1], infinity) << static_cast<int>(kind);
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, ActivationTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
