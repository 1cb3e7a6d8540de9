#include <headkit/explain/attention_rows.h>
#include <headkit/explain/role_score.h>
#include <headkit/explain/roles.h>
#include <pybind11/functional.h>

#include <cmath>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

std::string text_of(const RoleScore& score) {
  std::string text = "RoleScore(" + score.role;
  if (!score.variant.empty()) text += "[" + score.variant + "]";
  if (!score.assessed) return text + ", not assessed: " + score.reason + ")";
  return text + " " + c10::str(score.score) + (score.assigned ? ", assigned)" : ")");
}

py::dict registry() {
  py::dict all;
  for (const RoleInfo& each : role_registry()) {
    py::dict info;
    info["formula"] = each.formula;
    info["definition"] = each.definition;
    info["convention"] = each.convention;
    info["exclusions"] = each.exclusions;
    info["threshold"] = each.threshold;
    info["margin"] = each.margin;
    info["threshold_source"] = each.threshold_source;
    info["minimum_sequences"] = each.minimum_sequences;
    info["minimum_rows"] = each.minimum_rows;
    info["modality"] = each.modality;
    info["low"] = each.low;
    info["beats_null"] = each.beats_null;
    info["caution"] = each.caution;
    all[py::str(each.role)] = info;
  }
  return all;
}

void register_scores(py::module_& m) {
  py::class_<RoleNull>(m, "RoleNull", "What a score is without the role: ``name`` and ``value``.")
      .def_readonly("name", &RoleNull::name)
      .def_readonly("value", &RoleNull::value)
      .def("__repr__", [](const RoleNull& null) {
        return c10::str("RoleNull(", null.name, " ", null.value, ")");
      });
  py::class_<RoleScore>(m, "RoleScore", R"pbdoc(
How well one head fits one role.

Attributes:
    role, variant: registry name, and which of several (an offset, a delimiter, a relation) or "".
    formula: id of the formula.
    score: None where it was not assessed, which is not a low score.
    lower, upper: bootstrap interval over sequences, or None.
    nulls: list of RoleNull.
    sequences, rows, dropped_rows: the sample, and rows that had nothing left after exclusions.
    excluded_mass: mean over rows of what was taken out.
    threshold, threshold_source, convention: as the registry says.
    assessed, assigned: whether there is a score, and whether the head gets the label.
    reason: what a label lacks.
    agrees: of one input, whether it is as in the data set, or None.
    level: of evidence, L0 to L3.
    details: what else is told, name -> number.
    margin, best_null: distance from the best null, and that null; or None.
)pbdoc")
      .def_readonly("role", &RoleScore::role)
      .def_readonly("variant", &RoleScore::variant)
      .def_readonly("formula", &RoleScore::formula)
      .def_property_readonly(
          "score",
          [](const RoleScore& s) { return s.assessed ? std::optional(s.score) : std::nullopt; })
      .def_readonly("lower", &RoleScore::lower)
      .def_readonly("upper", &RoleScore::upper)
      .def_readonly("nulls", &RoleScore::nulls)
      .def_readonly("sequences", &RoleScore::sequences)
      .def_readonly("rows", &RoleScore::rows)
      .def_readonly("dropped_rows", &RoleScore::dropped_rows)
      .def_readonly("excluded_mass", &RoleScore::excluded_mass)
      .def_readonly("threshold", &RoleScore::threshold)
      .def_readonly("threshold_source", &RoleScore::threshold_source)
      .def_readonly("convention", &RoleScore::convention)
      .def_readonly("assessed", &RoleScore::assessed)
      .def_readonly("assigned", &RoleScore::assigned)
      .def_readonly("reason", &RoleScore::reason)
      .def_readonly("agrees", &RoleScore::agrees)
      .def_readonly("level", &RoleScore::level)
      .def_property_readonly("details",
                             [](const RoleScore& s) {
                               py::dict all;
                               for (const auto& [name, value] : s.details) {
                                 all[py::str(name)] = value;
                               }
                               return all;
                             })
      .def_property_readonly("margin", &RoleScore::margin)
      .def_property_readonly("best_null", &RoleScore::best_null)
      .def("__eq__", [](const RoleScore& a, const RoleScore& b) { return a == b; })
      .def("__repr__", [](const RoleScore& s) { return text_of(s); });
  py::class_<RoleTable>(m, "RoleTable", R"pbdoc(
Roles of every head; see ``headkit.roles``.

Attributes:
    of: "dataset", or "input": scores without label, with ``agrees``.
    registry_version: of thresholds and formulas.
    layout: HeadLayout of the original model.
    sequences, confidence, seed: how it was measured.
    heads: [layer][head], lists of RoleScore: assessed first, then by margin over the best null.
    warnings: to be shown beside every role.
)pbdoc")
      .def_readonly("of", &RoleTable::of)
      .def_readonly("registry_version", &RoleTable::registry_version)
      .def_readonly("layout", &RoleTable::layout)
      .def_readonly("sequences", &RoleTable::sequences)
      .def_readonly("confidence", &RoleTable::confidence)
      .def_readonly("seed", &RoleTable::seed)
      .def_readonly("heads", &RoleTable::heads)
      .def_readonly("warnings", &RoleTable::warnings)
      .def(
          "find",
          [](const RoleTable& table, int64_t layer, int64_t head, const std::string& role,
             const std::string& variant) -> std::optional<RoleScore> {
            const RoleScore* found = table.find(layer, head, role, variant);
            return found == nullptr ? std::nullopt : std::optional(*found);
          },
          py::arg("layer"), py::arg("head"), py::arg("role"), py::arg("variant") = "",
          "The RoleScore of a head, or None.")
      .def("labels", &RoleTable::labels, py::arg("layer"), py::arg("head"),
           "RoleScores of the roles that a head is labelled with, best first.")
      .def("to_json", &RoleTable::to_json)
      .def_static("from_json", &RoleTable::from_json, py::arg("text"))
      .def("__repr__", [](const RoleTable& table) {
        int64_t labelled = 0;
        for (const auto& layer : table.heads) {
          for (const auto& scores : layer) {
            labelled += std::any_of(scores.begin(), scores.end(),
                                    [](const RoleScore& score) { return score.assigned; });
          }
        }
        return c10::str("RoleTable(", table.of, ", ", table.sequences, " sequences, ", labelled,
                        " of ", table.layout.total_heads(), " heads labelled)");
      });
  m.def("role_registry", &registry, R"pbdoc(
What is known of each role: name -> formula, definition, threshold and its source, minimum sample.

Example:
    >>> headkit.role_registry()["previous_token"]["threshold"]
    0.5
)pbdoc");
  m.attr("ROLE_REGISTRY") = kRoleRegistryVersion;
}

void register_rows(py::module_& m) {
  py::class_<SampleAttention>(m, "SampleAttention", R"pbdoc(
What the heads of one attention block look at in one sample. Padding at the end is cut off.

Attributes:
    sample, layer: number of the example in the data, and of the block.
    heads: original indices of the h heads that are there.
    probabilities: float32, shape [h, queries, keys]; 0 where not allowed.
    key_allowed: bool, shape [1 or h, queries, keys].
    query_valid: bool, shape [queries]: tokens that may see a key.
    output_norm: shape [h, queries], norm of what a head writes; None unless asked for.
    value_norm: shape [h, keys], norm of what it would write for one key alone; None likewise.
    cross: whether keys are of another sequence than queries.
    row: place of the example in its batch.
)pbdoc")
      .def_readonly("sample", &SampleAttention::sample)
      .def_readonly("layer", &SampleAttention::layer)
      .def_readonly("heads", &SampleAttention::heads)
      .def_readonly("probabilities", &SampleAttention::probabilities)
      .def_readonly("key_allowed", &SampleAttention::key_allowed)
      .def_readonly("query_valid", &SampleAttention::query_valid)
      .def_property_readonly("output_norm",
                             [](const SampleAttention& rows) { return or_none(rows.output_norm); })
      .def_property_readonly("value_norm",
                             [](const SampleAttention& rows) { return or_none(rows.value_norm); })
      .def_readonly("cross", &SampleAttention::cross)
      .def_readonly("row", &SampleAttention::row);
  m.def(
      "for_each_attention",
      [](GatedModel& model, const DataSource& data,
         const std::function<void(const SampleAttention&)>& visit, const GateSet& gates,
         bool output_norms, const Progress& progress) {
        for_each_attention(
            model, data,
            {.gates = gates, .output_norms = output_norms, .progress = interruptible(progress)},
            visit);
      },
      py::arg("model"), py::arg("data"), py::arg("visit"), py::kw_only(),
      py::arg("gates") = GateSet(), py::arg("output_norms") = false,
      py::arg("progress") = Progress(), Unlocked(), "See headkit.for_each_attention.");
}

// The options of both functions, by keyword.
using Delimiters = std::vector<std::pair<std::string, std::vector<int64_t>>>;
RoleOptions options_of(const GateSet& gates, const std::vector<int64_t>& special_tokens,
                       const Delimiters& delimiters, const std::optional<at::Tensor>& embedding,
                       const std::optional<at::Tensor>& unembedding,
                       std::optional<double> inactive_threshold, int64_t random_sequences,
                       int64_t begin_token, int64_t max_tokens, const RoleMeasure& measure,
                       const Progress& progress) {
  RoleOptions options{.gates = gates, .special_tokens = special_tokens};
  for (const auto& [name, ids] : delimiters) options.delimiters.push_back({name, ids});
  options.embedding = or_undefined(embedding);
  options.unembedding = or_undefined(unembedding);
  options.inactive_threshold = inactive_threshold;
  options.random_sequences = random_sequences;
  options.begin_token = begin_token;
  options.max_tokens = max_tokens;
  options.measure = measure;
  options.progress = interruptible(progress);
  return options;
}

void register_functions(py::module_& m) {
  py::class_<RoleOptions>(m, "RoleOptions", "Options of head_roles and input_roles.")
      .def(py::init([](const GateSet& gates, const std::vector<int64_t>& special_tokens,
                       const Delimiters& delimiters, const std::optional<at::Tensor>& embedding,
                       const std::optional<at::Tensor>& unembedding,
                       std::optional<double> inactive_threshold, int64_t random_sequences,
                       int64_t begin_token, int64_t max_tokens, int64_t draws, int64_t bootstrap,
                       double confidence, uint64_t seed, const Progress& progress) {
             return options_of(gates, special_tokens, delimiters, embedding, unembedding,
                               inactive_threshold, random_sequences, begin_token, max_tokens,
                               {draws, bootstrap, confidence, seed}, progress);
           }),
           py::kw_only(), py::arg("gates") = GateSet(),
           py::arg("special_tokens") = std::vector<int64_t>(), py::arg("delimiters") = Delimiters(),
           py::arg("embedding") = py::none(), py::arg("unembedding") = py::none(),
           py::arg("inactive_threshold") = py::none(), py::arg("random_sequences") = 32,
           py::arg("begin_token") = -1, py::arg("max_tokens") = 0, py::arg("draws") = 200,
           py::arg("bootstrap") = 1000, py::arg("confidence") = 0.95, py::arg("seed") = 0,
           py::arg("progress") = Progress());
  m.def("head_roles", &roles, py::arg("model"), py::arg("data"), py::arg("options"), Unlocked(),
        "See headkit.roles.");
  m.def("input_roles", &input_roles, py::arg("model"), py::arg("data"), py::arg("dataset"),
        py::arg("options"), Unlocked(), "See headkit.input_roles.");
}

}  // namespace

void register_roles(py::module_& m) {
  register_rows(m);
  register_scores(m);
  register_functions(m);
}

}  // namespace headkit::bindings
