"""Text that one pass of an encoder reads whole."""

from collections.abc import Sequence

import torch

from headkit.cli.model_source import ModelSource
from headkit.cli.tasks.task import Example, Opened

MAX_TOKENS = 256


def is_text_encoder(source: ModelSource) -> bool:
    """Whether hidden states of the model are those of the words of a text."""
    from transformers.models.auto import modeling_auto as known

    kind = source.config.model_type
    return (
        kind in known.MODEL_FOR_MASKED_LM_MAPPING_NAMES
        and kind not in known.MODEL_FOR_CTC_MAPPING_NAMES
        and not source.config.is_encoder_decoder
    )


def encode_text(opened: Opened, texts: Sequence[str]) -> dict[str, torch.Tensor]:
    """input_ids and attention_mask, padded, cut where the model ends."""
    places = getattr(opened.model.config, "max_position_embeddings", None) or MAX_TOKENS + 2
    encoded = opened.processor(
        list(texts),
        padding=opened.processor.pad_token is not None,
        truncation=True,
        max_length=min(MAX_TOKENS, places - 2),
        return_tensors="pt",
    )
    return {key: encoded[key] for key in ("input_ids", "attention_mask")}


def token_names(opened: Opened, tensors: dict[str, torch.Tensor]) -> list[str]:
    """The tokens of one text, as they are read."""
    return [opened.processor.decode([token]) for token in tensors["input_ids"][0].tolist()]


def labels_of(examples: Sequence[Example]) -> dict[str, torch.Tensor]:
    """``labels`` [B], if every example has one."""
    if any(example.label is None for example in examples):
        return {}
    return {"labels": torch.tensor([example.label for example in examples])}
