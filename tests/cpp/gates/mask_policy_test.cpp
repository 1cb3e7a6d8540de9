#include "headkit/gates/mask_policy.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "headkit/explain/decision_record.h"
#include "headkit/gates/run_policy.h"
#include "headkit/pruners/removal.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{2, 3, 4, 7, 0};

HeadMask some_mask() { return HeadMask(at::tensor({1, 0, 1, 0, 0, 1}, at::kLong).reshape({2, 3})); }

TEST(MaskPolicy, GivesTheOutputOfItsMaskAndCountsHeads) {
  const auto model = testing::random_toy_model(kLayout, 2, 1);
  const Batch batch = testing::random_toy_batch(kLayout, 5, 6, 2, 2);
  GateSet gates = GateSet::from_mask(some_mask());
  gates.heads = gates.heads.to(at::kDouble);
  const at::Tensor dropped = at::randn({2, 3, 7}, at::kDouble);
  gates.dropped_output = dropped;
  const PolicyRun run = run_policy(*model, batch, MaskPolicy(some_mask(), dropped));
  EXPECT_TRUE(at::allclose(run.output, (*model)(batch, gates), 1e-12, 1e-12));
  EXPECT_TRUE((run.heads_run == 3).all().item<bool>());
  EXPECT_TRUE((run.layers_run == 2).all().item<bool>());
}

TEST(MaskPolicy, RoundTripsBitForBit) {
  const MaskPolicy policy(some_mask(), at::randn({2, 3, 7}, at::kFloat));
  const auto again = policy_from_json(policy.to_json());
  EXPECT_EQ(again->to_json(), policy.to_json());
  const auto& read = dynamic_cast<const MaskPolicy&>(*again);
  EXPECT_EQ(read.mask(), policy.mask());
  EXPECT_TRUE(at::equal(read.dropped_output(), policy.dropped_output()));
}

TEST(MaskPolicy, RecordsStaticStatesAndHeadsThatAreGone) {
  const auto model = testing::random_toy_model(kLayout, 2, 1);
  at::Tensor keep = at::ones({2, 3}, at::kBool);
  keep[0][2] = false;
  remove_heads(*model, HeadMask(keep));
  const Batch batch = testing::random_toy_batch(kLayout, 2, 6, 2, 2);
  const PolicyRun run = run_policy(*model, batch, MaskPolicy(some_mask()), {.record = true});
  EXPECT_TRUE((run.heads_run == 2).all().item<bool>());
  const auto records = run.records;
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].input, 1);
  EXPECT_EQ(records[0].mode, "static");
  EXPECT_EQ(records[0].heads_run, 2);
  EXPECT_EQ(records[0].heads[0].state, "always_on");
  EXPECT_EQ(records[0].heads[1].state, "pruned");
  EXPECT_EQ(records[0].heads[2].state, "pruned");
  EXPECT_EQ(records[0].heads[2].reason, "removed");
}

TEST(PolicyRegistry, NamesEveryPolicyAndRefusesOthers) {
  EXPECT_GE(policies().size(), 4u);
  for (const char* text : {"", "{}", "[]", R"({"policy": 3})", R"({"policy": "mask"})",
                           R"({"policy": "mask", "version": 2})"}) {
    EXPECT_THROW(policy_from_json(text), std::invalid_argument) << text;
  }
  try {
    policy_from_json(R"({"policy": "magic", "version": 1})");
    FAIL();
  } catch (const std::invalid_argument& error) {
    EXPECT_NE(std::string(error.what()).find("linear_gate"), std::string::npos) << error.what();
  }
}

TEST(PolicyRegistry, RefusesDamagedTensors) {
  const std::string good = MaskPolicy(some_mask(), at::ones({2, 3, 7}, at::kFloat)).to_json();
  const auto damaged = [&](const std::string& from, const std::string& to) {
    std::string text = good;
    const size_t place = text.find(from);
    EXPECT_NE(place, std::string::npos) << from;
    return text.replace(place, from.size(), to);
  };
  for (const auto& [from, to] : {std::pair<std::string, std::string>{"[2,3,7]", "[2,3,6]"},
                                 {"[2,3,7]", "[2,3,9223372036854775807]"},
                                 {"[2,3,7]", "[2,3,-7]"},
                                 {"float32", "float16"},
                                 {"AACAPw", "AAC!Pw"},
                                 {"AACAPw", "AACAfw"}}) {
    EXPECT_THROW(policy_from_json(damaged(from, to)), std::invalid_argument) << from << to;
  }
}

}  // namespace
}  // namespace headkit
