"""What deciding costs: a policy that gates an encoder, beside the encoder without one."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import ClassVar

import torch

import headkit
from headkit.bench.exactness import require_close
from headkit.bench.model import PLAIN, Count, Inputs, Open, multiplied
from headkit.bench.peer import HEADKIT, Case, Peer, Setting
from headkit.bench.routine import Routine
from headkit.bench.sizes import require_layer

TAX = "policy, nothing dropped"


@dataclasses.dataclass(frozen=True)
class Gate(Routine):
    """An encoder of random weights under a linear gate that decides anew at every call.

    ``policy, nothing dropped`` is the gate tax: the policy pools, decides, and opens every head.
    The rows of ``headkit`` below share 1 drop heads by decisions that differ between inputs, the
    policy's cost included; the largest of their shares that is faster than every row at share 1 is
    where gating breaks even.

    Attributes:
        dims: widths, D, multiples of 64; a case for each. Heads are 64 wide, D / 64 of them.
        batch: inputs, B.
        length: tokens of an input, T.
        layers: encoder layers; with one the policy's cost is held against that alone.
        shares: of heads that run on average, beside 1.
        seed: of inputs, weights and the policy.

    Raises:
        ValueError: if the sizes do not fit together.

    Example:
        >>> Gate(dims=(768,)).settings()
        [{'B': 8, 'T': 128, 'D': 768, 'H': 12, 'layers': 1}]
    """

    NAME: ClassVar[str] = "gate"

    dims: tuple[int, ...] = (768, 384)
    batch: int = 8
    length: int = 128
    layers: int = 1
    shares: tuple[float, ...] = (0.95, 0.9, 0.5)
    seed: int = 0
    head_dim: int = 64

    def __post_init__(self) -> None:
        for dim in self.dims:
            require_layer((self.batch,), (self.length,), dim, max(1, dim // self.head_dim))
        if self.layers < 1 or not all(0 < share < 1 for share in self.shares):
            raise ValueError(
                "[bench] expected at least one layer and shares between 0 and 1; found "
                f"{self.layers} and {self.shares}"
            )

    def settings(self) -> list[Setting]:
        """One for each width."""
        return [
            {
                "B": self.batch,
                "T": self.length,
                "D": dim,
                "H": dim // self.head_dim,
                "layers": self.layers,
            }
            for dim in self.dims
        ]

    @torch.no_grad()
    def case(self, setting: Setting) -> Case:
        """The plain encoder, the attached one, and it under policies that open more or less."""
        torch.manual_seed(self.seed)
        plain = self._encoder(int(setting["D"]), int(setting["H"]))
        attached = copy.deepcopy(plain)
        gated = headkit.attach(attached)
        inputs = Inputs(plain, "encode", self.batch, self.length)
        count = Count(gated, inputs)
        exact_model = copy.deepcopy(plain).double()
        case = Case([], [])
        case.note = (
            "Gate tax: 'x headkit' of 'policy, nothing dropped' less 1. Ideal: in proportion to "
            "the FLOPs of the whole encoder, the policy's time included."
        )
        lost: dict[float, float] = {}

        def add(name: str, share: float, call: Callable[[], torch.Tensor], gates: Open) -> None:
            # What the plain model loses by rounding, headkit may lose twice.
            floor = 2 * lost.get(1.0, 0.0) if name != PLAIN else float("inf")
            truth = inputs.call(exact_model, multiplied(exact_model, gates))()
            error = require_close(
                [call()], [truth], case.dtype, f"{name}, {share:.0%}", floor=floor
            )
            lost.setdefault(share, error)
            case.peers.append(Peer(name, share, call, count.work(gates), error))

        layout = gated.layout()
        everything = Open(torch.ones(self.batch, layout.layers, layout.heads), None)
        add(PLAIN, 1.0, inputs.call(plain), everything)
        add(HEADKIT, 1.0, inputs.call(attached), everything)
        for name, policy in self._policies(gated, inputs):
            open_heads = self._decided(gated, policy, inputs)
            share = open_heads.mean().item()
            under = lambda p=policy: headkit.gates(attached, p)  # noqa: E731
            add(name, share, inputs.call(attached, under), Open(open_heads, None))
        return case

    def _encoder(self, dim: int, heads: int) -> torch.nn.Module:
        import transformers

        config = transformers.BertConfig(
            hidden_size=dim,
            num_attention_heads=heads,
            num_hidden_layers=self.layers,
            intermediate_size=4 * dim,
            attn_implementation="sdpa",
            max_position_embeddings=max(512, self.length),
        )
        return transformers.BertModel(config, add_pooling_layer=False).eval()

    def _policies(
        self, gated: headkit.GatedModel, inputs: Inputs
    ) -> list[tuple[str, headkit.GatePolicy]]:
        """Gates of random weights whose thresholds open all heads, or a share on average."""
        layout = gated.layout()
        weight = torch.randn(layout.layers, layout.heads, layout.model_dim, dtype=torch.float64)
        pooled = headkit.pooled_state(gated.embed({"input_ids": inputs.ids[:, :-1]}).hidden)
        reference = pooled.mean(0)
        logits = torch.einsum("lhd,bd->blh", weight, pooled - reference).flatten()
        found: list[tuple[str, headkit.GatePolicy]] = []
        for share in (1.0, *self.shares):
            threshold = logits.quantile(1 - share, interpolation="higher").item()
            gate = headkit.LinearGate(
                weight=weight,
                reference=reference,
                static_logits=torch.zeros(layout.layers, layout.heads, dtype=torch.float64),
                threshold=threshold if share < 1 else threshold - 1e9,
                min_heads=0,
            )
            found.append((TAX if share == 1 else HEADKIT, gate))
        return found

    def _decided(
        self, gated: headkit.GatedModel, policy: headkit.GatePolicy, inputs: Inputs
    ) -> torch.Tensor:
        return headkit.run(gated, {"input_ids": inputs.ids[:, :-1]}, policy).gates.heads
