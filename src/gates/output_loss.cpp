#include "headkit/gates/output_loss.h"

#include <ATen/ATen.h>

#include <cmath>

#include "headkit/core/error.h"
#include "models/counted_tokens.h"

namespace headkit {
namespace {

constexpr auto kOperation = "output_loss";

at::Tensor labels(const at::Tensor& logits) {
  return logits.size(-1) == 1 ? logits.select(-1, 0) > 0 : logits.argmax(-1);
}

at::Tensor changed_labels(const at::Tensor& gated, const at::Tensor& full, const Batch& batch) {
  HEADKIT_CHECK(full.dim() == 2 || full.dim() == 3, kOperation,
                "logits of shape [batch, classes] or [batch, tokens, classes]", "shape ",
                full.sizes());
  const at::Tensor changed = (labels(gated) != labels(full)).to(at::kDouble);
  if (full.dim() == 2) return changed;
  at::Tensor counted = counted_tokens(full, batch);
  if (!counted.defined()) return changed.mean(1);
  counted = counted.to(at::kDouble);
  return (changed * counted).sum(1) / counted.sum(1).clamp_min(1);
}

at::Tensor finite_rows(const at::Tensor& output) { return output.isfinite().flatten(1).all(1); }

}  // namespace

at::Tensor OutputLoss::operator()(const at::Tensor& gated, const at::Tensor& full,
                                  const Batch& batch) const {
  HEADKIT_CHECK(full.dim() >= 2 && gated.sizes() == full.sizes(), kOperation,
                c10::str("two outputs of one shape [batch, ...]"), "shapes ", gated.sizes(),
                " and ", full.sizes());
  Batch here;
  for (const auto& [key, value] : batch) here[key] = value.cpu();
  const at::Tensor reference = full.detach().to(at::kCPU, at::kDouble);
  HEADKIT_CHECK(finite_rows(reference).all().item<bool>(), kOperation, "finite full outputs",
                finite_rows(reference).logical_not().sum().item<int64_t>(),
                " examples whose output is not");
  at::Tensor output = gated.detach().to(at::kCPU, at::kDouble);
  const at::Tensor finite = finite_rows(output);
  output = output.nan_to_num(0, 0, 0);
  at::Tensor loss;
  if (!objective) {
    loss = changed_labels(output, reference, here);
  } else if (objective->needs_dense()) {
    loss = objective->loss(output, here, reference);
  } else {
    loss = objective->loss(output, here, {}) - objective->loss(reference, here, {});
  }
  return loss.to(at::kDouble).masked_fill(finite.logical_not(), bound).clamp(0, bound);
}

OutputLoss make_output_loss(const std::string& name, std::optional<double> bound,
                            std::shared_ptr<Objective> task) {
  OutputLoss loss{name, bound.value_or(name == "cosine" ? 2 : 1), nullptr};
  HEADKIT_CHECK(loss.bound > 0 && std::isfinite(loss.bound), kOperation, "a finite bound > 0",
                loss.bound);
  if (name == "flip") {
    HEADKIT_CHECK(loss.bound == 1, kOperation, "a bound of 1 for flips", loss.bound);
  } else if (name == "kl") {
    loss.objective = kl_to_dense();
  } else if (name == "cosine") {
    loss.objective = cosine_to_dense();
  } else if (name == "task") {
    loss.objective = task ? std::move(task) : cross_entropy();
    HEADKIT_CHECK(!loss.objective->needs_dense(), kOperation,
                  "a task objective that looks at labels", loss.objective->name());
  } else {
    HEADKIT_CHECK(false, kOperation, "one of flip, kl, cosine, task", name);
  }
  return loss;
}

std::vector<std::string> output_loss_names() { return {"flip", "kl", "cosine", "task"}; }

}  // namespace headkit
