"""What stands in for a feed-forward block: same parameters, one operator call."""

import copy
from dataclasses import dataclass
from inspect import signature
from operator import attrgetter
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from headkit.gating import NEURON_BLOCK, Attachment
from headkit.huggingface.adapter import Adapter, refuse_altered
from headkit.huggingface.attention_block import call_of_block
from headkit.huggingface.shallow import HOOKS, without_hooks
from headkit.huggingface.structure import Structure
from headkit.huggingface.swapping import Swapped, original_class, swap_in, swap_out

FEED_FORWARD = "headkit_feed_forward"

ACTIVATIONS = {
    "gelu": functional.gelu,
    "gelu_tanh": lambda x: functional.gelu(x, approximate="tanh"),
    "relu": functional.relu,
    "silu": functional.silu,
}
# Where activations are compared; two of them differ by more than the tolerance somewhere.
POINTS = torch.linspace(-8, 8, 161, dtype=torch.float64)
TOLERANCE = 1e-6
# Of a block's output on random inputs, relative.
BLOCK_TOLERANCE = 1e-4


class GatedFeedForward(Swapped):
    """Base of the mixins.

    Attributes:
        METHOD: the one method that differs from the original's: the block, from its input on.
    """

    METHOD: ClassVar[str]


@dataclass(frozen=True)
class FeedForwardPaths:
    """Where a family keeps its feed-forward block: linear, activation, linear.

    Attributes:
        owner: path below the layer of the module that runs the block; "" = the layer itself.
        inner, activation, out: paths below the owner.
        mixin: what the owner does while attached.
    """

    owner: str
    inner: str
    activation: str
    out: str
    mixin: type[GatedFeedForward]


@dataclass
class FeedForwardBlock:
    """Where a feed-forward block stands in its model.

    Attributes:
        number: its place among the layers of the model.
        paths: of its family.
        attachment: its model.
        activation: as the operator names it.
    """

    number: int
    paths: FeedForwardPaths
    attachment: Attachment
    activation: str

    def linears(self, owner: nn.Module) -> tuple[nn.Linear, nn.Linear]:
        """The two projections."""
        return _linears(owner, self.paths)


@dataclass(frozen=True)
class FeedForwardSite:
    """One feed-forward block that can be swapped.

    Attributes:
        owner: the module that runs it.
        paths: of its family.
        activation: as the operator names it.
    """

    owner: nn.Module
    paths: FeedForwardPaths
    activation: str

    def neurons(self) -> int:
        """Neurons, F."""
        return _linears(self.owner, self.paths)[0].out_features


def run_feed_forward(owner: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Run linear, activation, linear under the gates of the call.

    Args:
        owner: the module that runs the block; has a ``FeedForwardBlock``.
        hidden: [B, T, D].

    Raises:
        ValueError: if the projections were altered.
    """
    block: FeedForwardBlock = getattr(owner, FEED_FORWARD)
    inner, out = block.linears(owner)
    refuse_altered((inner, out), "feed_forward")
    gating = call_of_block(block, {}).gating
    gates = {} if gating is None else gating.neuron_arguments(block.number, hidden)
    return torch.ops.headkit.gated_feed_forward(
        hidden,
        inner.weight,
        out.weight,
        in_bias=inner.bias,
        out_bias=out.bias,
        activation=block.activation,
        block_size=NEURON_BLOCK,
        **gates,
    )


def has_gates(owner: nn.Module) -> bool:
    """Whether the call that a block runs in gates its neurons."""
    block: FeedForwardBlock = getattr(owner, FEED_FORWARD)
    gating = call_of_block(block, {}).gating
    return gating is not None and gating.blocks is not None


def find_feed_forward(structure: Structure) -> list[FeedForwardSite]:
    """The feed-forward blocks of all layers of a model; nothing is changed.

    One block of each kind is run on random inputs, by its own code and by headkit's.

    Raises:
        ValueError: if a layer has none that headkit knows, or not all have the same size.
    """
    found = []
    for number, layer in enumerate(structure.layers()):
        adapter = structure.sites[structure.blocks_of(layer)[0]].adapter
        found.append(_find(structure.module(layer), layer, adapter, number))
    sizes = {site.neurons() for site in found}
    if len(sizes) != 1:
        raise ValueError(
            f"[attach] expected equally many neurons in all layers; found {sorted(sizes)}"
        )
    seen = set()
    for site in found:
        kind = (original_class(site.owner), site.activation)
        if kind not in seen and FEED_FORWARD not in vars(site.owner):
            _verify(site)
            seen.add(kind)
    return found


def swap_feed_forward(sites: list[FeedForwardSite], attachment: Attachment) -> None:
    """Swap the blocks for gated ones."""
    attachment.feed_forwards = len(sites)
    attachment.neuron_blocks = -(-sites[0].neurons() // NEURON_BLOCK)
    for number, site in enumerate(sites):
        if FEED_FORWARD not in vars(site.owner):
            swap_in(site.owner, site.paths.mixin)
        block = FeedForwardBlock(number, site.paths, attachment, site.activation)
        setattr(site.owner, FEED_FORWARD, block)


def restore_feed_forward(model: nn.Module) -> None:
    """Put the original blocks back."""
    for module in model.modules():
        if FEED_FORWARD in vars(module):
            swap_out(module)
            delattr(module, FEED_FORWARD)


def has_feed_forward(model: nn.Module) -> bool:
    """Whether feed-forward blocks of a model are swapped."""
    return any(FEED_FORWARD in vars(module) for module in model.modules())


def _linears(owner: nn.Module, paths: FeedForwardPaths) -> tuple[nn.Linear, nn.Linear]:
    return owner.get_submodule(paths.inner), owner.get_submodule(paths.out)


def _find(layer: nn.Module, path: str, adapter: Adapter, number: int) -> FeedForwardSite:
    paths = adapter.feed_forward_paths(layer)
    name = original_class(layer).__name__
    if paths is None:
        raise ValueError(
            f"[attach] expected a feed-forward block that headkit runs; found that of {name} at "
            f"{path} (attach it without feed_forward=True)"
        )
    owner = layer.get_submodule(paths.owner)
    refuse_altered(_linears(owner, paths), "attach")
    for passed in _passed_over(owner, paths):
        if any(getattr(passed, hooks) for hooks in HOOKS):
            raise ValueError(
                "[attach] expected a feed-forward block without hooks inside, because it runs as "
                f"one operator; found a hook on {original_class(passed).__name__} at {path}"
            )
    activation = _name_activation(attrgetter(paths.activation)(owner))
    if activation is None:
        raise ValueError(
            f"[attach] expected an activation of {', '.join(ACTIVATIONS)}; found another one at "
            f"{path} (attach it without feed_forward=True)"
        )
    return FeedForwardSite(owner, paths, activation)


def _passed_over(owner: nn.Module, paths: FeedForwardPaths) -> list[nn.Module]:
    """Modules between owner, projections and activation, whose forward is not called."""
    found = []
    for path in (paths.inner, paths.activation, paths.out):
        names = path.split(".")
        for depth in range(1, len(names) + 1):
            part = attrgetter(".".join(names[:depth]))(owner)
            if isinstance(part, nn.Module) and not isinstance(part, nn.Linear):
                found.append(part)
    return found


def _name_activation(activation) -> str | None:
    with torch.no_grad():
        try:
            values = activation(POINTS.clone())
        except (RuntimeError, TypeError, ValueError):
            return None
    for name, function in ACTIVATIONS.items():
        if torch.allclose(values, function(POINTS), rtol=0, atol=TOLERANCE):
            return name
    return None


def _verify(site: FeedForwardSite) -> None:
    """Run a copy of a block by its own code and by headkit's, and compare."""
    method, cls = site.paths.mixin.METHOD, original_class(site.owner)
    theirs = list(signature(getattr(cls, method)).parameters) if hasattr(cls, method) else []
    if len(theirs) != 2:
        raise ValueError(
            f"[attach] expected {cls.__name__} with {method}(hidden_states); found "
            f"{method}({', '.join(theirs[1:])})"
        )
    inner, _ = _linears(site.owner, site.paths)
    if inner.weight.is_meta:
        return
    plain = copy.deepcopy(without_hooks(site.owner)).float().eval()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 5, inner.in_features, generator=generator).to(inner.weight.device)
    with torch.no_grad(), torch.autocast(noise.device.type, enabled=False):
        expected = getattr(plain, method)(noise)
        swap_in(plain, site.paths.mixin)
        block = FeedForwardBlock(0, site.paths, Attachment(1, 1), site.activation)
        setattr(plain, FEED_FORWARD, block)
        found = getattr(plain, method)(noise)
    error = (found - expected).abs().max() / expected.abs().max().clamp_min(1e-30)
    if not error <= BLOCK_TOLERANCE:
        raise ValueError(
            f"[attach] expected {cls.__name__} to compute linear, {site.activation}, linear; found "
            f"a relative difference of {float(error):.1e}"
        )
