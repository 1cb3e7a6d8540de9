#include "feed_forward/row_blocks.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

namespace headkit {
namespace {

SampleGroup group_of(std::vector<int64_t> samples, int32_t blocks) {
  SampleGroup group;
  group.samples = std::move(samples);
  for (int32_t block = 0; block < blocks; ++block) group.blocks.push_back(block);
  return group;
}

TEST(RowBlocks, HoldEveryRowOnceAndMostWorkFirst) {
  const std::vector<SampleGroup> groups = {group_of({0, 3}, 2), group_of({1, 2}, 5),
                                           group_of({4}, 0)};
  for (const int64_t length : {1, 7, 500}) {
    for (const int64_t threads : {1, 2, 64}) {
      const auto blocks = make_row_blocks(groups, length, 48, threads);
      std::set<int64_t> rows;
      int64_t work = 1 << 30;
      for (const RowBlock& block : blocks) {
        const int64_t own = block.count * static_cast<int64_t>(groups[block.group].blocks.size());
        EXPECT_LE(own, work);
        work = own;
        EXPECT_LE(block.count, 192);
        for (int64_t i = 0; i < block.count; ++i) {
          const int64_t row = block.index.empty() ? block.first + i : block.index[i];
          const auto& samples = groups[block.group].samples;
          EXPECT_NE(std::find(samples.begin(), samples.end(), row / length), samples.end());
          EXPECT_TRUE(rows.insert(row).second) << "row " << row << " twice";
        }
      }
      EXPECT_EQ(static_cast<int64_t>(rows.size()), 5 * length);
    }
  }
}

TEST(RowBlocks, ReadRowsThatLieBesideEachOtherInPlace) {
  for (const RowBlock& block : make_row_blocks({group_of({1, 2, 3}, 2)}, 100, 48, 1)) {
    EXPECT_TRUE(block.index.empty());
    EXPECT_GE(block.first, 100);
  }
  EXPECT_FALSE(make_row_blocks({group_of({0, 2}, 2)}, 10, 48, 1)[0].index.empty());
}

}  // namespace
}  // namespace headkit
