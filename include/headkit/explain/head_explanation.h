#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace headkit {

/// A head that stands next to the cut between open and closed heads.
struct RivalHead {
  int64_t layer = 0;
  int64_t head = 0;
  double logit = 0;
  bool open = false;
  bool operator==(const RivalHead&) const = default;
};

/// The fewest tokens found that change a decision when their states are put at the reference mean,
/// taken in the order of their support.
struct GateFlip {
  std::vector<int64_t> removed;  ///< positions, largest support first; none = no such move flips it
  /// No smaller set of tokens flips it. Only ever true of thresholds whose logit is a sum over
  /// tokens; else the set is greedy.
  bool minimal = false;
  /// The gate was run on the moved tokens: it decides otherwise, and with the last one put back it
  /// does not. With no tokens in `removed`: it decides as before with all support gone.
  bool verified = false;
  double logit = 0;  ///< after the moves
  bool operator==(const GateFlip&) const = default;
};

/// What became of a decision when the tokens of its flip were taken out of the model's input: they
/// are then missing for everybody, and later tokens move up. Another question than the flip.
struct TokenRemoval {
  std::string state;            ///< of the head: on, off
  std::optional<double> logit;  ///< of the head
  bool flips = false;
  bool operator==(const TokenRemoval&) const = default;
};

/// One addend of a gate logit by feature, or by token and feature.
struct FeaturePart {
  std::optional<int64_t> token = {};  ///< unset in parts by feature, and for scalars
  int64_t dimension = -1;             ///< of the state; -1 for scalars
  std::string scalar = {};            ///< name of a scalar; empty = a dimension
  double value = 0;
  bool operator==(const FeaturePart&) const = default;
};

/// Addends of largest magnitude, and the sum of the others.
struct FeatureParts {
  std::vector<FeaturePart> parts;
  double rest = 0;
  bool operator==(const FeatureParts&) const = default;
};

/// What an explanation adds to the decision about one head. Unset = not computed.
struct HeadExplanation {
  std::string reference;             ///< what the parts are measured against
  std::optional<double> margin_std;  ///< margin over the spread of the logit on calibration inputs
  std::optional<double> distance;    ///< |margin| over the norm of what it is linear by
  std::optional<int64_t> rank;       ///< 1 = the best of the heads decided together
  std::vector<RivalHead> rivals;     ///< worst open and best closed head, itself left out
  std::optional<FeatureParts> features;  ///< base + these = logit, as the parts by token
  std::optional<FeatureParts> joint;     ///< the same by token and feature
  std::optional<GateFlip> flip;
  std::optional<TokenRemoval> removal;
  std::optional<double> control_share;  ///< of the state, what can move a gate of this decision
  /// JSON texts, as their writers give them; empty = not computed.
  std::string roles;      ///< {"input": [RoleScore], "dataset": [RoleScore]} (role_score.h)
  std::string effects;    ///< HeadEffects (head_effects.h)
  std::string attention;  ///< {"encoding", "data", "kept_mass", "sink_mass", ...}
  bool operator==(const HeadExplanation&) const = default;
};

}  // namespace headkit
