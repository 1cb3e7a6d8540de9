#include "gates/tensor_text.h"

#include <ATen/ATen.h>

#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "headkit/core/error.h"

namespace headkit {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are stored little-endian");

constexpr char kDigits[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

struct Dtype {
  const char* name;
  at::ScalarType type;
};
constexpr std::array<Dtype, 3> kDtypes{
    {{"float64", at::kDouble}, {"float32", at::kFloat}, {"int8", at::kChar}}};

std::string encode(const uint8_t* bytes, size_t count) {
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

std::vector<uint8_t> decode(const char* operation, const std::string& text) {
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

}  // namespace

Json tensor_to_text(const char* operation, const at::Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  for (const Dtype& dtype : kDtypes) {
    if (tensor.scalar_type() != dtype.type) continue;
    const at::Tensor bytes = tensor.detach().cpu().contiguous();
    return {
        {"dtype", dtype.name},
        {"shape", tensor.sizes().vec()},
        {"base64", encode(static_cast<const uint8_t*>(bytes.const_data_ptr()), bytes.nbytes())}};
  }
  throw std::invalid_argument(
      error_message(operation, "a tensor of float64, float32 or int8", tensor.scalar_type()));
}

at::Tensor tensor_from_text(const char* operation, const Json& value) {
  if (value.is_null()) return {};
  const std::string name = string_member(operation, value, "dtype");
  const Json& shape = member(operation, value, "shape");
  HEADKIT_CHECK(shape.is_array() && shape.size() <= 4, operation, "a shape of at most four sizes",
                shape.dump());
  const std::vector<uint8_t> bytes = decode(operation, string_member(operation, value, "base64"));
  for (const Dtype& dtype : kDtypes) {
    if (name != dtype.name) continue;
    std::vector<int64_t> sizes;
    uint64_t expected = c10::elementSize(dtype.type);
    for (const Json& size : shape) {
      HEADKIT_CHECK(size.is_number_unsigned() && size.get<uint64_t>() <= bytes.size() + 1,
                    operation, "sizes that fit the data", shape.dump());
      sizes.push_back(size.get<int64_t>());
      expected *= size.get<uint64_t>();
      HEADKIT_CHECK(expected <= bytes.size(), operation, "a shape that fits the data", shape.dump(),
                    " for ", bytes.size(), " bytes");
    }
    HEADKIT_CHECK(expected == bytes.size(), operation, "a shape that fits the data", shape.dump(),
                  " for ", bytes.size(), " bytes");
    at::Tensor tensor = at::empty(sizes, dtype.type);
    std::memcpy(tensor.mutable_data_ptr(), bytes.data(), bytes.size());
    HEADKIT_CHECK(tensor.isfinite().all().item<bool>(), operation, "finite values",
                  "NaN or infinity");
    return tensor;
  }
  throw std::invalid_argument(error_message(operation, "dtype float64, float32 or int8", name));
}

}  // namespace headkit
