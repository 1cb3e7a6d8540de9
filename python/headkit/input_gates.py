"""Gates that read the input, and the rungs of a ladder, trained end to end."""

from typing import Any, cast

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import as_objective, gated_model


def input_importance(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    objective: str | _C.Objective | None = None,
    *,
    blocks: bool = False,
    dropped_output: torch.Tensor | None = None,
    dropped_blocks: torch.Tensor | None = None,
    progress: bool | Told = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """How much each head, and each block of neurons, matters to single examples.

    Args:
        model: an attached model, or a GatedModel; unchanged.
        data: batches, as for ``score``.
        objective: a loss with a gradient at the dense model; None = ``"cross_entropy"``.
        blocks: also of blocks of 32 neurons, for a model attached with ``feed_forward=True``.
        dropped_output: what closed heads would add, [layers, heads, model_dim].
        dropped_blocks: the same of blocks, [layers, blocks, model_dim].
        progress: as for ``score``.

    Returns:
        tuple: magnitude of the gate gradients, float64 [examples, layers, heads]; the same of
        blocks or None.

    Raises:
        ValueError: for a model that is not attached, an objective without a gradient there, or data
            that do not fit.

    Source:
        Michel, Levy, Neubig 2019, by example.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.randint(50, (8, 5)), "labels": torch.randint(2, (8,))}]
        >>> heads, _ = headkit.input_importance(model, data)
        >>> headkit.static_stage(headkit.needed_units(heads, mean_units=4)).fixed.shape
        torch.Size([2, 4])
    """
    gated = gated_model(model, "input_importance")
    with reporting("importance of inputs", progress) as tell:
        return _C.input_importance(
            gated,
            data,
            objective=as_objective(objective),
            blocks=blocks,
            dropped_output=dropped_output,
            dropped_blocks=dropped_blocks,
            progress=tell,
        )


def static_gate(
    model: torch.nn.Module | _C.GatedModel,
    scores: _C.HeadScores | torch.Tensor,
    heads: int,
    *,
    by_layer: bool = False,
    dropped_output: torch.Tensor | None = None,
) -> _C.LinearGate | _C.LayerGate:
    """A gate that runs the best heads for every input: where training starts.

    Args:
        model: an attached model, or a GatedModel.
        scores: HeadScores or tensor [layers, heads]; ties go to the lower head.
        heads: how many run.
        by_layer: a LayerGate instead of a LinearGate.
        dropped_output: what a closed head adds instead of nothing, [layers, heads, model_dim].

    Returns:
        LinearGate or LayerGate: with weights 0.

    Raises:
        ValueError: for a model that is not attached, or scores that do not fit.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> gate = headkit.static_gate(model, torch.arange(8.0).reshape(2, 4), 3)
        >>> headkit.run(model, {"input_ids": torch.tensor([[1, 2]])}, gate).gates.heads.tolist()
        [[[0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]]]
    """
    gated = gated_model(model, "static_gate")
    values = scores.values if isinstance(scores, _C.HeadScores) else scores
    make = _C.static_layer_gate if by_layer else _C.static_linear_gate
    return make(gated, values, heads, dropped_output)


def train_input_gates(
    model: torch.nn.Module | _C.GatedModel,
    start: _C.LinearGate | _C.LayerGate,
    train: Any,
    calibration: Any,
    *,
    budget: float,
    steps: int,
    objective: str | _C.Objective = "kl_to_dense",
    relaxation: str = "straight_through",
    temperature: float = 1.0,
    start_spread: float = 1.0,
    weight_penalty: float = 1e-3,
    ramp_steps: int = 0,
    costs: torch.Tensor | None = None,
    learning_rate: float = 0.05,
    weight_learning_rate: float = 0.03,
    model_learning_rate: float = 0.0,
    settled_share: float = 0.005,
    compensate: bool = False,
    draws: int = 2,
    seed: int = 0,
    teacher: torch.nn.Module | _C.GatedModel | None = None,
    progress: bool | Told = False,
) -> tuple[_C.LinearGate | _C.LayerGate, _C.InputGateReport]:
    """Train a gate end to end under a budget over all layers.

    Args:
        model: an attached model, or a GatedModel; unchanged unless ``model_learning_rate`` > 0.
        start: a static gate (``static_gate``) or a fitted one; at step 0 the gate decides as it.
        train: batches, as for ``score``; walked anew until there were enough steps.
        calibration: other batches, for the threshold and the report.
        budget: share of the cost of all heads that runs on average, in (0, 1].
        steps: optimiser steps, one a batch.
        objective: ``"kl_to_dense"`` distils the dense model; or a task loss.
        relaxation: ``"straight_through"`` or ``"hard_concrete"``.
        temperature: of straight-through gates.
        start_spread: standard deviation of the contested heads' logits at the start.
        weight_penalty: times the mean square of the weights, for features of unit variance.
        ramp_steps: over which the budget moves from that of ``start`` to its own.
        costs: of each head, float64 [layers, heads]; None = 1 each.
        learning_rate, weight_learning_rate: of static logits and multipliers, and of weights.
        model_learning_rate: of the model's weights; 0 = frozen.
        settled_share: heads opened for less than this share of the inputs are pruned, for more than
            1 minus it always on.
        compensate: measure what closed heads add under the trained gate, instead of keeping that
            of ``start``.
        draws: samples of the gates behind the report's ``sampled_loss``.
        seed: of the gates' noise.
        teacher: gives the dense outputs; needed where the model's weights train.
        progress: as for ``score``.

    Returns:
        tuple: the gate, of the kind of ``start``, and InputGateReport; its ``warning`` says where
        the gate became static.

    Raises:
        ValueError: for a model that is not attached, or options and data that do not fit.
        RuntimeError: if a loss is not finite; the model is as it was then.

    Source:
        Louizos, Welling, Kingma 2018; Bengio, Leonard, Courville 2013; budget after Xia, Zhong,
        Chen 2022.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.randint(50, (8, 5))} for _ in range(2)]
        >>> start = headkit.static_gate(model, torch.rand(2, 4), 4)
        >>> gate, report = headkit.train_input_gates(
        ...     model, start, data, data, budget=0.5, steps=3
        ... )
        >>> report.mean_heads <= 4
        True
    """
    gated = gated_model(model, "train_input_gates")
    with reporting("train: input gates", progress) as tell:
        trained, report = _C.train_input_gates(
            gated,
            start,
            train,
            calibration,
            objective=as_objective(objective),
            budget=budget,
            steps=steps,
            relaxation=relaxation,
            temperature=temperature,
            start_spread=start_spread,
            weight_penalty=weight_penalty,
            ramp_steps=ramp_steps,
            costs=costs,
            learning_rate=learning_rate,
            weight_learning_rate=weight_learning_rate,
            model_learning_rate=model_learning_rate,
            settled_share=settled_share,
            compensate=compensate,
            draws=draws,
            seed=seed,
            teacher=None if teacher is None else gated_model(teacher, "train_input_gates"),
            progress=tell,
        )
    return cast("_C.LinearGate | _C.LayerGate", trained), report


def train_ladder(
    model: torch.nn.Module | _C.GatedModel,
    ladder: Any,
    data: Any,
    *,
    steps: int,
    distillation: str | _C.Objective = "kl_to_dense",
    learning_rate: float = 4e-5,
    weight_decay: float = 0.01,
    max_norm: float = 1.0,
    task: str | _C.Objective | None = "cross_entropy",
    task_weight: float = 0.5,
    teacher: torch.nn.Module | _C.GatedModel | None = None,
    compensate: bool = True,
    seed: int = 0,
    progress: bool | Told = False,
) -> _C.LadderTraining:
    """Train the rungs of a ladder together, on the weights that they share.

    Each step runs the lowest, the top and a random rung between on the same batch. Each learns from
    the outputs of the dense model, those below the top from the task too.

    Args:
        model: an attached model, or a GatedModel; its weights change in place, in the mode it has.
        ladder: Ladder.
        data: batches, as for ``score``; walked anew until there were enough steps.
        steps: optimiser steps, one a batch.
        distillation: how outputs are compared with those of the dense model.
        learning_rate, weight_decay, max_norm: of AdamW; a norm of 0 does not clip.
        task: loss of the rungs below the top; None = none.
        task_weight: times the task loss.
        teacher: an attached frozen copy that gives the dense outputs; None = the model's own before
            training, which are kept in memory.
        compensate: measure what closed heads and blocks add anew, where a rung has that.
        seed: draws the random rung.
        progress: as for ``score``.

    Returns:
        LadderTraining: losses by step, and the ladder.

    Raises:
        ValueError: for a model that is not attached, or options and data that do not fit.
        RuntimeError: if a loss is not finite; the model is as it was then.

    Source:
        Sandwich rule: Yu, Huang 2019.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> low = headkit.Rung(headkit.HeadMask(torch.tensor([[1, 0, 0, 0], [0, 1, 1, 0]])))
        >>> ladder = headkit.Ladder([low, headkit.Rung(headkit.HeadMask.all(2, 4))])
        >>> data = [{"input_ids": torch.randint(50, (8, 5)), "labels": torch.randint(2, (8,))}]
        >>> len(headkit.train_ladder(model, ladder, data, steps=3).low)
        3
    """
    gated = gated_model(model, "train_ladder")
    with reporting("train: ladder", progress) as tell:
        return _C.train_ladder(
            gated,
            ladder,
            data,
            distillation=as_objective(distillation),
            steps=steps,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            max_norm=max_norm,
            task=None if task is None else as_objective(task),
            task_weight=task_weight,
            teacher=None if teacher is None else gated_model(teacher, "train_ladder"),
            compensate=compensate,
            seed=seed,
            progress=tell,
        )
