#include "explain/image_object.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <string>

#include "explain/permute.h"
#include "explain/row_cursor.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr char kOperation[] = "image_roles";
constexpr double kShownMass = 0.6;

}  // namespace

double overlap_of(int64_t both, int64_t a, int64_t b) {
  const int64_t either = a + b - both;
  return either == 0 ? 1.0 : static_cast<double>(both) / static_cast<double>(either);
}

ImageObject::ImageObject(const HeadLayout& layout, const PatchGrid& grid, const at::Tensor& masks,
                         const RoleMeasure& measure)
    : grid_(grid), measure_(measure), sums_("object", "", layout) {
  if (!masks.defined()) return;
  HEADKIT_CHECK(masks.dim() == 3 && masks.size(1) == grid.rows && masks.size(2) == grid.columns,
                kOperation,
                "masks of shape [images, " + std::to_string(grid.rows) + ", " +
                    std::to_string(grid.columns) + "]",
                "shape ", masks.sizes());
  HEADKIT_CHECK(grid.cls >= 0, kOperation, "a grid with a CLS token for masks", "none");
  masks_ = masks.to(at::kCPU).ne(0).flatten(1).contiguous();
  seen_.assign(masks.size(0), false);
}

void ImageObject::read_image(int64_t image) {
  if (image == image_) return;
  HEADKIT_CHECK(image < masks_.size(0), kOperation,
                "no more images than the " + std::to_string(masks_.size(0)) + " masks", "image ",
                image);
  const bool* mask = masks_.const_data_ptr<bool>() + image * grid_.patches();
  mask_.assign(mask, mask + grid_.patches());
  mask_size_ = std::count(mask_.begin(), mask_.end(), 1);
  std::mt19937_64 random(measure_.seed * 0x9E3779B97F4A7C15ULL + static_cast<uint64_t>(image));
  permuted_.assign(measure_.draws, mask_);
  for (PatchSet& draw : permuted_) permute(random, draw);
  image_ = image;
}

void ImageObject::add(const RoleRows& rows, int64_t h) {
  if (!masks_.defined()) return;
  const SampleAttention& attention = rows.attention;
  read_image(attention.sample);
  seen_[attention.sample] = true;
  const int64_t head = attention.heads[h];
  RoleSums::Totals& totals = sums_.totals(attention.layer, head);
  RowCursor row(rows, h);
  row.move_to(grid_.cls);
  if (!row.valid) return;
  const float* weights = row.weights + grid_.first_patch;
  const double mass = std::accumulate(weights, weights + grid_.patches(), 0.0);
  totals.seen += 1;
  totals.excluded += 1 - mass;
  if (mass < kLeastMass) {
    totals.dropped += 1;
    return;
  }
  std::vector<int64_t> order(grid_.patches());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return weights[a] > weights[b]; });
  int64_t count = 0;
  for (double shown = 0; count < grid_.patches() && shown < kShownMass * mass; ++count) {
    shown += weights[order[count]];
  }
  const auto overlap_with = [&](const PatchSet& mask) {
    int64_t both = 0;
    for (int64_t i = 0; i < count; ++i) both += mask[order[i]];
    return overlap_of(both, count, mask_size_);
  };
  RoleSums::Sums& sums = sums_.of(attention.sample, attention.layer, head);
  sums.score += overlap_with(mask_);
  sums.rows += 1;
  // Uniform attention shows the first 60 % of patches in any order: as much of the mask as chance.
  const auto even =
      static_cast<int64_t>(std::ceil(kShownMass * static_cast<double>(grid_.patches())));
  const double expected =
      static_cast<double>(even * mask_size_) / static_cast<double>(grid_.patches());
  totals.uniform += expected / (static_cast<double>(even + mask_size_) - expected);
  std::vector<RoleSums::Sums>& draws = sums_.draws(attention.layer, head);
  draws.resize(permuted_.size());
  for (size_t draw = 0; draw < permuted_.size(); ++draw) {
    draws[draw].score += overlap_with(permuted_[draw]);
    draws[draw].rows += 1;
  }
}

void ImageObject::merge(const ImageObject& other) {
  sums_.merge(other.sums_);
  for (size_t i = 0; i < seen_.size(); ++i) seen_[i] = seen_[i] || other.seen_.at(i);
}

std::optional<double> ImageObject::best_box() const {
  double best_chosen = -1, best_scored = 0;
  int64_t counts[2] = {0, 0};
  for (size_t i = 0; i < seen_.size(); ++i) counts[i % 2] += seen_[i];
  if (counts[0] == 0 || counts[1] == 0) return std::nullopt;
  const bool* masks = masks_.const_data_ptr<bool>();
  for (int64_t height = 1; height <= grid_.rows; ++height) {
    for (int64_t width = 1; width <= grid_.columns; ++width) {
      const int64_t top = (grid_.rows - height) / 2, left = (grid_.columns - width) / 2;
      double overlaps[2] = {0, 0};
      for (size_t i = 0; i < seen_.size(); ++i) {
        if (!seen_[i]) continue;
        const bool* mask = masks + static_cast<int64_t>(i) * grid_.patches();
        int64_t both = 0;
        for (int64_t r = top; r < top + height; ++r) {
          const bool* from = mask + r * grid_.columns + left;
          both += std::count(from, from + width, true);
        }
        overlaps[i % 2] +=
            overlap_of(both, height * width, std::count(mask, mask + grid_.patches(), true));
      }
      if (overlaps[0] <= best_chosen) continue;
      best_chosen = overlaps[0];
      best_scored = overlaps[1];
    }
  }
  return best_scored / static_cast<double>(counts[1]);
}

void ImageObject::finish(const RoleEnd& end, RoleTable& table) const {
  std::vector<RoleScore> scores = sums_.scores(
      end, {.drawn = true}, masks_.defined() ? "no image" : "no masks of the object are given");
  if (const std::optional<double> box = masks_.defined() ? best_box() : std::nullopt) {
    for (RoleScore& score : scores) {
      if (!score.assessed) continue;
      score.nulls.push_back({"best_centred_box", *box});
      judge(score);
    }
  }
  add_scores(scores, table);
}

}  // namespace headkit
