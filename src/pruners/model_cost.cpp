#include "pruners/model_cost.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr double kSlack = 1e-12;  // a share of a sum is rounded

// Latency with 0, 1, .. count units from entries at evenly many units, by linear interpolation.
std::vector<double> full_table(const char* operation, const std::vector<double>& entries,
                               int64_t count) {
  const auto size = static_cast<int64_t>(entries.size());
  HEADKIT_CHECK(size >= 1 && size <= count && count % size == 0, operation,
                "a latency table with entries that divide " + std::to_string(count) + " units",
                size);
  for (const double entry : entries) {
    HEADKIT_CHECK(std::isfinite(entry) && entry > 0, operation, "latencies above 0", entry);
  }
  std::vector<double> table{0};
  const int64_t step = count / size;
  for (int64_t units = 1; units <= count; ++units) {
    const int64_t above = (units - 1) / step;
    const double share = static_cast<double>(units - above * step) / static_cast<double>(step);
    const double below = above == 0 ? entries[0] : entries[above - 1];
    table.push_back(below + share * (entries[above] - below));
  }
  return table;
}

at::Tensor at_places(const at::Tensor& values, const at::Tensor& flags) {
  return values.masked_select(flags);
}

at::Tensor back(const at::Tensor& chosen, const at::Tensor& flags) {
  return at::zeros_like(flags).masked_scatter(flags, chosen);
}

}  // namespace

ModelCost::ModelCost(const char* operation, GatedModel& model, const DataSource& data,
                     const ModelCostOptions& options)
    : operation_(operation), layout_(model.layout()), heads_there_(model.heads()) {
  HEADKIT_CHECK(options.keep >= 0 && options.keep <= 1, operation, "a share to keep in [0, 1]",
                options.keep);
  int64_t feed_forward_layers = layout_.feed_forward > 0 ? layout_.layers : 0;
  int64_t matrices = 2;
  if (model.gated_units().neurons) {
    const at::Tensor there = model.neurons();
    feed_forward_layers = there.size(0);
    HEADKIT_CHECK(there.size(1) == layout_.feed_forward, operation,
                  "as many neurons as the layout has", there.size(1));
    if (options.neurons) neurons_there_ = there;
    if (model.feed_forward(0).up.defined()) matrices = 3;
  }
  const auto all_neurons = static_cast<double>(feed_forward_layers * layout_.feed_forward);
  const auto all_heads = static_cast<double>(layout_.total_heads());

  const c10::NoGradGuard no_grad;
  double tokens = 0;
  int64_t examples = 0;
  bool first = true;
  data.for_each([&](const Batch& batch) {
    const int64_t size = batch_size(batch);
    if (size == 0 || (options.tokens > 0 && !first)) return;
    first = false;
    const ModelState state = model.embed(batch);
    is_double_ = state.hidden.scalar_type() == at::kDouble;
    tokens += state.attention_mask.defined() ? state.attention_mask.sum().item<double>()
                                             : static_cast<double>(size * state.hidden.size(1));
    examples += size;
  });
  HEADKIT_CHECK(examples > 0, operation, "data with at least one example", "none");
  tokens_ = options.tokens > 0 ? options.tokens : tokens / static_cast<double>(examples);

  if (!options.head_latency.empty()) {
    unit_ = "latency";
    head_table_ = full_table(operation, options.head_latency, layout_.heads);
    HEADKIT_CHECK(!options.neurons || !options.neuron_latency.empty(), operation,
                  "neuron_latency beside head_latency, or neurons = false", "none");
    if (!options.neuron_latency.empty()) {
      neuron_table_ = full_table(operation, options.neuron_latency, layout_.feed_forward);
    }
    HEADKIT_CHECK(std::isfinite(options.other_latency) && options.other_latency >= 0, operation,
                  "other_latency of at least 0", options.other_latency);
    other_ = options.other_latency;
    const double blocks =
        neuron_table_.empty() ? 0 : static_cast<double>(feed_forward_layers) * neuron_table_.back();
    dense_ = other_ + static_cast<double>(layout_.layers) * head_table_.back() + blocks;
    if (!neurons_there_.defined()) other_ += blocks;
    units_.fixed = other_;
  } else {
    HEADKIT_CHECK(options.neuron_latency.empty(), operation, "head_latency beside neuron_latency",
                  "none");
    units_ = options.parameters ? unit_parameters(layout_, matrices)
                                : unit_macs(layout_, tokens_, matrices);
    if (options.parameters) unit_ = "parameters";
    dense_ = units_.total(all_heads, all_neurons);
    if (!neurons_there_.defined()) units_.fixed += all_neurons * units_.neuron;
  }
  budget_ = options.keep * dense_;
  if (budget_ < units_.fixed * (1 - kSlack)) {
    throw std::invalid_argument(error_message(
        operation,
        std::string("a share that ") + (neurons_there_.defined() ? "heads and neurons" : "heads") +
            " can reach, keep of at least " + std::to_string(units_.fixed / dense_),
        options.keep, ": the rest of the model costs more"));
  }
  budget_ = std::max(budget_, units_.fixed);
}

double ModelCost::table_latency(const at::Tensor& heads, const at::Tensor& neurons) const {
  double sum = other_;
  const auto add = [&](const at::Tensor& units, const std::vector<double>& table) {
    for (int64_t layer = 0; layer < units.size(0); ++layer) {
      sum += table[static_cast<size_t>(units[layer].sum().item<int64_t>())];
    }
  };
  add(heads, head_table_);
  if (neurons_there_.defined()) add(neurons, neuron_table_);
  return sum;
}

double ModelCost::of(const at::Tensor& heads, const at::Tensor& neurons) const {
  if (by_latency()) return table_latency(heads, neurons);
  return units_.total(heads.sum().item<double>(),
                      neurons_there_.defined() ? neurons.sum().item<double>() : 0);
}

CostSearch ModelCost::search(const at::Tensor& heads, const at::Tensor& neurons) const {
  const at::Tensor present = heads_there_.keep();
  CostSearch found;
  if (!by_latency()) {
    found = search_under_costs(
        at_places(heads, present),
        neurons_there_.defined() ? at_places(neurons, neurons_there_) : at::Tensor(), units_,
        budget_);
    found.heads = back(found.heads, present);
    if (neurons_there_.defined()) found.neurons = back(found.neurons, neurons_there_);
    return found;
  }
  const LatencyFit head_fit = fit_latency({head_table_.begin() + 1, head_table_.end()});
  const LatencyFit neuron_fit = neurons_there_.defined()
                                    ? fit_latency({neuron_table_.begin() + 1, neuron_table_.end()})
                                    : LatencyFit{};
  // The fit may be below the table: then the search gets less until the table agrees.
  double allowed = budget_ - other_;
  while (true) {
    found = search_under_latency(heads, neurons_there_.defined() ? neurons : at::Tensor(), head_fit,
                                 neuron_fit, allowed);
    found.heads = found.heads.logical_and(present);
    if (neurons_there_.defined()) found.neurons = found.neurons.logical_and(neurons_there_);
    found.cost = table_latency(found.heads, found.neurons);
    if (found.cost <= budget_ * (1 + kSlack)) return found;
    const double excess = found.cost - budget_;
    allowed = std::max(allowed - std::max(excess, 1e-3 * (budget_ - other_)), 0.0);
  }
}

Json ModelCost::describe(const CostSearch& found) const {
  Json details = {{"unit", unit_},     {"cost", of(found.heads, found.neurons)},
                  {"budget", budget_}, {"dense", dense_},
                  {"tokens", tokens_}, {"heads", found.heads.sum().item<int64_t>()}};
  if (found.neurons.defined()) details["neurons"] = found.neurons.sum().item<int64_t>();
  return details;
}

GateSet ModelCost::in_model_dtype(GateSet gates) const {
  const at::ScalarType dtype = is_double_ ? at::kDouble : at::kFloat;
  if (gates.heads.defined()) gates.heads = gates.heads.to(dtype);
  if (gates.neurons.defined()) gates.neurons = gates.neurons.to(dtype);
  if (gates.dropped_output.defined()) gates.dropped_output = gates.dropped_output.to(dtype);
  return gates;
}

}  // namespace headkit
