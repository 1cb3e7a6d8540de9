#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace headkit {

/// What a report shows beside the records.
struct ReportOptions {
  std::string title = {};  ///< empty = the text of the first input
  /// Behind the tokens of each record: data URIs (data:image/png;base64,... or jpeg), empty = none.
  /// Patches lie over it as a grid, frames side by side, so it shows what the model saw and no
  /// more.
  std::vector<std::string> pictures = {};
  int64_t max_bytes = 5'000'000;  ///< of the page; heads lose their detail until it fits
  int64_t detailed_heads = -1;    ///< heads with attention and parts in each record; -1 = all
};

/// The report of one record, or of two that are compared: one HTML file without network, library or
/// anything outside it.
///
/// `records`: JSON objects as DecisionRecord::to_json writes them. The page shows what a record
/// holds, and says "not computed" where it holds nothing. Heads keep attention and parts by the
/// size of their effect (else of their margin); what was left out to keep `max_bytes` is said on
/// the page. Nothing of a record can end its block or be read as markup.
///
/// Throws std::invalid_argument for no or more than two records, text that is no record, pictures
/// that are no data URI of an image, or if the page cannot be as small as `max_bytes`.
std::string html_report(const std::vector<std::string>& records, const ReportOptions& options = {});

}  // namespace headkit
