#include <headkit/explain/decision_record.h>
#include <headkit/explain/head_explanation.h>
#include <headkit/explain/record_details.h>

#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

// A member of what an explanation adds; None in records of plain runs.
template <typename Member>
auto explained(Member HeadExplanation::*member) {
  return [member](const HeadDecision& decision) -> std::optional<Member> {
    if (!decision.explained) return std::nullopt;
    return (*decision.explained).*member;
  };
}
template <typename Value>
auto explained(std::optional<Value> HeadExplanation::*member) {
  return [member](const HeadDecision& decision) -> std::optional<Value> {
    return decision.explained ? (*decision.explained).*member : std::nullopt;
  };
}

// JSON text of another writer, or None.
auto json_of(std::string HeadExplanation::*member) {
  return [member](const HeadDecision& decision) -> std::optional<std::string> {
    if (!decision.explained || ((*decision.explained).*member).empty()) return std::nullopt;
    return (*decision.explained).*member;
  };
}

void register_head_explanation(py::module_& m) {
  py::class_<RivalHead>(m, "RivalHead", "A head next to the cut between open and closed heads.")
      .def_readonly("layer", &RivalHead::layer)
      .def_readonly("head", &RivalHead::head)
      .def_readonly("logit", &RivalHead::logit)
      .def_readonly("open", &RivalHead::open);
  py::class_<GateFlip>(m, "GateFlip", R"pbdoc(
The fewest tokens found whose states, put at the reference mean, change a decision.

Attributes:
    removed: positions, largest support first; empty = no such move flips it.
    minimal: no smaller set flips it (thresholds only); else the set is greedy.
    verified: the gate was run: it flips, and with the last token put back it does not.
    logit: after the moves.
)pbdoc")
      .def_readonly("removed", &GateFlip::removed)
      .def_readonly("minimal", &GateFlip::minimal)
      .def_readonly("verified", &GateFlip::verified)
      .def_readonly("logit", &GateFlip::logit);
  py::class_<TokenRemoval>(m, "TokenRemoval", R"pbdoc(
What became of a decision when the tokens of its flip were taken out of the model's input.
)pbdoc")
      .def_readonly("state", &TokenRemoval::state)
      .def_readonly("logit", &TokenRemoval::logit)
      .def_readonly("flips", &TokenRemoval::flips);
  py::class_<FeaturePart>(m, "FeaturePart", R"pbdoc(
One addend of a gate logit by feature, or by token and feature: of a dimension, or of a scalar.
)pbdoc")
      .def_readonly("token", &FeaturePart::token)
      .def_readonly("dimension", &FeaturePart::dimension)
      .def_readonly("scalar", &FeaturePart::scalar)
      .def_readonly("value", &FeaturePart::value);
  py::class_<FeatureParts>(m, "FeatureParts", "Largest parts, and the sum of the others.")
      .def_readonly("parts", &FeatureParts::parts)
      .def_readonly("rest", &FeatureParts::rest);
}

}  // namespace

void register_explain(py::module_& m) {
  m.attr("RECORD_SCHEMA") = kRecordSchema;
  register_head_explanation(m);
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
    margin_std, distance, rank, rivals, feature_parts, joint_parts, flip, removal, control_share: of
        an explanation (``explain_decisions``), else None.
    roles, effects, attention: JSON of an explanation, or None.
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
      .def_readonly("residual", &HeadDecision::residual)
      .def_property_readonly("margin_std", explained(&HeadExplanation::margin_std))
      .def_property_readonly("distance", explained(&HeadExplanation::distance))
      .def_property_readonly("rank", explained(&HeadExplanation::rank))
      .def_property_readonly("rivals", explained(&HeadExplanation::rivals))
      .def_property_readonly("feature_parts", explained(&HeadExplanation::features))
      .def_property_readonly("joint_parts", explained(&HeadExplanation::joint))
      .def_property_readonly("flip", explained(&HeadExplanation::flip))
      .def_property_readonly("removal", explained(&HeadExplanation::removal))
      .def_property_readonly("control_share", explained(&HeadExplanation::control_share))
      .def_property_readonly("roles", json_of(&HeadExplanation::roles))
      .def_property_readonly("effects", json_of(&HeadExplanation::effects))
      .def_property_readonly("attention", json_of(&HeadExplanation::attention));
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
    input_sha256, policy_sha256: identities, in records of ``explain_decisions``; else empty.
)pbdoc")
      .def_static("from_json", &DecisionRecord::from_json, py::arg("text"))
      .def("to_json", &DecisionRecord::to_json)
      .def("updated", &DecisionRecord::with, py::arg("patch"),
           "The record with the members of a JSON object in their places: objects merged, heads by "
           "layer and head, everything else replaced.")
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
      .def_property_readonly("input_sha256",
                             [](const DecisionRecord& record) {
                               return record.details ? record.details->input_sha256 : std::string();
                             })
      .def_property_readonly("policy_sha256",
                             [](const DecisionRecord& record) {
                               return record.details ? record.details->policy_sha256
                                                     : std::string();
                             })
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
