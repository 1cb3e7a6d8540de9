"""Converts the reaction model of RXNMapper to a transformers folder.

Source:
    Schwaller et al. 2021, Extraction of organic chemistry grammar from unsupervised learning of
    chemical reactions, Science Advances 7(15).
"""

import json
import pickle
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from headkit.assets.transformers_folder import write_model

if TYPE_CHECKING:
    import transformers

# The pieces of a SMILES string; what fits none of them becomes [UNK].
SMILES_PIECES = r"\[[^\]]+\]|Br|Cl|[BCNOSPFIbcnosp]|>>|[>().=#+\\/:~@?*$-]|%[0-9]{2}|[0-9]"
SIZES = (
    "vocab_size",
    "embedding_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_hidden_groups",
    "num_attention_heads",
    "inner_group_num",
    "max_position_embeddings",
    "type_vocab_size",
    "hidden_act",
    "layer_norm_eps",
)


def convert(source: Path, folder: Path) -> None:
    """Write the model and a tokenizer that takes reactions as SMILES.

    Args:
        source: a folder with config.json, pytorch_model.bin and vocab.txt.
        folder: an empty folder.

    Raises:
        ValueError: if a file is not as expected.
        OSError: if one cannot be read.
    """
    import transformers

    given = json.loads((source / "config.json").read_text(encoding="utf-8"))
    if missing := [name for name in SIZES if name not in given]:
        raise ValueError(f"[rxnmapper] expected {missing[0]} in config.json; found none")
    tokenizer = _tokenizer((source / "vocab.txt").read_text(encoding="utf-8").splitlines())
    if len(tokenizer) != given["vocab_size"]:
        raise ValueError(
            f"[rxnmapper] expected {given['vocab_size']} lines in vocab.txt; found {len(tokenizer)}"
        )
    config = transformers.AlbertConfig(
        **{name: given[name] for name in SIZES},
        bos_token_id=tokenizer.cls_token_id,
        eos_token_id=tokenizer.sep_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    tokenizer.model_max_length = config.max_position_embeddings
    try:
        state = torch.load(source / "pytorch_model.bin", map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(
            f"[rxnmapper] expected weights in pytorch_model.bin; found: {error}"
        ) from error
    for tied in ("predictions.decoder.weight", "predictions.decoder.bias"):
        state.pop(tied, None)
    # The pooler is no part of the masked language model, but AlbertModel has one.
    write_model(
        folder,
        transformers.AlbertForMaskedLM,
        config,
        {name: value.contiguous() for name, value in state.items()},
        unused=("albert.pooler.weight", "albert.pooler.bias"),
    )
    tokenizer.save_pretrained(folder)


def _tokenizer(vocabulary: list[str]) -> "transformers.PreTrainedTokenizerFast":
    import tokenizers
    import transformers

    numbers = {token: place for place, token in enumerate(vocabulary)}
    special = {
        f"{role}_token": f"[{role.upper()}]" for role in ("unk", "cls", "sep", "pad", "mask")
    }
    for token in special.values():
        if token not in numbers:
            raise ValueError(f"[rxnmapper] expected {token} in vocab.txt; found none")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(numbers, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split(
        tokenizers.Regex(SMILES_PIECES), behavior="isolated"
    )
    tokenizer.decoder = tokenizers.decoders.Fuse()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, numbers[token]) for token in ("[CLS]", "[SEP]")],
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        **special,
    )
