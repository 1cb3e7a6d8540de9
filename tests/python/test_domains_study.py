"""The cross-domain study: its statistics, its data, and a toy domain from start to end."""

import json
import random
from pathlib import Path

import pytest
import torch
import transformers

import headkit as hk
from headkit import assets
from headkit.studies import Results
from headkit.studies import domains as study
from headkit.studies.domain import Domain, Tally
from headkit.studies.domains import DomainsStudy, DomainSubject, run_domains
from headkit.studies.domains_report import PICTURE, domains_markdown, domains_parts, plot_domains
from headkit.studies.dynamic_task import Opened, frozen, inputs_of
from headkit.studies.reactions import condensations, partners_of
from headkit.studies.tables import fill
from headkit.studies.word_errors import edit_distance, word_errors

from .cli_models import call, refused, said
from .families import randomise
from .study_data import quiet

PAGE = Path(__file__).parents[2] / "docs" / "studies" / "cross_domain.md"
LAYERS, HEADS = 2, 4


class Toy(Domain):
    """A tiny classifier of random tokens."""

    NAME, MODEL, MEASURE = "toy", "tiny BERT", "accuracy"

    @property
    def configuration(self):
        return {"model": "toy"}

    def plain(self):
        torch.manual_seed(self.seed)
        config = transformers.BertConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
            intermediate_size=32, num_labels=2,
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config)
        randomise(model)
        return frozen(model)

    def open(self):
        module = self.plain()
        gated = hk.attach(module)
        return Opened(module, gated, gated)

    def batches(self, part):
        generator = torch.Generator().manual_seed(len(part))
        return [
            {
                "input_ids": torch.randint(5, 50, (8, 9), generator=generator),
                "labels": torch.randint(2, (8,), generator=generator),
            }
            for _ in range(3)
        ]

    def tally(self, opened, batch, gates):
        right = (opened.gated(batch, gates).argmax(1) == batch["labels"]).double()
        return Tally(right, torch.ones_like(right))

    def forward(self, module, batch):
        return module(**inputs_of(batch)).logits


@pytest.fixture(autouse=True)
def toy(monkeypatch):
    monkeypatch.setitem(study.DOMAINS, "toy", Toy)


def asked_of(**options):
    standard = {
        "domains": ("toy",), "seeds": (0, 1), "shares": (0.5,), "draws": 2, "rounds": 1,
        "joule_seconds": 0, "ladders": False,
    }  # fmt: skip
    return DomainsStudy(**{**standard, **options})


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("domains")


def test_the_whole_study_and_again(cache, tmp_path):
    results = Results(cache)
    report = run_domains(asked_of(), results, quiet)
    assert json.loads(json.dumps(report, allow_nan=False)) == report
    domain = report["domains"]["toy"]
    rows = {(row["way"], row["share"]): row for row in domain["rows"]}
    assert set(rows) == {(way, 0.5) for way in study.WAYS} | {("dense", 1.0)}
    assert rows["dense", 1.0]["open"] == 1 and rows["dense", 1.0]["flops"] == 1
    for way in ("static", "random"):
        assert rows[way, 0.5]["open"] == pytest.approx(0.5)
        # Half of the heads: their projections and scores over the products of the whole model.
        assert rows[way, 0.5]["flops"] == pytest.approx(1 - closed_share() / 2, abs=1e-6)
    for row in domain["rows"]:
        assert row["lower"] <= row["quality"] <= row["upper"] and row["seeds"] == 2
    assert {row["against"] for row in domain["comparisons"]} == {"dense", "random", "static"}
    assert set(domain["milliseconds"]) == {
        "transformers", "all heads", "static at 0.5", "dynamic at 0.5"
    }  # fmt: skip
    assert domain["joules"] == {}
    found = Results(cache, frozen=True)
    assert run_domains(asked_of(), found, quiet) == report and found.computed == 0
    parts = domains_parts(report)
    filled = fill(PAGE.read_text(), parts)
    assert all(part in filled for part in parts.values())
    assert "**toy**, tiny BERT" in domains_markdown(report)
    plot_domains(report, tmp_path)
    assert (tmp_path / PICTURE).read_text().startswith("<?xml")


def test_the_command_fills_a_page(cache, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(PAGE.read_text())
    options = ["--domains", "toy", "--cache", cache, "--seeds", 2, "--shares", 0.5, "--draws", 2]
    options += ["--rounds", 1, "--joule-seconds", 0, "--no-ladders"]
    result = call("experiment", "domains", *options, "--page", page, "--out", tmp_path / "out")
    assert result.exit_code == 0, said(result)
    assert "**toy**, tiny BERT" in page.read_text() and (tmp_path / PICTURE).is_file()
    report = json.loads((tmp_path / "out" / "domains.json").read_text())
    assert report["domains"]["toy"]["rows"][0]["way"] == "dense"
    refused("different domains of", "experiment", "domains", "--domains", "x", "--cache", cache)


def closed_share():
    """FLOPs of attention over those of all matrix products of the toy, by their formulas."""
    tokens, width, neurons = 9, 24, 32
    attention = LAYERS * (8 * tokens * width**2 + 4 * tokens**2 * width)
    rest = LAYERS * 4 * tokens * width * neurons + 2 * width**2 + 2 * width * 2
    return attention / (attention + rest)


def test_a_run_that_was_cut_off_goes_on(tmp_path):
    class CutOff(Exception):
        pass

    def cut_off(text, done, total):
        if "dynamic" in text:
            raise CutOff

    asked = asked_of(seeds=(0,), rounds=0, draws=1)
    with pytest.raises(CutOff):
        run_domains(asked, Results(tmp_path), cut_off)
    report = run_domains(asked, Results(tmp_path, frozen=True), quiet)
    assert {row["way"] for row in report["domains"]["toy"]["rows"]} == {"dense", "static"}
    results = Results(tmp_path)
    run_domains(asked, results, quiet)
    # The dynamic arm, random scores and their arm, FLOPs: scores and gate were there.
    assert results.computed == 4


def test_choices_do_what_they_say(cache):
    subject = DomainSubject(asked_of(), Toy(Results(cache), 0, quiet))
    batch = subject.domain.batches("test")[0]
    gated = subject.domain.opened.gated
    random_masks = [subject.mask("random", 0.5, draw) for draw in range(2)]
    assert random_masks[0] != random_masks[1]
    assert all(mask.count == LAYERS * HEADS // 2 for mask in random_masks)
    published = {"granularity": "token", "normalization": "layer_l2", "bootstrap": 0}
    scores = hk.score(gated, subject.domain.batches("train"), **published).values.flatten()
    kept = subject.mask("static", 0.5).keep.flatten()
    assert scores[kept].min() > scores[~kept].max()
    static = subject.choice("static", 0.5)
    gates = static.gates(gated, batch)
    assert gates.heads.shape == (8, LAYERS, HEADS)
    means = hk.mean_head_outputs(gated, subject.domain.batches("train"), gates=static.mask)
    torch.testing.assert_close(gates.dropped_output, means)
    dynamic = subject.choice("dynamic", 0.5).gates(gated, batch)
    assert len({tuple(row.flatten().tolist()) for row in dynamic.heads}) > 1


def test_a_ratio_of_sums_and_its_interval():
    generator = torch.Generator().manual_seed(0)
    units = torch.randint(3, 30, (80,), generator=generator).double()
    counts = (units * torch.rand(80, generator=generator) * 0.3).round().double()
    tally = Tally(counts, units)
    parts = tally.parts()
    assert float(parts.mean()) == pytest.approx(float(counts.sum() / units.sum()))
    drawn = torch.randint(80, (4000, 80), generator=generator)
    ratios = counts[drawn].sum(1) / units[drawn].sum(1)
    assert float(parts.std() / 80**0.5) == pytest.approx(float(ratios.std()), rel=0.1)


def test_word_errors():
    assert word_errors("It's twenty five o'clock.", "it is 25 o'clock") == (0, 4)
    assert word_errors("press one now", "press two") == (2, 3)
    assert word_errors("now press", "") == (2, 2)
    draw = random.Random(0)

    def brute(a, b):
        if not a or not b:
            return len(a) + len(b)
        return min(brute(a[1:], b) + 1, brute(a, b[1:]) + 1, brute(a[1:], b[1:]) + (a[0] != b[0]))

    for _ in range(30):
        a, b = ([draw.choice("xyz") for _ in range(draw.randrange(6))] for _ in range(2))
        assert edit_distance(a, b) == brute(a, b)


def test_atoms_of_reactions_are_those_that_they_were():
    """By their letters: an atom keeps its element, and no atom of a reactant is used twice."""
    reactions = condensations()
    assert len({each.smiles for each in reactions}) == len(reactions) == 112
    for each in reactions:
        used = list(each.origin.values())
        assert len(set(used)) == len(used)
        for product, reactant in each.origin.items():
            assert product >= each.product > reactant
            assert each.smiles[product] == each.smiles[reactant]
    tokenizer = transformers.AutoTokenizer.from_pretrained(assets.fetch("rxnmapper"))
    targets, candidates = partners_of(reactions[0], tokenizer)  # CCC(=O)O.NCC>>CCC(=O)NCC
    tokens = tokenizer.tokenize(reactions[0].smiles, add_special_tokens=True)
    assert [tokens[place] for place in candidates] == list("CCCOONCC")
    known = {place: target for place, target in enumerate(targets) if target >= 0}
    assert [tokens[place] for place in known] == [tokens[t] for t in known.values()]
    assert len(known) == 7


def test_chemistry_finds_atoms_and_loses_them_without_heads(tmp_path):
    domain = study.DOMAINS["chemistry"](Results(tmp_path), 0, quiet, 4)
    (batch,) = domain.batches("test")
    gated = domain.opened.gated
    whole = domain.tally(domain.opened, batch, hk.GateSet())
    assert whole.ratio > 0.8
    layout = gated.layout()
    none = hk.GateSet(torch.zeros(layout.layers, layout.heads))
    assert domain.tally(domain.opened, batch, none).ratio < whole.ratio - 0.3
    hidden = domain.batches("train")[:4]
    masked = torch.stack([one["labels"] >= 0 for one in hidden])
    special = torch.isin(batch_ids(hidden), torch.tensor(domain._tokenizer.all_special_ids))
    assert (masked.sum(0)[~special] == 1).all() and not masked.any(0)[special].any()


def batch_ids(hidden):
    """The tokens before any was hidden."""
    ids = hidden[0]["input_ids"]
    return torch.where(hidden[0]["labels"] >= 0, hidden[0]["labels"], ids)


def test_what_cannot_be_is_refused(tmp_path):
    for options, reason in (
        ({"domains": ("touch",)}, "different domains of text.*; found touch"),
        ({"domains": ()}, "found none"),
        ({"seeds": (1, 1)}, r"different seeds; found \[1, 1\]"),
        ({"shares": (1.5,)}, r"shares between 0 and 1; found \[1.5\]"),
        ({"draws": -1}, "draws >= 0; found -1"),
        ({"metric": "luck"}, "a scorer; found 'luck'"),
        ({"limit": 2}, "a limit of at least 4; found 2"),
    ):
        with pytest.raises(ValueError, match=reason):
            run_domains(asked_of(**options), Results(tmp_path), quiet)
    with pytest.raises(ValueError, match="results of at least one domain; found none yet"):
        run_domains(asked_of(), Results(tmp_path / "none", frozen=True), quiet)
