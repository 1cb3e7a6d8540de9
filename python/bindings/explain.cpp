#include <headkit/explain/decision_record.h>

#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_explain(py::module_& m) {
  m.attr("RECORD_SCHEMA") = kRecordSchema;
  py::class_<LogitPart>(m, "LogitPart", R"pbdoc(
One addend of a gate logit: ``value``, of the token at ``token`` or of the scalar ``feature``.
)pbdoc")
      .def_readonly("token", &LogitPart::token)
      .def_readonly("feature", &LogitPart::feature)
      .def_readonly("value", &LogitPart::value);
  py::class_<HeadDecision>(m, "HeadDecision", R"pbdoc(
What was decided for one head, and why.

Attributes:
    layer, head: place in the original model.
    state: "on" or "off" for this input; "always_on", "pruned" for every input; "collapsed".
    gate: the number that multiplied the head's output.
    reason: score, floor, fixed, mask, removed or confidence.
    logit, threshold, margin: of a gate that scores, else None.
    base, parts, rest, residual: base + parts + rest + residual is the logit.
)pbdoc")
      .def_readonly("layer", &HeadDecision::layer)
      .def_readonly("head", &HeadDecision::head)
      .def_readonly("state", &HeadDecision::state)
      .def_readonly("gate", &HeadDecision::gate)
      .def_readonly("reason", &HeadDecision::reason)
      .def_readonly("logit", &HeadDecision::logit)
      .def_readonly("threshold", &HeadDecision::threshold)
      .def_readonly("margin", &HeadDecision::margin)
      .def_readonly("base", &HeadDecision::base)
      .def_readonly("parts", &HeadDecision::parts)
      .def_readonly("rest", &HeadDecision::rest)
      .def_readonly("residual", &HeadDecision::residual);
  py::class_<DecisionRecord>(m, "DecisionRecord", R"pbdoc(
What a policy decided for one input; one JSON object a line.

Attributes:
    input, tokens: number of the example and its valid tokens.
    policy, mode, calibration: which policy, and whether static, dynamic or escalated.
    heads: HeadDecision of every head, by layer, then head.
    heads_run, flops_run, flops_dense: cost, re-runs included; None = not known.
    confidence, signal, rung, rungs, decided_at: of a ladder, what was looked at, before which layer
        (None = the output), and the rung that came of it.
    open_blocks: blocks of 32 neurons that ran, for each layer; empty = not gated.
)pbdoc")
      .def_static("from_json", &DecisionRecord::from_json, py::arg("text"))
      .def("to_json", &DecisionRecord::to_json)
      .def_readonly("layout", &DecisionRecord::layout)
      .def_readonly("weights_sha256", &DecisionRecord::weights_sha256)
      .def_readonly("input", &DecisionRecord::input)
      .def_readonly("tokens", &DecisionRecord::tokens)
      .def_readonly("policy", &DecisionRecord::policy)
      .def_readonly("calibration", &DecisionRecord::calibration)
      .def_readonly("mode", &DecisionRecord::mode)
      .def_readonly("reference", &DecisionRecord::reference)
      .def_readonly("confidence", &DecisionRecord::confidence)
      .def_readonly("threshold", &DecisionRecord::threshold)
      .def_readonly("risk_bound", &DecisionRecord::risk_bound)
      .def_readonly("heads_run", &DecisionRecord::heads_run)
      .def_readonly("flops_run", &DecisionRecord::flops_run)
      .def_readonly("flops_dense", &DecisionRecord::flops_dense)
      .def_readonly("heads", &DecisionRecord::heads)
      .def_readonly("signal", &DecisionRecord::signal)
      .def_readonly("rung", &DecisionRecord::rung)
      .def_readonly("rungs", &DecisionRecord::rungs)
      .def_readonly("decided_at", &DecisionRecord::decided_at)
      .def_readonly("open_blocks", &DecisionRecord::open_blocks)
      .def(
          "block_gates", [](const DecisionRecord& record) { return or_none(record.block_gates()); },
          "Float32 [layers, blocks]: replays the decision; None = not gated.")
      .def_property_readonly("active", &DecisionRecord::active, "Heads that are not closed.")
      .def("gates", &DecisionRecord::gates, "Float32 [layers, heads]: replays the decision.")
      .def("__eq__", [](const DecisionRecord& a, const DecisionRecord& b) { return a == b; });
  m.def("read_decision_records", &read_decision_records, py::arg("lines"),
        "The records of JSON lines; ValueError names a bad line.");
}

}  // namespace headkit::bindings
