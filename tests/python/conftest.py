"""Tiny random transformers models, and the published way to gate heads without headkit."""

import contextlib

import pytest
import torch
import transformers

from .study_data import splits, study  # noqa: F401

LAYERS, HEADS, HEAD_DIM, CLASSES, VOCABULARY = 3, 4, 6, 5, 60


@pytest.fixture(autouse=True)
def _same_draws_in_any_order():
    torch.manual_seed(0)


class TinyModels:
    """Models of the BERT line: 3 layers, 4 heads of width 6, every parameter random."""

    layers, heads, head_dim = LAYERS, HEADS, HEAD_DIM

    def make(self, family, task="", attention="sdpa", seed=0, **options):
        """A model in eval mode; ``task`` as in class names, for example SequenceClassification."""
        width = HEADS * HEAD_DIM
        if family == "DistilBert":
            sizes = {"dim": width, "hidden_dim": 28, "n_layers": LAYERS, "n_heads": HEADS}
        else:
            sizes = {
                "hidden_size": width,
                "intermediate_size": options.pop("intermediate_size", 28),
                "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS,
            }
        if family == "Electra":
            sizes["embedding_size"] = 10
        config = getattr(transformers, f"{family}Config")(
            vocab_size=VOCABULARY,
            max_position_embeddings=40,
            pad_token_id=0,
            num_labels=2 if task == "QuestionAnswering" else CLASSES,
            attn_implementation=attention,
            **sizes,
            **options,
        )
        cls = f"{family}For{task}" if task else f"{family}Model"
        model = getattr(transformers, cls)(config).eval()
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                values = torch.randn(parameter.shape, generator=generator)
                norm = "LayerNorm.weight" in name or "layer_norm.weight" in name
                parameter.copy_(1 + 0.2 * values if norm else 0.3 * values)
        return model

    def inputs(self, batch=3, tokens=7, padding="right", seed=1):
        """input_ids, attention_mask; the first example is full, the others have padding."""
        generator = torch.Generator().manual_seed(seed)
        ids = torch.randint(3, VOCABULARY, (batch, tokens), generator=generator)
        mask = torch.ones_like(ids)
        if padding == "none":
            return {"input_ids": ids}
        for row in range(1, batch):
            cut = row + 1
            if padding == "right":
                mask[row, tokens - cut :] = 0
            else:
                mask[row, :cut] = 0
        return {"input_ids": ids * mask, "attention_mask": mask}

    def layer_list(self, model):
        """The layers of any of the families."""
        base = getattr(model, model.base_model_prefix, model)
        return base.transformer.layer if hasattr(base, "transformer") else base.encoder.layer

    def projections(self, layer):
        """Q, K, V and output projection of a layer."""
        attention = layer.attention
        if hasattr(attention, "q_lin"):
            return attention.q_lin, attention.k_lin, attention.v_lin, attention.out_lin
        inner = attention.self
        return inner.query, inner.key, inner.value, attention.output.dense

    def out_map(self, layer):
        """The last linear map of a layer's feed-forward block."""
        return layer.ffn.lin2 if hasattr(layer, "ffn") else layer.output.dense

    @contextlib.contextmanager
    def oracle(self, model, gates):
        """Gate a plain model: multiply what enters each output projection."""
        handles = []
        for number, layer in enumerate(self.layer_list(model)):
            gate = gates[number] if gates.dim() == 2 else gates[:, number]
            wide = gate.repeat_interleave(HEAD_DIM, -1)
            wide = wide if gate.dim() == 1 else wide[:, None]

            def multiply(module, args, wide=wide):
                return (args[0] * wide.to(args[0].dtype), *args[1:])

            output = self.projections(layer)[3]
            handles.append(output.register_forward_pre_hook(multiply))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tests of tiny models are faster on one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny():
    """The factory of tiny models."""
    return TinyModels()
