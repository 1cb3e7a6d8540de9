#pragma once

#include <optional>
#include <string>

#include "core/json_members.h"
#include "headkit/explain/decision_record.h"

namespace headkit {

/// A finite number; std::invalid_argument names `what` otherwise.
Json finite_json(double value, const char* what);
Json nullable_json(const std::optional<double>& value, const char* what);

/// What an explanation adds to a head, and to the record.
void write_explanation(const HeadExplanation& explained, Json& head);
std::optional<HeadExplanation> read_explanation(const Json& head);
void write_details(const RecordDetails& details, Json& json);
std::optional<RecordDetails> read_details(const Json& json);

/// A record of schema 1 in the form of this one.
void upgrade_record(Json& json);
/// Members of `read` that `written` lacks, at any depth, in arrays of equal length place by place;
/// null where there are none. Nulls do not count.
Json unknown_members(const Json& read, const Json& written);
/// Puts members that were kept back where `json` lacks them.
void restore_members(Json& json, const Json& kept);

}  // namespace headkit
