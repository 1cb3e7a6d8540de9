#include "headkit/pruners/cost_search.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <optional>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "cost_search";
// A budget is often a share of a sum of the same costs: what rounding adds is no excess.
constexpr double kSlack = 1e-12;

at::Tensor checked_importance(const at::Tensor& importance, const char* what) {
  if (!importance.defined()) return at::zeros({0}, at::kDouble);
  const at::Tensor values = importance.detach().to(at::kCPU, at::kDouble).contiguous();
  HEADKIT_CHECK(values.isfinite().all().item<bool>() && values.ge(0).all().item<bool>(), kName,
                std::string("importance of ") + what + ", finite and >= 0", "other values");
  return values;
}

// Units by falling importance, and the sums of the first of them.
struct Ranked {
  std::vector<int64_t> order;
  std::vector<double> sums{0};

  explicit Ranked(const at::Tensor& importance, const std::vector<int64_t>& of = {}) : order(of) {
    const double* value = importance.const_data_ptr<double>();
    std::stable_sort(order.begin(), order.end(),
                     [&](int64_t a, int64_t b) { return value[a] > value[b]; });
    for (const int64_t unit : order) sums.push_back(sums.back() + value[unit]);
  }
  int64_t count() const { return static_cast<int64_t>(order.size()); }
};

int64_t affordable(double budget, double cost, int64_t count) {
  if (budget < 0) return -1;
  if (cost <= 0) return count;
  return std::min(count, static_cast<int64_t>(std::floor(budget / cost * (1 + kSlack) + kSlack)));
}

struct Counts {
  int64_t heads = 0, neurons = 0;
  double importance = 0;
};

// The best of two kinds of uniform cost; none if the budget is negative.
std::optional<Counts> best_counts(const Ranked& heads, double head_cost, const Ranked& neurons,
                                  double neuron_cost, double budget) {
  std::optional<Counts> best;
  const int64_t most = affordable(budget, head_cost, heads.count());
  for (int64_t n = 0; n <= most; ++n) {
    const double left = std::max(budget - static_cast<double>(n) * head_cost, 0.0);
    const int64_t k = affordable(left, neuron_cost, neurons.count());
    const double importance = heads.sums[n] + neurons.sums[k];
    if (!best || importance > best->importance) best = {n, k, importance};
  }
  return best;
}

at::Tensor chosen(const at::Tensor& importance, const std::vector<int64_t>& units) {
  at::Tensor keep = at::zeros(importance.sizes(), at::kBool);
  bool* flags = keep.mutable_data_ptr<bool>();
  for (const int64_t unit : units) flags[unit] = true;
  return keep;
}

std::vector<int64_t> first_units(const Ranked& ranked, int64_t count) {
  return {ranked.order.begin(), ranked.order.begin() + count};
}

std::vector<int64_t> all_units(int64_t count) {
  std::vector<int64_t> units(static_cast<size_t>(count));
  std::iota(units.begin(), units.end(), 0);
  return units;
}

// The sublayers of one kind when some of them are dropped: units that the constant pays for, and
// the others.
struct Kind {
  std::vector<int64_t> free;
  double free_importance = 0;
  double constant = 0;
  std::vector<int64_t> priced;
};

// Rows of `importance` [L, N] by rising sum.
std::vector<int64_t> least_first(const at::Tensor& importance) {
  if (importance.dim() < 2) return {};
  const at::Tensor sums = importance.sum(1);
  std::vector<int64_t> rows = all_units(importance.size(0));
  const double* sum = sums.const_data_ptr<double>();
  std::stable_sort(rows.begin(), rows.end(), [&](int64_t a, int64_t b) { return sum[a] < sum[b]; });
  return rows;
}

Kind kept_sublayers(const at::Tensor& importance, const std::vector<int64_t>& rows, int64_t dropped,
                    const LatencyFit& fit) {
  Kind kind;
  const int64_t width = importance.size(-1);
  const int64_t free = fit.slope > 0 ? std::min(fit.threshold, width) : width;
  for (size_t i = static_cast<size_t>(dropped); i < rows.size(); ++i) {
    std::vector<int64_t> units = all_units(width);
    for (int64_t& unit : units) unit += rows[i] * width;
    const Ranked ranked(importance, units);
    kind.free.insert(kind.free.end(), ranked.order.begin(), ranked.order.begin() + free);
    kind.free_importance += ranked.sums[static_cast<size_t>(free)];
    kind.priced.insert(kind.priced.end(), ranked.order.begin() + free, ranked.order.end());
    kind.constant += fit.constant;
  }
  std::sort(kind.priced.begin(), kind.priced.end());
  return kind;
}

}  // namespace

CostSearch search_under_costs(const at::Tensor& head, const at::Tensor& neuron,
                              const UnitCosts& costs, double budget) {
  HEADKIT_CHECK(costs.head >= 0 && costs.neuron >= 0 && costs.fixed >= 0, kName,
                "costs of at least 0", costs.head, ", ", costs.neuron, ", ", costs.fixed);
  HEADKIT_CHECK(budget >= costs.fixed, kName,
                "a budget of at least what no unit can save, " + std::to_string(costs.fixed),
                budget);
  const at::Tensor head_values = checked_importance(head, "heads");
  const at::Tensor neuron_values = checked_importance(neuron, "neurons");
  const Ranked heads(head_values, all_units(head_values.numel()));
  const Ranked neurons(neuron_values, all_units(neuron_values.numel()));
  const Counts best = *best_counts(heads, costs.head, neurons, costs.neuron, budget - costs.fixed);
  CostSearch found;
  found.heads = chosen(head_values, first_units(heads, best.heads));
  if (neuron.defined()) found.neurons = chosen(neuron_values, first_units(neurons, best.neurons));
  found.importance = best.importance;
  found.cost = costs.total(static_cast<double>(best.heads), static_cast<double>(best.neurons));
  return found;
}

double LatencyFit::at(int64_t units) const {
  if (units == 0) return 0;
  return constant + slope * static_cast<double>(std::max<int64_t>(units - threshold, 0));
}

LatencyFit fit_latency(const std::vector<double>& table) {
  HEADKIT_CHECK(!table.empty(), kName, "a latency table with at least one entry", "none");
  for (const double entry : table) {
    HEADKIT_CHECK(std::isfinite(entry) && entry >= 0, kName, "latencies, finite and >= 0", entry);
  }
  const auto count = static_cast<int64_t>(table.size());
  LatencyFit best;
  double least = std::numeric_limits<double>::infinity();
  double sum = 0, squares = 0;
  for (int64_t threshold = 1; threshold <= count; ++threshold) {
    sum += table[threshold - 1];
    squares += table[threshold - 1] * table[threshold - 1];
    const double constant = sum / static_cast<double>(threshold);
    double error = squares - constant * sum, xy = 0, xx = 0, yy = 0;
    for (int64_t i = threshold; i < count; ++i) {
      const auto x = static_cast<double>(i - threshold + 1);
      const double y = table[i] - constant;
      xy += x * y;
      xx += x * x;
      yy += y * y;
    }
    const double slope = xx > 0 ? std::max(0.0, xy / xx) : 0;
    error += yy - 2 * slope * xy + slope * slope * xx;
    // Ties are those of exact arithmetic.
    if (best.threshold == 0 || error < least - 1e-12 * (1 + least)) {
      least = error;
      best = {threshold, constant, slope};
    }
  }
  return best;
}

CostSearch search_under_latency(const at::Tensor& head, const at::Tensor& neuron,
                                const LatencyFit& head_latency, const LatencyFit& neuron_latency,
                                double budget) {
  HEADKIT_CHECK(head.defined() && head.dim() == 2 && (!neuron.defined() || neuron.dim() == 2),
                kName, "importance of shape [layers, units]", "another shape");
  HEADKIT_CHECK(budget >= 0 && std::isfinite(budget), kName, "a budget of at least 0", budget);
  const at::Tensor head_values = checked_importance(head, "heads");
  const at::Tensor neuron_values = checked_importance(neuron, "neurons");
  const std::vector<int64_t> head_rows = least_first(head_values);
  const std::vector<int64_t> neuron_rows = least_first(neuron_values);
  CostSearch found;
  found.importance = -1;
  for (size_t a = 0; a <= head_rows.size(); ++a) {
    const Kind attention =
        kept_sublayers(head_values, head_rows, static_cast<int64_t>(a), head_latency);
    const Ranked heads(head_values, attention.priced);
    for (size_t f = 0; f <= neuron_rows.size(); ++f) {
      const Kind feed_forward =
          kept_sublayers(neuron_values, neuron_rows, static_cast<int64_t>(f), neuron_latency);
      const Ranked neurons(neuron_values, feed_forward.priced);
      const double left = budget - attention.constant - feed_forward.constant;
      const auto counts =
          best_counts(heads, head_latency.slope, neurons, neuron_latency.slope, left);
      if (!counts) continue;
      const double importance =
          attention.free_importance + feed_forward.free_importance + counts->importance;
      if (importance <= found.importance) continue;
      std::vector<int64_t> kept_heads = first_units(heads, counts->heads);
      kept_heads.insert(kept_heads.end(), attention.free.begin(), attention.free.end());
      std::vector<int64_t> kept_neurons = first_units(neurons, counts->neurons);
      kept_neurons.insert(kept_neurons.end(), feed_forward.free.begin(), feed_forward.free.end());
      found.heads = chosen(head_values, kept_heads);
      if (neuron.defined()) found.neurons = chosen(neuron_values, kept_neurons);
      found.importance = importance;
      found.cost = attention.constant + feed_forward.constant +
                   static_cast<double>(counts->heads) * head_latency.slope +
                   static_cast<double>(counts->neurons) * neuron_latency.slope;
    }
  }
  return found;
}

}  // namespace headkit
