#pragma once

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>

#include <vector>

namespace headkit {

/// Whether a graph is recorded for a function of these tensors.
inline bool records_graph(at::TensorList tensors) {
  if (!at::GradMode::is_enabled()) return false;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.requires_grad()) return true;
  }
  return false;
}

/// Those of an array that are defined.
template <typename Tensors>
std::vector<at::Tensor> defined_only(const Tensors& tensors) {
  std::vector<at::Tensor> list;
  for (const at::Tensor& tensor : tensors) {
    if (tensor.defined()) list.push_back(tensor);
  }
  return list;
}

/// Records a graph inside a kernel, which runs below autograd.
struct AutogradGuard {
  AutogradGuard()
      : keys(c10::impl::tls_local_dispatch_key_set().included_,
             c10::impl::tls_local_dispatch_key_set().excluded_ -
                 (c10::autograd_dispatch_keyset_with_ADInplaceOrView)),
        mode(true) {}
  c10::impl::ForceDispatchKeyGuard keys;
  at::AutoGradMode mode;
};

}  // namespace headkit
