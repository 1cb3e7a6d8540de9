#include <headkit/explain/coded_attention.h>
#include <headkit/explain/input_attention.h>
#include <headkit/explain/report.h>
#include <headkit/explain/report_picture.h>
#include <headkit/explain/report_summary.h>

#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_report(py::module_& m) {
  py::class_<CodedAttention>(m, "CodedAttention", R"pbdoc(
What one head looks at in one input: the eight largest keys of each query, and what that leaves out.

Attributes:
    encoding: "top8_u16_u8".
    data: base64 of 24 bytes a query, eight times the key (uint16, little endian) and its attention
        probability in 255ths (uint8), largest first.
    kept_mass: by query, the mass of the keys in ``data``.
    sink_mass: by query, the mass on the sink keys.
    received: by key, the mean probability over the valid queries.
    value_norm: by key, the norm of what the head would write for that key alone; [] = not computed.
)pbdoc")
      .def_readonly("encoding", &CodedAttention::encoding)
      .def_readonly("data", &CodedAttention::data)
      .def_readonly("kept_mass", &CodedAttention::kept_mass)
      .def_readonly("sink_mass", &CodedAttention::sink_mass)
      .def_readonly("received", &CodedAttention::received)
      .def_readonly("value_norm", &CodedAttention::value_norm)
      .def("to_json", &CodedAttention::to_json, "One JSON object, numbers to four decimals.");
  m.def(
      "code_attention",
      [](const at::Tensor& probabilities, const std::optional<at::Tensor>& valid,
         const std::optional<at::Tensor>& sink) {
        return code_attention(probabilities, or_undefined(valid), or_undefined(sink));
      },
      py::arg("probabilities"), py::kw_only(), py::arg("valid") = py::none(),
      py::arg("sink") = py::none(), R"pbdoc(
Keep the eight largest keys of each query of each head.

Args:
    probabilities: attention of one layer for one input, [heads, queries, keys], floating point.
    valid: bool [queries]; None = all. The others hold zeros.
    sink: bool [keys], whose mass is told apart; None = none.
Returns:
    list[CodedAttention]: one for each head.
Raises:
    ValueError: for other shapes, more than 65536 keys, or values outside 0 to 1.
Example:
    >>> headkit.code_attention(torch.tensor([[[0.75, 0.25]]]))[0].kept_mass
    [1.0]
)pbdoc");
  m.def(
      "input_attention",
      [](GatedModel& model, const Batch& batch, const GateSet& gates,
         const std::optional<at::Tensor>& sinks) {
        return input_attention(model, batch, gates, or_undefined(sinks));
      },
      py::arg("model"), py::arg("batch"), py::kw_only(), py::arg("gates") = GateSet(),
      py::arg("sinks") = py::none(), py::call_guard<py::gil_scoped_release>(), R"pbdoc(
What every head looks at in each example of a batch, coded.

Args:
    model: a GatedModel.
    batch: name -> tensor.
    gates: GateSet of the run; by default all heads run.
    sinks: bool [batch, tokens], keys whose mass is told apart; None = none.
Returns:
    list[list[CodedAttention | None]]: by example, then layer * heads + head; None for heads that
    were removed, and for blocks whose keys are other tokens.
Raises:
    ValueError: if gates or sinks do not fit, or the model does not show its attention.
)pbdoc");
  m.def(
      "html_report",
      [](const std::vector<std::string>& records, const std::string& title,
         const std::vector<std::string>& pictures, int64_t max_bytes, int64_t detailed_heads) {
        return html_report(records, {title, pictures, max_bytes, detailed_heads});
      },
      py::arg("records"), py::kw_only(), py::arg("title") = "",
      py::arg("pictures") = std::vector<std::string>{},
      py::arg("max_bytes") = ReportOptions{}.max_bytes,
      py::arg("detailed_heads") = ReportOptions{}.detailed_heads, R"pbdoc(
The report of one decision record, or of two that are compared, as one HTML document.

It needs no network and no library; a content security policy admits its own style and script only.

Args:
    records: one or two JSON objects, as ``DecisionRecord.to_json`` writes them.
    title: empty = the text of the first input.
    pictures: what lies behind the tokens of each record, as data URIs of a PNG or JPEG.
    max_bytes: of the page; heads lose attention and parts until it fits, and the page says so.
    detailed_heads: heads that keep them, those that matter most first; -1 = all.
Returns:
    str: the document.
Raises:
    ValueError: for other records or pictures, or if the page cannot be so small.
)pbdoc");
  m.def("report_picture", &report_picture, py::arg("record"),
        "Layers and heads of a decision record (JSON) as one SVG picture.");
  py::class_<SummaryLine>(m, "SummaryLine", R"pbdoc(
One sentence about a record.

Attributes:
    text: the sentence.
    level: evidence behind it, "L0" to "L3"; empty = a fact of the run.
)pbdoc")
      .def_readonly("text", &SummaryLine::text)
      .def_readonly("level", &SummaryLine::level);
  m.def("summarise_record", &summarise_record, py::arg("record"),
        "A decision record (JSON) in few sentences: list[SummaryLine].");
}

}  // namespace headkit::bindings
