#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "headkit/explain/role_accumulator.h"

namespace headkit {

/// Hits of one-hot attention at a fixed offset (key minus query), for every offset that occurs: the
/// best is chosen on the even sequences and scored on the odd ones.
class OffsetHits {
 public:
  explicit OffsetHits(int64_t layers) : halves_(static_cast<size_t>(2 * layers)) {}
  void add_hit(int64_t sample, int64_t layer, int64_t offset) {
    half(sample, layer).hits[offset] += 1;
  }
  void add_rows(int64_t sample, int64_t layer, int64_t rows) { half(sample, layer).rows += rows; }
  void merge(const OffsetHits& other);
  /// The offset with the best score.
  struct Best {
    int64_t offset = 0;
    double score = 0;  ///< share of rows
  };
  std::optional<Best> best(int64_t layer) const;  ///< unset where a half has no row

 private:
  struct Half {
    std::map<int64_t, int64_t> hits;
    int64_t rows = 0;
  };
  Half& half(int64_t sample, int64_t layer) {
    return halves_.at(static_cast<size_t>(2 * layer + sample % 2));
  }
  std::vector<Half> halves_;
};

/// Sums behind one role: a score is the sum over rows of something by the number of rows. Kept for
/// each sequence and head, so that an interval can resample sequences; nulls are sums over all.
class RoleSums {
 public:
  /// `variant` as in RoleScore.
  RoleSums(std::string role, std::string variant, const HeadLayout& layout);

  /// Sums over the rows of one head.
  struct Sums {
    double score = 0;
    double rows = 0;
  };
  /// Sums over the rows of one head, with those of the null models.
  struct Totals {
    double uniform = 0;   ///< the same sum under uniform attention on the same rows
    double variance = 0;  ///< of the sum when the keys of every row are permuted
    double excluded = 0;  ///< mass taken out
    double seen = 0;      ///< rows that `excluded` is over
    double dropped = 0;   ///< rows with less than kLeastMass left
  };
  Sums& of(int64_t sample, int64_t layer, int64_t head);
  Totals& totals(int64_t layer, int64_t head) { return totals_.at(place(layer, head)); }
  /// Sums of shuffled cues, one for each draw.
  std::vector<Sums>& draws(int64_t layer, int64_t head) { return draws_[place(layer, head)]; }
  void merge(const RoleSums& other);

  /// What nulls there are beside the uniform one.
  struct Nulls {
    bool uniform = true;
    /// Keys of each row permuted: mean and variance of the permuted sum are known in closed form,
    /// so draws are normal with these (central limit over rows) instead of permutations.
    bool permuted_keys = false;
    bool drawn = false;                   ///< by `draws`
    const OffsetHits* offsets = nullptr;  ///< best fixed offset
  };
  /// Scores of all heads, [layers * heads], judged. `reason` is told where there are no rows.
  std::vector<RoleScore> scores(const RoleEnd& end, const Nulls& nulls,
                                const std::string& reason = "") const;
  /// Mean and interval by resampling sequences of a statistic of the heads' means, [.., L, H] ->
  /// [.., L, H]; the identity if not given.
  using Statistic = std::function<at::Tensor(const at::Tensor& means)>;
  std::vector<RoleScore> scores(const RoleEnd& end, const Nulls& nulls, const std::string& reason,
                                const Statistic& statistic) const;

 private:
  size_t place(int64_t layer, int64_t head) const {
    return static_cast<size_t>(layer * layout_.heads + head);
  }
  std::string role_, variant_;
  HeadLayout layout_;
  std::vector<int64_t> samples_;  ///< by slot
  std::unordered_map<int64_t, size_t> slots_;
  std::vector<Sums> sums_;  ///< [slot][head]
  std::vector<Totals> totals_;
  std::vector<std::vector<Sums>> draws_;  ///< by head
  int64_t last_sample_ = -1;
  size_t last_slot_ = 0;
};

/// Puts scores [layers * heads] into the table.
void add_scores(const std::vector<RoleScore>& scores, RoleTable& table);

}  // namespace headkit
