"""Rungs of the dynamic study: the heads and neurons that a budget leaves, by validation data."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.demo.encoder import Part
from headkit.ladders import make_ladder, sort_neurons
from headkit.pruning import prune
from headkit.scoring import fisher_information
from headkit.studies.dynamic_task import BATCH, Opened, Task
from headkit.studies.methods import MICHEL, SETTINGS
from headkit.studies.recipe import Recipe

GREEDY = "backward_elimination"
# Share of the heads where a greedy search stops; the heads that are left stay on every rung.
GREEDY_KEEP = 0.2
# Examples on which candidates are compensated and compared, before the best is made on all.
SKETCH = 128


@dataclass(frozen=True)
class Choices:
    """What arms may choose from, on validation data.

    Attributes:
        metrics: orders in which heads may go: of ``headkit.scorers()``, ``michel`` or backward
            elimination.
        mixes: shares of the heads; the share of the neurons follows from the budget.
        lows: FLOPs of the low rung, as a share of dense.
        layers: before which reactivation may decide, as shares of the depth.
        again: of training the rungs.
    """

    metrics: tuple[str, ...] = (MICHEL, "ablation", GREEDY)
    mixes: tuple[float, ...] = (1.0, 0.75, 0.5, 0.34, 0.25)
    lows: tuple[float, ...] = (0.2, 0.3, 0.4, 0.5, 0.6)
    layers: tuple[float, ...] = (0.34, 0.5)
    again: Recipe = field(default_factory=lambda: Recipe(epochs=1, learning_rate=4e-5))


def full_rung(layout: _C.HeadLayout) -> _C.Rung:
    """Everything runs."""
    return _C.Rung(_C.HeadMask.all(layout.layers, layout.heads))


class Rungs:
    """What rungs of one task and seed can be, from the disk if they are there."""

    def __init__(self, task: Task, choices: Choices):
        self.task, self.choices = task, choices
        self._opened: dict[str, Opened] = {}

    @cached_property
    def _neurons(self) -> torch.Tensor:
        """Fisher information of every neuron on calibration data, [L, F]."""

        def compute() -> Any:
            data = self.task.part("calibration").batches
            return fisher_information(self.task.open().scored, data).neurons.tolist()

        return torch.tensor(self.task.get("neuron_scores", {}, compute), dtype=torch.float64)

    def opened(self, weights: Path | None = None) -> Opened:
        """A copy of the model, neurons sorted; the same object for the same weights."""
        key = str(weights)
        if key not in self._opened:
            self._opened[key] = self.fresh(weights)
        return self._opened[key]

    def fresh(self, weights: Path | None = None) -> Opened:
        """A copy of the model, neurons sorted, with trained weights where they are given."""
        found = self.task.open()
        sort_neurons(found.module, self._neurons)
        if weights is not None:
            found.module.load_state_dict(torch.load(weights, weights_only=True))
        return found

    @cached_property
    def layout(self) -> _C.HeadLayout:
        """Of the model."""
        return self.opened().gated.layout()

    def _order(self, metric: str) -> list[_C.HeadId]:
        """Heads in the order in which they go, the first to go first."""

        def compute() -> Any:
            if metric != GREEDY:
                return [list(head) for head in _C.removal_order(self.task.scores(metric))]
            found = prune(
                self.task.open().scored,
                GREEDY_KEEP,
                GREEDY,
                self.task.part("calibration").batches[: SKETCH // BATCH],
                objective="cross_entropy",
                compensate=True,
                progress=lambda done, total: self.task.tell(GREEDY, done, total),
                **SETTINGS[GREEDY],
            )
            return [list(head) for head in found.details["order"]]

        return [_C.HeadId(*head) for head in self.task.get("orders", {"of": metric}, compute)]

    def _ladder(self, plan: dict[str, Any], *, sketch: bool = False) -> _C.Ladder:
        """The rung of a plan, and the whole model above it."""
        opened = self.opened()
        data = self.task.part("calibration").batches[: SKETCH // BATCH if sketch else None]
        neurons = self._neurons.sort(dim=1, descending=True, stable=True).values
        if plan["metric"] == "random":
            draw = torch.Generator().manual_seed(plan["draw"])
            order = [
                _C.HeadId(layer, head)
                for layer in range(self.layout.layers)
                for head in range(self.layout.heads)
            ]
            mixed = torch.randperm(len(order), generator=draw).tolist()
            order = [order[place] for place in mixed]
            neurons = torch.rand(neurons.shape, generator=draw, dtype=torch.float64)
        else:
            order = self._order(plan["metric"])
        return make_ladder(
            opened.gated,
            head_shares=[plan["heads"]],
            order=order,
            neuron_scores=neurons,
            block_shares=[plan["blocks"]],
            data=data,
        )

    def ladder(self, plan: dict[str, Any]) -> _C.Ladder:
        """The rung of a plan below the whole model, from the disk if it is there."""
        found = self.task.get(
            "ladders", {"plan": plan}, lambda: json.loads(self._ladder(plan).to_json())
        )
        return _C.Ladder.from_json(json.dumps(found))

    def _rung(self, plan: dict[str, Any], compensate: bool) -> _C.Rung:
        rung = self.ladder(plan)[0]
        return rung if compensate else _C.Rung(rung.heads, blocks=rung.blocks)

    def _tokens(self) -> float:
        return float(self.task.part("calibration").tokens.double().mean())

    def _plans(self, budget: float) -> list[dict[str, Any]]:
        """Heads and blocks of neurons that cost a share of the dense FLOPs, in several mixes."""
        gated, layout, tokens = self.opened().gated, self.layout, self._tokens()
        whole = _C.rung_flops(gated, full_rung(layout), tokens)
        none = torch.zeros(layout.layers, layout.heads, dtype=torch.bool)
        neurons = _C.rung_flops(gated, _C.Rung(_C.HeadMask(none)), tokens)
        plans = []
        for heads in self.choices.mixes:
            blocks = (budget * whole - heads * (whole - neurons)) / neurons
            if 0.02 <= blocks <= 1:
                plans += [
                    {"metric": metric, "heads": heads, "blocks": round(blocks, 4)}
                    for metric in self.choices.metrics
                ]
        if not plans:
            raise ValueError(
                f"[dynamic] expected budgets that some mix of heads and neurons can keep; found "
                f"{budget:g}"
            )
        return plans

    def plan(self, budget: float, most_heads: float = 1.0) -> dict[str, Any]:
        """The mix and the order of heads with the least divergence on validation data."""
        tried = [plan for plan in self._plans(budget) if plan["heads"] <= most_heads]
        if not tried:
            raise ValueError(
                f"[dynamic] expected mixes with at most {most_heads:g} of the heads that keep a "
                f"budget of {budget:g}; found none"
            )

        def compute() -> Any:
            losses = []
            for done, plan in enumerate(tried):
                losses.append(self._sketched(plan))
                self.task.tell(f"rungs of {budget:g}", done + 1, len(tried))
            best = min(range(len(tried)), key=losses.__getitem__)
            return {"plan": tried[best], "losses": losses}

        return self.task.get("plans", {"tried": tried}, compute)["plan"]

    def _sketched(self, plan: dict[str, Any]) -> float:
        def compute() -> float:
            part, opened = self.task.part("validation"), self.opened()
            every = max(1, len(part.batches) * BATCH // (2 * SKETCH))
            rung = self._ladder(plan, sketch=True)[0]
            losses = []
            for batch in part.batches[::every]:
                dense = opened.gated(batch)
                outputs = opened.gated(batch, rung.gates(dense))
                losses.append(self.task.divergence(outputs.double(), dense.double()))
            return float(torch.cat(losses).mean())

        with torch.no_grad():
            return self.task.get("sketches", {"plan": plan}, compute)

    def dense_flops(self, part: Part) -> torch.Tensor:
        """What the whole encoder costs for each example, float64 [N]."""
        return self._flops(full_rung(self.layout), part)

    def _flops(self, rung: _C.Rung, part: Part) -> torch.Tensor:
        gated, lengths = self.opened().gated, part.tokens.tolist()
        known = {tokens: _C.rung_flops(gated, rung, tokens) for tokens in set(lengths)}
        return torch.tensor([known[tokens] for tokens in lengths], dtype=torch.float64)
