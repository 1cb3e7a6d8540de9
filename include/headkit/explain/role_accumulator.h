#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "headkit/explain/attention_rows.h"
#include "headkit/explain/role_score.h"

namespace headkit {

/// The attention of one block and sample, with what all roles read of it, computed once.
class RoleRows {
 public:
  /// `special_tokens`: ids.
  RoleRows(const SampleAttention& attention, const std::vector<int64_t>& special_tokens);

  const SampleAttention& attention;
  at::Tensor query_tokens = {}, key_tokens = {};  ///< int64 [T], [S]; undefined where not known
  at::Tensor special_keys = {};  ///< bool [S]: special tokens; all false where not known
  at::Tensor allowed_keys = {};  ///< int64 [1 or h, T]: how many keys a query may see
  at::Tensor largest = {};       ///< float [h, T]: the largest weight of a row
  at::Tensor ties = {};          ///< float [h, T]: how many keys have it
  at::Tensor squares = {};       ///< float [h, T]: sum of squared weights
  at::Tensor special_mass = {};  ///< float [h, T]: on special keys
  at::Tensor entropy = {};       ///< float [h, T], in nats
  at::Tensor content_keys = {};  ///< int64 [1 or h, T]: keys a query may see that are not special

  bool all_allowed = false;  ///< every query may see every key

  int64_t heads() const { return attention.probabilities.size(0); }
  int64_t queries() const { return attention.probabilities.size(1); }
  int64_t keys() const { return attention.probabilities.size(2); }
  /// Whether queries and keys are the same tokens.
  bool same_tokens() const { return !attention.cross && queries() == keys(); }
  /// Float [T, S, h], contiguous: the weights of all heads for a key side by side. Made when first
  /// asked for.
  const at::Tensor& side_by_side() const;

 private:
  mutable at::Tensor side_by_side_ = {};
};

/// Rows with less mass than that after exclusions are dropped and counted.
inline constexpr double kLeastMass = 1e-3;

/// Settings of the measurement of a role.
struct RoleMeasure {
  int64_t draws = 200;       ///< shuffles behind a null
  int64_t bootstrap = 1000;  ///< resamples over sequences; 0 = no interval
  double confidence = 0.95;
  uint64_t seed = 0;
};

/// What accumulators are asked to score at the end.
struct RoleEnd {
  HeadLayout layout;
  HeadMask present;  ///< heads that are there
  RoleMeasure measure;
};

/// Scores a role, or a family of them, over a corpus: sees one block of one sample after the other
/// and keeps sums for each sequence, so that intervals can resample sequences. Many accumulators
/// share one pass over the data.
class RoleAccumulator {
 public:
  virtual ~RoleAccumulator() = default;
  /// Blocks of a sample come in order; a sample comes once.
  virtual void add(const RoleRows& rows) = 0;
  /// Takes in what another accumulator of the same settings saw of other samples. Scores and
  /// intervals are then exactly those of one accumulator that saw all of them; nulls to rounding.
  virtual void merge(const RoleAccumulator& other) = 0;
  /// Adds a score for every head, judged, to the table.
  virtual void finish(const RoleEnd& end, RoleTable& table) const = 0;
  /// Whether `SampleAttention::output_norm` is read.
  virtual bool needs_output_norms() const { return false; }
};

using RoleAccumulators = std::vector<std::unique_ptr<RoleAccumulator>>;

/// One pass over the data for roles.
struct RolePass {
  GateSet gates = {};                        ///< of the run, [L, H]
  std::vector<int64_t> special_tokens = {};  ///< ids; also true entries of "special_tokens_mask"
  Progress progress = {};                    ///< batches done
};

/// One pass of the model over the data for all accumulators; returns the number of sequences.
/// Leaves model and data as they were. Throws as `for_each_attention`.
int64_t accumulate_roles(GatedModel& model, const DataSource& data, const RolePass& pass,
                         const RoleAccumulators& accumulators);

/// The table of what the accumulators saw, ranked.
RoleTable finish_roles(GatedModel& model, int64_t sequences, const RoleMeasure& measure,
                       const RoleAccumulators& accumulators);

}  // namespace headkit
