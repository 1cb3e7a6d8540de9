#include "headkit/explain/head_effects.h"

#include <gtest/gtest.h>

#include <limits>
#include <nlohmann/json.hpp>

namespace headkit {
namespace {

InputEffects example() {
  InputEffects effects;
  effects.input = 4;
  effects.metric = "class_margin";
  effects.target = 1;
  effects.distractor = 0;
  effects.value = 2.5;
  effects.value_without_heads = -0.5;
  effects.ablation = "resample";
  effects.reference = "8 draws";
  effects.routing = "measured";
  effects.path_gap = 1e-4;
  HeadEffects head;
  head.head = {1, 3};
  head.gate = 0.5;
  head.write_norm = 2;
  head.relative_write_norm = 0.25;
  head.direct = 0.75;
  head.direct_linearised = true;
  head.gate_gradient = -0.25;
  head.toggle = ToggleEffect{"resample", 0.5, 0.125, 0.25, 0.75};
  head.repair_lower = 0.125;
  head.repair_upper = 0.375;
  head.flipped_gates = {{{2, 0}, true}, {{2, 1}, false}};
  HeadEffects nothing;
  nothing.head = {2, 0};
  effects.heads = {head, nothing};
  effects.pairs = {{{0, 1}, {1, 3}, "synergy", -1, "resample", std::nullopt, std::nullopt}};
  effects.not_computed = {{"shapley", "not asked for"}};
  return effects;
}

TEST(HeadEffectsTest, WhatFollowsFromWhatWasMeasured) {
  const HeadEffects head = example().heads[0];
  EXPECT_EQ(*head.repair(), 0.25);
  EXPECT_EQ(*head.toggle->routing_mediated(), -0.375);
  EXPECT_EQ(head.level(), "L2");
  HeadEffects less = head;
  less.toggle.reset();
  EXPECT_EQ(less.level(), "L1");
  EXPECT_FALSE(less.repair());
  less.direct.reset();
  less.gate_gradient.reset();
  EXPECT_EQ(less.level(), "L0");
  EXPECT_EQ(HeadEffects{}.level(), "");
}

TEST(HeadEffectsTest, JsonKeepsEverything) {
  const InputEffects effects = example();
  EXPECT_EQ(InputEffects::from_json(effects.to_json()), effects);
  EXPECT_EQ(InputEffects::from_json(InputEffects{}.to_json()), InputEffects{});
}

TEST(HeadEffectsTest, ARecordTakesWhatItKnows) {
  const auto patch = nlohmann::json::parse(example().record_patch());
  const auto whole = nlohmann::json::parse(example().to_json());
  EXPECT_EQ(patch.size(), 3u);
  EXPECT_EQ(patch["output"]["metric"], "class_margin");
  EXPECT_EQ(patch["output"]["value_selected"], 2.5);
  EXPECT_EQ(patch["pairs"], whole["pairs"]);
  ASSERT_EQ(patch["heads"].size(), 2u);
  for (size_t h = 0; h < 2; ++h) {
    auto head = patch["heads"][h]["effects"];
    head["layer"] = patch["heads"][h]["layer"];
    head["head"] = patch["heads"][h]["head"];
    EXPECT_EQ(head, whole["heads"][h]);
  }
}

TEST(HeadEffectsTest, NanAndOtherTextAreRefused) {
  InputEffects effects = example();
  effects.heads[0].direct = std::numeric_limits<double>::quiet_NaN();
  EXPECT_THROW(effects.to_json(), std::invalid_argument);
  EXPECT_THROW(InputEffects::from_json("{}"), std::invalid_argument);
  EXPECT_THROW(InputEffects::from_json("not json"), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
