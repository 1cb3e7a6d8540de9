#pragma once

#include <string>
#include <vector>

namespace headkit {

/// One sentence and the evidence level behind it ("L0" .. "L3"); empty = a fact of the run.
struct SummaryLine {
  std::string text;
  std::string level;
  bool operator==(const SummaryLine&) const = default;
};

/// A record in few sentences: what ran, what came out, and a reason for each of the three heads
/// that matter most. `record`: JSON as DecisionRecord::to_json writes it; std::invalid_argument on
/// other text.
std::vector<SummaryLine> summarise_record(const std::string& record);

}  // namespace headkit
