"""One tiny random model of every family, and the published way to gate its heads.

A family is one entry of ``FAMILIES``; ``test_families.py`` runs every test on every entry.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn

from .hand_built import TimmVisionTransformer, TorchClassifier, TorchTranslator, VisionTransformer
from .tiny_sizes import CLASSES, HEAD_DIM, HEADS, LAYERS, NEURONS, TOKENS, VOCABULARY, WIDTH


@dataclass(frozen=True)
class Family:
    """One family.

    Attributes:
        build: attention implementation -> a model with a task head; its parameters are overwritten.
        inputs: batch size, padding -> keyword arguments of one call.
        outputs: paths of the output projections of all attention blocks, in the order in which they
            run. Blocks that share a module name it several times.
        paddings: kinds of padding that ``inputs`` makes.
        attentions: attention implementations that ``build`` takes.
        square_masks: whether the model takes masks [B, 1, T, T].
        checkpointing: whether the model can recompute activations.
        plain_refusal: what ``detach`` says of a pruned model; "" = it detaches.
        transformers: whether it is a model of transformers, with its outputs and folders.
        gradient_tolerance: of gradients in float64; larger for models that compute in float32.
        spread: standard deviation of its weights.
    """

    build: Callable[[str], nn.Module]
    inputs: Callable[[int, str], dict[str, torch.Tensor]]
    outputs: tuple[str, ...]
    paddings: tuple[str, ...] = ("none", "right", "left")
    attentions: tuple[str, ...] = ("sdpa", "eager")
    square_masks: bool = True
    checkpointing: bool = True
    plain_refusal: str = ""
    transformers: bool = True
    gradient_tolerance: float = 1e-10
    spread: float = 0.3

    @property
    def blocks(self) -> int:
        """Attention blocks of the model, L."""
        return len(self.outputs)

    def make(self, attention: str | None = None, seed: int = 0) -> nn.Module:
        """A model in evaluation mode, every parameter random."""
        model = self.build(attention or self.attentions[0]).eval()
        randomise(model, seed, self.spread)
        return model

    def gates(self, batch: int | None = None, *, soft: bool = False, seed: int = 0) -> torch.Tensor:
        """Random gates [L, H] or [B, L, H]; block 1 has no open head (of sample 0)."""
        generator = torch.Generator().manual_seed(seed)
        shape = (self.blocks, HEADS) if batch is None else (batch, self.blocks, HEADS)
        gates = (torch.rand(shape, generator=generator) < 0.6).float()
        gates[(1,) if batch is None else (0, 1)] = 0
        return gates * (torch.rand(shape, generator=generator) + 0.25) if soft else gates

    @contextlib.contextmanager
    def oracle(self, model: nn.Module, gates: torch.Tensor) -> Iterator[None]:
        """Gate a plain model: multiply what enters each output projection."""
        blocks_of: dict[str, list[int]] = {}
        for number, path in enumerate(self.outputs):
            blocks_of.setdefault(path, []).append(number)
        handles = []
        # Torch's layers must not take their fused path around the blocks.
        fused = torch.backends.mha.get_fastpath_enabled()
        torch.backends.mha.set_fastpath_enabled(False)
        for path, blocks in blocks_of.items():
            owner = model.get_submodule(path.rpartition(".")[0])
            if isinstance(owner, nn.MultiheadAttention):
                handles.append(GatedReference(owner, gates[..., blocks[0], :]))
            else:
                hook = _multiply(gates, blocks)
                handles.append(model.get_submodule(path).register_forward_pre_hook(hook))
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fused)
            for handle in handles:
                handle.remove()


def _multiply(gates: torch.Tensor, blocks: list[int]) -> Callable:
    calls = [0]

    def hook(module, args):
        block = blocks[calls[0] % len(blocks)]
        calls[0] += 1
        wide = gates[..., block, :].repeat_interleave(HEAD_DIM, -1).to(args[0].dtype)
        return (args[0] * (wide if wide.dim() == 1 else wide[:, None]), *args[1:])

    return hook


class GatedReference:
    """A torch.nn.MultiheadAttention that computes by hand, with gates, until ``remove``.

    It never calls its output projection, so that hooks on this see nothing.
    """

    def __init__(self, module: nn.MultiheadAttention, gates: torch.Tensor):
        self.module, self.gates = module, gates
        module.forward = self.forward

    def remove(self) -> None:
        del self.module.forward

    def forward(self, query, key, value, key_padding_mask=None, attn_mask=None, **_):
        module = self.module
        if not module.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        heads = []
        for part, weight, bias in zip(
            (query, key, value),
            module.in_proj_weight.chunk(3),
            module.in_proj_bias.chunk(3),
            strict=True,
        ):
            projected = part @ weight.t() + bias
            heads.append(projected.unflatten(-1, (HEADS, HEAD_DIM)).transpose(1, 2))
        scores = heads[0] @ heads[1].transpose(2, 3) / HEAD_DIM**0.5
        for mask in (
            attn_mask,
            None if key_padding_mask is None else key_padding_mask[:, None, None],
        ):
            if mask is not None:
                closed = mask if mask.dtype == torch.bool else mask < -1e30
                scores = scores.masked_fill(closed, -torch.inf)
        context = scores.softmax(-1) @ heads[2]
        gates = self.gates.to(context.dtype)
        context = context * (gates[:, None, None] if gates.dim() == 1 else gates[:, :, None, None])
        output = module.out_proj(context.transpose(1, 2).flatten(2))
        return (output if module.batch_first else output.transpose(0, 1)), None


def randomise(model: nn.Module, seed: int = 0, spread: float = 0.3) -> None:
    """Give every parameter random values; those of norms lie about 1, constants stay."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            values = torch.randn(parameter.shape, generator=generator)
            scale = parameter.dim() == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.2 * values if scale else spread * values)


def result(model: nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits or hidden states of a call, without the positions of padding."""
    return without_padding(tensor(model(**inputs)), inputs)


def tensor(output: Any) -> torch.Tensor:
    """Logits, or the last hidden state, of an output."""
    if isinstance(output, torch.Tensor):
        return output
    logits = getattr(output, "logits", None)
    return output.last_hidden_state if logits is None else logits


def without_padding(values: torch.Tensor, inputs: dict[str, Any]) -> torch.Tensor:
    """The values [B, T, ...] at tokens, as [tokens, ...]; others as they are."""
    name = "decoder_attention_mask" if "decoder_input_ids" in inputs else "attention_mask"
    mask = inputs.get(name)
    if mask is None or mask.dim() != 2 or values.shape[:2] != mask.shape:
        return values
    return values[mask.bool()]


def text(batch: int, padding: str) -> dict[str, torch.Tensor]:
    """``input_ids`` and, with padding, ``attention_mask``; the first example is full."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (batch, TOKENS), generator=generator)
    if padding == "none":
        return {"input_ids": ids}
    mask = torch.ones_like(ids)
    for row in range(1, batch):
        cut = row + 1
        mask[row, slice(-cut, None) if padding == "right" else slice(cut)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask}


def two_texts(batch: int, padding: str) -> dict[str, torch.Tensor]:
    """The same with ``decoder_input_ids`` of another length, without padding."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(3, VOCABULARY, (batch, TOKENS - 2), generator=generator)
    return {**text(batch, padding), "decoder_input_ids": ids}


def text_to_text(batch: int, padding: str) -> dict[str, torch.Tensor]:
    """``text`` for an encoder, shorter ``text`` for its decoder."""
    source, target = text(batch, padding), text(batch, padding)
    return source | {f"decoder_{name}": value[:, 1:6].flip(0) for name, value in target.items()}


def text_and_source(batch: int, padding: str) -> dict[str, torch.Tensor]:
    """``text`` for a decoder, and what an encoder gave for four tokens."""
    generator = torch.Generator().manual_seed(2)
    inputs = text(batch, padding)
    inputs["encoder_hidden_states"] = torch.randn(batch, 4, WIDTH, generator=generator)
    if padding != "none":
        mask = torch.ones(batch, 4, dtype=torch.long)
        mask[0, 3:] = 0
        inputs["encoder_attention_mask"] = mask
    return inputs


def speech_to_text(batch: int, padding: str) -> dict[str, torch.Tensor]:
    """``input_features`` of twelve frames, ``text`` for the decoder."""
    generator = torch.Generator().manual_seed(1)
    target = {f"decoder_{name}": value for name, value in text(batch, padding).items()}
    return {"input_features": torch.randn(batch, 8, 12, generator=generator), **target}


def pixels(batch: int, padding: str) -> dict[str, torch.Tensor]:
    """``pixel_values`` of images of 8 x 8."""
    generator = torch.Generator().manual_seed(1)
    return {"pixel_values": torch.randn(batch, 3, 8, 8, generator=generator)}


def sound(batch: int, padding: str) -> dict[str, torch.Tensor]:
    """``input_values`` of 100 samples and, with padding, ``attention_mask``."""
    generator = torch.Generator().manual_seed(1)
    values = torch.randn(batch, 100, generator=generator)
    if padding == "none":
        return {"input_values": values}
    mask = torch.ones(batch, 100, dtype=torch.long)
    for row in range(1, batch):
        mask[row, -25 * row :] = 0
    return {"input_values": values * mask, "attention_mask": mask}


SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": NEURONS,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
}
WORDS = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "pad_token_id": 0}
CONVOLUTIONS = {
    "conv_dim": (8, 8),
    "conv_stride": (5, 2),
    "conv_kernel": (10, 3),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
    "feat_extract_norm": "layer",
}
PATCHES = {"image_size": 8, "patch_size": 4}


GPT2 = {
    "n_embd": WIDTH,
    "n_inner": NEURONS,
    "n_layer": LAYERS,
    "n_head": HEADS,
    "n_positions": 40,
    "vocab_size": VOCABULARY,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "use_cache": False,
}


DECODER_WORDS = {"bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
BART = {
    "d_model": WIDTH,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": NEURONS,
    "decoder_ffn_dim": NEURONS,
    "use_cache": False,
    **DECODER_WORDS,
}
T5 = {
    "d_model": WIDTH,
    "d_kv": HEAD_DIM,
    "d_ff": NEURONS,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": HEADS,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "use_cache": False,
    **DECODER_WORDS,
}


def build(name: str, config: str, **options: Any) -> Callable[[str], nn.Module]:
    """A builder of a model of transformers, by the names of its class and configuration."""

    def model(attention: str) -> nn.Module:
        made = getattr(transformers, f"{config}Config")(
            num_labels=CLASSES, attn_implementation=attention, **options
        )
        return getattr(transformers, name)(made)

    return model


def layers(*paths: str, count: int = LAYERS) -> tuple[str, ...]:
    """The paths with ``{}`` replaced by each layer's number in turn."""
    return tuple(path.format(layer) for layer in range(count) for path in paths)


def bert_to_bert(attention: str) -> nn.Module:
    """Two BERT models, the second of which attends to the first."""
    sizes = {**SIZES, **WORDS, "num_hidden_layers": 2, "attn_implementation": attention}
    decoder = {"is_decoder": True, "add_cross_attention": True, "use_cache": False}
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.BertConfig(**sizes),
        transformers.BertConfig(**sizes, **decoder),
        decoder_start_token_id=2,
        pad_token_id=0,
    )
    return transformers.EncoderDecoderModel(config)


def encoder_decoder(base: str, layer: str, own: str, cross: str) -> tuple[str, ...]:
    """Paths of two encoder layers and two decoder layers, each of these with cross-attention."""
    prefix = f"{base}." if base else ""
    return (
        *layers(f"{prefix}encoder.{layer}{own}", count=2),
        *layers(f"{prefix}decoder.{layer}{own}", f"{prefix}decoder.{layer}{cross}", count=2),
    )


OF_TORCH = {
    "attentions": ("sdpa",),
    "square_masks": False,
    "checkpointing": False,
    "plain_refusal": "of 4 heads",
    "transformers": False,
}

FAMILIES: dict[str, Family] = {
    "BERT": Family(
        build("BertForSequenceClassification", "Bert", **SIZES, **WORDS),
        text,
        layers("bert.encoder.layer.{}.attention.output.dense"),
    ),
    "DistilBERT": Family(
        build(
            "DistilBertForTokenClassification",
            "DistilBert",
            dim=WIDTH,
            hidden_dim=NEURONS,
            n_layers=LAYERS,
            n_heads=HEADS,
            **WORDS,
        ),
        text,
        layers("distilbert.transformer.layer.{}.attention.out_lin"),
    ),
    "ALBERT": Family(
        build("AlbertForSequenceClassification", "Albert", embedding_size=10, **SIZES, **WORDS),
        text,
        ("albert.encoder.albert_layer_groups.0.albert_layers.0.attention.dense",) * LAYERS,
        checkpointing=False,
    ),
    "ALBERT with inner groups": Family(
        build(
            "AlbertForTokenClassification",
            "Albert",
            embedding_size=10,
            num_hidden_groups=2,
            inner_group_num=2,
            **SIZES,
            **WORDS,
        ),
        text,
        tuple(
            f"albert.encoder.albert_layer_groups.{group}.albert_layers.{layer}.attention.dense"
            for group in (0, 0, 1)
            for layer in (0, 1)
        ),
        checkpointing=False,
    ),
    "ModernBERT": Family(
        build(
            "ModernBertForTokenClassification",
            "ModernBert",
            local_attention=4,
            attention_bias=True,
            norm_bias=True,
            mlp_bias=True,
            cls_token_id=1,
            sep_token_id=2,
            bos_token_id=1,
            eos_token_id=2,
            **SIZES,
            **WORDS,
        ),
        text,
        layers("model.layers.{}.attn.Wo"),
        gradient_tolerance=1e-6,
    ),
    "NomicBERT": Family(
        build("NomicBertForTokenClassification", "NomicBert", **SIZES, **WORDS),
        text,
        layers("nomic_bert.layers.{}.self_attn.o_proj"),
    ),
    "ViT": Family(
        build("ViTForImageClassification", "ViT", **SIZES, **PATCHES),
        pixels,
        layers("vit.layers.{}.attention.o_proj"),
        paddings=("none",),
        square_masks=False,
    ),
    "DeiT": Family(
        build("DeiTForImageClassification", "DeiT", **SIZES, **PATCHES),
        pixels,
        layers("deit.layers.{}.attention.o_proj"),
        paddings=("none",),
        square_masks=False,
    ),
    "BEiT": Family(
        build(
            "BeitForImageClassification",
            "Beit",
            layer_scale_init_value=0.5,
            use_relative_position_bias=True,
            **SIZES,
            **PATCHES,
        ),
        pixels,
        layers("beit.layers.{}.attention.o_proj"),
        paddings=("none",),
        plain_refusal="relative position bias",
        square_masks=False,
    ),
    "DINOv2": Family(
        build("Dinov2ForImageClassification", "Dinov2", **SIZES, **PATCHES),
        pixels,
        layers("dinov2.encoder.layer.{}.attention.o_proj"),
        paddings=("none",),
        square_masks=False,
    ),
    "CLIP, images": Family(
        build("CLIPForImageClassification", "CLIP", vision_config=SIZES | PATCHES),
        pixels,
        layers("vision_model.encoder.layers.{}.self_attn.out_proj"),
        paddings=("none",),
        square_masks=False,
    ),
    "CLIP, text": Family(
        build("CLIPTextModel", "CLIPText", bos_token_id=1, eos_token_id=2, **SIZES, **WORDS),
        text,
        layers("encoder.layers.{}.self_attn.out_proj"),
        paddings=("none", "right"),
    ),
    "SigLIP, images": Family(
        build("SiglipVisionModel", "SiglipVision", **SIZES, **PATCHES),
        pixels,
        layers("encoder.layers.{}.self_attn.out_proj"),
        paddings=("none",),
        square_masks=False,
    ),
    "GPT-2": Family(
        build("GPT2LMHeadModel", "GPT2", **GPT2),
        text,
        layers("transformer.h.{}.attn.c_proj"),
        plain_refusal="a block without heads",
    ),
    "BART": Family(
        build("BartForConditionalGeneration", "Bart", **BART, **WORDS),
        text_to_text,
        encoder_decoder("model", "layers.{}.", "self_attn.out_proj", "encoder_attn.out_proj"),
        square_masks=False,
    ),
    "mBART": Family(
        build("MBartForConditionalGeneration", "MBart", **BART, **WORDS),
        text_to_text,
        encoder_decoder("model", "layers.{}.", "self_attn.out_proj", "encoder_attn.out_proj"),
        square_masks=False,
    ),
    "Marian": Family(
        build("MarianMTModel", "Marian", **BART, **WORDS),
        text_to_text,
        encoder_decoder("model", "layers.{}.", "self_attn.out_proj", "encoder_attn.out_proj"),
        square_masks=False,
    ),
    "Whisper": Family(
        build(
            "WhisperForConditionalGeneration",
            "Whisper",
            vocab_size=VOCABULARY,
            pad_token_id=0,
            num_mel_bins=8,
            max_source_positions=6,
            max_target_positions=20,
            **BART,
        ),
        speech_to_text,
        encoder_decoder("model", "layers.{}.", "self_attn.out_proj", "encoder_attn.out_proj"),
        paddings=("none", "right"),
        square_masks=False,
        plain_refusal="a block without heads",
    ),
    "T5": Family(
        build("T5ForConditionalGeneration", "T5", **T5),
        text_to_text,
        encoder_decoder("", "block.{}.layer.", "0.SelfAttention.o", "1.EncDecAttention.o"),
        square_masks=False,
        spread=0.15,
        plain_refusal="position biases for all heads",
    ),
    "mT5": Family(
        build("MT5ForConditionalGeneration", "MT5", **T5),
        text_to_text,
        encoder_decoder("", "block.{}.layer.", "0.SelfAttention.o", "1.EncDecAttention.o"),
        square_masks=False,
        spread=0.15,
        plain_refusal="position biases for all heads",
    ),
    "UMT5": Family(
        build("UMT5ForConditionalGeneration", "UMT5", **T5),
        text_to_text,
        encoder_decoder("", "block.{}.layer.", "0.SelfAttention.o", "1.EncDecAttention.o"),
        square_masks=False,
        spread=0.15,
        plain_refusal="position biases for all heads",
    ),
    "BERT decoder": Family(
        build("BertLMHeadModel", "Bert", is_decoder=True, use_cache=False, **SIZES, **WORDS),
        text,
        layers("bert.encoder.layer.{}.attention.output.dense"),
    ),
    "BERT decoder with cross-attention": Family(
        build(
            "BertLMHeadModel",
            "Bert",
            is_decoder=True,
            add_cross_attention=True,
            use_cache=False,
            **SIZES,
            **WORDS,
        ),
        text_and_source,
        layers(
            "bert.encoder.layer.{}.attention.output.dense",
            "bert.encoder.layer.{}.crossattention.output.dense",
        ),
        square_masks=False,
    ),
    "GPT-2 with cross-attention": Family(
        build("GPT2LMHeadModel", "GPT2", add_cross_attention=True, **GPT2),
        text_and_source,
        layers("transformer.h.{}.attn.c_proj", "transformer.h.{}.crossattention.c_proj"),
        square_masks=False,
        plain_refusal="a block without heads",
    ),
    "BERT to BERT": Family(
        bert_to_bert,
        text_to_text,
        (
            *layers("encoder.encoder.layer.{}.attention.output.dense", count=2),
            *layers(
                "decoder.bert.encoder.layer.{}.attention.output.dense",
                "decoder.bert.encoder.layer.{}.crossattention.output.dense",
                count=2,
            ),
        ),
        square_masks=False,
    ),
    "Wav2Vec2": Family(
        build("Wav2Vec2ForSequenceClassification", "Wav2Vec2", **SIZES, **CONVOLUTIONS),
        sound,
        layers("wav2vec2.encoder.layers.{}.attention.out_proj"),
        paddings=("none", "right"),
        square_masks=False,
    ),
    "HuBERT": Family(
        build(
            "HubertForCTC",
            "Hubert",
            vocab_size=CLASSES,
            do_stable_layer_norm=True,
            **SIZES,
            **CONVOLUTIONS,
        ),
        sound,
        layers("hubert.encoder.layers.{}.attention.out_proj"),
        paddings=("none", "right"),
        square_masks=False,
    ),
    "timm": Family(
        lambda attention: TimmVisionTransformer(),
        pixels,
        layers("blocks.{}.attn.proj"),
        **{**OF_TORCH, "paddings": ("none",), "plain_refusal": ""},
    ),
    "timm with norms": Family(
        lambda attention: TimmVisionTransformer(norms=True),
        pixels,
        layers("blocks.{}.attn.proj"),
        **{**OF_TORCH, "paddings": ("none",), "plain_refusal": ""},
    ),
    "torch": Family(
        lambda attention: TorchClassifier(batch_first=True),
        text,
        layers("encoder.layers.{}.self_attn.out_proj"),
        **OF_TORCH,
    ),
    "torch, sequence first": Family(
        lambda attention: TorchClassifier(causal=True, norm_first=True),
        text,
        layers("encoder.layers.{}.self_attn.out_proj"),
        **{**OF_TORCH, "paddings": ("none", "right")},
    ),
    "torch, encoder and decoder": Family(
        lambda attention: TorchTranslator(),
        two_texts,
        (
            *layers("transformer.encoder.layers.{}.self_attn.out_proj", count=2),
            *layers(
                "transformer.decoder.layers.{}.self_attn.out_proj",
                "transformer.decoder.layers.{}.multihead_attn.out_proj",
                count=2,
            ),
        ),
        **{**OF_TORCH, "paddings": ("none", "right")},
    ),
    "torchvision": Family(
        lambda attention: VisionTransformer(),
        pixels,
        layers("encoder.layers.encoder_layer_{}.self_attention.out_proj"),
        **{**OF_TORCH, "paddings": ("none",)},
    ),
}
