#include "headkit/pruners/cost_search.h"

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/golden.h"

namespace headkit {
namespace {

std::vector<int64_t> kept(const at::Tensor& keep) {
  const at::Tensor places = keep.flatten().nonzero().flatten().contiguous();
  const int64_t* data = places.const_data_ptr<int64_t>();
  return {data, data + places.numel()};
}

// Every subset of `count` units, [2^count, count].
at::Tensor subsets(int64_t count) {
  return at::arange(int64_t{1} << count)
      .unsqueeze(1)
      .bitwise_right_shift(at::arange(count))
      .remainder(2)
      .to(at::kDouble);
}

double largest_within(const at::Tensor& importance, const at::Tensor& cost, double budget) {
  return importance.masked_select(cost.le(budget)).max().item<double>();
}

TEST(UnitCostsTest, GoldenModels) {
  const auto& golden = testing::golden_case("flops.models");
  for (const auto& [name, expected] : golden["expected"].items()) {
    const auto& in = golden["inputs"][name];
    const HeadLayout layout{in[0], in[1], in[2].get<int64_t>() / in[1].get<int64_t>(), in[2],
                            in[3]};
    const double tokens = in[4];
    const UnitCosts costs = unit_macs(layout, tokens);
    const auto heads = static_cast<double>(layout.total_heads());
    const auto neurons = static_cast<double>(layout.layers * layout.feed_forward);
    const double total = costs.total(heads, neurons);
    EXPECT_EQ(costs.head, expected["macs_per_head"]);
    EXPECT_EQ(costs.neuron, expected["macs_per_neuron"]);
    EXPECT_EQ(total, expected["total_macs"]);
    EXPECT_EQ(2 * costs.head, attention_flops(layout, 1, in[4]));
    EXPECT_NEAR(heads * costs.head / total, expected["attention_share"], 1e-12);
    EXPECT_NEAR(total / costs.total(0, neurons), expected["max_speedup_all_heads_removed"], 1e-11);
    EXPECT_NEAR(total / costs.total(heads / 2, neurons), expected["speedup_half_heads_removed"],
                1e-11);
  }
}

TEST(UnitCostsTest, GoldenPrunedModelAndUnitCosts) {
  const auto& pruned = testing::golden_case("flops.pruned_model");
  const at::Tensor heads = testing::golden_tensor(pruned["inputs"]["kept_heads"]);
  const at::Tensor neurons = testing::golden_tensor(pruned["inputs"]["kept_neurons"]);
  const UnitCosts costs = unit_macs({12, 12, 64, 768, 3072}, 128);
  EXPECT_EQ(costs.total(heads.sum().item<double>(), neurons.sum().item<double>()),
            pruned["expected"]["macs"]);
  const auto& flap = testing::golden_case("flops.flap_unit_cost");
  const UnitCosts gated = unit_parameters({32, 32, 128, 4096, 11008}, 3);
  const UnitCosts plain = unit_parameters({12, 12, 64, 768, 3072});
  EXPECT_NEAR(gated.head / gated.neuron, flap["expected"]["gated"], 1e-9);
  EXPECT_NEAR(plain.head / plain.neuron, flap["expected"]["plain"], 1e-9);
}

TEST(UnitCostsTest, SharedKvHeadsAreNoHeadsToSave) {
  const HeadLayout layout{.layers = 2, .heads = 6, .head_dim = 4, .model_dim = 10, .kv_heads = 2};
  const UnitCosts costs = unit_macs(layout, 7);
  EXPECT_EQ(2 * costs.total(12, 0), attention_flops(layout, 12, 7, 4));
  EXPECT_GE(2 * costs.total(5, 0), attention_flops(layout, 5, 7, 4));
  EXPECT_THROW(unit_macs(layout, 0), std::invalid_argument);
  EXPECT_THROW(unit_macs(layout, 7, 4), std::invalid_argument);
}

TEST(CostSearchTest, GoldenBudgets) {
  const auto& golden = testing::golden_case("kwon.mac_search");
  const auto& in = golden["inputs"];
  const UnitCosts costs{in["head_cost"], in["neuron_cost"], 0};
  for (size_t i = 0; i < in["budgets"].size(); ++i) {
    const CostSearch found = search_under_costs(testing::golden_tensor(in["head_importance"]),
                                                testing::golden_tensor(in["neuron_importance"]),
                                                costs, in["budgets"][i]);
    EXPECT_EQ(kept(found.heads), golden["expected"]["kept_heads"][i].get<std::vector<int64_t>>());
    EXPECT_EQ(kept(found.neurons),
              golden["expected"]["kept_neurons"][i].get<std::vector<int64_t>>());
    EXPECT_NEAR(found.importance, golden["expected"]["importance"][i], 1e-12);
    EXPECT_EQ(found.cost, golden["expected"]["cost"][i]);
  }
}

TEST(CostSearchTest, EqualsBruteForceAndNeverExceedsTheBudget) {
  const at::Generator random = at::detail::createCPUGenerator(5);
  const at::Tensor head = at::rand({2, 2}, random, at::kDouble);
  const at::Tensor neuron = at::rand({2, 3}, random, at::kDouble);
  const UnitCosts costs{.head = 3.5, .neuron = 1.25, .fixed = 2};
  const at::Tensor all = subsets(10);
  const at::Tensor importance = at::mv(all, at::cat({head.flatten(), neuron.flatten()}));
  const at::Tensor cost =
      costs.fixed + at::mv(all, at::cat({at::full({4}, costs.head, at::kDouble),
                                         at::full({6}, costs.neuron, at::kDouble)}));
  for (double budget = 2; budget < 26; budget += 0.75) {
    const CostSearch found = search_under_costs(head, neuron, costs, budget);
    EXPECT_NEAR(found.importance, largest_within(importance, cost, budget), 1e-12) << budget;
    EXPECT_LE(found.cost, budget);
    EXPECT_EQ(found.cost,
              costs.total(found.heads.sum().item<double>(), found.neurons.sum().item<double>()));
    EXPECT_EQ(found.heads.sizes(), head.sizes());
  }
  EXPECT_THROW(search_under_costs(head, neuron, costs, 1.9), std::invalid_argument);
  EXPECT_THROW(search_under_costs(-head, neuron, costs, 9), std::invalid_argument);
  EXPECT_FALSE(search_under_costs(head, {}, costs, 9).neurons.defined());
  EXPECT_EQ(search_under_costs(head, {}, costs, 9.1).heads.sum().item<int64_t>(), 2);
}

TEST(LatencyFitTest, GoldenTables) {
  const auto& golden = testing::golden_case("kwon.latency_fit");
  for (size_t i = 0; i < golden["inputs"]["tables"].size(); ++i) {
    const LatencyFit fit = fit_latency(golden["inputs"]["tables"][i].get<std::vector<double>>());
    EXPECT_EQ(fit.threshold, golden["expected"]["threshold"][i]);
    EXPECT_NEAR(fit.constant, golden["expected"]["constant"][i], 1e-12);
    EXPECT_NEAR(fit.slope, golden["expected"]["slope"][i], 1e-12);
  }
  EXPECT_THROW(fit_latency({}), std::invalid_argument);
  EXPECT_THROW(fit_latency({1, NAN}), std::invalid_argument);
  EXPECT_EQ((LatencyFit{2, 1, 0.5}.at(0)), 0);
  EXPECT_EQ((LatencyFit{2, 1, 0.5}.at(4)), 2);
}

struct Small {
  at::Tensor head, neuron;
  LatencyFit head_fit, neuron_fit;
  double budget = 0;

  double latency(const at::Tensor& h, const at::Tensor& n) const {
    double sum = 0;
    for (int64_t l = 0; l < h.size(0); ++l) sum += head_fit.at(h[l].sum().item<int64_t>());
    for (int64_t l = 0; l < n.size(0); ++l) sum += neuron_fit.at(n[l].sum().item<int64_t>());
    return sum;
  }
};

at::Tensor latencies(const at::Tensor& counts, const LatencyFit& fit) {
  return (fit.constant + fit.slope * (counts - static_cast<double>(fit.threshold)).clamp_min(0)) *
         counts.gt(0);
}

// The best of all subsets, for each budget.
std::vector<double> brute_force(const Small& p, const std::vector<double>& budgets) {
  const int64_t heads = p.head.numel(), neurons = p.neuron.numel();
  const at::Tensor all = subsets(heads + neurons);
  const at::Tensor importance = at::mv(all, at::cat({p.head.flatten(), p.neuron.flatten()}));
  const auto counts = [&](int64_t first, const at::Tensor& units) {
    return all.narrow(1, first, units.numel())
        .reshape({all.size(0), units.size(0), units.size(1)})
        .sum(2);
  };
  const at::Tensor latency = latencies(counts(0, p.head), p.head_fit).sum(1) +
                             latencies(counts(heads, p.neuron), p.neuron_fit).sum(1);
  std::vector<double> best;
  for (const double budget : budgets) {
    best.push_back(largest_within(importance, latency, budget + 1e-12));
  }
  return best;
}

TEST(LatencySearchTest, EqualsBruteForceWhereDropsAreThoseOfLeastImportance) {
  const at::Generator random = at::detail::createCPUGenerator(8);
  // The last layer outweighs the first at every count, so the sublayer to drop is never in doubt.
  const at::Tensor weight = at::tensor({1.0, 3.0}, at::kDouble).unsqueeze(1);
  Small p;
  p.head = (at::rand({2, 3}, random, at::kDouble) + 1) * weight;
  p.neuron = (at::rand({2, 2}, random, at::kDouble) + 1) * weight;
  for (const double head_slope : {0.5, 0.0}) {
    for (const int64_t threshold : {1, 2}) {
      p.head_fit = {threshold, 1.0, head_slope};
      p.neuron_fit = {1, 0.75, 0.4};
      const std::vector<double> budgets{0, 0.8, 1.1, 1.75, 2.2, 2.9, 3.5, 4, 4.7, 5.3, 6};
      const std::vector<double> best = brute_force(p, budgets);
      for (size_t i = 0; i < budgets.size(); ++i) {
        p.budget = budgets[i];
        const CostSearch found =
            search_under_latency(p.head, p.neuron, p.head_fit, p.neuron_fit, p.budget);
        EXPECT_NEAR(found.importance, best[i], 1e-12) << p.budget << " " << head_slope;
        EXPECT_LE(found.cost, p.budget + 1e-12);
        EXPECT_LE(p.latency(found.heads, found.neurons), found.cost + 1e-12);
        EXPECT_NEAR((found.heads * p.head).sum().item<double>() +
                        (found.neurons * p.neuron).sum().item<double>(),
                    found.importance, 1e-12);
      }
    }
  }
}

TEST(LatencySearchTest, AnyImportanceStaysWithinTheBudgetAndBelowBruteForce) {
  const at::Generator random = at::detail::createCPUGenerator(9);
  Small p;
  p.head_fit = {2, 1.0, 0.3};
  p.neuron_fit = {1, 0.5, 0.2};
  for (int round = 0; round < 6; ++round) {
    p.head = at::rand({2, 3}, random, at::kDouble);
    p.neuron = at::rand({2, 2}, random, at::kDouble);
    const std::vector<double> budgets{0, 0.6, 1.4, 2.3, 3.1, 4.4};
    const std::vector<double> best = brute_force(p, budgets);
    for (size_t i = 0; i < budgets.size(); ++i) {
      p.budget = budgets[i];
      const CostSearch found =
          search_under_latency(p.head, p.neuron, p.head_fit, p.neuron_fit, p.budget);
      EXPECT_LE(p.latency(found.heads, found.neurons), p.budget + 1e-12);
      EXPECT_LE(found.importance, best[i] + 1e-12);
    }
  }
  EXPECT_EQ(search_under_latency(p.head, {}, p.head_fit, {}, 1).heads.sum().item<int64_t>(), 2);
  EXPECT_THROW(search_under_latency(p.head, {}, p.head_fit, {}, -1), std::invalid_argument);
}

}  // namespace
}  // namespace headkit
