#include <headkit/gates/static_stage.h>

#include <optional>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

}  // namespace

void register_static_stage(py::module_& m) {
  m.def(
      "input_importance",
      [](GatedModel& model, const DataSource& data, const std::shared_ptr<Objective>& objective,
         bool blocks, const std::optional<at::Tensor>& dropped_output,
         const std::optional<at::Tensor>& dropped_blocks, Progress progress) {
        InputImportanceOptions options;
        options.blocks = blocks;
        options.dropped_output = or_undefined(dropped_output);
        options.dropped_blocks = or_undefined(dropped_blocks);
        options.progress = interruptible(std::move(progress));
        InputImportance found = [&] {
          const py::gil_scoped_release release;
          return input_importance(model, data, *objective, options);
        }();
        return py::make_tuple(found.heads, or_none(found.blocks));
      },
      py::arg("model"), py::arg("data"), py::kw_only(), py::arg("objective"), py::arg("blocks"),
      py::arg("dropped_output"), py::arg("dropped_blocks"), py::arg("progress"),
      "As headkit.input_importance, for a GatedModel and a data source.");
  m.def(
      "needed_units",
      [](const at::Tensor& importance, double mean_units,
         const std::optional<at::Tensor>& present) {
        return needed_units(importance, mean_units, or_undefined(present));
      },
      py::arg("importance"), py::kw_only(), py::arg("mean_units"), py::arg("present") = py::none(),
      Unlocked(), R"pbdoc(
The units that each input needs where so many run on average.

One threshold for all inputs and layers on the logarithm of the importance, relative to the input's
own mean.

Args:
    importance: float64 >= 0, shape [inputs, layers, units] (``input_importance``).
    mean_units: how many run on average.
    present: bool [layers, units]; None = all.
Returns:
    Tensor: bool [inputs, layers, units].
Raises:
    ValueError: on values or shapes that do not fit.
Example:
    >>> importance = torch.tensor([[[1.0, 9.0]], [[90.0, 2.0]]], dtype=torch.float64)
    >>> headkit.needed_units(importance, mean_units=1).tolist()
    [[[False, True]], [[True, False]]]
)pbdoc");
  py::class_<StaticStage>(m, "StaticStage", R"pbdoc(
What is settled before any input is seen.

Attributes:
    fixed: int8 [layers, units]; -1 = pruned, 1 = always on, 0 = contested.
    need: float64 [layers, units], share of the inputs that need the unit.
    pruned, always_on, contested: how many.
)pbdoc")
      .def_readonly("fixed", &StaticStage::fixed)
      .def_readonly("need", &StaticStage::need)
      .def_readonly("pruned", &StaticStage::pruned)
      .def_readonly("always_on", &StaticStage::always_on)
      .def_readonly("contested", &StaticStage::contested);
  m.def(
      "static_stage",
      [](const at::Tensor& needed, double settled_share, const std::optional<at::Tensor>& present) {
        return static_stage(needed, settled_share, or_undefined(present));
      },
      py::arg("needed"), py::kw_only(), py::arg("settled_share") = 0.005,
      py::arg("present") = py::none(), Unlocked(), R"pbdoc(
Settle the units that no input needs, and those that nearly all need.

Args:
    needed: bool [inputs, layers, units], from ``needed_units`` or an oracle.
    settled_share: units that at most this share of the inputs needs are pruned, those that at least
        1 minus it needs always on; 0 = only where all inputs agree.
    present: bool [layers, units]; None = all.
Returns:
    StaticStage
Raises:
    ValueError: on values or shapes that do not fit.
Example:
    >>> needed = torch.tensor([[[True, False, True]], [[True, False, False]]])
    >>> headkit.static_stage(needed).fixed.tolist()
    [[1, -1, 0]]
)pbdoc");
}

}  // namespace headkit::bindings
