#pragma once

#include "kernels/cpu/vector.h"
#include "kernels/params.h"

namespace headkit::kernels::HEADKIT_ISA {
namespace {

// An activation and its derivative at one vector of inputs. max(zero(), x) keeps a NaN, which
// max(x, zero()) would not.
struct Activated {
  Vec value, slope;
};

template <int N>
HEADKIT_INLINE Vec polynomial(const float (&coefficients)[N], Vec x) {
  Vec sum = broadcast(coefficients[N - 1]);
#pragma GCC unroll 8
  for (int i = N - 2; i >= 0; --i) sum = fma(sum, x, broadcast(coefficients[i]));
  return sum;
}

HEADKIT_INLINE Vec negative(Vec x) { return sub(zero(), x); }

// x Phi(x) = max(x, 0) - |x| Phi(-|x|), with Phi the normal distribution: no digit is lost in
// either tail. Phi(-a) exp(a^2 / 2) is a ratio of polynomials, fitted for the least relative error
// over [0, 13.5] (5e-9); beyond, exp is 0.
HEADKIT_INLINE Activated gelu(Vec x) {
  constexpr float kAbove[] = {0.500000003f, 0.436147126f, 0.18164648f, 0.0400982787f,
                              0.00403703065f};
  constexpr float kBelow[] = {1.0f,         1.67017918f,  1.1958989f,
                              0.465276939f, 0.100518689f, 0.0101191963f};
  const Vec a = max(x, negative(x)), end = broadcast(14.0f);
  const Vec inside = if_less(a, end, a, end);  // so that infinity is no quotient of infinities
  const Vec bell = exponential(mul(mul(a, broadcast(-0.5f)), a));
  const Vec tail = mul(bell, div(polynomial(kAbove, inside), polynomial(kBelow, inside)));
  const Vec below = if_less(x, zero(), tail, sub(broadcast(1.0f), tail));
  return {sub(max(zero(), x), mul(inside, tail)),
          fma(mul(x, broadcast(0.398942280f)), bell, below)};
}

// x s(v) with s the logistic function, `rise` the derivative of v.
HEADKIT_INLINE Activated logistic(Vec x, Vec v, Vec rise) {
  const Vec one = broadcast(1.0f);
  const Vec e = exponential(negative(max(v, negative(v))));
  const Vec inverse = div(one, add(one, e));
  const Vec small = mul(e, inverse);
  const Vec s = if_less(v, zero(), small, inverse);
  const Vec rest = if_less(v, zero(), inverse, small);  // 1 - s
  return {mul(x, s), mul(s, fma(mul(x, rest), rise, one))};
}

template <Activation kind>
HEADKIT_INLINE Activated activated(Vec x) {
  if constexpr (kind == Activation::kGelu) {
    return gelu(x);
  } else if constexpr (kind == Activation::kGeluTanh) {
    // tanh(u) = 2 s(2 u) - 1
    constexpr float kTwice = 1.59576912f;  // 2 sqrt(2 / pi)
    constexpr float kCubic = 0.044715f;
    const Vec square = mul(x, x);
    const Vec v = mul(mul(x, broadcast(kTwice)), fma(square, broadcast(kCubic), broadcast(1.0f)));
    const Vec end = broadcast(1e4f);  // so that its product with a vanishing slope is 0
    const Vec rise = fma(if_less(square, end, square, end), broadcast(3.0f * kCubic * kTwice),
                         broadcast(kTwice));
    return logistic(x, v, rise);
  } else if constexpr (kind == Activation::kSilu) {
    return logistic(x, x, broadcast(1.0f));
  } else {
    return {max(zero(), x), if_less(zero(), x, broadcast(1.0f), zero())};
  }
}

// Calls run.template operator()<kind>().
template <class Run>
HEADKIT_INLINE void for_activation(Activation kind, const Run& run) {
  switch (kind) {
    case Activation::kGelu:
      return run.template operator()<Activation::kGelu>();
    case Activation::kGeluTanh:
      return run.template operator()<Activation::kGeluTanh>();
    case Activation::kRelu:
      return run.template operator()<Activation::kRelu>();
    case Activation::kSilu:
      return run.template operator()<Activation::kSilu>();
  }
}

}  // namespace
}  // namespace headkit::kernels::HEADKIT_ISA
