#include "headkit/gates/ladder.h"

#include <ATen/ATen.h>

#include "core/json.h"
#include "gates/units_there.h"
#include "headkit/core/error.h"
#include "headkit/core/flops.h"

namespace headkit {
namespace {
constexpr auto kOperation = "ladder";
}

Ladder::Ladder(std::vector<Rung> rungs) : rungs_(std::move(rungs)) {
  HEADKIT_CHECK(rungs_.size() >= 2, kOperation, "at least two rungs", rungs_.size());
  for (const Rung& rung : rungs_) rung.check(kOperation);
  shared_layers_.push_back(0);
  for (size_t i = 1; i < rungs_.size(); ++i) {
    const Rung &low = rungs_[i - 1], &high = rungs_[i];
    HEADKIT_CHECK(
        low.heads.layers() == high.heads.layers() && low.heads.heads() == high.heads.heads(),
        kOperation, "rungs of the same layers and heads", low.heads.layers(), " x ",
        low.heads.heads(), " and ", high.heads.layers(), " x ", high.heads.heads());
    HEADKIT_CHECK(!low.blocks.defined() || !high.blocks.defined() ||
                      low.blocks.sizes() == high.blocks.sizes(),
                  kOperation, "rungs with blocks of one shape", low.blocks.sizes(), " and ",
                  high.blocks.sizes());
    const std::string missing = high.missing_of(low);
    HEADKIT_CHECK(missing.empty(), kOperation,
                  c10::str("rung ", i, " to contain what rung ", i - 1, " runs"), "it lacks ",
                  missing);
    int64_t shared = 0;
    while (shared < low.heads.layers() && low.equals_in(shared, high)) ++shared;
    shared_layers_.push_back(shared);
  }
}

const Rung& Ladder::rung(int64_t index) const {
  HEADKIT_CHECK_INDEX(index >= 0 && index < size(), kOperation, c10::str("a rung below ", size()),
                      index);
  return rungs_[static_cast<size_t>(index)];
}

int64_t Ladder::shared_layers(int64_t index) const {
  HEADKIT_CHECK_INDEX(index >= 1 && index < size(), kOperation,
                      c10::str("a rung from 1 to ", size() - 1), index);
  return shared_layers_[static_cast<size_t>(index)];
}

void Ladder::check_model(const char* operation, GatedModel& model) const {
  HEADKIT_CHECK(size() > 0, operation, "a ladder of at least two rungs", "none");
  for (const Rung& rung : rungs_) check_rung(operation, model, rung);
}

std::string Ladder::to_json() const {
  Json rungs = Json::array();
  for (const Rung& rung : rungs_) rungs.push_back(parse_json(kOperation, rung.to_json()));
  return Json{{"rungs", std::move(rungs)}}.dump();
}

Ladder Ladder::from_json(const std::string& text) {
  const Json json = parse_json(kOperation, text);
  const Json& rungs = member(kOperation, json, "rungs");
  HEADKIT_CHECK(rungs.is_array(), kOperation, "an array as \"rungs\"", rungs.type_name());
  std::vector<Rung> read;
  for (const Json& rung : rungs) read.push_back(Rung::from_json(rung.dump()));
  return Ladder(std::move(read));
}

double rung_flops(GatedModel& model, const Rung& rung, double tokens, int64_t first, int64_t last) {
  rung.check("rung_flops");
  const UnitsThere there(model);
  const int64_t end = last < 0 ? there.layout().layers : last;
  HEADKIT_CHECK(0 <= first && first <= end && end <= there.layout().layers, "rung_flops",
                c10::str("layers from 0 to ", there.layout().layers), first, " to ", end);
  const UnitCounts counts = there.count(rung.heads.keep(), rung.blocks, first, end);
  return unit_flops(there.layout(), counts, tokens);
}

}  // namespace headkit
