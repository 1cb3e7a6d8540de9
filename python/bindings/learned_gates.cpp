#include <ATen/CPUGeneratorImpl.h>
#include <headkit/core/error.h>
#include <headkit/gates/cofi_gates.h>
#include <headkit/gates/fixed_target_gates.h>
#include <headkit/gates/hard_concrete_gates.h>
#include <headkit/gates/harden.h>
#include <headkit/gates/layer_distillation.h>
#include <headkit/gates/learned_gate_score.h>
#include <headkit/gates/subset_gates.h>
#include <headkit/gates/train_gates.h>

#include <optional>

#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;
template <typename Gates>
using LearnedClass = py::class_<Gates, LearnedGates, std::shared_ptr<Gates>>;

at::Generator generator_or_default(const std::optional<at::Generator>& generator) {
  return generator ? *generator : at::detail::getDefaultCPUGenerator();
}

void register_hard_concrete(py::module_& m) {
  using Function = at::Tensor (*)(const at::Tensor&, const HardConcrete&);
  const auto def = [&](const char* name, Function function, const char* doc) {
    m.def(
        name,
        [function](const at::Tensor& log_alpha, double gamma, double zeta, double beta) {
          return function(log_alpha, {gamma, zeta, beta});
        },
        py::arg("log_alpha"), py::kw_only(), py::arg("gamma") = -0.1, py::arg("zeta") = 1.1,
        py::arg("beta") = 0.33, doc);
  };
  def("hard_concrete_test_gate", hard_concrete_test_gate, R"pbdoc(
Hard concrete gates without noise: the deterministic gate of use.

Args:
    log_alpha: float32 or float64, any shape.
    gamma, zeta: the interval that the sigmoid is stretched to, gamma < 0, zeta > 1.
    beta: temperature, > 0.
Returns:
    Tensor: in [0, 1], shape of ``log_alpha``, differentiable.
Source:
    Louizos, Welling, Kingma 2018.
Example:
    >>> headkit.hard_concrete_test_gate(torch.tensor([-5.0, 0.0, 5.0])).tolist()
    [0.0, 0.5, 1.0]
)pbdoc");
  def("hard_concrete_open_probability", hard_concrete_open_probability, R"pbdoc(
P(gate > 0) of hard concrete gates; arguments as ``hard_concrete_test_gate``.

Example:
    >>> round(headkit.hard_concrete_open_probability(torch.tensor(0.0)).item(), 3)
    0.688
)pbdoc");
  def("hard_concrete_closed_probability", hard_concrete_closed_probability,
      "P(gate = 0) of hard concrete gates; arguments as ``hard_concrete_test_gate``.");
  def("hard_concrete_full_probability", hard_concrete_full_probability,
      "P(gate = 1) of hard concrete gates; arguments as ``hard_concrete_test_gate``.");
  m.def(
      "hard_concrete_sample",
      [](const at::Tensor& log_alpha, const at::Tensor& uniform, double gamma, double zeta,
         double beta) { return hard_concrete_sample(log_alpha, uniform, {gamma, zeta, beta}); },
      py::arg("log_alpha"), py::arg("uniform"), py::kw_only(), py::arg("gamma") = -0.1,
      py::arg("zeta") = 1.1, py::arg("beta") = 0.33, R"pbdoc(
Hard concrete gates with noise: exactly 0 or 1 with positive probability.

Args:
    log_alpha: float32 or float64, any shape.
    uniform: uniform numbers in (0, 1), a shape that broadcasts with ``log_alpha``.
    gamma, zeta, beta: as for ``hard_concrete_test_gate``.
Returns:
    Tensor: in [0, 1]; its slope in ``log_alpha`` is exactly 0 where it is 0 or 1.
Source:
    Louizos, Welling, Kingma 2018.
Example:
    >>> headkit.hard_concrete_sample(torch.zeros(3), torch.tensor([0.1, 0.5, 0.9])).tolist()
    [0.0, 0.5, 1.0]
)pbdoc");
}

void register_subset(py::module_& m) {
  m.def("relaxed_subset", &relaxed_subset, py::arg("scores"), py::arg("k"), py::arg("temperature"),
        Unlocked(), R"pbdoc(
A differentiable choice of k scores: sums to k at every temperature.

Args:
    scores: float64, any shape, at least one.
    k: how many, 0 to their number.
    temperature: > 0; the choice becomes hard as it falls. Entries can exceed 1.
Returns:
    Tensor: shape of ``scores``.
Source:
    Xie, Ermon 2019.
Example:
    >>> scores = torch.tensor([1.0, 0.5, 0.0, -0.5], dtype=torch.float64)
    >>> headkit.relaxed_subset(scores, 2, 1e-8).tolist()
    [1.0, 1.0, 0.0, 0.0]
)pbdoc");
  m.def("hard_subset", &hard_subset, py::arg("scores"), py::arg("k"), Unlocked(), R"pbdoc(
Exactly k ones, for the largest scores; ties go to the lower index.

Args:
    scores: floating point, any shape, at least one, no NaN.
    k: how many, 0 to their number.
Example:
    >>> headkit.hard_subset(torch.tensor([1.0, 1.0, 1.0]), 2).tolist()
    [1.0, 1.0, 0.0]
)pbdoc");
}

void register_family(py::module_& m) {
  py::class_<LearnedGates, std::shared_ptr<LearnedGates>>(
      m, "LearnedGatesCore", "What ``headkit.LearnedGates`` computes with, on given parameters.")
      .def_property_readonly("name", &LearnedGates::name)
      .def("parameters",
           [](const LearnedGates& gates) {
             py::list all;
             for (const GateParameter& each : gates.parameters()) {
               all.append(py::make_tuple(each.name, each.value, each.ascend));
             }
             return all;
           })
      .def("set_parameter", &LearnedGates::set_parameter, py::arg("name"), py::arg("value"))
      .def(
          "sample",
          [](const LearnedGates& gates, int64_t step, int64_t examples,
             const std::optional<at::Generator>& generator) {
            return gates.sample(step, examples, generator_or_default(generator));
          },
          py::arg("step"), py::arg("examples"), py::arg("generator") = py::none(), Unlocked())
      .def("soft", &LearnedGates::soft, py::arg("step"), Unlocked())
      .def("hard", &LearnedGates::hard, Unlocked())
      .def("penalty", &LearnedGates::penalty, py::arg("step"), Unlocked())
      .def("after_step", &LearnedGates::after_step, Unlocked())
      .def("describe", &LearnedGates::describe, py::arg("step"), Unlocked());

  LearnedClass<HardConcreteGates>(m, "HardConcreteGatesCore")
      .def(py::init([](int64_t layers, int64_t heads, double penalty, double start,
                       bool per_example, double gamma, double zeta, double beta) {
             return std::make_shared<HardConcreteGates>(HardConcreteSettings{
                 layers, heads, {gamma, zeta, beta}, penalty, start, per_example});
           }),
           py::kw_only(), py::arg("layers"), py::arg("heads"), py::arg("penalty"), py::arg("start"),
           py::arg("per_example"), py::arg("gamma"), py::arg("zeta"), py::arg("beta"));
  LearnedClass<SubsetGates>(m, "SubsetGatesCore")
      .def(py::init([](int64_t layers, int64_t heads, int64_t keep, double first_temperature,
                       double last_temperature, int64_t cooldown_steps, bool straight_through,
                       bool clip) {
             return std::make_shared<SubsetGates>(
                 SubsetSettings{layers,
                                heads,
                                keep,
                                {first_temperature, last_temperature, cooldown_steps},
                                straight_through,
                                clip});
           }),
           py::kw_only(), py::arg("layers"), py::arg("heads"), py::arg("keep"),
           py::arg("first_temperature"), py::arg("last_temperature"), py::arg("cooldown_steps"),
           py::arg("straight_through"), py::arg("clip"));
  LearnedClass<CofiGates>(m, "CofiGatesCore")
      .def(py::init([](const HeadLayout& layout, double target_sparsity, bool attention_sublayers,
                       bool neurons, bool feed_forward_sublayers, bool hidden, double start,
                       int64_t ramp_steps, bool absolute, int64_t matrices, uint64_t seed,
                       double gamma, double zeta, double beta) {
             return std::make_shared<CofiGates>(CofiSettings{layout,
                                                             target_sparsity,
                                                             attention_sublayers,
                                                             neurons,
                                                             feed_forward_sublayers,
                                                             hidden,
                                                             {gamma, zeta, beta},
                                                             start,
                                                             ramp_steps,
                                                             absolute,
                                                             matrices,
                                                             seed});
           }),
           py::kw_only(), py::arg("layout"), py::arg("target_sparsity"),
           py::arg("attention_sublayers"), py::arg("neurons"), py::arg("feed_forward_sublayers"),
           py::arg("hidden"), py::arg("start"), py::arg("ramp_steps"), py::arg("absolute"),
           py::arg("matrices"), py::arg("seed"), py::arg("gamma"), py::arg("zeta"), py::arg("beta"))
      .def("expected_sparsity", &CofiGates::expected_sparsity);
  using Count = std::optional<int64_t>;
  LearnedClass<FixedTargetGates>(m, "FixedTargetGatesCore")
      .def(py::init([](const HeadLayout& layout, Count heads, Count attention_sublayers,
                       Count neurons, Count feed_forward_sublayers, Count hidden, bool per_layer,
                       double start, int64_t ramp_steps, double gamma, double zeta, double beta) {
             return std::make_shared<FixedTargetGates>(FixedTargetSettings{layout,
                                                                           heads,
                                                                           attention_sublayers,
                                                                           neurons,
                                                                           feed_forward_sublayers,
                                                                           hidden,
                                                                           per_layer,
                                                                           {gamma, zeta, beta},
                                                                           start,
                                                                           ramp_steps});
           }),
           py::kw_only(), py::arg("layout"), py::arg("heads"), py::arg("attention_sublayers"),
           py::arg("neurons"), py::arg("feed_forward_sublayers"), py::arg("hidden"),
           py::arg("per_layer"), py::arg("start"), py::arg("ramp_steps"), py::arg("gamma"),
           py::arg("zeta"), py::arg("beta"));
}

LayerMatching matching_of(const std::string& name) {
  if (name == "nearest") return LayerMatching::kNearest;
  if (name == "ordered") return LayerMatching::kOrdered;
  throw std::invalid_argument(
      error_message("layer_distillation", "matching nearest or ordered", "'", name, "'"));
}

void register_distillation(py::module_& m) {
  py::class_<LayerDistillation, std::shared_ptr<LayerDistillation>>(m, "LayerDistillation",
                                                                    R"pbdoc(
What a student loses against its teacher, layer by layer and in its predictions.

prediction_weight * tau^2 KL(teacher || student) + layer_weight * the sum over teacher layers of the
mean square of W h_student - h_teacher over valid tokens. W is shared, trained, and the identity at
the start.

Args:
    model_dim: width of the residual stream.
    teacher_layers: teacher states to match, after so many layers, ascending from 1.
    matching: ``"ordered"`` (from the top down, open layers only, order kept; where no layer is left,
        nothing is added) or ``"nearest"``.
    layer_weight, prediction_weight: published (.9, .1), (.7, .3), (.5, .5).
    temperature: of the predictions.
Raises:
    ValueError: on settings out of range.
Source:
    Xia, Zhong, Chen 2022.
Example:
    >>> headkit.LayerDistillation(4, [1, 2]).projection.shape
    torch.Size([4, 4])
)pbdoc")
      .def(py::init([](int64_t model_dim, const std::vector<int64_t>& teacher_layers,
                       const std::string& matching, double layer_weight, double prediction_weight,
                       double temperature) {
             return std::make_shared<LayerDistillation>(
                 LayerDistillationSettings{model_dim, teacher_layers, matching_of(matching),
                                           layer_weight, prediction_weight, temperature});
           }),
           py::arg("model_dim"), py::arg("teacher_layers"), py::kw_only(),
           py::arg("matching") = "ordered", py::arg("layer_weight") = 0.9,
           py::arg("prediction_weight") = 0.1, py::arg("temperature") = 2.0)
      .def_property_readonly("projection", &LayerDistillation::projection,
                             "W, float32 [model_dim, model_dim], requires a gradient.")
      .def(
          "loss",
          [](const LayerDistillation& distillation, GatedModel& student, GatedModel& teacher,
             const Batch& batch, const GateSet& gates) {
            return distillation.loss(student, student.embed(batch), teacher, gates);
          },
          py::arg("student"), py::arg("teacher"), py::arg("batch"), py::arg("gates"), Unlocked(),
          "Mean over a batch, a differentiable scalar; the student runs under ``gates``.");
}

void register_training(py::module_& m) {
  py::class_<GateTraining>(m, "GateTraining", R"pbdoc(
How training of gates went.

Attributes:
    loss: by step, mean over the examples of the batch, without the penalty.
    penalty: by step, what the gates added.
)pbdoc")
      .def_readonly("loss", &GateTraining::loss)
      .def_readonly("penalty", &GateTraining::penalty)
      .def("__len__", &GateTraining::steps)
      .def("__repr__", [](const GateTraining& training) {
        return "<training of gates: " + std::to_string(training.steps()) + " steps>";
      });
  m.def(
      "train_gates",
      [](GatedModel& model, LearnedGates& gates, const DataSource& data,
         const std::shared_ptr<Objective>& objective, int64_t steps, double learning_rate,
         double max_norm, double weight_learning_rate, double weight_decay, double max_weight_norm,
         int64_t first_step, uint64_t seed, GatedModel* teacher,
         const LayerDistillation* distillation, Progress progress) {
        return train_gates(
            model, gates, data, *objective,
            {steps, learning_rate, max_norm, weight_learning_rate, weight_decay, max_weight_norm,
             first_step, seed, teacher, distillation, interruptible(std::move(progress))});
      },
      py::arg("model"), py::arg("gates"), py::arg("data"), py::arg("objective"), py::kw_only(),
      py::arg("steps"), py::arg("learning_rate"), py::arg("max_norm"),
      py::arg("weight_learning_rate"), py::arg("weight_decay"), py::arg("max_weight_norm"),
      py::arg("first_step"), py::arg("seed"), py::arg("teacher") = nullptr,
      py::arg("distillation") = nullptr, py::arg("progress") = nullptr, Unlocked(),
      "See headkit.train_gates.");

  py::class_<HardenedGates>(m, "HardenedGates", R"pbdoc(
Trained gates as what prunes, and mean losses of the same examples on the way there.

Attributes:
    heads: HeadMask of the heads whose hard gate is not 0.
    gates: GateSet of all hard gates; soft values of units that stay are to be folded.
    dense_loss: all gates 1.
    sampled_loss: under gates with noise, as training saw them.
    sampled_deviation: standard deviation of that between draws.
    soft_loss: without noise, not binarised.
    hard_loss: as pruned.
    draws, examples: how many there were.
    description: JSON, what is open by which rule.
)pbdoc")
      .def_readonly("heads", &HardenedGates::heads)
      .def_readonly("gates", &HardenedGates::gates)
      .def_readonly("dense_loss", &HardenedGates::dense_loss)
      .def_readonly("sampled_loss", &HardenedGates::sampled_loss)
      .def_readonly("sampled_deviation", &HardenedGates::sampled_deviation)
      .def_readonly("soft_loss", &HardenedGates::soft_loss)
      .def_readonly("hard_loss", &HardenedGates::hard_loss)
      .def_readonly("draws", &HardenedGates::draws)
      .def_readonly("examples", &HardenedGates::examples)
      .def_readonly("description", &HardenedGates::description)
      .def("to_json", &HardenedGates::to_json)
      .def("__repr__", [](const HardenedGates& found) {
        return c10::str("<hardened gates: ", found.heads.count(), " of ",
                        found.heads.layers() * found.heads.heads(), " heads; loss dense ",
                        found.dense_loss, ", sampled ", found.sampled_loss, ", soft ",
                        found.soft_loss, ", hard ", found.hard_loss, ">");
      });
  m.def(
      "harden",
      [](GatedModel& model, const LearnedGates& gates, const DataSource& data,
         const std::shared_ptr<Objective>& objective, int64_t draws, int64_t step, uint64_t seed,
         Progress progress) {
        return harden(model, gates, data, *objective,
                      {draws, step, seed, interruptible(std::move(progress))});
      },
      py::arg("model"), py::arg("gates"), py::arg("data"), py::arg("objective"), py::kw_only(),
      py::arg("draws"), py::arg("step"), py::arg("seed"), py::arg("progress") = nullptr, Unlocked(),
      "See headkit.harden.");
  m.def("learned_gate_scores", &learned_gate_scores, py::arg("gates"), py::arg("parameter") = "",
        "See headkit.learned_gate_scores.");
}

}  // namespace

void register_learned_gates(py::module_& m) {
  register_hard_concrete(m);
  register_subset(m);
  register_family(m);
  register_distillation(m);
  register_training(m);
}

}  // namespace headkit::bindings
