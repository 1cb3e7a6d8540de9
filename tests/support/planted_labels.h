#pragma once

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <memory>
#include <vector>

#include "support/toy_model.h"

namespace headkit::testing {

/// A toy model and examples whose labels are what it says with some of its heads alone: these are
/// needed, the others disturb.
struct PlantedHeads {
  std::shared_ptr<ToyModel> model;
  HeadMask needed;
  std::vector<Batch> batches;
};

inline PlantedHeads planted_heads(uint64_t seed, int64_t examples = 192, int64_t per_batch = 32) {
  const HeadLayout layout{.layers = 2, .heads = 4, .head_dim = 3, .model_dim = 6};
  constexpr int64_t kClasses = 3;
  PlantedHeads planted;
  planted.model = random_toy_model(layout, kClasses, seed);
  planted.needed = HeadMask(at::tensor({0, 1, 0, 0, 1, 0, 0, 1}, at::kLong).reshape({2, 4}));
  Batch all = random_toy_batch(layout, examples, 5, kClasses, seed + 1);
  GateSet gates;
  gates.heads = planted.needed.keep().to(at::kDouble);
  const c10::NoGradGuard no_grad;
  all["labels"] = (*planted.model)(all, gates).argmax(1);
  for (int64_t first = 0; first < examples; first += per_batch) {
    planted.batches.push_back(select_examples(all, at::arange(first, first + per_batch)));
  }
  return planted;
}

}  // namespace headkit::testing
