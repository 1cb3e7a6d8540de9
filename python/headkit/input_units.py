"""What the tokens of an input show: words, patches of a picture, frames of a recording."""

import base64
import math
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import torch

RATE = 16_000  # samples a second of recordings
PICTURES = ("pixel_values", "input_features", "input_values")


def units_of(
    batch: Mapping[str, torch.Tensor], example: int, tokens: int, tokenizer: Any = None
) -> list[dict[str, Any]]:
    """The units of one example, as a decision record tells them.

    Args:
        batch: name -> tensor.
        example: its row.
        tokens: positions of the first block that the record counts.
        tokenizer: of transformers; None = nothing raw is told, only what is special or padding.

    Returns:
        list of dict: ``text``, ``grid`` or ``seconds``, ``special``, ``padding``.
    """
    if "input_ids" in batch and "input_features" not in batch:
        return _words(batch, example, tokenizer)
    if "pixel_values" in batch:
        return _patches(tokens)
    if "input_values" in batch or "input_features" in batch:
        hop = _seconds(batch, example) / max(1, tokens)
        return [_unit(seconds=round(place * hop, 4)) for place in range(tokens)]
    return [_unit() for _ in range(tokens)]


def _unit(**known: Any) -> dict[str, Any]:
    return {"text": None, "grid": None, "seconds": None, "special": False, "padding": False} | known


def _words(batch: Mapping[str, torch.Tensor], example: int, tokenizer: Any) -> list[dict[str, Any]]:
    ids = batch["input_ids"][example].tolist()
    mask = batch.get("attention_mask")
    valid = [True] * len(ids) if mask is None else mask[example].bool().tolist()
    special = set(getattr(tokenizer, "all_special_ids", ()))
    given = batch.get("special_tokens_mask")
    return [
        _unit(
            text=None if tokenizer is None else tokenizer.decode([token]),
            special=token in special if given is None else bool(given[example, place]),
            padding=not valid[place],
        )
        for place, token in enumerate(ids)
    ]


def _patches(tokens: int) -> list[dict[str, Any]]:
    side = math.isqrt(tokens)
    extra = tokens - side * side
    units = [_unit(special=True) for _ in range(extra)]
    return units + [_unit(grid=[row, column]) for row in range(side) for column in range(side)]


def _seconds(batch: Mapping[str, torch.Tensor], example: int) -> float:
    if "input_values" in batch:
        mask = batch.get("attention_mask")
        samples = batch["input_values"].shape[-1] if mask is None else int(mask[example].sum())
        return samples / RATE
    return batch["input_features"].shape[-1] / 100.0


def sink_keys(units: list[list[dict[str, Any]]]) -> tuple[torch.Tensor, str]:
    """Keys whose mass is split off: special tokens, or the first one where there are none.

    Returns:
        tuple: bool [batch, tokens], and what they are in words.
    """
    sinks = torch.zeros(len(units), max(map(len, units), default=0), dtype=torch.bool)
    any_special = any(unit["special"] and not unit["padding"] for one in units for unit in one)
    for row, one in enumerate(units):
        for place, unit in enumerate(one):
            if unit["padding"]:
                continue
            if not any_special:
                sinks[row, place] = True
                break
            sinks[row, place] = unit["special"]
    return sinks, "special tokens" if any_special else "the first token"


def picture_of(batch: Mapping[str, torch.Tensor], example: int) -> str:
    """What lies behind the units of an example, as the data URI of a PNG; empty for text."""
    if "pixel_values" in batch:
        pixels = batch["pixel_values"][example].float()
        if pixels.dim() == 3 and pixels.shape[0] in (1, 3):
            low, high = pixels.amin((1, 2), keepdim=True), pixels.amax((1, 2), keepdim=True)
            scaled = (pixels - low) / (high - low).clamp_min(1e-6)
            return _png(scaled.expand(3, -1, -1).permute(1, 2, 0))
        return ""
    if "input_features" in batch:
        return _png(_grey(batch["input_features"][example].float().flip(0)))
    if "input_values" in batch:
        wave = batch["input_values"][example].float()
        window = torch.hann_window(400)
        spectrum = torch.stft(wave, 400, 160, window=window, return_complex=True).abs()
        return _png(_grey((spectrum + 1e-5).log().flip(0)))
    return ""


def _grey(values: torch.Tensor) -> torch.Tensor:
    low, high = values.amin(), values.amax()
    return ((values - low) / (high - low).clamp_min(1e-6))[..., None].expand(-1, -1, 3)


def _png(picture: torch.Tensor) -> str:
    """A picture [rows, columns, 3] of numbers 0 to 1 as a data URI."""
    rows, columns, _ = picture.shape
    pixels = (255 * picture).round().clamp(0, 255).to(torch.uint8)
    lines = torch.cat([torch.zeros(rows, 1, dtype=torch.uint8), pixels.reshape(rows, -1)], 1)

    def chunk(kind: bytes, content: bytes) -> bytes:
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 2, 0, 0, 0)
    data = zlib.compress(lines.numpy().tobytes(), 9)
    file = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data)
    file += chunk(b"IEND", b"")
    return "data:image/png;base64," + base64.b64encode(file).decode()
