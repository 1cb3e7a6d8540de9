#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include "attention/composite_backward.h"
#include "attention/pair_block.h"
#include "operators/recording.h"

namespace headkit {

DifferentiableTensors attention_reference_backward(const AttentionCall& call,
                                                   const at::Tensor& grad, GradientMask mask) {
  const AutogradGuard guard;
  DifferentiableTensors leaves = differentiable_tensors(call);
  std::vector<at::Tensor> wanted;
  for (size_t i = 0; i < kDifferentiable; ++i) {
    if (!leaves[i].defined()) continue;
    leaves[i] = leaves[i].detach();
    if (mask[i]) wanted.push_back(leaves[i].requires_grad_());
  }
  const AttentionProblem problem = make_problem(with_differentiable(call, leaves));
  const auto found =
      torch::autograd::grad({attention_reference(problem)}, wanted, {grad}, std::nullopt,
                            /*create_graph=*/false, /*allow_unused=*/true);
  DifferentiableTensors gradients;
  size_t next = 0;
  for (size_t i = 0; i < kDifferentiable; ++i) {
    if (!mask[i]) continue;
    gradients[i] = found[next].defined() ? found[next] : at::zeros_like(leaves[i]);
    ++next;
  }
  if (mask[kGate] && problem.skip) {
    at::Tensor open = open_pairs(problem).to_keep().to(grad.device());
    if (problem.gate.dim() == 1) open = open.any(0);
    if (problem.gate.dim() == 3) open = open.unsqueeze(1);
    gradients[kGate] = gradients[kGate] * open;
  }
  return gradients;
}

}  // namespace headkit
