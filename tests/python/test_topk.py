"""The top-k experiment at toy size, and each known defect of such experiments."""

import json
from functools import partial

import pytest
import torch
import transformers

import headkit as hk
from headkit.studies import Results, read_splits
from headkit.studies.arms import check_arms, check_fine_tuned, removed_by
from headkit.studies.comparison import compare
from headkit.studies.outcome import outcome_of
from headkit.studies.recipe import Recipe, fine_tune
from headkit.studies.splits import Sentence
from headkit.studies.subject import open_subject
from headkit.studies.topk import Subject, TopK, run_topk
from headkit.studies.trained import trained

from .cli_models import WORDS, call, refused, said
from .study_data import CALIBRATION, QUICK, TEST, VALIDATION, asked_of, quiet

asked = partial(asked_of, TopK, {"ks": (1, 2), "seeds": (0, 1), "single_head": True})


@pytest.fixture(scope="session")
def report(study, splits):
    return run_topk(asked(study), splits, Results(study / "cache"), quiet)


def subject_of(study, splits, seed=0, **options):
    subject = Subject(asked(study, **options), splits, Results(study / "cache"), seed, quiet)
    subject.check()
    return subject


def test_the_whole_experiment(study, splits, report):
    arms = {(row["arm"], row["k"], row["trained"]) for row in report["rows"]}
    assert ("dense", 0, False) in arms and ("removes random", 2, True) in arms
    assert len(arms) == 2 * (1 + 2 * 3)
    for row in report["rows"]:
        assert row["lower"] <= row["accuracy"] <= row["upper"]
        assert len(row["by_seed"]) == 2
    assert all(0 <= each["holm_p"] <= 1 for each in report["comparisons"])
    assert all(each["holm_p"] >= each["p"] for each in report["comparisons"])
    dense = next(each for each in report["comparisons"] if each["a"] == "dense")
    assert len(dense["mcnemar_p"]) == 2
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_the_figures_are_those_of_plain_transformers(study, splits, report):
    subject = subject_of(study, splits)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        subject.trained.folder
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(subject.trained.folder)
    right = 0
    with torch.no_grad():
        for each in splits.test:
            logits = plain(**tokenizer(each.text, return_tensors="pt")).logits
            right += int(logits.argmax()) == each.label
    dense = next(row for row in report["rows"] if row["arm"] == "dense" and not row["trained"])
    assert dense["by_seed"][0] == pytest.approx(right / len(splits.test))


def test_a_second_run_finds_everything(study, splits, report):
    results = Results(study / "cache")
    again = run_topk(asked(study), splits, results, quiet)
    assert again == report and results.computed == 0


def test_a_run_that_is_cut_off_goes_on(study, splits, report, tmp_path):
    class CutOff(Exception):
        pass

    calls, patience, attempts = 0, 20, 0

    def cut(text, done, total):
        nonlocal calls
        calls += 1
        if calls > patience:
            raise CutOff

    small = asked(study, ks=(1,), seeds=(0, 1), single_head=False)
    whole = run_topk(small, splits, Results(study / "cache"), quiet)
    while True:
        calls, attempts = 0, attempts + 1
        try:
            found = run_topk(small, splits, Results(tmp_path / "cache"), cut)
            break
        except CutOff:
            patience *= 2
    assert attempts > 2
    assert found == whole


def test_no_heads_give_one_class(report):
    assert report["no_heads"]["share_of_one_class"] == [1.0, 1.0]


def test_importance_before_fine_tuning_is_refused(study, splits, tmp_path):
    barely = asked(study, recipe=Recipe(epochs=1, learning_rate=1e-7), single_head=False)
    with pytest.raises(ValueError, match="scored after fine-tuning"):
        run_topk(barely, splits, Results(tmp_path), quiet)
    assert not (tmp_path / "scores").exists()
    with pytest.raises(ValueError, match="most frequent label"):
        check_fine_tuned(0.47, 0.51, 500)
    check_fine_tuned(0.88, 0.51, 500)


def test_scores_are_those_of_the_fine_tuned_model(study, splits, report):
    """By autograd through the plain model: d loss / d gate in front of the output projection."""
    subject = subject_of(study, splits)
    plain = transformers.AutoModelForSequenceClassification.from_pretrained(
        subject.trained.folder
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(subject.trained.folder)
    layers, heads = report["layers"], report["heads"]
    total = torch.zeros(layers, heads, dtype=torch.float64)
    after = torch.zeros(layers, heads, dtype=torch.float64)
    for each in splits.calibration:
        gates = [torch.ones(heads, requires_grad=True) for _ in range(layers)]
        outputs, handles = [], []

        def keep_output(module, args, output, outputs=outputs):
            outputs.append(output)

        for gate, layer in zip(gates, plain.bert.encoder.layer, strict=True):

            def multiply(module, args, gate=gate):
                wide = gate.repeat_interleave(args[0].shape[-1] // heads)
                return (args[0] * wide,)

            dense = layer.attention.output.dense
            handles.append(dense.register_forward_pre_hook(multiply))
            handles.append(dense.register_forward_hook(keep_output))
        encoded = tokenizer(each.text, return_tensors="pt")
        loss = plain(**encoded, labels=torch.tensor([each.label])).loss
        slopes = torch.autograd.grad(loss, [*gates, *outputs])
        total += torch.stack(slopes[:layers]).abs().double()
        for place, (slope, output) in enumerate(zip(slopes[layers:], outputs, strict=True)):
            product = (slope * output)[0].sum(0).reshape(heads, -1)
            after[place] += product.sum(1).abs().double()
        for handle in handles:
            handle.remove()
    expected = total / len(splits.calibration)
    found = torch.tensor(report["scores"][0], dtype=torch.float64)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-4)
    wrong = after / len(splits.calibration)
    assert not torch.allclose(found, wrong, rtol=0.2), "slices after the projection are no heads"


def test_gates_that_do_not_reach_the_loss_are_an_error(study, splits, tmp_path):
    model = trained(
        Results(tmp_path), str(study / "model"), splits, Recipe(epochs=1), 0, None
    ).load()[0]
    with torch.no_grad():
        for layer in model.bert.encoder.layer:
            layer.attention.output.dense.weight.zero_()
    hk.refresh(model)
    batch = {"input_ids": torch.tensor([[2, 7, 3]]), "labels": torch.tensor([1])}
    with pytest.raises(RuntimeError, match="do not reach the loss"):
        hk.score(model, [batch])


def test_all_arms_have_one_allocation_rule():
    torch.manual_seed(0)
    scores = hk.HeadScores(torch.rand(4, 6), metric="ablation")
    drawn = hk.HeadScores(torch.rand(4, 6), metric="random")
    for allocation in ("global", "layer"):
        masks = {
            arm: removed_by(drawn if arm == "random" else scores, 2, arm, allocation)
            for arm in ("top", "bottom", "random")
        }
        assert {mask.count for mask in masks.values()} == {16}
        check_arms(masks, {"dense": 5, "top": 5}, allocation)
        if allocation == "layer":
            assert all((mask.keep.sum(1) == 4).all() for mask in masks.values())
    least = scores.values.flatten().argsort()
    assert removed_by(scores, 2, "bottom", "global").keep.flatten()[least[:8]].sum() == 0
    assert removed_by(scores, 2, "top", "global").keep.flatten()[least[-8:]].sum() == 0

    mixed = {
        "top": removed_by(scores, 2, "top", "global"),
        "random": removed_by(drawn, 2, "random", "layer"),
    }
    with pytest.raises(ValueError, match="each layer of all arms"):
        check_arms(mixed, {"dense": 0}, "layer")
    fewer = {"top": removed_by(scores, 2, "top", "global"), "b": hk.HeadMask.all(4, 6)}
    with pytest.raises(ValueError, match="same number of heads"):
        check_arms(fewer, {"dense": 0}, "global")
    with pytest.raises(ValueError, match="random scores in the random arm"):
        removed_by(scores, 2, "random", "global")
    with pytest.raises(ValueError, match="K from 0 to 6"):
        removed_by(scores, 7, "top", "global")


def test_all_arms_are_trained_for_the_same_steps(report):
    mask = {"top": hk.HeadMask.all(2, 3)}
    with pytest.raises(ValueError, match="same number of steps"):
        check_arms(mask, {"dense": 100, "top": 200}, "global")
    with pytest.raises(ValueError, match="a dense arm"):
        check_arms(mask, {"top": 100}, "global")
    first, again = report["fine_tuning_steps"][0], -(-220 // 32)
    trained_on = [row["steps"] for row in report["rows"] if row["trained"] and row["k"]]
    assert set(trained_on) == {first + again}


def test_too_few_seeds_or_draws_or_a_silly_k_are_refused(study, splits, tmp_path):
    for expected, options in {
        "different seeds": {"seeds": (0,)},
        "random draws": {"draws": 1},
        "different K": {"ks": (2, 2)},
        "a metric of": {"metric": "random"},
        "K from 1 to 4": {"ks": (5,)},
    }.items():
        with pytest.raises(ValueError, match=expected):
            run_topk(asked(study, **options), splits, Results(study / "cache"), quiet)


def test_the_whole_test_file_is_read_and_its_power_told(splits, report):
    assert report["sentences"]["test"] == len(splits.test) == TEST
    row = report["rows"][0]
    p = row["accuracy"]
    assert row["half_width"] == pytest.approx(1.96 * (p * (1 - p) / TEST) ** 0.5)


def test_every_arm_starts_from_the_fine_tuned_model(study, splits, report):
    """Arms in another order, each on a model of its own, say the same."""
    subject = subject_of(study, splits)
    for arm, k in (("bottom", 2), ("top", 1)):
        model, tokenizer = subject.trained.load()
        mask = subject.mask(arm, k)
        hk.apply(model, mask)
        fine_tune(model, tokenizer, splits.train, subject.asked.again, 1000)
        logits = outcome_of(model, subject._test).logits
        found, _ = subject.retrained(mask, quiet)
        torch.testing.assert_close(found.logits, logits, atol=1e-6, rtol=0)
    assert hk.attach(subject.trained.load()[0]).fingerprint() == report["fingerprints"][0]


def test_single_heads_keep_their_weights(study, splits, report):
    found = report["single_head"]
    assert len(found["one_layer"]) == report["layers"]
    subject = subject_of(study, splits)
    losses = torch.tensor(subject.alone(quiet))
    assert [each["heads"][0] for each in found["one_layer"]] == losses.argmin(1).tolist()
    model, _ = subject.trained.load()
    before = model.bert.encoder.layer[0].attention.self.query.weight.clone()
    head = int(losses[0].argmin())
    keep = torch.zeros(losses.shape, dtype=torch.bool)
    keep[torch.arange(len(losses)), losses.argmin(1)] = True
    hk.apply(model, keep)
    after = model.bert.encoder.layer[0].attention.self.query.weight
    size = before.shape[0] // report["heads"]
    assert torch.equal(after, before[head * size : (head + 1) * size])


def test_scores_and_report_do_not_share_data(study, splits, report, tmp_path):
    assert len(set(report["data"].values())) == 4
    texts = [{each.text for each in part} for part in (splits.calibration, splits.train)]
    held_out = {each.text for each in splits.test}
    assert not (texts[0] | texts[1]) & held_out
    with pytest.raises(ValueError, match="test data apart"):
        read_splits(study / "data" / "train.tsv")
    train = study / "data" / "train.tsv"
    with pytest.raises(ValueError, match="test data apart"):
        read_splits(train, train, calibration=10, validation=10)
    with pytest.raises(ValueError, match="at least 2000"):
        read_splits(study / "data", calibration=500, validation=500)


def test_fine_tuning_goes_on_bit_for_bit(study, tmp_path):
    words = [Sentence(" ".join(WORDS[n : n + 3]), n % 2) for n in range(40)]
    recipe = Recipe(epochs=3, learning_rate=1e-3, batch_size=8)

    class CutOff(Exception):
        pass

    def cut(done, steps):
        if done == 12:
            raise CutOff

    def weights(model):
        return {name: value.clone() for name, value in model.state_dict().items()}

    model, tokenizer = open_subject(str(study / "model"), 2, seed=5)
    assert fine_tune(model, tokenizer, words, recipe, 5) == 15
    expected = weights(model)
    file = tmp_path / "point"
    with pytest.raises(CutOff):
        model, _ = open_subject(str(study / "model"), 2, seed=5)
        fine_tune(model, tokenizer, words, recipe, 5, checkpoint=file, show=cut)
    model, _ = open_subject(str(study / "model"), 2, seed=5)
    fine_tune(model, tokenizer, words, recipe, 5, checkpoint=file)
    found = weights(model)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_comparison_is_paired():
    generator = torch.Generator().manual_seed(0)
    base = torch.rand(3, 200, generator=generator) < 0.8
    better = base | (torch.rand(3, 200, generator=generator) < 0.3)
    found = compare(list(base), list(better))
    assert found["lower"] > 0 and found["p"] < 0.01
    assert found["mcnemar_p"] == [
        hk.mcnemar(a, b).exact_p for a, b in zip(base, better, strict=True)
    ]
    assert compare(list(base), list(base))["p"] == 1
    with pytest.raises(ValueError, match="same seeds"):
        compare(list(base), list(better[:2]))


@pytest.mark.parametrize("name", ["small-gpt2", "small-distilbert"])
def test_models_from_configuration(name, monkeypatch, study, splits, tmp_path):
    from headkit.studies import subject

    sizes = {
        "small-gpt2": {"n_embd": 24, "n_layer": 2, "n_head": 3, "n_positions": 40},
        "small-distilbert": {
            **{"dim": 24, "hidden_dim": 48, "n_layers": 2, "n_heads": 3},
            "max_position_embeddings": 40,
        },
    }[name]
    monkeypatch.setitem(subject.SMALL, name, (subject.SMALL[name][0], sizes))
    monkeypatch.setattr(subject.assets, "fetch", lambda wanted: study / "model")
    options = {"model": name, "again": None, "single_head": False, "ks": (1,)}
    found = run_topk(asked(study, **options), splits, Results(tmp_path), quiet)
    assert (found["layers"], found["heads"]) == (2, 3)
    assert found["rows"][0]["accuracy"] > 0.7


def test_the_command(study, tmp_path, report):
    common = ("--data", study / "data", "--cache", study / "cache", "--model", study / "model")
    sizes = ("--calibration", CALIBRATION, "--validation", VALIDATION, "--k", "1,2", "--seeds", 2)
    recipe = ("--epochs", QUICK.epochs, "--learning-rate", QUICK.learning_rate)
    out, plot = tmp_path / "topk.json", tmp_path / "topk.svg"
    files = ("--out", out, "--plot", plot)
    told = call("experiment", "topk", *common, *sizes, *recipe, "--again", 0, *files, "--json")
    assert told.exit_code == 0, said(told)
    found = json.loads(told.stdout)
    assert found == json.loads(out.read_text()) and plot.stat().st_size > 1000
    untrained = [row for row in report["rows"] if not row["trained"]]
    assert found["rows"] == untrained
    shown = call("experiment", "topk", *common, *sizes, *recipe, "--again", 0)
    assert "removes bottom" in said(shown) and "McNemar" in said(shown)
    refused("at least 5", "experiment", "topk", *common, *sizes, "--draws", 2)
    refused("as --k", "experiment", "topk", *common, *sizes[:4], "--k", "one")
    refused("--test", "experiment", "topk", *common[2:], "--data", study / "data" / "dev.tsv")
