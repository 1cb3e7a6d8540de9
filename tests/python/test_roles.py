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


def corpus(count=12, seed=3):
    """Sequences 2 .. 3 of words, as a tokenizer with CLS 2 and SEP 3 makes them."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(8, 20, (count,), generator=generator)
    batch = batch_of(lengths.tolist(), seed)
    batch["input_ids"][:, 0] = 2
    batch["input_ids"][torch.arange(count), lengths - 1] = 3
    return [
        {name: tensor[part] for name, tensor in batch.items()}
        for part in (slice(7), slice(7, None))
    ]


OPTIONS = {"special_tokens": [2, 3], "delimiters": {"sep": [3]}, "bootstrap": 50, "draws": 20}


def test_scores_are_those_of_the_plain_model():
    model, data = bert(), corpus()
    sums = {}
    for batch in data:
        with torch.no_grad():
            attentions = model(**batch, output_attentions=True).attentions
        for layer, attention in enumerate(attentions):
            for weights, mask in zip(attention.double(), batch["attention_mask"], strict=True):
                length = int(mask.sum())
                weights = weights[:, :length, :length]
                entropy = torch.special.entr(weights).sum(-1) / torch.tensor(length).log()
                parts = {
                    "previous_token": weights.diagonal(-1, 1, 2),
                    "next_token": weights.diagonal(1, 1, 2),
                    "delimiter": weights[..., length - 1],
                    "first_token_sink": weights[:, 1:, 0],
                    "broad": entropy,
                    "confident": weights[..., :-1].amax(-1),
                }
                for role, part in parts.items():
                    entry = sums.setdefault((layer, role), [0.0, 0])
                    entry[0] = entry[0] + part.sum(-1)
                    entry[1] += part.shape[-1]
    hk.attach(model)
    table = hk.roles(model, data, **OPTIONS)
    for (layer, role), (total, rows) in sums.items():
        for head in range(4):
            score = table.find(layer, head, role, "sep" if role == "delimiter" else "")
            assert score.rows == rows
            assert score.score == pytest.approx(float(total[head]) / rows, abs=1e-5), role
            assert score.lower <= score.score <= score.upper


def test_a_table_is_ranked_and_survives_json():
    model, data = bert(), corpus()
    hk.attach(model)
    told = []
    table = hk.roles(
        model, data, **OPTIONS, progress=lambda done, total: told.append((done, total))
    )
    assert told == [(1, 2), (2, 2)]
    margins = [s.margin for s in table.heads[0][0] if s.assessed and s.margin is not None]
    assert margins == sorted(margins, reverse=True)
    again = hk.RoleTable.from_json(table.to_json())
    assert again.to_json() == table.to_json()
    assert hk.roles(model, data, **OPTIONS).to_json() == table.to_json()
    assert not table.find(0, 0, "copying").assessed
    assert "unembedding" in table.find(0, 0, "copying").reason


def test_copying_reads_the_embeddings_of_a_language_model():
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**CONFIG)).eval()
    into = model.get_input_embeddings().weight.double()
    out = model.get_output_embeddings().weight.double()
    first = model.model.layers[0].self_attn
    value, output = first.v_proj.weight.double()[:6].T, first.o_proj.weight.double()[:, :6].T
    values = torch.linalg.eigvals(into @ value @ output @ out.T).detach()
    hk.attach(model)
    table = hk.roles(model, corpus(), **OPTIONS)
    expected = float(values.real.sum() / values.abs().sum())
    assert table.find(0, 0, "copying").score == pytest.approx(expected, abs=1e-3)
    assert not table.find(0, 0, "next_token").assessed


def test_removed_heads_are_not_assessed_and_gates_reach_later_layers():
    model, data = bert(), corpus()
    gated = hk.attach(model)
    closed = torch.ones(2, 4)
    closed[0, 1] = 0
    under = hk.roles(model, data, **OPTIONS, gates=closed)
    hk.apply(gated, hk.HeadMask(closed.bool()))
    table = hk.roles(model, data, **OPTIONS)
    assert {score.reason for score in table.heads[0][1] if score.role != "copying"} == {
        "the head was removed"
    }
    for head in range(4):
        assert table.find(1, head, "broad").score == pytest.approx(
            under.find(1, head, "broad").score, abs=1e-6
        )


def test_roles_of_inputs_agree_or_depart():
    model, data = bert(), corpus()
    hk.attach(model)
    dataset = hk.roles(model, data, **OPTIONS)
    tables = hk.input_roles(model, data, dataset, special_tokens=[2, 3], delimiters={"sep": [3]})
    assert len(tables) == 12
    assert all(table.of == "input" and not table.labels(0, 0) for table in tables)
    assert {table.find(0, 0, "broad").agrees for table in tables} <= {True, False}
    with pytest.raises(ValueError, match="roles of a data set"):
        hk.input_roles(model, data, tables[0])


def test_an_interrupt_ends_the_work_and_leaves_the_model_as_it_was():
    model, data = bert(), corpus()
    hk.attach(model)
    model.train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        hk.roles(model, data, **OPTIONS, progress=stop)
    assert model.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_the_picture_shows_labels_and_removed_heads(tmp_path):
    model, data = bert(), corpus()
    gated = hk.attach(model)
    hk.apply(gated, hk.HeadMask(torch.tensor([[True, False, True, True], [True] * 4])))
    table = hk.roles(model, data, **OPTIONS)
    table.plot(tmp_path / "roles.svg")
    assert (tmp_path / "roles.svg").read_text().count("<path") > 8


def test_delimiters_of_a_tokenizer(tmp_path):
    from headkit.head_roles import token_delimiters

    words = tmp_path / "vocab.txt"
    words.write_text(
        "\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", ".", "##,", "$"])
    )
    tokenizer = transformers.BertTokenizer(str(words))
    found = token_delimiters(tokenizer)
    assert found["cls"] == [tokenizer.cls_token_id] and found["sep"] == [tokenizer.sep_token_id]
    texts = tokenizer.convert_ids_to_tokens(found["punctuation"])
    assert sorted(texts) == ["##,", "."]


def test_padding_on_the_left_is_neither_query_nor_key():
    model, batch = bert(), batch_of([7, 7])
    batch["attention_mask"][0, :3] = 0
    with torch.no_grad():
        expected = model(**batch, output_attentions=True).attentions
    hk.attach(model)
    for rows in rows_of(model, [batch]):
        valid = batch["attention_mask"][rows.sample].bool()
        assert torch.equal(rows.query_valid, valid)
        assert torch.equal(rows.key_allowed, valid.expand(1, 7, 7))
        exact = expected[rows.layer][rows.sample]
        torch.testing.assert_close(
            rows.probabilities[:, valid], exact[:, valid], atol=1e-6, rtol=1e-5
        )
    found = hk.roles(model, [batch], **OPTIONS)
    assert found.find(0, 0, "previous_token").rows == 3 + 6
    assert found.find(0, 0, "first_token_sink").rows == 3 + 6


def test_special_tokens_may_be_marked_in_the_data():
    model, data = bert(), corpus()
    hk.attach(model)
    marked = [
        {
            **batch,
            "special_tokens_mask": torch.isin(batch["input_ids"], torch.tensor([2, 3])).long(),
        }
        for batch in data
    ]
    told = hk.roles(model, data, **OPTIONS)
    options = {**OPTIONS, "special_tokens": []}
    found = hk.roles(model, marked, **options)
    for role in ("local", "duplicate_token", "rare_token", "confident"):
        one, other = told.find(0, 1, role), found.find(0, 1, role)
        assert (one.score, one.excluded_mass) == (other.score, other.excluded_mass)
    assert any("No special tokens" in warning for warning in found.warnings)
