"""What stands in for a feed-forward block: same parameters, one operator call."""

import copy
from dataclasses import dataclass
from inspect import signature
from operator import attrgetter
from typing import ClassVar

import torch
from torch import nn
from torch.nn import functional

from headkit.gating import NEURON_BLOCK, Attachment, Call
from headkit.huggingface.adapter import Adapter, refuse_altered
from headkit.huggingface.attention_block import call_of_block
from headkit.huggingface.direct_paths import as_constant, reads_constants
from headkit.huggingface.neurons import (
    NEURON_ORIGIN,
    NeuronOrigin,
    gate_values,
    gate_whole,
    maps_of,
    unhook_neurons,
    weight_of,
)
from headkit.huggingface.shallow import HOOKS, own_modules, without_hooks
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
        up: path of the linear map whose output multiplies what the activation gives, or None.
    """

    owner: str
    inner: str
    activation: str
    out: str
    mixin: type[GatedFeedForward]
    up: str | None = None


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

    def maps(self, owner: nn.Module) -> tuple[nn.Module, nn.Module, nn.Module | None]:
        """First, last and multiplying map."""
        return maps_of(owner, self.paths)


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
        """Neurons of the original block, F."""
        inner, out, _ = maps_of(self.owner, self.paths)
        known: NeuronOrigin | None = getattr(out, NEURON_ORIGIN, None)
        return len(weight_of(inner)) if known is None else known.neurons


def run_feed_forward(owner: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """Run linear, activation, linear under the gates of the call.

    Gates of single neurons run as a mask, by the operators of torch.

    Args:
        owner: the module that runs the block; has a ``FeedForwardBlock``.
        hidden: [B, T, D].

    Raises:
        ValueError: if the projections were altered.
    """
    block: FeedForwardBlock = getattr(owner, FEED_FORWARD)
    inner, out, up = block.maps(owner)
    refuse_altered(tuple(one for one in (inner, out, up) if one is not None), "feed_forward")
    call = call_of_block(block, {})
    gating, taps, origin = call.gating, call.taps, getattr(out, NEURON_ORIGIN, None)
    hidden = as_constant(hidden) if reads_constants() else hidden
    if taps is not None and taps.feed_forward_inputs:
        taps.feed_forward_input = [*taps.feed_forward_input, hidden]
    pruned = origin is not None and origin.is_pruned
    by_neuron = gating is not None and (
        gating.neurons is not None or (pruned and gating.blocks is not None)
    )
    if by_neuron or (taps is not None and taps.neuron_activations):
        output = _run_by_neuron(block, (inner, out, up), hidden, call)
    else:
        gates = {} if gating is None else gating.neuron_arguments(block.number, hidden)
        output = torch.ops.headkit.gated_feed_forward(
            hidden,
            weight_of(inner),
            weight_of(out),
            in_bias=inner.bias,
            out_bias=out.bias,
            up_weight=None if up is None else weight_of(up),
            up_bias=None if up is None else up.bias,
            activation=block.activation,
            block_size=NEURON_BLOCK,
            **gates,
        )
    if gating is not None:
        output = gating.with_added(block.number, output, blocks=True)
    output = gate_whole(gating, block.number, origin, output)
    if taps is not None and taps.feed_forward_outputs:
        taps.feed_forward_output = [*taps.feed_forward_output, output]
    return output


def _run_by_neuron(
    block: FeedForwardBlock,
    maps: tuple[nn.Module, nn.Module, nn.Module | None],
    hidden: torch.Tensor,
    call: Call,
) -> torch.Tensor:
    inner, out, up = maps
    values = functional.linear(hidden, weight_of(inner), inner.bias)
    values = ACTIVATIONS[block.activation](values)
    if up is not None:
        values = values * functional.linear(hidden, weight_of(up), up.bias)
    if call.taps is not None and call.taps.neuron_activations:
        call.taps.neurons = [*call.taps.neurons, values]
    origin, gating = getattr(out, NEURON_ORIGIN, None), call.gating
    values = gate_values(gating, block.number, origin, values)
    if gating is None or gating.blocks is None:
        return functional.linear(values, weight_of(out), out.bias)
    count = weight_of(inner).shape[0] if origin is None else origin.neurons
    kept = torch.arange(count) if origin is None else torch.tensor(origin.kept, dtype=torch.long)
    arguments = gating.neuron_arguments(block.number, hidden)
    of_blocks = kept.to(hidden.device) // NEURON_BLOCK
    gate = arguments["gate"][..., of_blocks].to(values.dtype)
    values = values * (gate if gate.dim() == 1 else gate[:, None])
    output = functional.linear(values, weight_of(out), out.bias)
    dropped = arguments["dropped_output"]
    if dropped is None:
        return output
    # A block whose neurons are all gone left nothing to stand in for.
    there = of_blocks.unique()
    added = (1 - arguments["gate"][..., there]).to(dropped.dtype) @ dropped[there]
    return output + (added if added.dim() == 1 else added[:, None])


def has_gates(owner: nn.Module) -> bool:
    """Whether the call that a block runs in gates its neurons."""
    block: FeedForwardBlock = getattr(owner, FEED_FORWARD)
    gating = call_of_block(block, {}).gating
    return gating is not None and (gating.blocks is not None or gating.neurons is not None)


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
        for one in maps_of(site.owner, site.paths):
            if one is not None:
                unhook_neurons(one)
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


def _find(layer: nn.Module, path: str, adapter: Adapter, number: int) -> FeedForwardSite:
    paths = adapter.feed_forward_paths(layer)
    name = original_class(layer).__name__
    if paths is None:
        raise ValueError(
            f"[attach] expected a feed-forward block that headkit runs; found that of {name} at "
            f"{path} (attach it without feed_forward=True)"
        )
    owner = layer.get_submodule(paths.owner)
    refuse_altered(_bare(owner, paths), "attach")
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


def _bare(owner: nn.Module, paths: FeedForwardPaths) -> tuple[nn.Module, ...]:
    """The linear maps of a block, without the hooks that headkit itself has on them."""
    found = []
    for one in maps_of(owner, paths):
        if one is not None:
            bare = own_modules(one)
            unhook_neurons(bare)
            found.append(bare)
    return tuple(found)


def _passed_over(owner: nn.Module, paths: FeedForwardPaths) -> list[nn.Module]:
    """Modules between owner, projections and activation, whose forward is not called."""
    found = []
    for path in (paths.inner, paths.activation, paths.out):
        names = path.split(".")
        for depth in range(1, len(names) + 1):
            part = attrgetter(".".join(names[:depth]))(owner)
            if isinstance(part, nn.Module) and part not in maps_of(owner, paths):
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
    inner, _, _ = maps_of(site.owner, site.paths)
    if inner.weight.is_meta or not inner.weight.numel():
        return
    plain = copy.deepcopy(without_hooks(site.owner)).float().eval()
    generator = torch.Generator().manual_seed(0)
    width = weight_of(inner).shape[1]
    noise = torch.randn(2, 5, width, generator=generator).to(inner.weight.device)
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
