#include <headkit/gates/calibrated_policy.h>
#include <headkit/gates/isotonic.h>
#include <headkit/gates/learn_then_test.h>
#include <pybind11/functional.h>

#include <optional>
#include <variant>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

void register_isotonic(py::module_& m) {
  py::class_<IsotonicMap>(m, "IsotonicMap", R"pbdoc(
A nondecreasing piecewise linear function of one number.

Args:
    centres: ascending.
    values: nondecreasing, one for each centre.
Example:
    >>> z = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    >>> fitted = headkit.IsotonicMap.fit(z, torch.tensor([0.0, 4.0, 2.0], dtype=torch.float64))
    >>> fitted.values, fitted(9.0)
    ([0.0, 3.0], 3.0)
)pbdoc")
      .def(py::init<std::vector<double>, std::vector<double>>(), py::arg("centres"),
           py::arg("values"))
      .def_static(
          "fit",
          [](const at::Tensor& z, const at::Tensor& target,
             const std::optional<at::Tensor>& weight) {
            return IsotonicMap::fit(z, target, or_undefined(weight));
          },
          py::arg("z"), py::arg("target"), py::arg("weight") = py::none(), Unlocked(),
          "Least squares by pooling adjacent violators, float64 [n] each.")
      .def_property_readonly("centres", &IsotonicMap::centres)
      .def_property_readonly("values", &IsotonicMap::values)
      .def("__call__", &IsotonicMap::operator(), py::arg("z"));

  py::class_<HeadIsotonic>(m, "HeadIsotonic", R"pbdoc(
One isotonic map for each head: logits of different heads and layers become comparable.

``HeadIsotonic.fit(logits, importance, shrinkage=50)`` fits them; calling one gives importance.

Example:
    >>> logits = torch.randn(40, 2, 3, dtype=torch.float64)
    >>> maps = headkit.HeadIsotonic.fit(logits, logits.exp())
    >>> bool((maps(logits).sort(0).values == maps(logits.sort(0).values)).all())
    True
)pbdoc")
      .def_static("fit", &HeadIsotonic::fit, py::arg("logits"), py::arg("importance"),
                  py::arg("shrinkage") = 50, Unlocked(), R"pbdoc(
Fit each head's own map and draw it towards that of its layer.

Args:
    logits: float64 [n, layers, heads].
    importance: what they should say, same shape.
    shrinkage: samples at which a head's own map and its layer's count the same.
Raises:
    ValueError: for no samples, NaN, or shapes that do not fit.
)pbdoc")
      .def("__call__", &HeadIsotonic::operator(), py::arg("logits"), Unlocked(),
           "Importance, float64 [batch, layers, heads].")
      .def("order", &HeadIsotonic::order, py::arg("logits"), Unlocked(),
           "Heads (layer * heads + head) from least to most important, int64; strict.")
      .def("map", &HeadIsotonic::map, py::arg("layer"), py::arg("head"))
      .def("to_json", &HeadIsotonic::to_json)
      .def_static("from_json", &HeadIsotonic::from_json, py::arg("text"));
}

void register_learn_then_test(py::module_& m) {
  py::class_<LearnThenTestResult>(m, "LearnThenTestResult", R"pbdoc(
Where Learn then Test set the threshold.

Attributes:
    threshold: the grid value taken (lambda).
    index: its place in the grid.
    empirical_risk: mean loss of the calibration samples there.
    p_value: of the test passed there; 0 at the last value, which needs none.
    samples: how many there were.
)pbdoc")
      .def_readonly("threshold", &LearnThenTestResult::lambda)
      .def_readonly("index", &LearnThenTestResult::index)
      .def_readonly("empirical_risk", &LearnThenTestResult::empirical_risk)
      .def_readonly("p_value", &LearnThenTestResult::p_value)
      .def_readonly("samples", &LearnThenTestResult::samples);
  m.def(
      "learn_then_test",
      [](const at::Tensor& losses, const at::Tensor& grid, double risk, double delta,
         double bound) {
        return learn_then_test(losses, grid, {.risk = risk, .bound = bound, .delta = delta});
      },
      py::arg("losses"), py::arg("grid"), py::kw_only(), py::arg("risk") = 0.05,
      py::arg("delta") = 0.1, py::arg("bound") = 1.0, Unlocked(), R"pbdoc(
The smallest grid value that testing from dense downwards reaches: risk <= ``risk`` for sure up to
``delta``, for losses that need not fall with lambda.

Args:
    losses: float64 [samples, grid], in [0, bound].
    grid: float64, ascending, fixed before the losses were seen; the last value is dense.
    risk: the mean loss that is promised.
    delta: chance that the promise is broken.
    bound: no loss exceeds it.
Raises:
    ValueError: with the needed number of samples if there are too few.
Source:
    Angelopoulos, Bates, Candes, Jordan, Lei 2021 (arXiv 2110.01052).
Example:
    >>> losses = torch.zeros(45, 3, dtype=torch.float64)
    >>> grid = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    >>> headkit.learn_then_test(losses, grid, risk=0.05).threshold
    0.0
)pbdoc");
  m.def(
      "learn_then_test_samples_needed",
      [](double risk, double delta, double bound) {
        return learn_then_test_samples_needed({.risk = risk, .bound = bound, .delta = delta});
      },
      py::arg("risk"), py::arg("delta") = 0.1, py::arg("bound") = 1.0, R"pbdoc(
Fewest calibration samples that can promise ``risk`` by ``learn_then_test``.

Example:
    >>> headkit.learn_then_test_samples_needed(0.05)
    45
)pbdoc");
}

void register_calibrations(py::module_& m) {
  py::class_<PolicyTrace>(m, "PolicyTrace", R"pbdoc(
What a policy loses and costs at each lambda of a grid, example by example.

Attributes:
    grid: lambdas, the last one 1.
    losses, heads_run, flops: float64 [examples, grid].
    drift: float64 [examples], loss at lambda 1 against the model with nothing closed.
    tokens, task: int64 [examples].
    loss, bound: name of the loss, and what it cannot exceed.
    model, policy, data: identities.
)pbdoc")
      .def_readonly("grid", &PolicyTrace::grid)
      .def_readonly("losses", &PolicyTrace::losses)
      .def_readonly("heads_run", &PolicyTrace::heads_run)
      .def_readonly("flops", &PolicyTrace::flops)
      .def_readonly("drift", &PolicyTrace::drift)
      .def_readonly("tokens", &PolicyTrace::tokens)
      .def_readonly("task", &PolicyTrace::task)
      .def_readonly("loss", &PolicyTrace::loss)
      .def_readonly("bound", &PolicyTrace::bound)
      .def_readonly("model", &PolicyTrace::model)
      .def_readonly("policy", &PolicyTrace::policy)
      .def_readonly("data", &PolicyTrace::data)
      .def("select", &PolicyTrace::select, py::arg("index"), "The same of these examples.");

  py::class_<CalibrationBucket>(m, "CalibrationBucket", R"pbdoc(
The part of the data for which a promise was made.

Attributes:
    task, min_tokens, max_tokens: which examples; max_tokens None = any length.
    samples: calibration examples in it.
    lambda_: the grid value taken.
    empirical_risk, evidence: mean loss there, and the corrected risk (crc) or p-value (ltt).
)pbdoc")
      .def_readonly("task", &CalibrationBucket::task)
      .def_readonly("min_tokens", &CalibrationBucket::min_tokens)
      .def_readonly("max_tokens", &CalibrationBucket::max_tokens)
      .def_readonly("samples", &CalibrationBucket::samples)
      .def_readonly("lambda_", &CalibrationBucket::lambda)
      .def_readonly("empirical_risk", &CalibrationBucket::empirical_risk)
      .def_readonly("evidence", &CalibrationBucket::evidence);

  py::class_<Calibration>(m, "Calibration", R"pbdoc(
What was promised, of what, and by which data. ``hk.calibrate`` makes one.

Attributes:
    lambda_: keeps the promise in every bucket.
    buckets: list of CalibrationBucket.
    method, loss, bound, risk, delta: what was promised.
    grid, mean_loss, mean_heads, mean_flops: means of all examples at each lambda.
    drift: mean loss of lambda 1 against the model with nothing closed.
    model, policy, data: identities; ``id`` is that of the calibration.
)pbdoc")
      .def_readonly("lambda_", &Calibration::lambda)
      .def_readonly("buckets", &Calibration::buckets)
      .def_readonly("method", &Calibration::method)
      .def_readonly("loss", &Calibration::loss)
      .def_readonly("bound", &Calibration::bound)
      .def_readonly("risk", &Calibration::risk)
      .def_readonly("delta", &Calibration::delta)
      .def_readonly("grid", &Calibration::grid)
      .def_readonly("mean_loss", &Calibration::mean_loss)
      .def_readonly("mean_heads", &Calibration::mean_heads)
      .def_readonly("mean_flops", &Calibration::mean_flops)
      .def_readonly("drift", &Calibration::drift)
      .def_readonly("model", &Calibration::model)
      .def_readonly("policy", &Calibration::policy)
      .def_readonly("data", &Calibration::data)
      .def_property_readonly("id", &Calibration::id)
      .def("lambda_of", &Calibration::lambda_of, py::arg("tokens"), py::arg("task") = 0,
           "Lambda of the bucket of such an example; the largest of all for another task.")
      .def("at_least", &Calibration::at_least, py::arg("wanted"),
           "The smallest grid value that is neither below this nor below the calibrated one.")
      .def("check_model", &Calibration::check_model, py::arg("model"), Unlocked(),
           "ValueError unless this GatedModel was calibrated.")
      .def("check_policy", &Calibration::check_policy, py::arg("policy"), Unlocked(),
           "ValueError unless this policy was calibrated, at whatever lambda.")
      .def("check_data", &Calibration::check_data, py::arg("data"), Unlocked(),
           "ValueError unless these batches calibrated it.")
      .def("to_json", &Calibration::to_json)
      .def_static("from_json", &Calibration::from_json, py::arg("text"));

  py::class_<CalibratedPolicy, AdjustablePolicy, std::shared_ptr<CalibratedPolicy>>(
      m, "CalibratedPolicy", R"pbdoc(
A policy with its calibration: lambda takes grid values at or above the calibrated one only.

Args:
    policy: the policy that was calibrated.
    calibration: Calibration of it.
    lambda_: to start at, brought up to the grid and the floor.
Raises:
    ValueError: if the calibration is of another policy.
)pbdoc")
      .def(py::init([](std::shared_ptr<AdjustablePolicy> policy, const Calibration& calibration,
                       double lambda) {
             return std::make_shared<CalibratedPolicy>(std::move(policy), calibration, lambda);
           }),
           py::arg("policy"), py::arg("calibration"), py::kw_only(), py::arg("lambda_") = 0.0)
      .def_property_readonly("calibration", &CalibratedPolicy::calibration)
      .def_property_readonly("lambda_", &CalibratedPolicy::lambda, "What is applied.");

  m.def(
      "trace_policy",
      [](GatedModel& model, const AdjustablePolicy& policy, const DataSource& data,
         const std::string& loss, std::optional<double> bound, std::shared_ptr<Objective> task,
         std::vector<double> grid, std::string task_field, Progress progress) {
        const OutputLoss made = make_output_loss(loss, bound, std::move(task));
        TraceOptions options{std::move(grid), std::move(task_field),
                             interruptible(std::move(progress))};
        const py::gil_scoped_release release;
        return trace_policy(model, policy, data, made, options);
      },
      py::arg("model"), py::arg("policy"), py::arg("data"), py::kw_only(), py::arg("loss"),
      py::arg("bound"), py::arg("task"), py::arg("grid"), py::arg("task_field"),
      py::arg("progress"), "See headkit.trace_policy.");
  m.def(
      "calibrate",
      [](GatedModel& model, const AdjustablePolicy& policy, const DataSource& data,
         const std::string& loss, std::optional<double> bound, std::shared_ptr<Objective> task,
         std::vector<double> grid, std::string task_field, const std::string& method, double risk,
         double delta, std::vector<int64_t> length_edges, int64_t length_buckets,
         Progress progress) {
        const OutputLoss made = make_output_loss(loss, bound, std::move(task));
        TraceOptions options{std::move(grid), std::move(task_field),
                             interruptible(std::move(progress))};
        const py::gil_scoped_release release;
        return calibrate(model, policy, data, made,
                         {method, risk, delta, std::move(length_edges), length_buckets}, options);
      },
      py::arg("model"), py::arg("policy"), py::arg("data"), py::kw_only(), py::arg("loss"),
      py::arg("bound"), py::arg("task"), py::arg("grid"), py::arg("task_field"), py::arg("method"),
      py::arg("risk"), py::arg("delta"), py::arg("length_edges"), py::arg("length_buckets"),
      py::arg("progress"), "See headkit.calibrate.");
  m.def(
      "calibrate_trace",
      [](const PolicyTrace& trace, const std::string& method, double risk, double delta,
         std::vector<int64_t> length_edges, int64_t length_buckets) {
        return calibrate(trace, {method, risk, delta, std::move(length_edges), length_buckets});
      },
      py::arg("trace"), py::kw_only(), py::arg("method"), py::arg("risk"), py::arg("delta"),
      py::arg("length_edges"), py::arg("length_buckets"), Unlocked(), "See headkit.calibrate.");
}

}  // namespace

void register_calibration(py::module_& m) {
  register_isotonic(m);
  register_learn_then_test(m);
  register_calibrations(m);
}

}  // namespace headkit::bindings
