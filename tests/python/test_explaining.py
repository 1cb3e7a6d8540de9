"""hk.explain joins reasons, effects, attention and roles, and shows itself."""

import base64
import html
import json
import pathlib
import re

import jsonschema
import pytest
import torch

import headkit as hk

from .browser import chromium


class Words:
    """A tokenizer of two words."""

    all_special_ids = (3,)

    def decode(self, ids):
        return "[CLS]" if ids[0] == 3 else f"word{ids[0]}"


@pytest.fixture(scope="module")
def gated():
    from .conftest import TinyModels

    return hk.attach(TinyModels().make("Bert", "SequenceClassification"))


@pytest.fixture(scope="module")
def gate():
    generator = torch.Generator().manual_seed(4)
    return hk.LinearGate(
        weight=torch.randn(3, 4, 24, generator=generator, dtype=torch.float64),
        reference=torch.zeros(24, dtype=torch.float64),
        static_logits=torch.zeros(3, 4, dtype=torch.float64),
        threshold=0.0,
    )


@pytest.fixture(scope="module")
def batch():
    ids = torch.tensor([[3, 7, 9, 12, 20, 5], [3, 8, 9, 30, 0, 0]])
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


@pytest.fixture(scope="module")
def found(gated, gate, batch):
    return hk.explain(gated, batch, gate, tokenizer=Words(), pair_heads=3)


def content(record):
    return json.loads(record.to_json())


def test_records_hold_every_group(found, gated, gate, batch):
    assert len(found) == 2
    record = content(found.records[0])
    assert [unit["text"] for unit in record["input"]["units"][:2]] == ["[CLS]", "word7"]
    assert [unit["special"] for unit in record["input"]["units"][:2]] == [True, False]
    assert len(record["pairs"]) == 3
    gates = torch.stack([one.gates() for one in found.records])
    output = gated(batch, hk.GateSet(heads=gates)).double()
    best = output.topk(2).values
    for row, one in enumerate(map(content, found.records)):
        assert one["output"]["value_selected"] == pytest.approx(
            float(best[row, 0] - best[row, 1]), abs=1e-4
        )
        for head in one["heads"]:
            assert (head["gate"] != 0) == (head["state"] in ("on", "always_on"))
            assert head["effects"]["toggle"]["ablation"] == "zero"
    on = next(head for head in record["heads"] if head["gate"])
    closed = gates[:1].clone()
    closed[0, on["layer"], on["head"]] = 0
    target, other = record["output"]["target"], record["output"]["distractor"]
    first = {name: tensor[:1] for name, tensor in batch.items()}
    without = gated(first, hk.GateSet(heads=closed))[0].double()
    toggled = record["output"]["value_selected"] - float(without[target] - without[other])
    assert on["effects"]["toggle"]["frozen"] == pytest.approx(toggled, abs=1e-4)


def test_records_follow_the_published_schema(found):
    root = pathlib.Path(__file__).resolve().parents[2]
    schema = json.loads((root / "docs/reference/decision_record.schema.json").read_text())
    for record in found.records:
        jsonschema.Draft202012Validator(schema).validate(content(record))


def test_faithfulness_is_measured_where_it_is_asked_for(gated, gate, batch):
    one = {name: tensor[:1] for name, tensor in batch.items()}
    found = hk.explain(gated, one, gate, faithfulness=True, pair_heads=0)
    told = content(found.records[0])
    curve = told["trust"]["faithfulness"]
    running = [head for head in told["heads"] if head["gate"]]
    assert sorted(curve["order"]) == list(range(len(running)))
    assert curve["value_all"] == pytest.approx(told["output"]["value_selected"], abs=1e-4)
    top = running[curve["order"][0]]
    assert curve["k"][0] == 1
    assert curve["comprehensiveness"]["values"][0] == pytest.approx(
        top["effects"]["toggle"]["frozen"], abs=1e-4
    )
    taus = told["trust"]["agreement"]["kendall tau-b, one input"]
    assert -1 <= taus["gate gradient and toggle"] <= 1


def test_attention_is_that_of_the_model(found, gated, batch):
    seen = {}
    hk.for_each_attention(
        gated,
        [batch],
        lambda rows: seen.update({(rows.sample, rows.layer): rows.probabilities.clone()}),
        gates=torch.stack([one.gates() for one in found.records]),
    )
    for row, one in enumerate(map(content, found.records)):
        assert one["sinks"] == "special tokens"
        for head in one["heads"]:
            weights = seen[row, head["layer"]][head["head"]]
            coded = head["attention"]
            assert coded["sink_mass"] == pytest.approx(weights[:, 0].tolist(), abs=1e-3)
            assert coded["received"] == pytest.approx(weights.mean(0).tolist(), abs=1e-3)
            assert len(coded["value_norm"]) == weights.shape[1]


def test_what_is_missing_is_named_with_its_reason(found, gated, batch):
    told = {hole["field"]: hole["reason"] for hole in content(found.records[0])["not_computed"]}
    assert told["heads.roles"] == "no roles of a data set were given"
    assert not {"heads.effects", "heads.attention", "output", "pairs"} & set(told)
    bare = hk.explain(gated, batch, attention=False, pair_heads=0)
    told = {hole["field"]: hole["reason"] for hole in content(bare.records[0])["not_computed"]}
    assert told["heads.attention"] == "it was not asked for"
    assert told["pairs"] == "no pairs were asked for"
    assert content(bare.records[0])["input"]["units"][0]["text"] is None, "nothing raw unasked"


def test_roles_of_the_data_and_of_the_input_are_kept_apart(gated, gate, batch):
    table = hk.roles(gated, [batch], random_sequences=0, draws=5, bootstrap=5)
    record = content(hk.explain(gated, batch, gate, roles=table, pair_heads=0).records[0])
    roles = record["heads"][0]["roles"]
    assert roles["dataset"] and roles["input"]
    assert all(score["agrees"] is None for score in roles["dataset"])
    assert any(score["agrees"] is not None for score in roles["input"])
    assert not any(score["assigned"] for score in roles["input"])
    assert record["trust"]["registry_version"] == table.registry_version


def test_nothing_that_is_passed_in_changes(gated, gate, batch):
    before = {name: tensor.clone() for name, tensor in batch.items()}
    prints = gated.fingerprint(), gate.to_json()
    hk.explain(gated, batch, gate)
    assert (gated.fingerprint(), gate.to_json()) == prints
    assert all(torch.equal(batch[name], before[name]) for name in before)


def test_the_page_and_the_notebook_view_open(found, tmp_path):
    bundle = found._repr_mimebundle_()
    assert set(bundle) == {"text/plain", "text/html", "image/svg+xml", "image/png"}
    assert len(bundle["text/plain"].splitlines()) == 5
    assert base64.b64decode(bundle["image/png"]).startswith(b"\x89PNG")
    assert len(bundle["text/html"].encode()) <= 2 * 500_000
    frame = re.search(r'srcdoc="([^"]*)"', bundle["text/html"])[1]
    inside = html.unescape(frame)
    assert len(inside.encode()) <= 500_000
    assert 'sandbox="allow-scripts"' in bundle["text/html"]
    notebook = tmp_path / "notebook.html"
    notebook.write_text(f"<!doctype html>{bundle['text/html']}", encoding="utf-8")
    page = found.to_html(tmp_path / "report.html")
    with chromium() as browser:
        browser.open(page)
        assert browser.said == []
        assert browser.run("document.querySelectorAll('#compare [role=gridcell]').length") == 12
        assert "Nearest flip" in browser.run("document.querySelector('#why').textContent")
        browser.open(notebook)
        assert browser.said == []
        assert browser.run("document.images[0].naturalWidth") > 0
    with pytest.raises(ValueError, match="one input, or two to compare"):
        (found + found[0]).html()
    assert (found + found[0])._repr_mimebundle_()["text/plain"]


def test_records_come_back_from_json(found):
    again = hk.read_decision_records(found.to_json())
    assert again == found.records


def test_pictures_and_recordings_get_their_units(tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=28,
        image_size=12,
        patch_size=4,
        num_labels=3,
    )
    vit = hk.attach(transformers.ViTForImageClassification(config).eval())
    found = hk.explain(vit, {"pixel_values": torch.randn(1, 3, 12, 12)}, pair_heads=0)
    units = content(found.records[0])["input"]["units"]
    assert [unit["special"] for unit in units] == [True] + 9 * [False]
    assert units[5]["grid"] == [1, 1]
    assert found.pictures[0].startswith("data:image/png;base64,")
    with chromium() as browser:
        browser.open(found.to_html(tmp_path / "report.html"))
        assert browser.said == []
        assert browser.run("document.querySelector('.over img').naturalWidth") == 12
