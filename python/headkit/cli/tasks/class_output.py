"""Logits of classes, shown."""

from typing import Any

import torch

from headkit.cli.tasks.task import Opened

SHOWN = 3


def right(output: torch.Tensor, tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    """1 where the largest logit is that of the label, float64 [B]."""
    return (output.argmax(-1) == tensors["labels"]).double()


def class_results(opened: Opened, output: torch.Tensor) -> list[dict[str, Any]]:
    """The likeliest classes of each input with their probabilities."""
    names = opened.model.config.id2label
    results = []
    for row in output.float().softmax(-1):
        best = row.topk(min(SHOWN, len(row)))
        classes = [
            {
                "label": int(label),
                "name": str(names.get(int(label), label)),
                "probability": float(p),
            }
            for label, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
        results.append({"label": classes[0]["label"], "classes": classes})
    return results


def class_summary(result: dict[str, Any]) -> str:
    """The likeliest class."""
    best = result["classes"][0]
    return f"{best['name']} ({100 * best['probability']:.0f} %)"
