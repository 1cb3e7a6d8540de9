#include "headkit/gates/linear_probe.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "core/json.h"
#include "distributed/measured_walk.h"
#include "gates/affine_rows.h"
#include "gates/logistic_regression.h"
#include "gates/ridge_regression.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"
#include "headkit/gates/pooled_state.h"
#include "models/counted_tokens.h"

namespace headkit {
namespace {

constexpr auto kOperation = "linear_probe";
constexpr auto kFit = "fit_linear_probe";
constexpr int64_t kVersion = 1;

std::string described(const at::Tensor& t) {
  return t.defined() ? c10::str(t.scalar_type(), " of shape ", t.sizes()) : "none";
}

bool is_finite_double(const at::Tensor& t, at::IntArrayRef shape) {
  return t.defined() && t.sizes() == shape && t.scalar_type() == at::kDouble && t.is_cpu() &&
         t.isfinite().all().item<bool>();
}

// Margin and entropy of one row of logits.
std::pair<double, double> margin_and_entropy(const double* logit, int64_t classes) {
  if (classes == 1) {
    const double size = std::abs(logit[0]);
    // log(1 + e^-s) + s e^-s / (1 + e^-s), the entropy of a coin of logit s.
    const double tail = std::exp(-size);
    return {size, std::log1p(tail) + size * tail / (1 + tail)};
  }
  double best = -std::numeric_limits<double>::infinity(), second = best;
  for (int64_t c = 0; c < classes; ++c) {
    if (logit[c] > best) {
      second = best;
      best = logit[c];
    } else {
      second = std::max(second, logit[c]);
    }
  }
  double sum = 0, weighted = 0;
  for (int64_t c = 0; c < classes; ++c) {
    const double share = std::exp(logit[c] - best);
    sum += share;
    weighted += share * (logit[c] - best);
  }
  return {best - second, std::log(sum) - weighted / sum};
}

// Class of each output: of one logit its sign, else the largest.
at::Tensor classes_of(const at::Tensor& output) {
  HEADKIT_CHECK(output.dim() == 2 && output.size(1) > 0, "fit_linear_probes",
                "outputs of shape [batch, classes], or labels of the data", "shape ",
                output.sizes());
  const at::Tensor values = output.detach().cpu();
  return values.size(1) == 1 ? values.select(1, 0).gt(0).to(at::kLong) : values.argmax(1);
}

}  // namespace

LinearProbe::LinearProbe(LinearProbeSettings settings) : settings_(std::move(settings)) {
  LinearProbeSettings& s = settings_;
  HEADKIT_CHECK(s.layer >= 0, kOperation, "a layer of at least 0", s.layer);
  HEADKIT_CHECK(s.reference.defined() && s.reference.dim() == 1 &&
                    is_finite_double(s.reference, s.reference.sizes()),
                kOperation, "a finite float64 reference of shape [D] on the CPU",
                described(s.reference));
  const int64_t width = s.reference.size(0);
  HEADKIT_CHECK(s.weight.defined() || s.loss_weight.defined(), kOperation,
                "weights of classes or of the loss", "neither");
  s.reference = s.reference.contiguous();
  if (s.weight.defined()) {
    const int64_t classes = s.weight.dim() == 2 ? s.weight.size(0) : 0;
    HEADKIT_CHECK(classes > 0 && is_finite_double(s.weight, {classes, width}), kOperation,
                  c10::str("a finite float64 weight of shape [classes, ", width, "]"),
                  described(s.weight));
    HEADKIT_CHECK(is_finite_double(s.bias, {classes}), kOperation,
                  c10::str("a finite float64 bias of shape [", classes, "]"), described(s.bias));
    s.bias = s.bias.contiguous();
    weight_by_feature_ = s.weight.t().contiguous();
  }
  if (s.loss_weight.defined()) {
    HEADKIT_CHECK(is_finite_double(s.loss_weight, {width}), kOperation,
                  c10::str("a finite float64 loss_weight of shape [", width, "]"),
                  described(s.loss_weight));
    HEADKIT_CHECK(std::isfinite(s.loss_bias), kOperation, "a finite loss_bias", s.loss_bias);
    loss_weight_by_feature_ = s.loss_weight.reshape({width, 1}).contiguous();
  }
}

at::Tensor LinearProbe::logits(const at::Tensor& hidden, const at::Tensor& attention_mask) const {
  HEADKIT_CHECK(has_task(), kOperation, "a probe with a task", "one that predicts the loss only");
  return affine_rows(pooled_state(kOperation, hidden, attention_mask, settings_.reference),
                     settings_.reference, weight_by_feature_, settings_.bias);
}

ProbeSignals LinearProbe::signals(const at::Tensor& hidden,
                                  const at::Tensor& attention_mask) const {
  return signals_of(pooled_state(kOperation, hidden, attention_mask, settings_.reference));
}

ProbeSignals LinearProbe::signals_of(const at::Tensor& pooled) const {
  HEADKIT_CHECK(pooled.defined() && pooled.dim() == 2 && pooled.size(1) == model_dim() &&
                    pooled.scalar_type() == at::kDouble && pooled.is_cpu(),
                kOperation, c10::str("float64 states of shape [batch, ", model_dim(), "]"),
                described(pooled));
  const at::Tensor features = pooled.contiguous();
  const int64_t batch = features.size(0);
  ProbeSignals signals;
  if (has_task()) {
    const at::Tensor logits =
        affine_rows(features, settings_.reference, weight_by_feature_, settings_.bias);
    signals.margin = at::empty({batch}, at::kDouble);
    signals.confidence = at::empty({batch}, at::kDouble);
    signals.entropy = at::empty({batch}, at::kDouble);
    const double* const row = logits.const_data_ptr<double>();
    const int64_t classes = logits.size(1);
    for (int64_t b = 0; b < batch; ++b) {
      const auto [margin, entropy] = margin_and_entropy(row + b * classes, classes);
      signals.margin.mutable_data_ptr<double>()[b] = margin;
      signals.confidence.mutable_data_ptr<double>()[b] = std::tanh(margin / 2);
      signals.entropy.mutable_data_ptr<double>()[b] = entropy;
    }
  }
  if (predicts_loss()) {
    signals.log_loss = affine_rows(features, settings_.reference, loss_weight_by_feature_,
                                   at::full({1}, settings_.loss_bias, at::kDouble))
                           .select(1, 0)
                           .contiguous();
  }
  return signals;
}

std::string LinearProbe::to_json() const {
  const LinearProbeSettings& s = settings_;
  return Json{{"kind", kOperation},
              {"version", kVersion},
              {"layer", s.layer},
              {"reference", tensor_to_text(kOperation, s.reference)},
              {"weight", tensor_to_text(kOperation, s.weight)},
              {"bias", tensor_to_text(kOperation, s.bias)},
              {"loss_weight", tensor_to_text(kOperation, s.loss_weight)},
              {"loss_bias", s.loss_bias}}
      .dump();
}

LinearProbe LinearProbe::from_json(const std::string& text) {
  const Json json = parse_json(kOperation, text);
  const std::string kind = string_member(kOperation, json, "kind");
  HEADKIT_CHECK(kind == kOperation, kOperation, "a linear probe", kind);
  const int64_t version = integer_member(kOperation, json, "version");
  HEADKIT_CHECK(version == kVersion, kOperation,
                c10::str("version ", kVersion, ", as this headkit writes"), version);
  const auto tensor = [&](const char* name) {
    return tensor_from_text(kOperation, member(kOperation, json, name));
  };
  LinearProbeSettings settings;
  settings.layer = integer_member(kOperation, json, "layer");
  settings.reference = tensor("reference");
  settings.weight = tensor("weight");
  settings.bias = tensor("bias");
  settings.loss_weight = tensor("loss_weight");
  settings.loss_bias = number_member(kOperation, json, "loss_bias");
  return LinearProbe(std::move(settings));
}

FittedProbe fit_linear_probe(int64_t layer, const at::Tensor& features, const at::Tensor& labels,
                             const at::Tensor& losses, int64_t classes,
                             const LinearProbeFit& options) {
  HEADKIT_CHECK(features.defined() && features.dim() == 2 && features.size(0) > 1 &&
                    is_finite_double(features, features.sizes()),
                kFit, "finite float64 states of shape [examples, D], at least two examples",
                described(features));
  HEADKIT_CHECK(labels.defined() || losses.defined(), kFit, "labels or losses", "neither");
  HEADKIT_CHECK(std::isfinite(options.ridge) && std::isfinite(options.loss_ridge) &&
                    std::isfinite(options.huber) && options.huber >= 0,
                kFit, "finite penalties and huber of at least 0", options.ridge, ", ",
                options.loss_ridge, ", ", options.huber);
  const int64_t samples = features.size(0);
  LinearProbeSettings settings;
  settings.layer = layer;
  settings.reference = features.mean(0);
  const at::Tensor centred = features - settings.reference;
  double ridge = 0, accuracy = std::numeric_limits<double>::quiet_NaN(), explained = 0;
  if (labels.defined()) {
    HEADKIT_CHECK(labels.sizes() == at::IntArrayRef({samples}) && !labels.is_floating_point(), kFit,
                  c10::str("integer labels of shape [", samples, "]"), described(labels));
    const at::Tensor index = labels.to(at::kCPU, at::kLong).contiguous();
    const int64_t found = index.max().item<int64_t>() + 1;
    const int64_t all = classes == 0 ? std::max<int64_t>(2, found) : classes;
    HEADKIT_CHECK(all >= 2 && index.min().item<int64_t>() >= 0 && found <= all, kFit,
                  c10::str("labels from 0 to ", all - 1, " of at least two classes"),
                  index.min().item<int64_t>(), " to ", found - 1);
    const LogisticRegression task = logistic_regression(centred, index, all, options.ridge);
    settings.weight = task.weight;
    settings.bias = task.bias;
    ridge = task.ridge;
    accuracy = task.accuracy;
  }
  if (losses.defined()) {
    HEADKIT_CHECK(is_finite_double(losses, {samples}) && losses.ge(0).all().item<bool>(), kFit,
                  c10::str("finite float64 losses >= 0 of shape [", samples, "]"),
                  described(losses));
    const double epsilon = std::max(1e-300, 0.01 * losses.mean().item<double>());
    const at::Tensor target = (losses + epsilon).log().unsqueeze(1);
    const at::Tensor mean = target.mean(0);
    const RidgeRegression loss =
        ridge_regression(centred, target - mean, options.loss_ridge, options.huber);
    settings.loss_weight = loss.weight[0].contiguous();
    settings.loss_bias = mean.item<double>();
    explained = loss.explained;
  }
  return {LinearProbe(std::move(settings)), samples, ridge, accuracy, explained};
}

std::vector<FittedProbe> fit_linear_probes(GatedModel& model, const DataSource& data,
                                           const LinearProbesFit& options) {
  constexpr auto kOperation = "fit_linear_probes";
  const int64_t layers = model.layout().layers;
  const std::vector<int64_t>& wanted = options.layers;
  HEADKIT_CHECK(
      !wanted.empty() && wanted.front() >= 0 && wanted.back() < layers &&
          std::adjacent_find(wanted.begin(), wanted.end(), std::greater_equal<>()) == wanted.end(),
      kOperation, c10::str("ascending layers from 0 to ", layers - 1), wanted);
  model.check(kOperation, -1, options.gates);
  const bool compares = options.objective != nullptr && options.objective->needs_dense();
  const bool says_class = options.task && !options.labels_of_data;
  HEADKIT_CHECK(options.task || options.objective != nullptr, kOperation,
                "a task, an objective or both", "neither");

  const c10::NoGradGuard no_grad;
  const auto mode = model.evaluating();
  // Features of every layer, then labels, losses and the number of classes; undefined = not asked.
  const auto measure = [&](const Batch& batch, int64_t) -> Measured {
    Measured found;
    at::Tensor labels, losses;
    int64_t classes = 0;
    ModelState state = model.embed(batch);
    at::Tensor dense;
    if ((compares || says_class) && !options.gates.empty())
      dense = model.head(model.run(state, 0, layers, {}));
    for (size_t i = 0; i < wanted.size(); ++i) {
      if (wanted[i] > state.layer) state = model.run(state, state.layer, wanted[i], options.gates);
      found.push_back(pooled_state(kOperation, state.hidden, state.attention_mask));
    }
    const at::Tensor output = model.head(model.run(state, state.layer, layers, options.gates));
    if (!dense.defined()) dense = output;
    if (says_class) {
      labels = classes_of(dense);
    } else if (options.task) {
      const at::Tensor given = batch_entry(batch, "labels");
      HEADKIT_CHECK(given.defined() && given.dim() == 1 && !given.is_floating_point(), kOperation,
                    "integer labels of shape [batch] in the batch", described(given));
      labels = given.cpu().to(at::kLong);
    }
    if (says_class) classes = std::max<int64_t>(2, output.size(1));
    if (options.objective != nullptr) {
      losses = options.objective->loss(output, batch, compares ? dense : at::Tensor())
                   .detach()
                   .to(at::kCPU, at::kDouble);
    }
    found.insert(found.end(), {labels, losses, at::full({}, classes, at::kLong)});
    return found;
  };
  std::vector<std::vector<at::Tensor>> features(wanted.size());
  std::vector<at::Tensor> labels, losses;
  int64_t classes = 0;
  for_each_measured(kOperation, data, options.progress, measure,
                    [&](const Batch&, const Measured& measured) {
                      const size_t probes = features.size();
                      for (size_t i = 0; i < probes; ++i) features[i].push_back(measured[i]);
                      if (measured[probes].defined()) labels.push_back(measured[probes]);
                      if (measured[probes + 1].defined()) losses.push_back(measured[probes + 1]);
                      if (says_class) classes = measured[probes + 2].item<int64_t>();
                    });
  HEADKIT_CHECK(!features.front().empty(), kOperation, "data with at least two examples", "none");
  std::vector<FittedProbe> fitted;
  for (size_t i = 0; i < wanted.size(); ++i) {
    fitted.push_back(fit_linear_probe(
        wanted[i], at::cat(features[i]), labels.empty() ? at::Tensor() : at::cat(labels),
        losses.empty() ? at::Tensor() : at::cat(losses), classes, options.fit));
  }
  return fitted;
}

}  // namespace headkit
