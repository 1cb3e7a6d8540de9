#include "pruners/example_views.h"

#include <ATen/ATen.h>

#include <vector>

namespace headkit {
namespace {

constexpr int64_t kFourth = 4;

struct EnoughExamples {};

}  // namespace

void EveryFourth::for_each(const std::function<void(const Batch&)>& visit) const {
  int64_t first = 0;
  data_.for_each([&](const Batch& batch) {
    const int64_t examples = batch_size(batch);
    const at::Tensor place = at::arange(first, first + examples, at::kLong).remainder(kFourth);
    first += examples;
    const at::Tensor held_out = place == kFourth - 1;
    const at::Tensor index = (others_ ? held_out.logical_not() : held_out).nonzero().flatten();
    if (index.size(0) > 0) visit(select_examples(batch, index));
  });
}

BatchList first_examples(const DataSource& data, int64_t count) {
  std::vector<Batch> batches;
  int64_t left = count;
  try {
    data.for_each([&](const Batch& batch) {
      const int64_t examples = batch_size(batch);
      if (examples == 0) return;
      batches.push_back(examples <= left ? batch : select_examples(batch, at::arange(left)));
      left -= examples;
      if (left <= 0) throw EnoughExamples();
    });
  } catch (const EnoughExamples&) {
  }
  return BatchList(std::move(batches));
}

int64_t count_examples(const DataSource& data) {
  int64_t count = 0;
  data.for_each([&](const Batch& batch) { count += batch_size(batch); });
  return count;
}

}  // namespace headkit
