"""ALBERT: layers share their parameters, and get modules of their own while attached.

Parameters and state dict stay as they were; with several groups of layers, ``named_parameters``
names the groups after their first layers.
"""

import copy

from torch import nn

from headkit.huggingface.adapter import LinearAdapter
from headkit.huggingface.attention_block import Inputs, run_block
from headkit.huggingface.feed_forward import (
    FeedForwardPaths,
    GatedFeedForward,
    run_feed_forward,
)
from headkit.huggingface.shallow import own_modules
from headkit.huggingface.stream import StreamPaths
from headkit.huggingface.swapping import Swapped, swap_in, swap_out

# On an encoder whose layers got modules of their own: its configuration before.
SHARED = "headkit_shared_config"
# On the list of these layers: the group of each.
GROUPS = "headkit_groups"


class GatedAttention(Swapped):
    """The block, with residual and norm."""

    def forward(self, hidden_states, attention_mask=None, **kwargs):
        """Return ``(LayerNorm(attention + hidden_states), probabilities or None)``."""
        dropout = self.attention_dropout.p if self.training else 0.0
        inputs = Inputs(hidden_states, attention_mask, kwargs, self.scaling, dropout=dropout)
        output, probabilities = run_block(self, inputs)
        return self.LayerNorm(hidden_states + self.output_dropout(output)), probabilities


class GatedLayer(GatedFeedForward):
    """The layer, as far as its feed-forward block goes."""

    METHOD = "ff_chunk"

    def ff_chunk(self, attention_output):
        """Return the feed-forward block's output; residual and norm are outside."""
        return run_feed_forward(self, attention_output)


class OwnLayers(Swapped):
    """The list of layers; while groups share their parameters, its state is that of the groups."""

    def state_dict(self, *args, destination=None, prefix="", keep_vars=False):
        """The state of each group once; of each layer, if some of them differ."""
        if destination is None or not _shared(self):
            return super().state_dict(
                *args, destination=destination, prefix=prefix, keep_vars=keep_vars
            )
        for group, layers in enumerate(_layers_of_groups(self)):
            self[layers[0]].state_dict(
                destination=destination, prefix=f"{prefix}{group}.", keep_vars=keep_vars
            )
        return destination

    def _load_from_state_dict(self, state_dict, prefix, *args):
        if _shared(self):
            given = dict(state_dict)
            for group, layers in enumerate(_layers_of_groups(self)):
                start = f"{prefix}{group}."
                for name in [name for name in given if name.startswith(start)]:
                    for layer in layers:
                        state_dict[f"{prefix}{layer}.{name.removeprefix(start)}"] = given[name]
        super()._load_from_state_dict(state_dict, prefix, *args)


class Albert(LinearAdapter):
    """ALBERT."""

    NAMES = ("ALBERT",)
    FEED_FORWARD = FeedForwardPaths(
        owner="albert_layers.0",
        inner="ffn",
        activation="activation",
        out="ffn_output",
        mixin=GatedLayer,
    )
    FRONT = ("embeddings",)
    STREAM = StreamPaths(
        start=("encoder.embedding_hidden_mapping_in",),
        norms=(
            "albert_layers.0.attention.LayerNorm",
            "albert_layers.0.full_layer_layer_norm",
        ),
    )
    PROJECTIONS = ("query", "key", "value", "dense")
    ATTRIBUTES = frozenset(
        {
            "config",
            "num_attention_heads",
            "hidden_size",
            "attention_head_size",
            "all_head_size",
            "scaling",
            "is_causal",
        }
    )
    MODULES = frozenset({"attention_dropout", "output_dropout", "LayerNorm"})

    def matches(self, module: nn.Module) -> bool:
        """Query, key, value and dense beside a LayerNorm."""
        return super().matches(module) and "LayerNorm" in module._modules

    def prepare(self, model: nn.Module) -> None:
        """Give each layer modules of its own, with the parameters of its group."""
        for encoder in _encoders(model):
            modules, layers = encoder.albert_layer_groups, encoder.config.num_hidden_layers
            if len(modules) >= layers:
                continue
            groups = [int(layer / (layers / len(modules))) for layer in range(layers)]
            setattr(encoder, SHARED, encoder.config)
            encoder.config = copy.copy(encoder.config)
            encoder.config.num_hidden_groups = layers
            own = [
                own_modules(modules[group]) if group in groups[:layer] else modules[group]
                for layer, group in enumerate(groups)
            ]
            _set(modules, own)
            swap_in(modules, OwnLayers)
            setattr(modules, GROUPS, groups)

    def restore(self, model: nn.Module) -> None:
        """Share modules again, unless heads were removed: then layers stay their own."""
        for encoder in _encoders(model):
            modules = encoder.albert_layer_groups
            if not hasattr(encoder, SHARED):
                continue
            if _shared(modules):
                _set(modules, [modules[layers[0]] for layers in _layers_of_groups(modules)])
                encoder.config = getattr(encoder, SHARED)
            swap_out(modules)
            delattr(encoder, SHARED)
            delattr(modules, GROUPS)

    def head_dim(self, module: nn.Module) -> int:
        """``attention_head_size``."""
        return module.attention_head_size

    def assign(self, module: nn.Module, weights, heads: int) -> None:
        """Replace the parameters, and say how many heads are there."""
        super().assign(module, weights, heads)
        module.num_attention_heads = heads
        module.all_head_size = heads * module.attention_head_size

    def feed_forward(self, layer: nn.Module) -> int:
        """Rows of ``ffn``, in the first of the layers that a group runs."""
        return layer.albert_layers[0].ffn.out_features

    def feed_forward_paths(self, layer: nn.Module) -> FeedForwardPaths | None:
        """That of a group's only layer; groups that run several are not known."""
        return super().feed_forward_paths(layer) if len(layer.albert_layers) == 1 else None

    def swapped(self, module: nn.Module) -> list[tuple[nn.Module, type[Swapped]]]:
        """The block itself."""
        return [(module, GatedAttention)]


def _encoders(model: nn.Module) -> list[nn.Module]:
    return [
        module
        for module in model.modules()
        if isinstance(module._modules.get("albert_layer_groups"), nn.ModuleList)
    ]


def _layers_of_groups(modules: nn.ModuleList) -> list[list[int]]:
    groups = getattr(modules, GROUPS)
    return [
        [layer for layer, group in enumerate(groups) if group == number]
        for number in sorted(set(groups))
    ]


def _shared(modules: nn.ModuleList) -> bool:
    """Whether the layers of each group still have the same parameters."""
    return all(
        len({tuple(map(id, modules[layer].parameters())) for layer in layers}) == 1
        for layers in _layers_of_groups(modules)
    )


def _set(modules: nn.ModuleList, children: list[nn.Module]) -> None:
    del modules[:]
    modules.extend(children)
