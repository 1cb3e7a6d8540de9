#include "headkit/gates/gate_features.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>

#include "gates/early_record.h"
#include "headkit/core/error.h"
#include "headkit/gates/pooled_state.h"

namespace headkit {
namespace {

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

bool asks_for(const std::vector<std::string>& names, const char* name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

}  // namespace

const std::vector<std::string>& scalar_features() {
  static const std::vector<std::string> names{"log_length", "margin", "entropy", "log_loss"};
  return names;
}

void check_scalar_features(const char* operation, const std::vector<std::string>& names,
                           const LinearProbe* probe) {
  for (const std::string& name : names) {
    HEADKIT_CHECK(asks_for(scalar_features(), name.c_str()) &&
                      std::count(names.begin(), names.end(), name) == 1,
                  operation, "features of " + joined(scalar_features()) + ", each once",
                  joined(names));
  }
  const bool task = asks_for(names, "margin") || asks_for(names, "entropy");
  HEADKIT_CHECK(!task || (probe != nullptr && probe->has_task()), operation,
                "a probe of the task for the features margin and entropy", "none");
  HEADKIT_CHECK(!asks_for(names, "log_loss") || (probe != nullptr && probe->predicts_loss()),
                operation, "a probe that predicts the loss for the feature log_loss", "none");
}

at::Tensor gate_features(const char* operation, const std::vector<std::string>& names,
                         const LinearProbe* probe, const at::Tensor& hidden,
                         const at::Tensor& attention_mask, const at::Tensor& reference) {
  const auto scalars = static_cast<int64_t>(names.size());
  const at::Tensor empty =
      reference.defined() ? reference.slice(0, 0, reference.size(0) - scalars) : at::Tensor();
  const at::Tensor pooled = pooled_state(operation, hidden, attention_mask, empty);
  if (names.empty()) return pooled;
  const int64_t width = pooled.size(1);
  at::Tensor features = at::zeros({pooled.size(0), width + scalars}, at::kDouble);
  features.narrow(1, 0, width).copy_(pooled);
  const ProbeSignals signals = probe != nullptr ? probe->signals_of(pooled) : ProbeSignals();
  const std::vector<int64_t> tokens = valid_tokens(hidden, attention_mask);
  for (int64_t i = 0; i < scalars; ++i) {
    at::Tensor column = features.select(1, width + i);
    if (names[i] == "log_length") {
      for (size_t b = 0; b < tokens.size(); ++b) {
        features
            .mutable_data_ptr<double>()[static_cast<int64_t>(b) * (width + scalars) + width + i] =
            std::log(static_cast<double>(std::max<int64_t>(1, tokens[b])));
      }
    } else {
      column.copy_(names[i] == "margin"    ? signals.margin
                   : names[i] == "entropy" ? signals.entropy
                                           : signals.log_loss);
    }
  }
  for (size_t b = 0; b < tokens.size(); ++b) {
    if (tokens[b] > 0) continue;
    at::Tensor row = features[static_cast<int64_t>(b)];
    if (reference.defined()) {
      row.copy_(reference);
    } else {
      row.zero_();
    }
  }
  return features;
}

at::Tensor differentiable_gate_features(const std::vector<std::string>& names,
                                        const LinearProbe* probe, const at::Tensor& hidden,
                                        const at::Tensor& attention_mask,
                                        const at::Tensor& reference) {
  const at::Tensor mean_feature = reference.to(hidden.device(), at::kDouble);
  const at::Tensor x = hidden.to(at::kDouble);
  const at::Tensor valid = attention_mask.defined() ? attention_mask.to(hidden.device(), at::kBool)
                                                    : at::ones({x.size(0), x.size(1)},
                                                               hidden.options().dtype(at::kBool));
  const at::Tensor count = valid.sum(1, true).to(at::kDouble);
  const at::Tensor pooled =
      at::where(valid.unsqueeze(2), x, at::zeros({}, x.options())).sum(1) / count.clamp_min(1);
  std::vector<at::Tensor> parts{pooled};
  at::Tensor logits, log_chance;
  if (probe != nullptr && probe->has_task() &&
      (asks_for(names, "margin") || asks_for(names, "entropy"))) {
    const LinearProbeSettings& p = probe->settings();
    logits = at::linear(pooled - p.reference.to(x.device()), p.weight.to(x.device()),
                        p.bias.to(x.device()));
    if (logits.size(1) == 1) logits = at::cat({logits, at::zeros_like(logits)}, 1);
    log_chance = at::log_softmax(logits, 1);
  }
  for (const std::string& name : names) {
    if (name == "log_length") {
      parts.push_back(count.clamp_min(1).log());
    } else if (name == "margin") {
      const at::Tensor best = std::get<0>(logits.topk(2, 1));
      parts.push_back(best.narrow(1, 0, 1) - best.narrow(1, 1, 1));
    } else if (name == "entropy") {
      parts.push_back(-(log_chance.exp() * log_chance).sum(1, true));
    } else {
      const LinearProbeSettings& p = probe->settings();
      parts.push_back(
          ((pooled - p.reference.to(x.device())) * p.loss_weight.to(x.device())).sum(1, true) +
          p.loss_bias);
    }
  }
  const at::Tensor features = at::cat(parts, 1);
  return at::where(count > 0, features, mean_feature.unsqueeze(0));
}

}  // namespace headkit
