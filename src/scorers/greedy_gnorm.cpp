#include "headkit/scorers/greedy_gnorm.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <limits>
#include <vector>

#include "core/json.h"
#include "distributed/measured_walk.h"
#include "headkit/core/error.h"
#include "scorers/gate_slopes.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "greedy_gnorm";

// Lets the parameters of a model take part in graphs while it lives.
class Differentiable {
 public:
  explicit Differentiable(GatedModel& model) {
    for (const auto& [name, tensor] : model.parameters()) {
      if (!tensor.is_leaf() || !at::isFloatingType(tensor.scalar_type()) ||
          tensor.requires_grad()) {
        continue;
      }
      frozen_.push_back(tensor);
      frozen_.back().set_requires_grad(true);
    }
  }
  Differentiable(const Differentiable&) = delete;
  Differentiable& operator=(const Differentiable&) = delete;
  ~Differentiable() {
    for (const at::Tensor& tensor : frozen_) tensor.set_requires_grad(false);
  }

 private:
  std::vector<at::Tensor> frozen_;
};

// Norms of [rows, D] by blocks of `head_dim` rows.
at::Tensor block_norms(const at::Tensor& gradient, int64_t head_dim) {
  return gradient.reshape({-1, head_dim * gradient.size(1)}).norm(2, {1});
}

class Products {
 public:
  Products(GatedModel& model, const DataSource& data, const Objective& objective,
           const ScoreOptions& options)
      : model_(model), data_(data), objective_(objective), options_(options) {}

  // [L, H] under gates [L, H], double; heads that are gone have 0.
  at::Tensor at(const at::Tensor& open) {
    const Measured sums = sum_measured(
        kName, data_, {}, [&](const Batch& batch) { return gradients(batch, open); }, samples_);
    HEADKIT_CHECK(samples_ > 0, kName, "data with at least one example", "none");
    const HeadLayout layout = model_.layout();
    const HeadMask present = model_.heads();
    at::Tensor products = at::zeros({layout.layers, layout.heads}, at::kDouble);
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      const std::vector<int64_t> heads = present.layer_heads(layer);
      if (heads.empty()) continue;
      const at::Tensor shared = at::tensor(layout.kv_places_of(heads), at::kLong);
      const auto norms = [&](int64_t which) {
        return block_norms(
            sums[static_cast<size_t>(3 * layer + which)] / static_cast<double>(samples_),
            layout.head_dim);
      };
      products[layer].index_copy_(
          0, at::tensor(heads, at::kLong),
          norms(0) * norms(1).index_select(0, shared) * norms(2).index_select(0, shared));
    }
    HEADKIT_CHECK_RUNTIME(products.isfinite().all().item<bool>(), kName, "finite gradients",
                          "NaN or infinity; score in float32 or scale the inputs");
    return products;
  }
  int64_t samples() const { return samples_; }

 private:
  // Of Q, K and V of each layer, summed over the examples.
  Measured gradients(const Batch& batch, const at::Tensor& open) const {
    const HeadLayout layout = model_.layout();
    const int64_t examples = batch_size(batch);
    const ModelState state = embed_without_graph(model_, batch);
    const c10::AutoGradMode grad_on(true);
    GateSet gates;
    gates.heads = open.to(state.hidden.options().dtype(
        state.hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat));
    if (options_.dropped_output.defined()) {
      gates.dropped_output = options_.dropped_output.to(state.hidden.options());
    }
    Taps taps;
    taps.attention_calls = true;
    const at::Tensor output = model_.head(model_.run(state, 0, layout.layers, gates, &taps));
    HEADKIT_CHECK(static_cast<int64_t>(taps.attention_call.size()) == layout.layers, kName,
                  "a model that shows the calls of all attention blocks",
                  taps.attention_call.size(), " of ", layout.layers);
    const at::Tensor dense = objective_.needs_dense() ? output.detach() : at::Tensor();
    const at::Tensor losses = objective_.loss(output, state.batch, dense);
    checked_losses(kName, losses, examples);
    Measured found;
    torch::autograd::variable_list weights;
    std::vector<size_t> places;
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      const AttentionWeights& each = taps.attention_call[layer].weights;
      const at::Tensor own[] = {each.q, each.k, each.v};
      for (const at::Tensor& weight : own) {
        found.push_back(at::zeros(weight.sizes(), at::kDouble));
        if (!weight.requires_grad()) continue;
        weights.push_back(weight);
        places.push_back(found.size() - 1);
      }
    }
    HEADKIT_CHECK_RUNTIME(losses.requires_grad() && !weights.empty(), kName,
                          "a loss that depends on the attention weights",
                          "one without a gradient: does the model run under no_grad or detach?");
    const auto slopes = torch::autograd::grad({losses.sum()}, weights, {}, /*retain_graph=*/false,
                                              /*create_graph=*/false, /*allow_unused=*/true);
    for (size_t i = 0; i < places.size(); ++i) {
      if (slopes[i].defined()) {
        found[places[i]] = slopes[i].detach().to(at::kCPU, at::kDouble);
      }
    }
    return found;
  }

  GatedModel& model_;
  const DataSource& data_;
  const Objective& objective_;
  const ScoreOptions& options_;
  int64_t samples_ = 0;
};

}  // namespace

HeadScores GreedyGnormScorer::score(GatedModel& model, const DataSource& data,
                                    const Objective& objective, const ScoreOptions& options) const {
  check_score_options(options);
  check_slope_exists(kName, objective);
  const auto mode = model.evaluating();
  const Differentiable differentiable(model);
  const HeadMask present = model.heads();
  at::Tensor open = scored_heads(model);
  Products products(model, data, objective, options);
  at::Tensor now = products.at(open);
  if (now.eq(0).all().item<bool>()) fail_all_zero(kName, objective);
  at::Tensor values = now;
  Json order = Json::array();
  const int64_t heads = present.count();
  if (options_.recompute) {
    values = at::zeros_like(now);
    for (int64_t place = 1; place <= heads; ++place) {
      const at::Tensor candidates =
          at::where(open.gt(0), now, at::full_like(now, std::numeric_limits<double>::infinity()));
      // The first of the least: ties go by layer and head.
      const int64_t least = candidates.flatten().eq(candidates.min()).nonzero()[0].item<int64_t>();
      values.flatten()[least] = static_cast<double>(place);
      open.flatten()[least] = 0;
      order.push_back({least / now.size(1), least % now.size(1)});
      if (options.progress) options.progress(place, heads);
      if (place < heads) now = products.at(open);
    }
  }
  HeadScores scores;
  scores.metric = kName;
  scores.objective = objective.name();
  scores.samples = products.samples();
  ScoreOptions without_interval = options;
  without_interval.bootstrap = 0;
  summarise_scores(without_interval, values, 0, {}, scores);
  Json settings = {{"normalization", options.normalization},
                   {"recompute", options_.recompute},
                   {"compensated", options.dropped_output.defined()}};
  if (options_.recompute) settings["order"] = order;
  scores.settings = settings.dump();
  return scores;
}

}  // namespace headkit
