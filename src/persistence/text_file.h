#pragma once

#include <cstddef>
#include <string>

namespace headkit {

/// The content of a regular file of `most` bytes at most. Throws std::runtime_error, beginning
/// `[load] expected <expected>`, if there is none, or it is larger or something else.
std::string read_text_file(const std::string& path, const std::string& expected, size_t most);

}  // namespace headkit
