#include "headkit/scorers/stability.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "support/golden.h"

namespace headkit {
namespace {

using testing::golden_case;

std::vector<HeadMask> masks_of(const nlohmann::json& rows) {
  std::vector<HeadMask> masks;
  for (const auto& row : rows) masks.emplace_back(testing::golden_tensor(row).reshape({2, 4}));
  return masks;
}

TEST(StabilityTest, HasTheGoldenValues) {
  const auto golden = golden_case("agreement.mask_stability");
  const auto expected = golden["expected"];
  const Stability found = stability(masks_of(golden["inputs"]["masks"]));
  EXPECT_NEAR(found.nogueira, expected["nogueira"].get<double>(), 1e-10);
  EXPECT_NEAR(found.fleiss_kappa, expected["fleiss_kappa"].get<double>(), 1e-10);
  EXPECT_NEAR(found.variance, expected["variance"].get<double>(), 1e-10);
  EXPECT_NEAR(found.lower, expected["ci95"][0].get<double>(), 1e-10);
  EXPECT_NEAR(found.upper, expected["ci95"][1].get<double>(), 1e-10);
  EXPECT_TRUE(std::isnan(found.mean_kuncheva));
  const Stability equal = stability(masks_of(golden["inputs"]["equal_size_masks"]));
  EXPECT_NEAR(equal.nogueira, expected["equal_size_nogueira"].get<double>(), 1e-10);
  EXPECT_NEAR(equal.mean_kuncheva, expected["equal_size_mean_kuncheva"].get<double>(), 1e-10);
}

TEST(StabilityTest, ThreeWaysAgreeOnRandomMasksOfOneSize) {
  at::manual_seed(3);
  std::vector<HeadMask> masks;
  for (int i = 0; i < 6; ++i) {
    at::Tensor keep = at::zeros({24}, at::kBool);
    keep.index_fill_(0, at::randperm(24).slice(0, 0, 9), 1);
    masks.emplace_back(keep.reshape({4, 6}));
  }
  const Stability found = stability(masks);
  EXPECT_NEAR(found.nogueira, found.fleiss_kappa, 1e-12);
  EXPECT_NEAR(found.nogueira, found.mean_kuncheva, 1e-12);
  EXPECT_EQ(found.mean_kept, 9);
}

TEST(StabilityTest, TheSameMaskIsOneAndNothingToChooseIsRefused) {
  const HeadMask mask(at::tensor({1, 0, 0, 1}, at::kLong).reshape({2, 2}));
  const Stability found = stability({mask, mask, mask});
  EXPECT_NEAR(found.nogueira, 1, 1e-12);
  EXPECT_NEAR(found.variance, 0, 1e-12);
  EXPECT_THROW(stability({HeadMask::all(2, 2), HeadMask::all(2, 2)}), std::invalid_argument);
  EXPECT_THROW(stability({mask}), std::invalid_argument);
  EXPECT_THROW(stability({mask, HeadMask::all(4, 1)}), std::invalid_argument);
  EXPECT_THROW(stability({mask, mask}, 1.0), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
