"""How far an explanation can be trusted: randomisation, stability, agreement."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headkit import _C
from headkit.hybrid import HybridPruner, as_policy
from headkit.scoring import gated_model


def effect_faithfulness(
    model: torch.nn.Module | _C.GatedModel,
    batch: Mapping[str, torch.Tensor],
    effects: Sequence[_C.InputEffects],
    *,
    by: str = "toggle",
    reference: Any = None,
    dropped_output: torch.Tensor | None = None,
    grid: str = "eraser",
    random_orders: int = 50,
    beam_width: int = 0,
    seed: int = 0,
) -> list[_C.Faithfulness]:
    """Test what ``effects`` says of each input: curves over its heads that are on, best first.

    Args:
        model: an attached model, or a GatedModel.
        batch: name -> tensor, as it was given to ``effects``.
        effects: what that returned; metric, target and ablation are taken from it.
        by: what orders heads: ``"toggle"``, ``"gate_gradient"`` or ``"direct"``, largest support
            first.
        reference: batches for the ablations mean and resample.
        dropped_output: what heads add that the policy closed, [layers, heads, model_dim].
        grid: of the curves, ``"eraser"`` or ``"all"``; see ``headkit.faithfulness``.
        random_orders: beside it. beam_width: for bounds of more than 8 heads. seed: of the draw.

    Returns:
        list of Faithfulness, one an input.

    Raises:
        ValueError: for effects of other inputs, effects that lack what orders heads, and inputs
            without a head that is on.
    """
    return _C.effect_faithfulness(
        gated_model(model, "effect_faithfulness"),
        dict(batch),
        list(effects),
        by=by,
        reference=reference,
        dropped_output=dropped_output,
        grid=grid,
        random_orders=random_orders,
        beam_width=beam_width,
        seed=seed,
    )


def check_randomisation(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    policy: _C.GatePolicy | HybridPruner,
    other: _C.GatePolicy | HybridPruner | None = None,
    *,
    limit: float = 0.5,
    resamples: int = 2000,
    seed: int = 0,
) -> _C.RandomisationCheck:
    """Explain the same inputs by another gate: the explanation must change.

    An explanation that survives another gate says nothing about the gate.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once.
        policy: with linear logits (LinearGate, LayerGate, also calibrated).
        other: a policy of the same kind trained on shuffled labels; None = the same policy with its
            weights drawn anew.
        limit: the similarity has to lie below it, with its interval.
        resamples: of the bootstrap over inputs.
        seed: of weights and bootstrap.

    Returns:
        RandomisationCheck.

    Raises:
        ValueError: for policies that do not decide about the same heads by linear logits, and data
            without two inputs of at least three tokens.
    """
    return _C.check_randomisation(
        gated_model(model, "check_randomisation"),
        data,
        as_policy(policy),
        other=None if other is None else as_policy(other),
        limit=limit,
        resamples=resamples,
        seed=seed,
    )


def explanation_stability(
    runs: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    axis: str,
    resamples: int = 2000,
    seed: int = 0,
) -> _C.ExplanationStability:
    """Compare what several runs say of the same inputs: three claims, never one number.

    Args:
        runs: name -> what was found: ``"selection"``, gates [inputs, layers, heads];
            ``"explanation"``, numbers [inputs, reasons] that mean the same in every run, such as
            parts of logits; ``"effect"``, effects [inputs, layers, heads]. A claim is made where
            every run has it.
        axis: what differs between runs: seed, paraphrase, dtype, checkpoint ... Padding and batch
            composition are no axes: there the selection must be identical.
        resamples: of the bootstrap over inputs. seed: of it.

    Returns:
        ExplanationStability: ``selection`` (Nogueira's index), ``explanation`` (by magnitude) and
        ``effect`` (with sign) as Kendall's tau-b and rank-biased overlap; None where not measured.

    Raises:
        ValueError: for fewer than two runs, other fields, shapes that differ, and values that are
            not finite.

    Source:
        Nogueira, Sechidis, Brown 2018; Webber, Moffat, Zobel 2010.

    Example:
        >>> gates = torch.tensor([[[1.0, 0.0, 1.0]]])
        >>> runs = {"float32": {"selection": gates}, "bfloat16": {"selection": gates.clone()}}
        >>> found = headkit.explanation_stability(runs, axis="dtype")
        >>> found.selection.nogueira, found.effect
        (1.0, None)
    """
    fields = ("selection", "explanation", "effect")
    for name, run in runs.items():
        if set(run) - set(fields):
            raise ValueError(
                f"[explanation_stability] expected fields of {', '.join(fields)}; found "
                f"{', '.join(run)} in {name}"
            )
    return _C.explanation_stability(
        [
            (name, run.get("selection"), run.get("explanation"), run.get("effect"))
            for name, run in runs.items()
        ],
        axis=axis,
        resamples=resamples,
        seed=seed,
    )


def metric_agreement(
    metrics: Mapping[str, torch.Tensor | Sequence[torch.Tensor]],
    *,
    over: str = "examples",
    resamples: int = 1000,
    seed: int = 0,
) -> _C.MetricAgreement:
    """How far metrics of the same heads agree, and about which heads they do not.

    Args:
        metrics: name -> values, for example of attention mass, norm, direct effect, gate gradient
            and toggle: [examples, layers, heads], [layers, heads], or a list of these.
        over: what the first axis is, and so what intervals are over: ``"examples"`` or ``"runs"``.
        resamples: of the bootstrap. seed: of it.

    Returns:
        MetricAgreement: Kendall's tau-b and other statistics of every pair, and the heads that two
        metrics place more than a quarter of all heads apart.

    Raises:
        ValueError: for fewer than two metrics, shapes that differ, and values that are not finite.

    Example:
        >>> norm = torch.tensor([[8.0, 7.0, 6.0, 5.0], [4.0, 3.0, 2.0, 1.0]])
        >>> toggle = norm.clone()
        >>> toggle[0, 0] = 0
        >>> found = headkit.metric_agreement({"norm": norm, "toggle": toggle})
        >>> [(gap.layer, gap.head, gap.first_rank, gap.second_rank) for gap in found.gaps]
        [(0, 0, 1.0, 8.0)]
    """
    if over not in ("examples", "runs"):
        raise ValueError(f"[metric_agreement] expected over='examples' or 'runs'; found {over!r}")
    series = []
    for name, found in metrics.items():
        values = found if isinstance(found, torch.Tensor) else torch.stack(list(found))
        series.append((name, (values[None] if values.dim() == 2 else values).double()))
    return _C.metric_agreement(
        series, over_examples=over == "examples", resamples=resamples, seed=seed
    )
