#include "headkit/plan/work_list.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

namespace headkit {
namespace {

at::Tensor gates_of(std::vector<std::vector<float>> rows) {
  std::vector<float> flat;
  for (const auto& row : rows) flat.insert(flat.end(), row.begin(), row.end());
  return at::tensor(flat).reshape({static_cast<int64_t>(rows.size()), -1});
}

// The example of the header, worked out by hand.
TEST(WorkListTest, ListsPairsInBothOrders) {
  const WorkList list = make_work_list(gates_of({{1, 0, 0.5f, 0}, {0, 0, 0, 0}, {0, 1, -2, 1}}));
  EXPECT_EQ(list.row_offset, (std::vector<int32_t>{0, 2, 2, 5}));
  EXPECT_EQ(list.head_index, (std::vector<int32_t>{0, 2, 1, 2, 3}));
  EXPECT_EQ(list.scale, (std::vector<float>{1, 0.5f, 1, -2, 1}));
  EXPECT_EQ(list.col_offset, (std::vector<int32_t>{0, 1, 2, 4, 5}));
  EXPECT_EQ(list.sample_index, (std::vector<int32_t>{0, 2, 0, 2, 2}));
  EXPECT_EQ(list.pair_of, (std::vector<int32_t>{0, 2, 1, 3, 4}));
  list.check("test");
}

TEST(WorkListTest, IsTheSparseFormOfRandomGates) {
  at::manual_seed(0);
  for (const auto& [batch, heads] : {std::pair{1, 1}, {1, 13}, {5, 12}, {64, 7}, {0, 4}, {3, 0}}) {
    const at::Tensor open = at::rand({batch, heads}) < 0.4;
    const at::Tensor gate = at::rand({batch, heads}).add(0.1).mul(open);
    const WorkList list = make_work_list(gate);
    list.check("test");
    EXPECT_TRUE(at::equal(list.to_keep(), open));
    EXPECT_EQ(list.pairs(), open.sum().item<int64_t>());
    for (int64_t sample = 0; sample < batch; ++sample) {
      for (int32_t p = list.row_offset[sample]; p < list.row_offset[sample + 1]; ++p) {
        EXPECT_EQ(list.scale[p], gate[sample][list.head_index[p]].item<float>());
      }
    }
    for (int64_t head = 0; head < heads; ++head) {
      for (int32_t c = list.col_offset[head]; c < list.col_offset[head + 1]; ++c) {
        EXPECT_EQ(list.head_index[list.pair_of[c]], head);
      }
    }
    EXPECT_EQ(WorkList::from_json(list.to_json()), list);
  }
}

TEST(WorkListTest, DenseListRunsEveryHead) {
  const WorkList list = make_dense_work_list(2, 3);
  EXPECT_EQ(list.pairs(), 6);
  EXPECT_TRUE(list.to_keep().all().item<bool>());
}

TEST(WorkListTest, AcceptsStridedAndDoubleGates) {
  const at::Tensor gate = at::rand({4, 6}, at::kDouble).t();
  EXPECT_TRUE(at::equal(make_work_list(gate).to_keep(), gate != 0));
}

TEST(WorkListTest, RefusesBadGates) {
  EXPECT_THROW(make_work_list(at::ones({3})), std::invalid_argument);
  EXPECT_THROW(make_work_list(at::ones({3, 2}, at::kLong)), std::invalid_argument);
  EXPECT_THROW(make_work_list(gates_of({{1, NAN}})), std::invalid_argument);
  EXPECT_THROW(make_work_list(gates_of({{1, INFINITY}})), std::invalid_argument);
}

TEST(WorkListTest, CheckFindsEveryBrokenInvariant) {
  const WorkList good = make_work_list(gates_of({{1, 0, 1}, {1, 1, 0}}));
  const auto broken = [&](auto edit) {
    WorkList list = good;
    edit(list);
    EXPECT_THROW(list.check("test"), std::invalid_argument);
  };
  broken([](WorkList& l) { l.row_offset[0] = 1; });
  broken([](WorkList& l) { l.row_offset.pop_back(); });
  broken([](WorkList& l) { l.row_offset[1] = 9; });
  broken([](WorkList& l) { l.head_index[0] = 3; });
  broken([](WorkList& l) { l.head_index[0] = -1; });
  broken([](WorkList& l) { std::swap(l.head_index[0], l.head_index[1]); });
  broken([](WorkList& l) { l.scale[0] = 0; });
  broken([](WorkList& l) { l.scale.pop_back(); });
  broken([](WorkList& l) { l.pair_of[0] = 1; });
  broken([](WorkList& l) { l.sample_index[0] = 1; });
  broken([](WorkList& l) { l.col_offset[1] = 1; });
}

TEST(WorkListTest, RefusesHostileText) {
  for (const char* text :
       {"{}", "nonsense",
        R"({"batch":1,"heads":1,"row_offset":[0,5],"head_index":[0],"scale":[1]})",
        R"({"batch":1,"heads":1,"row_offset":[0,1],"head_index":[7],"scale":[1]})",
        R"({"batch":1,"heads":1,"row_offset":[0,1],"head_index":[0],"scale":[]})",
        R"({"batch":9000000000000000000,"heads":1,"row_offset":[0],"head_index":[],"scale":[]})",
        R"({"batch":1,"heads":9000000000000000000,"row_offset":[0,0],"head_index":[],"scale":[]})",
        R"({"batch":1,"heads":1,"row_offset":"x","head_index":[],"scale":[]})"}) {
    EXPECT_THROW(WorkList::from_json(text), std::invalid_argument) << text;
  }
}

}  // namespace
}  // namespace headkit
