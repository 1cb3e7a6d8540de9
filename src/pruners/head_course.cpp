#include "pruners/head_course.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "headkit/core/error.h"

namespace headkit {

HeadCourse::HeadCourse(const TopFractionOptions& share, const HeadMask& present, int64_t step)
    : open_(present), step_(step), floor_(share.min_per_layer) {
  HEADKIT_CHECK(step >= 1, "prune", "a step of at least 1 head", step);
  HEADKIT_CHECK(floor_ >= 0, "prune", "min_per_layer of at least 0", floor_);
  if (share.per_layer) {
    const int64_t kept = kept_heads(share.keep, present.heads(), share.rounding);
    HEADKIT_CHECK(floor_ <= kept, "prune",
                  "min_per_layer of at most the " + std::to_string(kept) + " heads a layer keeps",
                  floor_);
    floor_ = kept;
  } else {
    target_ = kept_heads(share.keep, present.layers() * present.heads(), share.rounding);
  }
  int64_t protected_heads = 0;
  for (int64_t layer = 0; layer < present.layers(); ++layer) {
    protected_heads +=
        std::min<int64_t>(floor_, static_cast<int64_t>(present.layer_heads(layer).size()));
  }
  if (share.per_layer) target_ = protected_heads;
  HEADKIT_CHECK(protected_heads <= target_, "prune",
                "a floor that fits into the " + std::to_string(target_) + " heads to keep",
                protected_heads, " heads that may not go (min_per_layer = ", floor_, ")");
}

std::vector<HeadId> HeadCourse::candidates() const {
  std::vector<HeadId> all;
  for (int64_t layer = 0; layer < open_.layers(); ++layer) {
    const std::vector<int64_t> heads = open_.layer_heads(layer);
    if (static_cast<int64_t>(heads.size()) <= floor_) continue;
    for (const int64_t head : heads) all.push_back({layer, head});
  }
  return all;
}

std::vector<HeadId> HeadCourse::close(const HeadScores& scores) {
  std::vector<HeadId> going = removal_order(scores, floor_, open_);
  going.resize(std::min<size_t>(going.size(), static_cast<size_t>(std::min(step_, to_go()))));
  at::Tensor keep = open_.keep().clone();
  for (const HeadId& head : going) {
    keep[head.layer][head.head] = false;
    order_.push_back(head);
  }
  open_ = HeadMask(keep);
  return going;
}

Json heads_to_json(const std::vector<HeadId>& heads) {
  Json all = Json::array();
  for (const HeadId& each : heads) all.push_back({each.layer, each.head});
  return all;
}

}  // namespace headkit
