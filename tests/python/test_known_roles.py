"""Roles of dependencies, partners, patches and frames, against plain models and by hand."""

import copy
import math
import re

import pytest
import torch
import transformers

import headkit as hk
from headkit import assets
from headkit.studies.roles_report import roles_parts

from .cli_models import call, refused, said
from .test_syntax import tiny_tokenizer, treebank

PIECES = ("a", "b", "c", "d", "##x", "e", ".")
QUICK = hk.RoleMeasure(draws=10, bootstrap=50)


def sentences(count):
    """Words of one or two tokens; each but the last depends on some other."""
    generator = torch.Generator().manual_seed(3)

    def below(n):
        return int(torch.randint(n, (1,), generator=generator))

    found = []
    for _ in range(count):
        words = 5 + below(3)
        found.append([])
        for place in range(words):
            head = (place + 1 + below(words - 1)) % words + 1
            last = place + 1 == words
            form = "abcde"[below(5)] + "x" * below(2)
            relation = "root" if last else ("det", "nsubj:pass")[below(2)]
            found[-1].append((form, 0 if last else head, relation))
    return hk.parse_conllu(treebank(*found))


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=12,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
        max_position_embeddings=32,
        initializer_range=0.5,
        attn_implementation="eager",
    )
    return transformers.BertModel(config).eval()


def word_attention(tokens, word_of_token, words):
    """[heads, words, words] by the definition, in float64; special tokens and self out.

    Rows with less than 1e-3 left are -1.
    """
    rows = torch.zeros(tokens.shape[0], words, words, dtype=torch.float64)
    for source in range(words):
        own = [t for t, word in enumerate(word_of_token) if word == source]
        for target in range(words):
            theirs = [t for t, word in enumerate(word_of_token) if word == target]
            if source != target:
                rows[:, source, target] = tokens[:, own][:, :, theirs].double().sum(2).mean(1)
    left = rows.sum(-1, keepdim=True)
    return torch.where(left < 1e-3, -1.0, rows / left)


def test_syntactic_scores_are_those_of_the_plain_model():
    model, tokenizer = bert(), tiny_tokenizer(*PIECES)
    batches, syntax = hk.treebank_batches(sentences(24), tokenizer, batch_size=5)
    before = copy.deepcopy(batches)
    hits = {}
    with torch.no_grad():
        attentions = [
            [layer[row] for layer in model(**batch, output_attentions=True).attentions]
            for batch in batches
            for row in range(len(batch["input_ids"]))
        ]
    for number, each in enumerate(syntax):
        words = len(each.head_of_word)
        for layer, tokens in enumerate(attentions[number]):
            between = word_attention(tokens, each.word_of_token, words)
            for word, head in enumerate(each.head_of_word):
                if head < 0 or number % 2 == 0:
                    continue
                relation = each.relation[word]
                for name in {relation, relation.split(":")[0]}:
                    for way, looked, source in (
                        ("row", between[:, word], word),
                        ("column", between[:, :, word], head),
                    ):
                        hit = (looked.argmax(-1) == head).double()
                        hit[between[:, source, 0] < 0] = math.nan
                        hits.setdefault((layer, f"{name}/{way}"), []).append(hit)
    hk.attach(model)
    table = hk.syntactic_roles(model, batches, syntax, minimum_arcs=1, measure=QUICK)
    assert {variant for _, variant in hits} == {
        score.variant for score in table.heads[0][0] if score.role == "syntactic"
    }
    for (layer, variant), found in hits.items():
        found = torch.stack(found)
        for head in range(4):
            score = table.find(layer, head, "syntactic", variant)
            assert score.dropped_rows == found[:, head].isnan().sum()
            assert score.rows + score.dropped_rows == len(found)
            assert score.score == pytest.approx(float(found[:, head].nanmean()), abs=1e-6)
            assert score.lower <= score.score <= score.upper
    for batch, old in zip(batches, before, strict=True):
        assert all(torch.equal(batch[name], old[name]) for name in old)


def test_batches_padding_and_seeds_do_not_matter():
    model, tokenizer = bert(), tiny_tokenizer(*PIECES)
    hk.attach(model)
    tables = []
    for size in (1, 7):
        batches, syntax = hk.treebank_batches(sentences(12), tokenizer, batch_size=size)
        tables.append(hk.syntactic_roles(model, batches, syntax, minimum_arcs=1, measure=QUICK))
    for layer in range(2):
        for head in range(4):
            for one in tables[0].heads[layer][head]:
                other = tables[1].find(layer, head, one.role, one.variant)
                assert other.score == pytest.approx(one.score, abs=1e-6)


def test_what_does_not_fit_is_refused():
    model, tokenizer = bert(), tiny_tokenizer(*PIECES)
    hk.attach(model)
    batches, syntax = hk.treebank_batches(sentences(4), tokenizer)
    with pytest.raises(ValueError, match="an example for each of 5; found 4"):
        hk.syntactic_roles(model, batches, [*syntax, syntax[0]])
    with pytest.raises(ValueError, match="no more examples than the 3"):
        hk.syntactic_roles(model, batches, syntax[:3])
    with pytest.raises(ValueError, match="tokens of example 0"):
        hk.syntactic_roles(model, batches, [hk.SequenceSyntax([0, 1], [1, -1], ["a", "b"])] * 4)
    with pytest.raises(ValueError, match="fast tokenizer"):
        hk.treebank_batches(sentences(1), object())
    with pytest.raises(ValueError, match="confidence"):
        hk.RoleMeasure(confidence=1)


def test_truncated_sentences_lose_their_last_arcs():
    _, whole = hk.treebank_batches(sentences(3), tiny_tokenizer(*PIECES))
    batches, cut = hk.treebank_batches(sentences(3), tiny_tokenizer(*PIECES), max_length=5)
    assert batches[0]["input_ids"].shape[1] == 5
    for one, other in zip(whole, cut, strict=True):
        arcs = [sum(head >= 0 for head in each.head_of_word) for each in (one, other)]
        assert other.skipped_arcs == arcs[0] - arcs[1] > 0


def test_the_page_names_heads_baselines_and_limits():
    model, tokenizer = bert(), tiny_tokenizer(*PIECES)
    hk.attach(model)
    batches, syntax = hk.treebank_batches(sentences(12), tokenizer)
    table = hk.syntactic_roles(model, batches, syntax, minimum_arcs=1, measure=QUICK)
    parts = roles_parts(table, syntax, "tiny", "a.conllu")
    assert "12 sentences" in parts["setting"] and parts["heads"] == "None."
    assert "| `nsubj` |" in parts["relations"] and "Limisiewicz" in parts["limits"]


def test_the_command_reads_a_treebank_and_fills_a_page(tmp_path):
    folder, bank, page = tmp_path / "model", tmp_path / "a.conllu", tmp_path / "page.md"
    transformers.BertForMaskedLM(bert().config).save_pretrained(folder)
    tiny_tokenizer(*PIECES).save_pretrained(folder)
    bank.write_text(treebank([("a", 2, "det"), ("b", 0, "root")]) * 8)
    names = ("setting", "heads", "relations", "limits")
    page.write_text("".join(f"<!-- results: {name} -->\n<!-- end -->\n" for name in names))
    given = ("roles", "--model", folder, "--task", "embedding")
    result = call(*given, "--conllu", bank, "--page", page, "--limit", 6)
    assert result.exit_code == 0, said(result)
    assert "6 sentences" in page.read_text() and "heads have no label" in said(result)
    refused("--data or --conllu", *given)
    refused("--data or --conllu", *given, "--conllu", bank, "--data", bank)
    refused("--conllu with --page", *given, "--data", bank, "--page", page)


def test_image_roles_are_those_of_the_plain_model():
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        image_size=8,
        patch_size=2,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=16,
        initializer_range=0.2,
        attn_implementation="eager",
    )
    model = transformers.ViTModel(config).eval()
    images = torch.rand(3, 3, 8, 8)
    with torch.no_grad():
        output = model(images, output_attentions=True, output_hidden_states=True)
    places = torch.cartesian_prod(torch.arange(4.0), torch.arange(4.0)).double()
    distance = torch.cdist(places, places) / math.hypot(4, 4)
    same_row = (places[:, None, 0] == places[None, :, 0]).double()
    norms = output.hidden_states[-1].norm(dim=-1)
    largest = norms[:, 1:].argmax(1) + 1  # 1 % of 16 patches: one
    hk.attach(model)
    grid = hk.PatchGrid(rows=4, columns=4, patch_size=2)
    table = hk.image_roles(model, [{"pixel_values": images}], grid, measure=QUICK)
    for layer in range(2):
        rows = output.attentions[layer].double()
        patches = rows[:, :, 1:, 1:]
        near = (patches / patches.sum(-1, keepdim=True) * distance).sum(-1).mean((0, 2))
        others = patches * (1 - torch.eye(16))
        in_row = (others / others.sum(-1, keepdim=True) * same_row).sum(-1).mean((0, 2))
        sink = torch.stack([rows[i, :, 1:, largest[i]].mean(-1) for i in range(3)]).mean(0)
        for head in range(4):
            for role, exact in (
                ("image_local", near),
                ("same_row", in_row),
                ("artefact_sink", sink),
            ):
                score = table.find(layer, head, role)
                assert score.dropped_rows == 0
                assert score.score == pytest.approx(float(exact[head]), abs=1e-5), role
            assert table.find(layer, head, "object").reason == "no masks of the object are given"
    masks = torch.zeros(3, 4, 4, dtype=torch.bool)
    masks[:, 1:3, 1:3] = True
    table = hk.image_roles(model, [{"pixel_values": images}], grid, masks, measure=QUICK)
    assert 0 <= table.find(1, 2, "object").score <= 1
    with pytest.raises(ValueError, match="an example for each of 4; found 3"):
        hk.image_roles(model, [{"pixel_values": images}], grid, masks[[0, 0, 1, 2]])


def test_audio_roles_are_those_of_the_plain_model():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        num_mel_bins=8,
        max_source_positions=20,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        init_std=0.5,
        attn_implementation="eager",
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    batch = {
        "input_features": torch.rand(2, 8, 40),
        "decoder_input_ids": torch.randint(3, 50, (2, 6)),
    }
    nan = float("nan")
    times = [[nan, 0.1, 0.2, 0.15, nan, 0.3], [0.0, 0.1, nan, nan, nan, nan]]
    with torch.no_grad():
        output = model(**batch, output_attentions=True)
    hk.attach(model)
    table = hk.audio_roles(model, [batch], 0.02, times, measure=QUICK)
    frames = torch.arange(20)
    away = (frames[:, None] - frames).abs().double()
    rows = output.encoder_attentions[0].double()
    cumulative = 1 - (rows * away).sum(-1).mean((0, 2)) / 20
    farthest = away.amax(-1)
    diagonal = 1 - ((rows * away).sum(-1) / farthest).mean((0, 2))
    looked = (output.cross_attentions[1].double() * frames * 0.02).sum(-1)[0][:, [1, 2, 3, 5]]
    said_at = torch.tensor([0.1, 0.2, 0.15, 0.3], dtype=torch.float64)
    for head in range(2):
        assert table.find(0, head, "diag_cumulative").score == pytest.approx(
            float(cumulative[head]), abs=1e-5
        )
        assert table.find(0, head, "diag_distance").score == pytest.approx(
            float(diagonal[head]), abs=1e-5
        )
        exact = torch.corrcoef(torch.stack([looked[head], said_at]))[0, 1]
        score = table.find(4, head, "time_alignment")
        assert score.score == pytest.approx(float(exact), abs=1e-5)
        assert score.rows == 4  # the second example has two times only
        assert not table.find(0, head, "time_alignment").assessed


ACYL = ("C", "CC", "CC(C)", "c1ccccc1", "COc1ccc(cc1)", "Fc1ccc(cc1)", "C1CCCCC1", "ClCC")
AMINE = ("C", "CC", "CC(C)C", "c1ccccc1", "Cc1ccccc1", "c1ccc(OC)cc1", "C1CCCCC1")
ATOM = re.compile(r"\[.+\]|Br|Cl|[BCNOSPFIbcnosp]")


def amide_formation(acyl, amine):
    """A reaction, its length up to the product, and for each letter there the one it comes from."""
    reactants, kept = f"{acyl}C(=O)O.N{amine}>>", f"{acyl}C(=O)"
    product = f"{kept}N{amine}"
    origin = {
        len(reactants) + place: place if place < len(kept) else place + len("O.")
        for place in range(len(product))
    }
    return reactants + product, len(reactants), origin


def test_head_5_of_rxnmapper_aligns_atoms_of_product_and_reactants():
    folder = assets.fetch("rxnmapper")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    data, targets, candidates = [], [], []
    for reaction, product, origin in (amide_formation(a, b) for a in ACYL for b in AMINE):
        encoded = tokenizer(reaction, return_offsets_mapping=True, return_tensors="pt")
        spans = encoded.pop("offset_mapping")[0].tolist()
        atoms = [
            token
            for token, (begin, end) in enumerate(spans)
            if end > begin and ATOM.fullmatch(reaction[begin:end])
        ]
        token_at = {spans[token][0]: token for token in atoms}
        candidates.append([token for token in atoms if spans[token][0] < product])
        targets.append([-1] * len(spans))
        for token in set(atoms) - set(candidates[-1]):
            targets[-1][token] = token_at[origin[spans[token][0]]]
        data.append(dict(encoded))
    hk.attach(model)
    table = hk.gold_alignment(model, data, targets, candidates)
    scores = torch.tensor(
        [
            [table.find(layer, head, "gold_alignment").score or 0.0 for head in range(8)]
            for layer in range(12)
        ]
    )
    assert (scores.argmax(1)[6:] == 5).all(), scores
    assert scores[7:11, 5].min() > 0.85, scores
    assert table.labels(9, 5)[0].role == "gold_alignment"
    others = scores.clone()
    others[:, 5] = 0
    assert others.max() < 0.7, scores
