#include <headkit/gates/gate_features.h>
#include <headkit/gates/layer_gate.h>

#include <optional>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

template <typename Value>
py::list listed(const std::vector<Value>& values) {
  py::list all;
  for (const Value& value : values) all.append(value);
  return all;
}

}  // namespace

void register_layer_gate(py::module_& m) {
  m.def("scalar_features", &scalar_features, R"pbdoc(
Scalars that a linear gate may read beside the pooled state.

Example:
    >>> headkit.scalar_features()
    ['log_length', 'margin', 'entropy', 'log_loss']
)pbdoc");

  py::class_<LayerGate, AdjustablePolicy, std::shared_ptr<LayerGate>>(m, "LayerGate", R"pbdoc(
A linear gate for each layer, decided from the state before it: z = W (f - mu) + s, on where
z >= threshold.

f is the mean state over valid tokens, then scalars. With W = 0 the gate is static pruning by s.
``fit_layer_gate`` makes one from data.

Args:
    weight: W, float64 [layers, heads, model_dim + scalars].
    reference: mu, float64 [layers, model_dim + scalars].
    static_logits: s, float64 [layers, heads].
    threshold: a head runs if its logit is at least this.
    features: names of the scalars (``scalar_features``).
    probes: a LinearProbe before each layer, where a scalar needs one.
    fixed: int8 [layers, heads]; 0 = decided, 1 = always on, -1 = pruned; None = all decided.
    min_heads: every input runs at least so many heads of each layer.
    dropped_output: what a closed head adds instead of nothing, [layers, heads, model_dim].
    calibration: free text, what set the threshold.
Example:
    >>> gate = headkit.LayerGate(
    ...     weight=torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64),
    ...     reference=torch.zeros(1, 1, dtype=torch.float64),
    ...     static_logits=torch.zeros(1, 2, dtype=torch.float64),
    ...     threshold=0.5,
    ... )
    >>> gate.decide(torch.tensor([[[3.0]], [[-3.0]]])).heads.tolist()
    [[[1.0, 0.0]], [[0.0, 1.0]]]
)pbdoc")
      .def(py::init([](at::Tensor weight, at::Tensor reference, at::Tensor static_logits,
                       double threshold, std::vector<std::string> features,
                       std::vector<LinearProbe> probes, const std::optional<at::Tensor>& fixed,
                       int64_t min_heads, const std::optional<at::Tensor>& dropped_output,
                       std::string calibration) {
             return std::make_shared<LayerGate>(LayerGateSettings{
                 std::move(weight), std::move(reference), std::move(static_logits),
                 std::move(features), std::move(probes), or_undefined(fixed), threshold, min_heads,
                 or_undefined(dropped_output), std::move(calibration)});
           }),
           py::kw_only(), py::arg("weight"), py::arg("reference"), py::arg("static_logits"),
           py::arg("threshold"), py::arg("features") = std::vector<std::string>(),
           py::arg("probes") = std::vector<LinearProbe>(), py::arg("fixed") = py::none(),
           py::arg("min_heads") = 0, py::arg("dropped_output") = py::none(),
           py::arg("calibration") = "")
      .def_property_readonly("weight", [](const LayerGate& g) { return g.settings().weight; })
      .def_property_readonly("reference", [](const LayerGate& g) { return g.settings().reference; })
      .def_property_readonly("static_logits",
                             [](const LayerGate& g) { return g.settings().static_logits; })
      .def_property_readonly("fixed", [](const LayerGate& g) { return g.settings().fixed; })
      .def_property_readonly("threshold", [](const LayerGate& g) { return g.settings().threshold; })
      .def_property_readonly("features", [](const LayerGate& g) { return g.settings().features; })
      .def_property_readonly("probes",
                             [](const LayerGate& g) { return listed(g.settings().probes); })
      .def_property_readonly("min_heads", [](const LayerGate& g) { return g.settings().min_heads; })
      .def_property_readonly(
          "dropped_output", [](const LayerGate& g) { return or_none(g.settings().dropped_output); })
      .def(
          "logits",
          [](const LayerGate& gate, int64_t layer, const at::Tensor& hidden,
             const std::optional<at::Tensor>& mask) {
            return gate.logits(layer, hidden, or_undefined(mask));
          },
          py::arg("layer"), py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(),
          "z of one layer, float64 [batch, heads], from the state before it.")
      .def("open_heads", &LayerGate::open_heads, py::arg("logits"), Unlocked(),
           "0 or 1 for logits [batch, layers, heads]: threshold, fixed heads and floors.")
      .def(
          "with_dropped_output",
          [](const LayerGate& gate, const std::optional<at::Tensor>& dropped_output) {
            return std::make_shared<LayerGate>(
                gate.with_dropped_output(or_undefined(dropped_output)));
          },
          py::arg("dropped_output"), "The same gate with another compensation.")
      .def(
          "with_threshold",
          [](const LayerGate& gate, double threshold) {
            return std::make_shared<LayerGate>(gate.with_threshold(threshold));
          },
          py::arg("threshold"), "The same gate with another threshold.");

  m.def(
      "fit_layer_gate",
      [](GatedModel& model, const DataSource& train, const DataSource& calibration,
         double mean_heads, const std::shared_ptr<Objective>& objective,
         std::vector<std::string> features, bool labels_of_data,
         const std::optional<HeadScores>& scores, const std::optional<at::Tensor>& dropped_output,
         std::optional<double> ridge, double huber, double rank_weight, int64_t min_heads,
         double settled_share, Progress progress) {
        LinearGateFit options;
        options.mean_heads = mean_heads;
        options.features = std::move(features);
        options.labels_of_data = labels_of_data;
        if (scores) options.scores = *scores;
        options.dropped_output = or_undefined(dropped_output);
        options.ridge = ridge.value_or(-1);
        options.huber = huber;
        options.rank_weight = rank_weight;
        options.min_heads = min_heads;
        options.settled_share = settled_share;
        options.progress = interruptible(std::move(progress));
        FittedLayerGate fitted = [&] {
          const py::gil_scoped_release release;
          return fit_layer_gate(model, train, calibration, *objective, options);
        }();
        return py::make_tuple(fitted.gate, fitted.report);
      },
      py::arg("model"), py::arg("train"), py::arg("calibration"), py::kw_only(),
      py::arg("mean_heads"), py::arg("objective"), py::arg("features"), py::arg("labels_of_data"),
      py::arg("scores"), py::arg("dropped_output"), py::arg("ridge"), py::arg("huber"),
      py::arg("rank_weight"), py::arg("min_heads"), py::arg("settled_share"), py::arg("progress"),
      "As headkit.fit_layer_gate, for a GatedModel and data sources.");
}

}  // namespace headkit::bindings
