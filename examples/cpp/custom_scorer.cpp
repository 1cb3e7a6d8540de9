// A scorer of one's own, by how much a head writes: the mean norm of what it adds to the residual
// stream. The better half of the heads stays and is saved.
//
//     custom_scorer FOLDER PRUNED      the first of Hugging Face; the second is made

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>
#include <headkit/headkit.h>

#include <iostream>

namespace {

class WriteNormScorer final : public headkit::HeadScorer {
 public:
  headkit::HeadScores score(headkit::GatedModel& model, const headkit::DataSource& data,
                            const headkit::Objective&,
                            const headkit::ScoreOptions&) const override {
    const headkit::HeadLayout layout = model.layout();
    const headkit::HeadMask present = model.heads();
    const auto evaluating = model.evaluating();
    const c10::NoGradGuard no_grad;
    headkit::HeadScores scores;
    scores.metric = "write_norm";
    scores.values = at::zeros({layout.layers, layout.heads}, at::kDouble);
    data.for_each([&](const headkit::Batch& batch) {
      headkit::Taps taps;
      taps.head_contexts = true;
      model(batch, {}, &taps);
      for (int64_t layer = 0; layer < layout.layers; ++layer) {
        const std::vector<int64_t> heads = present.layer_heads(layer);
        const at::Tensor& context = taps.head_context[layer];  // [B, T, heads, dh]
        const at::Tensor columns =
            model.attention(layer).o.reshape({layout.model_dim, -1, layout.head_dim});
        const at::Tensor norms = at::einsum("bthd,mhd->bthm", {context, columns}).norm(2, 3);
        const at::Tensor valid = taps.valid[layer];  // undefined where nothing is padding
        const at::Tensor sums =
            (valid.defined() ? norms * valid.unsqueeze(2) : norms).sum({0, 1}, false, at::kDouble);
        scores.values[layer].index_add_(0, at::tensor(heads, at::kLong), sums);
      }
      scores.samples += headkit::batch_size(batch);
    });
    scores.values /= scores.samples;
    return scores;
  }
};

}  // namespace

int main(int argc, char** argv) try {
  if (argc != 3) {
    std::cerr << "usage: custom_scorer FOLDER PRUNED\n";
    return 2;
  }
  at::manual_seed(0);
  const auto model = headkit::load_encoder(argv[1]).model;
  std::vector<headkit::Batch> batches;
  for (int i = 0; i < 4; ++i) {  // texts of your own tell more than random tokens
    batches.push_back({{"input_ids", at::randint(model->config().vocabulary, {8, 16}, at::kLong)}});
  }
  const headkit::HeadScores scores =
      WriteNormScorer().score(*model, headkit::BatchList(batches), *headkit::cross_entropy(), {});
  std::cout << scores.values << "\n";

  const headkit::HeadMask mask = headkit::prune_top_fraction(scores, {.keep = 0.5});
  headkit::remove_heads(*model, mask);
  headkit::write_model_folder(argv[2], headkit::describe_encoder(*model));
  std::cout << mask.count() << " of " << model->layout().total_heads() << " heads are in "
            << argv[2] << "\n";
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
