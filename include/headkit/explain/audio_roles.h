#pragma once

#include <memory>
#include <vector>

#include "headkit/explain/role_accumulator.h"

namespace headkit {

/// Roles of self-attention over frames, frame i at i * `hop` seconds: globalness, verticality,
/// diag_distance, diag_cumulative, monotonicity. Distances are told in seconds among the details.
/// They are length-normalised forms of what goes by the name of diagonality elsewhere: compare
/// ranks, not values. None has a threshold, so none is a label. Throws std::invalid_argument unless
/// hop > 0.
///
/// Source: Yang et al. 2020 (globalness, verticality, diagonality); Shim et al. 2022 (cumulative
/// diagonality).
std::unique_ptr<RoleAccumulator> audio_roles(const HeadLayout& layout, double hop);

/// Role "time_alignment" of cross-attention: correlation of c_i, the mean time that decoder token i
/// looks at, with the time at which its word was said; the median of |c_i - time| in seconds among
/// the details. Key j is at j * `hop` seconds. Taken in each sequence over its tokens with a time,
/// at least three, then averaged by tokens; 0 for a head whose c_i does not change.
///
/// `times`: for each example, in the order of the data, seconds for each decoder token; NaN = not
/// known. Null: times permuted within their sequence. Throws std::invalid_argument unless hop > 0;
/// while it runs, if there are more examples or tokens than times.
std::unique_ptr<RoleAccumulator> time_alignment_role(const HeadLayout& layout, double hop,
                                                     std::vector<std::vector<double>> times,
                                                     const RoleMeasure& measure = {});

}  // namespace headkit
