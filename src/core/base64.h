#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace headkit {

/// RFC 4648, with padding.
std::string base64_encode(const uint8_t* bytes, size_t count);

/// std::invalid_argument `[operation] expected base64 ...` on anything else.
std::vector<uint8_t> base64_decode(const char* operation, const std::string& text);

}  // namespace headkit
