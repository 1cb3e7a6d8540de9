"""What holds for every family of models: attached, gated, staged, pruned, saved, trained."""

import copy

import pytest
import torch
from torch import nn

import headkit as hk
from headkit.huggingface import is_attached

from .families import FAMILIES, HEAD_DIM, HEADS, result, tensor, without_padding

ALL = pytest.mark.parametrize("name", FAMILIES)
CASES = [(name, attention) for name, family in FAMILIES.items() for attention in family.attentions]
TRANSFORMERS = [name for name, family in FAMILIES.items() if family.transformers]


def close(found, expected, tolerance=1e-5):
    scale = max(1.0, float(expected.detach().abs().max())) if expected.numel() else 1.0
    torch.testing.assert_close(found, expected, atol=tolerance * scale, rtol=0)


def doubled(inputs):
    return {
        name: value.double() if value.is_floating_point() else value
        for name, value in inputs.items()
    }


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_attached_equals_original(name, attention):
    family = FAMILIES[name]
    model = family.make(attention)
    classes = [type(module) for module in model.modules()]
    cases = [family.inputs(batch, kind) for kind in family.paddings for batch in (1, 2, 3)]
    with torch.no_grad():
        expected = [result(model, inputs) for inputs in cases]
        hk.attach(model)
        for inputs, truth in zip(cases, expected, strict=True):
            close(result(model, inputs), truth)
        with hk.gates(model, torch.ones(family.blocks, HEADS)):
            close(result(model, cases[-1]), expected[-1])
        hk.detach(model)
        assert [type(module) for module in model.modules()] == classes
        for inputs, truth in zip(cases, expected, strict=True):
            assert torch.equal(result(model, inputs), truth)


SQUARE = [(name, kind) for name, kind in CASES if FAMILIES[name].square_masks]


@pytest.mark.parametrize(("name", "attention"), SQUARE)
def test_square_masks(name, attention):
    family = FAMILIES[name]
    model = family.make(attention)
    inputs = family.inputs(3, "none")
    tokens = next(iter(inputs.values())).shape[1]
    place = torch.arange(tokens)
    masks = [torch.randn(3, 1, tokens, tokens)]
    if attention == "sdpa":
        near = (place[:, None] - place[None]).abs() <= 2
        masks += [
            near[None, None].expand(3, 1, -1, -1),
            (torch.rand(3, 1, tokens, tokens) > 0.4) | torch.eye(tokens, dtype=torch.bool),
        ]
    with torch.no_grad():
        expected = [tensor(model(**inputs, attention_mask=mask)) for mask in masks]
        hk.attach(model)
        for mask, truth in zip(masks, expected, strict=True):
            close(tensor(model(**inputs, attention_mask=mask)), truth)


@pytest.mark.parametrize(("name", "attention"), CASES)
def test_gates_equal_the_oracle(name, attention):
    family = FAMILIES[name]
    plain, model = family.make(attention), family.make(attention)
    hk.attach(model)
    inputs = family.inputs(3, family.paddings[-1])
    for gates in (
        family.gates(3),
        family.gates(3, soft=True),
        family.gates(),
        family.gates(soft=True),
        torch.zeros(family.blocks, HEADS),
    ):
        with torch.no_grad():
            with family.oracle(plain, gates):
                expected = result(plain, inputs)
            with hk.gates(model, gates):
                close(result(model, inputs), expected)
            with hk.gates(model, hk.GateSet(gates, skip=False)):
                close(result(model, inputs), expected)


@ALL
def test_closed_heads_are_not_computed(name):
    family = FAMILIES[name]
    model = family.make()
    gated = hk.attach(model)
    inputs = family.inputs(2, family.paddings[-1])
    keep = torch.ones(family.blocks, HEADS)
    keep[:, 1] = 0
    rows = slice(HEAD_DIM, 2 * HEAD_DIM)
    with torch.no_grad():
        with hk.gates(model, keep):
            expected = result(model, inputs)
        for block in range(family.blocks):
            weights = gated.attention(block)
            weights.q[rows] = torch.nan
            weights.o[:, rows] = torch.nan
            if len(weights.k) == HEADS * HEAD_DIM:
                weights.k[rows] = torch.nan
                weights.v[rows] = torch.nan
        assert result(model, inputs).isnan().any()
        with hk.gates(model, keep):
            close(result(model, inputs), expected)


@ALL
def test_stages_equal_the_model(name):
    family = FAMILIES[name]
    model = family.make()
    gated = hk.attach(model)
    gates = hk.GateSet(family.gates(3, soft=True))
    inputs = family.inputs(3, family.paddings[-1])
    blocks = family.blocks
    with torch.no_grad():
        close(gated(inputs), tensor(model(**inputs)))
        with hk.gates(model, gates):
            expected = result(model, inputs)
        start = gated.embed(inputs)
        for cut in range(blocks + 1):
            state = gated.run(gated.run(start, 0, cut, gates), cut, blocks, gates)
            close(without_padding(gated.head(state), inputs), expected)
        chosen = torch.tensor([2, 0])
        some = {key: value[chosen] for key, value in inputs.items()}
        for cut in (0, blocks - 1):
            state = gated.select(gated.run(start, 0, cut), chosen)
            found = gated.head(gated.run(state, cut, blocks))
            close(without_padding(found, some), result(model, some))


def pruned(family, model):
    """Remove heads: uneven sets, one block without any; return what is kept."""
    keep = torch.zeros(family.blocks, HEADS)
    sets = [[0, 2, 3], [], [1]]
    for block in range(family.blocks):
        keep[block, sets[block % 3]] = 1
    hk.apply(model, hk.HeadMask(keep))
    return keep


@ALL
def test_removal_equals_masking(name):
    family = FAMILIES[name]
    model = family.make()
    gated = hk.attach(model)
    inputs = family.inputs(3, family.paddings[-1])
    soft = family.gates(3, soft=True)
    with torch.no_grad():
        twin = copy.deepcopy(model)
        keep = pruned(family, model)
        with hk.gates(twin, keep):
            expected = result(twin, inputs)
        with hk.gates(twin, keep * soft):
            expected_soft = result(twin, inputs)
        assert gated.heads() == hk.HeadMask(keep)
        for block, kept in enumerate(keep.sum(-1).int().tolist()):
            assert len(gated.attention(block).q) == kept * HEAD_DIM
        close(result(model, inputs), expected)
        with hk.gates(model, soft):
            close(result(model, inputs), expected_soft)
        close(without_padding(gated(inputs), inputs), expected)
        if family.plain_refusal:
            with pytest.raises(ValueError, match=family.plain_refusal):
                hk.detach(model)
            assert is_attached(model)
        else:
            close(result(hk.detach(model), inputs), expected)
        assert hk.attach(model).heads() == hk.HeadMask(keep)
        with hk.gates(model, soft):
            close(result(model, inputs), expected_soft)


@ALL
def test_removal_of_every_head_of_the_first_block(name):
    family = FAMILIES[name]
    model = family.make()
    inputs = family.inputs(2, family.paddings[-1])
    keep = torch.ones(family.blocks, HEADS)
    keep[0] = 0
    hk.attach(model)
    with torch.no_grad():
        with hk.gates(model, keep):
            expected = result(model, inputs)
        hk.apply(model, hk.HeadMask(keep))
        close(result(model, inputs), expected)


@ALL
def test_saved_models_come_back_bit_for_bit(name, tmp_path):
    family = FAMILIES[name]
    inputs = family.inputs(2, family.paddings[-1])
    model = family.make()
    gated = hk.attach(model)
    fingerprint = gated.fingerprint()
    with torch.no_grad():
        for step in ("whole", "pruned"):
            if step == "pruned":
                pruned(family, model)
            hk.save(model, tmp_path / step)
            expected = result(model, inputs)
            stored = sum(file.stat().st_size for file in (tmp_path / step).glob("*.safetensors"))
            held = sum(value.numel() * value.element_size() for _, value in gated.parameters())
            assert stored < held + 20_000
            if family.transformers:
                again = hk.load(tmp_path / step)
                assert torch.equal(result(again, inputs), expected)
            original = family.make()
            loaded = hk.load(tmp_path / step, original)
            assert loaded is original
            assert torch.equal(result(loaded, inputs), expected)
            foreign = family.make(seed=3)
            before = result(foreign, inputs)
            with pytest.raises(ValueError, match=r"expected .*; found"):
                hk.load(tmp_path / step, foreign)
            assert not is_attached(foreign)
            assert torch.equal(result(foreign, inputs), before)
    assert hk.attach(family.make()).fingerprint() == fingerprint


def weighted_sum(model, inputs):
    """A loss that depends on every output."""
    found = result(model, inputs)
    weighting = torch.randn(found.shape, generator=torch.Generator().manual_seed(5))
    return (found * weighting.to(found.dtype)).sum()


def compare_gradients(model, plain, tolerance):
    for (name, ours), theirs in zip(model.named_parameters(), plain.parameters(), strict=True):
        expected = torch.zeros_like(theirs) if theirs.grad is None else theirs.grad
        found = torch.zeros_like(ours) if ours.grad is None else ours.grad
        scale = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
        difference = (found - expected).abs().max() if expected.numel() else 0
        assert difference <= tolerance * scale, name


@ALL
def test_gradients_equal_the_original(name):
    family = FAMILIES[name]
    plain, model = family.make().double(), family.make().double()
    inputs = doubled(family.inputs(3, family.paddings[-1]))
    gates = family.gates(3, soft=True).double()
    with family.oracle(plain, gates):
        weighted_sum(plain, inputs).backward()
    hk.attach(model)
    with hk.gates(model, gates):
        loss = weighted_sum(model, inputs)
    loss.backward()
    hk.detach(model)
    compare_gradients(model, plain, family.gradient_tolerance)


@pytest.mark.parametrize("name", [n for n, f in FAMILIES.items() if f.checkpointing])
def test_recomputed_activations_have_the_gates_of_their_forward_pass(name):
    family = FAMILIES[name]
    plain, model = family.make().double(), family.make().double()
    inputs = doubled(family.inputs(2, family.paddings[-1]))
    gates = family.gates(2).double()
    without_dropout(plain).train()
    without_dropout(model).train()
    with family.oracle(plain, gates):
        weighted_sum(plain, inputs).backward()
    hk.attach(model)
    model.activation_checkpointing_enable()
    with hk.gates(model, gates):
        loss = weighted_sum(model, inputs)
    loss.backward()
    hk.detach(model)
    compare_gradients(model, plain, family.gradient_tolerance)


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)
    for name in ("layerdrop", "mask_time_prob", "mask_feature_prob"):
        if hasattr(getattr(model, "config", None), name):
            setattr(model.config, name, 0.0)
    return model


@ALL
def test_half_precision(name):
    family = FAMILIES[name]
    exact, plain, model = family.make().double(), family.make(), family.make()
    inputs = family.inputs(2, family.paddings[-1])
    half = {
        key: value.bfloat16() if value.is_floating_point() else value
        for key, value in inputs.items()
    }
    gates = family.gates(soft=True)
    with torch.no_grad(), family.oracle(exact, gates), family.oracle(plain, gates):
        truth = result(exact, doubled(inputs))
        dense = result(plain.bfloat16(), half).double()
        hk.attach(model.bfloat16())
        with hk.gates(model, gates):
            found = result(model, half)
    assert found.dtype == torch.bfloat16
    bound = (
        2 * (dense - truth).abs().max() + 2 * torch.finfo(torch.bfloat16).eps * truth.abs().max()
    )
    assert (found.double() - truth).abs().max() <= bound


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_hidden_states_and_attentions_are_recorded_as_before(name):
    family = FAMILIES[name]
    for attention in family.attentions:
        model = family.make(attention)
        inputs = family.inputs(2, "none")
        asked = {**inputs, "output_hidden_states": True}
        if attention == "eager":
            asked["output_attentions"] = True
        with torch.no_grad():
            before = model(**asked)
            hk.attach(model)
            found = model(**asked)
            for kind, expected in before.items():
                if "attentions" not in kind and "hidden_states" not in kind:
                    continue
                if isinstance(expected, tuple):
                    assert len(found[kind]) == len(expected)
                    for ours, theirs in zip(found[kind], expected, strict=True):
                        close(ours, theirs)


@ALL
def test_a_deep_copy_is_attached_and_independent(name):
    family = FAMILIES[name]
    model = family.make()
    inputs = family.inputs(2, family.paddings[-1])
    hk.attach(model)
    with torch.no_grad():
        expected = result(model, inputs)
        twin = copy.deepcopy(model)
        with hk.gates(model, torch.zeros(family.blocks, HEADS)):
            assert torch.equal(result(twin, inputs), expected)
        pruned(family, twin)
        assert torch.equal(result(model, inputs), expected)
        hk.detach(model)
        assert is_attached(twin)


@ALL
def test_the_state_dict_keeps_its_names(name):
    family = FAMILIES[name]
    model = family.make()
    before = copy.deepcopy(model.state_dict())
    parameters = [id(parameter) for parameter in model.parameters()]
    hk.attach(model)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[path], before[path]) for path in before)
    assert [id(parameter) for parameter in model.parameters()] == parameters
    model.load_state_dict(before)
    hk.detach(model)
    assert list(model.state_dict()) == list(before)
    assert not [key for module in model.modules() for key in vars(module) if "headkit" in key]


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_checkpoint_of_an_attached_model_is_a_plain_one(name, tmp_path):
    family = FAMILIES[name]
    model = family.make()
    inputs = family.inputs(2, family.paddings[-1])
    with torch.no_grad():
        expected = result(model, inputs)
        hk.attach(model)
        model.save_pretrained(tmp_path)
        loaded, report = type(model).from_pretrained(tmp_path, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        close(result(loaded.eval(), inputs), expected)


def with_one_layer(model, outputs):
    """The model with the first layer of each stack only: compiling takes a second a layer."""
    cut = []
    for name, module in list(model.named_modules()):
        inside = [path.removeprefix(f"{name}.") for path in outputs if path.startswith(f"{name}.")]
        several = len({path.partition(".")[0] for path in inside}) > 1
        if isinstance(module, nn.ModuleList | nn.Sequential) and several:
            if not any(name.startswith(f"{known}.") for known in cut):
                del module[1:]
                cut.append(name)
    return model


@ALL
def test_compiled_models_follow_the_gates(name):
    family = FAMILIES[name]
    model = with_one_layer(family.make(), family.outputs)
    inputs = family.inputs(2, family.paddings[-1])
    gates = family.gates(2)[:, : hk.attach(model).layout().layers]
    torch.compiler.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad(), hk.gates(model, gates):
        expected = result(model, inputs)
        close(result(compiled, inputs), expected)


class Lora(nn.Module):
    """A projection with something beside it."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.weight, self.bias = inner, inner.weight, inner.bias

    def forward(self, x):
        return self.inner(x) + 1


@ALL
def test_altered_models_are_refused_and_stay_as_they_were(name):
    family = FAMILIES[name]
    inputs = family.inputs(2, "none")
    last = family.outputs[-1]

    def wrapped(model):
        parent, _, child = last.rpartition(".")
        setattr(model.get_submodule(parent), child, Lora(model.get_submodule(last)))

    def hooked(model):
        model.get_submodule(last).register_forward_hook(lambda module, args, output: output * 2)

    def extended(model):
        parent = model.get_submodule(last.rpartition(".")[0])
        parent.sinks = nn.Parameter(torch.zeros(HEADS))

    for change in (wrapped, hooked, extended):
        model = family.make()
        change(model)
        classes = [type(module) for module in model.modules()]
        with torch.no_grad():
            expected = result(model, inputs)
            with pytest.raises(ValueError, match=r"\[attach\] expected .*; found"):
                hk.attach(model)
            assert [type(module) for module in model.modules()] == classes
            assert torch.equal(result(model, inputs), expected)


@ALL
def test_toggles_are_those_of_the_plain_model(name):
    family = FAMILIES[name]
    plain, model = family.make().double(), family.make().double()
    inputs = doubled(family.inputs(2, "none" if "none" in family.paddings else family.paddings[0]))
    hk.attach(model)
    with torch.no_grad():
        output = tensor(plain(**inputs))
    tokens = output.dim() == 3
    position = torch.zeros(2, dtype=torch.long) if tokens else None
    found = hk.effects(
        model,
        inputs,
        ablation="zero",
        metric="token_log_odds" if tokens else "class_margin",
        position=position,
    )
    assert all(len(each.heads) == family.blocks * HEADS for each in found)

    def margins(output):
        logits = output[:, 0] if tokens else output
        return [
            float(logits[example, each.target] - logits[example, each.distractor])
            for example, each in enumerate(found)
        ]

    expected = margins(output)
    for block, head in ((0, 1), (family.blocks - 1, 0)):
        gates = torch.ones(family.blocks, HEADS, dtype=torch.float64)
        gates[block, head] = 0
        with torch.no_grad(), family.oracle(plain, gates):
            without = margins(tensor(plain(**inputs)))
        for example, each in enumerate(found):
            effects = each.heads[block * HEADS + head]
            effect = expected[example] - without[example]
            assert effects.toggle.frozen == pytest.approx(effect, abs=1e-5)
            if effects.direct is not None and not effects.direct_linearised:
                assert abs(each.direct_residual) < 1e-3
