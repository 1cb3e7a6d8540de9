#include "headkit/scorers/kl_curvature.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <torch/csrc/autograd/autograd.h>

#include <algorithm>
#include <random>

#include "core/json.h"
#include "distributed/measured_walk.h"
#include "headkit/core/error.h"
#include "models/counted_tokens.h"
#include "scorers/gate_slopes.h"
#include "scorers/score_sample.h"

namespace headkit {
namespace {

constexpr char kName[] = "kl_curvature";

// Numbers in [0, 1) for the tokens of one example, the same in whatever batch it comes.
at::Tensor uniforms(uint64_t seed, int64_t example, int64_t draws, int64_t tokens) {
  std::seed_seq mixed{seed, seed >> 32, static_cast<uint64_t>(example)};
  std::mt19937_64 random(mixed);
  at::Tensor numbers = at::empty({tokens, draws}, at::kDouble);
  double* next = numbers.mutable_data_ptr<double>();
  for (int64_t i = 0; i < numbers.numel(); ++i) {
    next[i] = static_cast<double>(random() >> 11) * 0x1p-53;
  }
  return numbers.t();
}

// Classes [draws, B, T] drawn from probabilities [B, T, C].
at::Tensor draw_classes(const at::Tensor& probabilities, uint64_t seed, int64_t first_example,
                        int64_t draws) {
  const at::Tensor cumulative = probabilities.to(at::kCPU, at::kDouble).cumsum(-1).contiguous();
  std::vector<at::Tensor> numbers;
  for (int64_t b = 0; b < cumulative.size(0); ++b) {
    numbers.push_back(uniforms(seed, first_example + b, draws, cumulative.size(1)));
  }
  const at::Tensor places = at::stack(numbers, 2);  // [draws, T, B]
  const at::Tensor wanted = places.permute({2, 1, 0}).contiguous() * cumulative.slice(-1, -1);
  return at::searchsorted(cumulative, wanted, false, true)
      .clamp_max(cumulative.size(-1) - 1)
      .permute({2, 0, 1});
}

}  // namespace

HeadScores KlCurvatureScorer::score(GatedModel& model, const DataSource& data, const Objective&,
                                    const ScoreOptions& options) const {
  check_score_options(options);
  HEADKIT_CHECK(options_.draws >= 0, kName, "a number of draws >= 0", options_.draws);
  const auto mode = model.evaluating();
  const HeadLayout layout = model.layout();
  const at::Tensor present = scored_heads(model);
  HeadScores scores;
  scores.metric = kName;
  scores.objective = "kl_to_dense";
  ScoreSample sample;
  const auto measure = [&](const Batch& batch, int64_t first) -> Measured {
    const int64_t examples = batch_size(batch);
    const ModelState state = embed_without_graph(model, batch);
    const c10::AutoGradMode grad_on(true);
    GateSet gates;
    gates.heads =
        at::ones({examples, layout.layers, layout.heads},
                 state.hidden.options().dtype(
                     state.hidden.scalar_type() == at::kDouble ? at::kDouble : at::kFloat))
            .set_requires_grad(true);
    if (options.dropped_output.defined()) {
      gates.dropped_output = options.dropped_output.to(state.hidden.options());
    }
    const at::Tensor output = model.head(model.run(state, 0, layout.layers, gates));
    HEADKIT_CHECK((output.dim() == 2 || output.dim() == 3) && output.size(-1) > 1, kName,
                  "logits of shape [batch, classes] or [batch, tokens, classes]", "shape ",
                  output.sizes());
    HEADKIT_CHECK(output.dim() == 2 || options_.draws > 0, kName,
                  "a number of draws above 0 for outputs by token", "0");
    HEADKIT_CHECK_RUNTIME(output.requires_grad(), kName, "outputs that depend on the gates",
                          "outputs without a gradient");
    const at::Tensor log_p = at::log_softmax(output, -1);
    const at::Tensor by_token = output.dim() == 2 ? log_p.unsqueeze(1) : log_p;  // [B, T, C]
    at::Tensor counted = counted_tokens(output, batch);
    counted = (counted.defined() ? counted : at::ones({examples, 1}, output.options()))
                  .to(output.options());
    const at::Tensor tokens = counted.sum(1).to(at::kCPU, at::kDouble);
    HEADKIT_CHECK(tokens.gt(0).all().item<bool>(), kName,
                  "at least one token that counts in every example", "none");
    const int64_t rounds = options_.draws > 0 ? options_.draws : by_token.size(2);
    at::Tensor drawn;
    if (options_.draws > 0) {
      drawn = draw_classes(by_token.detach().exp(), options.seed, first, options_.draws);
    }
    at::Tensor curvature = at::zeros({examples, layout.layers, layout.heads}, at::kDouble);
    for (int64_t round = 0; round < rounds; ++round) {
      // Scores of different tokens are independent with mean 0: the square of their sum is, in
      // expectation, the sum of their squares.
      const at::Tensor chosen =
          drawn.defined()
              ? by_token.gather(2, drawn[round].to(output.device()).unsqueeze(2)).squeeze(2)
              : by_token.select(2, round);
      const at::Tensor gradient =
          torch::autograd::grad({(chosen * counted).sum()}, {gates.heads}, {},
                                /*retain_graph=*/round + 1 < rounds)[0]
              .to(at::kCPU, at::kDouble);
      const at::Tensor weight =
          drawn.defined()
              ? 1.0 / (tokens * static_cast<double>(options_.draws))
              : by_token.detach().select(2, round).exp().sum(1).to(at::kCPU, at::kDouble);
      curvature += gradient.square() * weight.reshape({-1, 1, 1});
    }
    HEADKIT_CHECK_RUNTIME(curvature.isfinite().all().item<bool>(), kName, "finite gradients",
                          "NaN or infinity");
    return {curvature * present};
  };
  scores.samples = for_each_measured(
      kName, data, options.progress, measure, [&](const Batch& batch, const Measured& measured) {
        sample.add(measured[0], at::ones({batch_size(batch)}, at::kDouble));
      });
  HEADKIT_CHECK(!sample.empty(), kName, "data with at least one example", "none");
  if (sample.all_zero()) fail_all_zero(kName, *kl_to_dense());
  sample.summarise(options, scores);
  scores.settings = Json{{"normalization", options.normalization},
                         {"bootstrap", options.bootstrap},
                         {"draws", options_.draws},
                         {"compensated", options.dropped_output.defined()}}
                        .dump();
  return scores;
}

}  // namespace headkit
