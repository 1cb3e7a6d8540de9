#include "headkit/models/batch.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace headkit {
namespace {

Batch two_tensors() {
  return {{"input_ids", at::arange(12).reshape({4, 3})}, {"labels", at::arange(4)}};
}

TEST(BatchTest, SizeIsTheCommonFirstAxis) {
  EXPECT_EQ(batch_size(two_tensors()), 4);
  EXPECT_EQ(batch_size({{"x", at::zeros({0, 2})}}), 0);
  EXPECT_THROW(batch_size({}), std::invalid_argument);
  EXPECT_THROW(batch_size({{"x", at::scalar_tensor(1)}}), std::invalid_argument);
  EXPECT_THROW(batch_size({{"x", at::Tensor()}}), std::invalid_argument);
  try {
    batch_size({{"input_ids", at::zeros({4, 3})}, {"labels", at::zeros({5})}});
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_STREQ(error.what(),
                 "[batch] expected the same number of examples in every tensor (4); found 'labels' "
                 "of shape [5]");
  }
}

TEST(BatchTest, SelectsInTheGivenOrder) {
  const Batch picked = select_examples(two_tensors(), at::tensor({2, 0, 2}, at::kLong));
  EXPECT_TRUE(picked.at("labels").equal(at::tensor({2, 0, 2}, at::kLong)));
  EXPECT_TRUE(picked.at("input_ids")[0].equal(at::tensor({6, 7, 8}, at::kLong)));
  EXPECT_EQ(batch_size(select_examples(two_tensors(), at::empty({0}, at::kLong))), 0);
}

TEST(BatchTest, AListCanBeWalkedTwiceAndStoppedByAnException) {
  const BatchList list({two_tensors(), two_tensors(), two_tensors()});
  EXPECT_EQ(list.size(), 3);
  for (int walk = 0; walk < 2; ++walk) {
    int seen = 0;
    list.for_each([&](const Batch&) { ++seen; });
    EXPECT_EQ(seen, 3);
  }
  int seen = 0;
  const auto stop_at_two = [&](const Batch&) {
    if (++seen == 2) throw std::runtime_error("stop");
  };
  EXPECT_THROW(list.for_each(stop_at_two), std::runtime_error);
  EXPECT_EQ(seen, 2);
}

}  // namespace
}  // namespace headkit
