"""Agreement of scores and stability of masks, against other programs and by hand."""

import json
import math
import warnings

import pytest
import scipy.stats
import torch

import headkit as hk


def test_correlations_are_those_of_scipy():
    generator = torch.Generator().manual_seed(1)
    for size in (3, 8, 40):
        a = torch.randint(0, 6, (size,), generator=generator).tolist()
        b = torch.randn(size, generator=generator).round(decimals=1).tolist()
        assert hk.pearson(a, b) == pytest.approx(scipy.stats.pearsonr(a, b)[0], abs=1e-12)
        assert hk.spearman(a, b) == pytest.approx(scipy.stats.spearmanr(a, b)[0], abs=1e-12)
        assert hk.kendall_tau(a, b) == pytest.approx(scipy.stats.kendalltau(a, b)[0], abs=1e-12)


def test_the_chance_of_an_overlap_is_that_of_scipy():
    a, b = list(range(20)), [*range(5, 20), *range(5)]
    found = hk.top_k_overlap(a, b, 8)
    shared = round(found.overlap * 8)
    assert found.p_value == pytest.approx(scipy.stats.hypergeom.sf(shared - 1, 20, 8, 8))


def test_mcnemar_is_a_binomial_test():
    a = torch.tensor([True] * 9 + [False] * 3 + [True] * 20)
    b = torch.tensor([False] * 9 + [True] * 3 + [True] * 20)
    found = hk.mcnemar(a, b)
    assert (found.only_a, found.only_b, found.examples) == (9, 3, 32)
    assert found.exact_p == pytest.approx(scipy.stats.binomtest(3, 12, 0.5).pvalue)
    assert found.accuracy_difference == -6 / 32


def test_holm_by_hand():
    assert hk.holm([0.5, 0.125, 0.25]) == pytest.approx([0.5, 0.375, 0.5])


def series(seed, runs=3):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(2, 4, generator=generator, dtype=torch.float64) for _ in range(runs)]


def test_agreement_of_scores_of_one_and_of_several_runs():
    one, other = series(1), series(2)
    scores = [hk.HeadScores(one[0], metric="a"), hk.HeadScores(other[0], metric="b")]
    single = hk.agreement(scores)
    expected = scipy.stats.spearmanr(one[0].flatten(), other[0].flatten())[0]
    assert float(single.spearman.values[0, 1]) == pytest.approx(expected)
    assert single.spearman.lower is None and single.top_k == 4
    assert repr(single).startswith("Agreement(Spearman, 1 run)\na  1.00")

    several = hk.agreement({"a": one, "b": [hk.HeadScores(each) for each in other]})
    pairs = [
        scipy.stats.kendalltau(x.flatten(), y.flatten())[0] for x, y in zip(one, other, strict=True)
    ]
    assert float(several.kendall.values[0, 1]) == pytest.approx(sum(pairs) / 3)
    assert float(several.kendall.lower[0, 1]) == pytest.approx(min(pairs), abs=0.2)
    told = json.loads(several.to_json())
    assert told["names"] == ["a", "b"] and told["runs"] == 3
    assert told["between_runs"][0] == pytest.approx(float(several.between_runs[0]))
    assert math.isnan(float(single.between_runs[0]))


def test_an_interval_over_examples_is_one_of_their_mean():
    generator = torch.Generator().manual_seed(5)
    truth = torch.randn(2, 6, generator=generator)
    examples = {
        name: truth + 3 * torch.randn(300, 2, 6, generator=generator) for name in ("a", "b")
    }
    found = hk.agreement(examples, over="examples", resamples=300)
    means = [each.mean(0).flatten() for each in examples.values()]
    value = scipy.stats.spearmanr(*means)[0]
    assert float(found.spearman.values[0, 1]) == pytest.approx(value)
    assert found.spearman.lower[0, 1] < value < found.spearman.upper[0, 1]
    assert found.over_examples and json.loads(found.to_json())["interval_over"] == "examples"


def test_stability_of_masks():
    masks = [torch.tensor([[1, 1, 0], [0, 0, 1]]), torch.tensor([[1, 0, 1], [0, 0, 1]])]
    found = hk.stability(masks)
    assert found.mean_kuncheva == pytest.approx((2 / 3 - 1 / 2) / (1 / 2))
    assert found.nogueira == pytest.approx(found.mean_kuncheva)
    assert "2 masks of 3.00 heads" in repr(found)
    assert json.loads(found.to_json())["frequency"] == [[1, 0.5, 0.5], [0, 0, 1]]


def test_pictures(tmp_path):
    found = hk.agreement({"a": series(1), "b": series(2)})
    hk.plot_agreement(found, tmp_path / "matrix.svg")
    hk.plot_agreement(found, tmp_path / "overlap.png", "overlap")
    hk.plot_stability(hk.stability([torch.eye(3), torch.eye(3).flip(0)]), tmp_path / "s.svg")
    assert (tmp_path / "matrix.svg").read_text().count("<svg") == 1
    assert all((tmp_path / name).stat().st_size > 1000 for name in ("overlap.png", "s.svg"))


def test_silly_mistakes_get_an_answer():
    one = hk.HeadScores(torch.rand(2, 4), metric="a")
    for expected, call in {
        "different metrics": lambda: hk.agreement([one, one]),
        "two ways": lambda: hk.agreement([one]),
        "one shape": lambda: hk.agreement({"a": one, "b": torch.rand(3, 4)}),
        "runs of b": lambda: hk.agreement({"a": one, "b": []}),
        "over=": lambda: hk.agreement({"a": one, "b": one}, over="seeds"),
        "examples, layers": lambda: hk.agreement({"a": one, "b": one}, over="examples"),
        "at least two masks": lambda: hk.stability([torch.eye(2)]),
        "not all empty": lambda: hk.stability([torch.ones(2, 2)] * 2),
        "one of spearman": lambda: hk.plot_agreement(
            hk.agreement({"a": one, "b": one}), "x.svg", "magic"
        ),
        "examples, seeds or both": lambda: hk.bootstrap_mean(torch.ones(3), over="heads"),
    }.items():
        with pytest.raises(ValueError, match=expected):
            call()


def test_scores_of_other_data_are_told():
    def scores(metric, digest):
        values = torch.arange(4.0).reshape(2, 2)
        settings = json.dumps({"data_hash": digest} if digest else {})
        return hk.HeadScores(values, metric=metric, settings=settings)

    same = [scores("one", "a" * 64), scores("two", "a" * 64), scores("imported", "")]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        hk.agreement(same)
    with pytest.warns(UserWarning, match="one on aaaaaaaa, two on bbbbbbbb"):
        hk.agreement([same[0], scores("two", "b" * 64)])
