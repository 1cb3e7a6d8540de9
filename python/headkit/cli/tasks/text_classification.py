"""Sentences with classes, by the model's own logits or a probe fitted on the fly."""

from collections.abc import Sequence
from pathlib import Path

import torch

from headkit import _C
from headkit.cli.model_source import ModelSource
from headkit.cli.tasks.class_output import class_results, class_summary, right
from headkit.cli.tasks.labels import check_classes, check_labels, read_label
from headkit.cli.tasks.task import Batch, Example, Opened, Task
from headkit.cli.tasks.text import encode_text, is_text_encoder, labels_of, token_names
from headkit.cli.text_lines import before_tab, read_lines

OWN = "ForSequenceClassification"


class TextClassification(Task):
    """A classifier is scored by its own logits, any other text encoder by a probe."""

    NAME = "text-classification"
    INPUT = "text"
    PROCESSOR = "AutoTokenizer"
    OBJECTIVE = "cross_entropy"
    QUALITY = "accuracy"
    BATCH_SIZE = 32

    def auto_class(self, source: ModelSource) -> str:
        """A classifier, or an encoder that a probe reads."""
        if source.architecture.endswith(OWN):
            return "AutoModelForSequenceClassification"
        return "AutoModel" if is_text_encoder(source) else ""

    def is_default(self, source: ModelSource) -> bool:
        """Only what has a classifier."""
        return source.architecture.endswith(OWN)

    def read(self, path: Path, limit: int | None) -> list[Example]:
        """Lines of ``text<TAB>label``, at least two labels."""
        examples = []
        for number, line in read_lines(path)[:limit]:
            text, label = before_tab(path, number, line, "text<TAB>label")
            examples.append(Example(text, text, read_label(path, number, label)))
        check_labels(path, [example.label for example in examples])
        return examples

    def read_inputs(self, path: Path, limit: int | None) -> list[Example]:
        """Lines of text, some or all with ``<TAB>label``."""
        examples = []
        for _, line in read_lines(path)[:limit]:
            text, tab, label = line.rpartition("\t")
            if tab and text.strip() and label.strip().isascii() and label.strip().isdigit():
                examples.append(Example(text, text, int(label)))
            else:
                examples.append(Example(line, line))
        return examples

    def encode(self, opened: Opened, examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """input_ids, attention_mask, labels."""
        texts = [example.value for example in examples]
        return {**encode_text(opened, texts), **labels_of(examples)}

    def headed(self, opened: Opened, batches: Sequence[Batch]) -> tuple[_C.GatedModel, str]:
        """The model with its classifier, or with a probe."""
        if _classifies(opened):
            labels = [int(label) for batch in batches for label in batch.tensors["labels"]]
            check_classes(labels, opened.model.config.num_labels)
            return opened.gated, "the model's own logits"
        weight, bias = _probe(opened.gated, [batch.tensors for batch in batches])
        return _C.with_sentence_probe(opened.gated, weight, bias), "a probe fitted on the data"

    def running(self, opened: Opened) -> _C.GatedModel:
        """The model, if it has a classifier."""
        if not _classifies(opened):
            raise ValueError(
                "[run] expected a model with a classifier for text-classification; found "
                f"{type(opened.model).__name__} (--task embedding runs it)"
            )
        return opened.gated

    def tally(self, output, tensors, dense):
        """1 where the class is right."""
        return right(output, tensors)

    def results(self, opened, output, tensors):
        """The likeliest classes."""
        return class_results(opened, output)

    def summary(self, result):
        """The likeliest class."""
        return class_summary(result)

    def units(self, opened, tensors, tokens):
        """Tokens."""
        return token_names(opened, tensors)


def _classifies(opened: Opened) -> bool:
    return type(opened.model).__name__.endswith(OWN)


@torch.no_grad()
def _probe(
    gated: _C.GatedModel, batches: Sequence[dict[str, torch.Tensor]]
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
