import copy

import pytest
import torch
import transformers

import headkit as hk

CONFIG = {
    "vocab_size": 40,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 16,
    "max_position_embeddings": 64,
}


def bert(seed=0, **options):
    torch.manual_seed(seed)
    config = transformers.BertConfig(**CONFIG, attn_implementation="eager", **options)
    return transformers.BertModel(config).eval()


def batch_of(lengths, seed=1):
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    ids = torch.randint(5, 40, (len(lengths), longest), generator=generator)
    mask = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


def rows_of(model, data, **options):
    seen = []
    hk.for_each_attention(model, data, seen.append, **options)
    return seen


def test_attention_is_that_of_the_plain_model():
    model, batch = bert(), batch_of([5, 7])
    with torch.no_grad():
        expected = model(**batch, output_attentions=True).attentions
    hk.attach(model)
    before = copy.deepcopy(batch)
    seen = rows_of(model, [batch], output_norms=True)
    assert [(rows.sample, rows.layer) for rows in seen] == [(0, 0), (0, 1), (1, 0), (1, 1)]
    for rows in seen:
        length = (5, 7)[rows.sample]
        exact = expected[rows.layer][rows.sample, :, :length, :length]
        torch.testing.assert_close(rows.probabilities, exact, atol=1e-6, rtol=1e-5)
        assert rows.key_allowed.all() and rows.query_valid.all()
        assert rows.output_norm.shape == (4, length)
    for name, tensor in batch.items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("grouped", [False, True])
def test_attention_of_causal_rotary_and_grouped_heads(grouped):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **CONFIG, num_key_value_heads=2 if grouped else 4, attn_implementation="eager"
    )
    model, batch = transformers.LlamaModel(config).eval(), batch_of([6, 4])
    with torch.no_grad():
        expected = model(**batch, output_attentions=True).attentions
    hk.attach(model)
    for rows in rows_of(model, [batch]):
        length = (6, 4)[rows.sample]
        exact = expected[rows.layer][rows.sample, :, :length, :length]
        torch.testing.assert_close(rows.probabilities, exact, atol=1e-6, rtol=1e-5)
        assert torch.equal(rows.key_allowed[0], torch.ones(length, length).tril().bool())


def test_attention_across_sequences_with_a_position_bias():
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=40, d_model=24, d_kv=6, d_ff=16, num_layers=1, num_heads=4,
        attn_implementation="eager", decoder_start_token_id=0,
    )  # fmt: skip
    model = transformers.T5Model(config).eval()
    batch = {**batch_of([5, 7]), "decoder_input_ids": batch_of([3, 3], seed=2)["input_ids"]}
    with torch.no_grad():
        plain = model(**batch, output_attentions=True)
    expected = [
        plain.encoder_attentions[0], plain.decoder_attentions[0], plain.cross_attentions[0]
    ]  # fmt: skip
    hk.attach(model)
    seen = rows_of(model, [batch])
    assert [rows.cross for rows in seen[:3]] == [False, False, True]
    for rows in seen:
        heads, queries, keys = rows.probabilities.shape
        exact = expected[rows.layer][rows.sample, :, :queries, :keys]
        torch.testing.assert_close(rows.probabilities, exact, atol=1e-6, rtol=1e-5)
        if rows.layer == 2:
            assert (heads, queries, keys) == (4, 3, (5, 7)[rows.sample])


def test_gates_that_do_not_fit_are_refused():
    model = bert()
    hk.attach(model)
    with pytest.raises(ValueError, match=r"\[attention_rows\] expected"):
        rows_of(model, [batch_of([3])], gates=torch.ones(2, 5))


def test_the_registry_names_threshold_and_source():
    registry = hk.role_registry()
    assert registry["positional"]["threshold"] == 0.9
    assert "Voita" in registry["positional"]["threshold_source"]
    assert registry["natural_mass"]["threshold"] is None
