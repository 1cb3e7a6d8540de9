"""The hybrid pruner: heads chosen for each input, under a budget, with a bound on the risk."""

import html
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from headkit import _C
from headkit.calibrating import calibrate
from headkit.progress import Told, reporting
from headkit.scoring import as_objective, gated_model


@dataclass(frozen=True)
class Budget:
    """What an example may cost on average: exactly one of the three.

    Attributes:
        mean_heads: heads that run, re-runs included.
        flops: FLOPs, as a share of the dense encoder's, above 0, at most 1.
        milliseconds: of an example in a batch like the held-out ones, by a LatencyModel.

    Raises:
        ValueError: for none, more than one, or a number that is not above 0.

    Example:
        >>> headkit.Budget(flops=0.5)
        Budget(flops=0.5)
    """

    mean_heads: float | None = None
    flops: float | None = None
    milliseconds: float | None = None

    def __post_init__(self) -> None:
        given = self._given()
        if len(given) != 1:
            raise ValueError(
                "[Budget] expected one of mean_heads, flops and milliseconds; found "
                f"{' and '.join(given) or 'none'}"
            )
        (name, value), *_ = given.items()
        if isinstance(value, bool) or not value > 0:
            raise ValueError(f"[Budget] expected {name} above 0; found {value}")

    def _given(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value:g}' for name, value in self._given().items())})"


class HybridReport:
    """What each stage of a fit did, and how the result compares on held-out examples.

    These examples chose shares and lambda too: the figures are close to those of new examples, not
    the same. What is promised of new ones, a calibration says.

    Attributes:
        mechanism, lambda_: as fitted; lambda_ keeps the budget.
        grid: lambdas for calibration and control.
        stages: list of dictionaries with "stage", "found" and "distance", to the original model.
        arms: name -> dictionary of "heads" and "flops" (a share) of an example on average,
            "milliseconds", "agreement" with the original, "distance" to it (KL) and "quality"
            (accuracy); None = not known. "static" has the budget and the same heads for all.
    """

    def __init__(self, text: str):
        told = json.loads(text)
        self.mechanism: str = told["mechanism"]
        self.budget = Budget(**told["budget"])
        self.lambda_: float = told["lambda"]
        self.grid: list[float] = told["grid"]
        self.fitted_examples: int = told["fitted_examples"]
        self.held_out_examples: int = told["held_out_examples"]
        self.stages: list[dict[str, Any]] = told["stages"]
        self.arms: dict[str, dict[str, Any]] = {
            arm["arm"]: {name: value for name, value in arm.items() if name != "arm"}
            for arm in told["arms"]
        }
        self._text = text

    def to_json(self) -> str:
        """Everything, as JSON."""
        return self._text

    def _title(self) -> str:
        return (
            f"{self.mechanism} at {self.budget}, lambda {self.lambda_:.4g}: "
            f"{self.held_out_examples} held-out examples"
        )

    def _rows(self) -> list[list[str]]:
        columns = [
            name
            for name in ("heads", "flops", "milliseconds", "agreement", "distance", "quality")
            if any(arm[name] is not None for arm in self.arms.values())
        ]
        rows = [["", *columns]]
        for name, arm in self.arms.items():
            cells = ["" if arm[column] is None else f"{arm[column]:.4g}" for column in columns]
            rows.append([name, *cells])
        return rows

    def __repr__(self) -> str:
        rows = self._rows()
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines = [self._title()]
        for row in rows:
            cells = [row[0].ljust(widths[0])]
            cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
            lines.append("  ".join(cells).rstrip())
        lines += [f"{stage['stage']}: {stage['found']}" for stage in self.stages]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head, *rows = self._rows()
        cells = [f"<tr>{''.join(f'<th>{html.escape(cell)}</th>' for cell in head)}</tr>"]
        for row in rows:
            cells.append(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>")
        stages = [
            f"<li>{html.escape(stage['stage'])}: {html.escape(stage['found'])}</li>"
            for stage in self.stages
        ]
        return (
            f"<table><caption>{html.escape(self._title())}</caption>{''.join(cells)}</table>"
            f"<ul>{''.join(stages)}</ul>"
        )


class HybridPruner:
    """The whole recipe of dynamic pruning behind two calls: ``fit``, then ``calibrate``.

    ``fit`` orders heads (and neurons), builds nested rungs or fits a gate, with mean outputs for
    what is closed, trains them where asked for, and sets lambda so that held-out examples keep the
    budget. ``calibrate`` bounds what that may lose on new examples.

    Goes wherever a policy goes: ``hk.run(model, batch, pruner)``, ``hk.gates(model, pruner)`` (but
    for escalation, which looks at outputs), ``hk.save(model, folder, policy=pruner)``.

    Args:
        budget: Budget.
        risk: share of labels that may change, for ``calibrate``.
        mechanism: ``"escalation"`` (a cheap rung for all inputs, again on the next one where the
            output is unsure), ``"reactivation"`` (a probe midway decides how much of the other
            layers runs; nothing runs twice), ``"linear_gate"`` (one decision before the first
            layer) or ``"layer_gate"`` (one for each layer).
        order: which heads go first: ``"backward_elimination"``, or a name in
            ``headkit.scorers()``. None = backward elimination up to 160 heads, beyond it the gate
            gradient.
        neurons: ``"fisher"`` puts blocks of neurons on the rungs too, ``"none"`` does not. None =
            where the model was attached with ``feed_forward=True`` and the budget is not one of
            heads.
        head_shares, block_shares: share of heads, and of blocks, on the rungs below the top. Empty
            = one rung, chosen on held-out examples.
        compensate: what is closed adds its mean output.
        layer: before which reactivation decides; 0 = the middle.
        features: scalars that a gate reads beside the pooled state (``headkit.scalar_features()``).
        train: steps of training, a batch each; 0 = everything frozen. Of ladders the model's
            weights, all rungs together; of gates these alone.
        learning_rate: of the model's weights.
        examples: examples behind order, neuron scores and mean outputs.
        seed: of what training draws.

    Raises:
        ValueError: for settings that are not of these; what does not fit the model, ``fit`` says.

    Source:
        Nested rungs Yu, Huang 2019; mean outputs An et al. 2024; gates Akhauri et al. 2024; risk
        Angelopoulos et al. 2024.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> ids, labels = torch.randint(50, (80, 5)), torch.randint(2, (80,))
        >>> data = [{"input_ids": ids[:40], "labels": labels[:40]}]
        >>> fresh = [{"input_ids": ids[40:], "labels": labels[40:]}]
        >>> pruner = headkit.HybridPruner(headkit.Budget(mean_heads=5), risk=0.2)
        >>> pruner = pruner.fit(model, data).calibrate(model, fresh, length_buckets=1)
        >>> pruner.report.arms["policy"]["heads"] <= 5
        True
        >>> headkit.run(model, fresh[0], pruner).output.shape
        torch.Size([40, 2])
    """

    def __init__(
        self,
        budget: Budget,
        *,
        risk: float | None = None,
        mechanism: str = "escalation",
        order: str | None = None,
        neurons: str | None = None,
        head_shares: Sequence[float] = (),
        block_shares: Sequence[float] = (),
        compensate: bool = True,
        layer: int = 0,
        features: Sequence[str] = (),
        train: int = 0,
        learning_rate: float = 4e-5,
        examples: int = 512,
        seed: int = 0,
    ):
        if not isinstance(budget, Budget):
            raise ValueError(
                "[HybridPruner] expected a headkit.Budget, for example Budget(flops=0.5); found "
                f"{budget!r}"
            )
        if risk is not None and not 0 < risk < 1:
            raise ValueError(f"[HybridPruner] expected a risk in (0, 1); found {risk}")
        self.budget, self.risk = budget, risk
        self.calibration: _C.Calibration | None = None
        self._settings = {
            "mechanism": mechanism,
            "order": order or "",
            "neurons": neurons or "",
            "head_shares": list(head_shares),
            "block_shares": list(block_shares),
            "compensate": compensate,
            "layer": layer,
            "features": list(features),
            "train_steps": train,
            "learning_rate": learning_rate,
            "examples": examples,
            "seed": seed,
        }
        self._policy: _C.AdjustablePolicy | None = None
        self._report: HybridReport | None = None

    def fit(
        self,
        model: torch.nn.Module | _C.GatedModel,
        data: Any,
        held_out: Any = None,
        *,
        objective: str | _C.Objective | None = None,
        latency: _C.LatencyModel | None = None,
        progress: bool | Told = False,
    ) -> "HybridPruner":
        """Fit to data; the model changes only where neurons are sorted (exact) or rungs trained.

        Args:
            model: an attached model, or a GatedModel; ladders need outputs [batch, classes].
            data: labelled batches, as for ``score``.
            held_out: other batches, for shares and lambda; None = every fourth example of ``data``.
            objective: the task loss; None = ``"cross_entropy"``.
            latency: for a budget of milliseconds; None = measured.
            progress: as for ``score``.

        Returns:
            The pruner.

        Raises:
            ValueError: for a budget that cannot be met, with what can be reached, or settings and
                data that do not fit. The model is then as it was.
        """
        gated = gated_model(model, "HybridPruner.fit")
        settings: dict[str, Any] = dict(self._settings)
        if not settings["neurons"] and not settings["block_shares"] and not _gates_blocks(gated):
            settings["neurons"] = "none"
        with reporting("fit: hybrid pruner", progress) as tell:
            policy, report = _C.fit_hybrid(
                gated,
                data,
                held_out,
                as_objective(objective),
                **asdict(self.budget),
                **settings,
                latency=latency,
                progress=tell,
            )
        self._policy, self._report, self.calibration = policy, HybridReport(report), None
        return self

    def calibrate(
        self,
        model: torch.nn.Module | _C.GatedModel,
        data: Any,
        *,
        risk: float | None = None,
        **options: Any,
    ) -> "HybridPruner":
        """Bound what the policy loses on new examples; it then never goes below that lambda.

        Args:
            model: the model that was fitted.
            data: batches of examples that ``fit`` has not seen.
            risk: the promised mean loss; None = that of the pruner.
            options: those of ``headkit.calibrate``: loss, method, delta, grid, length buckets ..

        Returns:
            The pruner. Where the promise needs more than the budget, it wins: ``budget_unmet``.

        Raises:
            ValueError: before ``fit``, without a risk, or as ``headkit.calibrate``.
        """
        policy = self._fitted("calibrate")
        risk = self.risk if risk is None else risk
        if risk is None:
            raise ValueError(
                "[HybridPruner] expected a risk, of the pruner or of calibrate; found none"
            )
        options = {"grid": self.report.grid, **options}
        self.calibration = calibrate(model, policy, data, risk=risk, **options)
        return self

    @property
    def policy(self) -> _C.AdjustablePolicy:
        """The policy at the budget; calibrated if ``calibrate`` was called."""
        policy = self._fitted("policy")
        if self.calibration is None:
            return policy
        return _C.CalibratedPolicy(policy, self.calibration, lambda_=self.report.lambda_)

    @property
    def report(self) -> HybridReport:
        """What ``fit`` did and found."""
        self._fitted("report")
        assert self._report is not None
        return self._report

    @property
    def lambda_(self) -> float:
        """The knob: what the budget asks for, or what the promise needs where that is more."""
        wanted = self.report.lambda_
        return wanted if self.calibration is None else self.calibration.at_least(wanted)

    @property
    def budget_unmet(self) -> bool:
        """Whether the promise needs more than the budget allows."""
        return self.lambda_ > self.report.lambda_

    def at(self, lambda_: float) -> _C.GatePolicy:
        """The policy with its knob elsewhere; never below what was calibrated."""
        return self.policy.at(lambda_)

    def to_json(self) -> str:
        """The policy with its calibration, as ``headkit.policy_from_json`` reads it."""
        return self.policy.to_json()

    def __repr__(self) -> str:
        name = f"HybridPruner({self._settings['mechanism']}, {self.budget}"
        if self._policy is None:
            return f"{name}, not fitted)"
        promise = "" if self.calibration is None else f", risk {self.calibration.risk:g}"
        return f"{name}{promise}, lambda {self.lambda_:.4g})"

    def _fitted(self, operation: str) -> _C.AdjustablePolicy:
        if self._policy is None:
            raise ValueError(f"[HybridPruner.{operation}] expected fit first; found none")
        return self._policy


def as_policy(policy: Any) -> Any:
    """The policy of a HybridPruner; anything else as it is."""
    return policy.policy if isinstance(policy, HybridPruner) else policy


def _gates_blocks(model: _C.GatedModel) -> bool:
    from headkit.huggingface.feed_forward import has_feed_forward

    module = getattr(model, "model", None)
    return not isinstance(module, torch.nn.Module) or has_feed_forward(module)
