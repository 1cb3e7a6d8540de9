#include "headkit/explain/coded_attention.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "core/base64.h"

namespace headkit {
namespace {

struct Entry {
  int64_t key;
  double weight;
};

std::vector<Entry> entries(const CodedAttention& coded, int64_t query) {
  const std::vector<uint8_t> bytes = base64_decode("test", coded.data);
  std::vector<Entry> found;
  for (int64_t k = 0; k < 8; ++k) {
    const uint8_t* entry = bytes.data() + (query * 8 + k) * 3;
    found.push_back({entry[0] + 256 * entry[1], entry[2] / 255.0});
  }
  return found;
}

TEST(CodedAttention, KeepsTheEightLargestKeysOfEveryQuery) {
  at::manual_seed(0);
  const at::Tensor rows = at::randn({3, 5, 300}, at::kDouble).mul(2).softmax(-1);
  const std::vector<CodedAttention> coded = code_attention(rows);
  ASSERT_EQ(coded.size(), 3u);
  for (int64_t h = 0; h < 3; ++h) {
    for (int64_t i = 0; i < 5; ++i) {
      const auto [weights, keys] = rows[h][i].topk(8);
      const std::vector<Entry> found = entries(coded[h], i);
      for (int64_t k = 0; k < 8; ++k) {
        EXPECT_EQ(found[k].key, keys[k].item<int64_t>());
        EXPECT_NEAR(found[k].weight, weights[k].item<double>(), 0.5 / 255 + 1e-6);
      }
      EXPECT_NEAR(coded[h].kept_mass[i], weights.sum().item<double>(), 1e-6);
    }
    const at::Tensor mean = rows[h].mean(0);
    for (int64_t j = 0; j < 300; ++j) {
      EXPECT_NEAR(coded[h].received[j], mean[j].item<double>(), 1e-6);
    }
  }
}

TEST(CodedAttention, SplitsOffSinksAndLeavesOutPadding) {
  const at::Tensor rows =
      at::tensor({0.5f, 0.25f, 0.25f, 0.0f, 0.125f, 0.5f, 0.375f, 0.0f, 9.0f, 9.0f, 9.0f, 9.0f})
          .reshape({1, 3, 4});
  const CodedAttention coded = code_attention(rows, at::tensor({1, 1, 0}).to(at::kBool),
                                              at::tensor({1, 0, 0, 0}).to(at::kBool))[0];
  EXPECT_EQ(coded.sink_mass, (std::vector<double>{0.5, 0.125, 0}));
  EXPECT_EQ(coded.kept_mass, (std::vector<double>{1, 1, 0}));
  EXPECT_EQ(coded.received, (std::vector<double>{0.3125, 0.375, 0.3125, 0}));
  const std::vector<Entry> first = entries(coded, 0);
  EXPECT_EQ(first[1].key, 1) << "the lower key first among equals";
  EXPECT_EQ(first[2].key, 2);
  for (const Entry& entry : entries(coded, 2)) EXPECT_EQ(entry.weight, 0);
}

TEST(CodedAttention, TakesNoTokensAtAll) {
  const std::vector<CodedAttention> coded = code_attention(at::zeros({2, 0, 0}));
  ASSERT_EQ(coded.size(), 2u);
  EXPECT_TRUE(coded[0].data.empty());
}

TEST(CodedAttention, RefusesWhatIsNoAttention) {
  EXPECT_THROW(code_attention(at::zeros({2, 3})), std::invalid_argument);
  EXPECT_THROW(code_attention(at::full({1, 1, 2}, 0.7) * 2), std::invalid_argument);
  EXPECT_THROW(code_attention(at::full({1, 1, 2}, NAN)), std::invalid_argument);
  EXPECT_THROW(code_attention(at::zeros({1, 1, 2}), at::tensor({1, 0}).to(at::kBool)),
               std::invalid_argument);
  EXPECT_THROW(code_attention(at::zeros({1, 1, 65537})), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
