#include "headkit/models/data_hash.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace headkit {
namespace {

Batch sentences() {
  const at::Tensor lengths = at::tensor({3, 5, 1, 4}, at::kLong).unsqueeze(1);
  return {{"input_ids", at::arange(20).reshape({4, 5})},
          {"attention_mask", at::arange(5).unsqueeze(0).lt(lengths).to(at::kLong)},
          {"labels", at::tensor({0, 1, 1, 0}, at::kLong)}};
}

std::string hash(std::vector<Batch> batches) { return data_hash(BatchList(std::move(batches))); }

TEST(DataHashTest, BatchesOrderAndPaddingDoNotShow) {
  const Batch all = sentences();
  const std::string known = hash({all});
  EXPECT_EQ(known.size(), 64U);
  EXPECT_EQ(hash({select_examples(all, at::tensor({3, 1}, at::kLong)),
                  select_examples(all, at::tensor({0, 2}, at::kLong))}),
            known);
  Batch padded = all;
  padded["input_ids"] = at::constant_pad_nd(all.at("input_ids"), {2, 3}, 77);
  padded["attention_mask"] = at::constant_pad_nd(all.at("attention_mask"), {2, 3}, 0);
  EXPECT_EQ(hash({padded}), known);
  EXPECT_EQ(hash({}), "");
}

TEST(DataHashTest, EveryExampleAndByteShows) {
  const Batch all = sentences();
  const std::string known = hash({all});
  Batch other = all;
  other["labels"] = at::tensor({0, 1, 1, 1}, at::kLong);
  EXPECT_NE(hash({other}), known);
  other = all;
  other["input_ids"] = all.at("input_ids").clone();
  other["input_ids"][0][0] = 99;
  EXPECT_NE(hash({other}), known);
  EXPECT_NE(hash({select_examples(all, at::arange(3))}), known);
  EXPECT_NE(hash({all, all}), known);
  other = all;
  other["ids"] = other["labels"];
  other.erase("labels");
  EXPECT_NE(hash({other}), known);
}

TEST(DataHashTest, ClassesAsManyAsTokensAreNoTokens) {
  Batch batch = sentences();
  batch["labels"] = at::rand({4, 5});
  Batch other = batch;
  other["labels"] = batch.at("labels").clone();
  other["labels"][2][4] = 2;  // beyond the one token of this example
  EXPECT_NE(hash({other}), hash({batch}));
}

TEST(DataHashTest, SharedExamplesAreCounted) {
  const Batch all = sentences();
  const BatchList some({select_examples(all, at::tensor({2, 0}, at::kLong))});
  EXPECT_EQ(shared_examples(some, BatchList({all})), 2);
  EXPECT_EQ(shared_examples(BatchList({all}), some), 2);
  Batch other = all;
  other["input_ids"] = all.at("input_ids") + 100;
  EXPECT_EQ(shared_examples(BatchList({other}), some), 0);
}

TEST(DataHashTest, DataRememberTheirFirstWholeWalk) {
  const BatchList data({sentences(), select_examples(sentences(), at::arange(1))});
  const HashedData seen(data);
  EXPECT_THROW(seen.for_each([](const Batch&) { throw std::runtime_error("stop"); }),
               std::runtime_error);
  EXPECT_EQ(seen.hash(), "");
  int64_t batches = 0;
  seen.for_each([&](const Batch&) { ++batches; });
  EXPECT_EQ(batches, 2);
  EXPECT_EQ(seen.hash(), data_hash(data));
  EXPECT_EQ(seen.size(), data.size());
}

}  // namespace
}  // namespace headkit
