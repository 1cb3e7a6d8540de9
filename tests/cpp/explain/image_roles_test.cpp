#include "headkit/explain/image_roles.h"

#include <gtest/gtest.h>

#include <cmath>

#include "given_rows.h"
#include "support/toy_model.h"

namespace headkit {
namespace {

using testing::GivenRows;
using testing::layout_of;
using testing::null_of;
using testing::pointing_at;
using testing::table_of;

// CLS, a register, 5 x 5 patches.
constexpr int64_t kSide = 5, kPatches = kSide * kSide, kFirst = 2, kTokens = kFirst + kPatches;
constexpr int64_t kImages = 70;
constexpr double kWeight = 0.95;
const PatchGrid kGrid{
    .rows = kSide, .columns = kSide, .first_patch = kFirst, .patch_size = 16, .registers = {1}};
const RoleMeasure kMeasure{.draws = 40, .bootstrap = 100};

std::vector<int64_t> patches(const std::function<int64_t(int64_t, int64_t)>& key) {
  std::vector<int64_t> keys(kTokens, -1);
  for (int64_t p = 0; p < kPatches; ++p) keys[kFirst + p] = key(p / kSide, p % kSide);
  return keys;
}

at::Tensor even() { return pointing_at(std::vector<int64_t>(kTokens, -1), kTokens, kWeight); }

// A step of one down and one to the left, where there is one.
at::Tensor stepping() {
  return pointing_at(patches([](int64_t down, int64_t right) {
                       const bool inside = down + 1 < kSide && right > 0;
                       return inside ? kFirst + (down + 1) * kSide + right - 1 : int64_t{-1};
                     }),
                     kTokens, kWeight);
}

// Scores -|p - q|^2 / 2 on patches, nothing on others.
at::Tensor gaussian() {
  const at::Tensor p = at::arange(kPatches);
  const at::Tensor down = p.floor_divide(kSide), right = p.remainder(kSide);
  const at::Tensor square =
      (down.unsqueeze(1) - down).square() + (right.unsqueeze(1) - right).square();
  at::Tensor rows = even();
  rows.slice(0, kFirst).zero_();
  rows.slice(0, kFirst).slice(1, kFirst).copy_(at::softmax(square.to(at::kDouble) / -2, -1));
  return rows;
}

// 0.9 of the mass evenly on the patches of the same row, itself included.
at::Tensor in_rows() {
  at::Tensor rows = at::full({kTokens, kTokens}, 0.1 / (kTokens - kSide), at::kDouble);
  for (int64_t p = 0; p < kPatches; ++p) {
    rows[kFirst + p]
        .slice(0, kFirst + p / kSide * kSide, kFirst + p / kSide * kSide + kSide)
        .fill_(0.9 / kSide);
  }
  return rows;
}

at::Tensor on_register() { return pointing_at(std::vector<int64_t>(kTokens, 1), kTokens, kWeight); }

at::Tensor planted() {
  return at::stack({stepping(), gaussian(), in_rows(), on_register(), even()});
}

RoleTable table_with(const at::Tensor& rows, const ImageKnowledge& known = {}) {
  const int64_t heads = rows.size(0);
  const auto roles = image_roles(layout_of(heads), kGrid, known, kMeasure);
  for (int64_t i = 0; i < kImages; ++i) roles->add(GivenRows(i, 0, rows).rows());
  return table_of(*roles, heads, kMeasure);
}

TEST(ImageRolesTest, EveryPlantedHeadIsFoundAndNoOther) {
  const RoleTable table = table_with(planted());
  const std::vector<std::string> expected[] = {
      {"image_offset"},
      {"image_local"},
      {"same_row", "image_local"},  // a row of five patches is near
      {"artefact_sink"},
      {}};
  for (int64_t head = 0; head < 5; ++head) {
    std::vector<std::string> labels;
    for (const RoleScore& label : table.labels(0, head)) {
      if (label.variant != "(0,0)") labels.push_back(label.role);
    }
    EXPECT_EQ(labels, expected[head]) << head;
  }
  const RoleScore& step = *table.find(0, 0, "image_offset", "(+1,-1)");
  EXPECT_DOUBLE_EQ(step.score, 1);
  EXPECT_EQ(step.rows, kImages * (kSide - 1) * (kSide - 1));
  EXPECT_NEAR(null_of(step, "uniform"), 1.0 / kPatches, 1e-12);
  EXPECT_EQ(table.find(0, 0, "object")->assessed, false);
}

TEST(ImageRolesTest, DistanceInClosedForm) {
  const RoleTable table = table_with(planted());
  const at::Tensor weights = gaussian().slice(0, kFirst).slice(1, kFirst);
  double near = 0, far = 0;
  for (int64_t p = 0; p < kPatches; ++p) {
    for (int64_t q = 0; q < kPatches; ++q) {
      const double away = std::hypot(p / kSide - q / kSide, p % kSide - q % kSide) /
                          std::hypot(kSide, kSide) / kPatches;
      near += weights[p][q].item<double>() * away;
      far += away / kPatches;
    }
  }
  const RoleScore& local = *table.find(0, 1, "image_local");
  EXPECT_NEAR(local.score, near, 1e-6);
  EXPECT_NEAR(null_of(local, "uniform"), far, 1e-9);
  EXPECT_NEAR(testing::detail_of(local, "mean_distance_pixels"),
              near * std::hypot(kSide, kSide) * 16, 1e-4);
  EXPECT_NEAR(table.find(0, 4, "image_local")->score, far, 1e-6);
}

TEST(ImageRolesTest, RowAndColumnInClosedForm) {
  const RoleTable table = table_with(planted());
  const double outside = 0.1 / (kTokens - kSide), inside = 0.9 / kSide;
  const double in_row = (kSide - 1) * inside, others = (kPatches - kSide) * outside;
  EXPECT_NEAR(table.find(0, 2, "same_row")->score, in_row / (in_row + others), 1e-6);
  EXPECT_NEAR(table.find(0, 2, "same_column")->score, (kSide - 1) * outside / (in_row + others),
              1e-6);
  EXPECT_NEAR(null_of(*table.find(0, 2, "same_row"), "uniform"), (kSide - 1.0) / (kPatches - 1),
              1e-12);
}

TEST(ImageRolesTest, MassOnSpecialTokensChangesNothing) {
  const RoleTable plain = table_with(planted());
  for (const double sink : {0.1, 0.5, 0.9}) {
    at::Tensor rows = planted() * (1 - sink);
    rows.select(2, 0).add_(sink);
    const RoleTable sunk = table_with(rows);
    for (int64_t head = 0; head < 5; ++head) {
      for (const char* role : {"image_local", "same_row", "same_column"}) {
        EXPECT_NEAR(sunk.find(0, head, role)->score, plain.find(0, head, role)->score, 1e-5);
      }
    }
    EXPECT_DOUBLE_EQ(sunk.find(0, 0, "image_offset", "(+1,-1)")->score, 1);
    EXPECT_NEAR(sunk.find(0, 1, "image_local")->excluded_mass, sink, 1e-5);
  }
}

TEST(ImageRolesTest, ArtefactsAreRegistersAndTheLargestNorms) {
  at::Tensor norms = at::ones({kImages, kTokens});
  norms.select(1, 9) = 5;
  norms.select(1, 0) = 100;  // CLS is no patch
  const at::Tensor rows = at::stack(
      {pointing_at(std::vector<int64_t>(kTokens, 9), kTokens, kWeight), on_register(), even()});
  const RoleTable table = table_with(rows, {.norms = norms});
  const double rest = (1 - kWeight) / (kTokens - 1);
  EXPECT_NEAR(table.find(0, 0, "artefact_sink")->score, kWeight + rest, 1e-6);
  EXPECT_NEAR(table.find(0, 1, "artefact_sink")->score, kWeight + rest, 1e-6);
  EXPECT_NEAR(null_of(*table.find(0, 2, "artefact_sink"), "uniform"), 2.0 / kTokens, 1e-9);
  PatchGrid plain = kGrid;
  plain.registers.clear();
  const auto unknown = image_roles(layout_of(3), plain);
  unknown->add(GivenRows(0, 0, rows).rows());
  EXPECT_FALSE(table_of(*unknown, 3).find(0, 0, "artefact_sink")->assessed);
}

// An object of 2 x 3 patches that wanders; CLS looks at it, at the opposite corner, at all alike.
TEST(ImageRolesTest, TheHeadThatLooksAtTheObjectIsFound) {
  const at::Tensor masks = at::zeros({kImages, kSide, kSide}, at::kBool);
  std::vector<at::Tensor> images;
  for (int64_t i = 0; i < kImages; ++i) {
    masks[i].slice(0, i % 4, i % 4 + 2).slice(1, i % 3, i % 3 + 3).fill_(true);
    at::Tensor rows = at::stack({even(), even(), even()});
    const at::Tensor object = masks[i].flatten().to(at::kDouble);
    rows[0][0].slice(0, kFirst).copy_(object / 6 * 0.9 + (1 - object) * 0.001);
    rows[1][0].slice(0, kFirst).copy_(object.flip(0) / 6 * 0.9 + (1 - object.flip(0)) * 0.001);
    images.push_back(rows);
  }
  const auto roles = image_roles(layout_of(3), kGrid, {.masks = masks}, kMeasure);
  for (int64_t i = 0; i < kImages; ++i) roles->add(GivenRows(i, 0, images[i]).rows());
  const RoleTable table = table_of(*roles, 3, kMeasure);
  const RoleScore& found = *table.find(0, 0, "object");
  EXPECT_NEAR(found.score, 4.0 / 6, 1e-9);  // 0.6 of 0.919 takes four of the six patches
  EXPECT_TRUE(found.assigned) << found.reason;
  EXPECT_LT(null_of(found, "best_centred_box"), 0.55);
  EXPECT_GT(null_of(found, "best_centred_box"), 0.1);
  EXPECT_LT(null_of(found, "shuffle"), 0.3);
  EXPECT_FALSE(table.find(0, 1, "object")->assigned);
  EXPECT_FALSE(table.find(0, 2, "object")->assigned);
}

TEST(ImageRolesTest, MergingIsExact) {
  const at::Tensor masks = at::rand({12, kSide, kSide}).gt(0.6);
  testing::expect_merging_is_exact(
      [&] { return image_roles(layout_of(2), kGrid, {.masks = masks}, kMeasure); },
      [](RoleAccumulator& roles, int64_t i) {
        at::manual_seed(i);
        roles.add(GivenRows(i, 0, at::softmax(at::randn({2, kTokens, kTokens}), -1)).rows());
      },
      12, 2);
}

TEST(ImageRolesTest, RefusesWhatDoesNotFit) {
  const auto refused = [](const PatchGrid& grid, const ImageKnowledge& known = {}) {
    EXPECT_THROW(image_roles(layout_of(1), grid, known), std::invalid_argument);
  };
  refused({.rows = 0, .columns = 2});
  refused({.rows = 2, .columns = 2, .patch_size = 0});
  refused({.rows = 2, .columns = 2, .cls = 2});
  refused({.rows = 2, .columns = 2, .registers = {1}});
  refused({.rows = 2, .columns = 2}, {.masks = at::ones({1, 3, 2}, at::kBool)});
  refused({.rows = 2, .columns = 2, .first_patch = 0, .cls = -1},
          {.masks = at::ones({1, 2, 2}, at::kBool)});
  refused({.rows = 2, .columns = 2}, {.norms = at::ones({1, 4})});
  const auto roles =
      image_roles(layout_of(1), kGrid, {.masks = at::ones({1, kSide, kSide}, at::kBool)});
  EXPECT_THROW(roles->add(GivenRows(0, 0, at::ones({1, 3, 3}) / 3).rows()), std::invalid_argument);
  EXPECT_THROW(roles->add(GivenRows(1, 0, even().unsqueeze(0)).rows()), std::invalid_argument);
}

TEST(ImageRolesTest, NormsAreThoseOfTheLastState) {
  const auto model = testing::random_toy_model({2, 3, 4, 12, 0}, 2, 3);
  const Batch batch = testing::random_toy_batch(model->layout(), 4, 6, 2, 5);
  const at::Tensor found = final_token_norms(*model, BatchList({batch, batch}));
  const ModelState state = model->run(model->embed(batch), 0, 2, {});
  const at::Tensor expected = state.hidden.square().sum(-1).sqrt().to(at::kFloat);
  EXPECT_TRUE(at::allclose(found.slice(0, 0, 4), expected));
  EXPECT_TRUE(at::equal(found.slice(0, 0, 4), found.slice(0, 4)));
}

}  // namespace
}  // namespace headkit
