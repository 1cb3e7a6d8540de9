#include "headkit/feed_forward/reference.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "feed_forward/activation.h"
#include "feed_forward/feed_forward_call.h"
#include "operators/recording.h"

namespace headkit {
at::Tensor feed_forward_reference(const FeedForwardProblem& problem) {
  const FeedForwardWeights& w = problem.weights;
  const auto projected = [&](const at::Tensor& weight, const at::Tensor& bias) {
    const at::Tensor y = problem.x.matmul(weight.t());
    return bias.defined() ? y + bias : y;
  };
  at::Tensor hidden = activate(problem.activation, projected(w.in, w.in_bias));
  if (w.up.defined()) hidden = hidden * projected(w.up, w.up_bias);
  const auto dtype = hidden.scalar_type();
  at::Tensor dropped;
  if (problem.gate.defined()) {
    const at::Tensor gate =
        (problem.gate.dim() == 1 ? problem.gate.unsqueeze(0) : problem.gate).unsqueeze(1);
    const at::Tensor by_neuron =
        gate.repeat_interleave(problem.block_size, -1).narrow(-1, 0, problem.neurons);
    hidden = (hidden * by_neuron).to(dtype);
    if (problem.dropped_output.defined()) {
      dropped = (1.0 - gate).to(dtype).matmul(problem.dropped_output);
    }
  }
  at::Tensor y = hidden.matmul(w.out.t());
  if (dropped.defined()) y = y + dropped;
  if (w.out_bias.defined()) y = y + w.out_bias;
  return y;
}

FeedForwardTensors feed_forward_reference_backward(const FeedForwardCall& call,
                                                   const at::Tensor& grad,
                                                   const FeedForwardMask& mask) {
  const AutogradGuard guard;
  FeedForwardTensors leaves = differentiable_tensors(call);
  std::vector<at::Tensor> wanted;
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    if (!leaves[i].defined()) continue;
    leaves[i] = leaves[i].detach();
    if (mask[i]) wanted.push_back(leaves[i].requires_grad_());
  }
  const FeedForwardProblem problem = make_problem(with_differentiable(call, leaves));
  const auto found =
      torch::autograd::grad({feed_forward_reference(problem)}, wanted, {grad}, std::nullopt,
                            /*create_graph=*/false, /*allow_unused=*/true);
  FeedForwardTensors gradients;
  size_t next = 0;
  for (size_t i = 0; i < kFeedForwardArguments; ++i) {
    if (!mask[i]) continue;
    gradients[i] = found[next].defined() ? found[next] : at::zeros_like(leaves[i]);
    ++next;
  }
  if (mask[kBlockGate] && problem.skip) {
    gradients[kBlockGate] = gradients[kBlockGate] * (problem.gate.detach() != 0);
  }
  return gradients;
}

at::Tensor reference_feed_forward(const at::Tensor& x, const FeedForwardWeights& weights,
                                  const FeedForwardInput& input) {
  return feed_forward_reference(make_problem(make_call(x, weights, input)));
}

}  // namespace headkit
