#pragma once

#include <string>

namespace headkit {

/// Layers and heads of a record as one SVG picture, layer 0 at the bottom: what is on (filled), off
/// (hatched), always on (thick) and gone (cross), coloured by measured or estimated effect where
/// there is one. `record`: JSON as DecisionRecord::to_json writes it; std::invalid_argument on
/// other text.
std::string report_picture(const std::string& record);

}  // namespace headkit
