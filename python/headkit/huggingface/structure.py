"""Where the attention blocks of a model are, found by how its modules are built."""

import inspect
from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from headkit.huggingface.adapter import Adapter
from headkit.huggingface.swapping import original_class


@dataclass(frozen=True)
class Site:
    """One attention block in its model.

    Attributes:
        path: of its module, from the model.
        module: the module.
        adapter: the family that knows it.
        layer: path of the layer that holds it, from the model.
        cross: whether it attends to another sequence.
    """

    path: str
    module: nn.Module
    adapter: Adapter
    layer: str
    cross: bool


@dataclass(frozen=True)
class Stack:
    """Layers that run one after the other.

    Attributes:
        owner: path of the module that runs them.
        layers: paths of the layers, in order.
    """

    owner: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Structure:
    """The attention of one model.

    Attributes:
        model: the model.
        base: path of the innermost model that holds all blocks.
        stacks: one, or encoder and decoder.
        sites: all blocks, in the order in which they run.
    """

    model: nn.Module
    base: str
    stacks: tuple[Stack, ...]
    sites: tuple[Site, ...]

    def module(self, path: str) -> nn.Module:
        """The module at a path."""
        return self.model.get_submodule(path)

    def blocks_of(self, layer: str) -> list[int]:
        """Numbers of the blocks in a layer."""
        return [number for number, site in enumerate(self.sites) if site.layer == layer]

    def layers(self) -> list[str]:
        """Paths of all layers, in the order in which they run."""
        return [layer for stack in self.stacks for layer in stack.layers]


def find_structure(model: nn.Module, adapters: Iterable[Adapter], names: str) -> Structure:
    """Find the attention blocks of a model.

    Args:
        model: the model; nothing is changed.
        adapters: families, the first that matches wins.
        names: what they serve, for the error message.

    Raises:
        ValueError: if there are none, or they do not form one encoder, decoder or
            encoder-decoder of equal blocks, or one of them does more than its family knows.
    """
    blocks = _find_blocks(model, tuple(adapters))
    layers = {path: _layer_path(model, path, blocks) for path in blocks}
    sites: list[Site] = []
    for path, (module, adapter) in blocks.items():
        layer = layers[path]
        if layer is None and any(layers.values()):
            continue  # a pooling head, for example: it stays as it is
        if layer in (None, path) or isinstance(model.get_submodule(layer), nn.ModuleList):
            raise ValueError(
                "[attach] expected attention blocks in a list of layers, each of which is called; "
                f"found one at {path or 'the top'}"
            )
        if reason := adapter.refusal(module):
            raise ValueError(
                f"[attach] expected attention as one of {names} has it; found {reason} at {path}"
            )
        sites.append(Site(path, module, adapter, layer, adapter.is_cross(module)))
    if not sites:
        raise ValueError(
            f"[attach] expected a model with attention of {names}; found {type(model).__name__}, "
            "which has none that is built like these"
        )
    stacks = _stacks(model, sites)
    order = {layer: place for place, layer in enumerate(_all(stacks))}
    sites.sort(key=lambda site: order[site.layer])
    return Structure(model, _base(model, sites), stacks, tuple(sites))


def _find_blocks(
    model: nn.Module, adapters: tuple[Adapter, ...]
) -> dict[str, tuple[nn.Module, Adapter]]:
    blocks: dict[str, tuple[nn.Module, Adapter]] = {}
    for path, module in model.named_modules():
        if any(path.startswith(f"{known}.") or not known for known in blocks):
            continue
        adapter = next((one for one in adapters if one.matches(module)), None)
        if adapter is not None:
            blocks[path] = (module, adapter)
    return blocks


def _layer_path(model: nn.Module, path: str, blocks: Iterable[str]) -> str | None:
    """The outermost list around a block in which every entry has a block says what a layer is."""
    names = path.split(".") if path else []
    module, layers = model, []
    for depth, name in enumerate(names):
        if isinstance(module, nn.ModuleList | nn.Sequential):
            layer = ".".join(names[: depth + 1])
            entries = [".".join((*names[:depth], entry)) for entry in module._modules]
            if all(any(f"{b}.".startswith(f"{entry}.") for b in blocks) for entry in entries):
                return layer
            layers.append(layer)
        module = module._modules[name]
    return layers[0] if layers else None


def _stacks(model: nn.Module, sites: list[Site]) -> tuple[Stack, ...]:
    lists: dict[str, dict[str, list[Site]]] = {}
    for site in sites:
        lists.setdefault(site.layer.rpartition(".")[0], {}).setdefault(site.layer, []).append(site)
    stacks = []
    for path, layers in lists.items():
        present = [f"{path}.{name}" for name in model.get_submodule(path)._modules]
        without = [name for name in present if name not in layers]
        if without or len({len(blocks) for blocks in layers.values()}) != 1:
            raise ValueError(
                f"[attach] expected the same attention blocks in every layer of {path}; found "
                f"{without[0] if without else 'different numbers of them'}"
            )
        stacks.append(Stack(path.rpartition(".")[0], tuple(present)))
    crossing = [any(s.cross for b in layers.values() for s in b) for layers in lists.values()]
    if len(stacks) > 1 and crossing != [False, True]:
        raise ValueError(
            "[attach] expected one encoder, one decoder, or an encoder before its decoder; found "
            f"{len(stacks)} stacks of layers: {', '.join(lists)}"
        )
    return tuple(stacks)


def _all(stacks: tuple[Stack, ...]) -> list[str]:
    return [layer for stack in stacks for layer in stack.layers]


def _base(model: nn.Module, sites: list[Site]) -> str:
    common = sites[0].path.split(".")
    for site in sites:
        names = site.path.split(".")
        same = 0
        while same < min(len(common), len(names)) and common[same] == names[same]:
            same += 1
        common = common[:same]
    for depth in range(len(common), -1, -1):
        path = ".".join(common[:depth])
        if is_transformers_model(model.get_submodule(path)):
            return path
    return ""


def is_transformers_model(module: nn.Module) -> bool:
    """Whether a module is a model of transformers."""
    return any(
        base.__module__ == "transformers.modeling_utils" and base.__name__ == "PreTrainedModel"
        for base in type(module).__mro__
    )


def hands_down_keywords(module: nn.Module) -> bool:
    """Whether the forward of a module takes keyword arguments that it does not know."""
    parameters = inspect.signature(original_class(module).forward).parameters.values()
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)
