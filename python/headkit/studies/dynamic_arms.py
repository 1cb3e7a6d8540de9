"""The arms of the dynamic study on one task and seed: what each says of the test data."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.demo.encoder import Part
from headkit.fitting import fit_layer_gate, fit_linear_gate
from headkit.ladders import fit_reactivation
from headkit.pruning import apply
from headkit.running import run
from headkit.studies.distillation import distilled
from headkit.studies.dynamic_rungs import GREEDY_KEEP, Choices, Rungs, full_rung
from headkit.studies.dynamic_task import BATCH, Batch, Opened, Task
from headkit.studies.kept_budget import kept_budget
from headkit.studies.realised_risk import Knob, knob_of
from headkit.studies.results import key_of

GATE_EXAMPLES = 2048
GATES = ("linear gate", "layer gate")


@dataclass(frozen=True)
class Arm:
    """One arm on the test data.

    Attributes:
        way: how it decides.
        budget: share of the dense FLOPs that it was asked to keep.
        trained: whether its rungs were trained.
        kind: ``"dense"``, ``"static"``, ``"dynamic"``, or ``"bound"`` for what cannot be deployed.
        outputs: float64 [N, ...], in the order of the data.
        flops: float64 [N], done in all, as a share of the dense model's of the same example.
        heads: float64 [N], heads run in all.
        chosen: what was chosen on validation data.
    """

    way: str
    budget: float
    trained: bool
    kind: str
    outputs: torch.Tensor
    flops: torch.Tensor
    heads: torch.Tensor
    chosen: dict[str, Any]

    @property
    def name(self) -> str:
        """In tables, unique."""
        if self.kind == "dense":
            return self.way
        return f"{self.way} {'trained ' if self.trained else ''}at {self.budget:g}"


class Arms(Rungs):
    """Every arm of one task and seed, from the disk if it is there."""

    def __init__(self, task: Task, choices: Choices):
        super().__init__(task, choices)
        self._traces: dict[str, _C.LadderTrace] = {}

    def _arm(
        self,
        way: str,
        budget: float,
        kind: str,
        compute: Callable[[], dict[str, Any]],
        *,
        trained: bool = False,
        **asked: Any,
    ) -> Arm:
        """What ``compute`` finds (outputs, flops, heads, chosen), kept under what was asked."""

        def found() -> Any:
            self.task.tell(f"{way} at {budget:g}{' trained' if trained else ''}", 0, -1)
            with torch.no_grad():
                made = compute()
            return {
                "outputs": [[round(v, 7) for v in row] for row in made["outputs"].tolist()],
                "flops": [round(v, 6) for v in made["flops"].tolist()],
                "heads": made["heads"].tolist(),
                "chosen": made["chosen"],
            }

        choices = {"metrics": self.choices.metrics, "mixes": self.choices.mixes}
        key = {"way": way, "budget": budget, "trained": trained, **choices, **asked}
        made = self.task.get("dynamic_arms", key, found)
        tensors = {
            name: torch.tensor(made[name], dtype=torch.float64)
            for name in ("outputs", "flops", "heads")
        }
        return Arm(way, budget, trained, kind, **tensors, chosen=made["chosen"])

    def _under_gates(
        self, opened: Opened, rung: _C.Rung | None, part: Part
    ) -> dict[str, torch.Tensor]:
        """Outputs of a rung for all inputs; None = everything runs."""
        rows = []
        for batch in part.batches:
            gates = _C.GateSet() if rung is None else rung.gates(torch.zeros(1))
            rows.append(opened.gated(batch, gates).double())
        rung = full_rung(self.layout) if rung is None else rung
        heads = torch.full((len(part.labels),), rung.heads.count, dtype=torch.float64)
        return {
            "outputs": part.in_order(rows),
            "flops": self._flops(rung, part) / self.dense_flops(part),
            "heads": heads,
        }

    def _under_policy(
        self, opened: Opened, policy: _C.GatePolicy, part: Part
    ) -> dict[str, torch.Tensor]:
        rows, flops, heads = [], [], []
        for batch, places in zip(part.batches, part.order, strict=True):
            found = run(opened.gated, batch, policy)
            rows.append(found.output.double())
            flops.append(found.flops(self.layout, part.tokens[places]))
            heads.append(found.heads_run.double())
        return {
            "outputs": part.in_order(rows),
            "flops": part.in_order(flops) / self.dense_flops(part),
            "heads": part.in_order(heads),
        }

    @property
    def _test(self) -> Part:
        return self.task.part("test")

    def dense(self) -> Arm:
        """The model as it was."""
        return self._arm(
            "dense", 1.0, "dense",
            lambda: {**self._under_gates(self.opened(), None, self._test), "chosen": {}},
        )  # fmt: skip

    def static(self, budget: float, *, compensate: bool = True, trained: bool = False) -> Arm:
        """One rung for all inputs."""

        def compute() -> dict[str, Any]:
            plan = self.plan(budget)
            rung = self._rung(plan, compensate)
            chosen: dict[str, Any] = {"plan": plan, "compensate": compensate}
            if trained:
                chosen["weights"] = self._trained([rung], {"plan": plan}, ladder=False)
            opened = self.opened(self._path(chosen))
            return {**self._under_gates(opened, rung, self._test), "chosen": chosen}

        way = "static" if compensate else "static, nothing added"
        extra = {"again": self.choices.again.to_json()} if trained else {}
        return self._arm(way, budget, "static", compute, trained=trained, **extra)

    def only(self, units: str, budget: float) -> Arm:
        """Static, with only heads or only neurons closed."""

        def compute() -> dict[str, Any]:
            gated, layout, tokens = self.opened().gated, self.layout, self._tokens()
            whole = _C.rung_flops(gated, full_rung(layout), tokens)
            none = torch.zeros(layout.layers, layout.heads, dtype=torch.bool)
            neurons = _C.rung_flops(gated, _C.Rung(_C.HeadMask(none)), tokens) / whole
            share = (budget - neurons) / (1 - neurons)
            if units == "neurons":
                share = (budget - (1 - neurons)) / neurons
            share = round(max(GREEDY_KEEP, share), 4)
            plan = {"metric": self.plan(budget)["metric"], "heads": 1.0, "blocks": 1.0}
            plan["heads" if units == "heads" else "blocks"] = share
            rung = self.ladder(plan)[0]
            chosen = {"plan": plan, "compensate": True}
            return {**self._under_gates(self.opened(), rung, self._test), "chosen": chosen}

        return self._arm(f"static, only {units}", budget, "static", compute)

    def random(self, budget: float, draw: int) -> Arm:
        """A rung of the same size drawn at random, with what it leaves out added in the mean."""

        def compute() -> dict[str, Any]:
            plan = {**self.plan(budget), "metric": "random", "draw": 1000 * self.task.seed + draw}
            rung = self._ladder(plan, sketch=True)[0]
            return {**self._under_gates(self.opened(), rung, self._test), "chosen": {"plan": plan}}

        return self._arm("random", budget, "bound", compute, draw=draw)

    def _trained(self, rungs: Sequence[_C.Rung], asked: dict[str, Any], *, ladder: bool) -> str:
        """Name of the file of weights trained for these rungs."""
        again = self.choices.again
        key = {**self.task.configuration, "task": self.task.name, "ladder": ladder, **asked}
        name = key_of({**key, "again": again.to_json()})
        distilled(
            self.task, self.fresh, rungs, again, self._folder / f"{name}.pt", ladder=ladder
        )  # fmt: skip
        return name

    @property
    def _folder(self) -> Path:
        return self.task.results.folder / "distilled"

    def _path(self, chosen: dict[str, Any]) -> Path | None:
        return self._folder / f"{chosen['weights']}.pt" if "weights" in chosen else None

    def _rungs(self, low: float, trained: bool) -> tuple[_C.Ladder, dict[str, Any]]:
        """Two rungs, the lower one of this share, and where their weights are."""
        plan = self.plan(low)
        ladder = self.ladder(plan)
        chosen: dict[str, Any] = {"plan": plan, "low": low}
        if trained:
            chosen["weights"] = self._trained(ladder.rungs, {"plan": plan}, ladder=True)
        return ladder, chosen

    def _lows(self, budget: float, trained: bool) -> list[float]:
        lows = (self._trained_low(),) if trained else self.choices.lows
        return [low for low in lows if low <= budget - 0.02]

    def _trained_low(self) -> float:
        """Of the one ladder that is trained: what validation chose at half the FLOPs."""
        way = self.escalation if self.task.classifies else self.reactivation
        return way(0.5).chosen["low"]

    def escalation(self, budget: float, *, trained: bool = False) -> Arm:
        """Run low, run unsure inputs again on everything; low rung and threshold by validation."""

        def compute() -> dict[str, Any]:
            tried = []
            for low in self._lows(budget, trained):
                ladder, chosen = self._rungs(low, trained)
                trace = self._trace(_C.Escalation(ladder, threshold=0.5), chosen)
                threshold = self._threshold(trace, budget)
                if threshold is not None:
                    loss = _reached(trace, threshold)
                    tried.append((loss, {**chosen, "threshold": threshold, "validation_kl": loss}))
            chosen = _best(tried, "escalation", budget)
            policy = self.policy("escalation", chosen)
            opened = self.opened(self._path(chosen))
            return {**self._under_policy(opened, policy, self._test), "chosen": chosen}

        return self._arm(
            "escalation", budget, "dynamic", compute, trained=trained, **self._asked(trained)
        )

    def reactivation(self, budget: float, *, trained: bool = False) -> Arm:
        """Decide midway whether the other layers run low or whole; all choices by validation."""

        def compute() -> dict[str, Any]:
            tried = []
            signals = ("probe_confidence", "predicted_loss")
            for low in self._lows(budget, trained):
                ladder, chosen = self._rungs(low, trained)
                opened = self.opened(self._path(chosen))
                for layer in self._layers():
                    for signal in signals if self.task.classifies else signals[1:]:
                        found = self._reactivation(opened, ladder, chosen, layer, signal)
                        draft = _C.Reactivation(ladder, **_fitted(found))
                        trace = self._trace(draft, {**chosen, "layer": layer, "signal": signal})
                        lambda_ = self._threshold(trace, budget)
                        if lambda_ is not None:
                            loss = _reached(trace, lambda_)
                            more = {"lambda": min(lambda_, 1 - 1e-12), "validation_kl": loss}
                            tried.append((loss, {**chosen, **found, **more}))
            chosen = _best(tried, "reactivation", budget)
            policy = self.policy("reactivation", chosen)
            opened = self.opened(self._path(chosen))
            return {**self._under_policy(opened, policy, self._test), "chosen": chosen}

        return self._arm(
            "reactivation", budget, "dynamic", compute, trained=trained,
            layers=self._layers(), **self._asked(trained),
        )  # fmt: skip

    def _asked(self, trained: bool) -> dict[str, Any]:
        more = {"again": self.choices.again.to_json()} if trained else {}
        return {"lows": self.choices.lows, **more}

    def _layers(self) -> list[int]:
        depth = self.layout.layers
        return sorted({min(depth - 1, max(1, round(s * depth))) for s in self.choices.layers})

    def _reactivation(
        self, opened: Opened, ladder: _C.Ladder, chosen: dict[str, Any], layer: int, signal: str
    ) -> dict[str, Any]:
        """The probe of one layer and signal, fitted on calibration data."""

        def compute() -> Any:
            policy, report = fit_reactivation(
                opened.gated,
                self.task.part("calibration").batches,
                self.task.part("validation").batches,
                ladder,
                layer=layer,
                signal=signal,
                flops_share=0.98,
                objective=None if self.task.classifies else "cosine_to_dense",
            )
            return {
                "layer": layer, "signal": signal, "probe": json.loads(policy.probe.to_json()),
                "probe_accuracy": _finite(report.probe_accuracy),
            }  # fmt: skip

        return self.task.get("probes", {"of": chosen, "layer": layer, "signal": signal}, compute)

    def _trace(
        self, draft: _C.Escalation | _C.Reactivation, chosen: dict[str, Any]
    ) -> _C.LadderTrace:
        """What validation examples do on every rung, once for all budgets."""
        name = key_of({"way": type(draft).__name__, **chosen})
        if name not in self._traces:
            opened = self.opened(self._path(chosen))
            self._traces[name] = draft.trace(opened.gated, self.task.part("validation").batches)
        return self._traces[name]

    @staticmethod
    def _threshold(trace: _C.LadderTrace, budget: float) -> float | None:
        """The knob that keeps a budget on validation data; None if the lowest rung exceeds it."""
        try:
            return trace.threshold(flops_share=budget)
        except ValueError:
            return None

    def policy(self, way: str, chosen: dict[str, Any]) -> _C.GatePolicy:
        """The policy of a dynamic arm, from what was chosen."""
        if way in GATES:
            return _C.policy_from_json(json.dumps(chosen["policy"]))
        ladder = self.ladder(chosen["plan"])
        if way == "escalation":
            return _C.Escalation(ladder, threshold=chosen["threshold"])
        return _C.Reactivation(ladder, **_fitted(chosen), lambda_=chosen["lambda"])

    def _narrowed(self, plan: dict[str, Any]) -> Opened:
        """The model with all heads and only the neurons of a plan."""
        opened, rung = self.fresh(), self.ladder({**plan, "heads": 1.0})[0]
        if not bool(rung.blocks.all()):
            gates = rung.gates(torch.zeros(1))
            apply(
                opened.module, _C.GateSet(blocks=gates.blocks, dropped_blocks=gates.dropped_blocks)
            )
        return opened

    def linear_gate(self, budget: float) -> Arm:
        """A static arm's neurons for all inputs; its number of heads, in the mean, by input."""

        def fit(opened: Opened, rung: _C.Rung) -> tuple[_C.GatePolicy, _C.LinearGateReport]:
            gate, report = fit_linear_gate(opened.scored, **self._gate_data(rung))
            means = _C.mean_head_outputs(
                opened.gated,
                self.task.part("calibration").batches,
                decide=lambda state: gate.decide(state.hidden, state.attention_mask),
            )
            return gate.with_dropped_output(means), report

        return self._gate("linear gate", budget, fit)

    def layer_gate(self, budget: float) -> Arm:
        """The same by a gate of each layer, on the state before it."""

        def fit(opened: Opened, rung: _C.Rung) -> tuple[_C.GatePolicy, _C.LinearGateReport]:
            features = ["log_length", "entropy"]
            return fit_layer_gate(opened.scored, features=features, **self._gate_data(rung))

        return self._gate("layer gate", budget, fit)

    def _gate_data(self, rung: _C.Rung) -> dict[str, Any]:
        train = self.task.part("train")
        return {
            "train": train.batches[:: max(1, len(train.labels) // GATE_EXAMPLES)],
            "calibration": self.task.part("validation").batches,
            "mean_heads": rung.heads.count,
            "dropped_output": rung.dropped_output,
        }

    def _gate(
        self,
        way: str,
        budget: float,
        fit: Callable[[Opened, _C.Rung], tuple[_C.GatePolicy, _C.LinearGateReport]],
    ) -> Arm:
        def compute() -> dict[str, Any]:
            plan = self.plan(budget, most_heads=0.75)
            opened = self._narrowed(plan)
            with torch.enable_grad():
                gate, report = fit(opened, self.ladder(plan)[0])
            chosen = {
                "plan": plan, "policy": json.loads(gate.to_json()), "ridge": _finite(report.ridge),
                "contested": report.contested, "input_variance": report.input_variance,
            }  # fmt: skip
            return {**self._under_policy(opened, gate, self._test), "chosen": chosen}

        return self._arm(way, budget, "dynamic", compute)

    def escalation_oracle(self, budget: float) -> Arm:
        """Escalation that knows which outputs would change most: no deployment can."""

        def compute() -> dict[str, Any]:
            found = []
            for low in self._lows(budget, False):
                ladder, chosen = self._rungs(low, False)
                opened = self.opened()
                below = self._under_gates(opened, ladder[0], self._test)
                dense = self._under_gates(opened, None, self._test)
                loss = self.task.divergence(below["outputs"], dense["outputs"])
                cost = self.dense_flops(self._test)
                order = loss.argsort(descending=True, stable=True)
                shared = self._shared(ladder)
                spent = (below["flops"] * cost).sum() + ((1 - shared) * cost)[order].cumsum(0)
                rerun = order[: int((spent <= budget * cost.sum()).sum())]
                outputs, flops = below["outputs"].clone(), below["flops"].clone()
                heads = below["heads"].clone()
                outputs[rerun] = dense["outputs"][rerun]
                flops[rerun] += 1 - shared
                heads[rerun] += dense["heads"][rerun] * (1 - shared)
                left = float(self.task.divergence(outputs, dense["outputs"]).mean())
                arm = {"outputs": outputs, "flops": flops, "heads": heads, "chosen": chosen}
                found.append((left, arm))
            return _best(found, "oracle", budget)

        return self._arm("escalation, oracle", budget, "bound", compute, lows=self.choices.lows)

    def _shared(self, ladder: _C.Ladder) -> float:
        """Share of the dense FLOPs in layers that a re-run does not repeat."""
        return ladder.shared_layers(1) / self.layout.layers

    def greedy_oracle(self, budget: float, examples: int, step: int) -> dict[str, Any]:
        """Heads that each of some test inputs needs least, found by looking at its dense output.

        Neurons all run; heads go a few at a time until the static arm's number is left, closed ones
        add their mean on calibration data. Beside it the static order at the same number of heads.

        Returns:
            dict: places of the inputs, divergence of both, heads.
        """

        def compute() -> Any:
            plan = self.plan(budget)
            rung = self.ladder({**plan, "blocks": 1.0})[0]
            opened, part = self.opened(), self._test
            draw = torch.Generator().manual_seed(self.task.seed)
            places = torch.randperm(len(part.labels), generator=draw)[:examples].sort().values
            found: dict[str, Any] = {"places": places.tolist(), "heads": rung.heads.count}
            found["oracle"], found["static"] = [], []
            for done, place in enumerate(places.tolist()):
                single = _example(part, place)
                dense = opened.gated(single)
                fixed = opened.gated(single, rung.gates(dense))
                found["static"].append(float(self.task.divergence(fixed.double(), dense.double())))
                found["oracle"].append(self._greedy(opened, single, dense, rung, step))
                self.task.tell(f"oracle at {budget:g}", done + 1, examples)
            return found

        asked = {"budget": budget, "examples": examples, "step": step}
        with torch.no_grad():
            return self.task.get("greedy_oracle", asked, compute)

    def _greedy(
        self, opened: Opened, single: Batch, dense: torch.Tensor, rung: _C.Rung, step: int
    ) -> float:
        layers, heads = self.layout.layers, self.layout.heads
        keep, loss = torch.ones(layers * heads), 0.0
        while int(keep.sum()) > rung.heads.count:
            there = keep.nonzero().flatten()
            tried = keep.repeat(len(there), 1)
            tried[torch.arange(len(there)), there] = 0
            losses = self._losses(opened, single, dense, rung, tried)
            going = losses.argsort(stable=True)[: min(step, int(keep.sum()) - rung.heads.count)]
            keep[there[going]] = 0
            loss = float(self._losses(opened, single, dense, rung, keep[None])[0])
        return loss

    def _losses(
        self,
        opened: Opened,
        single: Batch,
        dense: torch.Tensor,
        rung: _C.Rung,
        tried: torch.Tensor,
    ) -> torch.Tensor:
        count = len(tried)
        batch = {name: value.repeat_interleave(count, 0) for name, value in single.items()}
        shape = (count, self.layout.layers, self.layout.heads)
        gates = _C.GateSet(tried.view(shape), dropped_output=rung.dropped_output)
        outputs = opened.gated(batch, gates).double()
        return self.task.divergence(outputs, dense.double().expand_as(outputs))

    def drift(self) -> dict[str, Any]:
        """How far the trained ladder's own top rung is from the original model, on test data."""
        low = self._trained_low()

        def compute() -> Any:
            _, chosen = self._rungs(low, True)
            with torch.no_grad():
                opened = self.opened(self._path(chosen))
                found = self._under_gates(opened, None, self._test)
            return [[round(v, 7) for v in row] for row in found["outputs"].tolist()]

        asked = {"low": low, **self._asked(True), "metrics": self.choices.metrics}
        outputs = torch.tensor(self.task.get("drift", asked, compute), dtype=torch.float64)
        return {"low": low, "outputs": outputs}

    def knob(self, *, trained: bool) -> Knob:
        """What test examples lose and cost over the threshold of escalation from the low rung of
        the trained ladder; dense is the ladder's own top rung.
        """
        low = self._trained_low()

        def compute() -> Any:
            ladder, chosen = self._rungs(low, trained)
            opened = self.opened(self._path(chosen))
            trace = _C.Escalation(ladder, threshold=0.5).trace(opened.gated, self._test.batches)
            return {name: rows.tolist() for name, rows in vars(knob_of(trace)).items()}

        asked = {"low": low, "trained": trained, **self._asked(trained)}
        with torch.no_grad():
            found = self.task.get("knobs", {**asked, "metrics": self.choices.metrics}, compute)
        rows = {name: torch.tensor(rows, dtype=torch.float64) for name, rows in found.items()}
        return Knob(**rows)

    def kept_budget(self, arm: Arm, share: float) -> dict[str, Any]:
        """Escalation under a target of time, on the second half of the test sentences; the promise
        is made on the first half.
        """

        def compute() -> Any:
            self.task.tell(f"a target of {share:g} of the time", 0, -1)
            batches = self.task.arriving(BATCH)
            half = len(batches) // 2
            policy = self.policy(arm.way, arm.chosen)
            opened = self.opened(self._path(arm.chosen))
            return kept_budget(opened, policy, batches[:half], batches[half:], share)

        asked = {"arm": arm.chosen, "share": share, "threads": torch.get_num_threads()}
        with torch.no_grad():
            return self.task.get("kept_budgets", asked, compute)

    def runner(self, arm: Arm) -> Callable[[Batch], torch.Tensor]:
        """The arm as it would be deployed, for the clock: static ones are cut, not gated."""
        weights = self._path(arm.chosen)
        if arm.kind == "static":
            rung = self._rung(arm.chosen["plan"], arm.chosen["compensate"])
            module = self.fresh(weights).module
            apply(module, rung.gates(torch.zeros(1)))
            return lambda batch: self.task.forward(module, batch)
        policy = self.policy(arm.way, arm.chosen)
        narrowed = arm.way in GATES
        opened = self._narrowed(arm.chosen["plan"]) if narrowed else self.opened(weights)
        return lambda batch: run(opened.gated, batch, policy).output


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _fitted(chosen: dict[str, Any]) -> dict[str, Any]:
    probe = _C.LinearProbe.from_json(json.dumps(chosen["probe"]))
    return {"probe": probe, "signal": chosen["signal"]}


def _reached(trace: _C.LadderTrace, threshold: float) -> float:
    reached = trace.reached([threshold])
    return float(trace.kl.gather(1, reached[:, None]).mean())


def _best(tried: Sequence[tuple[float, Any]], way: str, budget: float) -> Any:
    if not tried:
        raise ValueError(
            f"[dynamic] expected a budget above the lowest rung; found {budget:g} for {way}"
        )
    return min(tried, key=lambda each: each[0])[1]


def _example(part: Part, place: int) -> Batch:
    """One example without padding."""
    for batch, order in zip(part.batches, part.order, strict=True):
        row = (order == place).nonzero().flatten()
        if len(row):
            one = {name: value[row] for name, value in batch.items()}
            if "attention_mask" in one:
                length = int(one["attention_mask"].sum())
                one = {k: v[:, :length] if v.dim() == 2 else v for k, v in one.items()}
            return one
    raise ValueError(f"[dynamic] expected a place in the data; found {place}")
