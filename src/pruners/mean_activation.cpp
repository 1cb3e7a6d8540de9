#include "headkit/pruners/mean_activation.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include "distributed/measured_walk.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

// 1 where a sample counts for a neuron: where the neuron is closed. [B, L, F], double, CPU.
at::Tensor closed_samples(const char* operation, const GateSet& gates, int64_t batch,
                          const at::Tensor& present) {
  const int64_t layers = present.size(0), neurons = present.size(1);
  const int64_t blocks = (neurons + kNeuronBlock - 1) / kNeuronBlock;
  gates.check_feed_forward(operation, batch, layers, neurons);
  gates.check_blocks(operation, batch, layers, blocks);
  at::Tensor closed = at::zeros({batch, layers, neurons}, at::kBool);
  const auto add = [&](const at::Tensor& values) {
    closed = closed.logical_or(values.detach().to(at::kCPU).eq(0));
  };
  if (gates.neurons.defined()) add(gates.neurons);
  if (gates.blocks.defined()) {
    add(gates.blocks.repeat_interleave(kNeuronBlock, -1).narrow(-1, 0, neurons));
  }
  return closed.to(at::kDouble);
}

struct Means {
  at::Tensor neurons;  // [L, F], double
  at::ScalarType dtype = at::kFloat;
};

Means means_of(const char* operation, GatedModel& model, const DataSource& data,
               const MeanOutputOptions& options) {
  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  const at::Tensor present = model.neurons();
  const int64_t layers = present.size(0);
  // Sums and tokens over all samples and over those where a neuron is closed; whether the model is
  // in float64.
  const auto measure = [&](const Batch& batch, int64_t) -> Measured {
    at::Tensor sums = at::zeros(present.sizes(), at::kDouble);
    at::Tensor closed_sums = at::zeros_like(sums), closed_tokens = at::zeros_like(sums);
    at::Tensor all_tokens = at::zeros({layers, 1}, at::kDouble);
    const ModelState state = model.embed(batch);
    const GateSet gates = options.decide ? options.decide(state) : options.gates;
    const int64_t examples = state.hidden.size(0);
    const at::Tensor closed = closed_samples(operation, gates, examples, present);
    Taps taps;
    taps.head_contexts = taps.neuron_activations = true;
    model.run(state, 0, model.layout().layers, gates, &taps);
    HEADKIT_CHECK(static_cast<int64_t>(taps.neurons.size()) == layers &&
                      taps.valid.size() == taps.neurons.size(),
                  operation, "the neurons of every feed-forward block", taps.neurons.size(), " of ",
                  layers);
    for (int64_t layer = 0; layer < layers; ++layer) {
      const at::Tensor values = taps.neurons[layer].to(at::kCPU, at::kDouble);
      const at::Tensor index = present[layer].nonzero().flatten();
      const at::Tensor valid = taps.valid[layer].defined()
                                   ? taps.valid[layer].to(at::kCPU, at::kDouble)
                                   : at::ones({examples, values.size(1)}, at::kDouble);
      const std::vector<int64_t> shape{examples, valid.size(1), index.size(0)};
      HEADKIT_CHECK(values.sizes() == at::IntArrayRef(shape), operation,
                    c10::str("neurons of shape ", at::IntArrayRef(shape)), "shape ", values.sizes(),
                    " in layer ", layer);
      const at::Tensor tokens = valid.sum(1);
      const at::Tensor sum = at::einsum("bt,btf->bf", {valid, values});
      const at::Tensor share = closed.select(1, layer).index_select(1, index);
      sums[layer].index_add_(0, index, sum.sum(0));
      all_tokens[layer] += tokens.sum();
      closed_sums[layer].index_add_(0, index, (sum * share).sum(0));
      closed_tokens[layer].index_add_(0, index, at::mv(share.t(), tokens));
    }
    const bool wide = state.hidden.scalar_type() == at::kDouble;
    return {sums, all_tokens, closed_sums, closed_tokens, at::full({}, wide, at::kBool)};
  };
  at::Tensor sums = at::zeros(present.sizes(), at::kDouble);
  at::Tensor closed_sums = at::zeros_like(sums), closed_tokens = at::zeros_like(sums);
  at::Tensor all_tokens = at::zeros({layers, 1}, at::kDouble);
  Means means;
  for_each_measured(operation, data, options.progress, measure,
                    [&](const Batch&, const Measured& measured) {
                      sums += measured[0];
                      all_tokens += measured[1];
                      closed_sums += measured[2];
                      closed_tokens += measured[3];
                      if (measured[4].item<bool>()) means.dtype = at::kDouble;
                    });
  HEADKIT_CHECK(!present.any().item<bool>() || all_tokens.sum().item<double>() > 0, operation,
                "data with at least one token", "none");
  means.neurons = at::where(closed_tokens.gt(0), closed_sums / closed_tokens.clamp_min(1),
                            sums / all_tokens.clamp_min(1));
  return means;
}

}  // namespace

at::Tensor mean_neuron_activations(GatedModel& model, const DataSource& data,
                                   const MeanOutputOptions& options) {
  const Means means = means_of("mean_neuron_activations", model, data, options);
  return means.neurons.to(means.dtype);
}

at::Tensor mean_block_outputs(GatedModel& model, const DataSource& data,
                              const MeanOutputOptions& options) {
  const Means means = means_of("mean_block_outputs", model, data, options);
  const at::Tensor present = model.neurons();
  const int64_t layers = present.size(0);
  const int64_t blocks = (present.size(1) + kNeuronBlock - 1) / kNeuronBlock;
  at::Tensor outputs = at::zeros({layers, blocks, model.layout().model_dim}, at::kDouble);
  for (int64_t layer = 0; layer < layers; ++layer) {
    const at::Tensor index = present[layer].nonzero().flatten();
    const at::Tensor weight = model.feed_forward(layer).out.detach().to(at::kCPU, at::kDouble);
    const at::Tensor added = weight * means.neurons[layer].index_select(0, index);  // [D, n]
    outputs[layer].index_add_(0, index.floor_divide(kNeuronBlock), added.t());
  }
  return outputs.to(means.dtype);
}

}  // namespace headkit
