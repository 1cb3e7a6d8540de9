"""One random feed-forward layer, and the truth about it."""

from __future__ import annotations

import torch

import headkit


class FeedForwardLayer:
    """Random x, weights and biases of linear, GELU, linear.

    Args:
        rows: samples and tokens, (B, T).
        dim: width, D.
        neurons: F.
        block: neurons of a block.
        dtype: of all of it.

    Example:
        >>> layer = FeedForwardLayer((1, 2), 4, 8, 4, torch.float32)
        >>> layer.exact_output(torch.ones(1, 2, dtype=torch.float64)).shape
        torch.Size([1, 2, 4])
    """

    def __init__(
        self, rows: tuple[int, int], dim: int, neurons: int, block: int, dtype: torch.dtype
    ) -> None:
        self.rows, self.dim, self.neurons, self.block, self.dtype = rows, dim, neurons, block, dtype
        self.x = torch.randn(*rows, dim).to(dtype)
        self.direction = torch.randn(*rows, dim).to(dtype)
        self.in_weight = (torch.randn(neurons, dim) * dim**-0.5).to(dtype)
        self.in_bias = torch.randn(neurons).to(dtype)
        self.out_weight = (torch.randn(dim, neurons) * neurons**-0.5).to(dtype)
        self.out_bias = torch.randn(dim).to(dtype)
        self.weights = headkit.FeedForwardWeights(
            self.in_weight, self.out_weight, inner_bias=self.in_bias, out_bias=self.out_bias
        )

    @property
    def leaves(self) -> list[torch.Tensor]:
        """x, then weight and bias of both linear maps."""
        return [self.x, self.in_weight, self.in_bias, self.out_weight, self.out_bias]

    def exact_output(self, gate: torch.Tensor) -> torch.Tensor:
        """Output in float64."""
        return self._output(gate, [leaf.detach().double() for leaf in self.leaves])

    def exact_gradients(self, gate: torch.Tensor) -> list[torch.Tensor]:
        """Gradients of ``leaves`` in float64."""
        leaves = [leaf.detach().double().requires_grad_() for leaf in self.leaves]
        return list(
            torch.autograd.grad(self._output(gate, leaves), leaves, self.direction.double())
        )

    def _output(self, gate: torch.Tensor, leaves: list[torch.Tensor]) -> torch.Tensor:
        x, in_weight, in_bias, out_weight, out_bias = leaves
        hidden = torch.nn.functional.gelu(x @ in_weight.t() + in_bias)
        factor = gate.repeat_interleave(self.block, 1)[:, None]
        return (hidden * factor) @ out_weight.t() + out_bias
