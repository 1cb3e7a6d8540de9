#include <c10/core/GradMode.h>
#include <headkit/gates/train_input_gates.h>
#include <headkit/gates/train_ladder.h>

#include <optional>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {

void register_training(py::module_& m) {
  py::class_<InputGateReport>(m, "InputGateReport", R"pbdoc(
What training a gate end to end came to. Losses are means over the calibration examples.

Attributes:
    loss, cost_share: by step, without the penalty; expected share of the cost.
    input_variance: share of the variance of z that is due to the input.
    mean_heads: of the gate of use.
    contested: heads that some inputs open and others close.
    sampled_loss, hard_loss: under gates as in training, and under the gate of use.
    static_loss: under the mask of the heads that the gate opens most often, as many as it runs on
        average, rounded up.
    warning: not empty where the gate became static.
)pbdoc")
      .def_readonly("loss", &InputGateReport::loss)
      .def_readonly("cost_share", &InputGateReport::cost_share)
      .def_readonly("input_variance", &InputGateReport::input_variance)
      .def_readonly("mean_heads", &InputGateReport::mean_heads)
      .def_readonly("contested", &InputGateReport::contested)
      .def_readonly("sampled_loss", &InputGateReport::sampled_loss)
      .def_readonly("hard_loss", &InputGateReport::hard_loss)
      .def_readonly("static_loss", &InputGateReport::static_loss)
      .def_readonly("warning", &InputGateReport::warning);

  m.def(
      "static_linear_gate",
      [](GatedModel& model, const at::Tensor& scores, int64_t heads,
         const std::optional<at::Tensor>& dropped_output) {
        return std::make_shared<LinearGate>(
            static_linear_gate(model, scores, heads, or_undefined(dropped_output)));
      },
      py::arg("model"), py::arg("scores"), py::arg("heads"),
      py::arg("dropped_output") = py::none());
  m.def(
      "static_layer_gate",
      [](GatedModel& model, const at::Tensor& scores, int64_t heads,
         const std::optional<at::Tensor>& dropped_output) {
        return std::make_shared<LayerGate>(
            static_layer_gate(model, scores, heads, or_undefined(dropped_output)));
      },
      py::arg("model"), py::arg("scores"), py::arg("heads"),
      py::arg("dropped_output") = py::none());

  m.def(
      "train_input_gates",
      [](GatedModel& model, const std::shared_ptr<GatePolicy>& start, const DataSource& train,
         const DataSource& calibration, const std::shared_ptr<Objective>& objective, double budget,
         int64_t steps, const std::string& relaxation, double temperature, double start_spread,
         double weight_penalty, int64_t ramp_steps, const std::optional<at::Tensor>& costs,
         double learning_rate, double weight_learning_rate, double model_learning_rate,
         double settled_share, bool compensate, int64_t draws, uint64_t seed, GatedModel* teacher,
         Progress progress) {
        TrainInputGatesOptions options;
        if (relaxation != "straight_through" && relaxation != "hard_concrete") {
          throw std::invalid_argument(
              "[train_input_gates] expected a relaxation of straight_through, hard_concrete; "
              "found " +
              relaxation);
        }
        options.gates.budget = budget;
        options.gates.relaxation = relaxation == "straight_through"
                                       ? GateRelaxation::kStraightThrough
                                       : GateRelaxation::kHardConcrete;
        options.gates.temperature = temperature;
        options.gates.start_spread = start_spread;
        options.gates.weight_penalty = weight_penalty;
        options.gates.ramp_steps = ramp_steps;
        options.gates.costs = or_undefined(costs);
        options.steps = steps;
        options.learning_rate = learning_rate;
        options.weight_learning_rate = weight_learning_rate;
        options.model_learning_rate = model_learning_rate;
        options.settled_share = settled_share;
        options.compensate = compensate;
        options.draws = draws;
        options.seed = seed;
        options.teacher = teacher;
        options.progress = interruptible(std::move(progress));
        std::shared_ptr<GatePolicy> gate;
        InputGateReport report;
        {
          const py::gil_scoped_release release;
          if (const auto* linear = dynamic_cast<const LinearGate*>(start.get())) {
            auto trained =
                train_input_gates(model, *linear, train, calibration, *objective, options);
            gate = trained.gate;
            report = std::move(trained.report);
          } else if (const auto* layer = dynamic_cast<const LayerGate*>(start.get())) {
            auto trained =
                train_input_gates(model, *layer, train, calibration, *objective, options);
            gate = trained.gate;
            report = std::move(trained.report);
          } else {
            throw std::invalid_argument(
                "[train_input_gates] expected a LinearGate or LayerGate to start from; found " +
                (start ? start->name() : std::string("none")));
          }
        }
        return py::make_tuple(gate, report);
      },
      py::arg("model"), py::arg("start"), py::arg("train"), py::arg("calibration"), py::kw_only(),
      py::arg("objective"), py::arg("budget"), py::arg("steps"), py::arg("relaxation"),
      py::arg("temperature"), py::arg("start_spread"), py::arg("weight_penalty"),
      py::arg("ramp_steps"), py::arg("costs"), py::arg("learning_rate"),
      py::arg("weight_learning_rate"), py::arg("model_learning_rate"), py::arg("settled_share"),
      py::arg("compensate"), py::arg("draws"), py::arg("seed"), py::arg("teacher"),
      py::arg("progress"), "As headkit.train_input_gates, for a GatedModel and data sources.");

  py::class_<LadderTraining>(m, "LadderTraining", R"pbdoc(
How training the rungs of a ladder went.

Attributes:
    low, top: distillation loss of the lowest and of the top rung, by step.
    drawn, rungs: that of the random rung between, and which one it was; empty for two rungs.
    ladder: the Ladder with its compensation measured anew.
)pbdoc")
      .def_readonly("low", &LadderTraining::low)
      .def_readonly("top", &LadderTraining::top)
      .def_readonly("drawn", &LadderTraining::drawn)
      .def_readonly("rungs", &LadderTraining::rungs)
      .def_readonly("ladder", &LadderTraining::ladder);
  m.def(
      "train_ladder",
      [](GatedModel& model, const Ladder& ladder, const DataSource& data,
         const std::shared_ptr<Objective>& distillation, int64_t steps, double learning_rate,
         double weight_decay, double max_norm, const std::shared_ptr<Objective>& task,
         double task_weight, GatedModel* teacher, bool compensate, uint64_t seed,
         Progress progress) {
        TrainLadderOptions options;
        options.steps = steps;
        options.learning_rate = learning_rate;
        options.weight_decay = weight_decay;
        options.max_norm = max_norm;
        options.task = task.get();
        options.task_weight = task_weight;
        if (teacher != nullptr) {
          options.dense = [teacher](const Batch& batch) {
            const auto mode = teacher->evaluating();
            const c10::NoGradGuard no_grad;
            return (*teacher)(batch);
          };
        }
        options.compensate = compensate;
        options.seed = seed;
        options.progress = interruptible(std::move(progress));
        const py::gil_scoped_release release;
        return train_ladder(model, ladder, data, *distillation, options);
      },
      py::arg("model"), py::arg("ladder"), py::arg("data"), py::kw_only(), py::arg("distillation"),
      py::arg("steps"), py::arg("learning_rate"), py::arg("weight_decay"), py::arg("max_norm"),
      py::arg("task"), py::arg("task_weight"), py::arg("teacher"), py::arg("compensate"),
      py::arg("seed"), py::arg("progress"),
      "As headkit.train_ladder, for a GatedModel and a data source.");
}

}  // namespace headkit::bindings
