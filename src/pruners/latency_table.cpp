#include "headkit/pruners/latency_table.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <chrono>
#include <limits>
#include <numeric>
#include <optional>

#include "headkit/attention/gated_attention.h"
#include "headkit/core/error.h"
#include "headkit/feed_forward/gated_feed_forward.h"
#include "headkit/pruners/removal.h"

namespace headkit {
namespace {

constexpr char kName[] = "measure_latency";

template <typename Run>
double least_seconds(int64_t repeats, const Run& run) {
  run();  // packs weights
  double least = std::numeric_limits<double>::infinity();
  for (int64_t i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    run();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    least = std::min(least, seconds.count());
  }
  return least;
}

std::vector<int64_t> first_units(int64_t count) {
  std::vector<int64_t> units(static_cast<size_t>(count));
  std::iota(units.begin(), units.end(), 0);
  return units;
}

}  // namespace

LatencyTables measure_latency(GatedModel& model, const Batch& batch,
                              const LatencyOptions& options) {
  const HeadLayout layout = model.layout();
  HEADKIT_CHECK(options.repeats >= 1, kName, "at least 1 repeat", options.repeats);
  HEADKIT_CHECK(options.layer >= 0 && options.layer < layout.layers, kName,
                "a layer below " + std::to_string(layout.layers), options.layer);
  HEADKIT_CHECK(model.heads().removed().empty(), kName, "a model with all its heads",
                model.heads().removed().size(), " removed");
  const bool has_neurons = model.gated_units().neurons;
  int64_t blocks = 0;
  if (has_neurons) {
    const at::Tensor there = model.neurons();
    blocks = there.size(0);
    HEADKIT_CHECK(there.all().item<bool>(), kName, "a model with all its neurons",
                  there.logical_not().sum().item<int64_t>(), " removed");
    HEADKIT_CHECK(options.neuron_entries >= 1 && there.size(1) % options.neuron_entries == 0, kName,
                  "entries that divide " + std::to_string(there.size(1)) + " neurons",
                  options.neuron_entries);
  }
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const ModelState state = model.embed(batch);
  LatencyTables tables;

  const AttentionWeights attention = model.attention(options.layer);
  std::optional<std::vector<int64_t>> kv_head;
  if (attention.k.size(0) != attention.q.size(0)) {
    kv_head = layout.kv_places_of(first_units(layout.heads));
  }
  for (int64_t count = 1; count <= layout.heads; ++count) {
    const std::vector<int64_t> kept = first_units(count);
    const AttentionWeights sliced = slice_heads(attention, layout.heads, kept, {}, kv_head);
    AttentionInput input;
    if (state.attention_mask.defined()) input.key_padding_mask(state.attention_mask);
    if (kv_head) {
      input.num_kv_heads(static_cast<int64_t>(layout.kv_heads_of(kept).size()))
          .kv_head(layout.kv_places_of(kept));
    }
    tables.heads.push_back(least_seconds(
        options.repeats, [&] { gated_attention(state.hidden, sliced, count, input); }));
  }
  if (has_neurons) {
    const FeedForwardWeights weights = model.feed_forward(options.layer);
    const int64_t step = weights.in.size(0) / options.neuron_entries;
    for (int64_t entry = 1; entry <= options.neuron_entries; ++entry) {
      const FeedForwardWeights sliced = slice_neurons(weights, first_units(entry * step));
      tables.neurons.push_back(
          least_seconds(options.repeats, [&] { gated_feed_forward(state.hidden, sliced); }));
    }
  }
  const double whole = least_seconds(options.repeats, [&] { model(batch); });
  double parts = static_cast<double>(layout.layers) * tables.heads.back();
  if (has_neurons) parts += static_cast<double>(blocks) * tables.neurons.back();
  tables.other = std::max(whole - parts, 0.0);
  return tables;
}

}  // namespace headkit
