#include "distributed/packed_tensors.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kName[] = "packed_tensors";
constexpr std::array<at::ScalarType, 4> kTypes{at::kDouble, at::kFloat, at::kLong, at::kBool};
constexpr uint8_t kUndefined = 255;
constexpr uint8_t kMostAxes = 16;

template <typename T>
void put(std::string& bytes, T value) {
  bytes.append(reinterpret_cast<const char*>(&value), sizeof(value));
}

[[noreturn]] void fail(const char* found) {
  throw std::runtime_error(error_message(kName, "bytes of packed tensors", found));
}

class Reader {
 public:
  explicit Reader(std::string_view bytes) : left_(bytes) {}

  std::string_view take(uint64_t count) {
    if (count > left_.size()) fail("fewer bytes than they announce");
    const std::string_view taken = left_.substr(0, count);
    left_.remove_prefix(count);
    return taken;
  }
  template <typename T>
  T value() {
    T found;
    std::memcpy(&found, take(sizeof(T)).data(), sizeof(T));
    return found;
  }
  uint64_t left() const { return left_.size(); }

 private:
  std::string_view left_;
};

at::Tensor unpack_one(Reader& reader) {
  const auto type = reader.value<uint8_t>();
  if (type == kUndefined) return {};
  if (type >= kTypes.size()) fail("an unknown type");
  const auto axes = reader.value<uint8_t>();
  if (axes > kMostAxes) fail("too many axes");
  std::vector<int64_t> sizes;
  uint64_t bytes = at::elementSize(kTypes[type]);
  for (uint8_t axis = 0; axis < axes; ++axis) {
    const auto size = reader.value<uint64_t>();
    // No axis and no product of axes may exceed what is there.
    if (size > reader.left() || (size > 0 && bytes > reader.left() / size)) {
      fail("fewer bytes than their shape takes");
    }
    sizes.push_back(static_cast<int64_t>(size));
    bytes *= size;
  }
  const std::string_view data = reader.take(bytes);
  // Bytes of a bool may be anything here.
  const bool logical = kTypes[type] == at::kBool;
  const at::Tensor tensor = at::empty(sizes, logical ? at::kByte : kTypes[type]);
  if (bytes > 0) std::memcpy(tensor.mutable_data_ptr(), data.data(), bytes);
  return logical ? tensor.ne(0) : tensor;
}

}  // namespace

std::string pack(const std::vector<at::Tensor>& tensors) {
  std::string bytes;
  put(bytes, static_cast<uint32_t>(tensors.size()));
  for (const at::Tensor& each : tensors) {
    if (!each.defined()) {
      put(bytes, kUndefined);
      continue;
    }
    const auto* type = std::find(kTypes.begin(), kTypes.end(), each.scalar_type());
    HEADKIT_CHECK(type != kTypes.end() && each.dim() <= kMostAxes, kName,
                  "float64, float32, int64 or bool", each.scalar_type());
    const at::Tensor tensor = each.detach().cpu().contiguous();
    put(bytes, static_cast<uint8_t>(type - kTypes.begin()));
    put(bytes, static_cast<uint8_t>(tensor.dim()));
    for (const int64_t size : tensor.sizes()) put(bytes, static_cast<uint64_t>(size));
    bytes.append(static_cast<const char*>(tensor.const_data_ptr()), tensor.nbytes());
  }
  return bytes;
}

std::vector<at::Tensor> unpack(std::string_view bytes) {
  Reader reader(bytes);
  const auto count = reader.value<uint32_t>();
  if (count > reader.left()) fail("fewer tensors than they announce");
  std::vector<at::Tensor> tensors;
  for (uint32_t i = 0; i < count; ++i) tensors.push_back(unpack_one(reader));
  if (reader.left() > 0) fail("more bytes than they announce");
  return tensors;
}

}  // namespace headkit
