#include "models/encoder_embeddings.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "headkit/core/error.h"

namespace headkit {
namespace {

// In a batch for the loss or the record, not for the model.
constexpr std::array<std::string_view, 7> kNotInputs = {
    "labels",     "next_sentence_label", "start_positions",    "end_positions",
    "example_id", "example_ids",         "special_tokens_mask"};

}  // namespace

void check_inputs(const Batch& batch, const std::vector<std::string>& inputs) {
  std::string known;
  for (const std::string& name : inputs) known += name + ", ";
  for (const std::string_view name : kNotInputs) known += std::string(name) + ", ";
  known.resize(known.size() - 2);
  for (const auto& [name, tensor] : batch) {
    const bool is_input = std::find(inputs.begin(), inputs.end(), name) != inputs.end();
    const bool is_other = std::find(kNotInputs.begin(), kNotInputs.end(), name) != kNotInputs.end();
    HEADKIT_CHECK(is_input || is_other, "embed", "tensors named " + known, name);
  }
  HEADKIT_CHECK(batch.count(inputs.front()) > 0, "embed", inputs.front(), "none");
}

}  // namespace headkit
