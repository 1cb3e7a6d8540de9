#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

#include "headkit/explain/role_accumulator.h"

namespace headkit {

using RolePointer = std::unique_ptr<RoleAccumulator>;

/// positional at 1 <= |d| <= 8, previous_token, next_token, self.
RolePointer offset_roles(const HeadLayout& layout);
/// delimiter, of a set of token ids.
RolePointer delimiter_role(const HeadLayout& layout, const std::string& name,
                           std::vector<int64_t> ids);
RolePointer first_token_sink(const HeadLayout& layout);
/// broad, confident.
RolePointer row_shape_roles(const HeadLayout& layout);
/// local, with the mass by distance among the details.
RolePointer local_role(const HeadLayout& layout);
/// inactive; no label without a threshold.
RolePointer inactive_role(const HeadLayout& layout, std::optional<double> threshold);

/// Roles of cues: token positions that a query should look at because of what the tokens are.
RolePointer duplicate_token_role(const HeadLayout& layout, const RoleMeasure& measure);
RolePointer natural_mass_role(const HeadLayout& layout, const RoleMeasure& measure);
RolePointer natural_any_prior_role(const HeadLayout& layout, const RoleMeasure& measure);
/// Of sequences whose second copy begins at `lengths[sample] + begin`.
RolePointer random_stripe_role(const HeadLayout& layout, const RoleMeasure& measure,
                               std::vector<int64_t> lengths, int64_t begin);

/// How often each token occurs in the data.
using TokenCounts = std::unordered_map<int64_t, int64_t>;
RolePointer rare_token_role(const HeadLayout& layout, const RoleMeasure& measure,
                            TokenCounts counts);

/// copying, from the weights. `embedding` and `unembedding` [V, D], or undefined.
void add_copying(GatedModel& model, const RoleMeasure& measure, const at::Tensor& embedding,
                 const at::Tensor& unembedding, RoleTable& table);

}  // namespace headkit
