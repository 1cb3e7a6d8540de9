#include <ATen/ATen.h>

#include "feed_forward/activation.h"
#include "feed_forward/feed_forward_call.h"
#include "feed_forward/sample_groups.h"
#include "operators/sum_dtype.h"

namespace headkit {
namespace {

// Places along one dimension; undefined = all of it.
at::Tensor index_of(const std::vector<int64_t>& places, int64_t total, const at::Tensor& like) {
  if (static_cast<int64_t>(places.size()) == total) return {};
  return at::tensor(at::ArrayRef<int64_t>(places), at::kLong).to(like.device());
}

at::Tensor select(const at::Tensor& tensor, int64_t dim, const at::Tensor& index) {
  return index.defined() && tensor.defined() ? tensor.index_select(dim, index) : tensor;
}

void add_to(const at::Tensor& sum, int64_t dim, const at::Tensor& index, const at::Tensor& part) {
  if (index.defined()) {
    sum.index_add_(dim, index, part.to(sum.scalar_type()));
  } else {
    sum.add_(part);
  }
}

// What both directions share on one group: n samples, m neurons in k blocks.
struct GroupOperands {
  at::Tensor samples, blocks, neurons;           // int64; undefined = all
  at::Tensor x;                                  // [n * T, D]
  at::Tensor in, up, out;                        // [m, D], [m, D] or undefined, [D, m]
  at::Tensor before, activated, beside, hidden;  // [n * T, m]; beside: of up, or undefined
  at::Tensor gate;                               // undefined or [n or 1, k], not cast
  at::Tensor block_of;                           // [m] places among the k blocks

  GroupOperands(const FeedForwardProblem& problem, const SampleGroup& group) {
    const int64_t length = problem.x.size(1), width = problem.x.size(2);
    std::vector<int64_t> block_list, neuron_list, block_of_neuron;
    for (const int32_t block : group.blocks) {
      for (int64_t i = 0; i < problem.neurons_of(block); ++i) {
        neuron_list.push_back(problem.first_neuron(block) + i);
        block_of_neuron.push_back(static_cast<int64_t>(block_list.size()));
      }
      block_list.push_back(block);
    }
    const at::Tensor& like = problem.x;
    samples = index_of(group.samples, like.size(0), like);
    blocks = index_of(block_list, problem.blocks, like);
    neurons = index_of(neuron_list, problem.neurons, like);
    block_of = at::tensor(at::ArrayRef<int64_t>(block_of_neuron), at::kLong).to(like.device());
    const FeedForwardWeights& w = problem.weights;
    x = select(problem.x, 0, samples)
            .reshape({static_cast<int64_t>(group.samples.size()) * length, width});
    in = select(w.in, 0, neurons);
    up = select(w.up, 0, neurons);
    out = select(w.out, 1, neurons);
    before = at::linear(x, in, select(w.in_bias, 0, neurons));
    activated = activate(problem.activation, before);
    if (up.defined()) beside = at::linear(x, up, select(w.up_bias, 0, neurons));
    hidden = beside.defined() ? activated * beside : activated;
    if (problem.gate.defined()) {
      gate = problem.gate.dim() == 1 ? problem.gate.unsqueeze(0) : select(problem.gate, 0, samples);
      gate = select(gate, 1, blocks);
    }
  }

  // [n * T, m] times the gate of each neuron's block.
  at::Tensor gated(const at::Tensor& values, int64_t length) const {
    if (!gate.defined()) return values;
    const at::Tensor by_neuron = gate.index_select(1, block_of).unsqueeze(1);
    const int64_t samples_here = length == 0 ? 0 : values.size(0) / length;
    return (values.view({samples_here, length, values.size(1)}) * by_neuron)
        .to(values.scalar_type())
        .view(values.sizes());
  }
};

// 1 - gate as [1 or B, N]: the share of the dropped outputs.
at::Tensor gate_complement(const FeedForwardProblem& problem, at::ScalarType dtype) {
  const at::Tensor gate = problem.gate.dim() == 1 ? problem.gate.unsqueeze(0) : problem.gate;
  return (1.0 - gate).to(dtype);
}

bool computes(const FeedForwardProblem& problem, const SampleGroup& group) {
  return problem.x.numel() > 0 && !group.blocks.empty();
}

}  // namespace

at::Tensor feed_forward_composite(const FeedForwardProblem& problem) {
  const int64_t length = problem.x.size(1), width = problem.x.size(2);
  const auto dtype = problem.x.scalar_type(), wide = sum_dtype(dtype);
  at::Tensor y = at::zeros(problem.x.sizes(), problem.x.options().dtype(wide));
  for (const SampleGroup& group : sample_groups(problem, false)) {
    if (!computes(problem, group)) continue;
    const GroupOperands operands(problem, group);
    const at::Tensor part = operands.gated(operands.hidden, length).matmul(operands.out.t());
    add_to(y, 0, operands.samples,
           part.view({static_cast<int64_t>(group.samples.size()), length, width}));
  }
  if (problem.gate.defined() && problem.dropped_output.defined()) {
    y.add_(gate_complement(problem, wide).matmul(problem.dropped_output.to(wide)).unsqueeze(1));
  }
  if (problem.weights.out_bias.defined()) y.add_(problem.weights.out_bias);
  return y.to(dtype);
}

FeedForwardTensors feed_forward_composite_backward(const FeedForwardProblem& problem,
                                                   const at::Tensor& grad,
                                                   const FeedForwardMask& mask) {
  const int64_t batch = problem.x.size(0), length = problem.x.size(1), width = problem.x.size(2);
  const int64_t neurons = problem.neurons, blocks = problem.blocks;
  const auto wide = sum_dtype(problem.x.scalar_type());
  const auto zeros = [&](FeedForwardArgument argument, at::IntArrayRef shape) {
    return mask[argument] ? at::zeros(shape, problem.x.options().dtype(wide)) : at::Tensor();
  };
  FeedForwardTensors sums;
  sums[kFeedForwardX] = zeros(kFeedForwardX, problem.x.sizes());
  sums[kInWeight] = zeros(kInWeight, {neurons, width});
  sums[kUpWeight] = zeros(kUpWeight, {neurons, width});
  sums[kOutWeight] = zeros(kOutWeight, {width, neurons});
  sums[kInBias] = zeros(kInBias, {neurons});
  sums[kUpBias] = zeros(kUpBias, {neurons});
  sums[kBlockGate] = zeros(kBlockGate, {batch, blocks});
  at::Tensor open;  // [B, N]: blocks that run
  if (mask[kBlockGate]) open = at::zeros({batch, blocks}, problem.x.options().dtype(wide));
  const bool inner =
      mask[kFeedForwardX] || mask[kInWeight] || mask[kInBias] || mask[kUpWeight] || mask[kUpBias];

  for (const SampleGroup& group : sample_groups(problem, false)) {
    if (!computes(problem, group)) continue;
    const auto count = static_cast<int64_t>(group.samples.size());
    const auto open_blocks = static_cast<int64_t>(group.blocks.size());
    const GroupOperands operands(problem, group);
    const at::Tensor dy = select(grad, 0, operands.samples).reshape({count * length, width});
    if (mask[kOutWeight]) {
      add_to(sums[kOutWeight], 1, operands.neurons,
             dy.t().matmul(operands.gated(operands.hidden, length)));
    }
    if (!inner && !mask[kBlockGate]) continue;
    const at::Tensor d_out = dy.matmul(operands.out);  // of gate * hidden
    if (mask[kBlockGate]) {
      const at::Tensor by_neuron =
          (d_out.to(wide) * operands.hidden).view({count, length, -1}).sum(1);  // [n, m]
      const at::Tensor part = at::zeros({count, open_blocks}, by_neuron.options())
                                  .index_add_(1, operands.block_of, by_neuron);
      at::Tensor whole = part, ones = at::ones_like(part);
      if (operands.blocks.defined()) {
        whole = at::zeros({count, blocks}, part.options()).index_add_(1, operands.blocks, part);
        ones = at::zeros({count, blocks}, part.options()).index_add_(1, operands.blocks, ones);
      }
      add_to(sums[kBlockGate], 0, operands.samples, whole);
      add_to(open, 0, operands.samples, ones);
    }
    if (!inner) continue;
    const at::Tensor d_hidden = operands.gated(d_out, length);
    at::Tensor d_before = operands.beside.defined() ? d_hidden * operands.beside : d_hidden;
    d_before = activate_backward(problem.activation, d_before, operands.before);
    const auto add_inputs = [&](const at::Tensor& d, FeedForwardArgument weight,
                                FeedForwardArgument bias, const at::Tensor& rows) {
      if (mask[weight]) add_to(sums[weight], 0, operands.neurons, d.t().matmul(operands.x));
      if (mask[bias]) add_to(sums[bias], 0, operands.neurons, d.sum(0, false, wide));
      if (mask[kFeedForwardX]) {
        add_to(sums[kFeedForwardX], 0, operands.samples,
               d.matmul(rows).view({count, length, width}));
      }
    };
    add_inputs(d_before, kInWeight, kInBias, operands.in);
    if (operands.beside.defined()) {
      add_inputs(d_hidden * operands.activated, kUpWeight, kUpBias, operands.up);
    }
  }

  const at::Tensor dy = grad.to(wide).sum(1);  // [B, D]
  if (mask[kOutBias]) sums[kOutBias] = dy.sum(0);
  if (mask[kBlockGate]) {
    if (problem.dropped_output.defined()) {
      // A block that the mask mode runs, or without any token, is open too.
      if (!problem.skip) open.fill_(1);
      sums[kBlockGate].sub_(dy.matmul(problem.dropped_output.to(wide).t()).mul_(open));
    }
    if (problem.gate.dim() == 1) sums[kBlockGate] = sums[kBlockGate].sum(0);
  }
  if (mask[kDroppedBlocks] && problem.gate.defined()) {
    sums[kDroppedBlocks] = gate_complement(problem, wide).expand({batch, blocks}).t().matmul(dy);
  }
  return sums;
}

}  // namespace headkit
