#include "headkit/models/objective.h"

#include <ATen/ATen.h>

#include <limits>

#include "headkit/core/error.h"
#include "models/counted_tokens.h"

namespace headkit {
namespace {

void check_logits(const char* name, const at::Tensor& output) {
  HEADKIT_CHECK((output.dim() == 2 || output.dim() == 3) && output.size(-1) > 0, name,
                "outputs of shape [batch, classes] or [batch, tokens, classes]", "shape ",
                output.sizes());
}

void check_dense(const char* name, const at::Tensor& output, const at::Tensor& dense) {
  HEADKIT_CHECK(dense.defined(), name, "the outputs of the dense model", "none");
  HEADKIT_CHECK(dense.sizes() == output.sizes(), name, "dense and gated outputs of one shape",
                "shapes ", dense.sizes(), " and ", output.sizes());
}

// What an output is compared with: classes, and which of them count; [B] or [B, T].
struct Labels {
  at::Tensor index;   // int64; 0 where it does not count
  at::Tensor counts;  // bool
};

Labels labels_for(const char* name, const at::Tensor& output, const at::Tensor& labels) {
  const at::IntArrayRef shape = output.sizes().slice(0, static_cast<size_t>(output.dim() - 1));
  HEADKIT_CHECK(labels.sizes() == shape, name,
                output.dim() == 2 ? "labels of shape [batch]" : "labels of shape [batch, tokens]",
                "shape ", labels.sizes(), " for outputs of shape ", output.sizes());
  HEADKIT_CHECK(!labels.is_floating_point(), name, "integer labels", labels.dtype().name());
  const at::Tensor index = labels.to(output.device(), at::kLong);
  Labels found;
  found.counts = output.dim() == 2 ? at::ones_like(index, at::kBool) : index.ne(kIgnoredLabel);
  found.index = at::where(found.counts, index, at::zeros_like(index));
  HEADKIT_CHECK(index.numel() == 0 || (found.index.min().item<int64_t>() >= 0 &&
                                       found.index.max().item<int64_t>() < output.size(-1)),
                name, "labels from 0 to " + std::to_string(output.size(-1) - 1),
                found.index.min().item<int64_t>(), " to ", found.index.max().item<int64_t>());
  return found;
}

Labels labels_of(const char* name, const at::Tensor& output, const Batch& batch) {
  check_logits(name, output);
  const at::Tensor labels = batch_entry(batch, "labels");
  HEADKIT_CHECK(labels.defined(), name, "a tensor 'labels' in the batch", "none");
  return labels_for(name, output, labels);
}

// Losses [B] as they are; of [B, T] the mean over the tokens that count.
at::Tensor per_example(const char* name, const at::Tensor& losses, const at::Tensor& counts) {
  if (losses.dim() == 1) return losses;
  const at::Tensor tokens = counts.sum(1);
  const at::Tensor without = tokens.eq(0).nonzero();
  HEADKIT_CHECK(without.size(0) == 0, name, "at least one token that counts in every example",
                "none in example ", without[0].item<int64_t>());
  return at::where(counts, losses, at::zeros_like(losses)).sum(1) / tokens;
}

at::Tensor negative_log_likelihood(const at::Tensor& output, const Labels& labels) {
  return -at::log_softmax(output, -1).gather(-1, labels.index.unsqueeze(-1)).squeeze(-1);
}

class CrossEntropy final : public Objective {
 public:
  std::string name() const override { return "cross_entropy"; }
  at::Tensor loss(const at::Tensor& output, const Batch& batch, const at::Tensor&) const override {
    const Labels labels = labels_of("cross_entropy", output, batch);
    return per_example("cross_entropy", negative_log_likelihood(output, labels), labels.counts);
  }
};

class NextToken final : public Objective {
 public:
  std::string name() const override { return "next_token"; }
  at::Tensor loss(const at::Tensor& output, const Batch& batch, const at::Tensor&) const override {
    HEADKIT_CHECK(output.dim() == 3 && output.size(2) > 0, "next_token",
                  "outputs of shape [batch, tokens, vocabulary]", "shape ", output.sizes());
    at::Tensor tokens = batch_entry(batch, "labels");
    at::Tensor mask;
    if (!tokens.defined()) {
      tokens = batch_entry(batch, "input_ids");
      mask = batch_entry(batch, "attention_mask");
    }
    HEADKIT_CHECK(tokens.defined(), "next_token", "a tensor 'labels' or 'input_ids' in the batch",
                  "neither");
    Labels labels = labels_for("next_token", output, tokens);
    if (mask.defined()) {
      HEADKIT_CHECK(is_token_mask(mask, output), "next_token",
                    "an attention_mask of shape [batch, tokens]", "shape ", mask.sizes());
      labels.counts = labels.counts.logical_and(mask.to(output.device()).ne(0));
    }
    // A first token after padding was not predicted from a token.
    at::Tensor counts = labels.counts.slice(1, 1);
    if (mask.defined()) counts = counts.logical_and(labels.counts.slice(1, 0, -1));
    const Labels next{labels.index.slice(1, 1), counts};
    return per_example("next_token", negative_log_likelihood(output.slice(1, 0, -1), next), counts);
  }
};

class Seq2Seq final : public Objective {
 public:
  std::string name() const override { return "seq2seq"; }
  at::Tensor loss(const at::Tensor& output, const Batch& batch, const at::Tensor&) const override {
    HEADKIT_CHECK(output.dim() == 3, "seq2seq", "outputs of shape [batch, tokens, vocabulary]",
                  "shape ", output.sizes());
    const Labels labels = labels_of("seq2seq", output, batch);
    return per_example("seq2seq", negative_log_likelihood(output, labels), labels.counts);
  }
};

class Margin final : public Objective {
 public:
  std::string name() const override { return "margin"; }
  at::Tensor loss(const at::Tensor& output, const Batch& batch, const at::Tensor&) const override {
    const Labels labels = labels_of("margin", output, batch);
    HEADKIT_CHECK(output.size(-1) >= 2, "margin", "at least two classes", "one");
    const at::Tensor index = labels.index.unsqueeze(-1);
    const at::Tensor other =
        output.scatter(-1, index, -std::numeric_limits<double>::infinity()).amax(-1);
    return per_example("margin", other - output.gather(-1, index).squeeze(-1), labels.counts);
  }
};

class KlToDense final : public Objective {
 public:
  explicit KlToDense(double temperature) : temperature_(temperature) {
    HEADKIT_CHECK(temperature > 0, "kl_to_dense", "a temperature above 0", temperature);
  }
  std::string name() const override { return "kl_to_dense"; }
  bool needs_dense() const override { return true; }
  bool stationary_at_dense() const override { return true; }
  at::Tensor loss(const at::Tensor& output, const Batch& batch,
                  const at::Tensor& dense) const override {
    check_logits("kl_to_dense", output);
    check_dense("kl_to_dense", output, dense);
    const at::Tensor log_p = at::log_softmax(dense / temperature_, -1);
    const at::Tensor log_q = at::log_softmax(output / temperature_, -1);
    const at::Tensor kl = (log_p.exp() * (log_p - log_q)).sum(-1) * (temperature_ * temperature_);
    return per_example("kl_to_dense", kl, counted_tokens(output, batch));
  }

 private:
  double temperature_;
};

class CosineToDense final : public Objective {
 public:
  std::string name() const override { return "cosine_to_dense"; }
  bool needs_dense() const override { return true; }
  bool stationary_at_dense() const override { return true; }
  at::Tensor loss(const at::Tensor& output, const Batch&, const at::Tensor& dense) const override {
    HEADKIT_CHECK(output.dim() == 2, "cosine_to_dense", "outputs of shape [batch, features]",
                  "shape ", output.sizes());
    check_dense("cosine_to_dense", output, dense);
    return 1 - at::cosine_similarity(output, dense, 1);
  }
};

}  // namespace

std::shared_ptr<Objective> cross_entropy() { return std::make_shared<CrossEntropy>(); }
std::shared_ptr<Objective> next_token() { return std::make_shared<NextToken>(); }
std::shared_ptr<Objective> seq2seq() { return std::make_shared<Seq2Seq>(); }
std::shared_ptr<Objective> margin() { return std::make_shared<Margin>(); }
std::shared_ptr<Objective> kl_to_dense(double temperature) {
  return std::make_shared<KlToDense>(temperature);
}
std::shared_ptr<Objective> cosine_to_dense() { return std::make_shared<CosineToDense>(); }

std::vector<std::string> objective_names() {
  return {"cross_entropy", "next_token", "seq2seq", "margin", "kl_to_dense", "cosine_to_dense"};
}

std::shared_ptr<Objective> make_objective(const std::string& name) {
  if (name == "cross_entropy") return cross_entropy();
  if (name == "next_token") return next_token();
  if (name == "seq2seq") return seq2seq();
  if (name == "margin") return margin();
  if (name == "kl_to_dense") return kl_to_dense();
  if (name == "cosine_to_dense") return cosine_to_dense();
  std::string known;
  for (const std::string& each : objective_names()) known += (known.empty() ? "" : ", ") + each;
  throw std::invalid_argument(error_message("make_objective", "one of " + known, "'", name, "'"));
}

}  // namespace headkit
