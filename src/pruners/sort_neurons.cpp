#include "headkit/pruners/sort_neurons.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <numeric>
#include <vector>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "sort_neurons";

at::Tensor whole_neurons(GatedModel& model) {
  HEADKIT_CHECK(model.gated_units().neurons, kOperation,
                "a model that shows its feed-forward blocks", "one that does not");
  const at::Tensor there = model.neurons();
  HEADKIT_CHECK(there.all().item<bool>(), kOperation, "a model with all its neurons",
                there.logical_not().sum().item<int64_t>(), " removed");
  return there;
}

const void* storage_of(GatedModel& model, int64_t layer) {
  return model.feed_forward(layer).in.storage().data();
}

// For each layer the first one that has its weights in the same memory.
std::vector<int64_t> first_of_shared(GatedModel& model, int64_t layers) {
  std::vector<int64_t> first(static_cast<size_t>(layers));
  for (int64_t layer = 0; layer < layers; ++layer) {
    int64_t other = 0;
    while (storage_of(model, other) != storage_of(model, layer)) ++other;
    first[static_cast<size_t>(layer)] = other;
  }
  return first;
}

}  // namespace

void order_neurons(GatedModel& model, const at::Tensor& order) {
  const at::NoGradGuard no_grad;
  const at::Tensor there = whole_neurons(model);
  const int64_t layers = there.size(0), neurons = there.size(1);
  HEADKIT_CHECK(
      order.defined() && order.scalar_type() == at::kLong && order.sizes() == there.sizes(),
      kOperation, c10::str("an order, int64 of shape ", there.sizes()),
      order.defined() ? order.sizes() : at::IntArrayRef{});
  const at::Tensor rows = order.to(at::kCPU);
  const at::Tensor sorted = std::get<0>(rows.sort(1));
  HEADKIT_CHECK(sorted.eq(at::arange(neurons)).all().item<bool>(), kOperation,
                "each row a permutation of the neurons", "one that is not");
  const std::vector<int64_t> first = first_of_shared(model, layers);
  for (int64_t layer = 0; layer < layers; ++layer) {
    HEADKIT_CHECK(at::equal(rows[layer], rows[first[static_cast<size_t>(layer)]]), kOperation,
                  "one order for layers that share their weights", "others in layers ",
                  first[static_cast<size_t>(layer)], " and ", layer);
  }
  std::vector<FeedForwardWeights> ordered;
  std::vector<const void*> storages;
  for (int64_t layer = 0; layer < layers; ++layer) {
    const FeedForwardWeights weights = model.feed_forward(layer);
    const at::Tensor index = rows[layer].to(weights.in.device());
    const auto pick = [&](const at::Tensor& values, int64_t axis) {
      return values.defined() ? values.index_select(axis, index) : values;
    };
    ordered.push_back({pick(weights.in, 0), pick(weights.out, 1), pick(weights.up, 0),
                       pick(weights.in_bias, 0), pick(weights.up_bias, 0), weights.out_bias});
    storages.push_back(storage_of(model, layer));
  }
  std::vector<int64_t> all(static_cast<size_t>(neurons));
  std::iota(all.begin(), all.end(), 0);
  for (int64_t layer = 0; layer < layers; ++layer) {
    // Layers that are one module get their new weights once.
    if (storage_of(model, layer) != storages[static_cast<size_t>(layer)]) continue;
    model.replace_feed_forward(layer, ordered[static_cast<size_t>(layer)], all);
  }
}

at::Tensor sort_neurons(GatedModel& model, const at::Tensor& scores) {
  const at::Tensor there = whole_neurons(model);
  HEADKIT_CHECK(scores.defined() && scores.sizes() == there.sizes(), kOperation,
                c10::str("scores of shape ", there.sizes()), "shape ",
                scores.defined() ? scores.sizes() : at::IntArrayRef{});
  at::Tensor values = scores.detach().to(at::kCPU, at::kDouble).clone();
  HEADKIT_CHECK(values.isfinite().all().item<bool>(), kOperation, "finite scores",
                "NaN or infinity");
  const std::vector<int64_t> first = first_of_shared(model, there.size(0));
  at::Tensor sums = at::zeros_like(values);
  sums.index_add_(0, at::tensor(first, at::kLong), values);
  values = sums.index_select(0, at::tensor(first, at::kLong));
  const at::Tensor order = std::get<1>(values.neg().sort(/*stable=*/true, 1, false));
  order_neurons(model, order);
  return order;
}

}  // namespace headkit
