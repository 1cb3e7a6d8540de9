"""Neurons of feed-forward blocks: where they are, and gates of those that run their own code."""

from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from headkit import _C
from headkit.gating import Attachment, Gating
from headkit.huggingface.adapter import is_conv1d, parameter, set_linear
from headkit.huggingface.attention_block import call_of_block
from headkit.huggingface.structure import Structure
from headkit.huggingface.swapping import Swapped, swap_in, swap_out

if TYPE_CHECKING:
    from headkit.huggingface.feed_forward import FeedForwardPaths

# On the last linear map of a block: which of its neurons are there, whatever is attached.
NEURON_ORIGIN = "headkit_neuron_origin"
# On the linear maps of a block whose own code runs: what their hooks need.
NEURONS = "headkit_neurons"


@dataclass(frozen=True)
class NeuronOrigin:
    """What a feed-forward block was before any neuron of it was removed, and what is left.

    Attributes:
        neurons: of the original block, F.
        kept: original indices of those that are there, ascending.
        open: whether the block adds anything, its output bias included.
    """

    neurons: int
    kept: list[int]
    open: bool = True

    @property
    def is_pruned(self) -> bool:
        """Whether a neuron is missing."""
        return len(self.kept) < self.neurons


@cache
def _whole(count: int) -> NeuronOrigin:
    return NeuronOrigin(count, list(range(count)))


@dataclass(frozen=True)
class NeuronBlock:
    """What the hooks of a block need.

    Attributes:
        number: its place among the feed-forward blocks of the model.
        attachment: its model.
    """

    number: int
    attachment: Attachment


@dataclass(frozen=True)
class NeuronSite:
    """The linear maps of one feed-forward block.

    Attributes:
        number: its place among the feed-forward blocks of the model.
        path: of the module that runs it, from the model.
        inner, out: the first and the last map.
        up: the one whose output multiplies what the activation gives, or None.
    """

    number: int
    path: str
    inner: nn.Module
    out: nn.Module
    up: nn.Module | None = None

    @property
    def origin(self) -> NeuronOrigin:
        """Which neurons are there."""
        known = getattr(self.out, NEURON_ORIGIN, None)
        return _whole(len(weight_of(self.inner))) if known is None else known

    def weights(self) -> _C.FeedForwardWeights:
        """Those of the neurons that are there."""
        return _C.FeedForwardWeights(
            weight_of(self.inner),
            weight_of(self.out),
            up=None if self.up is None else weight_of(self.up),
            inner_bias=self.inner.bias,
            out_bias=self.out.bias,
            up_bias=None if self.up is None else self.up.bias,
        )

    def assign(self, weights: _C.FeedForwardWeights, kept: list[int]) -> None:
        """Put other weights in place; sizes and dtypes were checked."""
        origin = replace(self.origin, kept=kept)
        set_map(self.inner, weights.inner, weights.inner_bias)
        set_map(self.out, weights.out, weights.out_bias)
        if self.up is not None:
            set_map(self.up, weights.up, weights.up_bias)
        setattr(self.out, NEURON_ORIGIN, origin)


class NoNeurons(Swapped):
    """A Conv1D without inputs, which its own code cannot run."""

    def forward(self, x):
        """Return the bias, for every token."""
        return self.bias.expand(*x.shape[:-1], self.nf)


def find_neurons(structure: Structure) -> list[NeuronSite]:
    """The feed-forward blocks of all layers of a model; none if one of them is not known."""
    sites = []
    for number, path in enumerate(structure.layers()):
        layer = structure.module(path)
        adapter = structure.sites[structure.blocks_of(path)[0]].adapter
        paths: FeedForwardPaths | None = adapter.feed_forward_paths(layer)
        if paths is None:
            return []
        owner = layer.get_submodule(paths.owner)
        inner, out, up = maps_of(owner, paths)
        if not all(_is_plain(one) for one in (inner, out, up) if one is not None):
            return []
        site = NeuronSite(number, f"{path}.{paths.owner}".rstrip("."), inner, out, up)
        if len(weight_of(inner)) != len(site.origin.kept):
            raise ValueError(
                f"[attach] expected {len(site.origin.kept)} neurons at {site.path}; found "
                f"{len(weight_of(inner))} (load a pruned model with headkit.load)"
            )
        sites.append(site)
    return sites if len({site.origin.neurons for site in sites}) == 1 else []


def maps_of(
    owner: nn.Module, paths: "FeedForwardPaths"
) -> tuple[nn.Module, nn.Module, nn.Module | None]:
    """First, last and multiplying map of a block."""
    up = None if paths.up is None else owner.get_submodule(paths.up)
    return owner.get_submodule(paths.inner), owner.get_submodule(paths.out), up


def weight_of(linear: nn.Module) -> torch.Tensor:
    """[out, in] of a Linear, or of a Conv1D, which keeps it turned."""
    return linear.weight.t() if is_conv1d(linear) else linear.weight


def _is_plain(linear: nn.Module) -> bool:
    """Whether a map is no subclass, whose weight may be kept in another form."""
    return type(linear) is nn.Linear or is_conv1d(linear)


def set_map(linear: nn.Module, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a Linear or Conv1D new parameters."""
    if not is_conv1d(linear):
        set_linear(linear, weight, bias)
        return
    linear.weight = parameter(weight.t().contiguous(), linear.weight)
    linear.bias = parameter(bias, linear.bias)
    linear.nx, linear.nf = linear.weight.shape
    if not linear.nx and not isinstance(linear, NoNeurons):
        swap_in(linear, NoNeurons)
    elif linear.nx and isinstance(linear, NoNeurons):
        swap_out(linear)


def hook_neurons(sites: list[NeuronSite], attachment: Attachment) -> None:
    """Gate blocks that run by their own code."""
    for site in sites:
        known: NeuronBlock | None = vars(site.out).get(NEURONS)
        if known is not None and known.attachment is attachment:
            continue
        block = NeuronBlock(site.number, attachment)
        unhook_neurons(site.inner)
        unhook_neurons(site.out)
        setattr(site.inner, NEURONS, block)
        setattr(site.out, NEURONS, block)
        site.inner.register_forward_pre_hook(_show_input)
        site.out.register_forward_pre_hook(_gate_neurons)
        site.out.register_forward_hook(_gate_output)


def unhook_neurons(module: nn.Module) -> None:
    """Take the hooks of ``hook_neurons`` from a module, if it has some."""
    vars(module).pop(NEURONS, None)
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key in [key for key, hook in hooks.items() if hook in _HOOKS]:
            del hooks[key]


def gate_values(
    gating: Gating | None, number: int, origin: NeuronOrigin | None, values: torch.Tensor
) -> torch.Tensor:
    """What the neurons of a block give, [B, T, neurons present], times their gates."""
    gate = None if gating is None else gating.of_neurons(number, values)
    if gate is None:
        return values
    if origin is not None and origin.is_pruned:
        gate = gate[..., origin.kept]
    return values * gate.to(values.dtype)


def gate_whole(
    gating: Gating | None, number: int, origin: NeuronOrigin | None, output: torch.Tensor
) -> torch.Tensor:
    """What a block adds, [B, T, D], times its gate; nothing if it was closed for good."""
    if origin is not None and not origin.open:
        return torch.zeros_like(output)
    factor = None if gating is None else gating.feed_forward_factor(number, output)
    output = output if factor is None else output * factor
    return output if gating is None else gating.of_stream(output)


def _show_input(module: nn.Module, args: tuple[Any, ...]) -> None:
    taps = _call(module).taps
    if taps is not None and taps.feed_forward_inputs:
        taps.feed_forward_input = [*taps.feed_forward_input, args[0]]


def _gate_neurons(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    call = _call(module)
    if call.taps is not None and call.taps.neuron_activations:
        call.taps.neurons = [*call.taps.neurons, args[0]]
    if call.gating is None or call.gating.neurons is None:
        return None
    block: NeuronBlock = getattr(module, NEURONS)
    origin = getattr(module, NEURON_ORIGIN, None)
    return (gate_values(call.gating, block.number, origin, args[0]),)


def _gate_output(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor:
    call = _call(module)
    block: NeuronBlock = getattr(module, NEURONS)
    output = gate_whole(call.gating, block.number, getattr(module, NEURON_ORIGIN, None), output)
    if call.taps is not None and call.taps.feed_forward_outputs:
        call.taps.feed_forward_output = [*call.taps.feed_forward_output, output]
    return output


def _call(module: nn.Module):
    return call_of_block(getattr(module, NEURONS), {})


_HOOKS = (_show_input, _gate_neurons, _gate_output)
