"""Tiny models around attention of torch, and as torchvision and timm write theirs."""

from typing import Any

import torch
from torch import nn

from .tiny_sizes import CLASSES, HEAD_DIM, HEADS, LAYERS, NEURONS, VOCABULARY, WIDTH


class TorchClassifier(nn.Module):
    """Words through a TransformerEncoder, with padding as torch wants it, to a class each."""

    def __init__(self, *, causal: bool = False, **options: Any):
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, NEURONS, 0.0, **options)
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=not causal)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.causal = causal

    def forward(self, input_ids, attention_mask=None):
        hidden = self.embedding(input_ids)
        tokens, batch_first = input_ids.shape[1], self.encoder.layers[0].self_attn.batch_first
        mask = None
        if self.causal:
            mask = torch.ones(tokens, tokens, dtype=torch.bool, device=hidden.device).triu(1)
        closed = None if attention_mask is None else attention_mask == 0
        hidden = hidden if batch_first else hidden.transpose(0, 1)
        hidden = self.encoder(hidden, mask=mask, src_key_padding_mask=closed)
        return self.head(hidden if batch_first else hidden.transpose(0, 1))


class TorchTranslator(nn.Module):
    """Words of two sequences through an nn.Transformer, to a class for each of the second."""

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.transformer = nn.Transformer(WIDTH, HEADS, 2, 2, NEURONS, 0.0, batch_first=True)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, input_ids, decoder_input_ids, attention_mask=None):
        tokens = decoder_input_ids.shape[1]
        closed = None if attention_mask is None else attention_mask == 0
        hidden = self.transformer(
            self.embedding(input_ids),
            self.embedding(decoder_input_ids),
            tgt_mask=torch.ones(tokens, tokens, dtype=torch.bool).triu(1),
            src_key_padding_mask=closed,
            memory_key_padding_mask=closed,
        )
        return self.head(hidden)


class EncoderBlock(nn.Module):
    """A layer as torchvision's vision transformers have it."""

    def __init__(self):
        super().__init__()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.self_attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.ln_2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, NEURONS), nn.GELU(), nn.Linear(NEURONS, WIDTH))

    def forward(self, input):
        x = self.ln_1(input)
        x, _ = self.self_attention(x, x, x, need_weights=False)
        x = x + input
        return x + self.mlp(self.ln_2(x))


class VisionTransformer(nn.Module):
    """Patches through a Sequential of such layers, with names instead of numbers."""

    def __init__(self):
        super().__init__()
        self.conv_proj = nn.Conv2d(3, WIDTH, 4, 4)
        self.encoder = nn.Module()
        self.encoder.layers = nn.Sequential()
        for number in range(LAYERS):
            self.encoder.layers.add_module(f"encoder_layer_{number}", EncoderBlock())
        self.heads = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, CLASSES))

    def forward(self, pixel_values):
        patches = self.conv_proj(pixel_values).flatten(2).transpose(1, 2)
        return self.heads(self.encoder.layers(patches).mean(1))


class TimmAttention(nn.Module):
    """Attention as timm's vision transformers have it; RMS norms of queries and keys if asked."""

    def __init__(self, norms: bool):
        super().__init__()
        self.num_heads, self.head_dim, self.attn_dim = HEADS, HEAD_DIM, WIDTH
        self.scale, self.fused_attn, self.gate = HEAD_DIM**-0.5, True, None
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.q_norm = nn.RMSNorm(HEAD_DIM, eps=1e-6) if norms else nn.Identity()
        self.k_norm = nn.RMSNorm(HEAD_DIM, eps=1e-6) if norms else nn.Identity()
        self.attn_drop, self.norm = nn.Dropout(0.0), nn.Identity()
        self.proj, self.proj_drop = nn.Linear(WIDTH, WIDTH), nn.Dropout(0.0)

    def forward(self, x, attn_mask=None, is_causal=False):
        batch, tokens, _ = x.shape
        shape = (batch, tokens, 3, self.num_heads, self.head_dim)
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        x = nn.functional.scaled_dot_product_attention(
            self.q_norm(q), self.k_norm(k), v, attn_mask=attn_mask, is_causal=is_causal
        )
        x = self.norm(x.transpose(1, 2).reshape(batch, tokens, self.attn_dim))
        return self.proj_drop(self.proj(x))


class TimmBlock(nn.Module):
    """A layer as timm's vision transformers have it."""

    def __init__(self, norms: bool):
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(WIDTH), TimmAttention(norms)
        self.norm2, self.mlp = nn.LayerNorm(WIDTH), nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(WIDTH, NEURONS), nn.Linear(NEURONS, WIDTH)

    def forward(self, x, attn_mask=None):
        x = x + self.attn(self.norm1(x), attn_mask=attn_mask)
        return x + self.mlp.fc2(self.mlp.fc1(self.norm2(x)).relu())


class TimmVisionTransformer(nn.Module):
    """Patches through a Sequential of such layers; a mask goes past the Sequential."""

    def __init__(self, norms: bool = False):
        super().__init__()
        self.patch_embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.blocks = nn.Sequential(*(TimmBlock(norms) for _ in range(LAYERS)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, pixel_values, attn_mask=None):
        x = self.patch_embed(pixel_values).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, attn_mask=attn_mask)
        return self.head(x.mean(1))
