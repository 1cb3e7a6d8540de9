#pragma once

#include <ATen/core/Tensor.h>

#include <nlohmann/json.hpp>
#include <string>

namespace headkit::testing {

/// The case `id` of tests/data/golden.json: inputs, expected, tolerance. Throws if there is none.
const nlohmann::json& golden_case(const std::string& id);

/// Nested lists of numbers as a float64 tensor; all integers as int64.
at::Tensor golden_tensor(const nlohmann::json& value);

/// EXPECTs |found - expected[key]| <= abs + rel * |expected[key]| with the tolerance of the case.
void expect_golden(const at::Tensor& found, const nlohmann::json& golden, const std::string& key);

}  // namespace headkit::testing
