#include "headkit/explain/output_metric.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <limits>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "output_metric";

at::Tensor selected(const at::Tensor& values, const at::Tensor& index) {
  return values.defined() ? values.index_select(0, index.to(values.device())) : values;
}

// What was chosen, as int64 [B] on the device of the output, each in 0 .. limit-1.
at::Tensor checked_choice(const char* what, const at::Tensor& chosen, const at::Tensor& output,
                          int64_t limit) {
  HEADKIT_CHECK(chosen.dim() == 1 && chosen.size(0) == output.size(0) &&
                    !chosen.is_floating_point() && chosen.scalar_type() != at::kBool,
                kOperation,
                c10::str("a whole number as ", what, " of each of ", output.size(0), " samples"),
                chosen.dtype().name(), " of shape ", chosen.sizes());
  const at::Tensor index = chosen.to(output.device(), at::kLong);
  HEADKIT_CHECK(index.numel() == 0 ||
                    (index.min().item<int64_t>() >= 0 && index.max().item<int64_t>() < limit),
                kOperation, c10::str(what, " from 0 to ", limit - 1), index.min().item<int64_t>(),
                " to ", index.max().item<int64_t>());
  return index;
}

at::Tensor last_valid(const at::Tensor& output, const at::Tensor& valid) {
  const int64_t tokens = output.size(1);
  HEADKIT_CHECK(tokens > 0, kOperation, "at least one token", "none");
  if (!valid.defined()) {
    return at::full({output.size(0)}, tokens - 1, output.options().dtype(at::kLong));
  }
  HEADKIT_CHECK(valid.dim() == 2 && valid.size(0) == output.size(0) && valid.size(1) == tokens,
                kOperation, c10::str("a mask of ", tokens, " tokens, or a position"), "shape ",
                valid.sizes());
  const at::Tensor place = at::arange(tokens, output.options().dtype(at::kLong));
  return (place + 1).mul(valid.to(output.device(), at::kLong)).amax(1).sub(1).clamp_min(0);
}

// Logits [B, C]: as they are, or those at one token each.
at::Tensor logits_at(const at::Tensor& output, const at::Tensor& position) {
  if (output.dim() == 2) return output;
  const at::Tensor place = position.reshape({-1, 1, 1}).expand({output.size(0), 1, output.size(2)});
  return output.gather(1, place).squeeze(1);
}

at::Tensor gathered(const at::Tensor& values, const at::Tensor& index) {
  return values.gather(1, index.unsqueeze(1)).squeeze(1);
}

enum class Outputs { kClasses, kTokens, kEither };

class LogitMetric final : public OutputMetric {
 public:
  LogitMetric(std::string name, Outputs outputs, bool compares, bool log_probability)
      : name_(std::move(name)),
        outputs_(outputs),
        compares_(compares),
        log_probability_(log_probability) {}

  std::string name() const override { return name_; }

  MetricTarget choose(const at::Tensor& output, const at::Tensor& valid, const at::Tensor&,
                      const MetricChoice& choice) const override {
    check_output(output);
    MetricTarget chosen;
    HEADKIT_CHECK(output.dim() == 3 || !choice.position.defined(), kOperation,
                  "a position for logits [batch, tokens, classes]", "logits of shape ",
                  output.sizes());
    if (output.dim() == 3) {
      chosen.position = choice.position.defined()
                            ? checked_choice("position", choice.position, output, output.size(1))
                            : last_valid(output, valid);
    }
    const at::Tensor logits = logits_at(output.detach(), chosen.position);
    const int64_t classes = logits.size(1);
    chosen.target = choice.target.defined()
                        ? checked_choice("target", choice.target, output, classes)
                        : logits.argmax(1);
    HEADKIT_CHECK(compares_ || !choice.distractor.defined(), kOperation,
                  "no distractor for " + name_, "one");
    if (!compares_) return chosen;
    HEADKIT_CHECK(classes > 1, kOperation, "at least two classes to compare", classes);
    chosen.distractor =
        choice.distractor.defined()
            ? checked_choice("distractor", choice.distractor, output, classes)
            : logits
                  .scatter(1, chosen.target.unsqueeze(1), -std::numeric_limits<double>::infinity())
                  .argmax(1);
    HEADKIT_CHECK(chosen.distractor.ne(chosen.target).all().item<bool>(), kOperation,
                  "a distractor other than the target", "the same");
    return chosen;
  }

  at::Tensor values(const at::Tensor& output, const MetricTarget& target) const override {
    check_output(output);
    const at::Tensor logits = logits_at(output, target.position);
    // The normaliser of log probabilities cancels in their difference.
    if (compares_) return gathered(logits, target.target) - gathered(logits, target.distractor);
    return gathered(log_probability_ ? at::log_softmax(logits, 1) : logits, target.target);
  }

 private:
  void check_output(const at::Tensor& output) const {
    const bool fits = (output.dim() == 2 && outputs_ != Outputs::kTokens) ||
                      (output.dim() == 3 && outputs_ != Outputs::kClasses);
    const char* const expected = outputs_ == Outputs::kClasses  ? "[batch, classes]"
                                 : outputs_ == Outputs::kTokens ? "[batch, tokens, vocabulary]"
                                                                : "two or three axes";
    HEADKIT_CHECK(fits && output.size(-1) > 0, kOperation,
                  c10::str("logits of shape ", expected, " for ", name_), "shape ", output.sizes());
  }

  std::string name_;
  Outputs outputs_;
  bool compares_, log_probability_;
};

class CosineMetric final : public OutputMetric {
 public:
  std::string name() const override { return "cosine_to_dense"; }
  bool needs_dense() const override { return true; }
  MetricTarget choose(const at::Tensor& output, const at::Tensor&, const at::Tensor& dense,
                      const MetricChoice& choice) const override {
    HEADKIT_CHECK(output.dim() == 2, kOperation, "vectors [batch, features] for cosine_to_dense",
                  "shape ", output.sizes());
    HEADKIT_CHECK(dense.defined() && dense.sizes() == output.sizes(), kOperation,
                  "the outputs with all gates 1", dense.defined() ? "another shape" : "none");
    HEADKIT_CHECK(
        !choice.target.defined() && !choice.distractor.defined() && !choice.position.defined(),
        kOperation, "no target for cosine_to_dense", "one");
    MetricTarget chosen;
    chosen.dense = dense.detach();
    return chosen;
  }
  at::Tensor values(const at::Tensor& output, const MetricTarget& target) const override {
    return at::cosine_similarity(output, target.dense, 1);
  }
};

}  // namespace

MetricTarget MetricTarget::select(const at::Tensor& index) const {
  return {selected(target, index), selected(distractor, index), selected(position, index),
          selected(dense, index)};
}

std::vector<std::string> output_metric_names() {
  return {"class_margin", "token_log_odds", "token_log_probability", "logit", "cosine_to_dense"};
}

std::shared_ptr<OutputMetric> make_output_metric(const std::string& name) {
  if (name == "class_margin") {
    return std::make_shared<LogitMetric>(name, Outputs::kClasses, true, false);
  }
  if (name == "token_log_odds") {
    return std::make_shared<LogitMetric>(name, Outputs::kTokens, true, false);
  }
  if (name == "token_log_probability") {
    return std::make_shared<LogitMetric>(name, Outputs::kTokens, false, true);
  }
  if (name == "logit") return std::make_shared<LogitMetric>(name, Outputs::kEither, false, false);
  if (name == "cosine_to_dense") return std::make_shared<CosineMetric>();
  std::string known;
  for (const std::string& each : output_metric_names()) known += (known.empty() ? "" : ", ") + each;
  throw std::invalid_argument(error_message(kOperation, "one of " + known, "'", name, "'"));
}

std::shared_ptr<OutputMetric> default_output_metric(const at::Tensor& output) {
  if (output.dim() == 3) return make_output_metric("token_log_odds");
  HEADKIT_CHECK(output.dim() == 2 && output.size(1) > 1, kOperation,
                "logits of at least two classes, or a metric by name", "an output of shape ",
                output.sizes());
  return make_output_metric("class_margin");
}

std::shared_ptr<OutputMetric> default_output_metric(GatedModel& model, const Batch& batch) {
  HEADKIT_CHECK(batch_size(batch) > 0, kOperation, "at least one example", "none");
  const c10::NoGradGuard no_grad;
  return default_output_metric(model(select_examples(batch, at::zeros({1}, at::kLong))));
}

}  // namespace headkit
