#include "headkit/gates/ladder.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/core/flops.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{3, 4, 2, 5, 70};  // blocks of 32, 32 and 6 neurons

HeadMask mask(std::vector<int64_t> keep) {
  return HeadMask(at::tensor(keep, at::kLong).reshape({3, 4}));
}
at::Tensor open_blocks(std::vector<int64_t> open) {
  return at::tensor(open, at::kLong).reshape({3, 3}).to(at::kBool);
}
const HeadMask kLow = mask({1, 1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0});
const HeadMask kMiddle = mask({1, 1, 1, 0, 1, 0, 0, 1, 1, 0, 1, 1});

template <typename Call>
std::string message_of(Call&& call) {
  try {
    call();
  } catch (const std::invalid_argument& error) {
    return error.what();
  }
  return "nothing thrown";
}

TEST(LadderTest, NamesWhatARungLacks) {
  EXPECT_NE(message_of([] { Ladder({{kMiddle}, {kLow}}); })
                .find("rung 1 to contain what rung 0 runs; found it lacks layer 2 head 0, layer 2 "
                      "head 3"),
            std::string::npos);
  const Rung with_blocks{kLow, open_blocks({1, 1, 0, 1, 0, 0, 1, 1, 1})};
  const Rung fewer{kMiddle, open_blocks({1, 1, 0, 1, 0, 0, 1, 0, 1})};
  EXPECT_NE(message_of([&] { Ladder({with_blocks, fewer}); }).find("lacks layer 2 block 1"),
            std::string::npos);
  // A rung without blocks runs all of them.
  EXPECT_NE(message_of([&] { Ladder({{kLow}, fewer}); }).find("layer 0 block 2"),
            std::string::npos);
  EXPECT_NO_THROW(Ladder({with_blocks, {kMiddle}, {HeadMask::all(3, 4)}}));
  EXPECT_THROW(Ladder({{kLow}}), std::invalid_argument);
  EXPECT_THROW(Ladder({{kLow}, {HeadMask::all(2, 4)}}), std::invalid_argument);
  EXPECT_THROW(Ladder({{kLow, at::ones({2, 3}, at::kBool)}, {kMiddle}}), std::invalid_argument);
  EXPECT_THROW(Ladder({{kLow, {}, at::full({3, 4, 5}, NAN)}, {kMiddle}}), std::invalid_argument);
}

TEST(LadderTest, SharesLayersThatComputeTheSame) {
  const at::Tensor few = open_blocks({1, 1, 0, 1, 0, 0, 1, 0, 0});
  const at::Tensor more = open_blocks({1, 1, 0, 1, 1, 0, 1, 0, 0});
  const auto shared = [](Rung low, Rung high) {
    return Ladder({std::move(low), std::move(high)}).shared_layers(1);
  };
  EXPECT_EQ(shared({kLow}, {kMiddle}), 2);
  EXPECT_EQ(shared({kLow}, {kLow}), 3);
  EXPECT_EQ(shared({kLow, few}, {kMiddle, more}), 1);
  EXPECT_EQ(shared({kLow, few}, {kMiddle}), 0);
  EXPECT_EQ(shared({kLow, at::ones({3, 3}, at::kBool)}, {kMiddle}), 2);
  // Compensation counts where the units are closed.
  at::Tensor dropped = at::zeros({3, 4, 5});
  dropped[1][0] = 1;  // open in both
  EXPECT_EQ(shared({kLow, {}, dropped}, {kMiddle}), 2);
  dropped[1][1] = 1;
  EXPECT_EQ(shared({kLow, {}, dropped}, {kMiddle}), 1);
  EXPECT_EQ(shared({kLow, {}, dropped}, {kMiddle, {}, dropped}), 2);
  at::Tensor dropped_blocks = at::zeros({3, 3, 5});
  dropped_blocks[0][2] = 1;
  EXPECT_EQ(shared({kLow, few, {}, dropped_blocks}, {kMiddle, more}), 0);
}

TEST(LadderTest, RoundTripsBitForBit) {
  const Rung low{kLow, open_blocks({1, 1, 0, 0, 0, 0, 1, 0, 1}), at::randn({3, 4, 5}, at::kDouble),
                 at::randn({3, 3, 5})};
  const Ladder ladder({low, {kMiddle, {}, at::randn({3, 4, 5})}, {HeadMask::all(3, 4)}});
  const Ladder again = Ladder::from_json(ladder.to_json());
  EXPECT_EQ(again.to_json(), ladder.to_json());
  EXPECT_TRUE(at::equal(again.rung(0).blocks, low.blocks));
  EXPECT_TRUE(at::equal(again.rung(0).dropped_output, low.dropped_output));
  EXPECT_TRUE(at::equal(again.rung(0).dropped_blocks, low.dropped_blocks));
  EXPECT_FALSE(again.rung(1).blocks.defined());
  EXPECT_THROW(ladder.rung(3), std::out_of_range);
  std::string wrong = ladder.to_json();
  wrong.replace(wrong.find("\"count\":3"), 9, "\"count\":1");
  EXPECT_THROW(Ladder::from_json(wrong), std::invalid_argument);
}

TEST(LadderTest, CountsFlopsOfHeadsKvHeadsAndBlocks) {
  const HeadLayout grouped{3, 4, 2, 5, 70, 2};
  const auto model = testing::random_toy_model(grouped, 3, 1);
  const Rung rung{kLow, open_blocks({1, 0, 0, 0, 0, 1, 1, 1, 1})};
  // Layer 0: heads 0 1 2, KV heads 0 1, 32 neurons; 1: heads 0 3, KV 0 1, 6; 2: head 2, KV 1, 70.
  const double tokens = 7, head = 4 * 7 * 2 * (5 + 7), kv_head = 4 * 7 * 2 * 5, neuron = 4 * 7 * 5;
  EXPECT_DOUBLE_EQ(rung_flops(*model, rung, tokens), 6 * head + 5 * kv_head + 108 * neuron);
  EXPECT_DOUBLE_EQ(rung_flops(*model, rung, tokens, 1, 2), 2 * head + 2 * kv_head + 6 * neuron);
  const Rung all{HeadMask::all(3, 4)};
  EXPECT_DOUBLE_EQ(rung_flops(*model, all, tokens), encoder_flops(grouped, 12, 7));
  EXPECT_THROW(rung_flops(*model, all, tokens, 2, 1), std::invalid_argument);
  const Ladder ladder({rung, all});
  EXPECT_NO_THROW(ladder.check_model("test", *model));
  const auto other = testing::random_toy_model({3, 4, 2, 5, 64}, 3, 1);
  EXPECT_NE(message_of([&] { ladder.check_model("test", *other); }).find("[3, 3]"),
            std::string::npos);
}

}  // namespace
}  // namespace headkit
