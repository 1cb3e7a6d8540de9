#include "headkit/gates/shadow_audit.h"

#include <algorithm>
#include <cmath>

#include "core/sha256.h"
#include "gates/risk_losses.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {
constexpr auto kOperation = "shadow_audit";
constexpr size_t kHashDigits = 13;  // 52 bits: exact in a double
}  // namespace

ShadowAudit::ShadowAudit(AuditOptions options) : options_(std::move(options)) {
  check_risk(kOperation, options_.risk, options_.bound);
  HEADKIT_CHECK(options_.share >= 0 && options_.share <= 1, kOperation, "a share in [0, 1]",
                options_.share);
  HEADKIT_CHECK(options_.epsilon > 0 && options_.epsilon < 1, kOperation, "an epsilon in (0, 1)",
                options_.epsilon);
}

bool ShadowAudit::chosen(const std::string& request_id) const {
  const std::string digits = sha256_hex(options_.salt + '\n' + request_id).substr(0, kHashDigits);
  return std::ldexp(static_cast<double>(std::stoull(digits, nullptr, 16)), -4 * 13) <
         options_.share;
}

bool ShadowAudit::observe(double loss) {
  HEADKIT_CHECK(loss >= 0 && loss <= options_.bound, kOperation,
                "a loss between 0 and the bound " + std::to_string(options_.bound), loss);
  const std::lock_guard lock(mutex_);
  ++state_.audited;
  ++state_.watched;
  sum_ += loss;
  const auto n = static_cast<double>(state_.watched);
  state_.mean_loss = sum_ / n;
  const bool power_of_two = (state_.watched & (state_.watched - 1)) == 0;
  if (state_.watched < 2 || !power_of_two) return false;
  const double j = std::log2(n);
  state_.lower_bound =
      state_.mean_loss -
      options_.bound * std::sqrt(std::log(j * (j + 1) / options_.epsilon) / (2 * n));
  if (state_.lower_bound <= options_.risk) return false;
  ++state_.alarms;
  state_.action = state_.action == "none" ? "step_up" : "dense";
  state_.watched = 0;
  sum_ = 0;
  return true;
}

void ShadowAudit::out_of_distribution() {
  const std::lock_guard lock(mutex_);
  state_.action = "dense";
}

double ShadowAudit::lambda(double lambda, const std::vector<double>& grid) const {
  const std::lock_guard lock(mutex_);
  if (state_.action == "none") return lambda;
  if (state_.action == "dense") return 1;
  const auto above = std::upper_bound(grid.begin(), grid.end(), lambda);
  return above == grid.end() ? 1 : *above;
}

AuditState ShadowAudit::state() const {
  const std::lock_guard lock(mutex_);
  return state_;
}

}  // namespace headkit
