"""The dynamic study at toy size: three tasks, whole, cut off, and found again."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import transformers

import headkit as hk
from headkit.studies import Results
from headkit.studies.digits import DigitSizes
from headkit.studies.distillation import distilled
from headkit.studies.dynamic import DynamicStudy, Subject, run_dynamic, subjects_of
from headkit.studies.dynamic_report import PICTURES, dynamic_markdown, dynamic_parts
from headkit.studies.dynamic_rungs import Choices
from headkit.studies.dynamic_task import Opened
from headkit.studies.equal_cost import Point, against, at_cost
from headkit.studies.kept_budget import SETTLED, kept, kept_budget
from headkit.studies.realised_risk import Knob, realised_risk
from headkit.studies.recipe import Recipe
from headkit.studies.results import Missing
from headkit.studies.tables import fill

from .cli_models import call, refused, said
from .families import randomise
from .study_data import CALIBRATION, QUICK, VALIDATION, quiet

LAYERS, HEADS = 3, 4
PAGE = Path(__file__).parents[2] / "docs" / "studies" / "dynamic.md"
CHOICES = Choices(
    metrics=("michel", "backward_elimination"),
    mixes=(1.0, 0.5),
    lows=(0.3,),
    layers=(0.34,),
    again=Recipe(epochs=1, learning_rate=1e-3),
)
DIGITS = {
    "sizes": DigitSizes(width=24, layers=LAYERS, heads=HEADS, neurons=96),
    "recipe": Recipe(epochs=14, learning_rate=6e-3, batch_size=16),
    "limit": 160,
}


@pytest.fixture(scope="module")
def splits(splits):
    """Two batches of each part that is looked at."""
    few = {name: getattr(splits, name)[:32] for name in ("calibration", "validation", "test")}
    return replace(splits, **few)


@pytest.fixture(scope="module")
def study_model(study, tmp_path_factory):
    """A BERT with three blocks of neurons in each layer, and the tokenizer of the study."""
    folder = tmp_path_factory.mktemp("blocks")
    tokenizer = transformers.AutoTokenizer.from_pretrained(study / "model")
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=24, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, intermediate_size=96, max_position_embeddings=32, num_labels=2,
    )  # fmt: skip
    torch.manual_seed(3)
    model = transformers.BertForSequenceClassification(config)
    randomise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def asked_of(model, **options):
    standard = {
        "model": str(model), "seeds": (0,), "budgets": (0.5,), "trained_budgets": (0.6,),
        "draws": 1, "oracle": 3, "oracle_step": 2, "rounds": 1, "recipe": QUICK, "choices": CHOICES,
        "digits": DIGITS, "risks": (0.02, 0.2), "splits": 4, "targets": (),
    }  # fmt: skip
    return DynamicStudy(**{**standard, **options})


@pytest.fixture(scope="module")
def asked(study_model):
    return partial(asked_of, study_model)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("dynamic")


@pytest.fixture(scope="module")
def report(asked, splits, cache):
    return run_dynamic(asked(), splits, Results(cache), quiet)


@pytest.fixture(scope="module")
def sentences(asked, splits, cache, report):
    """The sentences, all their arms found."""
    (subjects,) = subjects_of(asked(tasks=("sst2",)), splits, Results(cache, frozen=True), quiet)
    subject: Subject = subjects[0]
    subject.without_training()
    subject.with_training()
    return subject


def test_the_whole_study(report):
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert set(report["tasks"]) == {"sst2", "embedding", "digits"}
    for name, task in report["tasks"].items():
        assert task["refused"] == [], task["refused"]
        assert task["seeds"] == [0]
        rows = {row["arm"]: row for row in task["rows"]}
        dense = rows["dense"]
        assert dense["agreement"]["mean"] == pytest.approx(1)
        assert dense["divergence"]["mean"] == pytest.approx(0, abs=1e-9)
        assert dense["flops"] == 1 and dense["heads"] == LAYERS * HEADS
        ways = {row["way"] for row in task["rows"]}
        expected = {"dense", "static", "random", "reactivation", "linear gate", "layer gate"}
        assert expected <= ways and ("escalation" in ways) == (name != "embedding")
        for row in task["rows"]:
            assert row["agreement"]["lower"] <= row["agreement"]["upper"]
            assert (row["accuracy"] is None) == (name == "embedding")
            if row["way"] in ("static", "random", "escalation, oracle"):
                assert row["flops"] <= row["budget"] + 0.06, row["arm"]
        compared = {(each["arm"], each["cost"]) for each in task["comparisons"]}
        for way in ("reactivation", "linear gate", "layer gate"):
            assert {(f"{way} at 0.5", "time"), (f"{way} at 0.5", "flops")} <= compared
        assert ("reactivation trained at 0.6", "time") in compared
        assert task["oracle"]["examples"] == 3
        assert task["drift"][0]["arm"] == "top rung"
        assert [row["promised"] for row in task["promises"]] == (
            [] if name == "embedding" else [0.02, 0.2]
        )
        for row in task["promises"]:
            assert ("refused" in row) == (row["promised"] == 0.02), "32 test examples"


def test_a_promise_is_kept_and_not_by_far():
    draw = torch.Generator().manual_seed(0)
    count, steps = 600, 200
    enough = torch.rand(count, generator=draw, dtype=torch.float64) * (steps - 1)
    losses = (torch.arange(steps + 1) < enough[:, None]).double()
    flops = torch.linspace(0.5, 1, steps + 1, dtype=torch.float64).expand(count, -1)
    for risk in (0.05, 0.2):
        found = realised_risk(Knob(losses, flops, torch.ones(count).double()), risk, splits=400)
        slack = 3 * found.simulation_error
        # What the theorem leaves: the correction for the halves' size, and a step of the grid.
        least = risk - 2 / (count // 2 + 1) - 1 / steps
        assert least - slack < found.mean <= risk + slack
        assert found.largest > risk, "one split is promised nothing"
        assert found.flops == pytest.approx(1 - risk / 2, abs=0.02)


def test_a_promise_needs_examples():
    few = Knob(*(torch.zeros(20, 3, dtype=torch.float64) for _ in range(2)), torch.ones(20))
    with pytest.raises(ValueError, match="99"):
        realised_risk(few, 0.01, splits=4)
    with pytest.raises(ValueError, match="expected two splits or more; found 1"):
        realised_risk(few, 0.2, splits=1)


def test_a_static_arm_is_the_cut_model(sentences):
    for name in ("static at 0.5", "static trained at 0.6"):
        arm = sentences.found[name]
        forward = sentences.arms.runner(arm)
        part = sentences.task.part("test")
        with torch.no_grad():
            cut = part.in_order([forward(batch).double() for batch in part.batches])
        torch.testing.assert_close(cut, arm.outputs, atol=1e-4, rtol=1e-4)


def test_escalation_is_low_where_sure_and_whole_elsewhere(sentences):
    arm, arms = sentences.found["escalation at 0.5"], sentences.arms
    part, dense = sentences.task.part("test"), sentences.found["dense"].outputs
    rung = arms.ladder(arm.chosen["plan"])[0]
    opened = arms.opened()
    with torch.no_grad():
        low = part.in_order(
            [opened.gated(b, rung.gates(torch.zeros(1))).double() for b in part.batches]
        )
    margin = (low[:, 0] - low[:, 1]).abs()
    again = (margin / 2).tanh() < arm.chosen["threshold"]
    assert 0 < int(again.sum()) < len(again), "both sides are tested"
    expected = torch.where(again[:, None], dense, low)
    torch.testing.assert_close(arm.outputs, expected, atol=1e-5, rtol=1e-5)
    assert arm.heads.tolist() == (rung.heads.count + again * LAYERS * HEADS).tolist()
    share = hk.rung_flops(opened.gated, rung, 5) / hk.rung_flops(
        opened.gated, hk.Rung(hk.HeadMask.all(LAYERS, HEADS)), 5
    )
    some = part.tokens == 5
    torch.testing.assert_close(arm.flops[some], (share + again.double())[some], atol=1e-5, rtol=0)


def test_bounds_bound(sentences):
    """The oracle knows the outputs: with the same FLOPs it is nearer to dense than escalation."""
    oracle = sentences.found["escalation, oracle at 0.5"]
    assert sentences.cost(oracle.name, "flops") <= 0.5 + 1e-6
    policy = sentences.found["escalation at 0.5"]
    if sentences.cost(policy.name, "flops") <= sentences.cost(oracle.name, "flops"):
        assert sentences.quality(oracle, "divergence").mean() >= (
            sentences.quality(policy, "divergence").mean()
        )


def test_a_linear_gate_runs_the_neurons_of_its_plan(sentences):
    arm = sentences.found["linear gate at 0.5"]
    assert 0 < sentences.arms.plan(0.5, 0.75)["heads"] <= 0.75
    rung = sentences.arms.ladder(arm.chosen["plan"])[0]
    layout = sentences.arms.layout
    neurons = 32 * int(rung.blocks.sum())
    for place, tokens in enumerate(sentences.task.part("test").tokens.tolist()[:5]):
        heads = float(arm.heads[place])
        expected = flops_of(layout, heads, neurons, tokens)
        whole = flops_of(layout, LAYERS * HEADS, LAYERS * 96, tokens)
        assert float(arm.flops[place]) == pytest.approx(expected / whole, abs=1e-5)


def flops_of(layout, heads, neurons, tokens):
    """By the formulas of attention and of two linear maps."""
    width, size = layout.model_dim, layout.head_dim
    return heads * (8 * tokens * width * size + 4 * tokens**2 * size) + neurons * 4 * tokens * width


def test_training_brings_rungs_nearer_to_dense(sentences, tmp_path):
    task, arms = sentences.task, sentences.arms
    plan = arms.plan(0.5)
    ladder = arms.ladder(plan)
    unfrozen = Results(tmp_path)
    task = type(task)(
        str(task.subject.model), task.subject.recipe, task.splits, task.results, task.seed, quiet
    )
    _ = task.configuration
    task.results = unfrozen
    recipe = Recipe(epochs=2, learning_rate=1e-3)

    class CutOff(Exception):
        pass

    def cut(text, done, total):
        if "rungs" in text and done == 9:
            raise CutOff

    paths = [tmp_path / "whole.pt", tmp_path / "cut.pt"]
    distilled(task, arms.fresh, ladder.rungs, recipe, paths[0], ladder=True)
    task.show = cut
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("headkit.studies.distillation.EVERY", 4)
        with pytest.raises(CutOff):
            distilled(task, arms.fresh, ladder.rungs, recipe, paths[1], ladder=True)
        assert not paths[1].exists()
        task.show = quiet
        distilled(task, arms.fresh, ladder.rungs, recipe, paths[1], ladder=True)
    whole, again = (torch.load(path, weights_only=True) for path in paths)
    assert all(torch.equal(whole[name], again[name]) for name in whole), "goes on bit for bit"

    part = task.part("train")
    with torch.no_grad():
        dense = torch.cat([arms.opened().gated(b).double() for b in part.batches])
        gates = ladder[0].gates(torch.zeros(1))
        losses = []
        for weights in (None, paths[0]):
            gated = arms.fresh(weights).gated
            outputs = torch.cat([gated(b, gates).double() for b in part.batches])
            losses.append(float(task.divergence(outputs, dense).mean()))
    assert losses[1] < 0.8 * losses[0]


def test_a_second_run_finds_everything_and_a_frozen_one_computes_nothing(
    asked, splits, cache, report, tmp_path
):
    for frozen in (False, True):
        results = Results(cache, frozen=frozen)
        assert run_dynamic(asked(), splits, results, quiet) == report
        assert results.computed == 0
    more = asked(budgets=(0.5, 0.6), trained_budgets=(0.6, 0.5), rounds=0)
    part = run_dynamic(more, splits, Results(cache, frozen=True), quiet)
    names = {row["arm"] for row in part["tasks"]["sst2"]["rows"]}
    assert "static at 0.5" in names and "static at 0.6" not in names
    assert dynamic_markdown(part)
    with pytest.raises(ValueError, match="none yet"):
        run_dynamic(asked(), splits, Results(tmp_path, frozen=True), quiet)


def test_a_study_that_is_cut_off_goes_on(asked, splits, cache, report, tmp_path):
    class CutOff(Exception):
        pass

    calls, patience, attempts = 0, 8, 0

    def cut(text, done, total):
        nonlocal calls
        calls += 1
        if calls > patience:
            raise CutOff

    small = asked(tasks=("embedding",), rounds=0, trained_budgets=(), oracle=0)
    while True:
        calls, attempts = 0, attempts + 1
        try:
            found = run_dynamic(small, splits, Results(tmp_path), cut)
            break
        except CutOff:
            patience *= 2
    assert attempts > 1
    assert found == run_dynamic(small, splits, Results(cache), quiet)


def test_quality_at_equal_cost_by_hand():
    good, bad = torch.tensor([1.0, 1.0, 1.0, 0.0]), torch.tensor([0.0, 1.0, 0.0, 0.0])
    curve = [Point(4.0, good.double()), Point(2.0, bad.double())]
    assert at_cost(curve, 2.5).tolist() == [0.25, 1, 0.25, 0]
    assert at_cost(curve, 1).tolist() == bad.tolist()
    assert at_cost(curve, 5).tolist() == good.tolist()
    found = against([curve], [Point(2.5, good.double())])
    assert found["difference"] == pytest.approx((0.75 + 0 + 0.75 + 0) / 4)
    assert found["inside"] == [True] and found["lower"] <= found["difference"] <= found["upper"]
    both = against([curve] * 2, [Point(2.5, good.double())] * 2)
    assert both["difference"] == found["difference"] and both["over"] == "seeds and examples"
    assert against([curve], [Point(9.0, good.double())])["inside"] == [False]
    with pytest.raises(ValueError, match="at least one arm"):
        at_cost([], 1)
    with pytest.raises(ValueError, match="the same seeds"):
        against([curve], [])


def test_rules_of_the_study():
    for expected, options in {
        "different tasks": {"tasks": ("sst2", "sst2")},
        "tasks of": {"tasks": ("magic",)},
        "different seeds": {"seeds": (0, 0)},
        "between 0 and 1": {"budgets": (1.5,)},
        "expected budgets": {"budgets": ()},
        "expected orders": {"choices": Choices(metrics=("magic",))},
        "rounds >= 0": {"rounds": -1},
        "oracle_step": {"oracle_step": 0},
    }.items():
        with pytest.raises(ValueError, match=expected):
            DynamicStudy(**options).check()
    with pytest.raises(ValueError, match="expected sentences"):
        run_dynamic(DynamicStudy(tasks=("sst2",)), None, Results("unused"), quiet)
    with pytest.raises(Missing):
        Results("unused", frozen=True).check_not_frozen("kind")


def test_a_target_of_time_is_asked_of_the_arm_at_half_the_flops(asked, splits, cache, report):
    """16 sentences cannot promise 5 %: told, and nothing else is lost."""
    found = run_dynamic(asked(tasks=("sst2",), targets=(0.7,)), splits, Results(cache), quiet)
    ((name, why),) = found["tasks"]["sst2"]["refused"]
    assert name == "a target of 0.7" and "found 16" in why


@torch.no_grad()
def test_a_kept_budget_never_goes_below_its_floor(study_model):
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(study_model).eval()
    gated = hk.attach(model, feed_forward=True)
    low = hk.HeadMask(torch.tensor([[1, 0, 0, 0]] * LAYERS))
    batches = [
        {
            "input_ids": torch.randint(3, 30, (16, 6 + n)),
            "attention_mask": torch.ones(16, 6 + n, dtype=torch.int64),
            "labels": torch.randint(2, (16,)),
        }
        for n in range(10)
    ]
    policy = hk.Escalation(low, threshold=0.5)
    found = kept_budget(Opened(model, gated, gated), policy, batches[:6], batches[6:], 0.8, 60)
    assert json.loads(json.dumps(found)) == found
    assert found["target"] == pytest.approx(0.8 * found["dense"])
    assert len(found["milliseconds"]) == len(found["lambdas"]) == 60
    assert min(found["milliseconds"]) > 0
    assert all(found["floor"] <= each <= 1 for each in found["lambdas"])


def test_what_is_told_of_a_kept_budget():
    costs = [5.0] * SETTLED + [1.0, 3.0, 1.0, 3.0]
    found = {"target": 1.6, "milliseconds": costs, "lambdas": [1.0] * SETTLED + [0.2, 0.4] * 2}
    told = kept(found)
    assert told["mean"] == 2 and told["error"] == pytest.approx(0.25)
    assert told["lowest"] == 0.2 and told["lambda"] == pytest.approx(0.3)
    assert told["simulation_error"] == pytest.approx(math.sqrt(4 / 3) / 2 / 1.6)


def test_the_page_has_a_place_for_every_table(report):
    page = PAGE.read_text(encoding="utf-8")
    parts = dynamic_parts(report)
    filled = fill(page, parts)
    assert page.count("<!-- results: ") == len(parts)
    assert fill(filled, parts) == filled and "| escalation at 0.5 |" in filled


def test_the_command(study, study_model, tmp_path, monkeypatch):
    few = replace(CHOICES, metrics=("gate_gradient",))
    monkeypatch.setattr(
        "headkit.studies.dynamic.run_dynamic",
        lambda asked, *given: run_dynamic(replace(asked, choices=few), *given),
    )
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text(encoding="utf-8"))
    arguments = (
        *("experiment", "dynamic", "--data", study / "data", "--cache", tmp_path / "cache"),
        *("--model", study_model, "--tasks", "embedding", "--seeds", 1, "--budgets", "0.5"),
        *(
            "--orders",
            "gate_gradient",
            "--trained-budgets",
            "",
            "--draws",
            1,
            "--oracle",
            0,
            "--rounds",
            0,
        ),
        *("--calibration", CALIBRATION, "--validation", VALIDATION),
        *("--page", page, "--out", tmp_path / "out"),
    )
    refused("none yet", *arguments, "--found-only")
    told = call(*arguments, "--json")
    assert told.exit_code == 0, said(told)
    found = json.loads(told.stdout)
    assert found == json.loads((tmp_path / "out" / "dynamic.json").read_text())
    for name in PICTURES:
        assert (tmp_path / name).stat().st_size > 1000
    assert "| reactivation at 0.5" in page.read_text()
    assert "reactivation at 0.5" in said(call(*arguments, "--found-only"))
    refused("expected --data", "experiment", "dynamic", "--cache", tmp_path, "--tasks", "sst2")
    refused("tasks of", "experiment", "dynamic", "--cache", tmp_path, "--tasks", "magic")
