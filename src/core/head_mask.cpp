#include "headkit/core/head_mask.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr int64_t kMaxHeads = int64_t{1} << 20;  // a bound for files: no model has a million heads

}  // namespace

HeadMask::HeadMask(const at::Tensor& keep) {
  HEADKIT_CHECK(keep.defined() && keep.dim() == 2, "head_mask", "a mask of shape [layers, heads]",
                keep.defined() ? c10::str("shape ", keep.sizes()) : "none");
  const at::Tensor values = keep.detach().to(at::kCPU);
  keep_ = values.to(at::kBool, /*non_blocking=*/false, /*copy=*/true).contiguous();
  HEADKIT_CHECK(values.eq(keep_.to(values.scalar_type())).all().item<bool>(), "head_mask",
                "only 0 and 1 (a mask says which heads stay)", "other values");
}

HeadMask HeadMask::all(int64_t layers, int64_t heads) {
  return HeadMask(at::ones({layers, heads}, at::kBool));
}

int64_t HeadMask::count() const { return keep_.defined() ? keep_.sum().item<int64_t>() : 0; }

bool HeadMask::contains(HeadId id) const {
  HEADKIT_CHECK_INDEX(id.layer >= 0 && id.layer < layers() && id.head >= 0 && id.head < heads(),
                      "head_mask",
                      c10::str("a head of ", layers(), " layers with ", heads(), " heads"),
                      "layer ", id.layer, ", head ", id.head);
  return keep_.const_data_ptr<bool>()[id.layer * heads() + id.head];
}

std::vector<int64_t> HeadMask::layer_heads(int64_t layer) const {
  HEADKIT_CHECK_INDEX(layer >= 0 && layer < layers(), "head_mask",
                      c10::str("a layer below ", layers()), "layer ", layer);
  std::vector<int64_t> kept;
  for (int64_t head = 0; head < heads(); ++head) {
    if (contains({layer, head})) kept.push_back(head);
  }
  return kept;
}

std::vector<HeadId> HeadMask::removed() const {
  std::vector<HeadId> gone;
  for (int64_t layer = 0; layer < layers(); ++layer) {
    for (int64_t head = 0; head < heads(); ++head) {
      if (!contains({layer, head})) gone.push_back({layer, head});
    }
  }
  return gone;
}

bool HeadMask::is_subset_of(const HeadMask& other) const { return intersect(other) == *this; }

HeadMask HeadMask::intersect(const HeadMask& other) const {
  HEADKIT_CHECK(layers() == other.layers() && heads() == other.heads(), "head_mask",
                c10::str("two masks of [", layers(), ", ", heads(), "]"), "[", other.layers(), ", ",
                other.heads(), "]");
  return HeadMask(keep_.logical_and(other.keep_));
}

bool HeadMask::operator==(const HeadMask& other) const {
  if (keep_.defined() != other.keep_.defined()) return false;
  return !keep_.defined() || at::equal(keep_, other.keep_);
}

std::string HeadMask::to_json() const {
  Json rows = Json::array();
  for (int64_t layer = 0; layer < layers(); ++layer) rows.push_back(layer_heads(layer));
  return Json{{"layers", layers()}, {"heads", heads()}, {"keep", rows}}.dump();
}

HeadMask HeadMask::from_json(const std::string& text) {
  constexpr auto kOperation = "head_mask";
  const Json json = parse_json(kOperation, text);
  const int64_t layers = integer_member(kOperation, json, "layers");
  const int64_t heads = integer_member(kOperation, json, "heads");
  const Json& rows = member(kOperation, json, "keep");
  HEADKIT_CHECK(layers >= 0 && heads >= 0 && layers <= kMaxHeads && heads <= kMaxHeads &&
                    layers * heads <= kMaxHeads && rows.is_array() &&
                    static_cast<int64_t>(rows.size()) == layers,
                kOperation, "one list of heads per layer", "layers ", layers, ", heads ", heads);
  at::Tensor keep = at::zeros({layers, heads}, at::kBool);
  bool* cells = keep.mutable_data_ptr<bool>();
  for (int64_t layer = 0; layer < layers; ++layer) {
    HEADKIT_CHECK(rows[layer].is_array(), kOperation, "a list of heads", rows[layer].dump());
    int64_t previous = -1;
    for (const Json& entry : rows[layer]) {
      HEADKIT_CHECK(entry.is_number_integer() && entry.get<int64_t>() > previous &&
                        entry.get<int64_t>() < heads,
                    kOperation, c10::str("ascending head indices below ", heads), entry.dump(),
                    " in layer ", layer);
      previous = entry.get<int64_t>();
      cells[layer * heads + previous] = true;
    }
  }
  return HeadMask(keep);
}

}  // namespace headkit
