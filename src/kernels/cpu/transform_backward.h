#pragma once

#include "kernels/cpu/project.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// The transpose of the rotation: there the sines lie inside.
HEADKIT_INLINE void rotate_backward(const TransformBackwardParams& p, float* column,
                                    const float* cosines, const float* sines) {
  const int64_t half = p.rotary_dim / 2;
  for (int64_t i = 0; i < half; ++i) {
    float* low = column + i * kPanel;
    float* high = low + half * kPanel;
    const float* of_low = cosines + i * kPanel;
    const Vec a = load(low), b = load(high);
    const Vec turned = fma(b, load(sines + (half + i) * kPanel), mul(a, load(of_low)));
    store(high, sub(mul(b, load(of_low + half * kPanel)), mul(a, load(sines + i * kPanel))));
    store(low, turned);
  }
}

// y = x / rms(x) * w
HEADKIT_INLINE void norm_backward(const TransformBackwardParams& p, float* column, const float* x) {
  const Vec size = broadcast(static_cast<float>(p.head_dim));
  Vec squares = zero(), product = zero();
  for (int64_t d = 0; d < p.head_dim; ++d) {
    const Vec value = load(x + d * kPanel);
    squares = fma(value, value, squares);
  }
  const Vec inverse =
      div(broadcast(1.0f), square_root(add(div(squares, size), broadcast(p.norm_eps))));
  for (int64_t d = 0; d < p.head_dim; ++d) {
    const Vec normed = mul(load(x + d * kPanel), inverse), dy = load(column + d * kPanel);
    float* sum = p.norm_gradient + d * kLanes;
    store(sum, fma(dy, normed, load(sum)));
    product = fma(mul(dy, broadcast(p.norm_weight[d])), normed, product);
  }
  const Vec mean = div(product, size);
  for (int64_t d = 0; d < p.head_dim; ++d) {
    float* at = column + d * kPanel;
    const Vec normed = mul(load(x + d * kPanel), inverse);
    const Vec inner = mul(load(at), broadcast(p.norm_weight[d]));
    store(at, mul(sub(inner, mul(normed, mean)), inverse));
  }
}

void transform_backward(const TransformBackwardParams& p) {
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    const int64_t vectors = vectors_of(panel_size(token, p.num_tokens));
    for (int64_t j = 0; j < vectors; ++j) {
      float* column = p.panels + token / kPanel * p.panel_stride + j * kLanes;
      const int64_t at = token * p.rotary_dim + j * kLanes;
      if (p.cosines != nullptr) rotate_backward(p, column, p.cosines + at, p.sines + at);
      if (p.norm_weight == nullptr) continue;
      norm_backward(p, column, p.projected + token * p.head_dim + j * kLanes);
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
