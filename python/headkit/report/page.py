"""The HTML file around the figures."""

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from html import escape
from importlib import resources
from pathlib import Path
from typing import Any

from headkit.files import write_text
from headkit.report.content import Report, Sentence
from headkit.report.figures import (
    chart_key,
    decision_grid,
    hatch,
    legend,
    mark,
    quality_chart,
    score_grid,
)

COLUMNS = (
    ("mean_heads", "heads run", "{:.1f}"),
    ("probe_accuracy", "accuracy", "{:.3f}"),
    ("agreement", "agrees with dense", "{:.3f}"),
    ("cosine", "cosine to dense", "{:.3f}"),
    ("useful_flops", "MFLOPs each", "{:.0f}"),
    ("ms", "ms for 16", "{:.1f}"),
)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _json_block(value: Any) -> str:
    # Nothing in the data can end the script element or be read as markup.
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _rows_table(report: Report) -> str:
    dense = report.rows[0] if report.rows else {}
    head = "".join(f'<th scope="col">{title}</th>' for _, title, _ in COLUMNS)
    lines = []
    for row in report.rows:
        cells = []
        for key, _, form in COLUMNS:
            value = row.get(key)
            if value is None:
                cells.append("<td>-</td>")
                continue
            shown = form.format(value / 1e6 if key == "useful_flops" else value)
            extra = ""
            if key in ("useful_flops", "ms") and dense.get(key):
                extra = f' <span class="share">{100 * value / dense[key]:.0f}%</span>'
            cells.append(f"<td>{shown}{extra}</td>")
        name = escape(str(row["name"]))
        sign = f'<svg viewBox="0 0 20 20" aria-hidden="true">{mark(str(row["name"]), 10, 10)}</svg>'
        lines.append(f'<tr><th scope="row">{sign}{name}</th>{"".join(cells)}</tr>')
    return (
        '<div class="scroll"><table class="rows"><thead><tr><th scope="col">model</th>'
        f"{head}</tr></thead><tbody>{''.join(lines)}</tbody></table></div>"
    )


def _scores_table(report: Report) -> str:
    heads = len(report.scores[0])
    head = "".join(f'<th scope="col">H{index}</th>' for index in range(heads))
    body = "".join(
        f'<tr><th scope="row">L{layer}</th>'
        + "".join(f"<td>{value:.3g}</td>" for value in row)
        + "</tr>"
        for layer, row in enumerate(report.scores)
    )
    return (
        "<details><summary>The scores as a table</summary>"
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></details>"
    )


def _states_table(sentence: Sentence) -> str:
    words = {"on": "on", "off": "off", "always_on": "always", "pruned": "never"}
    body = []
    for policy, record in sentence.decisions.items():
        for layer in range(record["model"]["layers"]):
            states = [d for d in record["heads"] if d["layer"] == layer]
            cells = "".join(f"<td>{words.get(d['state'], d['state'])}</td>" for d in states)
            body.append(f'<tr><th scope="row">{escape(policy)} L{layer}</th>{cells}</tr>')
    record = next(iter(sentence.decisions.values()))
    head = "".join(f'<th scope="col">H{i}</th>' for i in range(record["model"]["heads"]))
    return (
        "<details><summary>These grids as a table</summary>"
        f'<div class="scroll"><table><thead><tr><th></th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div></details>"
    )


def _budget_line(record: Mapping[str, Any]) -> str:
    budget = record["budget"]
    text = f"{budget['active']} of {budget['total']} heads in the answer"
    if budget["heads_run"] != budget["active"]:
        text += f", {budget['heads_run']} computed with the re-run"
    if budget.get("flops_run") and budget.get("flops_dense"):
        text += f"; {100 * budget['flops_run'] / budget['flops_dense']:.0f}% of dense FLOPs"
    confidence = record["policy"].get("confidence")
    if confidence is not None:
        verb = "below" if record["mode"] == "escalated" else "above"
        text += f"; confidence {confidence:.2f} {verb} {record['policy']['threshold']:.2f}"
    return text


def _sentence(number: int, sentence: Sentence) -> str:
    grids = "".join(
        f'<figure data-policy="{escape(policy)}"><figcaption><strong>{escape(policy)}</strong> '
        f"<span>{escape(_budget_line(record))}</span></figcaption>"
        f"{decision_grid(record, policy)}</figure>"
        for policy, record in sentence.decisions.items()
    )
    return (
        f'<article class="sentence" id="sentence-{number}" data-sentence="{number}">'
        f'<blockquote dir="auto">{escape(sentence.text)}</blockquote>'
        f'<p class="verdict"><span>label <b>{escape(sentence.label)}</b></span>'
        f"<span>dense model says <b>{escape(sentence.prediction)}</b></span>"
        f"<span>{escape(sentence.note)}</span></p>"
        f'<div class="grids">{grids}</div>'
        f'<div class="card" aria-live="polite" hidden></div>'
        f"{_states_table(sentence)}</article>"
    )


def _data(report: Report) -> dict[str, Any]:
    sentences = []
    for sentence in report.sentences:
        decisions = {}
        for policy, record in sentence.decisions.items():
            decisions[policy] = [
                {
                    "state": d["state"],
                    "reason": d["reason"],
                    "logit": d["logit"],
                    "threshold": d["threshold"],
                    "why": d["why"],
                }
                for d in record["heads"]
            ]
        sentences.append({"tokens": list(sentence.tokens), "decisions": decisions})
    return {
        "heads": len(report.scores[0]),
        "scores": [list(row) for row in report.scores],
        "sentences": sentences,
    }


def render(report: Report) -> str:
    """The report as one HTML document.

    Everything that comes from data is escaped; the content security policy admits only the style
    and the script of the page itself, by hash, and no network at all.

    Args:
        report: what to show.

    Returns:
        str: the document.

    Example:
        >>> row = dict(name="dense", mean_heads=1, probe_accuracy=1, agreement=1, cosine=1)
        >>> row |= dict(useful_flops=1e6, ms=1.0)
        >>> page = render(Report("a <b>", [], [[1.0]], "score", [row]))
        >>> "a &lt;b&gt;" in page
        True
    """
    files = resources.files("headkit.report")
    style = files.joinpath("report.css").read_text(encoding="utf-8")
    script = files.joinpath("report.js").read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src '{_hash(script)}'; style-src '{_hash(style)}'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
    layers, heads = len(report.scores), len(report.scores[0])
    sections = []
    summary = "".join(f"<li>{escape(text)}</li>" for text in report.summary)
    if len(report.rows) > 1:
        dense = report.rows[0]
        charts = "".join(
            f"<figure>{quality_chart(report.rows, cost, title, '%', scale)}</figure>"
            for cost, title, scale in (
                ("mean_heads", "heads run, of all heads", dense["mean_heads"]),
                ("useful_flops", "FLOPs of the whole model, of dense", dense["useful_flops"]),
                ("ms", "time, of unmodified Hugging Face", dense["ms"]),
            )
        )
        sections.append(
            '<section><h2>What it costs to agree with the dense model</h2><p class="lead">The same '
            "points against three costs. Up and left is better.</p>"
            f'{chart_key([row["name"] for row in report.rows])}<div class="charts">{charts}</div>'
            f"{_rows_table(report)}</section>"
        )
    elif report.rows:
        sections.append(f"<section><h2>Measured</h2>{_rows_table(report)}</section>")
    sections.append(
        f'<section><h2>How much each head matters</h2><p class="lead">{escape(report.score_label)} '
        f"Colour is the rank among all {layers * heads} heads (light = matters most), the number "
        "the score as a percentage of the largest. Layer 0 is at the bottom.</p>"
        f'<div class="wide">{score_grid(report.scores, "head scores")}</div>'
        f"{_scores_table(report)}</section>"
    )
    if report.sentences:
        tabs = "".join(
            f'<button type="button" role="tab" id="tab-{n}" aria-controls="sentence-{n}">'
            f"{escape(sentence.note)}</button>"
            for n, sentence in enumerate(report.sentences)
        )
        articles = "".join(_sentence(n, s) for n, s in enumerate(report.sentences))
        sections.append(
            '<section><h2>Which heads run for a sentence</h2><p class="lead">Choose a head to see '
            "what decided. For the linear gate the words are coloured by what they add to (+) or "
            "take from (-) the logit of that head; the parts add up to the logit exactly. They "
            "explain the gate, not the prediction.</p>"
            f"{hatch()}{legend()}"
            f'<div class="tabs" role="tablist" aria-label="sentences" hidden>{tabs}</div>'
            f"{articles}</section>"
        )
    method = "".join(f"<p>{escape(text)}</p>" for text in report.method)
    facts = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>"
        for name, text in report.facts.items()
    )
    sections.append(
        f'<section class="method"><h2>How this was measured</h2>{method}<dl>{facts}</dl></section>'
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>{style}</style>\n</head>\n<body>\n"
        f'<header><p class="brand">headkit</p><h1>{escape(report.title)}</h1>'
        f'<ul class="summary">{summary}</ul></header>\n<main>{"".join(sections)}</main>\n'
        f'<script type="application/json" id="data">{_json_block(_data(report))}</script>\n'
        f"<script>{script}</script>\n</body>\n</html>\n"
    )


def write(report: Report, path: str | os.PathLike[str]) -> Path:
    """Write the report to ``path``; the file appears whole or not at all.

    Raises:
        RuntimeError: if the file cannot be written.
    """
    return write_text(path, render(report))
