#include "cpp/kernels/kernel_problem.h"

namespace headkit::kernels {
namespace {

using TransformTest = LevelTest;

struct Case {
  int64_t tokens, head_dim, rotary_dim;
  bool norm;
};

// x [tokens][head_dim] after norm, rotary embedding and factor.
template <typename Number>
std::vector<Number> plain_transform(const Case& c, const std::vector<float>& x,
                                    const std::vector<float>& weight,
                                    const std::vector<float>& cosines,
                                    const std::vector<float>& sines, float scale) {
  std::vector<Number> y(x.begin(), x.end());
  for (int64_t t = 0; t < c.tokens; ++t) {
    Number* row = y.data() + t * c.head_dim;
    if (c.norm) {
      Number sum = 0;
      for (int64_t d = 0; d < c.head_dim; ++d) sum += row[d] * row[d];
      const Number rms = std::sqrt(sum / Number(c.head_dim) + Number(1e-6f));
      for (int64_t d = 0; d < c.head_dim; ++d) row[d] = row[d] / rms * Number(weight[d]);
    }
    const int64_t half = c.rotary_dim / 2;
    for (int64_t i = 0; i < half; ++i) {
      const float* cosine = cosines.data() + t * c.rotary_dim;
      const float* sine = sines.data() + t * c.rotary_dim;
      const Number low = row[i], high = row[half + i];
      row[i] = low * Number(cosine[i]) - high * Number(sine[i]);
      row[half + i] = high * Number(cosine[half + i]) + low * Number(sine[half + i]);
    }
    for (int64_t d = 0; d < c.head_dim; ++d) row[d] *= Number(scale);
  }
  return y;
}

// Of the sum of y * seed, before the factor: those of x, and of the weight.
template <typename Number>
struct TransformGradients {
  std::vector<Number> x, weight;
};

// The chain rule, written out.
TransformGradients<float> plain_gradients(const Case& c, const std::vector<float>& x,
                                          const std::vector<float>& weight,
                                          const std::vector<float>& cosines,
                                          const std::vector<float>& sines,
                                          const std::vector<float>& seed) {
  TransformGradients<float> g{seed, std::vector<float>(c.head_dim, 0.0f)};
  const int64_t half = c.rotary_dim / 2;
  for (int64_t t = 0; t < c.tokens; ++t) {
    float* dy = g.x.data() + t * c.head_dim;
    const float* row = x.data() + t * c.head_dim;
    const float* cosine = cosines.data() + t * c.rotary_dim;
    const float* sine = sines.data() + t * c.rotary_dim;
    for (int64_t i = 0; i < half; ++i) {
      const float low = dy[i], high = dy[half + i];
      dy[i] = low * cosine[i] + high * sine[half + i];
      dy[half + i] = high * cosine[half + i] - low * sine[i];
    }
    if (!c.norm) continue;
    float squares = 0, product = 0;
    for (int64_t d = 0; d < c.head_dim; ++d) squares += row[d] * row[d];
    const float inverse = 1.0f / std::sqrt(squares / c.head_dim + 1e-6f);
    for (int64_t d = 0; d < c.head_dim; ++d) {
      g.weight[d] += dy[d] * row[d] * inverse;
      product += dy[d] * weight[d] * row[d] * inverse;
    }
    for (int64_t d = 0; d < c.head_dim; ++d) {
      dy[d] = (dy[d] * weight[d] - row[d] * inverse * product / c.head_dim) * inverse;
    }
  }
  return g;
}

// Central differences of the forward in float64.
TransformGradients<double> exact_gradients(const Case& c, const std::vector<float>& x,
                                           const std::vector<float>& weight,
                                           const std::vector<float>& cosines,
                                           const std::vector<float>& sines,
                                           const std::vector<float>& seed) {
  const auto moved = [&](bool of_weight, int64_t place) {
    const float step = std::ldexp(1.0f, -12);
    std::vector<float> values = of_weight ? weight : x;
    double difference[2] = {};
    float at[2];
    for (const int side : {0, 1}) {
      values[place] = (of_weight ? weight : x)[place] + (side == 0 ? -step : step);
      at[side] = values[place];
      const auto y = plain_transform<double>(c, of_weight ? x : values, of_weight ? values : weight,
                                             cosines, sines, 1.0f);
      for (size_t i = 0; i < y.size(); ++i) difference[side] += y[i] * seed[i];
    }
    return (difference[1] - difference[0]) / (double(at[1]) - at[0]);
  };
  TransformGradients<double> g;
  for (size_t i = 0; i < x.size(); ++i) g.x.push_back(moved(false, i));
  for (int64_t d = 0; d < c.head_dim; ++d) g.weight.push_back(c.norm ? moved(true, d) : 0.0);
  return g;
}

TEST_P(TransformTest, BackwardAgreesWithDifferences) {
  for (const Case& c : {Case{1, 2, 2, false}, Case{7, 6, 4, true}, Case{50, 6, 6, false},
                        Case{52, 5, 0, true}, Case{20, 8, 4, true}}) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.head_dim << ", rotary "
                                    << c.rotary_dim << (c.norm ? ", norm" : ""));
    const std::vector<float> x = random_floats(c.tokens * c.head_dim, 1);
    const std::vector<float> weight = random_floats(c.head_dim, 2);
    const std::vector<float> cosines = random_floats(c.tokens * c.rotary_dim, 3);
    const std::vector<float> sines = random_floats(c.tokens * c.rotary_dim, 4);
    const std::vector<float> seed = random_floats(c.tokens * c.head_dim, 5);
    const auto panels_of = [&](const std::vector<float>& rows, int64_t width) {
      Problem p{.tokens = c.tokens, .width = width};
      p.x = rows;
      return pack_tokens(table(), p);
    };
    const int64_t P = table().panel, VL = table().vector_length, gap = 3 * P;
    const int64_t stride = P * c.head_dim + gap, panels = (c.tokens + P - 1) / P;
    const Floats packed = panels_of(seed, c.head_dim);
    Floats gradient(panels * stride), norm(c.head_dim * VL, 0.0f);
    for (int64_t i = 0; i < packed.size(); ++i) {
      gradient[i / (P * c.head_dim) * stride + i % (P * c.head_dim)] = packed[i];
    }
    const Floats projected = panels_of(x, c.head_dim);
    const Floats cosine_panels = panels_of(cosines, c.rotary_dim);
    const Floats sine_panels = panels_of(sines, c.rotary_dim);
    table().transform_backward({.panels = gradient.data(),
                                .projected = c.norm ? projected.data() : nullptr,
                                .norm_weight = c.norm ? weight.data() : nullptr,
                                .cosines = c.rotary_dim > 0 ? cosine_panels.data() : nullptr,
                                .sines = c.rotary_dim > 0 ? sine_panels.data() : nullptr,
                                .norm_gradient = c.norm ? norm.data() : nullptr,
                                .num_tokens = c.tokens,
                                .head_dim = c.head_dim,
                                .rotary_dim = c.rotary_dim,
                                .panel_stride = stride,
                                .norm_eps = 1e-6f});
    ASSERT_TRUE(gradient.intact() && norm.intact());
    std::vector<float> found, of_weight(c.head_dim, 0.0f);
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t d = 0; d < c.head_dim; ++d) {
        found.push_back(gradient[t / P * stride + d * P + t % P]);
      }
    }
    for (int64_t i = 0; i < norm.size(); ++i) of_weight[i / VL] += norm[i];
    const auto plain = plain_gradients(c, x, weight, cosines, sines, seed);
    const auto exact = exact_gradients(c, x, weight, cosines, sines, seed);
    expect_accurate(found, plain.x, exact.x);
    expect_accurate(of_weight, plain.weight, exact.weight);
  }
}

TEST_P(TransformTest, AgreesWithFloat64) {
  for (const Case& c : {Case{1, 2, 2, false}, Case{7, 6, 4, true}, Case{50, 64, 64, false},
                        Case{101, 80, 32, true}, Case{48, 5, 0, true}, Case{20, 8, 0, false}}) {
    SCOPED_TRACE(testing::Message() << c.tokens << " tokens, " << c.head_dim << ", rotary "
                                    << c.rotary_dim << (c.norm ? ", norm" : ""));
    const std::vector<float> x = random_floats(c.tokens * c.head_dim, 1);
    const std::vector<float> weight = random_floats(c.head_dim, 2);
    const std::vector<float> cosines = random_floats(c.tokens * c.rotary_dim, 3);
    const std::vector<float> sines = random_floats(c.tokens * c.rotary_dim, 4);
    const auto panels_of = [&](const std::vector<float>& rows, int64_t width) {
      Problem p{.tokens = c.tokens, .width = width};
      p.x = rows;
      return pack_tokens(table(), p);
    };
    Floats panels = panels_of(x, c.head_dim);
    const Floats cosine_panels = panels_of(cosines, c.rotary_dim);
    const Floats sine_panels = panels_of(sines, c.rotary_dim);
    table().transform({.panels = panels.data(),
                       .norm_weight = c.norm ? weight.data() : nullptr,
                       .cosines = c.rotary_dim > 0 ? cosine_panels.data() : nullptr,
                       .sines = c.rotary_dim > 0 ? sine_panels.data() : nullptr,
                       .num_tokens = c.tokens,
                       .head_dim = c.head_dim,
                       .rotary_dim = c.rotary_dim,
                       .norm_eps = 1e-6f,
                       .scale = 0.3f});
    ASSERT_TRUE(panels.intact());
    std::vector<float> found;
    const int64_t P = table().panel;
    for (int64_t t = 0; t < c.tokens; ++t) {
      for (int64_t d = 0; d < c.head_dim; ++d) {
        found.push_back(panels[t / P * P * c.head_dim + d * P + t % P]);
      }
    }
    expect_accurate(found, plain_transform<float>(c, x, weight, cosines, sines, 0.3f),
                    plain_transform<double>(c, x, weight, cosines, sines, 0.3f));
  }
}

INSTANTIATE_TEST_SUITE_P(Levels, TransformTest, every_level(), level_name);

}  // namespace
}  // namespace headkit::kernels
