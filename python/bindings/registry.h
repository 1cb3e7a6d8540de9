#pragma once

#include <pybind11/pybind11.h>

namespace headkit::bindings {

/// A registry as Python sees it: name -> {definition, source, cost, needs}, what a policy decides,
/// and the budget and settings of a pruner.
template <typename Infos>
pybind11::dict registry_dict(const Infos& infos) {
  pybind11::dict all;
  for (const auto& each : infos) {
    pybind11::dict info;
    info["definition"] = each.definition;
    info["source"] = each.source;
    info["cost"] = each.cost;
    info["needs"] = each.needs;
    if constexpr (requires { each.decides; }) info["decides"] = each.decides;
    if constexpr (requires { each.budget; }) info["budget"] = each.budget;
    if constexpr (requires { each.settings; }) {
      pybind11::dict settings;
      for (const auto& setting : each.settings) {
        settings[pybind11::str(setting.name)] =
            setting.meaning + " (" + setting.standard + " if not given)";
      }
      info["settings"] = settings;
    }
    all[pybind11::str(each.name)] = info;
  }
  return all;
}

}  // namespace headkit::bindings
