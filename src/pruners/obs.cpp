#include "headkit/pruners/obs.h"

#include <ATen/ATen.h>

#include <limits>
#include <optional>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/pruners/least_squares.h"
#include "pruners/dense_walk.h"
#include "pruners/lent_weights.h"
#include "pruners/model_cost.h"
#include "pruners/output_refit.h"

namespace headkit {
namespace {

constexpr char kName[] = "obs";

// A sublayer that loses one unit after the other.
class Course {
 public:
  Course(const ProjectionMoments& all, const at::Tensor& weight, const at::Tensor& bias,
         int64_t width, double unit_cost, double damping)
      : width_(width), unit_cost_(unit_cost) {
    const ProjectionMoments moments = bias.defined() ? all.centred() : all;
    const at::Tensor w = weight.detach().to(at::kCPU, at::kDouble);
    open_ = at::ones({w.size(1) / width}, at::kBool);
    energy_ = (at::mm(w, moments.gram) * w).sum().item<double>();
    if (open_.numel() > 0) surgeon_.emplace(w, moments.gram, damping);
    look();
  }

  /// Error that the next removal adds, as a share of what the sublayer puts out, by its cost;
  /// infinite when nothing is left.
  double price() const { return price_; }
  double unit_cost() const { return unit_cost_; }
  const at::Tensor& open() const { return open_; }  // bool [units]

  void step() {
    surgeon_->remove(channels(next_));
    open_[next_] = false;
    look();
  }

 private:
  std::vector<int64_t> channels(int64_t unit) const {
    std::vector<int64_t> places;
    for (int64_t i = 0; i < width_; ++i) places.push_back(unit * width_ + i);
    return places;
  }

  void look() {
    price_ = std::numeric_limits<double>::infinity();
    if (!open_.any().item<bool>()) return;
    if (width_ == 1) {
      const at::Tensor scores = surgeon_->column_scores();
      next_ = scores.argmin().item<int64_t>();
      price_ = scores[next_].item<double>();
    } else {
      for (int64_t unit = 0; unit < open_.numel(); ++unit) {
        if (!open_[unit].item<bool>()) continue;
        const double score = surgeon_->score(channels(unit));
        if (score < price_) {
          price_ = score;
          next_ = unit;
        }
      }
    }
    price_ = energy_ > 0 ? price_ / energy_ / unit_cost_ : 0;
  }

  int64_t width_, next_ = 0;
  double unit_cost_, energy_ = 0, price_ = 0;
  at::Tensor open_;
  std::optional<ColumnSurgeon> surgeon_;
};

// Courses of one kind of unit as flags of the original model.
at::Tensor kept_units(const at::Tensor& there, const std::vector<Course>& courses) {
  at::Tensor keep = there.clone();
  for (int64_t layer = 0; layer < there.size(0); ++layer) {
    keep[layer].masked_scatter_(there[layer], courses[static_cast<size_t>(layer)].open());
  }
  return keep;
}

}  // namespace

StaticPruning prune_obs(GatedModel& model, const DataSource& data, const Objective&,
                        const ObsOptions& options) {
  HEADKIT_CHECK(options.damping > 0 && options.ridge >= 0 && options.examples >= 0, kName,
                "a damping above 0, a ridge and examples of at least 0", options.damping, ", ",
                options.ridge, ", ", options.examples);
  const auto mode = model.evaluating();
  const HeadLayout layout = model.layout();
  const bool neurons = options.neurons && model.gated_units().neurons;
  const ModelCost cost(kName, model, data,
                       {.keep = options.keep, .neurons = neurons, .tokens = options.tokens});
  check_own_outputs(kName, model, neurons);
  const at::Tensor heads_there = model.heads().keep();
  const at::Tensor neurons_there = neurons ? model.neurons() : at::Tensor();
  HEADKIT_CHECK(!neurons || neurons_there.size(0) == layout.layers, kName,
                "a feed-forward block in every layer", neurons_there.size(0), " of ",
                layout.layers);

  std::vector<Course> heads, wires;
  {
    DenseWalk dense(model, data, options.examples);
    for (int64_t layer = 0; layer < layout.layers; ++layer) {
      dense.begin(layer);
      const AttentionWeights attention = model.attention(layer);
      heads.emplace_back(dense.attention({}), attention.o, attention.o_bias, layout.head_dim,
                         cost.units().head, options.damping);
      if (neurons) {
        const FeedForwardWeights block = model.feed_forward(layer);
        wires.emplace_back(dense.feed_forward({}), block.out, block.out_bias, 1,
                           cost.units().neuron, options.damping);
      }
      dense.end({});
    }
  }
  double spent = cost.of(heads_there, neurons_there);
  while (spent > cost.budget() * (1 + 1e-12)) {
    Course* cheapest = nullptr;
    for (std::vector<Course>* kind : {&heads, &wires}) {
      for (Course& each : *kind) {
        if (cheapest == nullptr || each.price() < cheapest->price()) cheapest = &each;
      }
    }
    if (!cheapest->open().any().item<bool>()) break;
    cheapest->step();
    spent -= cheapest->unit_cost();
  }

  StaticPruning pruning;
  CostSearch kept;
  kept.heads = kept_units(heads_there, heads);
  if (neurons) kept.neurons = kept_units(neurons_there, wires);
  LentWeights lent;
  DenseWalk walk(model, data, options.examples);
  int64_t done = 0;
  const auto refit = [&](int64_t layer, const ProjectionMoments& moments, const at::Tensor& weight,
                         const at::Tensor& bias, const Course& course, int64_t width,
                         bool feed_forward) {
    OutputRefit found =
        refit_output(moments, weight, bias, channels_of(course.open().nonzero().flatten(), width),
                     options.ridge);
    found.layer = layer;
    found.feed_forward = feed_forward;
    lent.write(weight, found.weight);
    if (bias.defined()) lent.write(bias, found.bias);
    pruning.refits.push_back(std::move(found));
    if (options.progress) options.progress(++done, layout.layers * (neurons ? 2 : 1));
  };
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    walk.begin(layer);
    const AttentionWeights attention = model.attention(layer);
    refit(layer, walk.attention({}), attention.o, attention.o_bias,
          heads[static_cast<size_t>(layer)], layout.head_dim, false);
    if (neurons) {
      const FeedForwardWeights block = model.feed_forward(layer);
      refit(layer, walk.feed_forward({}), block.out, block.out_bias,
            wires[static_cast<size_t>(layer)], 1, true);
    }
    walk.end({});
  }
  pruning.heads = HeadMask(kept.heads);
  if (neurons) pruning.gates.neurons = kept.neurons.to(at::kDouble);
  Json details = {{"method", kName}, {"damping", options.damping}, {"ridge", options.ridge}};
  details.update(cost.describe(kept));
  pruning.details = details.dump();
  return pruning;
}

}  // namespace headkit
