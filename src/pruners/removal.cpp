#include "headkit/pruners/removal.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <set>
#include <string>

#include "headkit/core/error.h"

namespace headkit {
namespace {

at::Tensor rows_of(const std::vector<int64_t>& kept, int64_t head_dim, const at::Device& device) {
  std::vector<int64_t> rows;
  rows.reserve(kept.size() * static_cast<size_t>(head_dim));
  for (int64_t head : kept) {
    for (int64_t i = 0; i < head_dim; ++i) rows.push_back(head * head_dim + i);
  }
  return at::tensor(rows, at::kLong).to(device);
}

// The KV heads that `kept` read, ascending.
std::vector<int64_t> kv_heads_read(const AttentionWeights& weights, int64_t num_heads,
                                   int64_t head_dim, const std::vector<int64_t>& kept,
                                   const std::optional<std::vector<int64_t>>& kv_head) {
  if (kept.empty() || head_dim == 0) return {};
  const int64_t rows = weights.k.size(0), kv_heads = rows / head_dim;
  HEADKIT_CHECK(rows % head_dim == 0 && weights.v.size(0) == rows, "slice_heads",
                "key and value rows of whole heads", rows, " and ", weights.v.size(0),
                " with dh = ", head_dim);
  HEADKIT_CHECK(kv_head ? static_cast<int64_t>(kv_head->size()) == num_heads
                        : kv_heads > 0 && num_heads % kv_heads == 0,
                "slice_heads",
                kv_head ? "a kv_head for each of " + std::to_string(num_heads) + " heads"
                        : "heads divisible by their KV heads, or kv_head",
                kv_head ? kv_head->size() : kv_heads);
  std::set<int64_t> read;
  for (const int64_t head : kept) {
    const int64_t place = kv_head ? (*kv_head)[head] : head / (num_heads / kv_heads);
    HEADKIT_CHECK_INDEX(place >= 0 && place < kv_heads, "slice_heads",
                        "KV heads below " + std::to_string(kv_heads), place);
    read.insert(place);
  }
  return {read.begin(), read.end()};
}

// An output bias, copied, with something more in it.
at::Tensor with_added(const char* operation, const at::Tensor& bias, const at::Tensor& weight,
                      const at::Tensor& added_output) {
  const at::Tensor copied = bias.defined() ? bias.detach().clone() : at::Tensor();
  if (!added_output.defined()) return copied;
  HEADKIT_CHECK(added_output.dim() == 1 && added_output.size(0) == weight.size(0), operation,
                "added_output of shape [" + std::to_string(weight.size(0)) + "]", "shape ",
                added_output.sizes());
  const at::Tensor added = added_output.detach().to(weight.device(), at::kDouble);
  return (copied.defined() ? copied.to(at::kDouble) + added : added).to(weight.scalar_type());
}

// Static gates of a whole model, float64 on CPU, 1 where nothing was said.
struct StaticGates {
  at::Tensor heads;         // [L, H]
  at::Tensor attention;     // [L]
  at::Tensor neurons;       // [L, F]; undefined = the feed-forward blocks stay as they are
  at::Tensor blocks;        // [L, N]; undefined without neurons
  at::Tensor feed_forward;  // [L]; undefined without neurons
};

// What becomes of one block of a model.
template <typename Weights>
struct Change {
  int64_t layer = 0;
  Weights before, after;
  std::vector<int64_t> kept_before, kept_after;
};

struct Changes {
  std::vector<Change<AttentionWeights>> attention;
  std::vector<Change<FeedForwardWeights>> feed_forward;
  Sublayers open_before, open_after;
};

at::Tensor in_double(const at::Tensor& tensor) {
  return tensor.detach().to(at::kCPU, at::kDouble).contiguous();
}

at::Tensor or_ones(const at::Tensor& gates, std::vector<int64_t> shape) {
  return gates.defined() ? in_double(gates) : at::ones(shape, at::kDouble);
}

StaticGates static_gates(const char* operation, GatedModel& model, const GateSet& gates) {
  const HeadLayout layout = model.layout();
  const auto fixed = [&](const at::Tensor& given, int64_t rank, const char* what) {
    HEADKIT_CHECK(!given.defined() || given.dim() == rank, operation,
                  c10::str("static gates of ", what, ", the same for every sample"), "shape ",
                  given.sizes());
  };
  fixed(gates.heads, 2, "heads");
  fixed(gates.blocks, 2, "blocks of neurons");
  fixed(gates.neurons, 2, "neurons");
  fixed(gates.attention_sublayers, 1, "attention blocks");
  fixed(gates.feed_forward_sublayers, 1, "feed-forward blocks");
  model.check(operation, -1, gates);
  StaticGates all;
  all.heads = or_ones(gates.heads, {layout.layers, layout.heads});
  all.attention = or_ones(gates.attention_sublayers, {layout.layers});
  if (gates.gates_feed_forward() || gates.blocks.defined()) {
    const at::Tensor there = model.neurons();
    const int64_t layers = there.size(0), count = there.size(1);
    const int64_t blocks = (count + kNeuronBlock - 1) / kNeuronBlock;
    gates.check_blocks(operation, -1, layers, blocks);
    all.blocks = or_ones(gates.blocks, {layers, blocks});
    all.neurons = or_ones(gates.neurons, {layers, count}) *
                  all.blocks.repeat_interleave(kNeuronBlock, 1).narrow(1, 0, count);
    all.feed_forward = or_ones(gates.feed_forward_sublayers, {layers});
  }
  return all;
}

void check_compensation(const char* operation, const char* name, const at::Tensor& values,
                        std::vector<int64_t> shape) {
  if (!values.defined()) return;
  HEADKIT_CHECK(values.sizes() == at::IntArrayRef(shape), operation,
                c10::str(name, " of shape ", at::IntArrayRef(shape)), "shape ", values.sizes());
  HEADKIT_CHECK(values.isfinite().all().item<bool>(), operation, c10::str("finite ", name),
                "NaN or infinity");
}

// Columns of an output weight times a factor each, the bias times one factor; nothing where all
// are 1, so that hard removal moves no bit.
void scale_output(at::Tensor& weight, at::Tensor& bias, const at::Tensor& columns, double all) {
  const at::Tensor factors = columns * all;
  if (!factors.eq(1).all().item<bool>()) {
    weight = (weight.to(at::kDouble) * factors.to(weight.device())).to(weight.scalar_type());
  }
  if (bias.defined() && all != 1) bias = (bias.to(at::kDouble) * all).to(bias.scalar_type());
}

std::vector<Change<AttentionWeights>> attention_changes(GatedModel& model, const StaticGates& all,
                                                        const at::Tensor& dropped_output) {
  const HeadLayout layout = model.layout();
  const HeadMask present = model.heads();
  const std::vector<bool> open = model.sublayers().attention;
  std::vector<Change<AttentionWeights>> changes;
  for (int64_t layer = 0; layer < layout.layers; ++layer) {
    if (!open[layer]) continue;
    Change<AttentionWeights> change;
    change.layer = layer;
    change.kept_before = present.layer_heads(layer);
    const double whole = all.attention[layer].item<double>();
    const auto* gates = all.heads[layer].const_data_ptr<double>();
    std::vector<int64_t> places, altered;
    std::vector<double> scales;
    for (size_t place = 0; place < change.kept_before.size(); ++place) {
      const int64_t head = change.kept_before[place];
      if (gates[head] != 1) altered.push_back(head);
      if (gates[head] == 0 || whole == 0) continue;
      places.push_back(static_cast<int64_t>(place));
      change.kept_after.push_back(head);
      scales.push_back(gates[head]);
    }
    if (altered.empty() && whole == 1) continue;
    at::Tensor added;
    if (dropped_output.defined() && !altered.empty()) {
      const at::Tensor index = at::tensor(altered, at::kLong);
      added = (in_double(dropped_output.select(0, layer)).index_select(0, index) *
               (1 - all.heads[layer].index_select(0, index)).unsqueeze(1))
                  .sum(0);
    }
    change.before = model.attention(layer);
    // Some models hold keys and values for each head though they share them.
    std::optional<std::vector<int64_t>> kv_head;
    if (change.before.k.size(0) != change.before.q.size(0)) {
      kv_head = layout.kv_places_of(change.kept_before);
    }
    change.after = slice_heads(change.before, static_cast<int64_t>(change.kept_before.size()),
                               places, added, kv_head);
    const at::Tensor columns =
        at::tensor(scales, at::kDouble).repeat_interleave(layout.head_dim, 0);
    scale_output(change.after.o, change.after.o_bias, columns, whole);
    changes.push_back(std::move(change));
  }
  return changes;
}

std::vector<Change<FeedForwardWeights>> feed_forward_changes(const char* operation,
                                                             GatedModel& model,
                                                             const StaticGates& all,
                                                             const at::Tensor& dropped_blocks) {
  std::vector<Change<FeedForwardWeights>> changes;
  if (!all.neurons.defined()) return changes;
  const at::Tensor present = model.neurons();
  const std::vector<bool> open = model.sublayers().feed_forward;
  for (int64_t layer = 0; layer < present.size(0); ++layer) {
    if (!open[layer]) continue;
    Change<FeedForwardWeights> change;
    change.layer = layer;
    const at::Tensor before = present[layer].nonzero().flatten();
    const double whole = all.feed_forward[layer].item<double>();
    const at::Tensor gates = all.neurons[layer].index_select(0, before);
    if (whole == 1 && gates.eq(1).all().item<bool>()) continue;
    const at::Tensor places = whole == 0 ? at::empty({0}, at::kLong) : gates.nonzero().flatten();
    const at::Tensor kept = before.index_select(0, places);
    const auto list = [](const at::Tensor& index) {
      const auto* first = index.const_data_ptr<int64_t>();
      return std::vector<int64_t>(first, first + index.numel());
    };
    change.kept_before = list(before);
    change.kept_after = list(kept);
    at::Tensor added;
    if (dropped_blocks.defined()) {
      const at::Tensor there =
          at::zeros_like(all.blocks[layer]).index_fill_(0, before.floor_divide(kNeuronBlock), 1);
      added = (in_double(dropped_blocks.select(0, layer)) *
               ((1 - all.blocks[layer]) * there).unsqueeze(1))
                  .sum(0);
    }
    change.before = model.feed_forward(layer);
    HEADKIT_CHECK(!added.defined() || change.before.out_bias.defined(), operation,
                  "a feed-forward block with an output bias, for dropped_blocks", "one without");
    change.after = slice_neurons(change.before, list(places), added);
    scale_output(change.after.out, change.after.out_bias, gates.index_select(0, places), whole);
    changes.push_back(std::move(change));
  }
  return changes;
}

Sublayers open_after(Sublayers open, const StaticGates& all) {
  const auto close = [](std::vector<bool>& blocks, const at::Tensor& gates) {
    for (size_t i = 0; gates.defined() && i < blocks.size(); ++i) {
      if (gates[static_cast<int64_t>(i)].item<double>() == 0) blocks[i] = false;
    }
  };
  close(open.attention, all.attention);
  close(open.feed_forward, all.feed_forward);
  return open;
}

bool same(const Sublayers& a, const Sublayers& b) {
  return a.attention == b.attention && a.feed_forward == b.feed_forward;
}

struct Step {
  bool cuts;
  std::function<void()> take, take_back;
};

template <typename Weights, typename Replace>
void add_steps(std::vector<Step>& steps, const std::vector<Change<Weights>>& changes,
               const Replace& replace) {
  for (const auto& change : changes) {
    steps.push_back({change.kept_after.size() < change.kept_before.size(),
                     [=, &change] { replace(change.layer, change.after, change.kept_after); },
                     [=, &change] { replace(change.layer, change.before, change.kept_before); }});
  }
}

void make(GatedModel& model, const Changes& changes) {
  std::vector<Step> steps;
  add_steps(steps, changes.attention,
            [&model](auto&&... arguments) { model.replace_attention(arguments...); });
  add_steps(steps, changes.feed_forward,
            [&model](auto&&... arguments) { model.replace_feed_forward(arguments...); });
  // Cuts before mere scaling, so that a model can note what it was before its first cut.
  std::stable_partition(steps.begin(), steps.end(), [](const Step& step) { return step.cuts; });
  size_t done = 0;
  try {
    for (; done < steps.size(); ++done) steps[done].take();
    if (!same(changes.open_before, changes.open_after)) model.set_sublayers(changes.open_after);
  } catch (...) {
    const std::exception_ptr cause = std::current_exception();
    while (done-- > 0) steps[done].take_back();
    std::rethrow_exception(cause);
  }
}

void remove(const char* operation, GatedModel& model, const GateSet& gates) {
  const c10::NoGradGuard no_grad;
  const HeadLayout layout = model.layout();
  HEADKIT_CHECK(!gates.hidden.defined() || gates.hidden.eq(1).all().item<bool>(), operation,
                "dimensions of the residual stream that are all open", "closed or scaled ones");
  const StaticGates all = static_gates(operation, model, gates);
  check_compensation(operation, "dropped_output", gates.dropped_output,
                     {layout.layers, layout.heads, layout.model_dim});
  if (all.blocks.defined()) {
    check_compensation(operation, "dropped_blocks", gates.dropped_blocks,
                       {all.blocks.size(0), all.blocks.size(1), layout.model_dim});
  }
  Changes changes;
  changes.attention = attention_changes(model, all, gates.dropped_output);
  changes.feed_forward = feed_forward_changes(operation, model, all, gates.dropped_blocks);
  changes.open_before = model.sublayers();
  changes.open_after = open_after(changes.open_before, all);
  make(model, changes);
}

}  // namespace

AttentionWeights slice_heads(const AttentionWeights& weights, int64_t num_heads,
                             const std::vector<int64_t>& kept, const at::Tensor& added_output,
                             const std::optional<std::vector<int64_t>>& kv_head) {
  HEADKIT_CHECK(
      weights.q.defined() && weights.k.defined() && weights.v.defined() && weights.o.defined(),
      "slice_heads", "weights q, k, v and o", "some undefined");
  const int64_t width = weights.q.size(0);
  HEADKIT_CHECK(num_heads > 0 ? width % num_heads == 0 : width == 0, "slice_heads",
                "query rows that " + std::to_string(num_heads) + " heads share evenly", width);
  int64_t previous = -1;
  for (int64_t head : kept) {
    HEADKIT_CHECK_INDEX(head > previous && head < num_heads, "slice_heads",
                        "ascending heads below " + std::to_string(num_heads), head);
    previous = head;
  }
  const c10::NoGradGuard no_grad;
  const int64_t head_dim = num_heads > 0 ? width / num_heads : 0;
  const at::Tensor rows = rows_of(kept, head_dim, weights.q.device());
  const at::Tensor kv_rows = rows_of(kv_heads_read(weights, num_heads, head_dim, kept, kv_head),
                                     head_dim, weights.q.device());
  const auto cut = [](const at::Tensor& tensor, int64_t axis, const at::Tensor& chosen) {
    return tensor.defined() ? tensor.detach().index_select(axis, chosen).contiguous()
                            : at::Tensor();
  };
  AttentionWeights sliced;
  sliced.q = cut(weights.q, 0, rows);
  sliced.k = cut(weights.k, 0, kv_rows);
  sliced.v = cut(weights.v, 0, kv_rows);
  sliced.o = cut(weights.o, 1, rows);
  sliced.q_bias = cut(weights.q_bias, 0, rows);
  sliced.k_bias = cut(weights.k_bias, 0, kv_rows);
  sliced.v_bias = cut(weights.v_bias, 0, kv_rows);
  sliced.o_bias = with_added("slice_heads", weights.o_bias, weights.o, added_output);
  return sliced;
}

FeedForwardWeights slice_neurons(const FeedForwardWeights& weights,
                                 const std::vector<int64_t>& kept, const at::Tensor& added_output) {
  HEADKIT_CHECK(weights.in.defined() && weights.out.defined(), "slice_neurons",
                "weights in and out", "some undefined");
  const int64_t count = weights.in.size(0);
  HEADKIT_CHECK(weights.out.size(1) == count, "slice_neurons",
                "as many columns of out as rows of in", weights.out.size(1), " and ", count);
  int64_t previous = -1;
  for (const int64_t neuron : kept) {
    HEADKIT_CHECK_INDEX(neuron > previous && neuron < count, "slice_neurons",
                        "ascending neurons below " + std::to_string(count), neuron);
    previous = neuron;
  }
  const c10::NoGradGuard no_grad;
  const at::Tensor rows = at::tensor(kept, at::kLong).to(weights.in.device());
  const auto cut = [&](const at::Tensor& tensor, int64_t axis) {
    return tensor.defined() ? tensor.detach().index_select(axis, rows).contiguous() : at::Tensor();
  };
  FeedForwardWeights sliced;
  sliced.in = cut(weights.in, 0);
  sliced.in_bias = cut(weights.in_bias, 0);
  sliced.up = cut(weights.up, 0);
  sliced.up_bias = cut(weights.up_bias, 0);
  sliced.out = cut(weights.out, 1);
  sliced.out_bias = with_added("slice_neurons", weights.out_bias, weights.out, added_output);
  return sliced;
}

void remove_heads(GatedModel& model, const HeadMask& mask, const at::Tensor& dropped_output) {
  const HeadLayout layout = model.layout();
  HEADKIT_CHECK(mask.layers() == layout.layers && mask.heads() == layout.heads, "remove_heads",
                "a mask of " + std::to_string(layout.layers) + " layers with " +
                    std::to_string(layout.heads) + " heads",
                mask.layers(), " with ", mask.heads());
  GateSet gates = GateSet::from_mask(mask);
  gates.dropped_output = dropped_output;
  remove("remove_heads", model, gates);
}

void remove_units(GatedModel& model, const GateSet& gates) { remove("remove_units", model, gates); }

}  // namespace headkit
