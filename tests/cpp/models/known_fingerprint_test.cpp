#include "models/known_fingerprint.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/core/backend.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

TEST(KnownFingerprintTest, SeesEditsThatAreCountedAndThoseThatAreNot) {
  const auto model = testing::random_toy_model({2, 4, 2, 5, 6}, 3, 1);
  std::string before = known_fingerprint(*model);
  EXPECT_EQ(before, model->fingerprint());
  for (const auto& [name, tensor] : model->parameters()) {
    tensor.flatten()[-1] += 1;  // counted: one value, wherever it lies
    const std::string after = known_fingerprint(*model);
    EXPECT_EQ(after, model->fingerprint()) << name;
    EXPECT_NE(after, before) << name;
    auto* const data = static_cast<uint8_t*>(tensor.data_ptr());
    for (size_t byte = 0; byte < tensor.nbytes(); ++byte) data[byte] ^= 1;  // not counted
    before = known_fingerprint(*model);
    EXPECT_EQ(before, model->fingerprint()) << name;
    EXPECT_NE(after, before) << name;
  }
}

TEST(KnownFingerprintTest, HashesOnceAndAgainWhenAsked) {
  const auto model = testing::random_toy_model({1, 4, 8, 32, 0}, 3, 1);
  const std::string before = known_fingerprint(*model);
  const at::Tensor weight = model->attention(0).q;
  ASSERT_GT(weight.numel(), 128);
  static_cast<double*>(weight.data_ptr())[1] += 1;  // neither counted nor at a sampled place
  EXPECT_EQ(known_fingerprint(*model), before);
  refresh_packed_weights();
  EXPECT_EQ(known_fingerprint(*model), model->fingerprint());
  EXPECT_NE(known_fingerprint(*model), before);
}

}  // namespace
}  // namespace headkit
