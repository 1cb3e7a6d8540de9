#include <headkit/gates/conformal.h>
#include <headkit/gates/gate_policy.h>
#include <headkit/gates/linear_gate.h>
#include <headkit/gates/mask_policy.h>
#include <headkit/gates/run_policy.h>
#include <pybind11/functional.h>

#include <optional>
#include <variant>

#include "ladders.h"
#include "optional_tensor.h"
#include "python_progress.h"
#include "registry.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;
using ObjectiveOrName = std::variant<std::string, std::shared_ptr<Objective>>;

std::shared_ptr<Objective> objective_from(const ObjectiveOrName& objective) {
  if (const auto* name = std::get_if<std::string>(&objective)) return make_objective(*name);
  return std::get<std::shared_ptr<Objective>>(objective);
}

void register_policy(py::module_& m) {
  py::class_<GatePolicy::State>(m, "PolicyState", R"pbdoc(
What changes from call to call of a policy: here, the records of its decisions.

Args:
    record: whether to keep decision records.
    layout: HeadLayout of the model, for the records' FLOPs; None = unknown.
)pbdoc")
      .def(py::init([](bool record, const std::optional<HeadLayout>& layout) {
             GatePolicy::State state;
             state.record = record;
             if (layout) state.layout = *layout;
             return state;
           }),
           py::kw_only(), py::arg("record") = false, py::arg("layout") = py::none())
      .def_readwrite("record", &GatePolicy::State::record)
      .def_readwrite("next_input", &GatePolicy::State::next_input)
      .def_property(
          "records",
          [](const GatePolicy::State& state) { return write_decision_records(state.records); },
          [](GatePolicy::State& state, const std::string& lines) {
            state.records = read_decision_records(lines);
          },
          "JSON lines, one an input.");

  py::class_<GateInput>(m, "GateInput", R"pbdoc(
What a policy sees when it is asked before a layer.

Args:
    layer: which.
    hidden: its input, shape [batch, tokens, model_dim].
    attention_mask: bool, shape [batch, tokens], true = token; None = no padding.
)pbdoc")
      .def(py::init([](int64_t layer, at::Tensor hidden, const std::optional<at::Tensor>& mask) {
             return GateInput{layer, std::move(hidden), or_undefined(mask)};
           }),
           py::arg("layer"), py::arg("hidden"), py::arg("attention_mask") = py::none())
      .def_readonly("layer", &GateInput::layer)
      .def_readonly("hidden", &GateInput::hidden)
      .def_property_readonly("attention_mask",
                             [](const GateInput& i) { return or_none(i.attention_mask); });

  py::class_<GatePolicy, std::shared_ptr<GatePolicy>>(m, "GatePolicy", R"pbdoc(
Decides at run time which heads run for each input.

``hk.gates(model, policy)`` puts one on a model; ``hk.run(model, batch, policy)`` runs a batch under
one and says what it cost.
)pbdoc")
      .def_property_readonly("name", &GatePolicy::name)
      .def("start", &GatePolicy::start, "A fresh PolicyState.")
      .def("check_model", &GatePolicy::check_model, py::arg("model"), Unlocked(),
           "ValueError if the policy was calibrated for another GatedModel.")
      .def("decide", &GatePolicy::decide, py::arg("input"), py::arg("state"), Unlocked())
      .def(
          "decide",
          [](const GatePolicy& policy, const at::Tensor& hidden,
             const std::optional<at::Tensor>& attention_mask, GatePolicy::State* state) {
            const std::unique_ptr<GatePolicy::State> own = policy.start();
            return policy.decide({0, hidden, or_undefined(attention_mask)},
                                 state == nullptr ? *own : *state);
          },
          py::arg("hidden"), py::arg("attention_mask") = py::none(), py::arg("state") = nullptr,
          Unlocked(), R"pbdoc(
Gates for every layer from the input of the first.

Args:
    hidden: shape [batch, tokens, model_dim].
    attention_mask: bool, shape [batch, tokens], true = token; None = no padding.
    state: a PolicyState, to get records.
Returns:
    GateSet: ``heads`` of shape [batch, layers, heads].
Raises:
    ValueError: on shapes that do not fit, and for escalation, which ``hk.run`` serves.
)pbdoc")
      .def(
          "decide_parts",
          [](const GatePolicy& policy, int64_t layer, const at::Tensor& hidden,
             const std::optional<at::Tensor>& attention_mask, GatePolicy::State* state,
             GatedModel* model) {
            const std::unique_ptr<GatePolicy::State> own = policy.start();
            std::vector<std::pair<at::Tensor, GateSet>> parts;
            for (GatePolicy::Part& part :
                 policy.decide_parts({layer, hidden, or_undefined(attention_mask), model},
                                     state == nullptr ? *own : *state)) {
              parts.emplace_back(std::move(part.samples), std::move(part.gates));
            }
            return parts;
          },
          py::arg("layer"), py::arg("hidden"), py::arg("attention_mask") = py::none(),
          py::arg("state") = nullptr, py::arg("model") = nullptr, Unlocked(), R"pbdoc(
Gates for layers from ``layer`` on, in parts of the batch that share them. ``model`` is
what runs under them, for policies that look at weights; ``state`` as for ``decide``.

Returns:
    list: of (places in the batch, int64; GateSet), each sample in one of them.
)pbdoc")
      .def_property_readonly("decision_layers", &GatePolicy::decision_layers,
                             "Layers before which the policy is asked, ascending, the first 0.")
      .def("to_json", &GatePolicy::to_json, "Everything ``policy_from_json`` needs, bit for bit.")
      .def_static("from_json", &policy_from_json, py::arg("text"))
      .def("__repr__", [](const GatePolicy& policy) { return "<policy " + policy.name() + ">"; });
  py::class_<AdjustablePolicy, GatePolicy, std::shared_ptr<AdjustablePolicy>>(m, "AdjustablePolicy",
                                                                              R"pbdoc(
A policy with one knob, lambda in [0, 1]: 1 runs all that the policy may run, smaller values never
run more. Calibration and the budget controller turn it.
)pbdoc")
      .def("at", &AdjustablePolicy::at, py::arg("lambda_"),
           "The same policy with its knob there; ValueError outside [0, 1].")
      .def("sweep", &AdjustablePolicy::sweep, py::arg("model"), py::arg("batch"),
           py::arg("lambdas"), Unlocked(), "A PolicyRun of the batch at each of these lambdas.");
  m.def("policy_from_json", &policy_from_json, py::arg("text"),
        "The policy that ``to_json`` wrote; ValueError on anything else.");

  m.def(
      "policies", [] { return registry_dict(policies()); },
      R"pbdoc(
The registry of policies: name -> definition, source, cost, needs, decides.

Returns:
    dict[str, dict[str, str]]: by registry name.
Example:
    >>> sorted(headkit.policies())
    ['calibrated', 'escalation', 'hysteresis', 'layer_gate', 'linear_gate', 'mask',
     'reactivation', 'second_look']
)pbdoc");
}

void register_mask_policy(py::module_& m) {
  py::class_<MaskPolicy, GatePolicy, std::shared_ptr<MaskPolicy>>(m, "MaskPolicy", R"pbdoc(
A static mask as a policy: the same heads for every input.

Args:
    mask: HeadMask.
    dropped_output: what a closed head adds instead of nothing, [layers, heads, model_dim].
Example:
    >>> policy = headkit.MaskPolicy(headkit.HeadMask(torch.tensor([[1, 0], [0, 1]])))
    >>> policy.decide(torch.zeros(1, 3, 4)).heads.tolist()
    [[[1.0, 0.0], [0.0, 1.0]]]
)pbdoc")
      .def(py::init([](const HeadMask& mask, const std::optional<at::Tensor>& dropped_output) {
             return std::make_shared<MaskPolicy>(mask, or_undefined(dropped_output));
           }),
           py::arg("mask"), py::kw_only(), py::arg("dropped_output") = py::none())
      .def_property_readonly("mask", &MaskPolicy::mask)
      .def_property_readonly("dropped_output",
                             [](const MaskPolicy& p) { return or_none(p.dropped_output()); });
}

void register_linear_gate(py::module_& m) {
  py::class_<LinearGate, AdjustablePolicy, std::shared_ptr<LinearGate>>(m, "LinearGate", R"pbdoc(
One decision for all layers before the first: z = W (u - mu) + s, on where z >= threshold.

u is the mean of the layer-0 input over valid tokens. With W = 0 the gate is static pruning by s.
``fit_linear_gate`` makes one from data.

Args:
    weight: W, float64 [layers, heads, model_dim].
    reference: mu, float64 [model_dim].
    static_logits: s, float64 [layers, heads].
    threshold: a head runs if its logit is at least this.
    fixed: int8 [layers, heads]; 0 = decided, 1 = always on, -1 = pruned; None = all decided.
    min_heads: every input runs at least so many heads.
    dropped_output: what a closed head adds instead of nothing, [layers, heads, model_dim].
    calibration: free text, what set the threshold.
Example:
    >>> gate = headkit.LinearGate(
    ...     weight=torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64),
    ...     reference=torch.zeros(1, dtype=torch.float64),
    ...     static_logits=torch.zeros(1, 2, dtype=torch.float64),
    ...     threshold=0.5,
    ... )
    >>> gate.decide(torch.tensor([[[3.0]], [[-3.0]]])).heads.tolist()
    [[[1.0, 0.0]], [[0.0, 1.0]]]
)pbdoc")
      .def(py::init([](at::Tensor weight, at::Tensor reference, at::Tensor static_logits,
                       double threshold, const std::optional<at::Tensor>& fixed, int64_t min_heads,
                       const std::optional<at::Tensor>& dropped_output, std::string calibration) {
             return std::make_shared<LinearGate>(LinearGateSettings{
                 std::move(weight), std::move(reference), std::move(static_logits),
                 or_undefined(fixed), threshold, min_heads, or_undefined(dropped_output),
                 std::move(calibration)});
           }),
           py::kw_only(), py::arg("weight"), py::arg("reference"), py::arg("static_logits"),
           py::arg("threshold"), py::arg("fixed") = py::none(), py::arg("min_heads") = 1,
           py::arg("dropped_output") = py::none(), py::arg("calibration") = "")
      .def_property_readonly("weight", [](const LinearGate& g) { return g.settings().weight; })
      .def_property_readonly("reference",
                             [](const LinearGate& g) { return g.settings().reference; })
      .def_property_readonly("static_logits",
                             [](const LinearGate& g) { return g.settings().static_logits; })
      .def_property_readonly("fixed", [](const LinearGate& g) { return g.settings().fixed; })
      .def_property_readonly("threshold",
                             [](const LinearGate& g) { return g.settings().threshold; })
      .def_property_readonly("min_heads",
                             [](const LinearGate& g) { return g.settings().min_heads; })
      .def_property_readonly(
          "dropped_output",
          [](const LinearGate& g) { return or_none(g.settings().dropped_output); })
      .def(
          "logits",
          [](const LinearGate& gate, const at::Tensor& hidden,
             const std::optional<at::Tensor>& attention_mask) {
            return gate.logits(hidden, or_undefined(attention_mask));
          },
          py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(),
          "z, float64 [batch, layers, heads].")
      .def("open_heads", &LinearGate::open_heads, py::arg("logits"), Unlocked(),
           "0 or 1 for logits [batch, layers, heads]: threshold, fixed heads and floor.")
      .def(
          "with_dropped_output",
          [](const LinearGate& gate, const std::optional<at::Tensor>& dropped_output) {
            return std::make_shared<LinearGate>(
                gate.with_dropped_output(or_undefined(dropped_output)));
          },
          py::arg("dropped_output"), "The same gate with another compensation.")
      .def(
          "with_mean_heads",
          [](const LinearGate& gate, const at::Tensor& logits, double mean_heads) {
            return std::make_shared<LinearGate>(gate.with_mean_heads(logits, mean_heads));
          },
          py::arg("logits"), py::arg("mean_heads"), Unlocked(),
          "The same gate, its threshold set so that these inputs run so many heads on average.");

  py::class_<LinearGateReport>(m, "LinearGateReport", R"pbdoc(
What fitting a linear gate found out.

Attributes:
    ridge: penalty taken, relative to the mean feature variance; inf = W is 0, the gate is static.
    explained: share of the targets' variance over inputs that W explains, by cross-validation.
    input_variance: share of the variance of z that is due to the input.
    mean_heads: on the calibration inputs.
    contested: heads that some inputs open and others close.
    fitted_examples, calibration_examples: how many there were.
)pbdoc")
      .def_readonly("fitted_examples", &LinearGateReport::fitted_examples)
      .def_readonly("calibration_examples", &LinearGateReport::calibration_examples)
      .def_readonly("ridge", &LinearGateReport::ridge)
      .def_readonly("explained", &LinearGateReport::explained)
      .def_readonly("input_variance", &LinearGateReport::input_variance)
      .def_readonly("mean_heads", &LinearGateReport::mean_heads)
      .def_readonly("contested", &LinearGateReport::contested);

  m.def(
      "fit_linear_gate",
      [](GatedModel& model, const DataSource& train, const DataSource& calibration,
         double mean_heads, const ObjectiveOrName& objective,
         const std::optional<HeadScores>& scores, const std::optional<at::Tensor>& dropped_output,
         std::optional<double> ridge, double huber, double rank_weight, int64_t min_heads,
         double settled_share, Progress progress) {
        LinearGateFit options;
        options.mean_heads = mean_heads;
        options.dropped_output = or_undefined(dropped_output);
        if (scores) options.scores = *scores;
        options.ridge = ridge.value_or(-1);
        options.huber = huber;
        options.rank_weight = rank_weight;
        options.min_heads = min_heads;
        options.settled_share = settled_share;
        options.progress = interruptible(std::move(progress));
        const std::shared_ptr<Objective> loss = objective_from(objective);
        FittedLinearGate fitted = [&] {
          const py::gil_scoped_release release;
          return fit_linear_gate(model, train, calibration, *loss, options);
        }();
        return py::make_tuple(fitted.gate, fitted.report);
      },
      py::arg("model"), py::arg("train"), py::arg("calibration"), py::kw_only(),
      py::arg("mean_heads"), py::arg("objective") = "cross_entropy", py::arg("scores") = py::none(),
      py::arg("dropped_output") = py::none(), py::arg("ridge") = py::none(),
      py::arg("huber") = 1.345, py::arg("rank_weight") = 0.0, py::arg("min_heads") = 1,
      py::arg("settled_share") = 0.005, py::arg("progress") = nullptr, R"pbdoc(
Fit a linear gate to the gate gradients of single examples, and its threshold to a mean.

Args:
    model: GatedModel; unchanged.
    train: labelled batches that W is fitted on.
    calibration: other batches, for the threshold.
    mean_heads: heads that run on average over ``calibration``.
    objective: a loss with a gradient at the dense model.
    scores: HeadScores behind the static logits; None = the mean of the gradients.
    dropped_output: compensation, [layers, heads, model_dim].
    ridge: penalty relative to the mean feature variance; None = by generalised cross-validation.
    huber: robust loss beyond so many robust deviations; 0 = least squares.
    rank_weight: of the pairwise rank loss beside the squares; 0 = none.
    min_heads: heads that every input runs at least.
    settled_share: heads opened for less than this share of the inputs are pruned, for more than
        1 minus it always on.
    progress: called with (batches done, batches in all or -1).
Returns:
    tuple: LinearGate, LinearGateReport.
Raises:
    ValueError: for an objective whose first-order scores are zero, or data that do not fit.
Source:
    Targets after Akhauri et al. 2024; Golub, Heath, Wahba 1979; Huber 1964.
)pbdoc");
}

void register_conformal(py::module_& m) {
  py::class_<ConformalResult>(m, "ConformalResult", R"pbdoc(
Where conformal risk control set the threshold.

Attributes:
    threshold: the grid value taken (lambda).
    index: its place in the grid.
    empirical_risk, corrected_risk: mean loss of the calibration samples there, and with the
        correction for their number.
    samples: how many there were.
)pbdoc")
      .def_readonly("threshold", &ConformalResult::lambda)
      .def_readonly("index", &ConformalResult::index)
      .def_readonly("empirical_risk", &ConformalResult::empirical_risk)
      .def_readonly("corrected_risk", &ConformalResult::corrected_risk)
      .def_readonly("samples", &ConformalResult::samples);
  m.def(
      "conformal_risk_control",
      [](const at::Tensor& losses, const at::Tensor& grid, double risk, double bound) {
        return conformal_risk_control(losses, grid, {risk, bound});
      },
      py::arg("losses"), py::arg("grid"), py::kw_only(), py::arg("risk") = 0.05,
      py::arg("bound") = 1.0, Unlocked(), R"pbdoc(
The smallest grid value whose loss on a new sample is at most ``risk`` on average.

Args:
    losses: float64 [samples, grid], in [0, bound].
    grid: float64, ascending, fixed before the losses were seen; the last value is dense.
    risk: the mean loss that is promised.
    bound: no loss exceeds it.
Raises:
    ValueError: with the needed number of samples if there are too few.
Source:
    Angelopoulos, Bates, Fisch, Lei, Schuster 2024 (arXiv 2208.02814).
Example:
    >>> losses = torch.zeros(19, 3, dtype=torch.float64)
    >>> grid = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    >>> headkit.conformal_risk_control(losses, grid, risk=0.05).threshold
    0.0
)pbdoc");
  m.def(
      "conformal_samples_needed",
      [](double risk, double bound) { return conformal_samples_needed({risk, bound}); },
      py::arg("risk"), py::arg("bound") = 1.0, R"pbdoc(
Fewest calibration samples that can promise ``risk``.

Example:
    >>> headkit.conformal_samples_needed(0.05)
    19
)pbdoc");
}

void register_run(py::module_& m) {
  py::class_<PolicyRun>(m, "PolicyRun", R"pbdoc(
What came out of a run under a policy, and what it cost.

Attributes:
    output: as the model's head gives it, in batch order.
    gates: GateSet; ``heads`` [batch, layers, heads], and ``blocks`` where gated, are the gates
        behind each output. Compensation that differs between samples is left out.
    heads_run: int64 [batch], heads computed, re-runs included.
    kv_heads_run: int64 [batch], KV heads computed, re-runs included.
    layers_run: int64 [batch], layers computed, re-runs included.
    neurons_run: int64 [batch], neurons of feed-forward blocks computed, re-runs included.
    decision_flops: float64 [batch], of decisions that cost much; None = 0.
    records: JSON lines, one an example, where asked for (``read_decision_records``).
)pbdoc")
      .def_readonly("output", &PolicyRun::output)
      .def_readonly("gates", &PolicyRun::gates)
      .def_readonly("heads_run", &PolicyRun::heads_run)
      .def_readonly("kv_heads_run", &PolicyRun::kv_heads_run)
      .def_readonly("layers_run", &PolicyRun::layers_run)
      .def_readonly("neurons_run", &PolicyRun::neurons_run)
      .def_property_readonly("decision_flops",
                             [](const PolicyRun& run) { return or_none(run.decision_flops); })
      .def_property_readonly(
          "records", [](const PolicyRun& run) { return write_decision_records(run.records); })
      .def(
          "flops",
          [](const PolicyRun& run, const HeadLayout& layout, const at::Tensor& tokens) {
            return run_flops(layout, run, tokens);
          },
          py::arg("layout"), py::arg("tokens"),
          "Useful FLOPs of the whole encoder for each example, float64 [batch].");
  m.def("join_gates", &join_gates, py::arg("before"), py::arg("after"), py::arg("layer"),
        py::arg("samples"), R"pbdoc(
GateSet of ``samples`` samples: layers below ``layer`` of one, the others of another.

Example:
    >>> first = headkit.GateSet(torch.zeros(2, 2))
    >>> headkit.join_gates(first, headkit.GateSet(), 1, 1).heads.tolist()
    [[[0.0, 0.0], [1.0, 1.0]]]
)pbdoc");
  m.def(
      "run_policy",
      [](GatedModel& model, const Batch& batch, const GatePolicy& policy, bool record,
         int64_t first_input, std::string weights_sha256) {
        return run_policy(model, batch, policy, {record, first_input, std::move(weights_sha256)});
      },
      py::arg("model"), py::arg("batch"), py::arg("policy"), py::kw_only(),
      py::arg("record") = false, py::arg("first_input") = 0, py::arg("weights_sha256") = "",
      Unlocked(), R"pbdoc(
Run a batch under any policy, escalation included.

Args:
    model: GatedModel.
    batch: name -> tensor.
    policy: GatePolicy.
    record: ask for decision records.
    first_input: number of the first example, for the records.
    weights_sha256: ``model.fingerprint()``, for the records.
Returns:
    PolicyRun: outputs, gates, heads and layers computed, records.
)pbdoc");
}

}  // namespace

void register_gates(py::module_& m) {
  register_policy(m);
  register_mask_policy(m);
  register_linear_gate(m);
  register_conformal(m);
  register_ladders(m);
  register_run(m);
}

}  // namespace headkit::bindings
