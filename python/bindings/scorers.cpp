#include <headkit/scorers/head_scorer.h>

#include "optional_tensor.h"
#include "python_progress.h"
#include "registry.h"
#include "rooms.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_scorers(py::module_& m) {
  m.def(
      "scorers", [] { return registry_dict(scorers()); },
      R"pbdoc(
What can be asked of ``score``: metric -> definition, source, cost, needs.

Returns:
    dict[str, dict[str, str]]: by registry name.
Example:
    >>> sorted(headkit.scorers())
    ['ablation', 'fisher', 'gate_gradient', 'random']
)pbdoc");

  m.def(
      "score",
      [](GatedModel& model, const DataSource& data, const std::string& metric,
         const Objective& objective, const std::string& granularity,
         const std::string& normalization, const std::string& denominator, double confidence,
         int64_t bootstrap, uint64_t seed, const std::optional<at::Tensor>& dropped_output,
         Progress progress) {
        return make_scorer(metric)->score(model, data, objective,
                                          {.granularity = granularity,
                                           .normalization = normalization,
                                           .denominator = denominator,
                                           .confidence = confidence,
                                           .bootstrap = bootstrap,
                                           .seed = seed,
                                           .dropped_output = or_undefined(dropped_output),
                                           .progress = interruptible(std::move(progress))});
      },
      py::arg("model"), py::arg("data"), py::arg("metric"), py::arg("objective"), py::kw_only(),
      py::arg("granularity"), py::arg("normalization"), py::arg("denominator"),
      py::arg("confidence"), py::arg("bootstrap"), py::arg("seed"),
      py::arg("dropped_output") = py::none(), py::arg("progress") = nullptr,
      py::call_guard<py::gil_scoped_release>(), "See headkit.score.");
}

}  // namespace headkit::bindings
