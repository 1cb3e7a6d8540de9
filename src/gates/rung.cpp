#include "headkit/gates/rung.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "gates/early_record.h"
#include "gates/tensor_text.h"
#include "headkit/core/error.h"

namespace headkit {
namespace {

constexpr auto kOperation = "rung";

// What closed units of a layer add; zeros and nothing are the same.
bool same_dropped(const at::Tensor& open, const at::Tensor& a, const at::Tensor& b, int64_t layer) {
  if (!a.defined() && !b.defined()) return true;
  const at::Tensor closed = open.select(0, layer).logical_not().nonzero().flatten();
  if (closed.size(0) == 0) return true;
  const auto of = [&](const at::Tensor& dropped) {
    return dropped.select(0, layer).index_select(0, closed.to(dropped.device()));
  };
  if (!a.defined()) return of(b).count_nonzero().item<int64_t>() == 0;
  if (!b.defined()) return of(a).count_nonzero().item<int64_t>() == 0;
  return at::equal(of(a), of(b));
}

Json blocks_to_json(const at::Tensor& blocks) {
  if (!blocks.defined()) return nullptr;
  Json open = Json::array();
  for (int64_t layer = 0; layer < blocks.size(0); ++layer) {
    const at::Tensor index = blocks.select(0, layer).nonzero().flatten();
    open.push_back(std::vector<int64_t>(index.const_data_ptr<int64_t>(),
                                        index.const_data_ptr<int64_t>() + index.numel()));
  }
  return {{"count", blocks.size(1)}, {"open", std::move(open)}};
}

at::Tensor blocks_from_json(const Json& json, int64_t layers) {
  if (json.is_null()) return {};
  constexpr int64_t kMost = int64_t{1} << 20;
  const int64_t count = integer_member(kOperation, json, "count");
  const Json& open = member(kOperation, json, "open");
  HEADKIT_CHECK(count >= 0 && count <= kMost && open.is_array() &&
                    static_cast<int64_t>(open.size()) == layers,
                kOperation, c10::str("blocks of ", layers, " layers"), json.dump().substr(0, 80));
  at::Tensor blocks = at::zeros({layers, count}, at::kBool);
  for (int64_t layer = 0; layer < layers; ++layer) {
    HEADKIT_CHECK(open[layer].is_array(), kOperation, "a list of blocks", open[layer].type_name());
    for (const Json& entry : open[layer]) {
      HEADKIT_CHECK(entry.is_number_unsigned() && entry.get<uint64_t>() < uint64_t(count),
                    kOperation, c10::str("blocks below ", count), entry.dump(), " in layer ",
                    layer);
      blocks[layer][entry.get<int64_t>()] = true;
    }
  }
  return blocks;
}

}  // namespace

GateSet Rung::gates(const at::Tensor& hidden) const {
  GateSet gates;
  gates.heads = heads.keep().to(gate_options(hidden));
  gates.dropped_output = fitting_dropped_output(dropped_output, hidden);
  if (blocks.defined()) {
    gates.blocks = blocks.to(gate_options(hidden));
    gates.dropped_blocks = fitting_dropped_output(dropped_blocks, hidden);
  }
  return gates;
}

bool Rung::equals_in(int64_t layer, const Rung& other) const {
  if (heads.layer_heads(layer) != other.heads.layer_heads(layer) ||
      !same_dropped(heads.keep(), dropped_output, other.dropped_output, layer)) {
    return false;
  }
  const auto open = [&](const Rung& rung) {
    return rung.blocks.defined() ? rung.blocks.select(0, layer) : at::Tensor();
  };
  const at::Tensor own = open(*this), others = open(other);
  if (!own.defined() && !others.defined()) return true;
  if (!own.defined()) return others.all().item<bool>();
  if (!others.defined()) return own.all().item<bool>();
  return at::equal(own, others) &&
         same_dropped(blocks, dropped_blocks, other.dropped_blocks, layer);
}

std::string Rung::missing_of(const Rung& other) const {
  std::string missing;
  int64_t count = 0;
  const auto note = [&](int64_t layer, const char* unit, int64_t index) {
    constexpr int64_t kNamed = 8;
    if (++count <= kNamed) {
      missing += c10::str(missing.empty() ? "" : ", ", "layer ", layer, " ", unit, " ", index);
    } else if (count == kNamed + 1) {
      missing += " and more";
    }
  };
  for (const HeadId& id : heads.removed()) {
    if (other.heads.contains(id)) note(id.layer, "head", id.head);
  }
  if (!blocks.defined()) return missing;
  const at::Tensor lacking = other.blocks.defined() ? other.blocks.logical_and(blocks.logical_not())
                                                    : blocks.logical_not();
  const at::Tensor places = lacking.nonzero();
  for (int64_t i = 0; i < places.size(0); ++i) {
    note(places[i][0].item<int64_t>(), "block", places[i][1].item<int64_t>());
  }
  return missing;
}

void Rung::check(const char* operation) const {
  HEADKIT_CHECK(heads.layers() > 0 && heads.heads() > 0, operation,
                "a mask of shape [layers, heads]", "an empty one");
  GateSet{{}, dropped_output}.check(operation, -1, heads.layers(), heads.heads());
  HEADKIT_CHECK(blocks.defined() || !dropped_blocks.defined(), operation,
                "blocks beside dropped_blocks", "none");
  const auto finite = [&](const at::Tensor& dropped, const char* name) {
    HEADKIT_CHECK(!dropped.defined() || dropped.isfinite().all().item<bool>(), operation,
                  std::string("finite values in ") + name, "NaN or infinity");
  };
  finite(dropped_output, "dropped_output");
  finite(dropped_blocks, "dropped_blocks");
  if (!blocks.defined()) return;
  HEADKIT_CHECK(blocks.scalar_type() == at::kBool && blocks.device().is_cpu() &&
                    blocks.dim() == 2 && blocks.size(0) == heads.layers(),
                operation, c10::str("blocks of bool [", heads.layers(), ", N] on the CPU"),
                blocks.scalar_type(), " of shape ", blocks.sizes());
  GateSet dropped;
  dropped.dropped_blocks = dropped_blocks;
  dropped.check_blocks(operation, -1, blocks.size(0), blocks.size(1));
}

std::string Rung::to_json() const {
  check(kOperation);
  return Json{{"heads", parse_json(kOperation, heads.to_json())},
              {"blocks", blocks_to_json(blocks)},
              {"dropped_output", tensor_to_text(kOperation, dropped_output)},
              {"dropped_blocks", tensor_to_text(kOperation, dropped_blocks)}}
      .dump();
}

Rung Rung::from_json(const std::string& text) {
  const Json json = parse_json(kOperation, text);
  Rung rung;
  rung.heads = HeadMask::from_json(member(kOperation, json, "heads").dump());
  rung.blocks = blocks_from_json(member(kOperation, json, "blocks"), rung.heads.layers());
  rung.dropped_output = tensor_from_text(kOperation, member(kOperation, json, "dropped_output"));
  rung.dropped_blocks = tensor_from_text(kOperation, member(kOperation, json, "dropped_blocks"));
  rung.check(kOperation);
  return rung;
}

}  // namespace headkit
