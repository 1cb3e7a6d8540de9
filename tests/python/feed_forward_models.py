"""Tiny models of every family whose feed-forward blocks headkit knows."""

import torch
import transformers

from .families import randomise

LAYERS, HEADS, WIDTH, NEURONS = 3, 4, 24, 70
BLOCKS = 3  # the last one has 6 neurons
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
TEXT = {"vocab_size": 60, "max_position_embeddings": 40}
BERT = ("encoder.layer.{}.attention.output.dense", "encoder.layer.{}.output.dense")
SPEECH = ("encoder.layers.{}.attention.out_proj", "encoder.layers.{}.feed_forward.output_dense")
VISION = ("layers.{}.attention.o_proj", "layers.{}.mlp.fc2")
# Paths of the last projections of each layer's attention and feed-forward block, below the model.
ENDS = {
    "Bert": BERT,
    "Roberta": BERT,
    "XLMRoberta": BERT,
    "Electra": BERT,
    "Albert": (
        "encoder.albert_layer_groups.0.albert_layers.0.attention.dense",
        "encoder.albert_layer_groups.0.albert_layers.0.ffn_output",
    ),
    "DistilBert": ("transformer.layer.{}.attention.out_lin", "transformer.layer.{}.ffn.lin2"),
    "ViT": VISION,
    "DeiT": VISION,
    "Hubert": SPEECH,
    "Wav2Vec2": SPEECH,
    "GPT2": ("h.{}.attn.c_proj", "h.{}.mlp.c_proj"),
    "Llama": ("layers.{}.self_attn.o_proj", "layers.{}.mlp.down_proj"),
    "Qwen3": ("layers.{}.self_attn.o_proj", "layers.{}.mlp.down_proj"),
}
OUT = {family: paths[1] for family, paths in ENDS.items()}
# What transformers calls the sizes elsewhere.
NAMES = {
    "DistilBert": {
        "hidden_size": "dim",
        "intermediate_size": "hidden_dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
    },
    "GPT2": {
        "hidden_size": "n_embd",
        "intermediate_size": "n_inner",
        "num_hidden_layers": "n_layer",
        "num_attention_heads": "n_head",
        "max_position_embeddings": "n_positions",
    },
}


def make(family, **options):
    """A tiny model in evaluation mode, every parameter random."""
    sizes = dict(SIZES)
    if family in ("ViT", "DeiT"):
        sizes |= {"image_size": 8, "patch_size": 4}
    elif family in ("Hubert", "Wav2Vec2"):
        sizes |= {"conv_dim": (8, 8), "conv_kernel": (4, 3), "conv_stride": (2, 2)}
        sizes |= {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
        sizes |= {"feat_proj_dropout": 0.0, "apply_spec_augment": False, "layerdrop": 0.0}
        sizes |= {"num_feat_extract_layers": 2}
    else:
        sizes |= TEXT
    if family == "Albert":
        sizes |= {"embedding_size": 10}
    if family in ("Llama", "Qwen3"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 6, "use_cache": False}
    if family == "GPT2":
        sizes |= {"use_cache": False, "bos_token_id": 1, "eos_token_id": 2}
    names = NAMES.get(family, {})
    sizes = {names.get(name, name): value for name, value in (sizes | options).items()}
    config = getattr(transformers, f"{family}Config")(**sizes)
    model = getattr(transformers, f"{family}Model")(config).eval()
    randomise(model, 0, 0.3)
    return model


def inputs_of(family, batch=3):
    """Keyword arguments of one call; texts of which all but the first are padded."""
    generator = torch.Generator().manual_seed(1)
    if family in ("ViT", "DeiT"):
        return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=generator)}
    if family in ("Hubert", "Wav2Vec2"):
        return {"input_values": torch.randn(batch, 60, generator=generator)}
    ids = torch.randint(3, 60, (batch, 7), generator=generator)
    mask = torch.ones_like(ids)
    mask[1:, 5:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def output(model, inputs):
    """Hidden states of a call, without the positions of padding."""
    hidden = model(**inputs).last_hidden_state
    mask = inputs.get("attention_mask")
    return hidden if mask is None else hidden[mask.bool()]
