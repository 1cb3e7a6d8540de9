"""Pruning and gates that learn while a ``transformers.Trainer`` trains. Needs accelerate too.

A pruned or gated model trains as any other: ``Trainer(model=model, ...)``. The removal of heads
under a running optimiser and gates that train beside the weights need help, which is here.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers

from headkit import _C
from headkit.files import write_text
from headkit.huggingface import gates as open_gates
from headkit.learned_gates import LearnedGates
from headkit.pruning import apply, mean_head_outputs, prune
from headkit.scoring import gated_model

HEADS_FILE = "headkit_heads.json"
GATES_FILE = "headkit_gates.safetensors"
# What the training of the gates goes on from: moments, noise, penalties so far.
GATES_TRAINING_FILE = "headkit_gates_training.safetensors"


class PruneWhileTraining(transformers.TrainerCallback):
    """Removes heads in steps: scores them, cuts them out of weights and optimiser, trains on.

    Next to each checkpoint lies ``headkit_heads.json``, a HeadMask of the heads that it has. To
    resume, attach to the original model, ``headkit.apply`` that mask, then ask the Trainer to
    resume.

    Args:
        schedule: share of all original heads that stay, by number of optimiser steps done.
        data: what heads are scored on, as for ``headkit.score``.
        method: a name in ``headkit.pruners()``.
        objective: as for ``headkit.score``.
        compensate: put the mean output of heads that go into the output bias.
        settings: more keyword arguments of ``headkit.prune``.

    Attributes:
        done: by step, the HeadMask that was applied.

    Raises:
        ValueError: for an empty schedule, shares that rise or lie outside 0 to 1; when training
            starts, for a model that is not attached, several processes or devices, or
            ``load_best_model_at_end``: the best checkpoint could have other heads.

    Example:
        >>> data = [{"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}]
        >>> PruneWhileTraining({100: 0.75, 200: 0.5}, data).done
        {}
    """

    def __init__(
        self,
        schedule: Mapping[int, float],
        data: Any,
        *,
        method: str = "gate_gradient",
        objective: str | _C.Objective | None = None,
        compensate: bool = True,
        **settings: Any,
    ):
        shares = [schedule[step] for step in sorted(schedule)]
        ordered = all(one >= two for one, two in pairwise(shares))
        if not shares or not ordered or not all(0 <= share <= 1 for share in shares):
            raise ValueError(
                "[PruneWhileTraining] expected a schedule of steps and shares from 0 to 1 that do "
                f"not rise; found {dict(schedule)}"
            )
        self.schedule, self.data = dict(schedule), data
        self.method, self.objective, self.compensate = method, objective, compensate
        self.settings = settings
        self.done: dict[int, _C.HeadMask] = {}

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Refuse what would go wrong later."""
        gated_model(model, "PruneWhileTraining")
        if (copies := max(args.world_size, args.n_gpu)) > 1:
            raise ValueError(
                f"[PruneWhileTraining] expected one process and device; found {copies}"
            )
        if args.load_best_model_at_end:
            raise ValueError(
                "[PruneWhileTraining] expected load_best_model_at_end=False, because earlier "
                "checkpoints have other heads; found True"
            )

    def on_step_end(self, args, state, control, model=None, optimizer=None, **kwargs):
        """Prune where the schedule says so."""
        if state.global_step not in self.schedule:
            return
        gated = gated_model(model, "PruneWhileTraining")
        found = prune(
            gated,
            self.schedule[state.global_step],
            self.method,
            self.data,
            objective=self.objective,
            **self.settings,
        )
        if not isinstance(found, _C.HeadMask):
            raise ValueError(
                "[PruneWhileTraining] expected a method that decides about heads alone; found "
                f"{self.method!r}"
            )
        mask = found.intersect(gated.heads())
        dropped = mean_head_outputs(gated, self.data, gates=mask) if self.compensate else None
        apply(gated, mask, dropped, optimizer=optimizer)
        self.done[state.global_step] = mask

    def on_save(self, args, state, control, model=None, **kwargs):
        """Note the heads of a checkpoint beside it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_text(folder / HEADS_FILE, gated_model(model, "PruneWhileTraining").heads().to_json())


class LearnGatesWhileTraining(transformers.TrainerCallback):
    """Trains gates beside the weights of a model that a ``Trainer`` trains.

    Each training forward runs under fresh samples of the gates, each evaluation under the hard
    ones. The gates have an optimiser of their own (Adam, no weight decay, multipliers ascend) and a
    clip of their own, so that they do not starve the weights. Their penalty is differentiated on
    its own before the optimiser step, which gives the gradient of a loss that includes it; the
    Trainer's log shows the loss without.

    Next to each checkpoint lie ``headkit_gates.safetensors``, the state dict of the gates, and
    ``headkit_gates_training.safetensors``, from which their training goes on: the moments of their
    optimiser and the state of the noise. To resume, give the checkpoint to ``resume``, then ask the
    Trainer to resume.

    Args:
        gates: what is trained, for example ``headkit.SubsetGates``.
        learning_rate: of the gates.
        max_norm: clips the gradient of the gates; 0 = no clip.
        seed: of the noise.

    Attributes:
        penalties: what the gates added to the loss, by optimiser step.

    Raises:
        ValueError: for anything but learned gates; when training starts, for a model that is not
            attached, several processes or devices, scaled fp16 gradients, or a Trainer that resumes
            at another step than the gates.

    Example:
        >>> gates = headkit.HardConcreteGates(2, 4)
        >>> LearnGatesWhileTraining(gates).penalties
        []
    """

    def __init__(
        self,
        gates: LearnedGates,
        *,
        learning_rate: float = 0.1,
        max_norm: float = 1.0,
        seed: int = 0,
    ):
        if not isinstance(gates, LearnedGates):
            raise ValueError(
                "[LearnGatesWhileTraining] expected learned gates, for example SubsetGates; found "
                f"{type(gates).__name__}"
            )
        self.gates, self.learning_rate, self.max_norm = gates, learning_rate, max_norm
        self.generator = torch.Generator().manual_seed(seed)
        self.penalties: list[float] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._resumed: dict[str, torch.Tensor] | None = None
        self._open: list[Any] = []
        self._hooks: list[Any] = []

    def resume(self, checkpoint: str | Path) -> None:
        """Go on from a checkpoint with the gates, as ``trainer.train(resume_from_checkpoint=...)``
        does with the weights; to be called before it.

        Args:
            checkpoint: its folder.

        Raises:
            FileNotFoundError: if gates did not train there.
            ValueError: for a checkpoint of other gates; nothing has changed.
        """
        gates = safetensors.torch.load_file(Path(checkpoint) / GATES_FILE)
        training = safetensors.torch.load_file(Path(checkpoint) / GATES_TRAINING_FILE)
        expected = {name: list(value.shape) for name, value in self.gates.state_dict().items()}
        found = {name: list(value.shape) for name, value in gates.items()}
        if found != expected:
            raise ValueError(
                f"[LearnGatesWhileTraining] expected gates with tensors {expected}; found {found}"
            )
        self.gates.load_state_dict(gates)
        self.generator.set_state(training["noise"])
        self.penalties = training["penalties"].tolist()
        self._resumed = training

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Open gates around each forward from here on."""
        gated_model(model, "LearnGatesWhileTraining")
        if (copies := max(args.world_size, args.n_gpu)) > 1:
            raise ValueError(
                f"[LearnGatesWhileTraining] expected one process and device; found {copies}"
            )
        if args.fp16:
            raise ValueError(
                "[LearnGatesWhileTraining] expected float32 or bf16, because fp16 scales the "
                "gradients that the gates get; found fp16"
            )
        resumed = 0 if self._resumed is None else int(self._resumed["step"])
        if state.global_step != resumed:
            raise ValueError(
                f"[LearnGatesWhileTraining] expected gates of step {state.global_step}, at which "
                f"the Trainer begins; found those of step {resumed} (give its checkpoint to resume)"
            )
        # A training that an error ended has left its hooks.
        self.on_train_end(args, state, control)
        self._optimizer = torch.optim.Adam(self.gates.parameter_groups(self.learning_rate))
        if self._resumed is not None:
            self._load_moments(self._resumed)
            self._resumed = None
        self._begun().zero_grad()
        self._hooks = [
            model.register_forward_pre_hook(self._begin, prepend=True, with_kwargs=True),
            model.register_forward_hook(self._end, always_call=True),
        ]

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        """Step the gates, with the gradients of loss and penalty."""
        self.gates.train()
        penalty = self.gates.penalty()
        if penalty.requires_grad:
            penalty.backward()
        self.penalties.append(float(penalty.detach()))
        optimizer = self._begun()
        descending = optimizer.param_groups[0]["params"]
        if self.max_norm > 0:
            torch.nn.utils.clip_grad_norm_(descending, self.max_norm)
        optimizer.step()
        optimizer.zero_grad()
        self.gates.after_step()

    def on_save(self, args, state, control, **kwargs):
        """Keep the gates of a checkpoint beside it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        tensors = {
            name: value.detach().contiguous() for name, value in self.gates.state_dict().items()
        }
        safetensors.torch.save_file(tensors, folder / GATES_FILE)
        training = {
            "step": torch.tensor(state.global_step),
            "noise": self.generator.get_state(),
            "penalties": torch.tensor(self.penalties, dtype=torch.float64),
        }
        for place, moments in self._begun().state_dict()["state"].items():
            training |= {f"{place}.{name}": value for name, value in moments.items()}
        safetensors.torch.save_file(training, folder / GATES_TRAINING_FILE)

    def on_train_end(self, args, state, control, **kwargs):
        """Leave the model as it was: dense, unless gates are opened around it."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def _begun(self) -> torch.optim.Optimizer:
        if self._optimizer is None:
            raise RuntimeError(
                "[LearnGatesWhileTraining] expected a training that has begun; found none"
            )
        return self._optimizer

    def _load_moments(self, training: dict[str, torch.Tensor]) -> None:
        state: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in training.items():
            place, dot, name = key.partition(".")
            if dot:
                state.setdefault(int(place), {})[name] = value
        groups = self._begun().state_dict()["param_groups"]
        self._begun().load_state_dict({"state": state, "param_groups": groups})

    def _begin(self, module, args, kwargs):
        if module.training:
            self.gates.train()
            values = (*args, *kwargs.values())
            examples = next((len(v) for v in values if isinstance(v, torch.Tensor)), 1)
            found = self.gates(examples, self.generator)
        else:
            found = self.gates.hard()
        context = open_gates(module, found)
        context.__enter__()
        self._open.append(context)

    def _end(self, module, args, output):
        if self._open:
            self._open.pop().__exit__(None, None, None)
