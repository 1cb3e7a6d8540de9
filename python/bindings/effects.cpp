#include <headkit/explain/causal_head_gating.h>
#include <headkit/explain/head_effects.h>
#include <headkit/explain/interactions.h>
#include <headkit/explain/measure_effects.h>
#include <headkit/explain/output_metric.h>

#include <sstream>

#include "any_gates.h"
#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

std::optional<std::pair<double, double>> interval_of(const std::optional<double>& lower,
                                                     const std::optional<double>& upper) {
  if (!lower || !upper) return std::nullopt;
  return std::pair(*lower, *upper);
}

std::string text_of(const InputEffects& effects) {
  std::ostringstream text;
  text << "InputEffects(" << effects.metric << " " << effects.value << ", " << effects.heads.size()
       << " heads";
  if (!effects.ablation.empty()) text << ", ablation " << effects.ablation;
  text << ")";
  return text.str();
}

MetricChoice choice_of(const std::optional<at::Tensor>& target,
                       const std::optional<at::Tensor>& distractor,
                       const std::optional<at::Tensor>& position) {
  return {or_undefined(target), or_undefined(distractor), or_undefined(position)};
}

void register_metrics(py::module_& m) {
  py::class_<OutputMetric, std::shared_ptr<OutputMetric>>(m, "OutputMetric", R"pbdoc(
The scalar m that an explanation is of; larger = more of what the model said.

Example:
    >>> metric = headkit.make_output_metric("class_margin")
    >>> metric(torch.tensor([[1.0, 4.0, 2.5]]))
    tensor([1.5000])
)pbdoc")
      .def_property_readonly("name", &OutputMetric::name)
      .def_property_readonly("needs_dense", &OutputMetric::needs_dense,
                             "Whether outputs with all gates 1 are compared with.")
      .def(
          "__call__",
          [](const OutputMetric& metric, const at::Tensor& output,
             const std::optional<at::Tensor>& target, const std::optional<at::Tensor>& distractor,
             const std::optional<at::Tensor>& position, const std::optional<at::Tensor>& dense) {
            return metric.values(output, metric.choose(output, {}, or_undefined(dense),
                                                       choice_of(target, distractor, position)));
          },
          py::arg("output"), py::kw_only(), py::arg("target") = py::none(),
          py::arg("distractor") = py::none(), py::arg("position") = py::none(),
          py::arg("dense") = py::none(), Unlocked(),
          "m of each sample, shape [batch]; classes or tokens that are not given are those that "
          "``output`` itself predicts.");
  m.def("make_output_metric", &make_output_metric, py::arg("name"), R"pbdoc(
An output metric by name.

Args:
    name: ``"class_margin"`` (predicted class minus runner-up, logits [batch, classes]),
        ``"token_log_odds"`` and ``"token_log_probability"`` (logits [batch, tokens, vocabulary] at
        one token, the last valid one if none is given), ``"logit"`` or ``"cosine_to_dense"``
        (vectors [batch, features]).
Raises:
    ValueError: for another name.
Example:
    >>> headkit.make_output_metric("logit")(torch.tensor([[1.0, 4.0]]), target=torch.tensor([0]))
    tensor([1.])
)pbdoc");
  m.def("output_metric_names", &output_metric_names, "The names that make_output_metric knows.");
}

void register_measuring(py::module_& m) {
  m.def(
      "measure_effects",
      [](GatedModel& model, const Batch& batch, const std::shared_ptr<OutputMetric>& metric,
         const std::string& ablation, const AnyGates& gates, const GatePolicy* policy,
         const std::optional<std::shared_ptr<DataSource>>& reference,
         const std::optional<at::Tensor>& target, const std::optional<at::Tensor>& distractor,
         const std::optional<at::Tensor>& position, bool toggles, int64_t path_nodes,
         int64_t pair_heads, int64_t game_heads, int64_t orders, const std::string& interaction,
         int64_t draws, double confidence, int64_t bootstrap, uint64_t seed, Progress progress) {
        const EffectOptions options{.ablation = ablation,
                                    .reference = reference ? reference->get() : nullptr,
                                    .draws = draws,
                                    .gates = gates_of(gates),
                                    .policy = policy,
                                    .choice = choice_of(target, distractor, position),
                                    .toggles = toggles,
                                    .path_nodes = path_nodes,
                                    .pair_heads = pair_heads,
                                    .game_heads = game_heads,
                                    .orders = orders,
                                    .interaction = interaction,
                                    .confidence = confidence,
                                    .bootstrap = bootstrap,
                                    .seed = seed,
                                    .progress = interruptible(std::move(progress))};
        if (metric != nullptr) return measure_effects(model, batch, *metric, options);
        return measure_effects(model, batch, *default_output_metric(model, batch), options);
      },
      py::arg("model"), py::arg("batch"), py::arg("metric"), py::kw_only(), py::arg("ablation"),
      py::arg("gates"), py::arg("policy"), py::arg("reference"), py::arg("target"),
      py::arg("distractor"), py::arg("position"), py::arg("toggles"), py::arg("path_nodes"),
      py::arg("pair_heads"), py::arg("game_heads"), py::arg("orders"), py::arg("interaction"),
      py::arg("draws"), py::arg("confidence"), py::arg("bootstrap"), py::arg("seed"),
      py::arg("progress"), Unlocked(), "See headkit.effects.");
  m.def("mean_effects", &mean_effects, py::arg("inputs"), py::kw_only(),
        py::arg("confidence") = 0.95, py::arg("bootstrap") = 1000, py::arg("seed") = 0, Unlocked(),
        R"pbdoc(
The mean of what ``effects`` measured over inputs, with intervals over inputs.

Args:
    inputs: list of InputEffects of one model, metric and ablation.
    confidence, bootstrap, seed: of the intervals of toggles, repair and pairs.
Returns:
    InputEffects: ``input`` is the number of inputs; what one of them lacks is None.
Raises:
    ValueError: for no inputs, or such that do not go together.
)pbdoc");
  m.def("shapley_interactions", &shapley_interactions, py::arg("worth"), Unlocked(), R"pbdoc(
Shapley interaction index of every pair of players.

Args:
    worth: of every set, float64, shape [2^N], N <= 20; as for ``shapley_values``.
Returns:
    torch.Tensor: float64, shape [N, N], symmetric, 0 on the diagonal.
Source:
    Grabisch, Roubens 1999.
Example:
    >>> worth = torch.tensor([0.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    >>> headkit.shapley_interactions(worth)[0, 1].item()
    -1.0
)pbdoc");
  py::class_<CausalGating>(m, "CausalGating", R"pbdoc(
What soft gates of heads that are pressed up and down settle at; a label holds for a data set, never
for one input.

Attributes:
    pressed_up, pressed_down: gates by fit, float64, shape [fits, layers, heads].
    facilitating, interfering, irrelevant: scores, mean over fits, float64, shape [layers, heads].
    labels: by layer and head "facilitating" (ablating it hurts), "interfering" (helps), "irrelevant"
        (changes nothing) or "inconsistent" (a failed fit, no label); "" = the head is gone.
    agreement: share of fits that give the same label by themselves, shape [layers, heads].
    inconsistent: heads with a failed fit.
    objective, examples: what the gates were fitted on.
)pbdoc")
      .def_readonly("pressed_up", &CausalGating::pressed_up)
      .def_readonly("pressed_down", &CausalGating::pressed_down)
      .def_readonly("facilitating", &CausalGating::facilitating)
      .def_readonly("interfering", &CausalGating::interfering)
      .def_readonly("irrelevant", &CausalGating::irrelevant)
      .def_readonly("labels", &CausalGating::labels)
      .def_readonly("agreement", &CausalGating::agreement)
      .def_property_readonly("inconsistent", &CausalGating::inconsistent)
      .def_readonly("objective", &CausalGating::objective)
      .def_readonly("examples", &CausalGating::examples)
      .def("to_json", &CausalGating::to_json);
  m.def(
      "causal_head_gating",
      [](GatedModel& model, const DataSource& data, const Objective& objective, int64_t fits,
         int64_t start_steps, int64_t pressed_steps, double pressure, double learning_rate,
         uint64_t seed, Progress progress) {
        return causal_head_gating(model, data, objective,
                                  {.fits = fits,
                                   .start_steps = start_steps,
                                   .pressed_steps = pressed_steps,
                                   .pressure = pressure,
                                   .learning_rate = learning_rate,
                                   .seed = seed,
                                   .progress = interruptible(std::move(progress))});
      },
      py::arg("model"), py::arg("data"), py::arg("objective"), py::kw_only(), py::arg("fits"),
      py::arg("start_steps"), py::arg("pressed_steps"), py::arg("pressure"),
      py::arg("learning_rate"), py::arg("seed"), py::arg("progress"), Unlocked(),
      "See headkit.causal_head_gating.");
  py::class_<FaithfulInteractions>(m, "FaithfulInteractions", R"pbdoc(
Faith-Shap of order two (FSII) of a game.

Attributes:
    singles: float64, shape [N].
    pairs: float64, shape [N, N], symmetric, 0 on the diagonal.
    explained: weighted share of the variance of the worth that these explain.
    sets: sets played, beside none and all; exact: whether those were all.
)pbdoc")
      .def_readonly("singles", &FaithfulInteractions::singles)
      .def_readonly("pairs", &FaithfulInteractions::pairs)
      .def_readonly("explained", &FaithfulInteractions::explained)
      .def_readonly("sets", &FaithfulInteractions::sets)
      .def_readonly("exact", &FaithfulInteractions::exact);
  m.def("faithful_interactions", &faithful_interactions, py::arg("worth"), py::arg("players"),
        py::kw_only(), py::arg("sets"), py::arg("seed") = 0, Unlocked(), R"pbdoc(
The weighted least squares fit of a game by singles and pairs that keeps v(none) and v(all).

Args:
    worth: a function of sets, float64 of 0 and 1, shape [n, players], that gives their worth [n].
    players: 2 or more.
    sets: to play at most; where these suffice for all the fit is exact.
    seed: of random sets, each of which is played with its complement.
Returns:
    FaithfulInteractions: singles and pairs.
Raises:
    ValueError: for fewer sets than the fit has numbers.
Source:
    Tsai, Yeh, Ravikumar 2023 (Faith-Shap).
Example:
    >>> fit = headkit.faithful_interactions(lambda sets: sets.prod(1), 2, sets=2)
    >>> round(fit.pairs[0, 1].item(), 6)
    1.0
)pbdoc");
}

}  // namespace

void register_effects(py::module_& m) {
  register_metrics(m);
  py::class_<ToggleEffect>(m, "ToggleEffect", R"pbdoc(
What happens to m when one head is replaced: m with the head minus m without it. Level L2.

Attributes:
    ablation: what stands in for the head: zero, mean or resample; of a head that is off what its
        closed gate adds, zero or compensation.
    frozen: the effect with every other gate as it was.
    redecided: the same where later gates are decided again; None = not computed.
    routing_mediated: redecided - frozen; None = not computed.
    interval: (lower, upper) of ``frozen`` over draws or inputs; None = there are none.
)pbdoc")
      .def_readonly("ablation", &ToggleEffect::ablation)
      .def_readonly("frozen", &ToggleEffect::frozen)
      .def_readonly("redecided", &ToggleEffect::redecided)
      .def_property_readonly("routing_mediated", &ToggleEffect::routing_mediated)
      .def_property_readonly("interval", [](const ToggleEffect& toggle) {
        return interval_of(toggle.lower, toggle.upper);
      });
  py::class_<HeadEffects>(m, "HeadEffects", R"pbdoc(
What one head contributes to m for one input; positive = it supports m, None = not computed.

Attributes:
    layer, head: place in the original model.
    gate, on: in the run that is explained; effects of a head that is off say what it would do on.
    write_norm, relative_write_norm: mean norm of what the head writes, and its share of the mean
        norm of the residual stream (L0).
    direct, direct_linearised: effect along the residual stream alone, final norm frozen; whether
        that is a linearisation (L1).
    gate_gradient: gate times dm/dgate, signed (L1).
    integrated_gate_gradient: the same along a path from no heads (L1).
    toggle: ToggleEffect (L2).
    repair: direct minus toggle.
    repair_interval: (lower, upper) over inputs, in a mean over these.
    shapley, shapley_error: value among the heads that were played, and its standard error (L2).
    flipped_gates: (HeadId, on) of the gates that changed when decided again.
    level: the strongest evidence here, "L0" to "L2".
)pbdoc")
      .def_property_readonly("layer", [](const HeadEffects& e) { return e.head.layer; })
      .def_property_readonly("head", [](const HeadEffects& e) { return e.head.head; })
      .def_readonly("gate", &HeadEffects::gate)
      .def_property_readonly("on", &HeadEffects::on)
      .def_readonly("write_norm", &HeadEffects::write_norm)
      .def_readonly("relative_write_norm", &HeadEffects::relative_write_norm)
      .def_readonly("direct", &HeadEffects::direct)
      .def_readonly("direct_linearised", &HeadEffects::direct_linearised)
      .def_readonly("gate_gradient", &HeadEffects::gate_gradient)
      .def_readonly("integrated_gate_gradient", &HeadEffects::integrated_gate_gradient)
      .def_readonly("toggle", &HeadEffects::toggle)
      .def_property_readonly("repair", &HeadEffects::repair)
      .def_property_readonly(
          "repair_interval",
          [](const HeadEffects& e) { return interval_of(e.repair_lower, e.repair_upper); })
      .def_readonly("shapley", &HeadEffects::shapley)
      .def_readonly("shapley_error", &HeadEffects::shapley_error)
      .def_property_readonly("flipped_gates",
                             [](const HeadEffects& e) {
                               std::vector<std::pair<HeadId, bool>> flipped;
                               for (const FlippedGate& each : e.flipped_gates) {
                                 flipped.emplace_back(each.head, each.on);
                               }
                               return flipped;
                             })
      .def_property_readonly("level", &HeadEffects::level);
  py::class_<PairEffect>(m, "PairEffect", R"pbdoc(
What two heads do to m together beyond what each does alone; > 0 complementary, < 0 redundant.

Attributes:
    a, b: HeadId.
    index: "synergy", "sii" or "fsii".
    value, ablation, interval: as in ToggleEffect.
)pbdoc")
      .def_readonly("a", &PairEffect::a)
      .def_readonly("b", &PairEffect::b)
      .def_readonly("index", &PairEffect::index)
      .def_readonly("value", &PairEffect::value)
      .def_readonly("ablation", &PairEffect::ablation)
      .def_property_readonly("interval",
                             [](const PairEffect& e) { return interval_of(e.lower, e.upper); });
  py::class_<InputEffects>(m, "InputEffects", R"pbdoc(
What the heads of one input contribute to one m.

Attributes:
    input: number of the example.
    metric, target, distractor: what m is.
    value, value_without_heads: m in the run that is explained, and with every gate 0.
    ablation, reference: what stands in for a head, and where that comes from.
    routing: how toggles were decided again: "measured", "by_construction" (no toggle moves gates
        that read the model's input only) or "".
    path_gap: what integrated gate gradients miss of value - value_without_heads.
    direct_residual: what direct effects and the other blocks miss of m.
    heads: HeadEffects of the heads that are there, by layer, then head.
    pairs: list of PairEffect.
    not_computed: quantity -> why it is missing.
)pbdoc")
      .def_static("from_json", &InputEffects::from_json, py::arg("text"))
      .def("to_json", &InputEffects::to_json)
      .def("record_patch", &InputEffects::record_patch,
           "JSON of the members of a decision record that this fills: ``output``, "
           "``heads[].effects``, ``pairs``.")
      .def_readonly("input", &InputEffects::input)
      .def_readonly("metric", &InputEffects::metric)
      .def_readonly("target", &InputEffects::target)
      .def_readonly("distractor", &InputEffects::distractor)
      .def_readonly("value", &InputEffects::value)
      .def_readonly("value_without_heads", &InputEffects::value_without_heads)
      .def_readonly("ablation", &InputEffects::ablation)
      .def_readonly("reference", &InputEffects::reference)
      .def_readonly("routing", &InputEffects::routing)
      .def_readonly("path_gap", &InputEffects::path_gap)
      .def_readonly("direct_residual", &InputEffects::direct_residual)
      .def_readonly("heads", &InputEffects::heads)
      .def_readonly("pairs", &InputEffects::pairs)
      .def_property_readonly("not_computed",
                             [](const InputEffects& e) {
                               std::map<std::string, std::string> missing;
                               for (const NotComputed& each : e.not_computed) {
                                 missing[each.quantity] = each.reason;
                               }
                               return missing;
                             })
      .def("__eq__", [](const InputEffects& a, const InputEffects& b) { return a == b; })
      .def("__repr__", [](const InputEffects& effects) { return text_of(effects); });
  register_measuring(m);
}

}  // namespace headkit::bindings
