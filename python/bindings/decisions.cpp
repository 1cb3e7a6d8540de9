#include <headkit/explain/explain_decisions.h>
#include <headkit/explain/gate_decomposition.h>

#include "optional_tensor.h"
#include "python_data.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

LinearLogits linear_gate_of(const at::Tensor& weight, const at::Tensor& reference,
                            const at::Tensor& base, const std::string& rule, double threshold,
                            int64_t k, double budget, const std::optional<at::Tensor>& cost,
                            const std::optional<at::Tensor>& fixed, int64_t min_heads) {
  const auto wide = [](const at::Tensor& t) {
    return t.detach().to(at::kCPU, at::kDouble).contiguous();
  };
  LinearLogits gate;
  gate.weight = wide(weight);
  gate.reference = wide(reference);
  gate.base = wide(base);
  gate.reference_name = gate.reference.any().item<bool>() ? "given" : "origin";
  for (int64_t h = 0; gate.weight.dim() == 2 && h < gate.weight.size(0); ++h) {
    gate.heads.push_back({0, h});
  }
  gate.rule = {.kind = decision_rule_kind(rule),
               .threshold = threshold,
               .min_heads = min_heads,
               .k = k,
               .budget = budget,
               .cost = cost ? wide(*cost) : at::Tensor(),
               .fixed = fixed ? fixed->to(at::kCPU, at::kChar).contiguous() : at::Tensor()};
  return gate;
}

void register_decomposition(py::module_& m) {
  py::class_<GateCut>(m, "GateCut", R"pbdoc(
How far a decision is from the other one.

Attributes:
    margin: logit - threshold; against a rival the difference of logits, with a budget of logits per
        cost. None without a rival.
    distance: how far the feature vector would have to move, |margin| / norm of the weights.
    rank: 1 = the best of the heads that are decided. None for a head that is not.
    rivals: RivalHead, the worst open and the best closed head, the head itself left out.
)pbdoc")
      .def_readonly("margin", &GateCut::margin)
      .def_readonly("distance", &GateCut::distance)
      .def_readonly("rank", &GateCut::rank)
      .def_readonly("rivals", &GateCut::rivals);
  py::class_<GateDecomposition>(m, "GateDecomposition", R"pbdoc(
Why each head of a linear gate is open or closed for one sample; see ``headkit.decompose_gate``.

Attributes:
    logits: float64 [heads], as the gate decides by them.
    open: whether each head runs.
    tokens: positions of the valid tokens.
    token_parts: float64 [heads, valid tokens]; with the base they sum to the logits.
    feature_parts: float64 [heads, D]; with the base they sum to the logits.
    control_share: share of the squared state that can move a gate at all; None at the reference.
)pbdoc")
      .def_property_readonly("logits", &GateDecomposition::logits)
      .def_property_readonly("open",
                             [](const GateDecomposition& found) {
                               return std::vector<bool>(found.open().begin(), found.open().end());
                             })
      .def_property_readonly("tokens", &GateDecomposition::tokens)
      .def_property_readonly("token_parts", &GateDecomposition::token_parts)
      .def_property_readonly("feature_parts", &GateDecomposition::feature_parts)
      .def_property_readonly("control_share", &GateDecomposition::control_share)
      .def("joint", &GateDecomposition::joint, py::arg("head"),
           "Parts of one logit by token and feature, float64 [valid tokens, D].")
      .def("residual", &GateDecomposition::residual, py::arg("head"),
           "Largest |logit - (base + parts)| over the three ways to take it apart.")
      .def("cut", &GateDecomposition::cut, py::arg("head"), "GateCut.")
      .def("flip", &GateDecomposition::flip, py::arg("head"), Unlocked(),
           "GateFlip; None for a head that is not decided for each input.")
      .def(
          "open_without",
          [](const GateDecomposition& found, const std::vector<int64_t>& tokens) {
            const std::vector<char> open = found.open_without(tokens);
            return std::vector<bool>(open.begin(), open.end());
          },
          py::arg("tokens"), "The decision with these tokens at the reference mean.");
  m.def(
      "decompose_gate",
      [](const at::Tensor& hidden, const at::Tensor& weight, const at::Tensor& reference,
         const at::Tensor& base, const std::optional<at::Tensor>& valid, const std::string& rule,
         double threshold, int64_t k, double budget, const std::optional<at::Tensor>& cost,
         const std::optional<at::Tensor>& fixed, int64_t min_heads) {
        return GateDecomposition(linear_gate_of(weight, reference, base, rule, threshold, k, budget,
                                                cost, fixed, min_heads),
                                 hidden, valid.value_or(at::Tensor()));
      },
      py::arg("hidden"), py::kw_only(), py::arg("weight"), py::arg("reference"), py::arg("base"),
      py::arg("valid") = py::none(), py::arg("rule") = "threshold", py::arg("threshold") = 0.0,
      py::arg("k") = 0, py::arg("budget") = 0.0, py::arg("cost") = py::none(),
      py::arg("fixed") = py::none(), py::arg("min_heads") = 0, R"pbdoc(
Take the logits of a linear gate apart, for one sample and any rule.

The gate is z = base + weight (mean token state - reference). Parts by token, by feature and by both
each sum to z - base exactly; flips are found greedily and verified by running the gate.

Args:
    hidden: token states, shape [T, D].
    weight: shape [heads, D]. reference: [D]. base: [heads], the logits of the reference.
    valid: bool [T], True = token; None = all.
    rule: "threshold" (logit >= ``threshold``, at least ``min_heads``), "top_k" (the ``k`` highest)
        or "budget" (by logit / ``cost``, highest first, as far as ``budget`` goes).
    cost: of each head, > 0, shape [heads].
    fixed: 1 = always on, -1 = pruned, 0 = decided, shape [heads]; None = all are decided.
Returns:
    GateDecomposition.
Raises:
    ValueError: for shapes or a rule that do not fit, and values that are not finite.
Example:
    >>> states = torch.tensor([[0.0, 1.0], [0.0, 3.0]])
    >>> weight = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    >>> why = headkit.decompose_gate(
    ...     states, weight=weight, reference=torch.zeros(2), base=torch.tensor([1.0, -1.0])
    ... )
    >>> why.logits.tolist(), why.token_parts[1].tolist(), why.flip(1).removed
    ([1.0, 1.0], [0.5, 1.5], [1])
)pbdoc");
}

void register_explanations(py::module_& m) {
  py::class_<InputUnit>(m, "InputUnit", R"pbdoc(
One token, patch or frame of an input, as a record tells it: raw content, by opt-in.
)pbdoc")
      .def(py::init([](std::string text, std::optional<std::array<int64_t, 2>> grid,
                       std::optional<double> seconds, bool special, bool padding) {
             return InputUnit{std::move(text), grid, seconds, special, padding};
           }),
           py::arg("text") = "", py::kw_only(), py::arg("grid") = py::none(),
           py::arg("seconds") = py::none(), py::arg("special") = false, py::arg("padding") = false)
      .def_readonly("text", &InputUnit::text)
      .def_readonly("grid", &InputUnit::grid)
      .def_readonly("seconds", &InputUnit::seconds)
      .def_readonly("special", &InputUnit::special)
      .def_readonly("padding", &InputUnit::padding);
  m.def(
      "explain_decisions",
      [](GatedModel& model, const Batch& batch, const GatePolicy& policy,
         const std::optional<at::Tensor>& logit_spread, int64_t removals, int64_t listed_parts,
         int64_t first_input, std::vector<std::vector<InputUnit>> units, const std::string& about) {
        DecisionExplanation options;
        options.logit_spread = logit_spread.value_or(at::Tensor());
        options.removals = removals;
        options.listed_parts = listed_parts;
        options.first_input = first_input;
        options.units = std::move(units);
        std::vector<DecisionRecord> records = explain_decisions(model, batch, policy, options);
        if (about != "{}") {
          for (DecisionRecord& record : records) record = record.with(about);
        }
        return records;
      },
      py::arg("model"), py::arg("batch"), py::arg("policy"), py::kw_only(), py::arg("logit_spread"),
      py::arg("removals"), py::arg("listed_parts"), py::arg("first_input"), py::arg("units"),
      py::arg("about"), Unlocked(), "See headkit.explain_decisions.");
  m.def(
      "logit_spread",
      [](GatedModel& model, const DataSource& data, const GatePolicy& policy) {
        return logit_spread(model, data, policy);
      },
      py::arg("model"), py::arg("data"), py::arg("policy"), Unlocked(),
      "See headkit.logit_spread.");
}

}  // namespace

void register_decisions(py::module_& m) {
  register_decomposition(m);
  register_explanations(m);
}

}  // namespace headkit::bindings
