#include <headkit/scorers/fisher.h>
#include <headkit/scorers/flap.h>
#include <headkit/scorers/head_scorer.h>
#include <headkit/scorers/shapley.h>

#include "optional_tensor.h"
#include "python_progress.h"
#include "registry.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_scorers(py::module_& m) {
  m.def(
      "scorers", [] { return registry_dict(scorers()); },
      R"pbdoc(
What can be asked of ``score``: metric -> definition, source, cost, needs and settings (a dictionary:
keyword argument -> meaning).

Returns:
    dict[str, dict]: by registry name.
Example:
    >>> headkit.scorers()["fisher"]["cost"]
    '1 forward + 1 backward'
    >>> list(headkit.scorers()["hies"]["settings"])
    ['alpha']
)pbdoc");

  m.def(
      "score",
      [](GatedModel& model, const DataSource& data, const std::string& metric,
         const Objective& objective, const std::string& granularity,
         const std::string& normalization, const std::string& denominator, double confidence,
         int64_t bootstrap, uint64_t seed, const std::optional<at::Tensor>& dropped_output,
         const std::string& settings, Progress progress) {
        return make_scorer(metric, settings)
            ->score(model, data, objective,
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
      py::arg("dropped_output") = py::none(), py::arg("settings") = "{}",
      py::arg("progress") = nullptr, py::call_guard<py::gil_scoped_release>(),
      "See headkit.score.");

  py::class_<FisherInformation>(m, "FisherInformation", R"pbdoc(
Empirical Fisher information of gates at the dense model; float64, on CPU.

Attributes:
    heads: mean over examples of the squared gate gradient, shape [layers, heads].
    head_blocks: mean over examples of the outer product of a layer's, [layers, heads, heads].
    neurons: as ``heads``, [layers with a feed-forward block, neurons]; None where a model has no
        gates of neurons.
    head_gradients, neuron_gradients: a row an example; None unless asked for.
    samples: examples seen.
)pbdoc")
      .def_readonly("heads", &FisherInformation::heads)
      .def_readonly("head_blocks", &FisherInformation::head_blocks)
      .def_property_readonly("neurons",
                             [](const FisherInformation& f) { return or_none(f.neurons); })
      .def_property_readonly("head_gradients",
                             [](const FisherInformation& f) { return or_none(f.head_gradients); })
      .def_property_readonly("neuron_gradients",
                             [](const FisherInformation& f) { return or_none(f.neuron_gradients); })
      .def_readonly("samples", &FisherInformation::samples);
  m.def(
      "fisher_information",
      [](GatedModel& model, const DataSource& data, const Objective& objective, bool neurons,
         bool keep_gradients, Progress progress) {
        return fisher_information(model, data, objective,
                                  {.neurons = neurons,
                                   .keep_gradients = keep_gradients,
                                   .progress = interruptible(std::move(progress))});
      },
      py::arg("model"), py::arg("data"), py::arg("objective"), py::kw_only(),
      py::arg("neurons") = true, py::arg("keep_gradients") = false, py::arg("progress") = nullptr,
      py::call_guard<py::gil_scoped_release>(), "See headkit.fisher_information.");

  m.def("shapley_values", &shapley_values, py::arg("values"),
        py::call_guard<py::gil_scoped_release>(), R"pbdoc(
Shapley values of a game.

Args:
    values: worth of every set of players, float64, shape [2^N] or [2^N, games], N <= 20; the set at
        place m holds the players whose bits are set in m.
Returns:
    torch.Tensor: float64, shape [N] or [N, games].
Raises:
    ValueError: for another number of sets.
Source:
    Shapley 1953.
Example:
    >>> headkit.shapley_values(torch.tensor([0.0, 1.0, 0.0, 2.0], dtype=torch.float64))
    tensor([1.5000, 0.5000], dtype=torch.float64)
)pbdoc");
}

}  // namespace headkit::bindings
