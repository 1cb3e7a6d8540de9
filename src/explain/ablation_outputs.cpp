#include "explain/ablation_outputs.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <random>

#include "headkit/core/error.h"
#include "headkit/pruners/mean_output.h"
#include "scorers/resampling.h"

namespace headkit {

AblationOutputs ablation_outputs(const char* operation, GatedModel& model, const std::string& kind,
                                 const DataSource* data, int64_t draws, uint64_t seed) {
  HEADKIT_CHECK(kind == "zero" || kind == "mean" || kind == "resample", operation,
                "an ablation of zero, mean or resample", kind.empty() ? "none" : kind);
  if (kind == "zero") return {kind, "nothing", {at::Tensor()}};
  HEADKIT_CHECK(data != nullptr, operation, "reference data for ablation " + kind, "none");
  int64_t examples = 0;
  data->for_each([&](const Batch& batch) { examples += batch_size(batch); });
  HEADKIT_CHECK(examples > 0, operation, "reference data with at least one example", "none");
  if (kind == "mean") {
    return {kind,
            c10::str("mean output over the tokens of ", examples, " inputs"),
            {mean_head_outputs(model, *data)}};
  }
  HEADKIT_CHECK(draws >= 1, operation, "at least one draw", draws);
  std::mt19937_64 random(seed);
  std::vector<int64_t> drawn = shuffled(random, examples);
  drawn.resize(static_cast<size_t>(std::min(draws, examples)));
  AblationOutputs outputs{kind,
                          c10::str("mean output over the tokens of another input, ", drawn.size(),
                                   " drawn from ", examples),
                          std::vector<at::Tensor>(drawn.size())};
  int64_t first = 0;
  data->for_each([&](const Batch& batch) {
    const int64_t count = batch_size(batch);
    for (size_t i = 0; i < drawn.size(); ++i) {
      const int64_t place = drawn[i] - first;
      if (place < 0 || place >= count) continue;
      const BatchList one({select_examples(batch, at::arange(place, place + 1))});
      outputs.draws[i] = mean_head_outputs(model, one);
    }
    first += count;
  });
  return outputs;
}

}  // namespace headkit
