#include <headkit/gates/integer_scores.h>
#include <headkit/gates/second_look.h>

#include <optional>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

}  // namespace

void register_second_look(py::module_& m) {
  py::class_<SecondLook, AdjustablePolicy, std::shared_ptr<SecondLook>>(m, "SecondLook", R"pbdoc(
A second chance for heads near the threshold of a linear gate: an estimate of what the head would do
to this input, from whole-number (int8) scores of its queries and keys, decides instead of the gate.

The estimate is ||S'||_F * ||X - mean x||_F * ||Wv||_2 * ||Wo||_F / T ** 1.5, S' the scores with the
mean key taken off; it is compared with the median of the layer. Each head that is looked at costs
its Q, its K and the scores, told in ``PolicyRun.decision_flops``; a head that then runs projects them
again. ``headkit.fit_second_look`` puts one on a gate.

Args:
    gate: LinearGate or LayerGate.
    band: heads with |logit - threshold| below it are looked at.
    ratio: one of them runs where its estimate is at least ratio times the median of the layer.
    weight: ||Wv||_2 * ||Wo||_F, float64 [layers, heads].
    median: of the estimates, float64 [layers], above 0.
Raises:
    ValueError: on settings that do not fit together.
Source:
    Jaradat 2024 (HDP), with int8, centred keys, values and a relative threshold.
)pbdoc")
      .def(py::init([](std::shared_ptr<AdjustablePolicy> gate, double band, double ratio,
                       at::Tensor weight, at::Tensor median) {
             return std::make_shared<SecondLook>(SecondLookSettings{
                 std::move(gate), band, ratio, std::move(weight), std::move(median)});
           }),
           py::arg("gate"), py::kw_only(), py::arg("band"), py::arg("ratio"), py::arg("weight"),
           py::arg("median"))
      .def_property_readonly(
          "gate",
          [](const SecondLook& look) {
            return std::const_pointer_cast<AdjustablePolicy>(look.settings().gate);
          })
      .def_property_readonly("band", [](const SecondLook& s) { return s.settings().band; })
      .def_property_readonly("ratio", [](const SecondLook& s) { return s.settings().ratio; })
      .def_property_readonly("weight", [](const SecondLook& s) { return s.settings().weight; })
      .def_property_readonly("median", [](const SecondLook& s) { return s.settings().median; })
      .def(
          "estimates",
          [](const SecondLook& look, GatedModel& model, int64_t layer,
             const std::vector<int64_t>& heads, const at::Tensor& hidden,
             const std::optional<at::Tensor>& mask) {
            return look.estimates(model, layer, heads, hidden, or_undefined(mask));
          },
          py::arg("model"), py::arg("layer"), py::arg("heads"), py::arg("hidden"),
          py::arg("attention_mask") = py::none(), Unlocked(),
          "Estimates of some heads of a layer, float64 [batch, heads], from its input.");
  m.def(
      "fit_second_look",
      [](GatedModel& model, const DataSource& data, std::shared_ptr<AdjustablePolicy> gate,
         double band_share, Progress progress) {
        const SecondLookFit options{band_share, interruptible(std::move(progress))};
        const py::gil_scoped_release release;
        return fit_second_look(model, data, std::move(gate), options);
      },
      py::arg("model"), py::arg("data"), py::arg("gate"), py::kw_only(), py::arg("band_share"),
      py::arg("progress"), "As headkit.fit_second_look, for a GatedModel and a data source.");
  m.def("integer_score_norm", &integer_score_norm, py::arg("queries"), py::arg("keys"),
        py::arg("scale"), R"pbdoc(
Frobenius norm of the attention scores of one head, with the mean key taken off, from int8.

Args:
    queries, keys: float64 [tokens, head_dim].
    scale: factor on the scores.
Example:
    >>> keys = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    >>> round(headkit.integer_score_norm(torch.ones(2, 1, dtype=torch.float64), keys, 0.5), 9)
    1.0
)pbdoc");
}

}  // namespace headkit::bindings
