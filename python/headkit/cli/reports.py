"""The report of one input, or of two that are compared."""

from typing import Any

from headkit.cli.inputs import Prepared
from headkit.cli.job import Show
from headkit.cli.records import encode_one
from headkit.explaining import Explanation, explain

METRICS = {"embedding": "cosine_to_dense"}


def explain_inputs(prepared: Prepared, show: Show) -> Explanation:
    """Explain every input that was given, each by itself.

    Raises:
        ValueError: if policy, model and input do not fit.
    """
    task, opened = prepared.task, prepared.opened
    model = task.running(opened)
    tokenizer = opened.processor if task.INPUT == "text" else None
    name = getattr(opened.model.config, "_name_or_path", "") or opened.source.architecture
    found: list[Explanation] = []
    for example in prepared.examples:
        found.append(
            explain(
                model,
                encode_one(prepared, example),
                prepared.policy,
                tokenizer=tokenizer,
                metric=METRICS.get(task.NAME),
                about={"model": {"name": str(name).rstrip("/").rpartition("/")[2]}},
                names=_names(opened.model.config, tokenizer),
                progress=show,
            )
        )
    joined = found[0]
    for one in found[1:]:
        joined = joined + one
    return joined


def _names(config: Any, tokenizer: Any) -> dict[int, str]:
    """Of classes; of tokens where the model writes text."""
    if getattr(config, "problem_type", None) or "Classification" in str(config.architectures):
        return {int(number): name for number, name in (config.id2label or {}).items()}
    return {}
