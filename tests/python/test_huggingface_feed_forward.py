"""Feed-forward blocks of attached models: equal to the originals, gated by blocks of neurons."""

import copy
import itertools

import pytest
import torch
import transformers

import headkit as hk

from .feed_forward_models import (
    BLOCKS,
    HEADS,
    LAYERS,
    NEURONS,
    OUT,
    WIDTH,
    inputs_of,
    make,
    output,
)


def random_gates(batch=None, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (LAYERS, BLOCKS) if batch is None else (batch, LAYERS, BLOCKS)
    gates = torch.rand(shape, generator=generator) + 0.25
    gates[torch.rand(shape, generator=generator) < 0.4] = 0
    return gates


class Oracle:
    """Gates a plain model: multiplies what enters the last projection of each block."""

    def __init__(self, family, model, gates):
        self.handles = []
        wide = gates.repeat_interleave(32, -1)[..., :NEURONS]
        calls = itertools.count()

        def multiply(layer):
            def hook(module, args):
                number = next(calls) % LAYERS if layer is None else layer
                gate = wide[number] if wide.dim() == 2 else wide[:, number, None]
                return (args[0] * gate.to(args[0].dtype),)

            return hook

        paths = [OUT[family].format(number) for number in range(LAYERS)]
        for number, path in enumerate(dict.fromkeys(paths)):
            shared = len(set(paths)) == 1
            hook = multiply(None if shared else number)
            self.handles.append(model.get_submodule(path).register_forward_pre_hook(hook))

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("family", OUT)
def test_attached_equals_original_and_detach_restores_it(family):
    model, inputs = make(family), inputs_of(family)
    classes = [type(module) for module in model.modules()]
    names, expected = list(model.state_dict()), output(model, inputs)
    gated = hk.attach(model, feed_forward=True)
    assert hk.attach(model, feed_forward=True) is gated and hk.attach(model) is gated
    torch.testing.assert_close(output(model, inputs), expected, atol=1e-5, rtol=0)
    assert list(model.state_dict()) == names
    hk.detach(model)
    assert [type(module) for module in model.modules()] == classes
    assert torch.equal(output(model, inputs), expected)


@pytest.mark.parametrize("family", OUT)
def test_gates_equal_the_oracle(family):
    plain, model, inputs = make(family), make(family), inputs_of(family)
    hk.attach(model, feed_forward=True)
    for gates in (random_gates(), random_gates(3), torch.zeros(LAYERS, BLOCKS)):
        with Oracle(family, plain, gates):
            expected = output(plain, inputs)
        for skip in (True, False):
            with hk.gates(model, hk.GateSet(blocks=gates, skip=skip)):
                torch.testing.assert_close(output(model, inputs), expected, atol=1e-5, rtol=0)


def test_heads_and_neurons_together():
    plain, model, inputs = make("Bert"), make("Bert"), inputs_of("Bert")
    hk.attach(plain)
    hk.attach(model, feed_forward=True)
    heads, blocks = torch.ones(LAYERS, HEADS), random_gates(3)
    heads[0, 1] = heads[2, 3] = 0
    with Oracle("Bert", plain, blocks), hk.gates(plain, heads):
        expected = output(plain, inputs)
    with hk.gates(model, hk.GateSet(heads, blocks=blocks)):
        torch.testing.assert_close(output(model, inputs), expected, atol=1e-5, rtol=0)


def test_closed_blocks_are_not_computed():
    model, inputs = make("Bert"), inputs_of("Bert")
    hk.attach(model, feed_forward=True)
    gates = random_gates()
    gates[1, 1] = 0
    with hk.gates(model, hk.GateSet(blocks=gates)):
        expected = output(model, inputs)
        with torch.no_grad():
            model.encoder.layer[1].intermediate.dense.weight[32:64] = float("nan")
        assert torch.equal(output(model, inputs), expected)


def test_dropped_outputs_stand_in_for_closed_blocks():
    model, inputs = make("Bert"), inputs_of("Bert")
    hk.attach(model, feed_forward=True)
    dropped = torch.randn(LAYERS, BLOCKS, WIDTH)
    closed = torch.zeros(LAYERS, BLOCKS)
    with hk.gates(model, hk.GateSet(blocks=closed, dropped_blocks=dropped)):
        found = output(model, inputs)
    with torch.no_grad():
        for layer, added in zip(model.encoder.layer, dropped.sum(1), strict=True):
            layer.output.dense.bias += added
    with hk.gates(model, hk.GateSet(blocks=closed)):
        torch.testing.assert_close(found, output(model, inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "Albert", "DistilBert", "Hubert"])
def test_training_drops_what_the_original_drops(family):
    plain, model, inputs = make(family), make(family), inputs_of(family)
    hk.attach(model, feed_forward=True)
    # Attention draws its own mask: only what follows the blocks is compared.
    attention = ("attention_probs_dropout_prob", "attention_dropout")
    for one in (plain, model):
        for module in one.modules():
            inner = getattr(module, "dropout", None)
            if type(module).__name__.endswith("Attention") and isinstance(inner, float):
                module.dropout = 0.0
            elif type(module).__name__.endswith("SelfAttention") and inner is not None:
                inner.p = 0.0
            for name in attention:
                if isinstance(getattr(module, name, None), torch.nn.Dropout):
                    getattr(module, name).p = 0.0
        one.train()
    found = []
    for one in (plain, model):
        torch.manual_seed(5)
        found.append(one(**inputs).last_hidden_state)
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=0)


def test_gradients_equal_the_originals():
    plain, model, inputs = make("Bert").double(), make("Bert").double(), inputs_of("Bert")
    hk.attach(model, feed_forward=True)
    for one in (plain, model):
        output(one, inputs).square().sum().backward()
    for (name, theirs), ours in zip(plain.named_parameters(), model.parameters(), strict=True):
        if theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-9, rtol=1e-9, msg=name)


def test_gates_get_gradients_also_under_checkpointing():
    model, inputs = make("Bert").double(), inputs_of("Bert")
    hk.attach(model, feed_forward=True)
    found = []
    for checkpoint in (False, True):
        if checkpoint:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
            for module in model.modules():
                if isinstance(module, torch.nn.Dropout):
                    module.p = 0.0
        gates = random_gates().double().requires_grad_()
        with hk.gates(model, hk.GateSet(blocks=gates, skip=False)):
            loss = output(model, inputs).square().sum()
        loss.backward()
        found.append(gates.grad)
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], found[0])


def test_compiles_without_a_graph_break():
    torch._dynamo.reset()
    model, inputs = make("Bert"), inputs_of("Bert")
    hk.attach(model, feed_forward=True)
    gates = hk.GateSet(blocks=random_gates())
    with torch.no_grad(), hk.gates(model, gates):
        expected = output(model, inputs)
        compiled = torch.compile(model, backend="eager", fullgraph=True)
        torch.testing.assert_close(output(compiled, inputs), expected)


def test_a_copy_is_attached_too():
    model, inputs = make("Bert"), inputs_of("Bert")
    hk.attach(model, feed_forward=True)
    twin = copy.deepcopy(model)
    gates = hk.GateSet(blocks=random_gates())
    with hk.gates(model, gates):
        expected = output(model, inputs)
        untouched = output(twin, inputs)
    with hk.gates(twin, gates):
        assert torch.equal(output(twin, inputs), expected)
    assert torch.equal(untouched, output(model, inputs))
    hk.detach(twin)
    assert hk.attach(model, feed_forward=True) is not None


def test_stages_take_gates_of_blocks():
    model, inputs = make("Bert"), inputs_of("Bert")
    gated = hk.attach(model, feed_forward=True)
    gates = hk.GateSet(blocks=random_gates(3))
    with hk.gates(model, gates):
        expected = output(model, inputs)
    state = gated.run(gated.embed(inputs), 0, 1, gates)
    state = gated.run(gated.select(state, torch.arange(3)), 1, LAYERS, gates)
    found = gated.head(state)[inputs["attention_mask"].bool()]
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    model, inputs = make("Bert"), inputs_of("Bert")
    gated = hk.attach(model, feed_forward=True)
    gates = hk.GateSet(torch.ones(LAYERS, HEADS), blocks=random_gates())
    hk.save(gated, tmp_path / "model", gates=gates)
    again = hk.load(tmp_path / "model")
    assert torch.equal(output(again, inputs), output(model, inputs))
    stored = hk.read_model_folder(tmp_path / "model").gates
    assert torch.equal(stored.blocks, gates.blocks)
    with hk.gates(model, gates), hk.gates(again, stored):
        assert torch.equal(output(again, inputs), output(model, inputs))


def test_heads_can_be_removed_beside_it():
    model, inputs = make("Bert"), inputs_of("Bert")
    gated = hk.attach(model, feed_forward=True)
    keep = torch.ones(LAYERS, HEADS)
    keep[0, :2] = 0
    blocks = random_gates()
    with hk.gates(model, hk.GateSet(keep, blocks=blocks)):
        expected = output(model, inputs)
    hk.apply(gated, hk.HeadMask(keep.bool()))
    with hk.gates(model, hk.GateSet(blocks=blocks)):
        torch.testing.assert_close(output(model, inputs), expected, atol=1e-5, rtol=0)


def test_a_gate_set_survives_json():
    gates = hk.GateSet(blocks=random_gates(2), dropped_blocks=torch.randn(LAYERS, BLOCKS, WIDTH))
    again = hk.GateSet.from_json(gates.to_json())
    assert again.heads is None
    assert torch.equal(again.blocks, gates.blocks)
    torch.testing.assert_close(again.dropped_blocks, gates.dropped_blocks)
    picked = gates.select_samples(torch.tensor([1]))
    assert torch.equal(picked.blocks, gates.blocks[1:])


def test_refusals():
    model, inputs = make("Bert"), inputs_of("Bert")
    hk.attach(model)
    with pytest.raises(ValueError, match="attached with feed_forward=True"):
        hk.gates(model, hk.GateSet(blocks=random_gates()))
    hk.attach(model, feed_forward=True)
    with pytest.raises(ValueError, match=r"neuron blocks of shape \[3, 3\]"):
        hk.gates(model, hk.GateSet(blocks=torch.ones(LAYERS, BLOCKS + 1)))
    with (
        hk.gates(model, hk.GateSet(blocks=torch.ones(2, LAYERS, BLOCKS))),
        pytest.raises(ValueError, match="neuron blocks for a batch of 3"),
    ):
        output(model, inputs)
    with pytest.raises(ValueError, match="finite gates"):
        hk.GateSet(blocks=torch.full((LAYERS, BLOCKS), float("nan")))
    with pytest.raises(ValueError, match="gates of neuron blocks"):
        hk.GateSet(blocks=torch.ones(BLOCKS))


def test_what_cannot_be_attached_stays_as_it_was():
    config = transformers.T5Config(d_model=8, d_kv=4, num_heads=2, num_layers=1, vocab_size=20)
    other = transformers.T5EncoderModel(config)
    with pytest.raises(ValueError, match=r"\[attach\] expected a feed-forward block"):
        hk.attach(other, feed_forward=True)
    strange = make("Bert", hidden_act="quick_gelu")
    with pytest.raises(ValueError, match="expected an activation of gelu"):
        hk.attach(strange, feed_forward=True)
    hooked = make("Bert")
    hooked.encoder.layer[1].intermediate.register_forward_hook(lambda *call: None)
    with pytest.raises(ValueError, match="without hooks inside"):
        hk.attach(hooked, feed_forward=True)
    for model in (other, strange, hooked):
        assert not any("Gated" in type(module).__name__ for module in model.modules())


@pytest.mark.parametrize("act", ["gelu_new", "relu", "silu", "gelu_pytorch_tanh"])
def test_activations_are_known_by_what_they_compute(act):
    model, inputs = make("Bert", hidden_act=act), inputs_of("Bert")
    expected = output(model, inputs)
    hk.attach(model, feed_forward=True)
    torch.testing.assert_close(output(model, inputs), expected, atol=1e-5, rtol=0)


def test_neurons_dropped_in_training_cannot_be_gated():
    model, inputs = make("Hubert"), inputs_of("Hubert")
    hk.attach(model, feed_forward=True)
    model.train()
    for module in model.modules():
        if hasattr(module, "intermediate_dropout"):
            module.intermediate_dropout.p = 0.1
    with (
        hk.gates(model, hk.GateSet(blocks=random_gates())),
        pytest.raises(ValueError, match="no dropout of neurons"),
    ):
        model(**inputs)


def test_attaching_anew_keeps_both_under_the_same_gates():
    model, inputs = make("Bert"), inputs_of("Bert")
    hk.attach(model, feed_forward=True)
    gates = hk.GateSet(torch.eye(LAYERS, HEADS), blocks=random_gates())
    with hk.gates(model, gates):
        expected = output(model, inputs)
    other = make("Bert")
    model.encoder.layer[1].attention = other.encoder.layer[1].attention
    hk.attach(model)
    with hk.gates(model, gates):
        assert torch.equal(output(model, inputs), expected)
