#pragma once

#include "kernels/cpu/project.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// One vector of tokens, down the dimensions of their heads.
void transform_lane(const TransformParams& p, float* column, const float* cosines,
                    const float* sines) {
  const Vec scale = broadcast(p.scale);
  if (p.norm_weight != nullptr) {
    Vec sum = zero();
    for (int64_t d = 0; d < p.head_dim; ++d) {
      const Vec x = load(column + d * kPanel);
      sum = fma(x, x, sum);
    }
    const Vec mean = div(sum, broadcast(static_cast<float>(p.head_dim)));
    const Vec inverse = div(broadcast(1.0f), square_root(add(mean, broadcast(p.norm_eps))));
    for (int64_t d = 0; d < p.head_dim; ++d) {
      float* at = column + d * kPanel;
      store(at, mul(mul(load(at), inverse), broadcast(p.norm_weight[d])));
    }
  }
  int64_t d = 0;
  if (cosines != nullptr) {
    const int64_t half = p.rotary_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      float* low = column + i * kPanel;
      float* high = low + half * kPanel;
      const Vec a = load(low), b = load(high);
      const Vec turned = sub(mul(a, load(cosines + i * kPanel)), mul(b, load(sines + i * kPanel)));
      const Vec other =
          fma(a, load(sines + (half + i) * kPanel), mul(b, load(cosines + (half + i) * kPanel)));
      store(low, mul(scale, turned));
      store(high, mul(scale, other));
    }
    d = 2 * half;
  }
  for (; d < p.head_dim; ++d) {
    float* at = column + d * kPanel;
    store(at, mul(scale, load(at)));
  }
}

void transform(const TransformParams& p) {
  for (int64_t token = 0; token < p.num_tokens; token += kPanel) {
    const int64_t vectors = vectors_of(panel_size(token, p.num_tokens));
    for (int64_t j = 0; j < vectors; ++j) {
      const int64_t at = token * p.rotary_dim + j * kLanes;
      transform_lane(p, p.panels + token * p.head_dim + j * kLanes,
                     p.cosines == nullptr ? nullptr : p.cosines + at,
                     p.sines == nullptr ? nullptr : p.sines + at);
    }
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
