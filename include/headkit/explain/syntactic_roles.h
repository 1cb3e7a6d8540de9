#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "headkit/explain/role_accumulator.h"
#include "headkit/explain/word_alignment.h"

namespace headkit {

/// Which heads look from a word at the word that it depends on ("row"), or at a word from the one
/// that it depends on ("column"): role "syntactic", a variant for each relation and direction
/// ("nsubj/row"). A subtyped relation counts under its own name and under the one before the colon.
///
/// Attention between words: sum over the tokens of the word that is looked at, mean over those of
/// the word that looks; special tokens and the word itself taken out, rows made to sum to 1. An arc
/// u -> w counts where w has the largest weight of row u, or row w the largest of column u; ties
/// share the hit. An arc whose row (u, or w) has less than 1e-3 of its mass left is dropped.
///
/// Heads and offsets are chosen on the sequences of even number and reported on the odd ones: the
/// best of many heads is otherwise an optimistic figure. A label needs an accuracy of 0.10 more
/// than the best fixed offset on both parts, and on the reported one a lower bound above every null
/// and at least 200 arcs. Relations with fewer than `minimum_arcs` reported arcs get no score.
///
/// Nulls: uniform attention on the same rows; best_offset, the best fixed distance within 8 words;
/// shuffle and best_of_n, arcs permuted within their sequence.
///
/// `sequences`: one for each example, in the order of the data. Holds 8 bytes for each arc and
/// head. Blocks that read another sequence are passed over. Throws std::invalid_argument if a
/// sequence is not sound or none has an arc; while it runs, if there are more examples than
/// sequences, or an example has more tokens than its sequence.
///
/// Source: Clark et al. 2019 (words from tokens, both directions); Voita et al. 2019 (10 points
/// over the best offset).
std::unique_ptr<RoleAccumulator> syntactic_roles(const HeadLayout& layout,
                                                 std::vector<SequenceSyntax> sequences,
                                                 const RoleMeasure& measure = {},
                                                 int64_t minimum_arcs = 200);

}  // namespace headkit
