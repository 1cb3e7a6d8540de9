#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/explain/role_accumulator.h"
#include "headkit/explain/role_score.h"

namespace headkit {

/// Token ids of a delimiter; one score each.
struct Delimiter {
  std::string name;  ///< for example "cls", "sep", "punctuation"
  std::vector<int64_t> ids;
};

/// Settings of `roles` and `input_roles`.
struct RoleOptions {
  GateSet gates = {};                        ///< of the run, [L, H]; undefined = all heads run
  std::vector<int64_t> special_tokens = {};  ///< ids; their keys are left out where a role says so
  std::vector<Delimiter> delimiters = {};
  at::Tensor embedding = {}, unembedding = {};    ///< [V, D], for copying
  std::optional<double> inactive_threshold = {};  ///< set on calibration data by the allowed loss
  /// Random sequences r r behind `random_stripe`, of tokens of the data; 0 = not assessed.
  int64_t random_sequences = 32;
  int64_t begin_token = -1;  ///< what these begin with; -1 = nothing
  int64_t max_tokens = 0;    ///< the longest sequence that the model takes; 0 = any
  RoleMeasure measure = {};
  Progress progress = {};  ///< batches done
};

/// Scores the text roles of all heads over a corpus, in one pass of the model over the data (tokens
/// are counted in a walk before it) and one over random sequences. Data without token ids leave the
/// roles that read them "not assessed". Leaves model and data as they were. Throws as
/// `for_each_attention`, and std::invalid_argument for data without an example or options out of
/// range.
RoleTable roles(GatedModel& model, const DataSource& data, const RoleOptions& options = {});

/// The same of each example by itself: a score is no label, but says by `agrees` whether it is on
/// the side of the threshold and the best null where the data set's verdict is. `dataset` is what
/// `roles` returned; token frequencies are those of `data`.
std::vector<RoleTable> input_roles(GatedModel& model, const DataSource& data,
                                   const RoleTable& dataset, const RoleOptions& options = {});

}  // namespace headkit
