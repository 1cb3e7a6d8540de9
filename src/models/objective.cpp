#include "headkit/models/objective.h"

#include <ATen/ATen.h>

#include <limits>

#include "headkit/core/error.h"

namespace headkit {
namespace {

void check_logits(const char* name, const at::Tensor& output) {
  HEADKIT_CHECK(output.dim() == 2 && output.size(1) > 0, name, "outputs of shape [batch, classes]",
                "shape ", output.sizes());
}

void check_dense(const char* name, const at::Tensor& output, const at::Tensor& dense) {
  HEADKIT_CHECK(dense.defined(), name, "the outputs of the dense model", "none");
  HEADKIT_CHECK(dense.sizes() == output.sizes(), name, "dense and gated outputs of one shape",
                "shapes ", dense.sizes(), " and ", output.sizes());
}

at::Tensor class_labels(const char* name, const at::Tensor& output, const Batch& batch) {
  check_logits(name, output);
  const auto found = batch.find("labels");
  HEADKIT_CHECK(found != batch.end(), name, "a tensor 'labels' in the batch", "none");
  const at::Tensor& labels = found->second;
  HEADKIT_CHECK(labels.dim() == 1 && labels.size(0) == output.size(0), name,
                "labels of shape [batch]", "shape ", labels.sizes(), " for outputs of shape ",
                output.sizes());
  HEADKIT_CHECK(!labels.is_floating_point(), name, "integer labels", labels.dtype().name());
  const at::Tensor index = labels.to(output.device(), at::kLong);
  HEADKIT_CHECK(index.numel() == 0 || (index.min().item<int64_t>() >= 0 &&
                                       index.max().item<int64_t>() < output.size(1)),
                name, "labels from 0 to " + std::to_string(output.size(1) - 1),
                index.min().item<int64_t>(), " to ", index.max().item<int64_t>());
  return index;
}

class CrossEntropy final : public Objective {
 public:
  std::string name() const override { return "cross_entropy"; }
  at::Tensor loss(const at::Tensor& output, const Batch& batch, const at::Tensor&) const override {
    const at::Tensor labels = class_labels("cross_entropy", output, batch);
    return -at::log_softmax(output, 1).gather(1, labels.unsqueeze(1)).squeeze(1);
  }
};

class Margin final : public Objective {
 public:
  std::string name() const override { return "margin"; }
  at::Tensor loss(const at::Tensor& output, const Batch& batch, const at::Tensor&) const override {
    const at::Tensor labels = class_labels("margin", output, batch).unsqueeze(1);
    HEADKIT_CHECK(output.size(1) >= 2, "margin", "at least two classes", "one");
    const at::Tensor other =
        output.scatter(1, labels, -std::numeric_limits<double>::infinity()).amax(1);
    return other - output.gather(1, labels).squeeze(1);
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
  at::Tensor loss(const at::Tensor& output, const Batch&, const at::Tensor& dense) const override {
    check_logits("kl_to_dense", output);
    check_dense("kl_to_dense", output, dense);
    const at::Tensor log_p = at::log_softmax(dense / temperature_, 1);
    const at::Tensor log_q = at::log_softmax(output / temperature_, 1);
    return (log_p.exp() * (log_p - log_q)).sum(1) * (temperature_ * temperature_);
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
std::shared_ptr<Objective> margin() { return std::make_shared<Margin>(); }
std::shared_ptr<Objective> kl_to_dense(double temperature) {
  return std::make_shared<KlToDense>(temperature);
}
std::shared_ptr<Objective> cosine_to_dense() { return std::make_shared<CosineToDense>(); }

std::vector<std::string> objective_names() {
  return {"cross_entropy", "margin", "kl_to_dense", "cosine_to_dense"};
}

std::shared_ptr<Objective> make_objective(const std::string& name) {
  if (name == "cross_entropy") return cross_entropy();
  if (name == "margin") return margin();
  if (name == "kl_to_dense") return kl_to_dense();
  if (name == "cosine_to_dense") return cosine_to_dense();
  std::string known;
  for (const std::string& each : objective_names()) known += (known.empty() ? "" : ", ") + each;
  throw std::invalid_argument(error_message("make_objective", "one of " + known, "'", name, "'"));
}

}  // namespace headkit
