"""Pruning while a ``transformers.Trainer`` trains. Needs transformers and accelerate.

A pruned or gated model trains as any other: ``Trainer(model=model, ...)``. Only the removal of
heads under a running optimiser needs help, which is here.
"""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import transformers

from headkit import _C
from headkit.files import write_text
from headkit.pruning import apply, mean_head_outputs, prune
from headkit.scoring import gated_model

HEADS_FILE = "headkit_heads.json"


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
        mask = prune(
            gated,
            self.schedule[state.global_step],
            self.method,
            self.data,
            objective=self.objective,
            **self.settings,
        )
        mask = mask.intersect(gated.heads())
        dropped = mean_head_outputs(gated, self.data, gates=mask) if self.compensate else None
        apply(gated, mask, dropped, optimizer=optimizer)
        self.done[state.global_step] = mask

    def on_save(self, args, state, control, model=None, **kwargs):
        """Note the heads of a checkpoint beside it."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        write_text(folder / HEADS_FILE, gated_model(model, "PruneWhileTraining").heads().to_json())
