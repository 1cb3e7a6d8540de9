"""Where a model comes from: a folder, what headkit fetches, or the hub."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from headkit import assets

SAVED = "headkit.json"
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
HUB_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")


@dataclass(frozen=True)
class ModelSource:
    """A model folder that was looked at, not loaded.

    Attributes:
        folder: with config.json.
        config: of transformers.
        architecture: the model's class, "" if the folder does not say.
        saved: what headkit.json says, None if another program wrote the folder.
    """

    folder: Path
    config: Any
    architecture: str
    saved: dict[str, Any] | None

    def load(self, auto_class: str) -> torch.nn.Module:
        """The model, in evaluation mode.

        Args:
            auto_class: of transformers, for example ``"AutoModelForCausalLM"``.

        Raises:
            ValueError: if the folder does not hold such a model.
        """
        import transformers

        import headkit

        with _one_line_errors(self.folder, "a transformers model"):
            if self.saved is None:
                kind = getattr(transformers, auto_class)
                return kind.from_pretrained(self.folder, local_files_only=True).eval()
            model = headkit.load(self.folder).eval()
            if (self.folder / "generation_config.json").is_file():
                model.generation_config = transformers.GenerationConfig.from_pretrained(self.folder)
            return model

    def load_processor(self, auto_class: str) -> Any:
        """The tokenizer or processor.

        Raises:
            ValueError: if the folder has none.
        """
        import transformers

        with _one_line_errors(self.folder, f"a model with what {auto_class} loads"):
            return getattr(transformers, auto_class).from_pretrained(
                self.folder, local_files_only=True
            )


def find_model(name: str) -> ModelSource:
    """Look at a model.

    Args:
        name: a folder of transformers or headkit, the name of an asset, or owner/name on the hub.

    Raises:
        ValueError: if there is no such model.
        RuntimeError: if it cannot be fetched.
    """
    import transformers

    folder = _folder(name)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"[model] expected a model folder with a config.json; found none in {folder}"
        )
    with _one_line_errors(folder, "a transformers configuration"):
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    saved = None
    if (folder / SAVED).is_file():
        with _one_line_errors(folder, f"a {SAVED} that headkit wrote"):
            saved = json.loads((folder / SAVED).read_text(encoding="utf-8"))
            if not isinstance(saved, dict):
                raise ValueError(type(saved).__name__)
            written = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if saved.get("config") not in (written, None):
            raise ValueError(
                f"[model] expected config.json and {SAVED} of one model in {folder}; found that "
                "they differ"
            )
    named = (config.architectures or [""])[0]
    if saved is not None:
        named = (saved.get("details") or {}).get("model_class") or named
    return ModelSource(folder, config, named, saved)


def _folder(name: str) -> Path:
    path = Path(name)
    if path.is_dir():
        return path
    models = [key for key, asset in assets.ASSETS.items() if asset.is_model]
    if name in models:
        return assets.fetch(name)
    what = "a file" if path.is_file() else "no such folder"
    reason = ""
    if not path.exists() and HUB_NAME.fullmatch(name):
        import huggingface_hub

        try:
            return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(HUB_FILES)))
        except (OSError, ValueError) as error:
            reason = f", and the hub does not give it: {_first_line(error)}"
    raise ValueError(
        f"[model] expected a model folder, one of {', '.join(models)}, or owner/name on the hub; "
        f"found {what}: {name}{reason}"
    )


@contextmanager
def _one_line_errors(folder: Path, expected: str) -> Iterator[None]:
    """Turn what transformers raises about a folder into one line."""
    try:
        yield
    except (OSError, KeyError, ValueError, ImportError, TypeError) as error:
        if str(error).startswith("["):
            raise
        raise ValueError(
            f"[model] expected {expected} in {folder}; found: {_first_line(error)}"
        ) from error


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else repr(error)
