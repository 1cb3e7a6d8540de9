#include "distributed/packed_tensors.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <random>

namespace headkit {
namespace {

std::vector<at::Tensor> several() {
  return {at::randn({2, 3}, at::kDouble),    at::Tensor(),
          at::randn({4}, at::kFloat),        at::zeros({0, 5}, at::kDouble),
          at::full({}, 7, at::kLong),        at::randn({3, 2}).gt(0),
          at::randn({3, 2}, at::kDouble).t()};
}

TEST(PackedTensorsTest, ComeBackAsTheyWere) {
  const std::vector<at::Tensor> given = several();
  const std::vector<at::Tensor> found = unpack(pack(given));
  ASSERT_EQ(found.size(), given.size());
  for (size_t i = 0; i < given.size(); ++i) {
    ASSERT_EQ(found[i].defined(), given[i].defined());
    if (!given[i].defined()) continue;
    EXPECT_EQ(found[i].scalar_type(), given[i].scalar_type());
    EXPECT_TRUE(found[i].equal(given[i]));
  }
  EXPECT_TRUE(unpack(pack({})).empty());
}

TEST(PackedTensorsTest, OtherTypesAreRefused) {
  EXPECT_THROW(pack({at::zeros({2}, at::kHalf)}), std::invalid_argument);
}

TEST(PackedTensorsTest, MutatedBytesAreReadOrRefused) {
  std::mt19937_64 random(0);
  const std::string whole = pack(several());
  int64_t refused = 0;
  for (int64_t i = 0; i < 20000; ++i) {
    std::string bytes = whole;
    const auto kind = random() % 3;
    if (kind == 0) bytes.resize(random() % bytes.size());
    if (kind == 1) bytes += static_cast<char>(random());
    for (uint64_t change = 0; kind == 2 && change <= random() % 4; ++change) {
      bytes[random() % bytes.size()] = static_cast<char>(random());
    }
    try {
      for (const at::Tensor& each : unpack(bytes)) {
        EXPECT_LE(each.defined() ? each.nbytes() : 0, bytes.size());
      }
    } catch (const std::runtime_error& error) {
      EXPECT_EQ(std::string(error.what()).find("[packed_tensors] expected"), 0U) << error.what();
      ++refused;
    }
  }
  EXPECT_GT(refused, 10000);
}

TEST(PackedTensorsTest, AShapeThatOverflowsIsRefused) {
  std::string bytes(4, '\0');
  bytes[0] = 1;
  bytes += std::string(1, '\0') + '\x03';
  for (int axis = 0; axis < 3; ++axis) bytes += std::string("\0\0\0\0\0\0\0\x40", 8);
  EXPECT_THROW(unpack(bytes), std::runtime_error);
}

}  // namespace
}  // namespace headkit
