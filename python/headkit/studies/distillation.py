"""Training a model's rungs, one or several, to say what the model said before."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from headkit import _C
from headkit.studies.dynamic_task import Opened, Task
from headkit.studies.recipe import Recipe, keep, resume

EVERY = 20


def distilled(
    task: Task,
    fresh: Callable[[], Opened],
    rungs: Sequence[_C.Rung],
    recipe: Recipe,
    path: Path,
    *,
    ladder: bool,
) -> int:
    """Train all weights so that each rung says what the dense model said, and keep them.

    Each step is one of ``headkit.RungTrainer``, as in ``headkit.train_ladder``: it runs every rung
    on one batch; the loss of a rung is its divergence from the dense model (KL, or 1 - cosine),
    plus half of the cross entropy of the labels where units are closed. A static sub-network is the
    case of one rung; a ladder of two is the sandwich rule.

    Args:
        task: of the model; its seed draws order and dropout.
        fresh: makes a copy of the model that the rungs are of.
        rungs: of that model.
        recipe: of the training.
        path: file of the weights; a checkpoint beside it lets a run that was cut off go on.
        ladder: whether the last rung is the whole model, which learns without labels.

    Returns:
        int: steps.

    Raises:
        RuntimeError: if the loss is not finite.
        Missing: if the weights are not there and nothing may be computed.

    Source:
        Hinton, Vinyals, Dean 2015; sandwich rule: Yu, Huang 2019.
    """
    steps = recipe.steps(len(task.part("train").labels))
    if path.is_file():
        return steps
    task.results.check_not_frozen("distilled")
    teacher, student = task.plain(), fresh()
    module = student.module
    for parameter in module.parameters():
        parameter.requires_grad_(True)
    cross_entropy = _C.make_objective("cross_entropy") if task.classifies else None
    trainer = _C.RungTrainer(
        student.gated,
        rungs,
        distillation=_C.make_objective("kl_to_dense" if task.classifies else "cosine_to_dense"),
        learning_rate=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        max_norm=recipe.clip,
        warmup_steps=recipe.warmup_steps(steps),
        total_steps=steps,
        task=cross_entropy,
        last_without_task=ladder,
    )
    checkpoint, parts = path.with_suffix(".trainer"), {"model": module, "trainer": trainer}
    first, done = resume(checkpoint, parts), 0
    module.train()
    for epoch in range(recipe.epochs):
        for batch in task.epoch(recipe.batch_size, 1_000_003 * (1000 + task.seed) + epoch):
            done += 1
            if done <= first:
                continue
            torch.manual_seed(1_000_003 * (1000 + task.seed) + done)
            with torch.no_grad():
                dense = task.forward(teacher, batch)
            trainer.step(batch, dense)
            task.tell(f"training {len(rungs)} rungs", done, steps)
            if done % EVERY == 0:
                keep(checkpoint, parts, done)
    beside = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(module.state_dict(), beside)
    os.replace(beside, path)
    checkpoint.unlink(missing_ok=True)
    return steps
