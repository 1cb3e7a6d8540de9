"""When each token of a transcript was said, by what the model loses without a part of the sound.

No attention is read, so that heads can be judged by these times: parts of the encoder's output are
taken away one by one, and the transcript is laid along them in order.
"""

import math
from typing import Any

import torch

FRAME_SECONDS = 0.02
LEAST_SECONDS, MOST_PARTS = 0.4, 24


@torch.no_grad()
def losses_without(
    model: torch.nn.Module,
    encoded: torch.Tensor,
    decoder_input_ids: torch.Tensor,
    labels: torch.Tensor,
    frames: int,
) -> torch.Tensor:
    """What each token loses in log probability where a part of the sound is taken away.

    Args:
        model: Whisper of transformers, not gated.
        encoded: output of its encoder for one recording, [S, D].
        decoder_input_ids: what the decoder reads, int64 [T].
        labels: what it should say, int64 [T].
        frames: of the encoder, in a part.

    Returns:
        torch.Tensor: float64 [T, S // frames]: with all parts minus without one.

    Raises:
        ValueError: for a recording of fewer than two parts.
    """
    parts = encoded.shape[0] // frames
    if frames < 1 or parts < 2:
        raise ValueError(
            f"[forced_alignment] expected at least two parts of {frames} frames; found "
            f"{encoded.shape[0]} frames"
        )
    whole = encoded[: parts * frames]
    places = torch.arange(parts * frames).expand(parts, -1)
    kept = places[places // frames != torch.arange(parts)[:, None]].view(parts, -1)
    said = _log_probabilities(model, whole[None], decoder_input_ids, labels)
    return (said - _log_probabilities(model, whole[kept], decoder_input_ids, labels)).T


def _log_probabilities(
    model: torch.nn.Module, encoded: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Of every label, float64 [B, T]."""
    output: Any = model(
        encoder_outputs=(encoded,),
        decoder_input_ids=ids.expand(len(encoded), -1),
        use_cache=False,
    )
    chosen = labels.expand(len(encoded), -1)[:, :, None]
    return output.logits.double().log_softmax(-1).gather(2, chosen)[:, :, 0]


def in_order(gains: torch.Tensor) -> torch.Tensor:
    """The part of each token: the largest sum of gains such that parts do not go back.

    Args:
        gains: [T, parts]; -inf = not possible.

    Returns:
        torch.Tensor: int64 [T], ascending; of equal sums the one with the earlier parts.

    Example:
        >>> in_order(torch.tensor([[1.0, 0.0, 2.0], [5.0, 0.0, 1.0], [0.0, 4.0, 3.0]])).tolist()
        [0, 0, 1]
    """
    best, came = gains[0].double(), []
    for row in gains[1:]:
        highest, where = best.cummax(0)
        # cummax names the last of equal ones.
        first = torch.searchsorted(highest, highest)
        came.append(torch.minimum(where, first))
        best = highest + row
    part = int(best.argmax())
    path = [part]
    for where in reversed(came):
        part = int(where[part])
        path.append(part)
    return torch.tensor(path[::-1])


def token_times(
    model: torch.nn.Module,
    encoded: torch.Tensor,
    decoder_input_ids: torch.Tensor,
    labels: torch.Tensor,
    seconds: float,
    special_from: int,
    part_seconds: float | None = None,
) -> list[float]:
    """Seconds at which the labels of one recording were said.

    Args:
        model, decoder_input_ids, labels: as for ``losses_without``.
        encoded: as there; what lies behind the sound is not looked at.
        seconds: of the recording.
        special_from: labels from this one on are no text.
        part_seconds: of the parts that are taken away; None = 0.4, in long recordings more, so that
            there are 24 of them.

    Returns:
        list[float]: the middle of the part of each label; NaN where it is no text.

    Raises:
        ValueError: for a recording shorter than two parts, or without text.
    """
    length = max(LEAST_SECONDS, seconds / MOST_PARTS) if part_seconds is None else part_seconds
    frames = math.ceil(length / FRAME_SECONDS - 1e-6)
    heard = frames * max(1, math.ceil(seconds / FRAME_SECONDS / frames))
    gains = losses_without(model, encoded[:heard], decoder_input_ids, labels, frames)
    text = (labels < special_from).nonzero()[:, 0]
    if len(text) == 0:
        raise ValueError("[forced_alignment] expected a transcript with text; found none")
    times = [math.nan] * len(labels)
    for place, part in zip(text.tolist(), in_order(gains[text]).tolist(), strict=True):
        times[place] = (part + 0.5) * frames * FRAME_SECONDS
    return times
