#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "headkit/gates/policy_trace.h"

namespace headkit {

/// The promise of a calibration, and how it is made.
struct CalibrationOptions {
  std::string method = "crc";  ///< crc: conformal_risk_control; ltt: learn_then_test
  double risk = 0.05;          ///< alpha: the mean loss that is promised, in each bucket
  double delta = 0.1;          ///< of ltt: chance that the promise is broken, in each bucket
  /// Longest lengths in tokens of all length buckets but the last, ascending, fixed beforehand; for
  /// example {16, 32} for up to 16, 17 to 32, and longer. Empty = `length_buckets` of about equal
  /// size by the lengths at hand (their edges look at lengths, never at losses).
  std::vector<int64_t> length_edges{};
  int64_t length_buckets = 3;
};

/// The part of the data for which a promise was made.
struct CalibrationBucket {
  int64_t task = 0;
  int64_t min_tokens = 0;
  std::optional<int64_t> max_tokens;  ///< unset = any length
  int64_t samples = 0;
  double lambda = 1;
  double empirical_risk = 0;  ///< of the envelope (crc) or of the losses (ltt) there
  /// crc: the risk with the correction for the number of samples; ltt: the p-value.
  double evidence = 0;
  bool operator==(const CalibrationBucket&) const = default;
};

/// What was promised, of what, and by which data. A plain value.
struct Calibration {
  std::string model;   ///< GatedModel::fingerprint
  std::string policy;  ///< policy_fingerprint
  std::string data;    ///< data_fingerprint; empty for a part of a trace
  std::string method;
  std::string loss;
  double bound = 1;
  double risk = 0;
  double delta = 0;  ///< 0 for crc
  std::vector<double> grid;
  std::vector<double> mean_loss;   ///< of all examples, at each grid value
  std::vector<double> mean_heads;  ///< heads run, at each grid value
  std::vector<double> mean_flops;  ///< FLOPs, at each grid value
  double drift = 0;                ///< mean loss of lambda 1 against the model with all open
  std::vector<CalibrationBucket> buckets;
  double lambda = 1;  ///< the largest of the buckets: keeps all promises at once

  /// The lambda of the bucket that an example belongs to; the largest of all for another task.
  double lambda_of(int64_t tokens, int64_t task = 0) const;
  /// The smallest grid value >= `wanted` and >= `lambda`: going up the grid keeps the promise.
  double at_least(double wanted) const;
  /// Throws std::invalid_argument unless this is the model, or the policy, that was calibrated.
  void check_model(GatedModel& model) const;
  void check_policy(const AdjustablePolicy& policy) const;
  /// Throws std::invalid_argument unless these are the calibration data.
  void check_data(const DataSource& data) const;

  std::string id() const;  ///< 16 hexadecimal digits of the SHA-256 of the JSON
  std::string to_json() const;
  static Calibration from_json(const std::string& text);
  bool operator==(const Calibration&) const = default;
};

/// Sets lambda for each bucket of task and length. Throws std::invalid_argument, with the number it
/// would take, where a bucket has too few examples.
///
/// The promise is about new examples of that bucket, exchangeable with these, run under this very
/// rule (policy, model, kernels); about their mean, not about one of them.
Calibration calibrate(const PolicyTrace& trace, const CalibrationOptions& options = {});
/// The same from the start. Counts examples and lengths first, and refuses too few before the model
/// is run; then `trace_policy`.
Calibration calibrate(GatedModel& model, const AdjustablePolicy& policy, const DataSource& data,
                      const OutputLoss& loss, const CalibrationOptions& options = {},
                      const TraceOptions& trace_options = {});

}  // namespace headkit
