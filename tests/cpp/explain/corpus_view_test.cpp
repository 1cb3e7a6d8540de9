#include "headkit/explain/corpus_view.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>

#include "headkit/explain/head_usage.h"
#include "headkit/gates/linear_gate.h"
#include "headkit/gates/mask_policy.h"
#include "headkit/gates/run_policy.h"
#include "headkit/scorers/agreement.h"
#include "headkit/scorers/stability.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

const HeadLayout kLayout{2, 3, 2, 5, 0};

DecisionRecord record_of(const std::vector<int>& open, int64_t tokens) {
  DecisionRecord record;
  record.layout = {1, static_cast<int64_t>(open.size()), 2, 4, 0};
  record.policy = "planted";
  record.mode = "dynamic";
  record.tokens = tokens;
  for (size_t h = 0; h < open.size(); ++h) {
    HeadDecision head;
    head.head = static_cast<int64_t>(h);
    head.state = open[h] != 0 ? "on" : "off";
    head.gate = open[h];
    head.margin = open[h] != 0 ? 0.5 : -1.5;
    record.heads.push_back(head);
  }
  return record;
}

TEST(CorpusView, SaysForWhatKindOfInputAHeadRuns) {
  // Head 0 always runs, head 1 for long inputs, head 2 for class b, head 3 never.
  CorpusView view({"confidence"});
  std::vector<double> lengths, second;
  std::vector<HeadMask> masks;
  for (int64_t i = 0; i < 24; ++i) {
    const int64_t tokens = 4 + (i * 7) % 24;
    const bool is_b = i % 3 == 0;
    const std::vector<int> open{1, tokens > 12, is_b, 0};
    view.add(record_of(open, tokens), {0.5 + 0.01 * static_cast<double>(i)}, is_b ? "b" : "a");
    lengths.push_back(static_cast<double>(tokens));
    second.push_back(tokens > 12);
    masks.emplace_back(at::tensor(open).reshape({1, 4}));
  }
  const CorpusReport found = view.report();
  EXPECT_EQ(found.inputs, 24);
  EXPECT_EQ(found.heads[0].frequency, 1);
  EXPECT_EQ(found.heads[0].state, "on");
  EXPECT_EQ(found.heads[1].state, "mixed");
  EXPECT_EQ(found.heads[3].frequency, 0);
  EXPECT_GT(found.heads[3].upper, 0) << "never seen is not never";
  EXPECT_FALSE(found.heads[0].correlations[0].spearman) << "what never varies goes with nothing";
  const CorpusCorrelation& by_length = found.heads[1].correlations[0];
  EXPECT_EQ(by_length.property, "length");
  EXPECT_NEAR(*by_length.spearman, spearman(second, lengths), 1e-12);
  EXPECT_GT(*by_length.lower, 0.5);
  EXPECT_LT(*by_length.lower, *by_length.spearman);
  EXPECT_GT(*by_length.upper, *by_length.spearman);
  EXPECT_EQ(found.heads[2].by_class.at("b"), 1);
  EXPECT_EQ(found.heads[2].by_class.at("a"), 0);
  EXPECT_EQ(found.classes.at("b"), 8);
  int64_t counted = 0;
  double mean = 0;
  for (const auto& [count, inputs] : found.selected) {
    counted += inputs;
    mean += static_cast<double>(count * inputs) / 24;
  }
  EXPECT_EQ(counted, 24);
  EXPECT_NEAR(found.mean_selected, mean, 1e-12);
  EXPECT_NEAR(*found.same_for_all, stability(masks).nogueira, 1e-12);
  EXPECT_NEAR(*found.heads[1].mean_margin, 2 * found.heads[1].frequency - 1.5, 1e-12);
  const double p = found.heads[1].frequency;
  EXPECT_NEAR(*found.heads[1].margin_spread, 2 * std::sqrt(p * (1 - p) * 24 / 23), 1e-12);
  const auto json = nlohmann::json::parse(found.to_json());
  EXPECT_EQ(json["heads"][2]["by_class"]["b"], 1.0);
  EXPECT_TRUE(json["heads"][0]["correlations"]["length"]["spearman"].is_null());
}

TEST(CorpusView, AStaticSelectionIsTheSameForAllInputs) {
  CorpusView view;
  for (int64_t i = 0; i < 6; ++i) view.add(record_of({1, 0, 1}, 3 + i));
  const CorpusReport found = view.report();
  EXPECT_NEAR(*found.same_for_all, 1, 1e-12);
  EXPECT_NEAR(*found.split_half, 1, 1e-12);
  CorpusView full;
  for (int64_t i = 0; i < 6; ++i) full.add(record_of({1, 1}, 3 + i));
  EXPECT_FALSE(full.report().same_for_all);
  EXPECT_FALSE(full.report().split_half);
}

TEST(CorpusView, IntervalsOfCorrelationsCoverTheTruth) {
  // A head that runs with probability 1/2 whatever the length: the truth is 0.
  at::manual_seed(5);
  int64_t covered = 0;
  for (int64_t draw = 0; draw < 200; ++draw) {
    CorpusView view;
    const at::Tensor open = at::rand({60}).gt(0.5), length = at::randint(3, 40, {60}, at::kLong);
    for (int64_t i = 0; i < 60; ++i) {
      view.add(record_of({open[i].item<bool>(), 1}, length[i].item<int64_t>()));
    }
    const CorpusReport report = view.report();
    const CorpusCorrelation& found = report.heads[0].correlations[0];
    covered += *found.lower <= 0 && 0 <= *found.upper;
  }
  EXPECT_GE(covered, 180);
  EXPECT_LE(covered, 198);
}

TEST(CorpusView, RefusesWhatDoesNotFit) {
  CorpusView view({"confidence"});
  EXPECT_THROW(view.report(), std::invalid_argument);
  EXPECT_THROW(view.add(record_of({1}, 2)), std::invalid_argument);
  EXPECT_THROW(view.add(record_of({1}, 2), {NAN}), std::invalid_argument);
  view.add(record_of({1}, 2), {0.5});
  EXPECT_THROW(view.add(record_of({1, 0}, 2), {0.5}), std::invalid_argument);
  EXPECT_EQ(view.inputs(), 1);
  EXPECT_THROW(CorpusView({"length"}), std::invalid_argument);
  EXPECT_THROW(CorpusView({"a", "a"}), std::invalid_argument);
}

TEST(TokenSurprise, IsTheMeanLogShareOfTheTokens) {
  const Batch one{{"input_ids", at::tensor({5, 5, 7, 7, 5, 9}, at::kLong).reshape({2, 3})},
                  {"attention_mask", at::tensor({1, 1, 1, 1, 0, 0}, at::kLong).reshape({2, 3})}};
  const at::Tensor found = token_surprise(BatchList({one}));
  // Valid tokens 5 5 7 7.
  EXPECT_TRUE(at::allclose(found, at::tensor({1., 1.}, at::kDouble)));
  EXPECT_THROW(token_surprise(BatchList({Batch{{"x", at::ones({1, 2, 3})}}})),
               std::invalid_argument);
}

TEST(HeadUsage, CountsWhatThePolicyRuns) {
  const auto model = testing::random_toy_model(kLayout, 3, 7);
  const Batch first = testing::random_toy_batch(kLayout, 20, 8, 3, 2);
  const Batch second = testing::random_toy_batch(kLayout, 13, 6, 3, 4);
  at::manual_seed(3);
  LinearGateSettings settings;
  settings.weight = at::randn({2, 3, 5}, at::kDouble);
  settings.reference = at::randn({5}, at::kDouble);
  settings.static_logits = 0.3 * at::randn({2, 3}, at::kDouble);
  const LinearGate gate(settings);
  const BatchList data({first, second});
  int64_t visited = 0;
  const CorpusReport found = head_usage(
      *model, data, gate,
      {.classes = true,
       .class_names = {"x", "y", "z"},
       .properties = {{"mine", at::arange(33, at::kDouble)}},
       .visit = [&](const DecisionRecord& record) { EXPECT_EQ(record.input, visited++); }});
  EXPECT_EQ(visited, 33);
  const at::Tensor open = at::cat(
      {run_policy(*model, first, gate).gates.heads, run_policy(*model, second, gate).gates.heads});
  const at::Tensor share = open.to(at::kDouble).mean(0);
  for (const CorpusHead& head : found.heads) {
    EXPECT_NEAR(head.frequency, share[head.head.layer][head.head.head].item<double>(), 1e-12);
    EXPECT_LE(head.lower, head.frequency);
    EXPECT_GE(head.upper, head.frequency);
    ASSERT_EQ(head.correlations.size(), 3u);
    EXPECT_EQ(head.correlations[1].property, "mine");
    EXPECT_EQ(head.correlations[2].property, "confidence");
  }
  int64_t classes = 0;
  for (const auto& [name, inputs] : found.classes) {
    EXPECT_TRUE(name == "x" || name == "y" || name == "z");
    classes += inputs;
  }
  EXPECT_EQ(classes, 33);
  EXPECT_THROW(head_usage(*model, data, gate, {.properties = {{"mine", at::ones({5})}}}),
               std::invalid_argument);
  EXPECT_THROW(head_usage(*model, data, gate, {.properties = {{"mine", at::ones({50})}}}),
               std::invalid_argument);
}

}  // namespace
}  // namespace headkit
