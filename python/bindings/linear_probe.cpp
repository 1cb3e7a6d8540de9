#include <headkit/gates/linear_probe.h>
#include <headkit/gates/pooled_state.h>

#include <optional>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

}  // namespace

void register_linear_probe(py::module_& m) {
  m.def(
      "pooled_state",
      [](const at::Tensor& hidden, const std::optional<at::Tensor>& attention_mask) {
        return pooled_state("pooled_state", hidden, or_undefined(attention_mask));
      },
      py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(), R"pbdoc(
Mean of hidden states over valid tokens, float64 [batch, model_dim].

The same bit for bit whatever else is in the batch, however it is padded.

Args:
    hidden: floating point, shape [batch, tokens, model_dim].
    attention_mask: bool, shape [batch, tokens], true = token; None = no padding.
Raises:
    ValueError: for NaN or infinity in a valid token.
Example:
    >>> headkit.pooled_state(torch.tensor([[[1.0], [3.0]]])).tolist()
    [[2.0]]
)pbdoc");

  py::class_<ProbeSignals>(m, "ProbeSignals", R"pbdoc(
What a linear probe says of each sample, float64 [batch]; None where it does not know.

Attributes:
    margin: best minus second logit; absolute value of a single logit.
    confidence: tanh(margin / 2).
    entropy: of the class distribution, in nats.
    log_loss: logarithm of the predicted loss.
)pbdoc")
      .def_property_readonly("margin", [](const ProbeSignals& s) { return or_none(s.margin); })
      .def_property_readonly("confidence",
                             [](const ProbeSignals& s) { return or_none(s.confidence); })
      .def_property_readonly("entropy", [](const ProbeSignals& s) { return or_none(s.entropy); })
      .def_property_readonly("log_loss", [](const ProbeSignals& s) { return or_none(s.log_loss); });

  py::class_<LinearProbe>(m, "LinearProbe", R"pbdoc(
A linear model of the task on the pooled state before a layer: logits = W (u - mu) + b.

``fit_linear_probes`` makes them from data.

Args:
    layer: reads the state before this layer.
    reference: mu, float64 [model_dim].
    weight: W, float64 [classes, model_dim]; None = no task.
    bias: b, float64 [classes].
    loss_weight: float64 [model_dim], for the predicted log loss; None = it predicts none.
    loss_bias: the log loss of the mean input.
Example:
    >>> probe = headkit.LinearProbe(
    ...     0,
    ...     reference=torch.zeros(1, dtype=torch.float64),
    ...     weight=torch.tensor([[1.0], [-1.0]], dtype=torch.float64),
    ...     bias=torch.zeros(2, dtype=torch.float64),
    ... )
    >>> probe.signals(torch.tensor([[[3.0]], [[-1.0]]])).margin.tolist()
    [6.0, 2.0]
)pbdoc")
      .def(py::init([](int64_t layer, at::Tensor reference, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias,
                       const std::optional<at::Tensor>& loss_weight, double loss_bias) {
             return LinearProbe({layer, std::move(reference), or_undefined(weight),
                                 or_undefined(bias), or_undefined(loss_weight), loss_bias});
           }),
           py::arg("layer"), py::kw_only(), py::arg("reference"), py::arg("weight") = py::none(),
           py::arg("bias") = py::none(), py::arg("loss_weight") = py::none(),
           py::arg("loss_bias") = 0.0)
      .def_property_readonly("layer", &LinearProbe::layer)
      .def_property_readonly("reference",
                             [](const LinearProbe& p) { return p.settings().reference; })
      .def_property_readonly("weight",
                             [](const LinearProbe& p) { return or_none(p.settings().weight); })
      .def_property_readonly("bias",
                             [](const LinearProbe& p) { return or_none(p.settings().bias); })
      .def_property_readonly("loss_weight",
                             [](const LinearProbe& p) { return or_none(p.settings().loss_weight); })
      .def_property_readonly("loss_bias",
                             [](const LinearProbe& p) { return p.settings().loss_bias; })
      .def(
          "logits",
          [](const LinearProbe& probe, const at::Tensor& hidden,
             const std::optional<at::Tensor>& mask) {
            return probe.logits(hidden, or_undefined(mask));
          },
          py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(),
          "float64 [batch, classes] from hidden states [batch, tokens, model_dim].")
      .def(
          "signals",
          [](const LinearProbe& probe, const at::Tensor& hidden,
             const std::optional<at::Tensor>& mask) {
            return probe.signals(hidden, or_undefined(mask));
          },
          py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(),
          "ProbeSignals from hidden states [batch, tokens, model_dim].")
      .def("to_json", &LinearProbe::to_json, "Everything ``from_json`` needs, bit for bit.")
      .def_static("from_json", &LinearProbe::from_json, py::arg("text"))
      .def("__repr__", [](const LinearProbe& probe) {
        return "<linear probe before layer " + std::to_string(probe.layer()) + ">";
      });

  py::class_<FittedProbe>(m, "FittedProbe", R"pbdoc(
A probe and what fitting it found out.

Attributes:
    probe: LinearProbe.
    examples: it was fitted to.
    ridge: penalty of the classes, relative to the mean feature variance; inf = they are constant.
    accuracy: on the fifth of the examples that was held out; NaN without a task or hold-out.
    loss_explained: share of the variance of the log loss, by cross-validation.
)pbdoc")
      .def_readonly("probe", &FittedProbe::probe)
      .def_readonly("examples", &FittedProbe::examples)
      .def_readonly("ridge", &FittedProbe::ridge)
      .def_readonly("accuracy", &FittedProbe::accuracy)
      .def_readonly("loss_explained", &FittedProbe::loss_explained);

  m.def(
      "fit_linear_probes",
      [](GatedModel& model, const DataSource& data, std::vector<int64_t> layers, bool task,
         bool labels_of_data, const std::shared_ptr<Objective>& objective,
         const std::optional<GateSet>& gates, std::optional<double> ridge,
         std::optional<double> loss_ridge, double huber, Progress progress) {
        LinearProbesFit options;
        options.layers = std::move(layers);
        options.task = task;
        options.labels_of_data = labels_of_data;
        options.objective = objective.get();
        if (gates) options.gates = *gates;
        options.fit = {ridge.value_or(-1), loss_ridge.value_or(-1), huber};
        options.progress = interruptible(std::move(progress));
        const py::gil_scoped_release release;
        return fit_linear_probes(model, data, options);
      },
      py::arg("model"), py::arg("data"), py::kw_only(), py::arg("layers"), py::arg("task") = true,
      py::arg("labels_of_data") = false, py::arg("objective") = nullptr,
      py::arg("gates") = py::none(), py::arg("ridge") = py::none(),
      py::arg("loss_ridge") = py::none(), py::arg("huber") = 1.345, py::arg("progress") = nullptr,
      "As headkit.fit_linear_probes, for a GatedModel and a DataSource: list of FittedProbe.");
}

}  // namespace headkit::bindings
