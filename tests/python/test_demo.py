"""The main job on a small part of the real model's real data."""

import json
import math

import pytest

from headkit import demo
from headkit.demo.timing import interleaved

NAMES = (
    "dense",
    "attached",
    "random@0.75",
    "random@0.5",
    "static@0.75",
    "static@0.5",
    "gate@0.5",
    "escalation@0.5",
)
FIELDS = ("mean_heads", "probe_accuracy", "agreement", "cosine", "useful_flops", "ms")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo")
    steps = []
    summary = demo.run(
        out, size=demo.SIZES["quick"], show=lambda text, count, total: steps.append(text)
    )
    return out, summary, steps


def test_the_summary_has_its_rows_and_fields(done):
    out, summary, _ = done
    written = json.loads((out / "summary.json").read_text())
    assert written == json.loads(json.dumps(summary))
    assert tuple(row["name"] for row in written["rows"]) == NAMES
    for row in written["rows"]:
        for field in FIELDS:
            assert math.isfinite(row[field]), (row["name"], field)
        assert 0 <= row["agreement"] <= 1 and 0 <= row["probe_accuracy"] <= 1
        assert row["cosine"] <= 1 + 1e-6 and row["ms"] > 0
    for key in ("versions", "seeds", "counts", "sources", "units", "conclusions", "machine"):
        assert written[key]


def test_the_rows_are_what_they_say(done):
    _, summary, _ = done
    rows = {row["name"]: row for row in summary["rows"]}
    dense = rows["dense"]
    assert dense["mean_heads"] == 72 and dense["agreement"] == 1
    assert rows["attached"]["agreement"] == 1
    assert rows["attached"]["cosine"] == pytest.approx(1, abs=1e-6)
    assert summary["attached_max_difference"] < 1e-5
    for kind in ("random", "static"):
        assert rows[f"{kind}@0.75"]["mean_heads"] == 54
        assert rows[f"{kind}@0.5"]["mean_heads"] == 36
    # Head FLOPs are linear in heads, the rest is fixed: three points on one line.
    half, most = rows["static@0.5"]["useful_flops"], rows["static@0.75"]["useful_flops"]
    assert 2 * most == pytest.approx(half + dense["useful_flops"])
    # The threshold is set on other sentences; few of them here.
    for name in ("gate@0.5", "escalation@0.5"):
        assert rows[name]["mean_heads"] == pytest.approx(36, abs=5)
    rerun = summary["escalation"]["rerun_share"]
    low = summary["escalation"]["low_heads"]
    assert rows["escalation@0.5"]["mean_heads"] == pytest.approx(low + 72 * rerun)


def test_scoring_beats_chance(done):
    _, summary, _ = done
    rows = {row["name"]: row for row in summary["rows"]}
    assert rows["static@0.5"]["cosine"] > rows["random@0.5"]["cosine"]


def test_the_report_and_records_are_there(done):
    out, _, steps = done
    text = (out / "report.html").read_text()
    assert text.startswith("<!doctype html>") and "Content-Security-Policy" in text
    assert all(name in text for name in NAMES)
    assert "http" not in text.replace("http-equiv", "")
    records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
    assert {record["policy"]["name"] for record in records} == {
        "mask",
        "linear_gate",
        "escalation",
    }
    assert sorted(path.name for path in out.iterdir()) == [
        "records.jsonl",
        "report.html",
        "summary.json",
    ]
    assert any("scoring" in step for step in steps)


def test_interrupting_leaves_nothing(tmp_path):
    def stop(text, done, total):
        if "scoring" in text:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        demo.run(tmp_path / "out", size=demo.SIZES["quick"], show=stop)
    assert not (tmp_path / "out").exists()


def test_no_review_is_in_two_parts():
    from headkit import assets

    reviews = demo.load_reviews(assets.fetch("vaderSentiment"))
    assert len(reviews) == 2447
    assert all(abs(review.rating) >= 1 for review in reviews)
    parts = demo.split_by_review(reviews, seed=0)
    owners = [{review.review for review in part} for part in parts.values()]
    assert not (owners[0] & owners[1] or owners[0] & owners[2] or owners[1] & owners[2])
    assert sum(len(part) for part in parts.values()) == len(reviews)
    assert parts == demo.split_by_review(reviews, seed=0)
    assert parts != demo.split_by_review(reviews, seed=1)


def test_missing_data_is_said(tmp_path):
    with pytest.raises(RuntimeError, match="amazonReviewSnippets"):
        demo.load_reviews(tmp_path)


def test_timing_runs_every_candidate_on_the_same_batches():
    seen = {"a": [], "b": []}
    candidates = {name: seen[name].append for name in seen}
    times, rounds = interleaved(candidates, [1, 2], rounds=3)
    assert rounds == 3
    assert seen["a"] == seen["b"] == [1, 2, 1, 2, 1]
    assert set(times) == {"a", "b"}
