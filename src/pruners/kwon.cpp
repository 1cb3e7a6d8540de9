#include "headkit/pruners/kwon.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/core/flops.h"
#include "headkit/pruners/cost_search.h"
#include "headkit/pruners/least_squares.h"
#include "headkit/pruners/mean_output.h"
#include "headkit/pruners/rearrangement.h"
#include "headkit/scorers/fisher.h"
#include "pruners/dense_walk.h"
#include "pruners/model_cost.h"

namespace headkit {
namespace {

constexpr char kName[] = "kwon";

at::Tensor places_of(const at::Tensor& flags) { return flags.nonzero().flatten(); }

// Keeps as many units of each layer as `keep` does, which of them by `gram`. Rows [L, N].
template <typename Gram>
at::Tensor rearranged(const at::Tensor& keep, const at::Tensor& present, const Gram& gram) {
  at::Tensor better = keep.clone();
  for (int64_t layer = 0; layer < keep.size(0); ++layer) {
    const at::Tensor there = places_of(present[layer]);
    const int64_t closed = there.size(0) - keep[layer].sum().item<int64_t>();
    if (closed == 0 || closed == there.size(0)) continue;
    at::Tensor row = present[layer].clone();
    for (const int64_t place : rearrange_closed(gram(layer, there), closed)) {
      row[there[place].item<int64_t>()] = false;
    }
    better[layer].copy_(row);
  }
  return better;
}

// Products of the outputs of units: `moments` of channels, `weight` [D, n], `width` channels a
// unit. Sum over channels c of i and d of j of gram[c, d] <W_c, W_d>.
at::Tensor unit_gram(const ProjectionMoments& moments, const at::Tensor& weight, int64_t width) {
  const at::Tensor products = moments.gram * at::mm(weight.t(), weight);
  const int64_t units = weight.size(1) / width;
  return products.reshape({units, width, units, width}).sum({1, 3});
}

at::Tensor unit_cross(const ProjectionMoments& moments, const at::Tensor& weight, int64_t width) {
  return (moments.cross * weight).sum(0).reshape({-1, width}).sum(1);
}

struct Tuned {
  at::Tensor scales;  // of the units that stay
  bool rejected = false;
};

Tuned tuned_scales(const ProjectionMoments& moments, const at::Tensor& weight, int64_t width,
                   const at::Tensor& kept, const KwonOptions& options) {
  const at::Tensor w = weight.detach().to(at::kCPU, at::kDouble);
  const at::Tensor gram = unit_gram(moments, w, width).index_select(0, kept).index_select(1, kept);
  const at::Tensor cross = unit_cross(moments, w, width).index_select(0, kept);
  Tuned tuned;
  tuned.scales = tune_mask(gram, cross, options.ridge * gram.diagonal().mean().item<double>());
  tuned.rejected = !tuned.scales.isfinite().all().item<bool>() ||
                   tuned.scales.abs().max().item<double>() > options.largest_scale;
  if (tuned.rejected) tuned.scales = at::ones_like(tuned.scales);
  return tuned;
}

}  // namespace

StaticPruning prune_kwon(GatedModel& model, const DataSource& data, const Objective& objective,
                         const KwonOptions& options) {
  HEADKIT_CHECK(options.ridge >= 0 && options.largest_scale >= 1 && options.tune_examples >= 0,
                kName, "a ridge of at least 0, a largest scale of at least 1, and examples >= 0",
                options.ridge, ", ", options.largest_scale, ", ", options.tune_examples);
  const auto mode = model.evaluating();
  const bool neurons = options.neurons && model.gated_units().neurons;
  const ModelCost cost(kName, model, data,
                       {.keep = options.keep,
                        .neurons = neurons,
                        .tokens = options.tokens,
                        .head_latency = options.head_latency,
                        .neuron_latency = options.neuron_latency,
                        .other_latency = options.other_latency});
  int64_t done = 0;
  const auto tell = [&] {
    if (options.progress) options.progress(++done, -1);
  };
  const FisherInformation fisher =
      fisher_information(model, data, objective,
                         {.neurons = neurons,
                          .keep_gradients = neurons && options.rearrange,
                          .progress = [&](int64_t, int64_t) { tell(); }});
  CostSearch found = cost.search(fisher.heads, neurons ? fisher.neurons : at::Tensor());
  const at::Tensor heads_there = model.heads().keep();
  const at::Tensor neurons_there = neurons ? model.neurons() : at::Tensor();
  if (options.rearrange) {
    found.heads = rearranged(found.heads, heads_there, [&](int64_t layer, const at::Tensor& there) {
      return fisher.head_blocks[layer].index_select(0, there).index_select(1, there);
    });
  }
  if (options.rearrange && neurons) {
    found.neurons =
        rearranged(found.neurons, neurons_there, [&](int64_t layer, const at::Tensor& there) {
          const at::Tensor g = fisher.neuron_gradients.select(1, layer).index_select(1, there);
          return at::mm(g.t(), g);
        });
  }

  StaticPruning pruning{.heads = HeadMask(found.heads)};
  GateSet gates;
  gates.heads = found.heads.to(at::kDouble);
  if (neurons) gates.neurons = found.neurons.to(at::kDouble);
  if (options.compensate) {
    gates.dropped_output = mean_head_outputs(model, data, {.gates = gates}).to(at::kDouble);
  }
  Json rejected = Json::array();
  if (options.tune) {
    DenseWalk walk(model, data, options.tune_examples);
    const int64_t width = model.layout().head_dim;
    const auto as_run = [&] { return cost.in_model_dtype(gates); };
    const auto tune = [&](at::Tensor row, const at::Tensor& there, const ProjectionMoments& moments,
                          const at::Tensor& weight, int64_t channels, const char* what,
                          int64_t layer) {
      const at::Tensor present = places_of(there);
      const at::Tensor kept = places_of(row.index_select(0, present));
      if (kept.size(0) == 0) return;
      const Tuned tuned = tuned_scales(moments, weight, channels, kept, options);
      if (tuned.rejected) rejected.push_back({{"layer", layer}, {"block", what}});
      row.index_copy_(0, present.index_select(0, kept), tuned.scales);
    };
    for (int64_t layer = 0; layer < model.layout().layers; ++layer) {
      walk.begin(layer);
      // With compensation a scale weighs what a head adds beside its mean.
      const ProjectionMoments moments = walk.attention(as_run());
      tune(gates.heads[layer], heads_there[layer], options.compensate ? moments.centred() : moments,
           model.attention(layer).o, width, "attention", layer);
      if (neurons) {
        tune(gates.neurons[layer], neurons_there[layer], walk.feed_forward(as_run()),
             model.feed_forward(layer).out, 1, "feed_forward", layer);
      }
      walk.end(as_run());
      tell();
    }
  }
  if (options.tune) pruning.gates.heads = gates.heads;
  pruning.gates.neurons = gates.neurons;
  pruning.gates.dropped_output = gates.dropped_output;
  Json details = {
      {"method", kName},       {"objective", objective.name()}, {"rearranged", options.rearrange},
      {"tuned", options.tune}, {"rejected", rejected},          {"compensate", options.compensate}};
  details.update(cost.describe(found));
  pruning.details = details.dump();
  return pruning;
}

}  // namespace headkit
