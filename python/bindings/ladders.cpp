#include "ladders.h"

#include <headkit/core/error.h>
#include <headkit/gates/escalation.h>
#include <headkit/gates/ladder.h>
#include <headkit/gates/ladder_trace.h>
#include <headkit/gates/reactivation.h>
#include <headkit/gates/rung.h>
#include <headkit/pruners/make_ladder.h>
#include <headkit/pruners/sort_neurons.h>
#include <pybind11/functional.h>

#include <optional>
#include <utility>

#include "optional_tensor.h"
#include "python_progress.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

at::Tensor open_blocks(const std::optional<at::Tensor>& blocks) {
  if (!blocks) return {};
  HEADKIT_CHECK(blocks->logical_or(*blocks == 0).all().item<bool>(), "rung", "blocks of 0 and 1",
                "others");
  return blocks->to(at::kCPU, at::kBool).clone();
}

void register_ladder(py::module_& m) {
  py::class_<Rung>(m, "Rung", R"pbdoc(
One level of a ladder: heads and blocks of 32 neurons that run, and what stands in for the others.

Args:
    heads: HeadMask.
    blocks: bool or 0 and 1, [layers, blocks], true = the block runs; None = all run.
    dropped_output: what a closed head adds, [layers, heads, model_dim]; None = nothing.
    dropped_blocks: what a closed block adds, [layers, blocks, model_dim]; None = nothing.
Raises:
    ValueError: if these do not fit each other.
Example:
    >>> rung = headkit.Rung(headkit.HeadMask(torch.tensor([[1, 0]])))
    >>> rung.gates(torch.zeros(1, 3, 4)).heads.tolist()
    [[1.0, 0.0]]
)pbdoc")
      .def(py::init([](const HeadMask& heads, const std::optional<at::Tensor>& blocks,
                       const std::optional<at::Tensor>& dropped_output,
                       const std::optional<at::Tensor>& dropped_blocks) {
             Rung rung{heads, open_blocks(blocks), or_undefined(dropped_output),
                       or_undefined(dropped_blocks)};
             rung.check("rung");
             return rung;
           }),
           py::arg("heads"), py::kw_only(), py::arg("blocks") = py::none(),
           py::arg("dropped_output") = py::none(), py::arg("dropped_blocks") = py::none())
      .def_readonly("heads", &Rung::heads)
      .def_property_readonly("blocks", [](const Rung& r) { return or_none(r.blocks); })
      .def_property_readonly("dropped_output",
                             [](const Rung& r) { return or_none(r.dropped_output); })
      .def_property_readonly("dropped_blocks",
                             [](const Rung& r) { return or_none(r.dropped_blocks); })
      .def("gates", &Rung::gates, py::arg("hidden"),
           "GateSet of every input, in dtype and on the device of hidden states.")
      .def("to_json", &Rung::to_json)
      .def_static("from_json", &Rung::from_json, py::arg("text"));

  py::class_<Ladder>(m, "Ladder", R"pbdoc(
Nested rungs, lowest first: each runs all that the one below it runs. ``make_ladder`` builds one.

Args:
    rungs: at least two.
Raises:
    ValueError: naming what a rung lacks that the one below it runs.
Example:
    >>> low = headkit.Rung(headkit.HeadMask(torch.tensor([[1, 1], [1, 0]])))
    >>> ladder = headkit.Ladder([low, headkit.Rung(headkit.HeadMask.all(2, 2))])
    >>> len(ladder), ladder.shared_layers(1)
    (2, 1)
)pbdoc")
      .def(py::init<std::vector<Rung>>(), py::arg("rungs"))
      .def("__len__", &Ladder::size)
      .def(
          "__getitem__",
          [](const Ladder& ladder, int64_t index) {
            return ladder.rung(index < 0 ? index + ladder.size() : index);
          },
          py::arg("index"))
      .def_property_readonly("rungs", &Ladder::rungs)
      .def("shared_layers", &Ladder::shared_layers, py::arg("rung"),
           "Layers at the bottom in which a rung computes what the one below it does.")
      .def("to_json", &Ladder::to_json)
      .def_static("from_json", &Ladder::from_json, py::arg("text"))
      .def("__repr__", [](const Ladder& ladder) {
        std::string text = "<ladder of";
        for (const Rung& rung : ladder.rungs()) {
          text += c10::str(" ", rung.heads.count(), " heads");
          if (rung.blocks.defined()) {
            text += c10::str(" + ", rung.blocks.sum().item<int64_t>(), " blocks");
          }
          text += ",";
        }
        text.back() = '>';
        return text;
      });

  m.def("rung_flops", &rung_flops, py::arg("model"), py::arg("rung"), py::arg("tokens"),
        py::kw_only(), py::arg("first") = 0, py::arg("last") = -1, Unlocked(), R"pbdoc(
FLOPs of layers ``first`` .. ``last`` - 1 of a rung for one input of so many tokens.
)pbdoc");

  m.def(
      "make_ladder",
      [](GatedModel& model, std::vector<double> head_shares,
         const std::optional<HeadScores>& scores, const std::optional<std::vector<HeadId>>& order,
         const std::optional<at::Tensor>& neuron_scores, std::vector<double> block_shares,
         int64_t min_heads_per_layer, int64_t min_blocks_per_layer, int64_t common_layers,
         const DataSource* data, Progress progress) {
        LadderPlan plan;
        plan.head_shares = std::move(head_shares);
        if (scores) plan.scores = *scores;
        if (order) plan.order = *order;
        plan.neuron_scores = or_undefined(neuron_scores);
        plan.block_shares = std::move(block_shares);
        plan.min_heads_per_layer = min_heads_per_layer;
        plan.min_blocks_per_layer = min_blocks_per_layer;
        plan.common_layers = common_layers;
        plan.data = data;
        plan.progress = interruptible(std::move(progress));
        const py::gil_scoped_release release;
        return make_ladder(model, plan);
      },
      py::arg("model"), py::kw_only(), py::arg("head_shares"), py::arg("scores") = py::none(),
      py::arg("order") = py::none(), py::arg("neuron_scores") = py::none(),
      py::arg("block_shares") = std::vector<double>{}, py::arg("min_heads_per_layer") = 0,
      py::arg("min_blocks_per_layer") = 0, py::arg("common_layers") = 0, py::arg("data") = nullptr,
      py::arg("progress") = nullptr, "See headkit.make_ladder.");
  m.def("sort_neurons", &sort_neurons, py::arg("model"), py::arg("scores"), Unlocked(),
        "See headkit.sort_neurons.");
  m.def("order_neurons", &order_neurons, py::arg("model"), py::arg("order"), Unlocked(),
        "See headkit.order_neurons.");
}

void register_trace(py::module_& m) {
  py::class_<LadderTrace>(m, "LadderTrace", R"pbdoc(
What the rungs of a ladder say of calibration examples, N of them for R rungs.

Attributes:
    confidence: float64 [N, R - 1], what decides whether an example leaves each rung.
    changed, kl, loss: float64 [N, R], changed labels, KL to the dense output and cross entropy of
        the labels (None without) on each rung.
    heads: float64 [R], heads that an example runs in all to end on the rung.
    flops, dense_flops: float64 [N, R] and [N].
)pbdoc")
      .def_readonly("confidence", &LadderTrace::confidence)
      .def_readonly("changed", &LadderTrace::changed)
      .def_readonly("kl", &LadderTrace::kl)
      .def_property_readonly("loss", [](const LadderTrace& t) { return or_none(t.loss); })
      .def_readonly("heads", &LadderTrace::heads)
      .def_readonly("flops", &LadderTrace::flops)
      .def_readonly("dense_flops", &LadderTrace::dense_flops)
      .def("reached", &LadderTrace::reached, py::arg("thresholds"),
           "Int64 [N]: the rung that each example ends on, by one threshold or one a rung.")
      .def("mean_heads", &LadderTrace::mean_heads, py::arg("reached"))
      .def("flops_share", &LadderTrace::flops_share, py::arg("reached"),
           "FLOPs of all examples over those of the dense model.")
      .def(
          "threshold",
          [](const LadderTrace& trace, std::optional<double> mean_heads,
             std::optional<double> flops_share, const std::vector<double>& powers) {
            return ladder_lambda(trace, {mean_heads, flops_share}, powers);
          },
          py::arg("mean_heads") = py::none(), py::kw_only(), py::arg("flops_share") = py::none(),
          py::arg("powers") = std::vector<double>{}, Unlocked(), R"pbdoc(
The lambda at which these examples keep a budget: the closest mean that does not exceed it.

Args:
    mean_heads: heads run on average, re-runs included.
    flops_share: or else FLOPs, as a share of the dense model's.
    powers: of lambda, for the threshold of each rung but the top; empty = lambda for all.
)pbdoc")
      .def(
          "threshold_at_risk",
          [](const LadderTrace& trace, double risk, const std::string& loss, double bound,
             int64_t steps, const std::vector<double>& powers) {
            return ladder_lambda_at_risk(trace, {risk, loss, bound, steps}, powers);
          },
          py::arg("risk"), py::kw_only(), py::arg("loss") = "label", py::arg("bound") = 1.0,
          py::arg("steps") = 64, py::arg("powers") = std::vector<double>{}, Unlocked(), R"pbdoc(
ConformalResult: the lambda that promises a mean loss.

Args:
    risk: the mean loss that is promised.
    loss: ``"label"``, changed labels; ``"kl"`` to the dense output; ``"task"``, by how much the
        cross entropy of the labels grows.
    bound: losses are cut at it.
    steps: of the grid of lambda, 0 to 1.
)pbdoc");
}

void register_escalation(py::module_& m) {
  using Probe = std::shared_ptr<const LinearProbe>;
  const auto copied = [](const LinearProbe* probe) {
    return probe == nullptr ? Probe() : std::make_shared<LinearProbe>(*probe);
  };
  py::class_<Escalation, AdjustablePolicy, std::shared_ptr<Escalation>>(m, "Escalation", R"pbdoc(
Runs all inputs on the lowest rung of a ladder and the unsure ones again on the next, and so on.

Unsure: the confidence is below the threshold. Layers that compute the same on both rungs are not
repeated. Run it with ``hk.run``; it cannot be a gate, because it decides after the output.

Args:
    low: Ladder, or the HeadMask of its lower rung.
    high: beside a HeadMask, the HeadMask of the upper rung; None = all heads.
    threshold: in [0, 1]; 1 = everything runs on every rung.
    dropped_output: beside a HeadMask, what a closed head adds, [layers, heads, model_dim].
    signal: what the confidence is. ``"output_margin"``: tanh(margin / 2) of the output logits.
        ``"probe_confidence"``, ``"predicted_loss"`` (exp of its negative): of ``probe``.
    probe: LinearProbe, on the state that the rung's run has before the probe's layer.
    risk: promised mean loss, where the threshold was calibrated so.
    calibration: free text, what set the threshold.
Raises:
    ValueError: if a rung does not contain the one below it, or the settings do not fit.
Example:
    >>> low = headkit.HeadMask(torch.tensor([[1, 1], [0, 1]]))
    >>> headkit.Escalation(low, threshold=0.5).shared_layers
    1
)pbdoc")
      .def(
          py::init([copied](const Ladder& ladder, double threshold, std::string signal,
                            const LinearProbe* probe, std::optional<double> risk,
                            std::string calibration) {
            return std::make_shared<Escalation>(EscalationSettings{
                ladder, threshold, std::move(signal), copied(probe), risk, std::move(calibration)});
          }),
          py::arg("ladder"), py::kw_only(), py::arg("threshold"),
          py::arg("signal") = "output_margin", py::arg("probe") = nullptr,
          py::arg("risk") = py::none(), py::arg("calibration") = "")
      .def(py::init([](const HeadMask& low, const std::optional<HeadMask>& high, double threshold,
                       const std::optional<at::Tensor>& dropped_output, std::optional<double> risk,
                       std::string calibration) {
             EscalationSettings settings;
             settings.ladder =
                 ladder_of_masks({low, high.value_or(HeadMask::all(low.layers(), low.heads()))},
                                 or_undefined(dropped_output));
             settings.threshold = threshold;
             settings.risk = risk;
             settings.calibration = std::move(calibration);
             return std::make_shared<Escalation>(std::move(settings));
           }),
           py::arg("low"), py::arg("high") = py::none(), py::kw_only(), py::arg("threshold"),
           py::arg("dropped_output") = py::none(), py::arg("risk") = py::none(),
           py::arg("calibration") = "")
      .def_property_readonly("ladder", [](const Escalation& e) { return e.settings().ladder; })
      .def_property_readonly(
          "low", [](const Escalation& e) { return e.settings().ladder.rung(0).heads; },
          "HeadMask of the lowest rung.")
      .def_property_readonly(
          "high", [](const Escalation& e) { return e.settings().ladder.rungs().back().heads; },
          "HeadMask of the top rung.")
      .def_property_readonly(
          "dropped_output",
          [](const Escalation& e) { return or_none(e.settings().ladder.rung(0).dropped_output); },
          "What closed heads add on the lowest rung, or None.")
      .def_property_readonly("threshold",
                             [](const Escalation& e) { return e.settings().threshold; })
      .def_property_readonly("signal", [](const Escalation& e) { return e.settings().signal; })
      .def_property_readonly("risk", [](const Escalation& e) { return e.settings().risk; })
      .def_property_readonly(
          "shared_layers", [](const Escalation& e) { return e.settings().ladder.shared_layers(1); },
          "Layers that a first re-run does not repeat.")
      .def(
          "at", [](const Escalation& e, double lambda) { return e.at(lambda); }, py::arg("lambda_"),
          "The same policy with lambda as its threshold.")
      .def(
          "trace",
          [](const Escalation& escalation, GatedModel& model, const DataSource& data,
             Progress progress) {
            return trace_escalation(model, data, escalation.settings(),
                                    interruptible(std::move(progress)));
          },
          py::arg("model"), py::arg("data"), py::kw_only(), py::arg("progress") = nullptr,
          Unlocked(), "LadderTrace of calibration batches, from which thresholds are set.")
      .def(
          "with_threshold",
          [](const Escalation& escalation, double threshold, std::optional<double> risk,
             std::string calibration) {
            EscalationSettings settings = escalation.settings();
            settings.threshold = threshold;
            settings.risk = risk;
            settings.calibration = std::move(calibration);
            return std::make_shared<Escalation>(std::move(settings));
          },
          py::arg("threshold"), py::kw_only(), py::arg("risk") = py::none(),
          py::arg("calibration") = "", "The same ladder with another threshold.");
  m.def("output_confidence", &output_confidence, py::arg("logits"), Unlocked(), R"pbdoc(
tanh(margin / 2) of logits [batch, classes]: float64 [batch].

Example:
    >>> headkit.output_confidence(torch.tensor([[0.0, 0.0], [0.0, 100.0]])).tolist()
    [0.0, 1.0]
)pbdoc");
}

void register_reactivation(py::module_& m) {
  py::class_<Reactivation, AdjustablePolicy, std::shared_ptr<Reactivation>>(m, "Reactivation",
                                                                            R"pbdoc(
Runs the first layers on the lowest rung of a ladder; the state there decides how the rest runs.

A linear probe reads the state before its layer j and says how sure it is: an input goes on above
rung r if that confidence is below lambda ** powers[r]. Nothing is run twice. Lambda 1 runs the top
rung in all layers. Usable as gates and with ``hk.run``; ``fit_reactivation`` makes one from data.

Args:
    ladder: Ladder.
    probe: LinearProbe before a layer of 1 .. layers - 1.
    signal: ``"probe_confidence"``, or ``"predicted_loss"`` (exp of its negative).
    lambda_: in [0, 1].
    powers: at least 1, ascending, for each rung but the top; None = 1 for all.
    risk: promised mean loss, where lambda was calibrated so.
    calibration: free text, what set lambda.
Raises:
    ValueError: if the settings do not fit each other.
)pbdoc")
      .def(py::init([](const Ladder& ladder, const LinearProbe& probe, std::string signal,
                       double lambda, const std::optional<std::vector<double>>& powers,
                       std::optional<double> risk, std::string calibration) {
             return std::make_shared<Reactivation>(ReactivationSettings{
                 ladder, std::make_shared<LinearProbe>(probe), std::move(signal), lambda,
                 powers.value_or(std::vector<double>{}), risk, std::move(calibration)});
           }),
           py::arg("ladder"), py::arg("probe"), py::kw_only(),
           py::arg("signal") = "probe_confidence", py::arg("lambda_") = 0.5,
           py::arg("powers") = py::none(), py::arg("risk") = py::none(),
           py::arg("calibration") = "")
      .def_property_readonly("ladder", [](const Reactivation& r) { return r.settings().ladder; })
      .def_property_readonly("probe", [](const Reactivation& r) { return *r.settings().probe; })
      .def_property_readonly("signal", [](const Reactivation& r) { return r.settings().signal; })
      .def_property_readonly("lambda_", [](const Reactivation& r) { return r.settings().lambda; })
      .def_property_readonly("powers", [](const Reactivation& r) { return r.settings().powers; })
      .def_property_readonly("risk", [](const Reactivation& r) { return r.settings().risk; })
      .def(
          "at", [](const Reactivation& r, double lambda) { return r.at(lambda); },
          py::arg("lambda_"), "The same policy at another lambda.")
      .def("path", &Reactivation::path, py::arg("rung"),
           "Rung of what an input runs in all layers that goes on with a rung; len(ladder) = the "
           "top rung in all layers.")
      .def(
          "rungs_of",
          [](const Reactivation& r, const at::Tensor& hidden,
             const std::optional<at::Tensor>& attention_mask) {
            return r.rungs_of(hidden, or_undefined(attention_mask));
          },
          py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(),
          "Int64 [batch]: the rung that each input goes on with, from the state before layer j.")
      .def(
          "trace",
          [](const Reactivation& r, GatedModel& model, const DataSource& data, Progress progress) {
            return trace_reactivation(model, data, r.settings(),
                                      interruptible(std::move(progress)));
          },
          py::arg("model"), py::arg("data"), py::kw_only(), py::arg("progress") = nullptr,
          Unlocked(), "LadderTrace of calibration batches.");

  py::class_<FittedReactivation>(m, "ReactivationReport", R"pbdoc(
What fitting a reactivation found out, on the calibration examples.

Attributes:
    mean_heads, flops_share: what they cost; FLOPs as a share of the dense model's.
    changed, kl: share of changed labels and mean KL to the dense output.
    probe_accuracy: of the probe on the examples that were kept from fitting it.
    loss_explained: share of the variance of the log loss that the probe explains.
    trace: LadderTrace.
)pbdoc")
      .def_readonly("mean_heads", &FittedReactivation::mean_heads)
      .def_readonly("flops_share", &FittedReactivation::flops_share)
      .def_readonly("changed", &FittedReactivation::changed)
      .def_readonly("kl", &FittedReactivation::kl)
      .def_property_readonly("probe_accuracy",
                             [](const FittedReactivation& f) { return f.probe.accuracy; })
      .def_property_readonly("loss_explained",
                             [](const FittedReactivation& f) { return f.probe.loss_explained; })
      .def_readonly("trace", &FittedReactivation::trace);
  m.def(
      "fit_reactivation",
      [](GatedModel& model, const DataSource& train, const DataSource& calibration,
         const Ladder& ladder, int64_t layer, const std::string& signal,
         std::optional<double> mean_heads, std::optional<double> flops_share,
         const std::optional<std::string>& objective, Progress progress) {
        std::shared_ptr<Objective> loss;
        if (objective) loss = make_objective(*objective);
        ReactivationFit options;
        options.layer = layer;
        options.signal = signal;
        options.budget = {mean_heads, flops_share};
        options.objective = loss.get();
        options.progress = interruptible(std::move(progress));
        FittedReactivation fitted = [&] {
          const py::gil_scoped_release release;
          return fit_reactivation(model, train, calibration, ladder, options);
        }();
        const std::shared_ptr<Reactivation> policy = fitted.policy;
        return py::make_tuple(policy, std::move(fitted));
      },
      py::arg("model"), py::arg("train"), py::arg("calibration"), py::arg("ladder"), py::kw_only(),
      py::arg("layer"), py::arg("signal") = "probe_confidence", py::arg("mean_heads") = py::none(),
      py::arg("flops_share") = py::none(), py::arg("objective") = py::none(),
      py::arg("progress") = nullptr, "See headkit.fit_reactivation.");
}

}  // namespace

void register_ladders(py::module_& m) {
  register_ladder(m);
  register_trace(m);
  register_escalation(m);
  register_reactivation(m);
}

}  // namespace headkit::bindings
