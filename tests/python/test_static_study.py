"""The static study at toy size."""

import json
from functools import partial

import pytest
import torch

import headkit as hk
from headkit.studies import Results
from headkit.studies.methods import all_methods, method_of, tuned_methods
from headkit.studies.outcome import Outcome, outcome_of
from headkit.studies.results import Missing
from headkit.studies.static import StaticStudy, StudySubject, check_cut, run_static
from headkit.studies.static_report import PICTURES, static_markdown, static_parts
from headkit.studies.tables import fill

from .cli_models import call, refused, said
from .study_data import CALIBRATION, QUICK, VALIDATION, asked_of, quiet

METHODS = ("random", "michel", "ablation", "michel+mean", "backward_elimination")
ARGUMENTS = {"granularity", "normalization"}  # of hk.score, whatever the metric
STANDARD = {
    "seeds": (0, 1, 2),
    "keeps": (0.75, 0.5),
    "methods": METHODS,
    "tuned": ("random", "michel"),
    "tuned_keeps": (0.5,),
    "rounds": 2,
}
asked = partial(asked_of, StaticStudy, STANDARD)


@pytest.fixture(scope="module")
def report(study, splits):
    return run_static(asked(study), splits, Results(study / "cache"), quiet)


def test_the_whole_study(report):
    rows = {(row["method"], row["keep"]): row for row in report["rows"]}
    assert set(rows) == {(method, keep) for method in METHODS for keep in (0.75, 0.5)}
    for (method, keep), row in rows.items():
        assert row["lower"] <= row["accuracy"] <= row["upper"] and row["kl"] >= 0
        assert row["kept_heads"] == 12 * keep
        if method == "random":
            continue
        against = row["against_random"]
        assert 0 <= against["holm_p"] <= 1
        below, other = against["kl_below"], rows["random", keep]["kl"]
        assert below["lower"] <= below["difference"] <= below["upper"]
        assert below["difference"] == pytest.approx(other - row["kl"], abs=1e-9)
    assert len(rows["random", 0.5]["draws"]) == 3 * 5
    assert rows["random", 0.5]["parameters"] < rows["random", 0.75]["parameters"]
    assert rows["ablation", 0.5]["seconds"] > 0, "that of scoring counts"
    assert report["agreement"]["names"] == ["random", "michel", "ablation"]
    assert report["agreement"]["runs"] == 3
    assert report["agreement"]["between_runs"][0] < 0.9, "random scores are drawn for each seed"
    assert {row["method"] for row in report["stability"]} == set(METHODS) - {"michel+mean"}
    assert {each["batch"] for each in report["latency"]} == {1, 32}
    assert all(set(each["ms"]) == {"dense", *METHODS} for each in report["latency"])
    assert [row["method"] for row in report["tuned"]["rows"]] == [*("dense", "random", "michel")]
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_figures_of_a_mask_are_those_of_gates(study, splits, report):
    """Removal in the study equals the mask as gates on the dense model."""
    subject = StudySubject(asked(study), splits, Results(study / "cache"), 1, quiet)
    found = subject.pruned("ablation", 0.5)
    scores = subject.scores("ablation").values.flatten()
    mask = torch.tensor(found.found["mask"]).flatten()
    assert mask[scores.argsort(stable=True)].tolist() == [0] * 6 + [1] * 6
    model, _ = subject.trained.load()
    gated = outcome_of(model, subject._test, mask.reshape(3, 4).float())
    torch.testing.assert_close(found.outcome.logits, gated.logits, atol=1e-5, rtol=0)
    dense = subject.dense()
    kl = torch.nn.functional.kl_div(
        gated.logits.log_softmax(1), dense.logits.softmax(1), reduction="none"
    ).sum(1)
    torch.testing.assert_close(found.outcome.kl_from(dense), kl, atol=1e-5, rtol=0)


@pytest.mark.parametrize("label", ["iterative", "backward_elimination+mean"])
def test_one_search_serves_every_share(study, splits, label):
    subject = StudySubject(asked(study), splits, Results(study / "cache"), 1, quiet)
    method = method_of(label)
    model, _ = subject.trained.load()
    for keep in (0.75, 0.5):
        alone = hk.prune(
            model,
            keep,
            method.name,
            subject._calibration(method.sentences).batches,
            objective="cross_entropy",
            compensate=method.compensate,
            **method.settings,
        )
        mask = alone.heads if method.compensate else alone
        assert subject.pruned(label, keep).found["mask"] == mask.keep.int().tolist()


def test_a_second_run_finds_everything_and_a_frozen_one_computes_nothing(
    study,
    splits,
    report,
    tmp_path,
):
    for frozen in (False, True):
        results = Results(study / "cache", frozen=frozen)
        assert run_static(asked(study), splits, results, quiet) == report
        assert results.computed == 0
    more = asked(study, methods=(*METHODS, "ablation+mean"), keeps=(0.5, 0.25), rounds=0)
    part = run_static(more, splits, Results(study / "cache", frozen=True), quiet)
    assert {row["method"] for row in part["rows"]} == set(METHODS)
    assert {row["keep"] for row in part["rows"]} == {0.5}
    assert static_markdown(part)
    with pytest.raises(ValueError, match="none yet"):
        run_static(more, splits, Results(tmp_path, frozen=True), quiet)
    with pytest.raises(Missing):
        Results(tmp_path, frozen=True).get("kind", {}, dict)


def test_a_study_that_is_cut_off_goes_on(study, splits, report, tmp_path):
    class CutOff(Exception):
        pass

    calls, patience, attempts = 0, 40, 0

    def cut(text, done, total):
        nonlocal calls
        calls += 1
        if calls > patience:
            raise CutOff

    small = asked(study, rounds=0, keeps=(0.5,), methods=METHODS[:3], tuned=())
    whole = run_static(small, splits, Results(study / "cache"), quiet)
    while True:
        calls, attempts = 0, attempts + 1
        try:
            found = run_static(small, splits, Results(tmp_path / "cache"), cut)
            break
        except CutOff:
            patience *= 2
    assert attempts > 1
    for one in (found, whole):
        for row in one["rows"]:
            del row["seconds"]
    assert found == whole


def test_a_truncated_result_is_computed_again(tmp_path):
    results = Results(tmp_path)
    assert results.get("kind", {"a": 1}, lambda: [1, 2]) == [1, 2]
    path = results.path("kind", {"a": 1})
    path.write_text(path.read_text()[:20])
    assert results.get("kind", {"a": 1}, lambda: [3]) == [3]
    assert results.get("kind", {"a": 2}, lambda: [4]) == [4]
    with pytest.raises(ZeroDivisionError):
        results.get("kind", {"a": 3}, lambda: 1 / 0)
    assert not results.path("kind", {"a": 3}).exists()


def test_every_method_that_is_registered_is_in_the_study():
    labels = all_methods()
    assert set(hk.pruners()) <= set(labels) and "random" in labels
    assert len(tuned_methods()) <= 6 and tuned_methods()[0] == "random"
    for label in labels:
        given = set(method_of(label).settings)
        name = method_of(label).name
        known = hk.scorers() if method_of(label).one_shot else hk.pruners()
        assert not given or given <= set(known[name]["settings"]) | ARGUMENTS


def test_rules_of_the_study():
    for expected, options in {
        "different seeds": {"seeds": (0, 1)},
        "random draws": {"draws": 4},
        "among the methods": {"methods": ("ablation", "michel")},
        "with or without": {"methods": ("random", "michel", "magic")},
        "between 0 and 1": {"keeps": (1.5,)},
    }.items():
        with pytest.raises(ValueError, match=expected):
            StaticStudy(**options).check()


def test_a_masked_model_is_not_timed(study, splits, report):
    subject = StudySubject(asked(study), splits, Results(study / "cache"), 0, quiet)
    found = subject.pruned("ablation", 0.5).found
    assert hk.attach(subject.cut_model(found)).heads().count == 6
    dense, _ = subject.trained.load()
    with hk.gates(dense, torch.tensor(found["mask"]).float()):
        with pytest.raises(ValueError, match="cut to 6 heads"):
            check_cut(dense, found["kept_heads"], found["parameters"])


def test_outcomes_by_hand():
    labels = torch.tensor([0, 1, 1])
    dense = Outcome(torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]]).double(), labels)
    other = Outcome(torch.tensor([[2.0, 0.0], [1.0, 0.0], [3.0, 0.0]]).double(), labels)
    assert dense.right.tolist() == [True, True, False]
    assert other.flips_from(dense) == pytest.approx(1 / 3)
    assert other.one_class == 1 and dense.one_class == pytest.approx(2 / 3)
    assert other.kl_from(dense)[[0, 2]].tolist() == [0, 0]
    p = torch.tensor([0.0, 1.0]).double().softmax(0)
    assert float(other.kl_from(dense)[1]) == pytest.approx(float((p[1] - p[0]) * 1.0))


def test_tables_and_the_places_of_a_page(report):
    parts = static_parts(report)
    page = "".join(f"<!-- results: {name} -->\n<!-- end -->\n" for name in parts)
    filled = fill(page, parts)
    assert filled.count("<!-- end -->") == len(parts)
    assert "| `backward_elimination` |" in filled and fill(filled, parts) == filled
    with pytest.raises(ValueError, match="a place for"):
        fill(page, {"nowhere": ""})


def test_the_command(study, tmp_path, report):
    out, page = tmp_path / "out", tmp_path / "page.md"
    parts = static_parts(report)
    page.write_text("".join(f"<!-- results: {name} -->\n<!-- end -->\n" for name in parts))
    arguments = (
        *("experiment", "static", "--data", study / "data", "--out", out),
        *("--cache", study / "cache", "--model", study / "model", "--page", page),
        *(
            "--calibration",
            CALIBRATION,
            "--validation",
            VALIDATION,
            "--keep",
            "0.75,0.5",
            "--seeds",
            3,
        ),
        *("--methods", ",".join(METHODS), "--tuned", "", "--epochs", QUICK.epochs),
        *("--learning-rate", QUICK.learning_rate, "--rounds", 0),
    )
    told = call(*arguments, "--json")
    assert told.exit_code == 0, said(told)
    found = json.loads(told.stdout)
    assert found["rows"] == report["rows"]
    assert found == json.loads((out / "static.json").read_text())
    assert (out / "tables.md").read_text() == static_markdown(found)
    for name in PICTURES:
        assert (out / name).stat().st_size > 1000 and (tmp_path / name).is_file()
    assert "| `ablation` |" in page.read_text()
    assert "michel" in said(call(*arguments, "--found-only"))
    refused("at least 3", "experiment", "static", *arguments[2:6], "--seeds", 2)
