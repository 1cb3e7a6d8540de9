#include <ATen/ATen.h>
#include <headkit/headkit.h>

#include <iostream>

int main() {
  headkit::MultiHeadAttention attention(headkit::MultiHeadAttentionOptions(768, 12));
  at::NoGradGuard inference;
  at::Tensor x = at::randn({8, 128, 768});
  at::Tensor gate = at::rand({8, 12}).gt(0.5).to(at::kFloat);  // each sample picks its heads
  at::Tensor y = attention->forward(x, headkit::AttentionInput().gate(gate));
  std::cout << y.sizes() << " from " << gate.sum().item<int>() << " of 96 heads\n";
}
