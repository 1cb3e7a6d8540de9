#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace headkit {

/// One token, patch or frame of an input. What it shows is raw content: given by opt-in only.
struct InputUnit {
  std::string text = {};                            ///< empty = not told
  std::optional<std::array<int64_t, 2>> grid = {};  ///< row and column of a patch
  std::optional<double> seconds = {};               ///< where a frame starts
  bool special = false;                             ///< CLS, SEP, BOS, EOS, register
  bool padding = false;
  bool operator==(const InputUnit&) const = default;
};

/// The scalar that effects are of.
struct OutputValue {
  std::string metric;
  std::optional<int64_t> target, distractor;
  std::optional<double> value_selected;
  std::optional<double> value_dense;  ///< with every head open
  bool operator==(const OutputValue&) const = default;
};

/// A field of the record that is missing, and why.
struct MissingField {
  std::string field;  ///< as in "budget.flops_run", "heads.roles"
  std::string reason;
  bool operator==(const MissingField&) const = default;
};

/// What an explanation adds to the record of a plain run. Empty and unset = not known.
struct RecordDetails {
  std::string created;  ///< UTC, ISO 8601
  std::vector<int64_t> seeds;
  std::string build, device, dtype, isa;

  std::string model_name, norm, attention, modality;

  std::string input_sha256;  ///< of the valid part of the example's tensors
  std::vector<InputUnit> units;
  std::optional<OutputValue> output;

  std::string policy_version, policy_sha256;
  std::string policy_kind;  ///< threshold, top_k, budget, soft
  std::string granularity;  ///< sequence, token
  std::vector<std::pair<std::string, double>> policy_parameters;
  std::string calibration_sha256;
  std::optional<double> predicted_loss;

  /// JSON texts, as their writers give them; empty = not computed.
  std::string pairs;         ///< [PairEffect] (head_effects.h)
  std::string faithfulness;  ///< faithfulness.h
  std::string simulatability;
  std::string stability;  ///< explanation_stability.h
  std::string agreement;  ///< metric_agreement.h
  std::string role_registry;
  std::vector<std::string> warnings;
  std::vector<MissingField> missing;
  bool operator==(const RecordDetails&) const = default;
};

}  // namespace headkit
