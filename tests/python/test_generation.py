"""Gated decoders generate what a masked plain model generates, and closed heads leave no cache."""

import contextlib
import copy

import pytest
import torch
import transformers
from torch import nn
from transformers import DynamicCache

import headkit as hk

LAYERS, HEADS, KV_HEADS, HEAD_DIM, WIDTH, VOCABULARY = 3, 4, 2, 6, 24, 50
FAMILIES = ("Llama", "Mistral", "Qwen2", "Qwen3")


def make(family, attention="sdpa", seed=0, **options):
    """A causal language model with random parameters, in eval mode."""
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "intermediate_size": 32,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 64,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": None,
        "attn_implementation": attention,
    }
    if family == "Qwen3":
        sizes["head_dim"] = HEAD_DIM + 2
    if family == "Mistral":
        sizes["sliding_window"] = 5
    config = getattr(transformers, f"{family}Config")(**{**sizes, **options})
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            values = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.2 * values if "norm" in name else 0.4 * values)
    return model


def prompts(batch=3, tokens=7, padding=True, seed=1):
    """input_ids and attention_mask; all but the first prompt are padded on the left."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)
    mask = torch.ones_like(ids)
    for row in range(1, batch if padding else 0):
        mask[row, : row + 1] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


@contextlib.contextmanager
def oracle(model, gates):
    """Multiply what enters each output projection of a plain model; gates [B, L, H]."""
    handles = []
    for number, layer in enumerate(model.model.layers):
        wide = gates[:, number].repeat_interleave(layer.self_attn.head_dim, -1)[:, None]

        def multiply(module, args, wide=wide):
            times = len(args[0]) // len(wide)
            return (args[0] * wide.repeat_interleave(times, 0),)

        handles.append(layer.self_attn.o_proj.register_forward_pre_hook(multiply))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def random_gates(batch, seed=3):
    """0 or 1, [B, L, H]: layer 0 closed for all, one KV head of layer 1 closed for all."""
    gates = torch.rand(batch, LAYERS, HEADS, generator=torch.Generator().manual_seed(seed))
    gates = (gates < 0.6).float()
    gates[:, 0] = 0
    gates[:, 1, :2] = 0
    gates[:, 1, 2] = 1
    gates[0, 2] = torch.tensor([1.0, 0, 0, 0])
    gates[1, 2] = torch.tensor([0.0, 0, 1, 1])
    return gates


def generate(model, inputs, **options):
    return model.generate(**inputs, **{"max_new_tokens": 9, "do_sample": False, **options})


WAYS = {
    "greedy": {},
    "beams": {"num_beams": 3},
    "beams, two kept": {"num_beams": 2, "num_return_sequences": 2},
    "static cache": {"cache_implementation": "static"},
    "no cache": {"use_cache": False},
    "chunked prompt": {"prefill_chunk_size": 3},
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_attached_generates_the_same(family, way):
    model = make(family)
    inputs = prompts()
    expected = generate(model, inputs, **WAYS[way])
    hk.attach(model)
    assert torch.equal(generate(model, inputs, **WAYS[way]), expected)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("way", WAYS)
def test_gates_hold_while_generating(family, way):
    plain, model = make(family), make(family)
    hk.attach(model)
    inputs = prompts()
    for gates in (random_gates(3), random_gates(3)[:1].expand(3, -1, -1)):
        with oracle(plain, gates):
            expected = generate(plain, inputs, **WAYS[way])
        given = gates if len(gates.unique(dim=0)) > 1 else gates[0]
        with hk.gates(model, given):
            assert torch.equal(generate(model, inputs, **WAYS[way]), expected)
    assert not torch.equal(generate(plain, inputs), expected[:3]), "the gates matter"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_generates_on_the_kernels(family, dtype, monkeypatch):
    monkeypatch.setenv("HEADKIT_BACKEND", "cpu")
    model, inputs = make(family).to(dtype), prompts()
    exact = copy.deepcopy(model).double()
    dense, options = copy.deepcopy(model), {"output_logits": True, "return_dict_in_generate": True}
    hk.attach(model)
    found = generate(model, inputs, **options)
    mask = nn.functional.pad(inputs["attention_mask"], (0, 9), value=1)
    new = slice(inputs["input_ids"].shape[1] - 1, -1)
    with torch.no_grad():
        truth = exact(found.sequences, attention_mask=mask).logits[:, new]
        plain = dense(found.sequences, attention_mask=mask).logits[:, new]
    logits = torch.stack(found.logits, 1)
    allowed = 2 * (plain - truth).abs().max() + 2 * torch.finfo(dtype).eps * truth.abs().max()
    assert (logits - truth).abs().max() <= allowed
    assert torch.equal(found.sequences[:, new.start + 1 :], logits.argmax(-1))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_steps_equal_the_whole(family, attention):
    model = make(family, attention)
    hk.attach(model)
    inputs = prompts(2, 9, padding=False)
    ids, gates = inputs["input_ids"], random_gates(2)
    for context in (contextlib.nullcontext, lambda: hk.gates(model, gates)):
        with context(), torch.no_grad():
            whole = model(ids, use_cache=False).logits
            for cuts in ((4, 5, 6, 9), (1, 4, 9), (9,)):
                cache, parts, start = DynamicCache(config=model.config), [], 0
                for end in cuts:
                    out = model(ids[:, start:end], past_key_values=cache, use_cache=True)
                    parts.append(out.logits)
                    start = end
                torch.testing.assert_close(torch.cat(parts, 1), whole, atol=2e-5, rtol=0)
                assert cache.get_seq_length() == 9


def test_closed_heads_leave_no_keys_and_values():
    model = make("Llama")
    hk.attach(model)
    inputs = prompts(3, padding=False)
    cache = DynamicCache(config=model.config)
    with hk.gates(model, random_gates(3)), torch.no_grad():
        model(inputs["input_ids"], past_key_values=cache)
    shapes = [tuple(layer.keys.shape) for layer in cache.layers]
    assert shapes[0] == (3, 1, 7, 1), "nothing but the count of tokens"
    assert shapes[1] == (3, 1, 7, HEAD_DIM)
    assert shapes[2] == (3, 2, 7, HEAD_DIM)
    assert cache.layers[2].keys[0, 0].abs().max() > 0 and not cache.layers[2].keys[0, 1].any()
    assert not cache.layers[2].values[1, 0].any() and cache.layers[2].values[1, 1].abs().max() > 0


def test_closed_heads_are_not_computed_while_generating():
    plain, model = make("Llama"), make("Llama")
    hk.attach(model)
    inputs = prompts()
    gates = random_gates(3)
    gates[:, 2, :2] = 0
    with oracle(plain, gates):
        expected = generate(plain, inputs)
    with torch.no_grad():
        for number, (rows, kv_rows) in enumerate(((24, 12), (12, 6), (12, 6))):
            attention = model.model.layers[number].self_attn
            attention.q_proj.weight[:rows] = torch.nan
            attention.k_proj.weight[:kv_rows] = torch.nan
            attention.v_proj.weight[:kv_rows] = torch.nan
            attention.o_proj.weight[:, :rows] = torch.nan
    with hk.gates(model, gates):
        assert torch.equal(generate(model, inputs), expected)


def linear_gate(seed=5, threshold=0.0):
    """A policy that decides from the mean embedding, differently for different prompts."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(LAYERS, HEADS, WIDTH, dtype=torch.float64, generator=generator)
    return hk.LinearGate(
        weight=weight,
        reference=torch.zeros(WIDTH, dtype=torch.float64),
        static_logits=torch.full((LAYERS, HEADS), 0.3, dtype=torch.float64),
        threshold=threshold,
    )


def decisions(model, policy, ids, mask):
    """What the policy says of prompts, by its own definition."""
    hidden = model.model.embed_tokens(ids)
    return policy.decide(hidden, mask.bool()).heads


@pytest.mark.parametrize("way", ["greedy", "beams", "static cache"])
def test_a_policy_decides_on_the_prompt_and_holds(way):
    plain, model = make("Qwen2"), make("Qwen2")
    hk.attach(model)
    inputs, policy = prompts(), linear_gate()
    gates = decisions(
        plain, policy, **{"ids": inputs["input_ids"], "mask": inputs["attention_mask"]}
    )
    assert len(gates.unique(dim=0)) == 3
    with oracle(plain, gates):
        expected = generate(plain, inputs, **WAYS[way])
    with hk.gates(model, policy):
        assert torch.equal(generate(model, inputs, **WAYS[way]), expected)


def test_a_policy_decides_anew_every_few_tokens():
    plain, model = make("Llama"), make("Llama")
    hk.attach(model)
    inputs, policy = prompts(2), linear_gate(threshold=0.2)
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    asked = []
    for step in range(9):
        if step % 3 == 0:
            gates = decisions(plain, policy, ids, mask)
            asked.append(gates)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            # Each token's states under the gates of its own step: replay the steps so far.
            logits = _replayed(plain, ids, mask, positions, asked)
        chosen = logits[:, -1].argmax(-1, keepdim=True)
        ids, mask = torch.cat((ids, chosen), 1), torch.cat((mask, torch.ones_like(chosen)), 1)
    assert any(not torch.equal(asked[0], later) for later in asked[1:])
    with hk.gates(model, policy, every=3):
        found = generate(model, inputs)
    assert torch.equal(found, ids)


def _replayed(model, ids, mask, positions, asked):
    """Logits of the last step of a plain model whose gates changed every three tokens."""
    prompt, cache = 7, DynamicCache(config=model.config)
    with oracle(model, asked[0]):
        out = model(
            ids[:, :prompt],
            attention_mask=mask[:, :prompt],
            position_ids=positions[:, :prompt],
            past_key_values=cache,
        )
    for place in range(prompt, ids.shape[1]):
        with oracle(model, asked[(place - prompt + 1) // 3]):
            out = model(
                ids[:, place : place + 1],
                attention_mask=mask[:, : place + 1],
                position_ids=positions[:, place : place + 1],
                past_key_values=cache,
            )
    return out.logits


def test_new_decisions_follow_their_beams():
    model = make("Llama")
    hk.attach(model)
    inputs, policy = prompts(2), linear_gate()
    with hk.gates(model, policy, every=1):
        found = generate(model, inputs, num_beams=3, max_new_tokens=6)
        # Without a cache every step decides on the whole sequence of each beam.
        again = generate(model, inputs, num_beams=3, max_new_tokens=6)
    assert torch.equal(found, again)


def test_every_writes_all_keys_and_values():
    model = make("Llama")
    hk.attach(model)
    ids = prompts(2, padding=False)["input_ids"]
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        with hk.gates(model, torch.zeros(LAYERS, HEADS), every=1):
            model(ids, past_key_values=cache)
        assert [layer.keys.shape[1] for layer in cache.layers] == [KV_HEADS] * LAYERS
        with hk.gates(model, random_gates(2), every=1):
            model(ids[:, :1], past_key_values=cache)


def test_a_cache_belongs_to_its_gates():
    model = make("Llama")
    hk.attach(model)
    ids = prompts(2, padding=False)["input_ids"]
    with torch.no_grad():
        cache = DynamicCache(config=model.config)
        with hk.gates(model, random_gates(2)):
            model(ids, past_key_values=cache)
            expected = model(ids[:, :1], past_key_values=cache).logits
        with (
            hk.gates(model, torch.ones(LAYERS, HEADS)),
            pytest.raises(ValueError, match="the gates that the cache was filled under"),
        ):
            model(ids[:, :1], past_key_values=cache)
        cache.crop(-1)
        found = model(ids[:, :1], past_key_values=cache).logits
        torch.testing.assert_close(found, expected)

        cache = DynamicCache(config=model.config)
        model(ids, past_key_values=cache)
        with (
            hk.gates(model, random_gates(2)),
            pytest.raises(ValueError, match="expected an empty cache"),
        ):
            model(ids[:, :1], past_key_values=cache)
        with hk.gates(model, random_gates(2), every=1):
            model(ids[:, :1], past_key_values=cache)
    with pytest.raises(ValueError, match="expected every of at least 1 token"):
        hk.gates(model, torch.ones(LAYERS, HEADS), every=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_training_with_the_cache_that_transformers_makes(family):
    ids = prompts(2, padding=False)["input_ids"]
    gates = random_gates(2)
    gradients = []
    for attach in (False, True):
        model = make(family).double()
        if attach:
            hk.attach(model)
        context = hk.gates(model, gates) if attach else oracle(model, gates.double())
        with context:
            loss = model(ids, labels=ids).loss
        loss.backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, expected in gradients[0].items():
        found = gradients[1][name]
        if found is None:
            assert expected is None or not expected.any()
        else:
            # The norms of Qwen3 compute in float32 whatever they are given.
            tolerance = 1e-6 if family == "Qwen3" else 1e-9
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_eager_attentions_are_recorded_with_a_cache():
    plain, model = make("Llama", "eager"), make("Llama", "eager")
    hk.attach(model)
    ids = prompts(2, padding=False)["input_ids"]
    with torch.no_grad():
        expected = plain(ids, output_attentions=True).attentions
        found = model(ids, output_attentions=True).attentions
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)
    gates = torch.ones(LAYERS, HEADS)
    gates[2, :2] = 0
    with hk.gates(model, gates), oracle(plain, gates[None]), torch.no_grad():
        expected = plain(ids, output_attentions=True).attentions
        found = model(ids, output_attentions=True).attentions
    torch.testing.assert_close(found[2][:, 2:], expected[2][:, 2:], atol=1e-5, rtol=0)
    assert not found[2][:, :2].any()


@pytest.mark.parametrize("family", FAMILIES)
def test_removed_heads_generate_as_masked_ones(family):
    plain, model = make(family), make(family)
    gated = hk.attach(model)
    inputs = prompts()
    keep = torch.tensor([[0, 0, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0]]).bool()
    with oracle(plain, keep[None].float()):
        expected = {way: generate(plain, inputs, **WAYS[way]) for way in WAYS}
    hk.apply(gated, keep)
    attention = [layer.self_attn for layer in model.model.layers]
    width = attention[0].head_dim
    assert [a.k_proj.out_features // width for a in attention] == [0, 2, 1]
    for way, tokens in expected.items():
        assert torch.equal(generate(model, inputs, **WAYS[way]), tokens), way
    extra = torch.ones(3, LAYERS, HEADS)
    extra[0, 1, 2:] = 0
    with oracle(plain, extra * keep):
        masked = generate(plain, inputs)
    with hk.gates(model, extra):
        assert torch.equal(generate(model, inputs), masked)


@pytest.mark.parametrize("family", FAMILIES)
def test_whole_groups_leave_a_plain_model(family):
    plain, model = make(family), make(family)
    gated = hk.attach(model)
    inputs = prompts()
    for keep in ([[1, 1, 0, 0]] * LAYERS, [[1, 0, 0, 1], [1, 1, 1, 1], [0, 1, 1, 0]]):
        keep = torch.tensor(keep).bool()
        model = make(family)
        gated = hk.attach(model)
        with oracle(plain, keep[None].float()):
            expected = generate(plain, inputs)
        hk.apply(gated, keep)
        hk.detach(model)
        assert torch.equal(generate(model, inputs), expected)
        assert hk.attach(model).heads() == hk.HeadMask(keep)
        assert torch.equal(generate(model, inputs), expected)


@pytest.mark.parametrize(
    ("keep", "reason"),
    [
        ([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], "keys that 2, 1 queries share"),
        ([[0, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 1]], "no head left in layer 0"),
    ],
)
def test_what_cannot_run_plainly_stays_attached(keep, reason):
    model = make("Llama")
    gated = hk.attach(model)
    hk.apply(gated, torch.tensor(keep).bool())
    inputs = prompts()
    expected = generate(model, inputs)
    with pytest.raises(ValueError, match=reason):
        hk.detach(model)
    assert torch.equal(generate(model, inputs), expected)
