"""Gates and removal of neurons and whole blocks: equal to hooks on the plain models."""

import copy
import itertools

import pytest
import torch

import headkit as hk

from .feed_forward_models import ENDS, HEADS, LAYERS, NEURONS, WIDTH, inputs_of, make, output

UNITS = ("neurons", "attention_sublayers", "feed_forward_sublayers")


def random_gates(batch=None, seed=0, *, soft=True, dtype=torch.float32):
    """Gates of heads, neurons and blocks, about a third of them closed."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape):
        shape = shape if batch is None else (batch, *shape)
        gate = torch.rand(shape, generator=generator, dtype=dtype) + 0.3
        gate = gate if soft else torch.ones_like(gate)
        gate[torch.rand(shape, generator=generator) < 0.35] = 0
        return gate

    blocks = {name: draw(LAYERS) for name in UNITS[1:]}
    return hk.GateSet(draw(LAYERS, HEADS), neurons=draw(LAYERS, NEURONS), **blocks)


def scaled(gates, name, layer):
    """The gates of a layer, broadcast over tokens."""
    gate, axes = getattr(gates, name), 1 + (name in ("heads", "neurons"))
    if gate is None:
        return 1
    if gate.dim() == axes:
        return gate[layer]
    return gate[:, layer].reshape(len(gate), 1, -1)


class Oracle:
    """Gates a plain model by hooks on the last projections of its blocks, while it is open."""

    def __init__(self, family, model, gates):
        self.handles = []
        dtype = next(model.parameters()).dtype
        for kind, path in zip(("attention", "feed_forward"), ENDS[family], strict=True):
            units = "heads" if kind == "attention" else "neurons"
            shared = "{}" not in path
            for number in range(1 if shared else LAYERS):
                calls = itertools.count()
                self._hook(
                    model.get_submodule(path.format(number)),
                    gates,
                    units,
                    f"{kind}_sublayers",
                    None if shared else number,
                    calls,
                    dtype,
                )

    def _hook(self, module, gates, units, whole, number, calls, dtype):
        place = [0]

        def before(_, args):
            place[0] = next(calls) % LAYERS if number is None else number
            gate = scaled(gates, units, place[0])
            if units == "heads" and not isinstance(gate, int):
                gate = gate.repeat_interleave(WIDTH // HEADS, -1)
            return (args[0] * gate if isinstance(gate, int) else args[0] * gate.to(dtype),)

        def after(_, args, result):
            gate = scaled(gates, whole, place[0])
            return result * gate if isinstance(gate, int) else result * gate.to(dtype)

        self.handles += [
            module.register_forward_pre_hook(before),
            module.register_forward_hook(after),
        ]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for handle in self.handles:
            handle.remove()


@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("family", ENDS)
def test_gates_equal_hooks_on_the_plain_model(family, feed_forward):
    plain, model, inputs = make(family), make(family), inputs_of(family)
    gated = hk.attach(model, feed_forward=feed_forward)
    for gates in (random_gates(), random_gates(3, seed=1)):
        with Oracle(family, plain, gates):
            expected = output(plain, inputs)
        with hk.gates(model, gates):
            torch.testing.assert_close(output(model, inputs), expected, atol=2e-5, rtol=0)
    last = gated.run(gated.embed(inputs), 0, LAYERS, gates)
    found = gated.head(last)
    mask = inputs.get("attention_mask")
    found = found if mask is None else found[mask.bool()]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ENDS)
def test_gates_of_one_change_no_bit(family):
    model, inputs = make(family), inputs_of(family)
    hk.attach(model)
    ones = hk.GateSet(
        neurons=torch.ones(LAYERS, NEURONS),
        attention_sublayers=torch.ones(LAYERS),
        feed_forward_sublayers=torch.ones(LAYERS),
    )
    expected = output(model, inputs)
    with hk.gates(model, ones):
        assert torch.equal(output(model, inputs), expected)
    hk.detach(model)
    assert all(not module._forward_hooks for module in model.modules())
    assert all(not module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ENDS)
def test_closing_any_unit_changes_the_output(family):
    model, inputs = make(family), inputs_of(family)
    hk.attach(model)
    expected = output(model, inputs)
    for layer in range(LAYERS):
        for name, shape in (
            ("heads", (LAYERS, HEADS)),
            ("neurons", (LAYERS, NEURONS)),
            ("attention_sublayers", (LAYERS,)),
            ("feed_forward_sublayers", (LAYERS,)),
        ):
            gate = torch.ones(shape)
            gate[(layer, 1)[: len(shape)]] = 0
            with hk.gates(model, hk.GateSet(**{name: gate})):
                assert not torch.equal(output(model, inputs), expected), (name, layer)


@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("family", ["Bert", "Albert", "GPT2"])
def test_gates_get_the_gradients_of_finite_differences(family, feed_forward):
    model, inputs = make(family).double(), inputs_of(family)
    hk.attach(model, feed_forward=feed_forward)
    weight = torch.randn(output(model, inputs).shape, dtype=torch.float64)
    shapes = {"neurons": (LAYERS, NEURONS)} | dict.fromkeys(UNITS[1:], (LAYERS,))
    gates = {name: torch.ones(shape, dtype=torch.float64) for name, shape in shapes.items()}

    def loss(values):
        with hk.gates(model, hk.GateSet(**values, skip=False)):
            return (output(model, inputs) * weight).sum()

    wanted = {name: gate.clone().requires_grad_() for name, gate in gates.items()}
    loss(wanted).backward()
    for name, place in (("neurons", (1, 3)), *((one, (2,)) for one in UNITS[1:])):
        ends = []
        for step in (1e-5, -1e-5):
            moved = {key: gate.clone() for key, gate in gates.items()}
            moved[name][place] += step
            with torch.no_grad():
                ends.append(loss(moved))
        slope = (ends[0] - ends[1]) / 2e-5
        torch.testing.assert_close(wanted[name].grad[place], slope, atol=1e-5, rtol=1e-6)


# Its norms compute in float32 whatever the model does: too coarse for finite differences.
@pytest.mark.parametrize("feed_forward", [False, True])
def test_gates_of_llama_get_the_gradients_of_hooks_on_the_plain_model(feed_forward):
    plain, model, inputs = make("Llama"), make("Llama"), inputs_of("Llama")
    hk.attach(model, feed_forward=feed_forward)
    found = []
    for one, gating in ((plain, lambda g: Oracle("Llama", plain, g)), (model, None)):
        neurons = torch.ones(LAYERS, NEURONS, requires_grad=True)
        blocks = torch.ones(LAYERS, requires_grad=True)
        gates = hk.GateSet(neurons=neurons, feed_forward_sublayers=blocks, skip=False)
        with hk.gates(model, gates) if gating is None else gating(gates):
            output(one, inputs).square().sum().backward()
        found.append((neurons.grad, blocks.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("feed_forward", [False, True])
def test_gradients_of_gates_under_checkpointing(feed_forward):
    model, inputs = make("Bert").double(), inputs_of("Bert")
    hk.attach(model, feed_forward=feed_forward)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    found = []
    for checkpoint in (False, True):
        if checkpoint:
            model.train()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        neurons = torch.ones(LAYERS, NEURONS, dtype=torch.float64, requires_grad=True)
        with hk.gates(model, hk.GateSet(neurons=neurons, skip=False)):
            loss = output(model, inputs).square().sum()
        loss.backward()
        found.append(neurons.grad)
    assert found[0].abs().min() > 0
    torch.testing.assert_close(found[1], found[0])


@pytest.mark.parametrize("feed_forward", [False, True])
def test_compiles_without_a_graph_break(feed_forward):
    torch._dynamo.reset()
    model, inputs = make("Bert"), inputs_of("Bert")
    hk.attach(model, feed_forward=feed_forward)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    hidden = torch.cat((torch.zeros(WIDTH // 2), torch.rand(WIDTH // 2) + 0.5))
    with torch.no_grad():
        dense = output(model, inputs)
        torch.testing.assert_close(output(compiled, inputs), dense)
        for gates in (random_gates(), hk.GateSet(hidden=hidden)):
            with hk.gates(model, gates):
                expected = output(model, inputs)
                torch.testing.assert_close(output(compiled, inputs), expected)
            assert not torch.allclose(expected, dense)


@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("family", ["Bert", "Albert", "GPT2", "Llama"])
def test_taps_show_what_blocks_add(family, feed_forward):
    model, inputs = make(family), inputs_of(family)
    gated = hk.attach(model, feed_forward=feed_forward)
    names = ("attention_outputs", "feed_forward_inputs", "feed_forward_outputs")
    taps = hk.Taps(neuron_activations=True, **dict.fromkeys(names, True))
    gates = random_gates(3)
    gated.run(gated.embed(inputs), 0, LAYERS, gates, taps)
    assert [len(getattr(taps, name[:-1])) for name in names] == [LAYERS] * 3
    for layer in range(LAYERS):
        weights = gated.feed_forward(layer)
        neurons = taps.neurons[layer] * gates.neurons[:, layer, None]
        fed = torch.nn.functional.linear(neurons, weights.out, weights.out_bias)
        expected = fed * gates.feed_forward_sublayers[:, layer, None, None]
        torch.testing.assert_close(taps.feed_forward_output[layer], expected, atol=1e-5, rtol=0)
        closed = gates.attention_sublayers[:, layer] == 0
        assert taps.attention_output[layer][closed].abs().sum() == 0
    values = torch.nn.functional.linear(
        taps.feed_forward_input[0], gated.feed_forward(0).inner, gated.feed_forward(0).inner_bias
    )
    assert values.shape == taps.neurons[0].shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("family", [name for name in ENDS if name != "Roberta"])
def test_removal_equals_the_gates(family, dtype):
    inputs = inputs_of(family)
    inputs = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    tolerance = 1e-12 if dtype == torch.float64 else 2e-5
    for seed, feed_forward in ((0, False), (1, True)):
        gates = random_gates(seed=seed, dtype=torch.float64)
        model = make(family).to(dtype)
        gated = hk.attach(model, feed_forward=feed_forward)
        with torch.no_grad():
            dense = output(model, inputs)
            with hk.gates(model, gates):
                expected = output(model, inputs)
            hk.apply(model, gates)
            scale = max(1.0, float(dense.abs().max()))
            found = output(model, inputs)
            torch.testing.assert_close(found, expected, atol=tolerance * scale, rtol=0)
        left = (gates.neurons != 0) & (gates.feed_forward_sublayers != 0)[:, None]
        assert torch.equal(gated.neurons(), left)
        open_blocks = (gates.attention_sublayers != 0).tolist()
        assert gated.sublayers().attention == open_blocks
        assert gated.layout().feed_forward == NEURONS
        again = hk.attach(copy.deepcopy(model))
        assert torch.equal(again.neurons(), left) and again.sublayers().attention == open_blocks


def test_blocks_of_neurons_keep_their_meaning_after_removal():
    model, inputs = make("Bert").double(), inputs_of("Bert")
    hk.attach(model, feed_forward=True)
    neurons = torch.ones(LAYERS, NEURONS, dtype=torch.float64)
    neurons[0, ::2] = 0
    neurons[1, 32:64] = 0
    blocks = torch.rand(3, LAYERS, 3, dtype=torch.float64)
    dropped = torch.randn(LAYERS, 3, WIDTH, dtype=torch.float64)
    both = hk.GateSet(neurons=neurons, blocks=blocks)
    with torch.no_grad():
        with hk.gates(model, both):
            expected = output(model, inputs)
        hk.apply(model, hk.GateSet(neurons=neurons))
        with hk.gates(model, hk.GateSet(blocks=blocks)):
            torch.testing.assert_close(output(model, inputs), expected, atol=1e-12, rtol=0)
        with hk.gates(model, hk.GateSet(blocks=blocks, dropped_blocks=dropped)):
            first = output(model, inputs)
        dropped[1, 1] = 7  # of a block that is gone
        with hk.gates(model, hk.GateSet(blocks=blocks, dropped_blocks=dropped)):
            assert torch.equal(output(model, inputs), first)


def test_original_indices_hold_after_removal():
    model, inputs = make("Bert").double(), inputs_of("Bert")
    gated = hk.attach(model)
    first, second = (torch.ones(LAYERS, NEURONS, dtype=torch.float64) for _ in range(2))
    first[:, 1::3] = 0
    second[:, 2::5] = 0
    with torch.no_grad():
        with hk.gates(model, hk.GateSet(neurons=first * second)):
            expected = output(model, inputs)
        hk.apply(model, hk.GateSet(neurons=first))
        with hk.gates(model, hk.GateSet(neurons=second)):
            torch.testing.assert_close(output(model, inputs), expected, atol=1e-12, rtol=0)
        for gates in (second, first, second):
            hk.apply(model, hk.GateSet(neurons=gates))
        torch.testing.assert_close(output(model, inputs), expected, atol=1e-12, rtol=0)
    assert torch.equal(gated.neurons(), (first * second).bool())


@pytest.mark.parametrize(
    "family", [name for name in ENDS if name not in ("GPT2", "Llama", "Qwen3")]
)
def test_detached_it_is_a_plain_pruned_model(family):
    model, inputs = make(family), inputs_of(family)
    hk.attach(model)
    gates = random_gates(soft=False)
    heads = torch.ones(LAYERS, HEADS)
    heads[0, 1] = 0
    gates = hk.GateSet(
        heads,
        neurons=gates.neurons,
        feed_forward_sublayers=torch.tensor([1.0, 0.0, 1.0]),
    )
    hk.apply(model, gates)
    expected = output(model, inputs)
    hk.detach(model)
    torch.testing.assert_close(output(model, inputs), expected, atol=1e-5, rtol=0)
    gated = hk.attach(model)
    assert gated.sublayers().feed_forward == [True, False, True]
    assert torch.equal(gated.neurons()[0], gates.neurons[0].bool())
    torch.testing.assert_close(output(model, inputs), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("feed_forward", [False, True])
def test_a_model_of_gpt2_without_neurons_stays_attached(feed_forward):
    model, inputs = make("GPT2"), inputs_of("GPT2")
    hk.attach(model, feed_forward=feed_forward)
    closed = hk.GateSet(feed_forward_sublayers=torch.tensor([0.0, 1.0, 1.0]))
    with hk.gates(model, closed):
        expected = output(model, inputs)
    hk.apply(model, closed)
    torch.testing.assert_close(output(model, inputs), expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match=r"\[detach\] expected neurons left"):
        hk.detach(model)
    assert hk.attach(model).sublayers().feed_forward == [False, True, True]


def cut(value, path, gates):
    """A parameter of the plain model, without the neurons that the other one lost."""
    layer = int(path.split(".")[2] if path.startswith("encoder") else path.split(".")[1])
    kept = gates.neurons[layer].nonzero().flatten()
    if gates.feed_forward_sublayers[layer] == 0:
        kept = kept[:0]
    return value.index_select(value.shape.index(NEURONS), kept)


@pytest.mark.parametrize("feed_forward", [False, True])
@pytest.mark.parametrize("family", ["Bert", "GPT2", "Llama"])
def test_steps_after_a_removal_are_those_of_masked_neurons(family, feed_forward):
    plain, model, inputs = make(family).double(), make(family).double(), inputs_of(family)
    hk.attach(model, feed_forward=feed_forward)
    hard = random_gates(soft=False, dtype=torch.float64)
    gates = hk.GateSet(
        neurons=hard.neurons, feed_forward_sublayers=torch.tensor([1.0, 1.0, 0.0]).double()
    )
    mine, other = (
        torch.optim.SGD(one.named_parameters(), lr=1e-3, momentum=0.9) for one in (model, plain)
    )

    def step(one, optimizer):
        optimizer.zero_grad()
        output(one, inputs).square().mean().backward()
        optimizer.step()

    step(model, mine)
    step(plain, other)
    hk.apply(model, gates, optimizer=mine)
    with Oracle(family, plain, gates):
        for _ in range(2):
            step(model, mine)
            step(plain, other)
    known = dict(plain.named_parameters())
    for path, found in model.named_parameters():
        expected = known[path]
        if found.shape != expected.shape:
            expected = cut(expected, path, gates)
        elif expected.grad is None or found.grad is None:
            continue  # the output bias of a block that is gone
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0, msg=path)
    names = {id(one): name for name, one in model.named_parameters()}
    group = mine.param_groups[0]
    assert [names[id(one)] for one in group["params"]] == group["param_names"]
    soft = hk.GateSet(neurons=torch.full((LAYERS, NEURONS), 0.5))
    with pytest.raises(ValueError, match="neurons at 0 or 1 beside an optimiser"):
        hk.apply(model, soft, optimizer=mine)


@pytest.mark.parametrize("family", ["Bert", "Albert", "GPT2", "Llama"])
def test_saved_and_loaded_it_is_the_same(family, tmp_path):
    model, original, inputs = make(family), make(family), inputs_of(family)
    gated = hk.attach(model, feed_forward=True)
    hk.apply(model, random_gates())
    hk.save(model, tmp_path / "model")
    expected = output(model, inputs)
    for again in (hk.load(tmp_path / "model"), hk.load(tmp_path / "model", original)):
        assert torch.equal(output(again, inputs), expected)
        found = hk.attach(again)
        assert torch.equal(found.neurons(), gated.neurons())
        assert found.sublayers() == gated.sublayers()
        assert found.heads() == gated.heads() and not found.is_whole()
    with pytest.raises(ValueError, match="the unpruned base model"):
        hk.load(tmp_path / "model", original)
    changed = make(family)
    next(changed.parameters()).data += 1
    before = {name: value.clone() for name, value in changed.state_dict().items()}
    with pytest.raises(ValueError, match="base model with fingerprint"):
        hk.load(tmp_path / "model", changed)
    assert all(torch.equal(before[name], value) for name, value in changed.state_dict().items())


READS = ("query", "key", "value", "q_lin", "k_lin", "v_lin", "intermediate.dense", "lin1", "ffn")
STREAMS = ("Bert", "XLMRoberta", "Electra", "DistilBert", "Albert")


def narrow(model, kept):
    """Cut all but some dimensions of the residual stream out of a plain model."""
    projects = "Albert" in type(model).__name__ or hasattr(model, "embeddings_project")
    for path, module in model.named_modules():
        name = path.rpartition(".")[2]
        before_stream = projects and path.startswith("embeddings.")
        if before_stream or path.startswith("pooler"):
            continue
        with torch.no_grad():
            if isinstance(module, torch.nn.Embedding):
                module.weight = torch.nn.Parameter(module.weight[:, kept])
            elif isinstance(module, torch.nn.LayerNorm):
                module.weight = torch.nn.Parameter(module.weight[kept])
                module.bias = torch.nn.Parameter(module.bias[kept])
                module.normalized_shape = (len(kept),)
            elif isinstance(module, torch.nn.Linear):
                if name in READS or path.endswith(READS):
                    module.weight = torch.nn.Parameter(module.weight[:, kept])
                else:
                    module.weight = torch.nn.Parameter(module.weight[kept])
                    module.bias = torch.nn.Parameter(module.bias[kept])


@pytest.mark.parametrize("family", STREAMS)
def test_closed_dimensions_of_the_stream_are_as_if_they_were_not_there(family):
    plain, model, inputs = make(family).double(), make(family).double(), inputs_of(family)
    for one in (plain, model):
        if hasattr(one, "pooler"):
            one.pooler = None
    gated = hk.attach(model)
    kept = torch.tensor([0, 1, 4, 5, 6, 9, 13, 17, 18, 22, 23])
    gate = torch.zeros(WIDTH, dtype=torch.float64)
    gate[kept] = 1
    expected = output(model, inputs)
    with hk.gates(model, hk.GateSet(hidden=torch.ones(WIDTH))):
        assert torch.equal(output(model, inputs), expected)
    narrow(plain, kept)
    expected = output(plain, inputs)
    gates = hk.GateSet(hidden=gate)
    for feed_forward in (False, True):
        hk.attach(model, feed_forward=feed_forward)
        with hk.gates(model, gates):
            found = output(model, inputs)
        torch.testing.assert_close(found[:, kept], expected, atol=1e-12, rtol=0)
        assert (found * (1 - gate)).abs().sum() == 0
        state = gated.run(gated.embed(inputs), 0, 1, gates)
        state = gated.run(state, 1, LAYERS, gates)
        hidden = gated.head(state)[inputs["attention_mask"].bool()]
        torch.testing.assert_close(hidden, found, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="residual stream that are all open"):
        hk.apply(model, gates)
    hk.detach(model)
    assert all(not module._forward_hooks for module in model.modules())


def test_gates_of_the_stream_get_the_gradients_of_finite_differences():
    model, inputs = make("Bert").double(), inputs_of("Bert")
    hk.attach(model)
    weight = torch.randn(output(model, inputs).shape, dtype=torch.float64)

    def loss(hidden):
        with hk.gates(model, hk.GateSet(hidden=hidden)):
            return (output(model, inputs) * weight).sum()

    gate = (torch.rand(WIDTH, dtype=torch.float64) + 0.5).requires_grad_()
    loss(gate).backward()
    for place in (0, 7, 23):
        step = torch.zeros(WIDTH, dtype=torch.float64)
        step[place] = 1e-5
        with torch.no_grad():
            slope = (loss(gate + step) - loss(gate - step)) / 2e-5
        torch.testing.assert_close(gate.grad[place], slope, atol=1e-5, rtol=1e-6)


def test_refusals():
    model, inputs = make("Bert"), inputs_of("Bert")
    gated = hk.attach(model)
    before = gated.fingerprint()
    with pytest.raises(ValueError, match=r"gates of neurons of shape \[3, 70\]"):
        hk.gates(model, hk.GateSet(neurons=torch.ones(LAYERS, NEURONS + 1)))
    with pytest.raises(ValueError, match="gates of attention blocks of shape"):
        hk.gates(model, hk.GateSet(attention_sublayers=torch.ones(LAYERS + 1)))
    with pytest.raises(ValueError, match=r"residual stream of shape \[24\]"):
        hk.gates(model, hk.GateSet(hidden=torch.ones(WIDTH + 1)))
    decoder = make("GPT2")
    hk.attach(decoder)
    with pytest.raises(ValueError, match="encoder of the BERT line for gates of the residual"):
        hk.gates(decoder, hk.GateSet(hidden=torch.ones(WIDTH)))
    with pytest.raises(ValueError, match="finite gates"):
        hk.GateSet(neurons=torch.full((LAYERS, NEURONS), float("inf")))
    for name in UNITS:
        shape = (2, LAYERS, NEURONS) if name == "neurons" else (2, LAYERS)
        gates = hk.GateSet(**{name: torch.zeros(shape)})
        with hk.gates(model, gates), pytest.raises(ValueError, match="for a batch of 3"):
            output(model, inputs)
        with pytest.raises(ValueError, match="static gates of"):
            hk.apply(model, gates)
    assert gated.fingerprint() == before
