"""One method on text, language, speech, images and chemistry: quality by share of open heads."""

import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.demo.timing import interleaved
from headkit.energy import LEAST_SECONDS, Meter, energy_meter
from headkit.fitting import fit_linear_gate
from headkit.huggingface import gates as gated
from headkit.pruning import mean_head_outputs
from headkit.scoring import score
from headkit.studies.chemistry_domain import Chemistry
from headkit.studies.domain import Domain, Tally
from headkit.studies.dynamic import DynamicStudy, run_dynamic
from headkit.studies.dynamic_task import Batch
from headkit.studies.fine_tuned import Show
from headkit.studies.language_domain import Language
from headkit.studies.methods import MICHEL, VARIANTS, method_of
from headkit.studies.results import Missing, Results
from headkit.studies.speech_domain import Speech
from headkit.studies.task_domains import Image, Text

DOMAINS: dict[str, type[Domain]] = {
    domain.NAME: domain for domain in (Text, Language, Speech, Image, Chemistry)
}
WAYS = ("random", "static", "dynamic")
# What of the dynamic study is run on images; the whole of it is a command of its own.
LADDERS = {"budgets": (0.6, 0.5, 0.4), "trained_budgets": (0.5,), "draws": 1, "oracle": 0}


@dataclass(frozen=True)
class DomainsStudy:
    """What is asked of the study.

    Attributes:
        domains: of ``DOMAINS``.
        seeds: of data, random masks and trained models.
        shares: of the heads that are open, in the mean.
        draws: random masks for each seed and share.
        metric: orders the heads of static masks: in ``headkit.scorers()``, or ``michel``.
        rounds: of the measurement of time; 0 = none.
        joule_seconds: that a measurement of energy lasts at least; 0 = none.
        new_tokens: that the language model generates for each window; 0 = none.
        ladders: whether the image domain's trained ladders are compared with static masks at equal
            time.
        limit: at most so many examples of each part; None = as many as a domain wants.
        text: for the language model; None = review sentences.
        ladder_study: other settings of the ladders' study.
    """

    domains: tuple[str, ...] = tuple(DOMAINS)
    seeds: tuple[int, ...] = (0, 1, 2)
    shares: tuple[float, ...] = (0.75, 0.5, 0.25)
    draws: int = 3
    metric: str = MICHEL
    rounds: int = 5
    joule_seconds: float = LEAST_SECONDS
    new_tokens: int = 24
    ladders: bool = True
    limit: int | None = None
    text: Path | None = None
    ladder_study: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: for unknown or equal domains, equal seeds, shares outside 0 to 1, or
                negative counts.
        """
        unknown = [name for name in self.domains if name not in DOMAINS]
        if unknown or not self.domains or len(set(self.domains)) < len(self.domains):
            raise ValueError(
                f"[domains] expected different domains of {', '.join(DOMAINS)}; found "
                f"{', '.join(self.domains) or 'none'}"
            )
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"[domains] expected different seeds; found {list(self.seeds)}")
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise ValueError(
                f"[domains] expected shares between 0 and 1; found {list(self.shares)}"
            )
        for name in ("draws", "rounds", "joule_seconds", "new_tokens"):
            if getattr(self, name) < 0:
                raise ValueError(f"[domains] expected {name} >= 0; found {getattr(self, name)}")
        if self.metric not in (*VARIANTS, *_C.scorers()) or self.metric == "random":
            raise ValueError(f"[domains] expected a scorer; found {self.metric!r}")
        if self.limit is not None and self.limit < 4:
            raise ValueError(f"[domains] expected a limit of at least 4; found {self.limit}")

    def to_json(self) -> dict[str, Any]:
        """All settings."""
        return json.loads(json.dumps(asdict(self), default=str))


@dataclass(frozen=True)
class Choice:
    """Heads that run: a mask for all inputs, or a gate that decides for each.

    Attributes:
        mask: None with a gate.
        gate: None with a mask.
        dropped_output: mean outputs in place of what is closed.
    """

    mask: _C.HeadMask | None
    gate: _C.LinearGate | None
    dropped_output: torch.Tensor | None

    def gates(self, model: _C.GatedModel, batch: Batch) -> _C.GateSet:
        """Gates for a batch, [B, layers, heads]."""
        if self.gate is not None:
            state = model.embed(batch)
            heads = self.gate.decide(state.hidden, state.attention_mask).heads
        else:
            rows = len(next(iter(batch.values())))
            heads = self.mask.keep.float().expand(rows, -1, -1)
        return _C.GateSet(heads.float(), dropped_output=self.dropped_output)


@dataclass(frozen=True)
class Found:
    """What one choice does to the test data.

    Attributes:
        tally: of each example.
        heads: that each example ran, float64 [N].
        frequency: share of the examples that ran each head, float64 [layers, heads].
    """

    tally: Tally
    heads: torch.Tensor
    frequency: torch.Tensor


class DomainSubject:
    """One domain and seed: its choices, and what they do; from the disk if it is there."""

    def __init__(self, asked: DomainsStudy, domain: Domain):
        self.asked, self.domain = asked, domain
        self.found: dict[tuple[str, float, int], Found] = {}
        self.dense: Found | None = None
        self.milliseconds: dict[str, float] = {}
        self.joules: dict[str, float] = {}
        self.generated: dict[str, dict[str, float]] = {}
        self.alignment: dict[str, Any] | None = None
        self.flops: dict[str, Any] | None = None
        self._choices: dict[tuple[str, float, int], Choice] = {}

    def _try(self, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except Missing:
            return None

    @cached_property
    def layout(self) -> _C.HeadLayout:
        """Of the model."""
        return self.domain.opened.gated.layout()

    def _scores(self, seed: int | None = None) -> _C.HeadScores:
        """By the metric on training data; with a seed random ones."""
        domain = self.domain
        random = {"metric": "random", "seed": seed} if seed is not None else {}
        asked = {"metric": self.asked.metric, "seed": domain.seed} | random
        method = method_of(asked["metric"])

        @torch.enable_grad()
        def compute() -> Any:
            found = score(
                domain.opened.scored, domain.batches("train"), method.name, domain.OBJECTIVE,
                seed=asked["seed"], bootstrap=0, **method.settings,
                progress=lambda done, total: domain.tell("scoring", done, total),
            )  # fmt: skip
            return json.loads(found.to_json())

        return _C.HeadScores.from_json(json.dumps(domain.get("scores", asked, compute)))

    def mask(self, way: str, share: float, draw: int = 0) -> _C.HeadMask:
        """What is open under a static or random mask."""
        seed = 1000 * self.domain.seed + draw if way == "random" else None
        return _C.prune_top_fraction(self._scores(seed), share, rounding="nearest")

    def choice(self, way: str, share: float, draw: int = 0) -> Choice:
        """A mask, or a gate fitted to open as many heads in the mean, with mean outputs."""
        key = (way, share, draw)
        if key not in self._choices:
            domain = self.domain
            mask = self.mask("static" if way == "dynamic" else way, share, draw)
            means = mean_head_outputs(domain.opened.gated, domain.batches("train"), gates=mask)
            self._choices[key] = (
                Choice(None, self._gate(share, mask, means), means)
                if way == "dynamic"
                else Choice(mask, None, means)
            )
        return self._choices[key]

    def _gate(self, share: float, mask: _C.HeadMask, means: torch.Tensor) -> _C.LinearGate:
        domain = self.domain

        @torch.enable_grad()
        def compute() -> Any:
            gate, _ = fit_linear_gate(
                domain.opened.scored,
                domain.batches("train"),
                domain.batches("validation"),
                mean_heads=float(mask.count),
                objective=domain.OBJECTIVE,
                dropped_output=means,
                progress=lambda done, total: domain.tell(f"gate of {share:g}", done, total),
            )
            return json.loads(gate.to_json())

        asked = {"metric": self.asked.metric, "share": share}
        return _C.policy_from_json(json.dumps(domain.get("gates", asked, compute)))

    @property
    def _whole(self) -> Choice:
        return Choice(_C.HeadMask.all(self.layout.layers, self.layout.heads), None, None)

    @torch.no_grad()
    def _measured(self, name: str, choice: Callable[[], Choice], asked: dict[str, Any]) -> Found:
        def compute() -> Any:
            domain, made = self.domain, choice()
            counts, units, heads, ran = [], [], [], torch.zeros(self.layout.layers, 1)
            batches = domain.batches("test")
            for done, batch in enumerate(batches):
                gates = made.gates(domain.opened.gated, batch)
                tally = domain.tally(domain.opened, batch, gates)
                counts += tally.counts.tolist()
                units += tally.units.tolist()
                open_ = gates.heads != 0
                heads += open_.sum((1, 2)).tolist()
                ran = ran + open_.double().sum(0)
                domain.tell(name, done + 1, len(batches))
            frequency = (ran / len(counts)).tolist()
            return {"counts": counts, "units": units, "heads": heads, "frequency": frequency}

        found = self.domain.get("arms", {"metric": self.asked.metric, **asked}, compute)
        made = {k: torch.tensor(v, dtype=torch.float64) for k, v in found.items()}
        return Found(Tally(made["counts"], made["units"]), made["heads"], made["frequency"])

    def measure(self) -> None:
        """Dense, then static, dynamic and random choices of every share."""
        whole = {"way": "dense"}
        self.dense = self._try(lambda: self._measured("dense", lambda: self._whole, whole))
        for way in ("static", "dynamic", "random"):
            for share in self.asked.shares:
                for draw in range(self.asked.draws if way == "random" else 1):
                    found = self._try(
                        lambda w=way, s=share, d=draw: self._measured(
                            f"{w} at {s:g}",
                            lambda: self.choice(w, s, d),
                            {"way": w, "share": s, "draw": d},
                        )
                    )
                    if found is not None:
                        self.found[way, share, draw] = found

    def _ways(self) -> dict[str, Callable[[Batch], Any]]:
        """Forward passes as they would be deployed; gates are decided inside."""
        domain, plain = self.domain, self.domain.plain()
        ways: dict[str, Callable[[Batch], Any]] = {
            "transformers": lambda batch: domain.forward(plain, batch),
            "all heads": lambda batch: domain.forward(domain.opened.module, batch),
        }
        for way in ("static", "dynamic"):
            for share in self.asked.shares:
                ways[f"{way} at {share:g}"] = self._run(self.choice(way, share))
        return ways

    def _run(self, choice: Choice) -> Callable[[Batch], Any]:
        domain = self.domain

        @torch.no_grad()
        def run(batch: Batch) -> Any:
            with gated(domain.opened.module, choice.gates(domain.opened.gated, batch)):
                return domain.forward(domain.opened.module, batch)

        return run

    def time(self, meter: Meter) -> None:
        """Milliseconds, and joules where the machine counts them, of one test batch."""
        asked = {
            "shares": self.asked.shares, "metric": self.asked.metric,
            "threads": torch.get_num_threads(),
        }  # fmt: skip
        batch = self.domain.batches("test")[0]
        if self.asked.rounds:
            found = self._try(
                lambda: self.domain.get(
                    "milliseconds", {**asked, "rounds": self.asked.rounds},
                    lambda: interleaved(self._ways(), [batch], self.asked.rounds)[0],
                )
            )  # fmt: skip
            self.milliseconds = found or {}
        if self.asked.joule_seconds and meter:
            found = self._try(
                lambda: self.domain.get(
                    "joules",
                    {**asked, "seconds": self.asked.joule_seconds, "counters": meter.counters},
                    lambda: self._joules(meter, batch),
                )
            )
            self.joules = found or {}

    def _joules(self, meter: Meter, batch: Batch) -> dict[str, float]:
        found = {}
        with torch.no_grad():
            for name, run in self._ways().items():
                run(batch)
                energy = meter.measure(lambda run=run: run(batch), self.asked.joule_seconds)
                found[name] = 0.0 if energy is None else energy.joules
        return found

    def beside(self) -> None:
        """FLOPs, what the language model generates, and the known answer of speech."""
        self.flops = self._try(lambda: self.domain.get("flops", {}, self._flops))
        if isinstance(self.domain, Language) and self.asked.new_tokens:
            self.generated = self._try(self._generation) or {}
        if isinstance(self.domain, Speech):
            self.alignment = self._try(self.domain.alignment)

    def _flops(self) -> dict[str, Any]:
        """Of one example of a test batch: whole, and what one closed head of a layer saves."""
        from torch.utils.flop_counter import FlopCounterMode

        plain, batch = self.domain.plain(), self.domain.batches("test")[0]
        # Fused attention is not counted; products of the same size are.
        plain.set_attn_implementation("eager")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.domain.forward(plain, batch)
        rows = len(next(iter(batch.values())))
        saved = self.domain.head_flops(self.layout, batch)
        return {"whole": counter.get_total_flops() / rows, "head": saved.tolist()}

    def flops_share(self, found: Found) -> float | None:
        """FLOPs of a choice, as a share of the whole model's."""
        if self.flops is None:
            return None
        closed = (1 - found.frequency).sum(1)
        saved = float((closed * torch.tensor(self.flops["head"], dtype=torch.float64)).sum())
        return 1 - saved / self.flops["whole"]

    def _generation(self) -> dict[str, dict[str, float]]:
        """Greedy tokens that are those of the whole model, under gates that hold."""

        def compute() -> Any:
            domain: Any = self.domain
            batches = domain.batches("test")
            whole = [
                domain.generate(
                    domain.opened, b, self._whole.gates(domain.opened.gated, b),
                    self.asked.new_tokens,
                )
                for b in batches
            ]  # fmt: skip
            found = {}
            for way in ("static", "dynamic"):
                for share in self.asked.shares:
                    choice = self.choice(way, share)
                    same, held = [], []
                    for batch, dense in zip(batches, whole, strict=True):
                        gates = choice.gates(domain.opened.gated, domain.prompt(batch))
                        new = domain.generate(domain.opened, batch, gates, self.asked.new_tokens)
                        same.append((new == dense).long().cumprod(1).sum(1).double())
                        held.append(gates.heads.ne(0).double().mean((1, 2)))
                    found[f"{way} at {share:g}"] = {
                        "same": float(torch.cat(same).mean()),
                        "open": float(torch.cat(held).mean()),
                    }
            return found

        asked = {
            "new_tokens": self.asked.new_tokens, "shares": self.asked.shares,
            "metric": self.asked.metric,
        }  # fmt: skip
        with torch.no_grad():
            return self.domain.get("generated", asked, compute)


def subjects_of(
    asked: DomainsStudy, results: Results, show: Show
) -> dict[str, list[DomainSubject]]:
    """By domain, one for each seed."""
    found: dict[str, list[DomainSubject]] = {}
    for name in asked.domains:
        more = {"text": asked.text} if name == Language.NAME else {}
        found[name] = [
            DomainSubject(asked, DOMAINS[name](results, seed, show, asked.limit, **more))
            for seed in asked.seeds
        ]
    return found


def run_domains(asked: DomainsStudy, results: Results, show: Show) -> dict[str, Any]:
    """Run the study, or what is left of it.

    Args:
        asked: what is asked.
        results: where everything is kept; a run that was cut off goes on from there. Frozen ones
            give a report of what is there.
        show: told (step, done, total).

    Returns:
        dict: by domain, rows, distributions, times; JSON values.

    Raises:
        ValueError: for settings that cannot be, or frozen results without any domain.
        RuntimeError: if models or data cannot be fetched.
    """
    asked.check()
    meter = energy_meter()
    told = {}
    for name, subjects in subjects_of(asked, results, show).items():
        for subject in subjects:
            if not _learnt(subject):
                continue
            subject.measure()
            subject.beside()
            subject.time(meter)
        there = [each for each in subjects if each.dense is not None]
        if there:
            told[name] = _domain_report(asked, there)
    if not told:
        raise ValueError("[domains] expected results of at least one domain; found none yet")
    return {
        "experiment": "domains",
        "asked": asked.to_json(),
        "machine": {
            "cpu": platform.processor(), "threads": torch.get_num_threads(),
            "energy": meter.describe(),
        },
        "domains": told,
        "ladders": _ladders(asked, results, show),
    }  # fmt: skip


def _learnt(subject: DomainSubject) -> bool:
    try:
        subject.domain.check()
        return True
    except Missing:
        return False


def _ladders(asked: DomainsStudy, results: Results, show: Show) -> dict[str, Any] | None:
    """The image domain in the dynamic study: ladders and gates against static at equal time."""
    if "image" not in asked.domains or not asked.ladders:
        return None
    domain = Image(results, asked.seeds[0], show, asked.limit)
    study = DynamicStudy(
        **{
            "tasks": (domain.task.name,),
            "seeds": asked.seeds,
            "rounds": asked.rounds,
            "digits": {"limit": domain.images},
            **LADDERS,
            **asked.ladder_study,
        }
    )
    try:
        return run_dynamic(study, None, results, show)
    except Missing:
        return None
    except ValueError:
        if results.frozen:
            return None
        raise


def _domain_report(asked: DomainsStudy, subjects: Sequence[DomainSubject]) -> dict[str, Any]:
    domain = subjects[0].domain
    rows = [_row(subjects, "dense", 1.0)]
    for way in WAYS:
        for share in asked.shares:
            if any(key[:2] == (way, share) for subject in subjects for key in subject.found):
                rows.append(_row(subjects, way, share))
    return {
        "model": domain.MODEL,
        "measure": domain.MEASURE,
        "higher": domain.HIGHER,
        "seeds": [subject.domain.seed for subject in subjects],
        "examples": len(subjects[0].dense.heads),
        "units": int(subjects[0].dense.tally.units.sum()),
        "layers": subjects[0].layout.layers,
        "heads": subjects[0].layout.heads,
        "rows": rows,
        "comparisons": _comparisons(asked, subjects),
        "inputs": _inputs(asked, subjects),
        "milliseconds": _mean_of([subject.milliseconds for subject in subjects]),
        "joules": _mean_of([subject.joules for subject in subjects]),
        "generated": {
            name: _mean_of([each.generated[name] for each in subjects if name in each.generated])
            for name in dict.fromkeys(n for each in subjects for n in each.generated)
        },
        "alignment": subjects[0].alignment,
    }


def _mean_of(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    there = [each for each in found if each]
    if not there:
        return {}
    return {name: sum(each[name] for each in there) / len(there) for name in there[0]}


def _found(subject: DomainSubject, way: str, share: float) -> list[Found]:
    if way == "dense":
        return [] if subject.dense is None else [subject.dense]
    return [found for key, found in subject.found.items() if key[:2] == (way, share)]


def _row(subjects: Sequence[DomainSubject], way: str, share: float) -> dict[str, Any]:
    """Quality over seeds, its interval over seeds and examples; of draws the mean."""
    domain = subjects[0].domain
    having = [(subject, _found(subject, way, share)) for subject in subjects]
    having = [(subject, found) for subject, found in having if found]
    parts = [torch.stack([f.tally.parts() for f in found]).mean(0) for _, found in having]
    over = "both" if len(parts) > 1 else "examples"
    whole = _C.bootstrap_mean(torch.stack(parts), over=over)
    ends = sorted(domain.quality(value) for value in (whole.lower, whole.upper))
    every = [f for _, found in having for f in found]
    flops = [subject.flops_share(f) for subject, found in having for f in found]
    return {
        "way": way, "share": share, "seeds": len(having),
        "quality": domain.quality(whole.mean), "lower": ends[0], "upper": ends[1],
        "open": sum(float(f.frequency.mean()) for f in every) / len(every),
        "flops": None if None in flops else sum(flops) / len(flops),
    }  # fmt: skip


def _comparisons(asked: DomainsStudy, subjects: Sequence[DomainSubject]) -> list[dict[str, Any]]:
    """Static against dense and random, dynamic against static, at the same share; paired."""
    rows = []
    for share in asked.shares:
        for way, other in (("static", "dense"), ("static", "random"), ("dynamic", "static")):
            sides = [(_found(s, way, share), _found(s, other, share)) for s in subjects]
            sides = [side for side in sides if all(side)]
            if not sides:
                continue
            mine, theirs = (
                torch.stack(
                    [torch.stack([f.tally.parts() for f in side[n]]).mean(0) for side in sides]
                )
                for n in (0, 1)
            )
            over = "both" if len(sides) > 1 else "examples"
            found = _C.paired_bootstrap(theirs, mine, over=over)
            rows.append(
                {
                    "way": way, "against": other, "share": share, "difference": found.mean,
                    "lower": found.lower, "upper": found.upper,                 }
            )  # fmt: skip
    return rows


def _inputs(asked: DomainsStudy, subjects: Sequence[DomainSubject]) -> list[dict[str, Any]]:
    """Which heads inputs run under the gate, and how many."""
    rows = []
    ends = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    for share in asked.shares:
        found = [f for subject in subjects for f in _found(subject, "dynamic", share)]
        if not found:
            continue
        heads = torch.cat([each.heads for each in found])
        frequency = torch.stack([each.frequency for each in found]).mean(0)
        rows.append(
            {
                "share": share,
                "heads": heads.quantile(ends).tolist(),
                "different": len(set(heads.tolist())),
                "always": int((frequency == 1).sum()),
                "never": int((frequency == 0).sum()),
                "by_layer": frequency.mean(1).tolist(),
            }
        )
    return rows
