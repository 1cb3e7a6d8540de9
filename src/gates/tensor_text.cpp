#include "gates/tensor_text.h"

#include <ATen/ATen.h>

#include <array>
#include <bit>
#include <cstring>
#include <vector>

#include "core/base64.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

static_assert(std::endian::native == std::endian::little, "tensors are stored little-endian");

struct Dtype {
  const char* name;
  at::ScalarType type;
};
constexpr std::array<Dtype, 3> kDtypes{
    {{"float64", at::kDouble}, {"float32", at::kFloat}, {"int8", at::kChar}}};

}  // namespace

Json tensor_to_text(const char* operation, const at::Tensor& tensor) {
  if (!tensor.defined()) return nullptr;
  for (const Dtype& dtype : kDtypes) {
    if (tensor.scalar_type() != dtype.type) continue;
    const at::Tensor bytes = tensor.detach().cpu().contiguous();
    return {{"dtype", dtype.name},
            {"shape", tensor.sizes().vec()},
            {"base64",
             base64_encode(static_cast<const uint8_t*>(bytes.const_data_ptr()), bytes.nbytes())}};
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
  const std::vector<uint8_t> bytes =
      base64_decode(operation, string_member(operation, value, "base64"));
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
