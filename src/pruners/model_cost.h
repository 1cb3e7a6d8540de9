#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "core/json.h"
#include "headkit/core/flops.h"
#include "headkit/models/gated_model.h"
#include "headkit/pruners/cost_search.h"

namespace headkit {

struct ModelCostOptions {
  double keep = 0.5;        // share of the original model's cost
  bool neurons = false;     // neurons may go too
  double tokens = 0;        // 0 = mean over the data
  bool parameters = false;  // instead of MACs
  std::vector<double> head_latency = {}, neuron_latency = {};
  double other_latency = 0;
};

/// A budget for heads and neurons of a model, in MACs, in parameters or in measured time.
class ModelCost {
 public:
  /// Throws std::invalid_argument for a share outside [0, 1], tables that do not fit the model, or
  /// a budget below what the units that may go can save.
  ModelCost(const char* operation, GatedModel& model, const DataSource& data,
            const ModelCostOptions& options);

  /// The units of largest importance within the budget, by the fit for latencies, then held to the
  /// table itself. `heads` [L, H], `neurons` [L, F] or undefined.
  CostSearch search(const at::Tensor& heads, const at::Tensor& neurons) const;
  /// Of units [L, H] and [L, F] (undefined: all that are there).
  double of(const at::Tensor& heads, const at::Tensor& neurons) const;
  double budget() const { return budget_; }
  double dense() const { return dense_; }
  const UnitCosts& units() const { return units_; }
  /// "unit", "cost", "budget", "dense", "tokens", and the counts of units.
  Json describe(const CostSearch& found) const;
  /// The gates in the dtype that the model takes.
  GateSet in_model_dtype(GateSet gates) const;

 private:
  bool by_latency() const { return !head_table_.empty(); }
  double table_latency(const at::Tensor& heads, const at::Tensor& neurons) const;

  const char* operation_;
  const char* unit_ = "MACs";
  HeadLayout layout_;
  HeadMask heads_there_;
  at::Tensor neurons_there_;  // undefined where neurons stay
  UnitCosts units_;
  std::vector<double> head_table_, neuron_table_;  // entry i: latency with i units, 0 .. all
  double other_ = 0, tokens_ = 0, dense_ = 0, budget_ = 0;
  bool is_double_ = false;
};

}  // namespace headkit
