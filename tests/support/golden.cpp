#include "support/golden.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <fstream>
#include <stdexcept>
#include <vector>

namespace headkit::testing {
namespace {

void flatten(const nlohmann::json& value, std::vector<double>& numbers, bool& whole) {
  if (value.is_array()) {
    for (const auto& each : value) flatten(each, numbers, whole);
    return;
  }
  whole = whole && value.is_number_integer();
  numbers.push_back(value.get<double>());
}

}  // namespace

const nlohmann::json& golden_case(const std::string& id) {
  static const nlohmann::json kGolden =
      nlohmann::json::parse(std::ifstream(HEADKIT_TEST_DATA "/golden.json"));
  for (const auto& each : kGolden["cases"]) {
    if (each["id"] == id) return each;
  }
  throw std::out_of_range("no golden case " + id);
}

at::Tensor golden_tensor(const nlohmann::json& value) {
  std::vector<int64_t> shape;
  for (const nlohmann::json* level = &value; level->is_array(); level = &level->front()) {
    shape.push_back(static_cast<int64_t>(level->size()));
    if (level->empty()) break;
  }
  std::vector<double> numbers;
  bool whole = true;
  flatten(value, numbers, whole);
  const at::Tensor tensor = at::tensor(numbers, at::kDouble).reshape(shape);
  return whole ? tensor.to(at::kLong) : tensor;
}

void expect_golden(const at::Tensor& found, const nlohmann::json& golden, const std::string& key) {
  const at::Tensor expected = golden_tensor(golden["expected"][key]).to(at::kDouble);
  const double abs = golden["tolerance"]["abs"].get<double>();
  const double rel = golden["tolerance"]["rel"].get<double>();
  ASSERT_EQ(found.sizes(), expected.sizes()) << golden["id"] << " " << key;
  EXPECT_TRUE(at::allclose(found.detach().to(at::kDouble), expected, rel, abs))
      << golden["id"] << " " << key << "\nfound\n"
      << found << "\nexpected\n"
      << expected;
}

}  // namespace headkit::testing
