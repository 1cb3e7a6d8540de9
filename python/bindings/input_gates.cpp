#include <c10/core/GradMode.h>
#include <headkit/gates/gate_features.h>
#include <headkit/gates/integer_scores.h>
#include <headkit/gates/layer_gate.h>
#include <headkit/gates/linear_probe.h>
#include <headkit/gates/pooled_state.h>
#include <headkit/gates/rung_trainer.h>
#include <headkit/gates/second_look.h>
#include <headkit/gates/static_stage.h>
#include <headkit/gates/train_input_gates.h>
#include <headkit/gates/train_ladder.h>
#include <pybind11/functional.h>

#include <optional>

#include "optional_tensor.h"
#include "python_progress.h"
#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

void register_linear_probe(py::module_& m) {
  m.def(
      "pooled_state",
      [](const at::Tensor& hidden, const std::optional<at::Tensor>& attention_mask) {
        return pooled_state("pooled_state", hidden, or_undefined(attention_mask));
      },
      py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(), R"pbdoc(
Mean of hidden states over valid tokens, float64 [batch, model_dim].

The same bit for bit whatever else is in the batch, however it is padded.

Args:
    hidden: floating point, shape [batch, tokens, model_dim].
    attention_mask: bool, shape [batch, tokens], true = token; None = no padding.
Raises:
    ValueError: for NaN or infinity in a valid token.
Example:
    >>> headkit.pooled_state(torch.tensor([[[1.0], [3.0]]])).tolist()
    [[2.0]]
)pbdoc");

  py::class_<ProbeSignals>(m, "ProbeSignals", R"pbdoc(
What a linear probe says of each sample, float64 [batch]; None where it does not know.

Attributes:
    margin: best minus second logit; absolute value of a single logit.
    confidence: tanh(margin / 2).
    entropy: of the class distribution, in nats.
    log_loss: logarithm of the predicted loss.
)pbdoc")
      .def_property_readonly("margin", [](const ProbeSignals& s) { return or_none(s.margin); })
      .def_property_readonly("confidence",
                             [](const ProbeSignals& s) { return or_none(s.confidence); })
      .def_property_readonly("entropy", [](const ProbeSignals& s) { return or_none(s.entropy); })
      .def_property_readonly("log_loss", [](const ProbeSignals& s) { return or_none(s.log_loss); });

  py::class_<LinearProbe>(m, "LinearProbe", R"pbdoc(
A linear model of the task on the pooled state before a layer: logits = W (u - mu) + b.

``fit_linear_probes`` makes them from data.

Args:
    layer: reads the state before this layer.
    reference: mu, float64 [model_dim].
    weight: W, float64 [classes, model_dim]; None = no task.
    bias: b, float64 [classes].
    loss_weight: float64 [model_dim], for the predicted log loss; None = it predicts none.
    loss_bias: the log loss of the mean input.
Example:
    >>> probe = headkit.LinearProbe(
    ...     0,
    ...     reference=torch.zeros(1, dtype=torch.float64),
    ...     weight=torch.tensor([[1.0], [-1.0]], dtype=torch.float64),
    ...     bias=torch.zeros(2, dtype=torch.float64),
    ... )
    >>> probe.signals(torch.tensor([[[3.0]], [[-1.0]]])).margin.tolist()
    [6.0, 2.0]
)pbdoc")
      .def(py::init([](int64_t layer, at::Tensor reference, const std::optional<at::Tensor>& weight,
                       const std::optional<at::Tensor>& bias,
                       const std::optional<at::Tensor>& loss_weight, double loss_bias) {
             return LinearProbe({layer, std::move(reference), or_undefined(weight),
                                 or_undefined(bias), or_undefined(loss_weight), loss_bias});
           }),
           py::arg("layer"), py::kw_only(), py::arg("reference"), py::arg("weight") = py::none(),
           py::arg("bias") = py::none(), py::arg("loss_weight") = py::none(),
           py::arg("loss_bias") = 0.0)
      .def_property_readonly("layer", &LinearProbe::layer)
      .def_property_readonly("reference",
                             [](const LinearProbe& p) { return p.settings().reference; })
      .def_property_readonly("weight",
                             [](const LinearProbe& p) { return or_none(p.settings().weight); })
      .def_property_readonly("bias",
                             [](const LinearProbe& p) { return or_none(p.settings().bias); })
      .def_property_readonly("loss_weight",
                             [](const LinearProbe& p) { return or_none(p.settings().loss_weight); })
      .def_property_readonly("loss_bias",
                             [](const LinearProbe& p) { return p.settings().loss_bias; })
      .def(
          "logits",
          [](const LinearProbe& probe, const at::Tensor& hidden,
             const std::optional<at::Tensor>& mask) {
            return probe.logits(hidden, or_undefined(mask));
          },
          py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(),
          "float64 [batch, classes] from hidden states [batch, tokens, model_dim].")
      .def(
          "signals",
          [](const LinearProbe& probe, const at::Tensor& hidden,
             const std::optional<at::Tensor>& mask) {
            return probe.signals(hidden, or_undefined(mask));
          },
          py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(),
          "ProbeSignals from hidden states [batch, tokens, model_dim].")
      .def("to_json", &LinearProbe::to_json, "Everything ``from_json`` needs, bit for bit.")
      .def_static("from_json", &LinearProbe::from_json, py::arg("text"))
      .def("__repr__", [](const LinearProbe& probe) {
        return "<linear probe before layer " + std::to_string(probe.layer()) + ">";
      });

  py::class_<FittedProbe>(m, "FittedProbe", R"pbdoc(
A probe and what fitting it found out.

Attributes:
    probe: LinearProbe.
    examples: it was fitted to.
    ridge: penalty of the classes, relative to the mean feature variance; inf = they are constant.
    accuracy: on the fifth of the examples that was held out; NaN without a task or hold-out.
    loss_explained: share of the variance of the log loss, by cross-validation.
)pbdoc")
      .def_readonly("probe", &FittedProbe::probe)
      .def_readonly("examples", &FittedProbe::examples)
      .def_readonly("ridge", &FittedProbe::ridge)
      .def_readonly("accuracy", &FittedProbe::accuracy)
      .def_readonly("loss_explained", &FittedProbe::loss_explained);

  m.def(
      "fit_linear_probes",
      [](GatedModel& model, const DataSource& data, std::vector<int64_t> layers, bool task,
         bool labels_of_data, const std::shared_ptr<Objective>& objective,
         const std::optional<GateSet>& gates, std::optional<double> ridge,
         std::optional<double> loss_ridge, double huber, Progress progress) {
        LinearProbesFit options;
        options.layers = std::move(layers);
        options.task = task;
        options.labels_of_data = labels_of_data;
        options.objective = objective.get();
        if (gates) options.gates = *gates;
        options.fit = {ridge.value_or(-1), loss_ridge.value_or(-1), huber};
        options.progress = interruptible(std::move(progress));
        const py::gil_scoped_release release;
        return fit_linear_probes(model, data, options);
      },
      py::arg("model"), py::arg("data"), py::kw_only(), py::arg("layers"), py::arg("task") = true,
      py::arg("labels_of_data") = false, py::arg("objective") = nullptr,
      py::arg("gates") = py::none(), py::arg("ridge") = py::none(),
      py::arg("loss_ridge") = py::none(), py::arg("huber") = 1.345, py::arg("progress") = nullptr,
      "As headkit.fit_linear_probes, for a GatedModel and a DataSource: list of FittedProbe.");
}

template <typename Value>
py::list listed(const std::vector<Value>& values) {
  py::list all;
  for (const Value& value : values) all.append(value);
  return all;
}

void register_layer_gate(py::module_& m) {
  m.def("scalar_features", &scalar_features, R"pbdoc(
Scalars that a linear gate may read beside the pooled state.

Example:
    >>> headkit.scalar_features()
    ['log_length', 'margin', 'entropy', 'log_loss']
)pbdoc");

  py::class_<LayerGate, AdjustablePolicy, std::shared_ptr<LayerGate>>(m, "LayerGate", R"pbdoc(
A linear gate for each layer, decided from the state before it: z = W (f - mu) + s, on where
z >= threshold.

f is the mean state over valid tokens, then scalars. With W = 0 the gate is static pruning by s.
``fit_layer_gate`` makes one from data.

Args:
    weight: W, float64 [layers, heads, model_dim + scalars].
    reference: mu, float64 [layers, model_dim + scalars].
    static_logits: s, float64 [layers, heads].
    threshold: a head runs if its logit is at least this.
    features: names of the scalars (``scalar_features``).
    probes: a LinearProbe before each layer, where a scalar needs one.
    fixed: int8 [layers, heads]; 0 = decided, 1 = always on, -1 = pruned; None = all decided.
    min_heads: every input runs at least so many heads of each layer.
    dropped_output: what a closed head adds instead of nothing, [layers, heads, model_dim].
    calibration: free text, what set the threshold.
Example:
    >>> gate = headkit.LayerGate(
    ...     weight=torch.tensor([[[1.0], [-1.0]]], dtype=torch.float64),
    ...     reference=torch.zeros(1, 1, dtype=torch.float64),
    ...     static_logits=torch.zeros(1, 2, dtype=torch.float64),
    ...     threshold=0.5,
    ... )
    >>> gate.decide(torch.tensor([[[3.0]], [[-3.0]]])).heads.tolist()
    [[[1.0, 0.0]], [[0.0, 1.0]]]
)pbdoc")
      .def(py::init([](at::Tensor weight, at::Tensor reference, at::Tensor static_logits,
                       double threshold, std::vector<std::string> features,
                       std::vector<LinearProbe> probes, const std::optional<at::Tensor>& fixed,
                       int64_t min_heads, const std::optional<at::Tensor>& dropped_output,
                       std::string calibration) {
             return std::make_shared<LayerGate>(LayerGateSettings{
                 std::move(weight), std::move(reference), std::move(static_logits),
                 std::move(features), std::move(probes), or_undefined(fixed), threshold, min_heads,
                 or_undefined(dropped_output), std::move(calibration)});
           }),
           py::kw_only(), py::arg("weight"), py::arg("reference"), py::arg("static_logits"),
           py::arg("threshold"), py::arg("features") = std::vector<std::string>(),
           py::arg("probes") = std::vector<LinearProbe>(), py::arg("fixed") = py::none(),
           py::arg("min_heads") = 0, py::arg("dropped_output") = py::none(),
           py::arg("calibration") = "")
      .def_property_readonly("weight", [](const LayerGate& g) { return g.settings().weight; })
      .def_property_readonly("reference", [](const LayerGate& g) { return g.settings().reference; })
      .def_property_readonly("static_logits",
                             [](const LayerGate& g) { return g.settings().static_logits; })
      .def_property_readonly("fixed", [](const LayerGate& g) { return g.settings().fixed; })
      .def_property_readonly("threshold", [](const LayerGate& g) { return g.settings().threshold; })
      .def_property_readonly("features", [](const LayerGate& g) { return g.settings().features; })
      .def_property_readonly("probes",
                             [](const LayerGate& g) { return listed(g.settings().probes); })
      .def_property_readonly("min_heads", [](const LayerGate& g) { return g.settings().min_heads; })
      .def_property_readonly(
          "dropped_output", [](const LayerGate& g) { return or_none(g.settings().dropped_output); })
      .def(
          "logits",
          [](const LayerGate& gate, int64_t layer, const at::Tensor& hidden,
             const std::optional<at::Tensor>& mask) {
            return gate.logits(layer, hidden, or_undefined(mask));
          },
          py::arg("layer"), py::arg("hidden"), py::arg("attention_mask") = py::none(), Unlocked(),
          "z of one layer, float64 [batch, heads], from the state before it.")
      .def("open_heads", &LayerGate::open_heads, py::arg("logits"), Unlocked(),
           "0 or 1 for logits [batch, layers, heads]: threshold, fixed heads and floors.")
      .def(
          "with_dropped_output",
          [](const LayerGate& gate, const std::optional<at::Tensor>& dropped_output) {
            return std::make_shared<LayerGate>(
                gate.with_dropped_output(or_undefined(dropped_output)));
          },
          py::arg("dropped_output"), "The same gate with another compensation.")
      .def(
          "with_threshold",
          [](const LayerGate& gate, double threshold) {
            return std::make_shared<LayerGate>(gate.with_threshold(threshold));
          },
          py::arg("threshold"), "The same gate with another threshold.");

  m.def(
      "fit_layer_gate",
      [](GatedModel& model, const DataSource& train, const DataSource& calibration,
         double mean_heads, const std::shared_ptr<Objective>& objective,
         std::vector<std::string> features, bool labels_of_data,
         const std::optional<HeadScores>& scores, const std::optional<at::Tensor>& dropped_output,
         std::optional<double> ridge, double huber, double rank_weight, int64_t min_heads,
         double settled_share, Progress progress) {
        LinearGateFit options;
        options.mean_heads = mean_heads;
        options.features = std::move(features);
        options.labels_of_data = labels_of_data;
        if (scores) options.scores = *scores;
        options.dropped_output = or_undefined(dropped_output);
        options.ridge = ridge.value_or(-1);
        options.huber = huber;
        options.rank_weight = rank_weight;
        options.min_heads = min_heads;
        options.settled_share = settled_share;
        options.progress = interruptible(std::move(progress));
        FittedLayerGate fitted = [&] {
          const py::gil_scoped_release release;
          return fit_layer_gate(model, train, calibration, *objective, options);
        }();
        return py::make_tuple(fitted.gate, fitted.report);
      },
      py::arg("model"), py::arg("train"), py::arg("calibration"), py::kw_only(),
      py::arg("mean_heads"), py::arg("objective"), py::arg("features"), py::arg("labels_of_data"),
      py::arg("scores"), py::arg("dropped_output"), py::arg("ridge"), py::arg("huber"),
      py::arg("rank_weight"), py::arg("min_heads"), py::arg("settled_share"), py::arg("progress"),
      "As headkit.fit_layer_gate, for a GatedModel and data sources.");
}

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

// A trainer with what it borrows.
struct HeldTrainer {
  std::shared_ptr<Objective> distillation, task;
  int64_t rungs;
  RungTrainer trainer;
};

void register_rung_trainer(py::module_& m) {
  py::class_<HeldTrainer>(m, "RungTrainer", R"pbdoc(
Trains the weights of a model so that some of its rungs say what the dense model says, step by step.

One rung is a static sub-network, several that share the weights a ladder. Each step is one of AdamW
down the sum of the rungs' losses: distance from the dense outputs, and the task loss of those that
learn it. ``headkit.train_ladder`` is a loop around it; write another to order the data, draw rungs,
or stop and go on: ``state_dict`` and the weights are all there is to keep.

Args:
    model: GatedModel; its weights that require gradients change in place, in the mode it has.
    rungs: list of Rung.
    distillation: Objective that compares with dense outputs, for example ``kl_to_dense``.
    learning_rate, weight_decay, max_norm: of AdamW; a norm of 0 does not clip.
    warmup_steps: the rate climbs linearly over so many steps.
    total_steps: and then falls linearly, to 0 after so many; 0 = it stays.
    task: Objective of rungs that learn from labels too; None = none.
    task_weight: times the task loss.
    last_without_task: the last rung learns from the dense outputs alone, as the top of a ladder.
Raises:
    ValueError: on options or rungs that do not fit, or without weights that require gradients.
Source:
    Hinton, Vinyals, Dean 2015; several rungs: Yu, Huang 2019.
Example:
    >>> import transformers
    >>> config = transformers.BertConfig(
    ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
    ... )
    >>> model = transformers.BertForSequenceClassification(config).eval()
    >>> gated = headkit.attach(model)
    >>> batch = {"input_ids": torch.randint(50, (8, 5))}
    >>> dense = gated(batch).detach()
    >>> low = headkit.Rung(headkit.HeadMask(torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]])))
    >>> trainer = headkit.RungTrainer(
    ...     gated, [low], distillation=headkit.make_objective("kl_to_dense")
    ... )
    >>> [loss] = trainer.step(batch, dense)
    >>> trainer.steps
    1
)pbdoc")
      .def(py::init([](GatedModel& model, std::vector<Rung> rungs,
                       std::shared_ptr<Objective> distillation, double learning_rate,
                       double weight_decay, double max_norm, int64_t warmup_steps,
                       int64_t total_steps, std::shared_ptr<Objective> task, double task_weight,
                       bool last_without_task) {
             RungTrainerOptions options{learning_rate, weight_decay,     max_norm,
                                        warmup_steps,  total_steps,      task.get(),
                                        task_weight,   last_without_task};
             const auto count = static_cast<int64_t>(rungs.size());
             const Objective& distance = *distillation;
             return std::unique_ptr<HeldTrainer>(
                 new HeldTrainer{std::move(distillation), std::move(task), count,
                                 RungTrainer(model, std::move(rungs), distance, options)});
           }),
           py::keep_alive<1, 2>(), py::arg("model"), py::arg("rungs"), py::kw_only(),
           py::arg("distillation").none(false), py::arg("learning_rate") = 4e-5,
           py::arg("weight_decay") = 0.01, py::arg("max_norm") = 1.0, py::arg("warmup_steps") = 0,
           py::arg("total_steps") = 0, py::arg("task") = py::none(), py::arg("task_weight") = 0.5,
           py::arg("last_without_task") = true)
      .def(
          "step",
          [](HeldTrainer& held, const Batch& batch, const at::Tensor& dense,
             std::optional<std::vector<int64_t>> rungs) {
            if (!rungs) {
              rungs.emplace();
              for (int64_t rung = 0; rung < held.rungs; ++rung) rungs->push_back(rung);
            }
            return held.trainer.step(batch, dense, *rungs);
          },
          py::arg("batch"), py::arg("dense"), py::arg("rungs") = py::none(), Unlocked(), R"pbdoc(
One step on a batch; returns the mean distance of each rung from ``dense`` before it.

Args:
    batch: name -> tensor.
    dense: outputs that the rungs learn from, [batch, ...].
    rungs: which of them, in this order; None = all.
Raises:
    RuntimeError: if a loss is not finite; no weight has changed then.
)pbdoc")
      .def_property_readonly("steps", [](const HeldTrainer& h) { return h.trainer.steps(); })
      .def_property_readonly(
          "learning_rate", [](const HeldTrainer& h) { return h.trainer.learning_rate(); },
          "The rate of the next step.")
      .def(
          "state_dict",
          [](const HeldTrainer& held) {
            const RungTrainerState state = held.trainer.state();
            py::dict told;
            told["steps"] = state.steps;
            told["mean"] = state.mean;
            told["square"] = state.square;
            return told;
          },
          "What to keep beside the weights to go on bit for bit; a copy.")
      .def(
          "load_state_dict",
          [](HeldTrainer& held, const py::dict& state) {
            for (const char* name : {"steps", "mean", "square"}) {
              if (!state.contains(name)) {
                throw py::value_error(std::string("[rung_trainer] expected a state with \"") +
                                      name + "\"; found none");
              }
            }
            held.trainer.adopt({state["steps"].cast<int64_t>(),
                                state["mean"].cast<std::vector<at::Tensor>>(),
                                state["square"].cast<std::vector<at::Tensor>>()});
          },
          py::arg("state"), "Goes on from there; ValueError for the state of other weights.");
}

void register_second_look(py::module_& m) {
  py::class_<SecondLook, AdjustablePolicy, std::shared_ptr<SecondLook>>(m, "SecondLook", R"pbdoc(
A second chance for heads near the threshold of a linear gate: an estimate of what the head would do
to this input, from whole-number (int8) scores of its queries and keys, decides instead of the gate.

The estimate is ||S'||_F * ||X - mean x||_F * ||Wv||_2 * ||Wo||_F / T ** 1.5, S' the scores with the
mean key taken off; it is compared with the median of the layer. Each head that is looked at costs
its Q, its K and the scores, told in ``PolicyRun.decision_flops``; a head that then runs projects them
again. ``headkit.fit_second_look`` puts one on a gate.

Args:
    gate: LinearGate or LayerGate.
    band: heads with |logit - threshold| below it are looked at.
    ratio: one of them runs where its estimate is at least ratio times the median of the layer.
    weight: ||Wv||_2 * ||Wo||_F, float64 [layers, heads].
    median: of the estimates, float64 [layers], above 0.
Raises:
    ValueError: on settings that do not fit together.
Source:
    Jaradat 2024 (HDP), with int8, centred keys, values and a relative threshold.
)pbdoc")
      .def(py::init([](std::shared_ptr<AdjustablePolicy> gate, double band, double ratio,
                       at::Tensor weight, at::Tensor median) {
             return std::make_shared<SecondLook>(SecondLookSettings{
                 std::move(gate), band, ratio, std::move(weight), std::move(median)});
           }),
           py::arg("gate"), py::kw_only(), py::arg("band"), py::arg("ratio"), py::arg("weight"),
           py::arg("median"))
      .def_property_readonly(
          "gate",
          [](const SecondLook& look) {
            return std::const_pointer_cast<AdjustablePolicy>(look.settings().gate);
          })
      .def_property_readonly("band", [](const SecondLook& s) { return s.settings().band; })
      .def_property_readonly("ratio", [](const SecondLook& s) { return s.settings().ratio; })
      .def_property_readonly("weight", [](const SecondLook& s) { return s.settings().weight; })
      .def_property_readonly("median", [](const SecondLook& s) { return s.settings().median; })
      .def(
          "estimates",
          [](const SecondLook& look, GatedModel& model, int64_t layer,
             const std::vector<int64_t>& heads, const at::Tensor& hidden,
             const std::optional<at::Tensor>& mask) {
            return look.estimates(model, layer, heads, hidden, or_undefined(mask));
          },
          py::arg("model"), py::arg("layer"), py::arg("heads"), py::arg("hidden"),
          py::arg("attention_mask") = py::none(), Unlocked(),
          "Estimates of some heads of a layer, float64 [batch, heads], from its input.");
  m.def(
      "fit_second_look",
      [](GatedModel& model, const DataSource& data, std::shared_ptr<AdjustablePolicy> gate,
         double band_share, Progress progress) {
        const SecondLookFit options{band_share, interruptible(std::move(progress))};
        const py::gil_scoped_release release;
        return fit_second_look(model, data, std::move(gate), options);
      },
      py::arg("model"), py::arg("data"), py::arg("gate"), py::kw_only(), py::arg("band_share"),
      py::arg("progress"), "As headkit.fit_second_look, for a GatedModel and a data source.");
  m.def("integer_score_norm", &integer_score_norm, py::arg("queries"), py::arg("keys"),
        py::arg("scale"), R"pbdoc(
Frobenius norm of the attention scores of one head, with the mean key taken off, from int8.

Args:
    queries, keys: float64 [tokens, head_dim].
    scale: factor on the scores.
Example:
    >>> keys = torch.tensor([[1.0], [3.0]], dtype=torch.float64)
    >>> round(headkit.integer_score_norm(torch.ones(2, 1, dtype=torch.float64), keys, 0.5), 9)
    1.0
)pbdoc");
}

void register_static_stage(py::module_& m) {
  m.def(
      "input_importance",
      [](GatedModel& model, const DataSource& data, const std::shared_ptr<Objective>& objective,
         bool blocks, const std::optional<at::Tensor>& dropped_output,
         const std::optional<at::Tensor>& dropped_blocks, Progress progress) {
        InputImportanceOptions options;
        options.blocks = blocks;
        options.dropped_output = or_undefined(dropped_output);
        options.dropped_blocks = or_undefined(dropped_blocks);
        options.progress = interruptible(std::move(progress));
        InputImportance found = [&] {
          const py::gil_scoped_release release;
          return input_importance(model, data, *objective, options);
        }();
        return py::make_tuple(found.heads, or_none(found.blocks));
      },
      py::arg("model"), py::arg("data"), py::kw_only(), py::arg("objective"), py::arg("blocks"),
      py::arg("dropped_output"), py::arg("dropped_blocks"), py::arg("progress"),
      "As headkit.input_importance, for a GatedModel and a data source.");
  m.def(
      "needed_units",
      [](const at::Tensor& importance, double mean_units,
         const std::optional<at::Tensor>& present) {
        return needed_units(importance, mean_units, or_undefined(present));
      },
      py::arg("importance"), py::kw_only(), py::arg("mean_units"), py::arg("present") = py::none(),
      Unlocked(), R"pbdoc(
The units that each input needs where so many run on average.

One threshold for all inputs and layers on the logarithm of the importance, relative to the input's
own mean.

Args:
    importance: float64 >= 0, shape [inputs, layers, units] (``input_importance``).
    mean_units: how many run on average.
    present: bool [layers, units]; None = all.
Returns:
    Tensor: bool [inputs, layers, units].
Raises:
    ValueError: on values or shapes that do not fit.
Example:
    >>> importance = torch.tensor([[[1.0, 9.0]], [[90.0, 2.0]]], dtype=torch.float64)
    >>> headkit.needed_units(importance, mean_units=1).tolist()
    [[[False, True]], [[True, False]]]
)pbdoc");
  py::class_<StaticStage>(m, "StaticStage", R"pbdoc(
What is settled before any input is seen.

Attributes:
    fixed: int8 [layers, units]; -1 = pruned, 1 = always on, 0 = contested.
    need: float64 [layers, units], share of the inputs that need the unit.
    pruned, always_on, contested: how many.
)pbdoc")
      .def_readonly("fixed", &StaticStage::fixed)
      .def_readonly("need", &StaticStage::need)
      .def_readonly("pruned", &StaticStage::pruned)
      .def_readonly("always_on", &StaticStage::always_on)
      .def_readonly("contested", &StaticStage::contested);
  m.def(
      "static_stage",
      [](const at::Tensor& needed, double settled_share, const std::optional<at::Tensor>& present) {
        return static_stage(needed, settled_share, or_undefined(present));
      },
      py::arg("needed"), py::kw_only(), py::arg("settled_share") = 0.005,
      py::arg("present") = py::none(), Unlocked(), R"pbdoc(
Settle the units that no input needs, and those that nearly all need.

Args:
    needed: bool [inputs, layers, units], from ``needed_units`` or an oracle.
    settled_share: units that at most this share of the inputs needs are pruned, those that at least
        1 minus it needs always on; 0 = only where all inputs agree.
    present: bool [layers, units]; None = all.
Returns:
    StaticStage
Raises:
    ValueError: on values or shapes that do not fit.
Example:
    >>> needed = torch.tensor([[[True, False, True]], [[True, False, False]]])
    >>> headkit.static_stage(needed).fixed.tolist()
    [[1, -1, 0]]
)pbdoc");
}

}  // namespace

void register_input_gates(py::module_& m) {
  register_linear_probe(m);
  register_layer_gate(m);
  register_training(m);
  register_rung_trainer(m);
  register_second_look(m);
  register_static_stage(m);
}

}  // namespace headkit::bindings
