#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "headkit/explain/corpus_view.h"
#include "headkit/gates/gate_policy.h"
#include "headkit/models/batch.h"
#include "headkit/models/gated_model.h"

namespace headkit {

/// Settings of `head_usage`.
struct HeadUsageOptions {
  /// The model's output is logits [B, C], C > 1: then "confidence" (largest probability) is a
  /// property, and the predicted class of an input its class.
  bool classes = false;
  std::vector<std::string> class_names{};  ///< by number; empty = numbers
  /// More properties of the inputs, double [N] each, in the order of the data.
  std::map<std::string, at::Tensor> properties{};
  double confidence = 0.95;  ///< level of the intervals
  /// Gets every record, for example to keep it.
  std::function<void(const DecisionRecord&)> visit{};
  Progress progress{};  ///< batches done
};

/// Runs a policy over a data set and says how often it runs each head, for what kind of input:
/// length, "complexity" (token_surprise, where batches have "input_ids"), confidence, class. Cost:
/// a run of the data. Throws std::invalid_argument for fewer than two inputs, outputs without
/// classes where these are asked for, and properties that do not fit.
CorpusReport head_usage(GatedModel& model, const DataSource& data, const GatePolicy& policy,
                        const HeadUsageOptions& options = {});

/// How rare the words of each input are among all: mean surprise -log2 p of its valid tokens, p the
/// token's share of all valid tokens of the data. Bits, double [N]. Batches hold "input_ids" [B,
/// T], and perhaps "attention_mask" [B, T]. An input without tokens gets 0.
at::Tensor token_surprise(const DataSource& data);

}  // namespace headkit
