#include "core/json.h"

#include <ATen/ATen.h>

#include <cmath>
#include <vector>

#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr int kMaxDepth = 64;

std::string shortened(const std::string& text) {
  constexpr size_t kShown = 60;
  return text.size() <= kShown ? text : text.substr(0, kShown) + "...";
}

Json nested(const double* values, at::IntArrayRef sizes, at::IntArrayRef strides) {
  Json result = Json::array();
  for (int64_t i = 0; i < sizes[0]; ++i) {
    const double* row = values + i * strides[0];
    if (sizes.size() == 1) {
      result.push_back(*row);
    } else {
      result.push_back(nested(row, sizes.slice(1), strides.slice(1)));
    }
  }
  return result;
}

void read_nested(const char* operation, const Json& value, const std::vector<int64_t>& sizes,
                 size_t axis, std::vector<double>& values) {
  HEADKIT_CHECK(
      value.is_array() && static_cast<int64_t>(value.size()) == sizes[axis], operation,
      "an array of " + std::to_string(sizes[axis]) + " entries at depth " + std::to_string(axis),
      shortened(value.dump()));
  for (const Json& entry : value) {
    if (axis + 1 < sizes.size()) {
      read_nested(operation, entry, sizes, axis + 1, values);
      continue;
    }
    HEADKIT_CHECK(entry.is_number() && std::isfinite(entry.get<double>()), operation,
                  "finite numbers", shortened(entry.dump()));
    values.push_back(entry.get<double>());
  }
}

}  // namespace

Json parse_json(const char* operation, const std::string& text) {
  // A callback that refuses depth keeps the recursive destructor of a hostile document shallow.
  const auto depth_limit = [operation](int depth, Json::parse_event_t, Json&) {
    HEADKIT_CHECK(depth <= kMaxDepth, operation,
                  "JSON nested at most " + std::to_string(kMaxDepth) + " deep", "depth ", depth);
    return true;
  };
  try {
    return Json::parse(text, depth_limit);
  } catch (const Json::exception& error) {
    throw std::invalid_argument(
        error_message(operation, "valid JSON", error.what(), " in ", shortened(text)));
  }
}

const Json& member(const char* operation, const Json& value, const char* name) {
  HEADKIT_CHECK(value.is_object() && value.contains(name), operation,
                std::string("an object with the member \"") + name + "\"",
                shortened(value.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return value.at(name);
}

int64_t integer_member(const char* operation, const Json& value, const char* name) {
  const Json& found = member(operation, value, name);
  const bool fits = found.is_number_integer() &&
                    !(found.is_number_unsigned() && found.get<uint64_t>() > uint64_t{INT64_MAX});
  HEADKIT_CHECK(fits, operation, std::string("a whole number as \"") + name + "\"",
                shortened(found.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return found.get<int64_t>();
}

double number_member(const char* operation, const Json& value, const char* name) {
  const Json& found = member(operation, value, name);
  HEADKIT_CHECK(found.is_number() && std::isfinite(found.get<double>()), operation,
                std::string("a finite number as \"") + name + "\"",
                shortened(found.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return found.get<double>();
}

std::string string_member(const char* operation, const Json& value, const char* name) {
  const Json& found = member(operation, value, name);
  HEADKIT_CHECK(found.is_string(), operation, std::string("a text as \"") + name + "\"",
                shortened(found.dump(-1, ' ', false, Json::error_handler_t::replace)));
  return found.get<std::string>();
}

Json tensor_to_json(const char* operation, const at::Tensor& tensor) {
  HEADKIT_CHECK(tensor.defined() && tensor.dim() >= 1, operation, "a tensor with at least one axis",
                tensor.defined() ? "a scalar" : "none");
  const at::Tensor values = tensor.detach().to(at::kCPU, at::kDouble);
  HEADKIT_CHECK(values.isfinite().all().item<bool>(), operation, "finite values",
                "NaN or infinity in a tensor of shape ", tensor.sizes());
  return nested(values.const_data_ptr<double>(), values.sizes(), values.strides());
}

at::Tensor tensor_from_json(const char* operation, const Json& value, int64_t rank) {
  std::vector<int64_t> sizes;
  const Json* level = &value;
  for (int64_t axis = 0; axis < rank; ++axis) {
    HEADKIT_CHECK(level->is_array(), operation, "an array nested " + std::to_string(rank) + " deep",
                  shortened(level->dump(-1, ' ', false, Json::error_handler_t::replace)));
    sizes.push_back(static_cast<int64_t>(level->size()));
    if (level->empty()) {
      sizes.resize(rank, 0);
      break;
    }
    level = &level->front();
  }
  std::vector<double> values;
  read_nested(operation, value, sizes, 0, values);
  return at::tensor(values, at::kDouble).reshape(sizes);
}

}  // namespace headkit
