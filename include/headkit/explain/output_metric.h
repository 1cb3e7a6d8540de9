#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "headkit/models/gated_model.h"

namespace headkit {

/// What m is of, for each sample of a batch: chosen once, so that every run is asked the same.
struct MetricTarget {
  at::Tensor target;      ///< int64 [B]: class or token; undefined for cosine_to_dense
  at::Tensor distractor;  ///< int64 [B]: what it is compared with; undefined = nothing
  at::Tensor position;    ///< int64 [B]: token at which logits [B, T, V] are read; undefined = none
  at::Tensor dense;       ///< [B, E]: outputs with all gates 1; undefined unless compared with

  MetricTarget select(const at::Tensor& index) const;  ///< `index`: int64 [n]
};

/// Which classes or tokens to compare; undefined = as the metric chooses.
struct MetricChoice {
  at::Tensor target = {};      ///< int64 [B]
  at::Tensor distractor = {};  ///< int64 [B]
  at::Tensor position = {};    ///< int64 [B]
};

/// m(x; g): the scalar that an explanation is of. Larger = more of what the model said.
class OutputMetric {
 public:
  virtual ~OutputMetric() = default;
  virtual std::string name() const = 0;
  virtual bool needs_dense() const { return false; }
  /// Chooses what m is of, from the output of the run that is explained. `valid`: bool [B, T],
  /// undefined = no padding. `dense`: the same with all gates 1, where `needs_dense()`. Throws
  /// std::invalid_argument for outputs or choices that do not fit.
  virtual MetricTarget choose(const at::Tensor& output, const at::Tensor& valid,
                              const at::Tensor& dense, const MetricChoice& choice) const = 0;
  /// m of each sample, [B], differentiable.
  virtual at::Tensor values(const at::Tensor& output, const MetricTarget& target) const = 0;
};

/// By name:
///   class_margin          logits [B, C]: predicted class minus runner-up
///   token_log_odds        logits [B, T, V] at one token, by default the last valid one: log
///                         probability of the predicted token minus that of the runner-up
///   token_log_probability the same without a distractor
///   logit                 logits [B, C] or [B, T, V]: one logit, by default the predicted one
///   cosine_to_dense       vectors [B, E]: cosine to what the model gives with all gates 1
/// Each takes other targets, distractors and positions from a MetricChoice.
std::shared_ptr<OutputMetric> make_output_metric(const std::string& name);
std::vector<std::string> output_metric_names();
/// class_margin for logits [B, C] with C > 1, token_log_odds for [B, T, V]. Throws
/// std::invalid_argument for other outputs. Vectors look like logits: name cosine_to_dense for
/// embeddings.
std::shared_ptr<OutputMetric> default_output_metric(const at::Tensor& output);
/// The same for what a model gives, run once on the first example.
std::shared_ptr<OutputMetric> default_output_metric(GatedModel& model, const Batch& batch);

}  // namespace headkit
