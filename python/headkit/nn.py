"""Modules around the gated operators."""

from __future__ import annotations

import torch
from torch import nn

from headkit import _C


class MultiHeadAttention(nn.Module):
    """Multi-head attention with head gates: a closed gate is work not done.

    Head h owns rows ``h * dh`` to ``(h + 1) * dh - 1`` of ``q_proj`` and the same columns of
    ``o_proj``, KV head j the same rows of ``k_proj`` and ``v_proj``. Weights start uniform (Glorot
    and Bengio 2010), biases at zero.

    Args:
        embed_dim: D, the width of input and output.
        num_heads: H; may be 0, as pruning may leave it.
        num_kv_heads: Hkv, heads of K and V; default H, of which it must be a divisor.
        head_dim: dh; default D / H, which must then be whole.
        bias: whether the four projections have biases.
        dropout: probability of dropping an attention weight, in training only. The seed of each
            call is drawn from torch's generator.
        device: as for every module of torch.
        dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: if the sizes do not fit together.

    Example:
        >>> attention = MultiHeadAttention(12, 4)
        >>> gate = torch.tensor([[1.0, 0.0, 0.5, 1.0], [0.0, 0.0, 0.0, 0.0]])
        >>> attention(torch.randn(2, 5, 12), gate=gate)[1].abs().max().item()
        0.0
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        *,
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        bias: bool = True,
        dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 0 or num_heads < 0:
            raise ValueError(
                "[MultiHeadAttention] expected embed_dim and num_heads of at least 0; found "
                f"embed_dim = {embed_dim}, num_heads = {num_heads}"
            )
        if num_kv_heads is None:
            num_kv_heads = num_heads
        if num_heads % num_kv_heads if num_kv_heads > 0 else num_kv_heads != num_heads:
            raise ValueError(
                "[MultiHeadAttention] expected num_heads divisible by num_kv_heads; found "
                f"num_kv_heads = {num_kv_heads}, num_heads = {num_heads}"
            )
        if head_dim is None:
            if num_heads and embed_dim % num_heads:
                raise ValueError(
                    "[MultiHeadAttention] expected embed_dim divisible by num_heads, or head_dim; "
                    f"found embed_dim = {embed_dim}, num_heads = {num_heads}"
                )
            head_dim = embed_dim // num_heads if num_heads else 0
        if not 0.0 <= dropout < 1.0:
            raise ValueError(f"[MultiHeadAttention] expected dropout in [0, 1); found {dropout}")
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.dropout = dropout
        inner, kv_inner = num_heads * head_dim, num_kv_heads * head_dim
        self.q_proj = nn.Linear(embed_dim, inner, bias, device, dtype)
        self.k_proj = nn.Linear(embed_dim, kv_inner, bias, device, dtype)
        self.v_proj = nn.Linear(embed_dim, kv_inner, bias, device, dtype)
        self.o_proj = nn.Linear(inner, embed_dim, bias, device, dtype)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw the weights anew and set the biases to zero."""
        for projection in (self.q_proj, self.k_proj, self.v_proj, self.o_proj):
            if projection.weight.numel():
                nn.init.xavier_uniform_(projection.weight)
            if projection.bias is not None:
                nn.init.zeros_(projection.bias)

    @classmethod
    def from_torch(cls, module: nn.MultiheadAttention) -> MultiHeadAttention:
        """Copy a ``torch.nn.MultiheadAttention``, exactly.

        The result takes [B, T, D] whatever the ``batch_first`` of the original, and its
        ``key_padding_mask`` is True where a key may be attended to: the opposite of torch's.

        Args:
            module: self-attention without ``add_bias_kv``, ``add_zero_attn``, ``kdim``, ``vdim``.

        Returns:
            MultiHeadAttention: same dtype, device and training mode; own parameters.

        Raises:
            ValueError: if ``module`` has what this class does not.

        Example:
            >>> original = torch.nn.MultiheadAttention(12, 4, batch_first=True)
            >>> x = torch.randn(2, 5, 12)
            >>> y = MultiHeadAttention.from_torch(original)(x)
            >>> torch.allclose(y, original(x, x, x)[0], atol=1e-6)
            True
        """
        refused = None
        if module.bias_k is not None or module.bias_v is not None:
            refused = "add_bias_kv=True"
        elif module.add_zero_attn:
            refused = "add_zero_attn=True"
        elif module.in_proj_weight is None:
            refused = f"kdim={module.kdim}, vdim={module.vdim} with embed_dim={module.embed_dim}"
        if refused:
            raise ValueError(
                "[MultiHeadAttention.from_torch] expected self-attention without add_bias_kv, "
                f"add_zero_attn, kdim and vdim; found {refused}"
            )
        weight = module.in_proj_weight
        copy = cls(
            module.embed_dim,
            module.num_heads,
            bias=module.in_proj_bias is not None,
            dropout=module.dropout,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            inputs = (copy.q_proj, copy.k_proj, copy.v_proj)
            for projection, part in zip(inputs, weight.chunk(3), strict=True):
                projection.weight.copy_(part)
            copy.o_proj.weight.copy_(module.out_proj.weight)
            if module.in_proj_bias is not None:
                for projection, part in zip(inputs, module.in_proj_bias.chunk(3), strict=True):
                    projection.bias.copy_(part)
                copy.o_proj.bias.copy_(module.out_proj.bias)
        return copy.train(module.training)

    def forward(
        self,
        x: torch.Tensor,
        *,
        kv: torch.Tensor | None = None,
        gate: torch.Tensor | None = None,
        skip: bool = True,
        key_padding_mask: torch.Tensor | None = None,
        attn_bias: torch.Tensor | None = None,
        dropped_output: torch.Tensor | None = None,
        is_causal: bool = False,
    ) -> torch.Tensor:
        """Attend.

        Args:
            x: [B, T, D].
            kv: [B, S, D], where keys and values come from; default ``x``.
            gate: [H], [B, H] or [B, T, H], float32 (float64 when ``x`` is float64); 0 = skipped,
                another value scales the head's output.
            skip: False = closed heads are computed and multiplied by 0, so that their gates
                receive gradients; with True the gate of a skipped head gets exactly 0.
            key_padding_mask: bool [B, S]; True = attend (the opposite of torch's).
            attn_bias: added to the scaled scores; broadcastable to [B, H, T, S], dtype of ``x``.
            dropped_output: [H, D]; a gate g gives ``g * output + (1 - g) * dropped_output``.
            is_causal: query i sees keys j <= i only.

        Returns:
            torch.Tensor: [B, T, D], dtype of ``x``.

        Raises:
            ValueError: if shapes, dtypes or devices do not fit, or a CPU gate is not finite.
        """
        dropout = self.dropout if self.training else 0.0
        seed = int(torch.randint(2**62, ()).item()) if dropout else 0
        return torch.ops.headkit.gated_attention(
            x,
            self.q_proj.weight,
            self.k_proj.weight,
            self.v_proj.weight,
            self.o_proj.weight,
            self.num_heads,
            q_bias=self.q_proj.bias,
            k_bias=self.k_proj.bias,
            v_bias=self.v_proj.bias,
            o_bias=self.o_proj.bias,
            num_kv_heads=self.num_kv_heads,
            kv=kv,
            gate=gate,
            skip=skip,
            key_padding_mask=key_padding_mask,
            is_causal=is_causal,
            attn_bias=attn_bias,
            dropped_output=dropped_output,
            dropout_p=dropout,
            dropout_seed=seed,
        )

    def weights(self) -> _C.AttentionWeights:
        """Return the parameters (not copies) as the value that ``headkit.gated_attention`` takes.

        Example:
            >>> MultiHeadAttention(12, 4).weights().q.shape
            torch.Size([12, 12])
        """
        projections = (self.q_proj, self.k_proj, self.v_proj, self.o_proj)
        biases = {f"{name}_bias": p.bias for name, p in zip("qkvo", projections, strict=True)}
        return _C.AttentionWeights(*(p.weight for p in projections), **biases)

    def extra_repr(self) -> str:
        """Sizes for ``print``."""
        return (
            f"embed_dim={self.embed_dim}, num_heads={self.num_heads}, "
            f"num_kv_heads={self.num_kv_heads}, head_dim={self.head_dim}"
        )


class FeedForward(nn.Module):
    """A feed-forward layer whose blocks of neurons can be gated: a closed gate is work not done.

    ``out_proj(act(in_proj(x)))``, or ``out_proj(act(in_proj(x)) * up_proj(x))``. Block j owns rows
    ``j * block_size`` and on of ``in_proj`` and ``up_proj``, and the same columns of ``out_proj``.
    Weights start as those of ``torch.nn.Linear``.

    Args:
        embed_dim: D, the width of input and output.
        num_neurons: F.
        activation: "gelu" (by the error function), "gelu_tanh", "relu" or "silu".
        gated: whether a second projection multiplies what the activation gives (GEGLU, SwiGLU).
        bias: whether the projections have biases.
        block_size: neurons of a block; the last one may have fewer.
        device: as for every module of torch.
        dtype: float32, float64, bfloat16 or float16.

    Raises:
        ValueError: if the activation is not known or a size is negative.

    Example:
        >>> layer = FeedForward(12, 96)
        >>> y = layer(torch.randn(2, 5, 12), prefix=torch.tensor([3, 0]))
        >>> torch.equal(y[1], layer.out_proj.bias.expand(5, 12))
        True
    """

    ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "silu")

    def __init__(
        self,
        embed_dim: int,
        num_neurons: int,
        *,
        activation: str = "gelu",
        gated: bool = False,
        bias: bool = True,
        block_size: int = 32,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if embed_dim < 0 or num_neurons < 0:
            raise ValueError(
                "[FeedForward] expected embed_dim and num_neurons of at least 0; found embed_dim = "
                f"{embed_dim}, num_neurons = {num_neurons}"
            )
        self._set_kind(activation, block_size)
        self.in_proj = nn.Linear(embed_dim, num_neurons, bias, device, dtype)
        self.up_proj = nn.Linear(embed_dim, num_neurons, bias, device, dtype) if gated else None
        self.out_proj = nn.Linear(num_neurons, embed_dim, bias, device, dtype)

    @classmethod
    def from_linears(
        cls,
        in_proj: nn.Linear,
        out_proj: nn.Linear,
        *,
        up_proj: nn.Linear | None = None,
        activation: str = "gelu",
        block_size: int = 32,
    ) -> FeedForward:
        """Take two or three linear layers as they are: the modules themselves, not copies.

        Raises:
            ValueError: if their sizes do not fit together or the activation is not known.

        Example:
            >>> inner, outer = torch.nn.Linear(12, 96), torch.nn.Linear(96, 12)
            >>> x = torch.randn(2, 5, 12)
            >>> y = FeedForward.from_linears(inner, outer)(x)
            >>> torch.allclose(y, outer(torch.nn.functional.gelu(inner(x))), atol=1e-6)
            True
        """
        sizes = (in_proj.in_features, in_proj.out_features)
        found = [(out_proj.out_features, out_proj.in_features)]
        if up_proj is not None:
            found.append((up_proj.in_features, up_proj.out_features))
        if any(one != sizes for one in found):
            raise ValueError(
                f"[FeedForward.from_linears] expected projections between {sizes[0]} and "
                f"{sizes[1]} features; found {found}"
            )
        layer = cls.__new__(cls)
        nn.Module.__init__(layer)
        layer._set_kind(activation, block_size)
        layer.in_proj, layer.up_proj, layer.out_proj = in_proj, up_proj, out_proj
        return layer.train(in_proj.training)

    def forward(
        self,
        x: torch.Tensor,
        *,
        gate: torch.Tensor | None = None,
        prefix: torch.Tensor | None = None,
        skip: bool = True,
        dropped_output: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Compute the open blocks.

        Args:
            x: [B, T, D].
            gate: [N] or [B, N], float32 (float64 when ``x`` is float64); 0 = skipped, another
                value scales what the block adds.
            prefix: instead of a gate int64 [B], the number of leading blocks that run.
            skip: False = closed blocks are computed and multiplied by 0, so that their gates
                receive gradients; with True the gate of a skipped block gets exactly 0.
            dropped_output: [N, D]; a gate g gives ``g * output + (1 - g) * dropped_output``.

        Returns:
            torch.Tensor: [B, T, D], dtype of ``x``.

        Raises:
            ValueError: if shapes, dtypes or devices do not fit, or a CPU gate is not finite.
        """
        up = self.up_proj
        return torch.ops.headkit.gated_feed_forward(
            x,
            self.in_proj.weight,
            self.out_proj.weight,
            in_bias=self.in_proj.bias,
            out_bias=self.out_proj.bias,
            up_weight=None if up is None else up.weight,
            up_bias=None if up is None else up.bias,
            activation=self.activation,
            block_size=self.block_size,
            gate=gate,
            prefix=prefix,
            skip=skip,
            dropped_output=dropped_output,
        )

    @property
    def num_blocks(self) -> int:
        """N = ceil(F / block_size)."""
        return -(-self.in_proj.out_features // self.block_size)

    def extra_repr(self) -> str:
        """Kind for ``print``."""
        return f"activation={self.activation}, block_size={self.block_size}"

    def _set_kind(self, activation: str, block_size: int) -> None:
        if activation not in self.ACTIVATIONS:
            raise ValueError(
                f"[FeedForward] expected activation {', '.join(self.ACTIVATIONS)}; found "
                f"{activation!r}"
            )
        if block_size < 1:
            raise ValueError(f"[FeedForward] expected block_size of at least 1; found {block_size}")
        self.activation, self.block_size = activation, block_size
