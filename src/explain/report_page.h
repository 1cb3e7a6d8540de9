#pragma once

namespace headkit {

/// The page of reports, split where its data go: page.html with its style and script in place.
extern const char* const kReportPageBefore;
extern const char* const kReportPageAfter;

}  // namespace headkit
