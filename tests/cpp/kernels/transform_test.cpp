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
