#include <headkit/gates/rung_trainer.h>

#include <optional>

#include "tensor_binding.h"

namespace py = pybind11;

namespace headkit::bindings {
namespace {

using Unlocked = py::call_guard<py::gil_scoped_release>;

// A trainer with what it borrows.
struct HeldTrainer {
  std::shared_ptr<Objective> distillation, task;
  int64_t rungs;
  RungTrainer trainer;
};

}  // namespace

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

}  // namespace headkit::bindings
