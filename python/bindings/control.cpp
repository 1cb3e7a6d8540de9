#include <headkit/explain/record_file.h>
#include <headkit/gates/budget_controller.h>
#include <headkit/gates/energy_meter.h>
#include <headkit/gates/hysteresis_gate.h>
#include <headkit/gates/latency_model.h>
#include <headkit/gates/ood_score.h>
#include <headkit/gates/policy_runner.h>
#include <headkit/gates/shadow_audit.h>
#include <pybind11/functional.h>

#include <memory>
#include <optional>

#include "optional_tensor.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

void register_controller(py::module_& m) {
  py::class_<BudgetState>(m, "BudgetState", R"pbdoc(
What a controller knows at one moment.

Attributes:
    lambda_: applied, a grid value; ``continuous`` is what is behind it.
    measured: moving mean of the measurements; ``observations``: how many there were.
    unmet: the target would need a lambda below the floor.
    frozen: lambda stays what it is.
)pbdoc")
      .def_readonly("lambda_", &BudgetState::lambda)
      .def_readonly("continuous", &BudgetState::continuous)
      .def_readonly("measured", &BudgetState::measured)
      .def_readonly("observations", &BudgetState::observations)
      .def_readonly("unmet", &BudgetState::unmet)
      .def_readonly("frozen", &BudgetState::frozen);
  py::class_<BudgetController, std::shared_ptr<BudgetController>>(m, "BudgetController", R"pbdoc(
Steers lambda so that the mean cost of a sample meets a target, never below the calibrated floor.

Proportional-integral control in velocity form; lambda is kept continuous and applied rounded up to
the grid. ``BudgetController.for_calibration(calibration, target, unit="heads")`` takes grid, floor,
start and gain from a calibration.

Args:
    target: mean cost of a sample, in ``unit``.
    unit: of target and measurements: heads, flops, milliseconds, joules.
    grid: lambdas that may be applied, ascending to 1; empty = 0, 1/16, .., 1.
    floor: calibrated lambda.
    start: first lambda.
    gain: change of the cost with lambda, relative to the target.
    proportional, integral: Kp, Ki; None = 0.5 / gain, 0.2 / gain.
    dead_band: relative errors up to it move nothing.
    smoothing: weight of the newest measurement in their moving mean.
Raises:
    ValueError: for settings out of range.
Example:
    >>> controller = headkit.BudgetController(target=10, floor=0.25, start=0.5)
    >>> for _ in range(50):
    ...     _ = controller.observe(20 + 10 * controller.lambda_)
    >>> controller.lambda_, controller.state.unmet
    (0.25, True)
)pbdoc")
      .def(py::init([](double target, const std::string& unit, std::vector<double> grid,
                       double floor, double start, double gain, std::optional<double> proportional,
                       std::optional<double> integral, double dead_band, double smoothing) {
             return std::make_shared<BudgetController>(BudgetOptions{
                 unit, target, std::move(grid), floor, start, gain, proportional.value_or(-1),
                 integral.value_or(-1), dead_band, smoothing});
           }),
           py::kw_only(), py::arg("target"), py::arg("unit") = "heads",
           py::arg("grid") = std::vector<double>{}, py::arg("floor") = 0.0, py::arg("start") = 1.0,
           py::arg("gain") = 1.0, py::arg("proportional") = py::none(),
           py::arg("integral") = py::none(), py::arg("dead_band") = 0.02,
           py::arg("smoothing") = 0.3)
      .def_static(
          "for_calibration",
          [](const Calibration& calibration, double target, const std::string& unit,
             const LatencyModel* latency, const std::optional<HeadLayout>& layout, double tokens,
             int64_t batch, double watts) {
            if (latency == nullptr) {
              return std::make_shared<BudgetController>(budget_for(calibration, unit, target));
            }
            if (!layout)
              throw py::value_error(
                  "[budget_controller] expected a layout beside latency; found none");
            return std::make_shared<BudgetController>(
                budget_for(calibration, unit, target, {*latency, *layout, tokens, batch, watts}));
          },
          py::arg("calibration"), py::arg("target"), py::arg("unit") = "heads", py::kw_only(),
          py::arg("latency") = nullptr, py::arg("layout") = py::none(), py::arg("tokens") = 0.0,
          py::arg("batch") = 1, py::arg("watts") = 0.0, R"pbdoc(
A controller of a calibrated policy: grid and floor, start and gain by what it cost in calibration.

Args:
    calibration: Calibration.
    target: mean cost of a sample.
    unit: heads or flops; with ``latency`` also milliseconds, with ``watts`` also joules.
    latency: LatencyModel that turns heads and neurons into time.
    layout: HeadLayout of the model, ``tokens``: mean length, ``batch``: examples run together;
        beside ``latency``.
    watts: mean power while the model runs (``EnergyMeter.watts``).
Raises:
    ValueError: for a unit that needs what is not given.
)pbdoc")
      .def_property_readonly("lambda_", &BudgetController::lambda)
      .def_property_readonly("unit", [](const BudgetController& c) { return c.options().unit; })
      .def_property_readonly("target", [](const BudgetController& c) { return c.options().target; })
      .def_property_readonly("floor", [](const BudgetController& c) { return c.options().floor; })
      .def_property_readonly("gain", [](const BudgetController& c) { return c.options().gain; })
      .def_property_readonly("state", &BudgetController::state)
      .def("observe", &BudgetController::observe, py::arg("measured"),
           "Takes the mean cost of a sample of a finished batch; returns the next lambda.")
      .def("freeze", &BudgetController::freeze, py::arg("frozen") = true,
           "Keeps lambda, for runs that must be repeatable, or lets it go again.");
}

void register_hysteresis(py::module_& m) {
  py::class_<HysteresisGate, AdjustablePolicy, std::shared_ptr<HysteresisGate>>(m, "HysteresisGate",
                                                                                R"pbdoc(
A linear gate that does not flicker while one sequence grows: from the second decision on, open heads
close only below threshold - margin, closed ones open only from threshold + margin on. What was open
is kept in the state that ``start`` gives: ``hk.gates(model, gate, state=gate.start(), every=n)``.

Args:
    gate: LinearGate.
    margin: in units of its logits.
)pbdoc")
      .def(py::init([](std::shared_ptr<LinearGate> gate, double margin) {
             return std::make_shared<HysteresisGate>(std::move(gate), margin);
           }),
           py::arg("gate"), py::arg("margin"))
      .def_property_readonly("margin", &HysteresisGate::margin);
}

void register_audit(py::module_& m) {
  py::class_<AuditState>(m, "AuditState", R"pbdoc(
What an audit knows at one moment.

Attributes:
    action: none; step_up, one grid value more; dense, lambda 1.
    audited, alarms: losses noted and alarms raised, in all.
    watched, mean_loss: losses since the last alarm, and their mean.
    lower_bound: of the risk, at the last test.
)pbdoc")
      .def_readonly("action", &AuditState::action)
      .def_readonly("audited", &AuditState::audited)
      .def_readonly("alarms", &AuditState::alarms)
      .def_readonly("watched", &AuditState::watched)
      .def_readonly("mean_loss", &AuditState::mean_loss)
      .def_readonly("lower_bound", &AuditState::lower_bound);
  py::class_<ShadowAudit, std::shared_ptr<ShadowAudit>>(m, "ShadowAudit", R"pbdoc(
Watches a promise while it is used: a hashed share of the requests is run in full as well, and a
sequential test raises the alarm when their losses exceed the promised risk.

Args:
    risk: the promised mean loss.
    share: of requests that are audited.
    bound: no loss exceeds it.
    epsilon: chance of a false alarm, ever.
    salt: changes which requests are chosen.
Source:
    Hoeffding 1963, union over n = 2, 4, 8, ..
Example:
    >>> audit = headkit.ShadowAudit(risk=0.1)
    >>> [audit.observe(1) for _ in range(4)][-1], audit.state.action
    (True, 'step_up')
)pbdoc")
      .def(py::init([](double risk, double share, double bound, double epsilon, std::string salt) {
             return std::make_shared<ShadowAudit>(
                 AuditOptions{share, risk, bound, epsilon, std::move(salt)});
           }),
           py::kw_only(), py::arg("risk"), py::arg("share") = 0.01, py::arg("bound") = 1.0,
           py::arg("epsilon") = 0.05, py::arg("salt") = "headkit")
      .def("chosen", &ShadowAudit::chosen, py::arg("request_id"),
           "Whether this request is audited: by its id alone.")
      .def("observe", &ShadowAudit::observe, py::arg("loss"),
           "Notes a loss; returns whether it raised an alarm.")
      .def("lambda_at", &ShadowAudit::lambda, py::arg("lambda_"), py::arg("grid"),
           "What to apply where this lambda is wanted.")
      .def_property_readonly("state", &ShadowAudit::state);

  py::class_<OodScore, std::shared_ptr<OodScore>>(m, "OodScore", R"pbdoc(
How far an input lies from those seen: Mahalanobis distance of its pooled feature, and a limit that
inputs like the calibration ones exceed with chance at most epsilon. ``OodScore.fit`` makes one.

Example:
    >>> seen = torch.randn(200, 3, dtype=torch.float64)
    >>> score = headkit.OodScore.fit(seen[:100], seen[100:])
    >>> bool(score(torch.full((1, 3), 50.0, dtype=torch.float64)) > score.limit)
    True
)pbdoc")
      .def_static(
          "fit",
          [](const at::Tensor& features, const at::Tensor& calibration, double epsilon,
             double shrinkage) {
            return std::make_shared<OodScore>(
                OodScore::fit(features, calibration, epsilon, shrinkage));
          },
          py::arg("features"), py::arg("calibration"), py::kw_only(), py::arg("epsilon") = 0.01,
          py::arg("shrinkage") = 0.1, Unlocked(), R"pbdoc(
Args:
    features: float64 [n, D] (``pooled_state``), for mean and covariance.
    calibration: float64 [m, D] of other examples, for the limit.
    epsilon: share of such examples beyond the limit.
    shrinkage: share of the covariance replaced by its mean variance.
Raises:
    ValueError: for too few examples, with the number it would take.
)pbdoc")
      .def("__call__", &OodScore::operator(), py::arg("features"), Unlocked(),
           "Distances, float64 [batch].")
      .def_property_readonly("limit", &OodScore::limit)
      .def_property_readonly("epsilon", &OodScore::epsilon)
      .def("to_json", &OodScore::to_json)
      .def_static(
          "from_json",
          [](const std::string& text) {
            return std::make_shared<OodScore>(OodScore::from_json(text));
          },
          py::arg("text"));
}

void register_latency(py::module_& m) {
  py::class_<LatencyModel, std::shared_ptr<LatencyModel>>(m, "LatencyModel", R"pbdoc(
Measured milliseconds of a gated model over heads and neuron blocks that run, length and batch size.
``LatencyModel.measure`` makes one, ``save`` and ``load`` keep it.
)pbdoc")
      .def_static(
          "measure",
          [](GatedModel& model, const Batch& batch, std::vector<int64_t> tokens,
             std::vector<int64_t> batches, int64_t repeats, double seconds, bool blocks) {
            return std::make_shared<LatencyModel>(LatencyModel::measure(
                model, batch, {std::move(tokens), std::move(batches), repeats, seconds, blocks}));
          },
          py::arg("model"), py::arg("batch"), py::kw_only(),
          py::arg("tokens") = std::vector<int64_t>{16, 64, 256},
          py::arg("batches") = std::vector<int64_t>{1, 8}, py::arg("repeats") = 3,
          py::arg("seconds") = 0.8, py::arg("blocks") = false, Unlocked(), R"pbdoc(
Args:
    model: GatedModel.
    batch: any batch of it; rows and tokens are repeated or cut to size.
    tokens, batches: lengths and batch sizes to measure.
    repeats: each entry is the least of so many runs.
    seconds: what it may take; larger sizes are scaled from smaller ones then.
    blocks: also over blocks of neurons; needs ``attach(model, feed_forward=True)``.
)pbdoc")
      .def("milliseconds", &LatencyModel::milliseconds, py::arg("heads"), py::arg("blocks"),
           py::arg("tokens"), py::arg("batch"),
           "Of one batch; heads and blocks are means of a sample over all layers.")
      .def("tables", &LatencyModel::tables, py::arg("tokens"), py::arg("batch"),
           "LatencyTables for the static pruners, in seconds.")
      .def_property_readonly("key", &LatencyModel::key)
      .def_static("key_of", &LatencyModel::key_of, py::arg("model"), py::arg("batch"), Unlocked())
      .def_property_readonly("measured_sizes", &LatencyModel::measured_sizes)
      .def("to_json", &LatencyModel::to_json)
      .def("save", &LatencyModel::save, py::arg("path"))
      .def_static(
          "load",
          [](const std::string& path, const std::string& key) {
            return std::make_shared<LatencyModel>(LatencyModel::load(path, key));
          },
          py::arg("path"), py::arg("key"), "ValueError for measurements of another key.");
  py::class_<EnergyMeter>(m, "EnergyMeter", R"pbdoc(
Energy that the processor packages used, by RAPL.

Args:
    folder: of the power-capping interface.
Raises:
    RuntimeError: where there are no counters, or they cannot be read.
)pbdoc")
      .def(py::init<std::string>(), py::arg("folder") = "/sys/class/powercap")
      .def("joules", &EnergyMeter::joules, "Since the last call, or since the meter was made.")
      .def("watts", &EnergyMeter::watts, py::arg("run"), py::arg("seconds"),
           "Mean power while ``run()`` runs again and again for at least so many seconds.");
}

void register_runner(py::module_& m) {
  py::class_<RecordFile, std::shared_ptr<RecordFile>>(m, "RecordFile", R"pbdoc(
A file of JSON lines that grows line by line: an interrupt leaves whole lines, many threads may write.

Args:
    path: opened to append; a last line that was cut short is removed.
)pbdoc")
      .def(py::init<std::string>(), py::arg("path"))
      .def("write", &RecordFile::write, py::arg("lines"), Unlocked())
      .def_property_readonly("path", &RecordFile::path)
      .def_property_readonly("written", &RecordFile::written);
  py::class_<AuditToggle>(m, "AuditToggle", R"pbdoc(
What one head of an audited request was worth.

Attributes:
    row: place of the request in the batch.
    head: HeadId; ``ran``: whether it ran, and was toggled off; else on.
    change: loss of the toggled gates minus loss of those as they were; above 0 where the decision
        was right.
    logit: of the decision, or None.
)pbdoc")
      .def_readonly("row", &AuditToggle::row)
      .def_readonly("head", &AuditToggle::head)
      .def_readonly("ran", &AuditToggle::ran)
      .def_readonly("change", &AuditToggle::change)
      .def_readonly("logit", &AuditToggle::logit);
  py::class_<GovernedRun>(m, "GovernedRun", R"pbdoc(
A batch under a PolicyRunner.

Attributes:
    run: PolicyRun.
    lambda_: of the batch; inputs out of distribution ran at 1.
    cost: mean of a sample in the controller's unit; without one in heads.
    full: bool [batch], out of distribution.
    ood_score, audit_loss: float64 [batch] or None; NaN where not audited.
    toggles: list of AuditToggle.
    budget_unmet: the promise keeps the target from being met.
)pbdoc")
      .def_readonly("run", &GovernedRun::run)
      .def_readonly("lambda_", &GovernedRun::lambda)
      .def_readonly("cost", &GovernedRun::cost)
      .def_readonly("full", &GovernedRun::full)
      .def_property_readonly("ood_score", [](const GovernedRun& r) { return or_none(r.ood_score); })
      .def_property_readonly("audit_loss",
                             [](const GovernedRun& r) { return or_none(r.audit_loss); })
      .def_readonly("toggles", &GovernedRun::toggles)
      .def_readonly("budget_unmet", &GovernedRun::budget_unmet);
  m.def("toggle_correlation", &toggle_correlation, py::arg("toggles"), R"pbdoc(
Rank correlation of heads' logits with what they were worth, over the toggles of audited requests.

Args:
    toggles: list of AuditToggle, of one or many GovernedRuns.
Returns:
    float: Spearman's; NaN where fewer than two have logits or all are tied.
)pbdoc");
  py::class_<PolicyRunner, std::shared_ptr<PolicyRunner>>(m, "PolicyRunner", R"pbdoc(
Runs batches under a policy whose lambda a controller steers and an audit watches.

``govern(model, batch, request_ids=[])`` runs one batch and gives a GovernedRun.

Args:
    policy: AdjustablePolicy.
    lambda_: without a controller; a calibrated policy brings it up to its floor.
    controller: BudgetController.
    audit: ShadowAudit; ``audit_loss`` names its loss, ``audit_bound`` what bounds it.
    audit_toggles: of each audited request so many heads that ran, and so many that did not, are
        toggled one by one; each costs a run of the request.
    ood: OodScore; inputs beyond its limit run at lambda 1.
    records: RecordFile for the decision records.
    weights_sha256: ``model.fingerprint()``, for the records.
)pbdoc")
      .def(py::init([](std::shared_ptr<AdjustablePolicy> policy, double lambda,
                       std::shared_ptr<BudgetController> controller,
                       std::shared_ptr<ShadowAudit> audit, const std::string& audit_loss,
                       std::optional<double> audit_bound, int64_t audit_toggles,
                       std::shared_ptr<OodScore> ood, std::shared_ptr<RecordFile> records,
                       std::string weights_sha256) {
             return std::make_shared<PolicyRunner>(PolicyRunnerSettings{
                 std::move(policy), lambda, std::move(controller), std::move(audit),
                 make_output_loss(audit_loss, audit_bound), audit_toggles, std::move(ood),
                 std::move(records), std::move(weights_sha256)});
           }),
           py::arg("policy"), py::kw_only(), py::arg("lambda_") = 0.0,
           py::arg("controller") = nullptr, py::arg("audit") = nullptr,
           py::arg("audit_loss") = "flip", py::arg("audit_bound") = py::none(),
           py::arg("audit_toggles") = 0, py::arg("ood") = nullptr, py::arg("records") = nullptr,
           py::arg("weights_sha256") = "")
      .def("govern", &PolicyRunner::run, py::arg("model"), py::arg("batch"),
           py::arg("request_ids") = std::vector<std::string>{}, Unlocked(),
           "A GovernedRun of one batch.");
}

}  // namespace

void register_control(py::module_& m) {
  register_controller(m);
  register_hysteresis(m);
  register_audit(m);
  register_latency(m);
  register_runner(m);
}

}  // namespace headkit::bindings
