#include "headkit/pruners/bottom_up.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/pruners/cost_search.h"
#include "headkit/scorers/fisher.h"
#include "pruners/dense_walk.h"
#include "pruners/lent_weights.h"
#include "pruners/model_cost.h"
#include "pruners/output_refit.h"

namespace headkit {
namespace {

constexpr char kName[] = "bottom_up";

at::Tensor in_double(const at::Tensor& tensor) { return tensor.detach().to(at::kCPU, at::kDouble); }

// Mean squared output of each unit, sum over its channels c of mean_t x_c^2 |W_c|^2.
at::Tensor output_energy(const ProjectionMoments& moments, const at::Tensor& weight,
                         int64_t width) {
  const at::Tensor by_channel =
      moments.gram.diagonal() / moments.tokens * in_double(weight).square().sum(0);
  return by_channel.reshape({-1, width}).sum(1);
}

// One kind of unit through all layers.
struct Kind {
  at::Tensor there;   // bool [L, N]
  at::Tensor keep;    // bool [L, N], decided so far
  at::Tensor energy;  // double [L, N], at the dense model
  double cost = 0;    // of a unit
  int64_t width = 1;  // channels of a unit

  // Importance of the units that are there in the layers from `first`.
  at::Tensor open_importance(const at::Tensor& fisher, int64_t first,
                             const BottomUpOptions& options) const {
    const at::Tensor all = options.prediction * 0.5 * fisher + options.representation * energy;
    return all.slice(0, first).masked_select(there.slice(0, first));
  }
  void choose(int64_t layer, const at::Tensor& chosen) {
    const int64_t count = there[layer].sum().item<int64_t>();
    keep[layer].masked_scatter_(there[layer], chosen.narrow(0, 0, count));
  }
  double spent(int64_t layer) const { return cost * keep[layer].sum().item<double>(); }
};

}  // namespace

StaticPruning prune_bottom_up(GatedModel& model, const DataSource& data, const Objective& objective,
                              const BottomUpOptions& options) {
  HEADKIT_CHECK(options.prediction >= 0 && options.representation >= 0 && options.ridge >= 0, kName,
                "weights and a ridge of at least 0", options.prediction, ", ",
                options.representation, ", ", options.ridge);
  HEADKIT_CHECK(options.refit_examples >= 0, kName, "examples of at least 0",
                options.refit_examples);
  const auto mode = model.evaluating();
  const HeadLayout layout = model.layout();
  const bool neurons = options.neurons && model.gated_units().neurons;
  const ModelCost cost(kName, model, data,
                       {.keep = options.keep, .neurons = neurons, .tokens = options.tokens});
  check_own_outputs(kName, model, neurons);

  Kind heads, wires;
  heads.there = model.heads().keep();
  heads.keep = heads.there.clone();
  heads.energy = at::zeros(heads.there.sizes(), at::kDouble);
  heads.cost = cost.units().head;
  heads.width = layout.head_dim;
  if (neurons) {
    wires.there = model.neurons();
    HEADKIT_CHECK(wires.there.size(0) == layout.layers, kName,
                  "a feed-forward block in every layer", wires.there.size(0), " of ",
                  layout.layers);
    wires.keep = wires.there.clone();
    wires.energy = at::zeros(wires.there.sizes(), at::kDouble);
    wires.cost = cost.units().neuron;
  }
  {
    DenseWalk dense(model, data, options.refit_examples);
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      dense.begin(layer);
      heads.energy[layer].masked_scatter_(
          heads.there[layer],
          output_energy(dense.attention({}), model.attention(layer).o, heads.width));
      if (neurons) {
        wires.energy[layer].masked_scatter_(
            wires.there[layer],
            output_energy(dense.feed_forward({}), model.feed_forward(layer).out, 1));
      }
      dense.end({});
    }
  }

  StaticPruning pruning;
  double left = cost.budget() - cost.units().fixed;
  int64_t done = 0;
  const int64_t sublayers = layout.layers * (neurons ? 2 : 1);
  const auto tell = [&] {
    if (options.progress) options.progress(++done, sublayers);
  };
  const UnitCosts prices{heads.cost, wires.cost, 0};
  LentWeights lent;
  DenseWalk walk(model, data, options.refit_examples);
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    walk.begin(layer);
    const FisherInformation fisher =
        fisher_information(model, data, objective, {.neurons = neurons});
    const auto decide = [&](int64_t first_heads) {
      const CostSearch found = search_under_costs(
          heads.open_importance(fisher.heads, first_heads, options),
          neurons ? wires.open_importance(fisher.neurons, layer, options) : at::Tensor(), prices,
          std::max(left, 0.0));
      return found;
    };
    const auto replace = [&](Kind& kind, const ProjectionMoments& moments, const at::Tensor& weight,
                             const at::Tensor& bias, bool feed_forward) {
      const at::Tensor places =
          kind.keep[layer].masked_select(kind.there[layer]).nonzero().flatten();
      OutputRefit found =
          refit_output(moments, weight, bias, channels_of(places, kind.width), options.ridge);
      found.layer = layer;
      found.feed_forward = feed_forward;
      lent.write(weight, found.weight);
      if (bias.defined()) lent.write(bias, found.bias);
      left -= kind.spent(layer);
      pruning.refits.push_back(std::move(found));
      tell();
    };

    heads.choose(layer, decide(layer).heads);
    const AttentionWeights attention = model.attention(layer);
    replace(heads, walk.attention({}), attention.o, attention.o_bias, false);
    if (neurons) {
      wires.choose(layer, decide(layer + 1).neurons);
      const FeedForwardWeights feed_forward = model.feed_forward(layer);
      replace(wires, walk.feed_forward({}), feed_forward.out, feed_forward.out_bias, true);
    }
    walk.end({});
  }
  pruning.heads = HeadMask(heads.keep);
  if (neurons) pruning.gates.neurons = wires.keep.to(at::kDouble);
  CostSearch counts;
  counts.heads = heads.keep;
  counts.neurons = neurons ? wires.keep : at::Tensor();
  Json details = {{"method", kName},
                  {"objective", objective.name()},
                  {"ridge", options.ridge},
                  {"prediction", options.prediction},
                  {"representation", options.representation},
                  {"refit_examples", walk.examples()}};
  details.update(cost.describe(counts));
  pruning.details = details.dump();
  return pruning;
}

}  // namespace headkit
