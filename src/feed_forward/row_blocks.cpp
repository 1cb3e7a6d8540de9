#include "feed_forward/row_blocks.h"

#include <algorithm>

#include "operators/cache_sizes.h"
#include "operators/rounding.h"

namespace headkit {
namespace {

constexpr int64_t kHiddenNeurons = 512;

}  // namespace

int64_t hidden_chunk(int64_t block_size) {
  return std::max<int64_t>(1, kHiddenNeurons / block_size);
}

std::vector<RowBlock> make_row_blocks(const std::vector<SampleGroup>& groups, int64_t length,
                                      int64_t panel, int64_t threads) {
  int64_t all_panels = 0;
  for (const SampleGroup& group : groups) {
    all_panels += ceil_div(static_cast<int64_t>(group.samples.size()) * length, panel);
  }
  // A few blocks for each thread, so that all end at about the same time.
  const int64_t most = threads == 1 ? kPassRows / panel : all_panels / (3 * threads);
  const int64_t panels_of_block =
      std::clamp<int64_t>(most, 1, std::max<int64_t>(1, kPassRows / panel));

  std::vector<RowBlock> result;
  for (size_t g = 0; g < groups.size(); ++g) {
    const std::vector<int64_t>& samples = groups[g].samples;
    const int64_t rows = static_cast<int64_t>(samples.size()) * length;
    const bool beside = !samples.empty() && samples.back() - samples.front() + 1 ==
                                                static_cast<int64_t>(samples.size());
    const int64_t panels = ceil_div(rows, panel), cuts = ceil_div(panels, panels_of_block);
    for (int64_t cut = 0; cut < cuts; ++cut) {
      const int64_t first = panels * cut / cuts * panel;
      const int64_t end = std::min(rows, panels * (cut + 1) / cuts * panel);
      RowBlock block{
          static_cast<int64_t>(g), beside ? samples.front() * length + first : 0, end - first, {}};
      if (!beside) {
        for (int64_t row = first; row < end; ++row) {
          block.index.push_back(
              static_cast<int32_t>(samples[row / length] * length + row % length));
        }
      }
      result.push_back(std::move(block));
    }
  }
  std::stable_sort(result.begin(), result.end(), [&](const RowBlock& a, const RowBlock& b) {
    return a.count * groups[a.group].blocks.size() > b.count * groups[b.group].blocks.size();
  });
  return result;
}

}  // namespace headkit
