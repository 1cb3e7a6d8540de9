#pragma once

#include <cstdint>
#include <mutex>
#include <string>
#include <vector>

namespace headkit {

/// Settings of `ShadowAudit`.
struct AuditOptions {
  double share = 0.01;           ///< of requests that are also run in full, in [0, 1]
  double risk = 0.05;            ///< the promised mean loss that is watched, in (0, bound)
  double bound = 1;              ///< no loss exceeds it
  double epsilon = 0.05;         ///< chance of a false alarm, ever, in (0, 1)
  std::string salt = "headkit";  ///< changes which requests are chosen
};

/// What an audit knows at one moment.
struct AuditState {
  std::string action = "none";  ///< none; step_up: one grid value more; dense: lambda 1
  int64_t audited = 0;          ///< since the start
  int64_t alarms = 0;
  int64_t watched = 0;     ///< losses since the last alarm: those that the next test looks at
  double mean_loss = 0;    ///< of these
  double lower_bound = 0;  ///< of the risk, at the last test: below it with chance <= epsilon
};

/// Watches a promise while it is used: a share of the requests, chosen by a hash of their id alone,
/// is run in full as well and its true loss noted. After n = 2, 4, 8, .. losses the alarm is raised
/// if mean - bound * sqrt(ln(j (j + 1) / epsilon) / (2 n)), n = 2^j, exceeds the promised risk: for
/// independent losses that keep the promise the chance of any alarm, ever, is at most epsilon
/// (Hoeffding, union over j). The first alarm raises lambda by one grid value and starts the test
/// anew, the second returns to lambda 1. There is no way back but a new calibration and a new
/// audit. One object serves many threads.
class ShadowAudit {
 public:
  /// Throws std::invalid_argument on options out of range.
  explicit ShadowAudit(AuditOptions options);

  const AuditOptions& options() const { return options_; }
  /// Whether this request is audited: a function of id and salt alone.
  bool chosen(const std::string& request_id) const;
  /// The loss of an audited request, in [0, bound]. Returns whether it raised an alarm.
  bool observe(double loss);
  /// An alarm for another reason: an input beyond the limit of OodScore returns to lambda 1.
  void out_of_distribution();
  /// The grid value to apply where `lambda` is wanted.
  double lambda(double lambda, const std::vector<double>& grid) const;
  AuditState state() const;

 private:
  AuditOptions options_;
  mutable std::mutex mutex_;
  AuditState state_;
  double sum_ = 0;
};

}  // namespace headkit
