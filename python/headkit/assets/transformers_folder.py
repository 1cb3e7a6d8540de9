"""Writes checkpoints as folders for ``from_pretrained``, after checking them against the model."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    import transformers


def write_model(
    folder: Path,
    kind: type["transformers.PreTrainedModel"],
    config: "transformers.PreTrainedConfig",
    tensors: dict[str, torch.Tensor],
    *,
    unused: Collection[str] = (),
) -> None:
    """Write config.json, generation_config.json if the model generates, and model.safetensors.

    Args:
        folder: exists; files of these names are overwritten.
        kind: the class that will load the folder.
        config: its configuration.
        tensors: every parameter and saved buffer of the model, contiguous float32; weights tied to
            others left out.
        unused: names that may be there without the model's using them.

    Raises:
        ValueError: if a tensor is missing, left over or of another shape than the model's; nothing
            is written.
        OSError: if a file cannot be written.
    """
    import safetensors.torch

    with torch.device("meta"):
        model = kind(config)
    expected = {name: list(value.shape) for name, value in model.state_dict().items()}
    for tied in model.all_tied_weights_keys:
        expected.pop(tied, None)
    found = {name: list(value.shape) for name, value in tensors.items() if name not in unused}
    for name in sorted({*expected, *found}):
        if expected.get(name) != found.get(name):
            raise ValueError(
                f"[convert] expected {name} of shape {expected.get(name)} for {kind.__name__}; "
                f"found {found.get(name)}"
            )
    config.architectures = [kind.__name__]
    config.dtype = "float32"
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)
    safetensors.torch.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors writes for the owner alone; a cache may have other readers.
    shutil.copymode(folder / "config.json", folder / "model.safetensors")
