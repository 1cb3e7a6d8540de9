#include <cmath>
#include <stdexcept>

#include "core/json.h"
#include "headkit/core/error.h"
#include "headkit/pruners/hybrid_pruner.h"

namespace headkit {
namespace {

Json number(double value) { return std::isfinite(value) ? Json(value) : Json(nullptr); }

Json given(const std::optional<double>& value) { return value ? Json(*value) : Json(nullptr); }

}  // namespace

const HybridArm& HybridReport::arm(const std::string& name) const {
  for (const HybridArm& each : arms) {
    if (each.name == name) return each;
  }
  std::string names;
  for (const HybridArm& each : arms) names += (names.empty() ? "" : ", ") + each.name;
  throw std::out_of_range(error_message("hybrid_report", "an arm among " + names, name));
}

std::string HybridReport::to_json() const {
  Json told = Json::array(), measured = Json::array();
  for (const HybridStage& each : stages) {
    told.push_back(
        {{"stage", each.name}, {"found", each.found}, {"distance", number(each.distance)}});
  }
  for (const HybridArm& each : arms) {
    measured.push_back({{"arm", each.name},
                        {"heads", number(each.heads)},
                        {"flops", number(each.flops)},
                        {"milliseconds", number(each.milliseconds)},
                        {"agreement", number(each.agreement)},
                        {"distance", number(each.distance)},
                        {"quality", number(each.quality)}});
  }
  return Json{{"mechanism", mechanism},
              {"budget",
               {{"mean_heads", given(budget.mean_heads)},
                {"flops", given(budget.flops)},
                {"milliseconds", given(budget.milliseconds)}}},
              {"lambda", lambda},
              {"grid", grid},
              {"fitted_examples", fitted_examples},
              {"held_out_examples", held_out_examples},
              {"stages", std::move(told)},
              {"arms", std::move(measured)}}
      .dump();
}

}  // namespace headkit
