"""Forced alignment, alignment of heads in time, and Whisper's published heads as a known answer."""

import itertools
import math

import pytest
import sklearn.metrics
import torch
import transformers

import headkit as hk
from headkit import assets
from headkit.studies import Results
from headkit.studies.alignment_heads import (
    alignment_focus,
    alignment_scores,
    average_precision,
    cross_attention,
    precision_interval,
    published_heads,
)
from headkit.studies.forced_alignment import in_order, losses_without, token_times
from headkit.studies.speech_domain import Speech

NAN = math.nan


class Hears(torch.nn.Module):
    """Says token t as loudly as feature t of the frames that it is given sounds in all."""

    def forward(self, encoder_outputs, decoder_input_ids, use_cache):
        (encoded,) = encoder_outputs
        logits = encoded.sum(1)[:, None].expand(-1, decoder_input_ids.shape[1], -1)
        return type("Output", (), {"logits": logits})


def test_tokens_are_found_where_they_were_put():
    encoded = torch.zeros(100, 7)
    for token, frame in enumerate([5, 27, 33, 71, 88]):
        encoded[frame, token + 1] = 4.0
    labels = torch.tensor([1, 2, 3, 4, 5, 6])
    gains = losses_without(Hears(), encoded, labels, labels, 10)
    assert gains.shape == (6, 10)
    assert gains[:5].argmax(1).tolist() == [0, 2, 3, 7, 8]
    # Two seconds are all 100 frames; labels from 6 on are no text.
    times = token_times(Hears(), encoded, labels, labels, 2.0, 6, 0.2)
    assert times[:5] == pytest.approx([0.1, 0.5, 0.7, 1.5, 1.7]) and math.isnan(times[5])
    with pytest.raises(ValueError, match=r"at least two parts of 80 frames; found 100 frames"):
        losses_without(Hears(), encoded, labels, labels, 80)
    with pytest.raises(ValueError, match="a transcript with text"):
        token_times(Hears(), encoded, labels, labels, 2.0, 0, 0.2)


def test_the_order_of_parts_is_the_best_of_all():
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        gains = torch.randn(4, 5, generator=generator, dtype=torch.float64)
        paths = itertools.combinations_with_replacement(range(5), 4)
        best = max(paths, key=lambda path: sum(gains[t, p] for t, p in enumerate(path)))
        assert in_order(gains).tolist() == list(best)
    assert in_order(torch.zeros(3, 4)).tolist() == [0, 0, 0]


def test_alignment_is_the_correlation_over_the_frames_of_the_sound():
    generator = torch.Generator().manual_seed(0)
    rows = torch.rand(2, 5, 60, generator=generator, dtype=torch.float64)
    times = [NAN, 0.1, 0.5, 0.4, 0.9]
    found = alignment_scores(rows, times, seconds=0.8)
    cut = rows[:, 1:, :40] / rows[:, 1:, :40].sum(-1, keepdim=True)
    looked = (cut * torch.arange(40)).sum(-1)
    for head in range(2):
        said = torch.tensor(times[1:], dtype=torch.float64)
        exact = torch.corrcoef(torch.stack([looked[head], said]))[0, 1]
        assert float(found[head]) == pytest.approx(float(exact))
    # What a head leaves on the silence behind the sound changes nothing.
    for share in (0.1, 0.5, 0.9):
        parked = rows * (1 - share)
        parked[:, :, 50] += share * rows.sum(-1)
        torch.testing.assert_close(alignment_scores(parked, times, 0.8), found)
    assert alignment_scores(torch.ones(1, 5, 60), times, 0.8).tolist() == [0.0]
    with pytest.raises(ValueError, match="a time for each of 5 tokens; found 2"):
        alignment_scores(rows, times[:2], 1.0)
    with pytest.raises(ValueError, match="at least 3 known times; found 2"):
        alignment_scores(rows, [NAN, NAN, NAN, 0.1, 0.2], 1.0)


def test_focus_is_the_share_near_the_time():
    rows = torch.zeros(2, 4, 100, dtype=torch.float64)
    times = [0.5, NAN, 1.0, 0.2]
    rows[0, :, 99] = 1.0  # only looks at the end of a sound of 2 s
    for token, frame in ((0, 24), (2, 49), (3, 9)):
        rows[1, token, frame], rows[1, token, 90] = 3.0, 1.0
    assert alignment_focus(rows, times, 2.0).tolist() == [0.0, 0.75]
    assert alignment_focus(rows, times, 2.0, within=2.0).tolist() == [1.0, 1.0]
    # Of the sound alone: what follows it does not count.
    assert alignment_focus(rows, times, 1.5).tolist() == [0.0, 1.0]


def test_average_precision_is_that_of_scikit_learn():
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        scores = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        relevant = torch.rand(4, 6, generator=generator) < 0.3
        relevant[0, 0] = True
        expected = sklearn.metrics.average_precision_score(relevant.flatten(), scores.flatten())
        assert average_precision(scores, relevant) == pytest.approx(expected)
    several = torch.randn(7, 4, 6, generator=generator, dtype=torch.float64)
    value, lower, upper = precision_interval(several, torch.ones(7), relevant, 50)
    assert 0 < lower < upper <= 1 and value == average_precision(several.mean(0), relevant)
    with pytest.raises(ValueError, match="something relevant"):
        average_precision(scores, torch.zeros(4, 6, dtype=torch.bool))


def tiny_whisper():
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        vocab_size=50, d_model=16, encoder_layers=1, decoder_layers=2, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32, num_mel_bins=8,
        max_source_positions=20, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1, init_std=0.5,
    )  # fmt: skip
    return transformers.WhisperForConditionalGeneration(config).eval()


def test_cross_attention_is_what_headkit_shows():
    model = tiny_whisper()
    batch = {
        "input_features": torch.rand(1, 8, 40),
        "decoder_input_ids": torch.randint(3, 50, (1, 6)),
    }
    with torch.no_grad():
        encoded = model.model.encoder(batch["input_features"]).last_hidden_state[0]
    before = model.config._attn_implementation
    rows = cross_attention(model, encoded, batch["decoder_input_ids"][0])
    assert model.config._attn_implementation == before
    hk.attach(model)
    shown = []
    hk.for_each_attention(
        model, [batch], lambda each: each.cross and shown.append(each.probabilities.clone())
    )
    torch.testing.assert_close(rows, torch.stack(shown), atol=1e-5, rtol=1e-4)


def test_published_heads():
    model = tiny_whisper()
    with pytest.raises(ValueError, match="a model with alignment_heads"):
        published_heads(model)
    model.generation_config.alignment_heads = [[1, 0], [0, 1]]
    assert published_heads(model).tolist() == [[False, True], [True, False]]


def test_whispers_published_heads_follow_the_sound(tmp_path, monkeypatch):
    """Chance is 8 of 24; which heads follow the sound is told by word times without attention."""
    recordings = sorted(assets.recordings(), key=lambda each: len(each.samples))[:2]
    domain = Speech(Results(tmp_path), 0, lambda *told: None)
    monkeypatch.setattr(Speech, "_recordings", {"test": recordings})
    found = domain.alignment()
    assert found["chance"] == pytest.approx(8 / 24) and found["recordings"] == 2
    correlation = found["measures"]["correlation"]
    assert correlation["average_precision"] > 0.5
    scores = torch.tensor(correlation["scores"])
    assert scores[tuple(torch.tensor(found["published"]).T)].min() > 0.9
    assert scores.flatten().sort().values[:8].max() < 0.9
