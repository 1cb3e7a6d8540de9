#include "explain/code_points.h"

namespace headkit {
namespace {

constexpr uint32_t kLargest = 0x10ffff;

struct Lead {
  int followers;   // bytes after this one; -1 = no lead byte
  uint32_t bits;   // of the code point
  uint32_t least;  // that needs so many bytes
};

Lead lead_of(uint8_t byte) {
  if (byte < 0x80) return {0, byte, 0};
  if (byte < 0xc0) return {-1, 0, 0};
  if (byte < 0xe0) return {1, byte & 0x1fu, 0x80};
  if (byte < 0xf0) return {2, byte & 0x0fu, 0x800};
  if (byte < 0xf8) return {3, byte & 0x07u, 0x10000};
  return {-1, 0, 0};
}

}  // namespace

std::optional<int64_t> count_code_points(std::string_view text) {
  int64_t count = 0;
  for (size_t at = 0; at < text.size(); ++count) {
    Lead lead = lead_of(static_cast<uint8_t>(text[at++]));
    if (lead.followers < 0) return std::nullopt;
    for (int i = 0; i < lead.followers; ++i, ++at) {
      if (at == text.size()) return std::nullopt;
      const auto byte = static_cast<uint8_t>(text[at]);
      if ((byte & 0xc0) != 0x80) return std::nullopt;
      lead.bits = lead.bits << 6 | (byte & 0x3fu);
    }
    const bool surrogate = lead.bits >= 0xd800 && lead.bits < 0xe000;
    if (lead.bits < lead.least || lead.bits > kLargest || surrogate) return std::nullopt;
  }
  return count;
}

}  // namespace headkit
