#include "headkit/explain/output_metric.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

namespace headkit {
namespace {

const at::Tensor kLogits =
    at::tensor({1.0, 4.0, 2.5, -1.0, 0.0, -3.0}, at::kDouble).reshape({2, 3});

at::Tensor value(const char* name, const at::Tensor& output, const MetricChoice& choice = {},
                 const at::Tensor& valid = {}, const at::Tensor& dense = {}) {
  const auto metric = make_output_metric(name);
  return metric->values(output, metric->choose(output, valid, dense, choice));
}

void expect_values(const at::Tensor& found, std::vector<double> expected) {
  EXPECT_TRUE(at::allclose(found, at::tensor(expected, at::kDouble), 0, 1e-12)) << found;
}

TEST(OutputMetricTest, ClassMarginIsPredictedMinusRunnerUp) {
  expect_values(value("class_margin", kLogits), {1.5, 1.0});
  expect_values(value("class_margin", kLogits, {.target = at::tensor({0, 2})}), {-3.0, -3.0});
  expect_values(value("class_margin", kLogits,
                      {.target = at::tensor({0, 2}), .distractor = at::tensor({2, 0})}),
                {-1.5, -2.0});
}

TEST(OutputMetricTest, TheChoiceStaysWhenThePredictionChanges) {
  const auto metric = make_output_metric("class_margin");
  const MetricTarget chosen = metric->choose(kLogits, {}, {}, {});
  expect_values(metric->values(-kLogits, chosen), {-1.5, -1.0});
  expect_values(metric->values(kLogits.slice(0, 1), chosen.select(at::tensor({1}))), {1.0});
}

TEST(OutputMetricTest, LogOddsAreReadAtTheLastValidToken) {
  const at::Tensor logits = at::randn({2, 4, 5}, at::kDouble);
  const at::Tensor valid = at::tensor({1, 1, 0, 0, 1, 1, 1, 1}).reshape({2, 4}).to(at::kBool);
  const MetricChoice choice{.target = at::tensor({3, 0}), .distractor = at::tensor({1, 4})};
  const at::Tensor log_p = at::log_softmax(logits, 2);
  const auto p = [&](int64_t b, int64_t t, int64_t v) { return log_p[b][t][v].item<double>(); };
  expect_values(value("token_log_odds", logits, choice, valid),
                {p(0, 1, 3) - p(0, 1, 1), p(1, 3, 0) - p(1, 3, 4)});
  expect_values(value("token_log_probability", logits,
                      {.target = at::tensor({3, 0}), .position = at::tensor({0, 2})}, valid),
                {p(0, 0, 3), p(1, 2, 0)});
  EXPECT_GE(value("token_log_odds", logits, {}, valid).min().item<double>(), 0);
}

TEST(OutputMetricTest, LogitAndCosine) {
  expect_values(value("logit", kLogits), {4.0, 0.0});
  expect_values(value("logit", kLogits, {.target = at::tensor({2, 0})}), {2.5, -1.0});
  const at::Tensor dense = at::tensor({3.0, 4.0, 1.0, 0.0}, at::kDouble).reshape({2, 2});
  const at::Tensor output = at::tensor({4.0, 3.0, 0.0, 2.0}, at::kDouble).reshape({2, 2});
  expect_values(value("cosine_to_dense", output, {}, {}, dense), {24.0 / 25.0, 0.0});
}

TEST(OutputMetricTest, WhatDoesNotFitIsRefused) {
  const at::Tensor tokens = at::zeros({2, 4, 5}, at::kDouble);
  EXPECT_THROW(make_output_metric("nonsense"), std::invalid_argument);
  EXPECT_THROW(value("class_margin", tokens), std::invalid_argument);
  EXPECT_THROW(value("token_log_odds", kLogits), std::invalid_argument);
  EXPECT_THROW(value("class_margin", kLogits.slice(1, 0, 1)), std::invalid_argument);
  EXPECT_THROW(value("class_margin", kLogits, {.target = at::tensor({0, 3})}),
               std::invalid_argument);
  EXPECT_THROW(value("class_margin", kLogits, {.target = at::tensor({0})}), std::invalid_argument);
  EXPECT_THROW(value("class_margin", kLogits,
                     {.target = at::tensor({0, 1}), .distractor = at::tensor({0, 2})}),
               std::invalid_argument);
  EXPECT_THROW(value("logit", kLogits, {.distractor = at::tensor({0, 1})}), std::invalid_argument);
  EXPECT_THROW(value("cosine_to_dense", kLogits), std::invalid_argument);
  EXPECT_THROW(default_output_metric(kLogits.slice(1, 0, 1)), std::invalid_argument);
  EXPECT_EQ(default_output_metric(kLogits)->name(), "class_margin");
  EXPECT_EQ(default_output_metric(tokens)->name(), "token_log_odds");
}

}  // namespace
}  // namespace headkit
