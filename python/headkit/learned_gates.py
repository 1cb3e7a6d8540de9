"""Gates that are trained: modules for any training loop, a loop of our own, and hardening."""

from typing import Any

import torch
from torch import nn

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import as_objective, gated_model


class LearnedGates(nn.Module):
    """Gates with parameters of their own; what they compute is computed in C++.

    Subclasses: ``HardConcreteGates``, ``SubsetGates``, ``CofiGates``, ``FixedTargetGates``. A loop
    of your own adds four lines:

        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
        >>> learned = headkit.HardConcreteGates(2, 4)
        >>> optimizer = torch.optim.Adam(learned.parameter_groups(0.1))
        >>> with headkit.gates(model, learned()):
        ...     loss = model(**batch).loss + learned.penalty()
        >>> loss.backward()
        >>> optimizer.step()
        >>> learned.after_step()

    Attributes:
        step: int64 tensor [], optimiser steps done, on which temperatures and targets depend; part
            of the state dict.
    """

    CORE: type

    def __init__(self, **settings: Any):
        super().__init__()
        self.settings = settings
        self._ascending = []
        self.step: torch.Tensor
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        for name, value, ascends in self.CORE(**settings).parameters():
            self.register_parameter(name, nn.Parameter(value.detach()))
            if ascends:
                self._ascending.append(name)

    def core(self) -> Any:
        """The C++ object on the parameters that the module has now."""
        core = self.CORE(**self.settings)
        for name, parameter in self.named_parameters(recurse=False):
            core.set_parameter(name, parameter)
        return core

    def forward(self, examples: int = 1, generator: torch.Generator | None = None) -> _C.GateSet:
        """Gates for one batch: with noise in training mode, the hard ones in evaluation mode.

        Args:
            examples: in the batch; only gates by example need it.
            generator: of the noise, on the CPU; None = torch's own.

        Returns:
            GateSet: differentiable in training mode.
        """
        if not self.training:
            return self.hard()
        return self.core().sample(int(self.step), examples, generator)

    def soft(self) -> _C.GateSet:
        """Gates without noise, not binarised."""
        return self.core().soft(int(self.step))

    def hard(self) -> _C.GateSet:
        """The gates of use: what pruning by them gives."""
        return self.core().hard()

    def penalty(self) -> torch.Tensor:
        """What training adds to a loss that is a mean over examples: a differentiable scalar."""
        return self.core().penalty(int(self.step))

    def after_step(self) -> None:
        """Count an optimiser step, and bring parameters back into their range."""
        self.core().after_step()
        self.step += 1

    def describe(self) -> str:
        """JSON: what is open by which rule, the temperature or target now."""
        return self.core().describe(int(self.step))

    def parameter_groups(
        self, lr: float, multiplier_lr: float | None = None
    ) -> list[dict[str, Any]]:
        """Groups for an optimiser of ``torch.optim``: no weight decay; multipliers ascend.

        Args:
            lr: learning rate of the gates.
            multiplier_lr: of Lagrange multipliers; None = ``lr``.
        """
        named = dict(self.named_parameters(recurse=False))
        ascending = [named.pop(name) for name in self._ascending]
        groups = [{"params": list(named.values()), "lr": lr, "weight_decay": 0.0}]
        if ascending:
            rate = lr if multiplier_lr is None else multiplier_lr
            groups.append({"params": ascending, "lr": rate, "weight_decay": 0.0, "maximize": True})
        return groups

    def extra_repr(self) -> str:
        """The settings."""
        return ", ".join(f"{name}={value!r}" for name, value in self.settings.items())


class HardConcreteGates(LearnedGates):
    """L0-regularised head gates; parameter ``log_alpha`` [layers, heads].

    Samples are exactly 0 or 1 with positive probability, and closed heads are skipped in training
    too, because the gradient of a clipped gate is 0. How many heads stay follows from ``penalty``.
    Hard gates open the heads with log_alpha > 0.

    Args:
        layers, heads: of the model.
        penalty: lambda, times the sum over all heads of P(open).
        start: log_alpha at the start, at least 2.5.
        per_example: one sample for each example instead of one for the batch.
        gamma, zeta, beta: as for ``hard_concrete_test_gate``.

    Raises:
        ValueError: on values out of range.

    Source:
        Louizos, Welling, Kingma 2018; Voita et al. 2019, with a sum over all heads as in the paper.

    Example:
        >>> HardConcreteGates(2, 4).soft().heads.min().item()
        1.0
    """

    CORE = _C.HardConcreteGatesCore

    def __init__(
        self,
        layers: int,
        heads: int,
        *,
        penalty: float = 0.01,
        start: float = 2.5,
        per_example: bool = False,
        gamma: float = -0.1,
        zeta: float = 1.1,
        beta: float = 0.33,
    ):
        super().__init__(
            layers=layers,
            heads=heads,
            penalty=penalty,
            start=start,
            per_example=per_example,
            gamma=gamma,
            zeta=zeta,
            beta=beta,
        )


class SubsetGates(LearnedGates):
    """Differentiable subset pruning: exactly ``keep`` heads; parameter ``w`` [layers, heads].

    Clip the gradient of ``w`` on its own: it explodes below temperatures of 0.1 and vanishes below
    0.001. There is no penalty.

    Args:
        layers, heads: of the model.
        keep: heads that stay, 0 to layers * heads.
        first_temperature, last_temperature, cooldown_steps: falls exponentially, then stays.
            Published: 1000, 1e-8, 25,000; at 1000 all gates are equal.
        straight_through: hard gates forward, identity backward.
        clip: relaxed gates above 1 become 1.

    Raises:
        ValueError: on values out of range.

    Source:
        Li, Cotterell, Sachan 2021.

    Example:
        >>> SubsetGates(2, 4, keep=3).hard().heads.sum().item()
        3.0
    """

    CORE = _C.SubsetGatesCore

    def __init__(
        self,
        layers: int,
        heads: int,
        *,
        keep: int,
        first_temperature: float = 10.0,
        last_temperature: float = 0.1,
        cooldown_steps: int = 1000,
        straight_through: bool = False,
        clip: bool = True,
    ):
        super().__init__(
            layers=layers,
            heads=heads,
            keep=keep,
            first_temperature=first_temperature,
            last_temperature=last_temperature,
            cooldown_steps=cooldown_steps,
            straight_through=straight_through,
            clip=clip,
        )


class CofiGates(LearnedGates):
    """CoFi: gates of heads, neurons, whole blocks and hidden dimensions, driven to a sparsity.

    Parameters: log_alpha by kind of unit, and ``multipliers`` [2], which ascend. Hard gates close
    as many units of a group as are expected to be 0; the others keep a soft value, which ``apply``
    folds into the weights.

    Args:
        layout: HeadLayout of the model: ``attach(model).layout()``.
        target_sparsity: share of the weights of attention and feed-forward blocks that goes.
        attention_sublayers, neurons, feed_forward_sublayers, hidden: kinds that have gates beside
            heads.
        start: mean of log_alpha at the start; held in [ln 0.01, ln 100] after each step.
        ramp_steps: steps over which the target grows from 0.
        absolute: the absolute deviation in the Lagrangian, against overshooting on small data.
        matrices: weights of a feed-forward block, 2, or 3 where it is gated.
        seed: of the start.
        gamma, zeta, beta: as for ``hard_concrete_test_gate``.

    Raises:
        ValueError: on values out of range.

    Source:
        Xia, Zhong, Chen 2022.

    Example:
        >>> layout = headkit.HeadLayout(2, 4, 6, 24, 32)
        >>> round(CofiGates(layout).expected_sparsity().item(), 3)
        0.0
    """

    CORE = _C.CofiGatesCore

    def __init__(
        self,
        layout: _C.HeadLayout,
        *,
        target_sparsity: float = 0.5,
        attention_sublayers: bool = True,
        neurons: bool = True,
        feed_forward_sublayers: bool = True,
        hidden: bool = False,
        start: float = 10.0,
        ramp_steps: int = 0,
        absolute: bool = False,
        matrices: int = 2,
        seed: int = 0,
        gamma: float = -0.1,
        zeta: float = 1.1,
        beta: float = 2 / 3,
    ):
        super().__init__(
            layout=layout,
            target_sparsity=target_sparsity,
            attention_sublayers=attention_sublayers,
            neurons=neurons,
            feed_forward_sublayers=feed_forward_sublayers,
            hidden=hidden,
            start=start,
            ramp_steps=ramp_steps,
            absolute=absolute,
            matrices=matrices,
            seed=seed,
            gamma=gamma,
            zeta=zeta,
            beta=beta,
        )

    def expected_sparsity(self) -> torch.Tensor:
        """1 - expected size / full size: float64 scalar, differentiable."""
        return self.core().expected_sparsity()


class FixedTargetGates(LearnedGates):
    """Hard concrete gates with an exact count for each kind of unit (Sheared LLaMA).

    Parameters: log_alpha by kind, and ``KIND_multipliers``, which ascend. With heads alone it is
    an exact-K hard concrete: hard gates open the heads of largest log_alpha.

    Args:
        layout: HeadLayout of the model: ``attach(model).layout()``.
        heads, attention_sublayers, neurons, feed_forward_sublayers, hidden: units that stay; None =
            the kind has no gates.
        per_layer: ``heads`` and ``neurons`` are counts for each layer.
        start: log_alpha at the start; published: 5, with a rate of 1.
        ramp_steps: steps over which the targets fall from everything: most of the training, so that
            units close one by one.
        gamma, zeta, beta: as for ``hard_concrete_test_gate``.

    Raises:
        ValueError: on counts out of range, and if none is given.

    Source:
        Xia, Gao, Zeng, Chen 2024.

    Example:
        >>> layout = headkit.HeadLayout(2, 4, 6, 24, 32)
        >>> FixedTargetGates(layout, heads=3).hard().heads.sum().item()
        3.0
    """

    CORE = _C.FixedTargetGatesCore

    def __init__(
        self,
        layout: _C.HeadLayout,
        *,
        heads: int | None = None,
        attention_sublayers: int | None = None,
        neurons: int | None = None,
        feed_forward_sublayers: int | None = None,
        hidden: int | None = None,
        per_layer: bool = False,
        start: float = 2.5,
        ramp_steps: int = 0,
        gamma: float = -0.1,
        zeta: float = 1.1,
        beta: float = 2 / 3,
    ):
        super().__init__(
            layout=layout,
            heads=heads,
            attention_sublayers=attention_sublayers,
            neurons=neurons,
            feed_forward_sublayers=feed_forward_sublayers,
            hidden=hidden,
            per_layer=per_layer,
            start=start,
            ramp_steps=ramp_steps,
            gamma=gamma,
            zeta=zeta,
            beta=beta,
        )


def train_gates(
    model: nn.Module | _C.GatedModel,
    gates: LearnedGates,
    data: Any,
    *,
    steps: int,
    objective: str | _C.Objective | None = None,
    learning_rate: float = 0.1,
    max_norm: float = 1.0,
    weight_learning_rate: float = 0.0,
    weight_decay: float = 0.01,
    max_weight_norm: float = 1.0,
    seed: int = 0,
    teacher: nn.Module | _C.GatedModel | None = None,
    distillation: _C.LayerDistillation | None = None,
    progress: bool | Told = False,
) -> _C.GateTraining:
    """Train gates on a model, and its weights where asked for, in one plain loop.

    Gates and weights change in place; an error or Ctrl-C puts both back as they were. Dropout is
    off while weights are frozen; weights that train keep the mode of the model.

    Args:
        model: an attached model, or a GatedModel.
        gates: what is trained.
        data: batches, as for ``score``; walked again until ``steps`` are done.
        steps: optimiser steps, one a batch.
        objective: as for ``score``.
        learning_rate: of the gates, which have their own Adam without weight decay.
        max_norm: clips the gradient of the gates on its own; 0 = no clip.
        weight_learning_rate: of the model's weights, by AdamW; 0 = frozen.
        weight_decay, max_weight_norm: of the weights.
        seed: of the noise.
        teacher: gives the dense outputs for objectives that compare with them; None = the model
            itself with all gates 1, if its weights are frozen.
        distillation: LayerDistillation from ``teacher``, instead of the objective.
        progress: as for ``score``, by steps.

    Returns:
        GateTraining: ``loss`` and ``penalty`` by step.

    Raises:
        ValueError: on options or data that do not fit.
        RuntimeError: if a loss is not finite or the gates do not reach it.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
        >>> learned = headkit.SubsetGates(2, 4, keep=3, cooldown_steps=5)
        >>> headkit.train_gates(model, learned, [batch], steps=5)
        <training of gates: 5 steps>
    """
    gated = gated_model(model, "train_gates")
    dense = None if teacher is None else gated_model(teacher, "train_gates")
    with reporting(f"train: {type(gates).__name__}", progress) as tell:
        training = _C.train_gates(
            gated,
            _learned(gates, "train_gates").core(),
            data,
            as_objective(objective),
            steps=steps,
            learning_rate=learning_rate,
            max_norm=max_norm,
            weight_learning_rate=weight_learning_rate,
            weight_decay=weight_decay,
            max_weight_norm=max_weight_norm,
            first_step=int(gates.step),
            seed=seed,
            teacher=dense,
            distillation=distillation,
            progress=tell,
        )
    gates.step += len(training)
    return training


def harden(
    model: nn.Module | _C.GatedModel,
    gates: LearnedGates,
    data: Any,
    *,
    objective: str | _C.Objective | None = None,
    draws: int = 8,
    seed: int = 0,
    progress: bool | Told = False,
) -> _C.HardenedGates:
    """Turn trained gates into what prunes, and say what the deterministic model loses.

    Args:
        model: an attached model, or a GatedModel; unchanged.
        gates: trained gates.
        data: batches that the losses are measured on, as for ``score``.
        objective: as for ``score``.
        draws: samples of the gates behind ``sampled_loss``.
        seed: of the noise.
        progress: as for ``score``.

    Returns:
        HardenedGates: heads, gates, and the mean losses under dense, sampled, soft and hard gates.

    Raises:
        ValueError: for data without examples.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config)
        >>> gated = headkit.attach(model)
        >>> batch = {"input_ids": torch.tensor([[1, 2, 3]]), "labels": torch.tensor([1])}
        >>> headkit.harden(model, headkit.SubsetGates(2, 4, keep=3), [batch]).heads.count
        3
    """
    gated = gated_model(model, "harden")
    with reporting("harden", progress) as tell:
        return _C.harden(
            gated,
            _learned(gates, "harden").core(),
            data,
            as_objective(objective),
            draws=draws,
            step=int(gates.step),
            seed=seed,
            progress=tell,
        )


def _learned(gates: LearnedGates, operation: str) -> LearnedGates:
    if not isinstance(gates, LearnedGates):
        raise ValueError(
            f"[{operation}] expected learned gates, for example HardConcreteGates; found "
            f"{type(gates).__name__}"
        )
    return gates


def learned_gate_scores(gates: LearnedGates, parameter: str = "") -> _C.HeadScores:
    """What trained gates say of heads: the parameter that decides about them.

    It ranks heads also where the gates themselves are clipped to 0 or 1.

    Args:
        gates: trained gates.
        parameter: its name; empty = the first of shape [layers, heads].

    Returns:
        HeadScores: metric ``"learned_gates"``.

    Raises:
        ValueError: if there is no such parameter, or for other than learned gates.

    Example:
        >>> headkit.learned_gate_scores(headkit.HardConcreteGates(2, 4)).values.shape
        torch.Size([2, 4])
    """
    return _C.learned_gate_scores(_learned(gates, "learned_gate_scores").core(), parameter)
