import html.parser
import json
import re

import pytest

from headkit.report import Report, Sentence, render, write

from .browser import chromium

HOSTILE = '</script><img src=x onerror="alert(1)"><script>alert(2)</script>'


def record(layers=2, heads=3, mode="dynamic"):
    states = ["on", "off", "always_on", "pruned", "on", "off"]
    decisions = [
        {
            "layer": place // heads,
            "head": place % heads,
            "state": states[place % len(states)],
            "gate": 1.0,
            "reason": "score",
            "logit": 0.5,
            "threshold": 0.25,
            "margin": 0.25,
            "why": {
                "base": 0.1,
                "parts": [{"unit": 0, "value": 0.3}, {"unit": 1, "value": -0.1}],
                "rest": 0.2,
                "residual": 0.0,
            },
        }
        for place in range(layers * heads)
    ]
    return {
        "model": {"layers": layers, "heads": heads},
        "policy": {"confidence": 0.3, "threshold": 0.5},
        "budget": {
            "active": 3,
            "total": 6,
            "heads_run": 9,
            "flops_run": 5.0,
            "flops_dense": 10.0,
        },
        "mode": mode,
        "heads": decisions,
    }


def row(name, heads, agreement):
    return {
        "name": name,
        "mean_heads": heads,
        "probe_accuracy": 0.8,
        "agreement": agreement,
        "cosine": 0.9,
        "useful_flops": 1e8 * (1 + heads),
        "ms": 10.0 + heads,
    }


@pytest.fixture
def report():
    return Report(
        title=f"Heads {HOSTILE}",
        summary=[HOSTILE],
        scores=[[1.0, 0.5, 0.0], [0.25, -0.5, 2.0]],
        score_label=HOSTILE,
        rows=[
            row("dense", 6, 1.0),
            row("random@0.5", 3, 0.6),
            row("static@0.5", 3, 0.8),
            row("gate@0.5", 3.1, 0.82),
            row("escalation@0.5", 3, 0.9),
            row(HOSTILE, 4, 0.7),
        ],
        sentences=[
            Sentence(HOSTILE, [HOSTILE, "word"], HOSTILE, HOSTILE, HOSTILE, {HOSTILE: record()}),
            Sentence("plain", ["plain"], "a", "b", "c", {"gate": record(mode="escalated")}),
        ],
        method=[HOSTILE],
        facts={HOSTILE: HOSTILE},
    )


class Page(html.parser.HTMLParser):
    """Checks that elements close and collects what could reach out or run."""

    VOID = ("meta", "link", "img", "br", "hr", "input")

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.attributes, self.scripts = [], [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "script":
            self.scripts.append(data)


def test_the_page_is_well_formed_and_keeps_to_itself(report):
    text = render(report)
    page = Page(text)
    assert not page.open
    assert not {"img", "link", "iframe", "object", "form", "a"} & set(page.tags)
    for tag, name, value in page.attributes:
        assert not name.startswith("on"), (tag, name)
        assert name not in ("style", "src", "href", "action", "xlink:href"), (tag, name)
        if value and "url(" in value:
            assert value == "url(#hatch)"
    assert "http" not in re.sub(r"http-equiv", "", text)
    assert "@import" not in text


def test_the_content_security_policy_is_strict_and_matches_the_page(report):
    import base64
    import hashlib

    text = render(report)
    head = text.index("<head>")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', text)
    assert policy.start() - head < 10, "the policy must come first"
    parts = dict(part.strip().split(" ", 1) for part in policy[1].split(";"))
    assert parts["default-src"] == "'none'"
    assert parts["base-uri"] == parts["form-action"] == "'none'"
    assert "unsafe" not in policy[1]
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)[1]
    script = re.search(r"<script>(.*)</script>", text, re.DOTALL)[1]
    for source, block in (("style-src", style), ("script-src", script)):
        digest = base64.b64encode(hashlib.sha256(block.encode()).digest()).decode()
        assert parts[source] == f"'sha256-{digest}'"


def test_hostile_text_stays_text(report):
    text = render(report)
    page = Page(text)
    assert page.tags.count("script") == 2
    assert "<img" not in text
    block = json.loads(page.scripts[0])
    assert block["sentences"][0]["tokens"][0] == HOSTILE
    assert "innerHTML" not in page.scripts[1] and "eval(" not in page.scripts[1]


def test_every_cell_is_labelled_and_every_figure_has_a_table(report):
    text = render(report)
    page = Page(text)
    cells = [a for a in page.attributes if a[1] == "role" and a[2] == "gridcell"]
    labels = [a[2] for a in page.attributes if a[1] == "aria-label"]
    assert len(cells) == 3 * 6
    assert sum(label.startswith("layer ") for label in labels) == len(cells)
    assert "layer 1 head 2, score 2, rank 1 of 6" in labels
    assert page.tags.count("table") == 1 + 1 + 2


def test_a_report_of_scores_alone(tmp_path):
    path = write(
        Report("Scores", [], [[1.0, 2.0]], "label", [row("dense", 2, 1.0)]), tmp_path / "a"
    )
    assert Page(path.read_text()).tags.count("svg") >= 1


def test_writing_is_whole_or_nothing(report, tmp_path):
    target = tmp_path / "report.html"
    target.write_text("old")
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="expected to write"):
        write(report, tmp_path / "file" / "report.html")
    write(report, target)
    assert target.read_text().startswith("<!doctype html>")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "report.html"]


def test_a_browser_runs_the_page_without_complaint(report, tmp_path):
    path = write(report, tmp_path / "report.html")
    with chromium() as page:
        page.open(path)
        assert page.said == []
        assert page.asked == [path.as_uri()]
        articles = "[...document.querySelectorAll('.sentence')].map(one => one.hidden)"
        assert page.run(articles) == [False, True], "the script runs and shows one sentence"
