#include "headkit/pruners/flap_joint.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/pruners/mean_activation.h"
#include "headkit/pruners/mean_output.h"
#include "headkit/scorers/flap.h"
#include "pruners/model_cost.h"

namespace headkit {
namespace {

constexpr char kName[] = "flap_joint";

void check_biases(GatedModel& model) {
  for (int64_t layer = 0; layer < model.neurons().size(0); ++layer) {
    HEADKIT_CHECK(model.feed_forward(layer).out_bias.defined(), kName,
                  "feed-forward blocks with an output bias, for means of neurons (means = none "
                  "does without)",
                  "none in layer ", layer);
  }
}

// Mean outputs of heads from the means of their channels [L, H, dh].
at::Tensor mean_outputs(GatedModel& model, const at::Tensor& channels) {
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  at::Tensor outputs = at::zeros({layout.layers, layout.heads, layout.model_dim}, at::kDouble);
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    const std::vector<int64_t> heads = present.layer_heads(layer);
    if (heads.empty()) continue;
    const at::Tensor index = at::tensor(heads, at::kLong);
    const at::Tensor weight = model.attention(layer).o.detach().to(at::kCPU, at::kDouble);
    outputs[layer].index_copy_(
        0, index,
        at::einsum("dhc,hc->hd", {weight.reshape({weight.size(0), index.size(0), layout.head_dim}),
                                  channels[layer].index_select(0, index)}));
  }
  return outputs;
}

// The best units, heads before neurons of the same score, as long as all of them fit the budget.
CostSearch best_that_fit(const ModelCost& cost, const at::Tensor& heads,
                         const HeadMask& heads_there, const at::Tensor& neurons,
                         const at::Tensor& neurons_there) {
  CostSearch found;
  found.heads = at::zeros_like(heads_there.keep());
  if (neurons.defined()) found.neurons = at::zeros_like(neurons_there);
  at::Tensor values = heads.flatten(), there = heads_there.keep().flatten();
  if (neurons.defined()) {
    values = at::cat({values, neurons.flatten()});
    there = at::cat({there, neurons_there.flatten()});
  }
  const at::Tensor order = std::get<1>(values.sort(/*stable=*/true, 0, /*descending=*/true));
  const auto* unit = order.const_data_ptr<int64_t>();
  const int64_t head_count = heads.numel();
  double kept_heads = 0, kept_neurons = 0;
  // Shares of a sum of the same costs are rounded.
  const double allowed = cost.budget() * (1 + 1e-12);
  for (int64_t i = 0; i < order.numel(); ++i) {
    if (!there[unit[i]].item<bool>()) continue;
    const bool is_head = unit[i] < head_count;
    (is_head ? kept_heads : kept_neurons) += 1;
    if (cost.units().total(kept_heads, kept_neurons) > allowed) break;
    if (is_head) {
      found.heads.flatten()[unit[i]] = true;
    } else {
      found.neurons.flatten()[unit[i] - head_count] = true;
    }
  }
  found.cost = cost.of(found.heads, found.neurons);
  return found;
}

}  // namespace

StaticPruning prune_flap_jointly(GatedModel& model, const DataSource& data, const Objective&,
                                 const FlapJointOptions& options) {
  HEADKIT_CHECK(options.cost == "parameters" || options.cost == "macs", kName,
                "cost parameters or macs", "'", options.cost, "'");
  HEADKIT_CHECK(options.means == "dense" || options.means == "pruned" || options.means == "none",
                kName, "means dense, pruned or none", "'", options.means, "'");
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const bool neurons = options.neurons && model.gated_units().neurons;
  if (neurons && options.means != "none") check_biases(model);
  const ModelCost cost(kName, model, data,
                       {.keep = options.keep,
                        .neurons = neurons,
                        .tokens = options.tokens,
                        .parameters = options.cost == "parameters"});
  const HeadMask heads_there = model.heads();
  const ChannelFluctuation channels = channel_fluctuation(model, data, options.progress);
  NeuronFluctuation of_neurons;
  at::Tensor neurons_there, neuron_scores;
  if (neurons) {
    neurons_there = model.neurons();
    of_neurons = neuron_fluctuation(model, data, options.progress);
    neuron_scores = standardised_neurons(of_neurons.score, neurons_there);
  }
  const CostSearch found =
      best_that_fit(cost, head_fluctuation(channels.score, heads_there, {.square = options.square}),
                    heads_there, neuron_scores, neurons_there);

  StaticPruning pruning{.heads = HeadMask(found.heads)};
  GateSet& gates = pruning.gates;
  if (neurons) gates.neurons = found.neurons.to(at::kDouble);
  if (options.means == "dense") {
    gates.dropped_output = mean_outputs(model, channels.mean);
    pruning.dropped_neurons = of_neurons.mean;
  } else if (options.means == "pruned") {
    const MeanOutputOptions at_pruned{.gates = cost.in_model_dtype(pruning.all_gates())};
    gates.dropped_output = mean_head_outputs(model, data, at_pruned);
    if (neurons) pruning.dropped_neurons = mean_neuron_activations(model, data, at_pruned);
  }
  gates = cost.in_model_dtype(gates);
  Json details = {{"method", kName}, {"square", options.square}, {"means", options.means}};
  details.update(cost.describe(found));
  pruning.details = details.dump();
  return pruning;
}

}  // namespace headkit
