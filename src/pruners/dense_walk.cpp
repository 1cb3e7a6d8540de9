#include "pruners/dense_walk.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "prune";

const at::Tensor& only(const std::vector<at::Tensor>& tapped, const char* what) {
  HEADKIT_CHECK(tapped.size() == 1, kName,
                std::string("a model with one ") + what + " in every layer", tapped.size());
  return tapped.front();
}

at::Tensor without_bias(const at::Tensor& output, const at::Tensor& bias) {
  return bias.defined() ? output - bias.to(output.options()) : output;
}

// Rows of valid tokens, [tokens, n], double.
at::Tensor token_rows(const at::Tensor& values, const at::Tensor& valid) {
  const at::Tensor rows = values.flatten(2).flatten(0, 1);
  return valid.defined()
             ? rows.index_select(0, valid.flatten().nonzero().flatten().to(rows.device()))
             : rows;
}

void add(ProjectionMoments& sums, const at::Tensor& inputs, const at::Tensor& targets) {
  const at::Tensor x = inputs.to(at::kCPU, at::kDouble), y = targets.to(at::kCPU, at::kDouble);
  const at::Tensor gram = at::mm(x.t(), x), cross = at::mm(y.t(), x);
  const bool first = !sums.gram.defined();
  sums.gram = first ? gram : sums.gram + gram;
  sums.cross = first ? cross : sums.cross + cross;
  sums.input_sum = first ? x.sum(0) : sums.input_sum + x.sum(0);
  sums.target_sum = first ? y.sum(0) : sums.target_sum + y.sum(0);
  sums.tokens += static_cast<double>(x.size(0));
}

}  // namespace

ProjectionMoments ProjectionMoments::centred() const {
  ProjectionMoments moments = *this;
  moments.gram = gram - at::outer(input_sum, input_sum) / tokens;
  moments.cross = cross - at::outer(target_sum, input_sum) / tokens;
  return moments;
}

ProjectionMoments ProjectionMoments::select(const at::Tensor& index) const {
  ProjectionMoments moments = *this;
  moments.gram = gram.index_select(0, index).index_select(1, index);
  moments.cross = cross.index_select(1, index);
  moments.input_sum = input_sum.index_select(0, index);
  return moments;
}

DenseWalk::DenseWalk(GatedModel& model, const DataSource& data, int64_t examples)
    : model_(model), feed_forward_(model.gated_units().neurons) {
  const c10::NoGradGuard no_grad;
  data.for_each([&](const Batch& batch) {
    const int64_t size = batch_size(batch);
    if (size == 0 || (examples > 0 && examples_ >= examples)) return;
    Place place;
    place.dense = place.pruned = model_.embed(batch);
    places_.push_back(std::move(place));
    examples_ += size;
  });
  HEADKIT_CHECK(!places_.empty(), kName, "data with at least one example", "none");
}

void DenseWalk::begin(int64_t layer) {
  const c10::NoGradGuard no_grad;
  layer_ = layer;
  const at::Tensor attention_bias = model_.attention(layer).o_bias;
  const at::Tensor feed_forward_bias =
      feed_forward_ ? model_.feed_forward(layer).out_bias : at::Tensor();
  for (Place& place : places_) {
    Taps taps;
    taps.attention_outputs = true;
    taps.feed_forward_inputs = taps.feed_forward_outputs = feed_forward_;
    place.dense_next = model_.run(place.dense, layer, layer + 1, {}, &taps);
    const at::Tensor& added = only(taps.attention_output, "attention block");
    const at::Tensor after = place.dense.hidden + added;
    place.attention_target = without_bias(after, attention_bias);
    if (!feed_forward_) continue;
    const at::Tensor& output = only(taps.feed_forward_output, "feed-forward block");
    const at::Tensor before = place.dense_next.hidden - output;
    const double apart = (before - after).abs().max().item<double>();
    place.norm_first = apart <= 1e-3 * (1e-3 + after.abs().max().item<double>());
    const at::Tensor& residual =
        place.norm_first ? before : only(taps.feed_forward_input, "feed-forward block");
    place.feed_forward_target = without_bias(residual + output, feed_forward_bias);
  }
}

ProjectionMoments DenseWalk::attention(const GateSet& gates) {
  const c10::NoGradGuard no_grad;
  ProjectionMoments sums;
  for (const Place& place : places_) {
    Taps taps;
    taps.head_contexts = true;
    model_.run(place.pruned, layer_, layer_ + 1, gates, &taps);
    const at::Tensor& valid = only(taps.valid, "attention block");
    add(sums, token_rows(only(taps.head_context, "attention block"), valid),
        token_rows(place.attention_target - place.pruned.hidden, valid));
  }
  return sums;
}

ProjectionMoments DenseWalk::feed_forward(const GateSet& gates) {
  const c10::NoGradGuard no_grad;
  ProjectionMoments sums;
  for (const Place& place : places_) {
    Taps taps;
    taps.head_contexts = taps.attention_outputs = true;
    taps.feed_forward_inputs = taps.neuron_activations = true;
    model_.run(place.pruned, layer_, layer_ + 1, gates, &taps);
    const at::Tensor residual = place.norm_first
                                    ? place.pruned.hidden + only(taps.attention_output, "block")
                                    : only(taps.feed_forward_input, "feed-forward block");
    const at::Tensor& valid = only(taps.valid, "attention block");
    add(sums, token_rows(only(taps.neurons, "feed-forward block"), valid),
        token_rows(place.feed_forward_target - residual, valid));
  }
  return sums;
}

void DenseWalk::end(const GateSet& gates) {
  const c10::NoGradGuard no_grad;
  for (Place& place : places_) {
    place.pruned = model_.run(place.pruned, layer_, layer_ + 1, gates);
    place.dense = std::move(place.dense_next);
    place.attention_target = place.feed_forward_target = at::Tensor();
  }
}

}  // namespace headkit
