"""The contract of a family: how it keeps an attention block, and how the block is called."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import nn

from headkit.huggingface.shallow import HOOKS
from headkit.huggingface.swapping import Swapped, original_class, swap_in, swap_out

if TYPE_CHECKING:
    from headkit.huggingface.feed_forward import FeedForwardPaths
    from headkit.huggingface.stream import StreamPaths


class Weights(NamedTuple):
    """Weights of one block as its module keeps them, or views of these; y = x W^T + b.

    q [H * dh, D]; k, v [Hkv * dh, D of the keys' source]; o [D, H * dh]; biases [rows] or None.
    """

    q: torch.Tensor
    k: torch.Tensor
    v: torch.Tensor
    o: torch.Tensor
    q_bias: torch.Tensor | None = None
    k_bias: torch.Tensor | None = None
    v_bias: torch.Tensor | None = None
    o_bias: torch.Tensor | None = None


class Norms(NamedTuple):
    """RMS norms of queries and keys over dh, before the rotation; weights [dh]."""

    q: torch.Tensor
    k: torch.Tensor
    eps: float


class Adapter(ABC):
    """One family of attention blocks. Stateless: everything is read from the module.

    A family is a subclass in ``families/`` with one instance in ``families.ADAPTERS``. See
    ``docs/guides/add_a_model.md``.
    """

    #: Models that the family serves, as users know them.
    NAMES: ClassVar[tuple[str, ...]] = ()
    #: Paths below the base model of modules before layer 0 whose outputs are worth keeping.
    FRONT: ClassVar[tuple[str, ...]] = ()
    #: Whether a mask [B, T] that a model of transformers is given is the padding of its blocks.
    NOTES_PADDING: ClassVar[bool] = True
    #: The feed-forward block of a layer, if it is linear, activation, linear.
    FEED_FORWARD: ClassVar["FeedForwardPaths | None"] = None
    #: Where the family touches the residual stream, if its dimensions can be gated.
    STREAM: ClassVar["StreamPaths | None"] = None
    #: Keyword arguments of a layer that are the same for all samples, [T, S].
    SQUARE: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def matches(self, module: nn.Module) -> bool:
        """Whether a module is built as a block of this family; its class name says nothing."""

    def refusal(self, module: nn.Module) -> str:
        """What a block that matches has beyond what is computed here; empty if nothing."""
        return ""

    def prepare(self, model: nn.Module) -> None:
        """Change the model, without changing what it computes, before its blocks are looked at."""

    def restore(self, model: nn.Module) -> None:
        """Undo ``prepare``."""

    def is_cross(self, module: nn.Module) -> bool:
        """Whether keys and values come from another sequence."""
        return False

    @abstractmethod
    def head_dim(self, module: nn.Module) -> int:
        """Width of one head, dh."""

    @abstractmethod
    def projections(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """The modules whose weights the operator runs instead of them."""

    @abstractmethod
    def weights(self, module: nn.Module) -> Weights:
        """The weights that are there, with their gradients."""

    @abstractmethod
    def assign(self, module: nn.Module, weights: Weights, heads: int) -> None:
        """Put other weights in place, of ``heads`` heads; sizes and dtypes were checked."""

    def norms(self, module: nn.Module) -> Norms | None:
        """Norms of queries and keys, if the block has them."""
        return None

    def cache_layer(self, module: nn.Module) -> int:
        """The number under which a cache keeps the block's keys and values."""
        return module.layer_idx

    def config(self, module: nn.Module) -> Any:
        """The configuration of the model, or None."""
        return getattr(module, "config", None)

    def feed_forward(self, layer: nn.Module) -> int:
        """Neurons of the feed-forward block in a layer; 0 = unknown."""
        return 0

    def feed_forward_paths(self, layer: nn.Module) -> "FeedForwardPaths | None":
        """Where the feed-forward block of a layer is, if headkit can run it."""
        paths = self.FEED_FORWARD
        if paths is None or not _has(layer, paths.owner):
            return None
        owner = layer.get_submodule(paths.owner)
        maps = [path for path in (paths.inner, paths.out, paths.up) if path is not None]
        known = all(
            _has(owner, path)
            and (isinstance(part := owner.get_submodule(path), nn.Linear) or is_conv1d(part))
            for path in maps
        )
        return paths if known else None

    @abstractmethod
    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The modules whose class changes, with the mixins they get."""

    def example(
        self, module: nn.Module, hidden: torch.Tensor, mask: torch.Tensor
    ) -> dict[str, Any]:
        """Keyword arguments for one call of the block, as its layer gives them.

        Args:
            module: the block.
            hidden: [B, T, D].
            mask: added to the scores, [1, 1, T, T].
        """
        return {"hidden_states": hidden, "attention_mask": mask}

    def batch_axis(self, module: nn.Module) -> int:
        """Which axis of a layer's hidden states counts the samples: 0, or 1 as [T, B, D]."""
        return 0

    def layer_mask(self, arguments: Mapping[str, Any]) -> torch.Tensor | None:
        """The mask among the arguments of a layer, as ``masks.read_mask`` takes it."""
        return arguments.get("attention_mask")

    def layer_output(
        self, layer: nn.Module, hidden: torch.Tensor, args: tuple, kwargs: dict[str, Any]
    ) -> Any:
        """What a layer that is called with these arguments returns, if ``hidden`` comes out."""
        return hidden

    def attach(self, module: nn.Module) -> None:
        """Put our forward in place."""
        for part, mixin in self.swapped(module):
            swap_in(part, mixin)

    def connect(self, module: nn.Module, first: nn.Module) -> None:
        """Show an attached block the first one of its stack, with which it may share something."""

    def detach(self, module: nn.Module) -> None:
        """Put the original forward back."""
        for part, _ in self.swapped(module):
            swap_out(part)

    def plain_refusal(self, module: nn.Module, heads: int, kept: list[int]) -> str:
        """Why a pruned block cannot run without headkit; empty if it can."""
        return ""


class LinearAdapter(Adapter):
    """A family whose projections are four ``nn.Linear``.

    Attributes:
        PROJECTIONS: dotted paths of Q, K, V and output projection below the block.
        ATTRIBUTES: what a block may hold beside modules. One that holds more computes something
            that is not known here.
        MODULES: children that a block may have beside the projections.
    """

    PROJECTIONS: ClassVar[tuple[str, str, str, str]]
    ATTRIBUTES: ClassVar[frozenset[str]] = frozenset()
    MODULES: ClassVar[frozenset[str]] = frozenset()

    def matches(self, module: nn.Module) -> bool:
        """Whether the four projections and ``head_dim`` are there."""
        return all(_has(module, path) for path in self.PROJECTIONS)

    def refusal(self, module: nn.Module) -> str:
        """Attributes, children or parameters that the family does not know."""
        own = {path.partition(".")[0] for path in self.PROJECTIONS}
        return unknown_parts(module, self.ATTRIBUTES, self.MODULES | own)

    def projections(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """Q, K, V and output projection."""
        return tuple(module.get_submodule(path) for path in self.PROJECTIONS)

    def weights(self, module: nn.Module) -> Weights:
        """The four weights and biases as they are."""
        q, k, v, o = self.projections(module)
        return Weights(q.weight, k.weight, v.weight, o.weight, q.bias, k.bias, v.bias, o.bias)

    def assign(self, module: nn.Module, weights: Weights, heads: int) -> None:
        """Replace the parameters of the four projections."""
        for place, linear in enumerate(self.projections(module)):
            set_linear(linear, weights[place], weights[place + 4])

    def head_dim(self, module: nn.Module) -> int:
        """The attribute ``head_dim``."""
        return module.head_dim


def example_rotation(hidden: torch.Tensor, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines [1, T, dh] for one call: angles that grow with the position.

    Args:
        hidden: [B, T, D].
        head_dim: dh.
    """
    place = torch.arange(hidden.shape[1], device=hidden.device)[:, None]
    angle = place / (1 + torch.arange(head_dim // 2, device=hidden.device))
    angle = torch.cat((angle, angle), -1)[None].to(hidden.dtype)
    return angle.cos(), angle.sin()


class FusedAdapter(Adapter):
    """A family with one ``nn.Linear`` for Q, K and V, three blocks of rows, and one for the output.

    Attributes:
        FUSED, OUTPUT: names of the two.
        ATTRIBUTES, MODULES: as in ``LinearAdapter``.
    """

    FUSED: ClassVar[str]
    OUTPUT: ClassVar[str]
    ATTRIBUTES: ClassVar[frozenset[str]] = frozenset()
    MODULES: ClassVar[frozenset[str]] = frozenset()

    def matches(self, module: nn.Module) -> bool:
        """Whether the two are there."""
        return _has(module, self.FUSED) and _has(module, self.OUTPUT)

    def refusal(self, module: nn.Module) -> str:
        """Attributes, children or parameters that the family does not know."""
        return unknown_parts(module, self.ATTRIBUTES, self.MODULES | {self.FUSED, self.OUTPUT})

    def head_dim(self, module: nn.Module) -> int:
        """The attribute ``head_dim``."""
        return module.head_dim

    def projections(self, module: nn.Module) -> tuple[nn.Module, ...]:
        """The two."""
        return module._modules[self.FUSED], module._modules[self.OUTPUT]

    def weights(self, module: nn.Module) -> Weights:
        """Views of the rows."""
        fused, out = self.projections(module)
        q, k, v = fused.weight.chunk(3) if len(fused.weight) else (fused.weight,) * 3
        biases = (None,) * 3
        if fused.bias is not None:
            biases = fused.bias.chunk(3) if len(fused.bias) else (fused.bias,) * 3
        return Weights(q, k, v, out.weight, *biases, out.bias)

    def assign(self, module: nn.Module, weights: Weights, heads: int) -> None:
        """Join the rows again."""
        fused, out = self.projections(module)
        biases = weights[4:7]
        set_linear(fused, torch.cat(weights[:3]), None if biases[0] is None else torch.cat(biases))
        set_linear(out, weights.o, weights.o_bias)


# What every nn.Module holds, and what headkit itself notes on a block.
_MODULE_ATTRIBUTES = frozenset(vars(nn.Module()))
_OURS = "headkit_"


def unknown_parts(
    module: nn.Module,
    attributes: frozenset[str],
    children: frozenset[str] | set[str],
    parameters: frozenset[str] = frozenset(),
) -> str:
    """Name what a module holds beyond the given attributes, children and parameters.

    Returns:
        For example ``"parameters sinks"``; empty if there is nothing.
    """
    extra = sorted(
        name
        for name in vars(module)
        if name not in _MODULE_ATTRIBUTES
        and name not in attributes
        and not name.startswith((_OURS, "_"))
    )
    parts = [("attributes", extra), ("modules", sorted(set(module._modules) - set(children)))]
    parts.append(("parameters", sorted(set(module._parameters) - parameters)))
    parts.append(("buffers", sorted(module._buffers)))
    found = [f"{what} {', '.join(names)}" for what, names in parts if names]
    return f"{original_class(module).__name__} with {' and '.join(found)}" if found else ""


# The second is what torch.nn.MultiheadAttention has as output projection.
_LINEAR = (nn.Linear, nn.modules.linear.NonDynamicallyQuantizableLinear)


def refuse_altered(projections: tuple[nn.Module, ...], operation: str) -> None:
    """Refuse projections that the operator would not run as they are.

    Raises:
        ValueError: if one is of another class than the family's own (adapters, quantisation) or
            has hooks.
    """
    for projection in projections:
        if type(projection) not in _LINEAR and not is_conv1d(projection):
            found = type(projection)
            raise ValueError(
                f"[{operation}] expected projections of type torch.nn.Linear; found "
                f"{found.__module__}.{found.__qualname__} (adapters: merge them first; quantised "
                "weights are not supported)"
            )
        for hooks in HOOKS:
            if getattr(projection, hooks):
                raise ValueError(
                    f"[{operation}] expected projections without hooks, because the block runs "
                    "them as one operator; found a hook"
                )


def set_linear(linear: nn.Linear, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
    """Give a Linear new parameters and the sizes that go with them."""
    linear.weight = parameter(weight, linear.weight)
    like = linear.weight if linear.bias is None else linear.bias
    linear.bias = None if bias is None else parameter(bias, like)
    linear.out_features, linear.in_features = linear.weight.shape


def parameter(value: torch.Tensor, like: nn.Parameter) -> nn.Parameter:
    """A parameter with the device and the ``requires_grad`` of another."""
    return nn.Parameter(value.detach().to(like.device), requires_grad=like.requires_grad)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is the linear map of GPT-2, which keeps its weight turned, [in, out]."""
    known = original_class(module)
    return f"{known.__module__}.{known.__name__}" == "transformers.pytorch_utils.Conv1D"


def _has(module: nn.Module, path: str) -> bool:
    for name in path.split(".") if path else ():
        module = module._modules.get(name)
        if module is None:
            return False
    return True
