#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace headkit {

/// Unicode code points of a text; nothing if it is not UTF-8.
std::optional<int64_t> count_code_points(std::string_view text);

}  // namespace headkit
