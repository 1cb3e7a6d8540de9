// A model of one's own under the hybrid pruner: fit to a budget, promise a risk, run.

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <headkit/headkit.h>

#include <iostream>

namespace {

constexpr int64_t kLayers = 4, kHeads = 4, kWidth = 8, kModel = kHeads * kWidth, kClasses = 2;

// Attention layers on a residual stream, and a classifier on its mean: all that gates need to know
// of a model.
class Encoder final : public headkit::GatedModel {
 public:
  Encoder() {
    for (int64_t l = 0; l < kLayers; ++l) {
      headkit::AttentionWeights weights;
      for (at::Tensor* each : {&weights.q, &weights.k, &weights.v, &weights.o}) {
        *each = at::randn({kModel, kModel}) / 8;
      }
      layers_.push_back(weights);
    }
  }
  headkit::HeadLayout layout() const override { return {kLayers, kHeads, kWidth, kModel, 0}; }
  headkit::HeadMask heads() const override { return headkit::HeadMask::all(kLayers, kHeads); }
  headkit::ModelState embed(const headkit::Batch& batch) override {
    headkit::ModelState state;
    state.hidden = batch.at("x");
    state.batch = batch;
    return state;
  }
  headkit::ModelState run(const headkit::ModelState& state, int64_t first, int64_t last,
                          const headkit::GateSet& gates, headkit::Taps* taps) override {
    headkit::ModelState next = state;
    for (int64_t l = first; l < last; ++l) {
      headkit::AttentionInput input;
      if (const at::Tensor gate = gates.layer_gate(l); gate.defined()) {
        input.gate(gate).skip(gates.skip);
        if (gates.dropped_output.defined()) input.dropped_output(gates.layer_dropped_output(l));
      }
      if (taps != nullptr && taps->head_contexts) {  // for the mean outputs of heads
        taps->head_context.push_back(
            headkit::head_contexts(next.hidden, layers_[l], kHeads, headkit::AttentionInput()));
        taps->valid.emplace_back();
      }
      next.hidden = next.hidden + headkit::gated_attention(next.hidden, layers_[l], kHeads, input);
    }
    next.layer = last;
    return next;
  }
  at::Tensor head(const headkit::ModelState& state) override {
    return at::matmul(state.hidden.mean(1), classifier_);
  }
  headkit::AttentionWeights attention(int64_t layer) override { return layers_.at(layer); }
  void replace_attention(int64_t layer, const headkit::AttentionWeights& weights,
                         const std::vector<int64_t>&) override {
    layers_.at(layer) = weights;
  }
  std::vector<std::pair<std::string, at::Tensor>> parameters() override {
    std::vector<std::pair<std::string, at::Tensor>> all{{"classifier", classifier_}};
    for (int64_t l = 0; l < kLayers; ++l) {
      const std::string layer = std::to_string(l);
      all.insert(all.end(), {{layer + ".q", layers_[l].q},
                             {layer + ".k", layers_[l].k},
                             {layer + ".v", layers_[l].v},
                             {layer + ".o", layers_[l].o}});
    }
    return all;
  }

 private:
  std::vector<headkit::AttentionWeights> layers_;
  at::Tensor classifier_ = at::randn({kModel, kClasses});
};

headkit::BatchList examples(int64_t batches, Encoder& model) {
  std::vector<headkit::Batch> all;
  for (int64_t i = 0; i < batches; ++i) {
    headkit::Batch batch{{"x", at::randn({32, 6, kModel})}};
    batch["labels"] = model(batch).argmax(1);
    all.push_back(batch);
  }
  return headkit::BatchList(all);
}

}  // namespace

int main() {
  at::manual_seed(0);
  const c10::NoGradGuard no_grad;
  Encoder model;
  headkit::HybridSettings settings;
  settings.budget.mean_heads = 12;  // of 16, runs of the second rung included
  const headkit::FittedHybrid fitted =
      headkit::fit_hybrid(model, examples(8, model), *headkit::cross_entropy(), settings);
  for (const headkit::HybridArm& arm : fitted.report.arms) {
    std::cout << arm.name << ": " << arm.heads << " heads, " << arm.agreement
              << " of the labels stay\n";
  }

  const headkit::Calibration promise = headkit::calibrate(
      model, *fitted.policy, examples(8, model), headkit::make_output_loss("flip"),
      {.risk = 0.05, .length_buckets = 1}, {.grid = fitted.report.grid});
  const headkit::CalibratedPolicy policy(fitted.policy, promise, fitted.report.lambda);
  std::cout << "at most 0.05 of them change from lambda " << promise.lambda << " on; it runs at "
            << policy.lambda() << "\n";

  examples(1, model).for_each([&](const headkit::Batch& batch) {
    const headkit::PolicyRun run = headkit::run_policy(model, batch, policy);
    std::cout << run.heads_run.to(at::kDouble).mean().item<double>()
              << " heads for an example on average\n";
  });
}
