#pragma once

#include <ATen/core/Tensor.h>

#include "attention/attention_call.h"
#include "attention/attention_problem.h"

namespace headkit {

/// 1 - gate as [1, H], [B, 1, H] or [B, T, H]: the share of the dropped outputs.
at::Tensor gate_complement(const AttentionProblem& problem, at::ScalarType dtype);

/// Gradients of the composite for `grad` [B, T, D], in the order of `GradientMask`; undefined where
/// `mask` is false. Recomputes the forward block by block (kMaxScores bounds its memory) and
/// touches open pairs only: skipped pairs get gate gradient 0.
DifferentiableTensors attention_composite_backward(const AttentionProblem& problem,
                                                   const at::Tensor& grad, GradientMask mask);

/// The same on the CPU kernels, for problems that they do not refuse. Bit for bit the same on any
/// number of threads. `saved`: what the forward kept (saved_pairs.h), or undefined.
DifferentiableTensors attention_cpu_backward(const AttentionProblem& problem,
                                             const at::Tensor& grad, const at::Tensor& saved,
                                             GradientMask mask);  // cpu_backward.cpp

/// The same by autograd of the reference.
DifferentiableTensors attention_reference_backward(const AttentionCall& call,
                                                   const at::Tensor& grad, GradientMask mask);

}  // namespace headkit
