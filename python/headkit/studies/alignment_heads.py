"""Whisper's published alignment heads as a known answer: which heads look where a word is said?"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from headkit.studies.forced_alignment import FRAME_SECONDS


def alignment_scores(
    attention: torch.Tensor, times: Sequence[float], seconds: float
) -> torch.Tensor:
    """Correlation of the mean time that tokens look at with the time at which they were said.

    Rows are normalised over the frames of the sound: heads leave what they do not need on the
    silence behind it, which would move every mean.

    Args:
        attention: weights of decoder tokens over frames, [heads, T, S].
        times: seconds at which the label of each token was said; NaN = not known.
        seconds: of the sound.

    Returns:
        torch.Tensor: float64 [heads]; 0 where the mean time does not change.

    Raises:
        ValueError: for other numbers of tokens and times, or fewer than three known times.
    """
    rows, said = _known_rows(attention, times, seconds)
    looked = (rows * torch.arange(rows.shape[-1]) * FRAME_SECONDS).sum(-1)
    looked, said = looked - looked.mean(-1, keepdim=True), said - said.mean()
    norms = looked.norm(dim=-1) * said.norm()
    return torch.where(norms > 1e-12, (looked * said).sum(-1) / norms.clamp_min(1e-12), 0.0)


def alignment_focus(
    attention: torch.Tensor, times: Sequence[float], seconds: float, within: float = 0.4
) -> torch.Tensor:
    """Mean share of the attention to the sound that is near the time at which a token was said.

    Args:
        attention: as for ``alignment_scores``, and so are ``times`` and ``seconds``.
        within: seconds from the middle of a frame; by default a part of the forced alignment.

    Returns:
        torch.Tensor: float64 [heads], 0 to 1.

    Raises:
        ValueError: as ``alignment_scores``.
    """
    rows, said = _known_rows(attention, times, seconds)
    middles = (torch.arange(rows.shape[-1]) + 0.5) * FRAME_SECONDS
    near = (middles - said[:, None]).abs() <= within
    return (rows * near).sum(-1).mean(-1)


def _known_rows(
    attention: torch.Tensor, times: Sequence[float], seconds: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of the tokens whose time is known, over the sound, and these times."""
    if attention.shape[1] != len(times):
        raise ValueError(
            f"[alignment] expected a time for each of {attention.shape[1]} tokens; found "
            f"{len(times)}"
        )
    known = [place for place, time in enumerate(times) if not math.isnan(time)]
    if len(known) < 3:
        raise ValueError(f"[alignment] expected at least 3 known times; found {len(known)}")
    frames = max(1, math.ceil(seconds / FRAME_SECONDS))
    rows = attention[:, known, :frames].double()
    rows = rows / rows.sum(-1, keepdim=True).clamp_min(torch.finfo(torch.float64).tiny)
    return rows, torch.tensor([times[place] for place in known], dtype=torch.float64)


@torch.no_grad()
def cross_attention(
    model: torch.nn.Module, encoded: torch.Tensor, decoder_input_ids: torch.Tensor
) -> torch.Tensor:
    """Weights of one recording, [layers, heads, T, S], by the model's own code.

    Args:
        model: Whisper of transformers, not attached.
        encoded: output of its encoder, [S, D].
        decoder_input_ids: what the decoder reads, int64 [T].
    """
    with _eager(model):
        output = model(
            encoder_outputs=(encoded[None],),
            decoder_input_ids=decoder_input_ids[None],
            output_attentions=True,
            use_cache=False,
        )
    return torch.cat(output.cross_attentions)


@contextmanager
def _eager(model: torch.nn.Module) -> Iterator[None]:
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def published_heads(model: torch.nn.Module) -> torch.Tensor:
    """The heads that the model's authors name, bool [layers, heads] of the decoder.

    Raises:
        ValueError: if they name none.
    """
    named = getattr(model.generation_config, "alignment_heads", None)
    if not named:
        raise ValueError("[alignment] expected a model with alignment_heads; found none")
    heads = torch.zeros(
        model.config.decoder_layers, model.config.decoder_attention_heads, dtype=torch.bool
    )
    for layer, head in named:
        heads[layer, head] = True
    return heads


def average_precision(scores: torch.Tensor, relevant: torch.Tensor) -> float:
    """Mean, over the relevant ones, of the precision down to each in the order of the scores.

    Args:
        scores: larger = earlier; of equal ones the first comes first.
        relevant: bool, of the same shape.

    Raises:
        ValueError: for other shapes, or if nothing is relevant.

    Example:
        >>> average_precision(torch.tensor([0.9, 0.8, 0.7]), torch.tensor([True, False, True]))
        0.8333333333333333
    """
    if scores.shape != relevant.shape or not bool(relevant.any()):
        raise ValueError(
            f"[average_precision] expected something relevant among {list(scores.shape)} scores; "
            f"found {int(relevant.sum())} of shape {list(relevant.shape)}"
        )
    order = scores.flatten().argsort(descending=True, stable=True)
    hits = relevant.flatten()[order].double()
    precision = hits.cumsum(0) / torch.arange(1, len(hits) + 1)
    return float((precision * hits).sum() / hits.sum())


def precision_interval(
    scores: torch.Tensor, tokens: torch.Tensor, relevant: torch.Tensor, draws: int = 1000
) -> tuple[float, float, float]:
    """Average precision of the mean scores, and its 95 % interval over recordings.

    Args:
        scores: of each recording, float64 [N, layers, heads].
        tokens: of each recording, its weight, [N].
        relevant: bool [layers, heads].
        draws: resamples, by seed 0.

    Returns:
        tuple: value, lower and upper bound.
    """
    generator = torch.Generator().manual_seed(0)
    weight = tokens.double()

    def of(places: torch.Tensor) -> float:
        mean = (scores[places] * weight[places, None, None]).sum(0) / weight[places].sum()
        return average_precision(mean, relevant)

    count = len(scores)
    drawn = torch.tensor(
        [of(torch.randint(count, (count,), generator=generator)) for _ in range(draws)],
        dtype=torch.float64,
    )
    ends = torch.tensor([0.025, 0.975], dtype=torch.float64)
    lower, upper = drawn.quantile(ends).tolist()
    return of(torch.arange(count)), lower, upper
