#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "headkit/explain/role_accumulator.h"

namespace headkit {

/// Which key each token of one sequence should look at.
struct GoldAlignment {
  std::vector<int64_t> target_of_token;  ///< for each query its key, or -1 = not known
  std::vector<int64_t> candidates;       ///< keys that are compared, no repeats; empty = all keys
};

/// How well heads find the known partner of each token, for example the atom of a reactant that an
/// atom of the product was, or a word in its translation: role "gold_alignment". The score is the
/// share of tokens with a partner whose largest weight over the candidates lies on it; ties share
/// the hit. A row with less than 1e-3 of its mass on candidates is dropped; a partner that the
/// query may not see, or that is no candidate, is missed.
///
/// Nulls: uniform attention; best_offset, a fixed distance chosen on the sequences of even number
/// and scored on the odd ones; shuffle and best_of_n, partners permuted within their sequence.
///
/// `sequences`: one for each example, in the order of the data; for self-attention, or, with
/// `cross`, for the blocks that read another sequence. Throws std::invalid_argument for places
/// below -1; while it runs, for places that an example does not have.
std::unique_ptr<RoleAccumulator> gold_alignment_role(const HeadLayout& layout,
                                                     std::vector<GoldAlignment> sequences,
                                                     const RoleMeasure& measure = {},
                                                     bool cross = false);

}  // namespace headkit
