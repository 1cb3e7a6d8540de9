#include "core/base64.h"

#include <algorithm>
#include <array>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

}  // namespace

std::string base64_encode(const uint8_t* bytes, size_t count) {
  std::string text;
  text.reserve((count + 2) / 3 * 4);
  for (size_t i = 0; i < count; i += 3) {
    const size_t left = std::min<size_t>(3, count - i);
    uint32_t group = 0;
    for (size_t j = 0; j < 3; ++j) group = group << 8 | (j < left ? bytes[i + j] : 0);
    for (size_t j = 0; j < 4; ++j) {
      text += j <= left ? kDigits[group >> (18 - 6 * j) & 63] : '=';
    }
  }
  return text;
}

std::vector<uint8_t> base64_decode(const char* operation, const std::string& text) {
  std::array<int8_t, 256> value;
  value.fill(-1);
  for (int8_t i = 0; i < 64; ++i) value[static_cast<uint8_t>(kDigits[i])] = i;
  size_t padding = 0;
  while (padding < 2 && padding < text.size() && text[text.size() - 1 - padding] == '=') ++padding;
  HEADKIT_CHECK(text.size() % 4 == 0, operation, "base64 in groups of four", text.size(),
                " characters");
  std::vector<uint8_t> bytes;
  bytes.reserve(text.size() / 4 * 3);
  for (size_t i = 0; i < text.size(); i += 4) {
    uint32_t group = 0;
    for (size_t j = 0; j < 4; ++j) {
      const bool padded = i + j >= text.size() - padding;
      const int8_t digit = padded ? 0 : value[static_cast<uint8_t>(text[i + j])];
      HEADKIT_CHECK(digit >= 0, operation, "base64", "character ", int{text[i + j]}, " at ", i + j);
      group = group << 6 | static_cast<uint32_t>(digit);
    }
    for (int j = 2; j >= 0; --j) bytes.push_back(static_cast<uint8_t>(group >> (8 * j)));
  }
  bytes.resize(bytes.size() - padding);
  return bytes;
}

}  // namespace headkit
