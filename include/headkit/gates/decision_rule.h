#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <string>
#include <vector>

namespace headkit {

/// How logits of heads that are decided together become open and closed heads. Ties go to the lower
/// head.
struct DecisionRule {
  enum class Kind {
    kThreshold,  ///< logit >= threshold, and the `min_heads` best ones at least
    kTopK,       ///< the `k` highest logits
    kBudget,     ///< by logit / cost, highest first, up to the first that `budget` does not cover
  };
  Kind kind = Kind::kThreshold;
  double threshold = 0;
  int64_t min_heads = 0;  ///< with a threshold; heads that are always on count
  int64_t k = 0;          ///< of the heads that are decided
  double budget = 0;      ///< for the heads that are decided
  at::Tensor cost{};      ///< double [M], > 0; with a budget
  /// int8 [M]: 0 = decided for each input, 1 = always on, -1 = pruned. Undefined = all 0.
  at::Tensor fixed{};

  /// Throws std::invalid_argument unless the rule fits `heads` heads.
  void check(const char* operation, int64_t heads) const;
  /// 1 = open, of M logits.
  std::vector<char> open(std::span<const double> logits) const;
  bool is_decided(int64_t head) const;
  /// What heads are compared by: the logit, with a budget logit / cost.
  double score(std::span<const double> logits, int64_t head) const;
  std::string name() const;  ///< threshold, top_k, budget
};

/// "threshold", "top_k" or "budget"; std::invalid_argument for another name.
DecisionRule::Kind decision_rule_kind(const std::string& name);

}  // namespace headkit
