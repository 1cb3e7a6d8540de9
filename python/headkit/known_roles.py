"""Roles that need to be told something beside the input: dependencies, partners, masks, times."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import gated_model


def treebank_batches(
    sentences: Sequence[_C.DependencySentence],
    tokenizer: Any,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
) -> tuple[list[dict[str, torch.Tensor]], list[_C.SequenceSyntax]]:
    """Encode sentences of a treebank, and find the tokens of their words.

    Args:
        sentences: of ``read_conllu``.
        tokenizer: a fast one of transformers, which tells the characters of each token.
        batch_size: sentences that run at once; they stay in order.
        max_length: longest sequence in tokens, special ones included; None = the tokenizer's.

    Returns:
        batches: dicts with ``input_ids`` and ``attention_mask``.
        syntax: a SequenceSyntax for each sentence.

    Raises:
        ValueError: for a tokenizer that is not a fast one, or a batch_size below 1.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            "[treebank_batches] expected a fast tokenizer, which tells the characters of each "
            f"token; found {type(tokenizer).__name__}"
        )
    if batch_size < 1:
        raise ValueError(f"[treebank_batches] expected a batch_size above 0; found {batch_size}")
    batches, syntax = [], []
    for first in range(0, len(sentences), batch_size):
        part = sentences[first : first + batch_size]
        encoded = tokenizer(
            [sentence.text for sentence in part],
            padding=tokenizer.pad_token is not None,
            truncation=True,
            max_length=max_length,
            return_offsets_mapping=True,
            return_tensors="pt",
        )
        batches.append({name: encoded[name] for name in ("input_ids", "attention_mask")})
        for sentence, offsets in zip(part, encoded["offset_mapping"].tolist(), strict=True):
            syntax.append(_C.align_words(sentence, offsets))
    return batches, syntax


def syntactic_roles(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    syntax: Sequence[_C.SequenceSyntax],
    *,
    minimum_arcs: int = 200,
    measure: _C.RoleMeasure | None = None,
    progress: bool | Told = False,
) -> _C.RoleTable:
    """Find heads that look along dependencies between words, in either direction.

    Role ``syntactic``, variants such as ``nsubj/row`` (from the dependent to its head) and
    ``nsubj/column`` (from the head to its dependent). Heads are chosen on the sequences of even
    number and reported on the odd ones; a label needs 10 points more than the best fixed word
    offset on both, a lower bound above every null, and 200 arcs.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once.
        syntax: one for each example, in order; see ``treebank_batches``.
        minimum_arcs: relations with fewer on the reported sequences get no score.
        measure: of nulls and intervals; None = ``RoleMeasure()``.
        progress: True for a bar, or a function called with (batches done, batches).

    Returns:
        RoleTable: scores by head; ``details`` tell the best offset and the score where heads are
        chosen.

    Raises:
        ValueError: if examples, tokens and ``syntax`` do not fit together, or none has an arc.

    Source:
        Clark et al. 2019; Voita et al. 2019.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.tensor([[1, 7, 8, 9, 2], [1, 9, 8, 7, 2]])}]
        >>> syntax = headkit.SequenceSyntax([-1, 0, 1, 1, -1], [1, -1], ["det", "root"])
        >>> table = headkit.syntactic_roles(model, data, [syntax, syntax], minimum_arcs=1)
        >>> table.find(0, 1, "syntactic", "det/row").score  # there is one other word
        1.0
    """
    gated = gated_model(model, "syntactic_roles")
    with reporting("syntactic roles", progress) as tell:
        return _C.find_syntactic_roles(
            gated, data, list(syntax), minimum_arcs, measure or _C.RoleMeasure(), tell
        )


def gold_alignment(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    targets: Sequence[Sequence[int]],
    candidates: Sequence[Sequence[int]] = (),
    *,
    cross: bool = False,
    measure: _C.RoleMeasure | None = None,
    progress: bool | Told = False,
) -> _C.RoleTable:
    """Find heads that look from each token at its known partner.

    Role ``gold_alignment``: the share of tokens with a partner whose largest weight over the
    candidates lies on it. For example atoms of a product and of the reactants, words and their
    translations.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once.
        targets: for each example and token the key it should look at, or -1.
        candidates: for each example the keys that are compared; empty = all keys.
        cross: whether it is about the blocks that read another sequence.
        measure: of nulls and intervals; None = ``RoleMeasure()``.
        progress: True for a bar, or a function called with (batches done, batches).

    Returns:
        RoleTable: one score for each head.

    Raises:
        ValueError: if examples, tokens and partners do not fit together.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.tensor([[1, 7, 8, 7, 8]])}]
        >>> table = headkit.gold_alignment(model, data, [[-1, -1, -1, 1, 2]], [[1, 2]])
        >>> table.find(1, 0, "gold_alignment").rows
        2
    """
    gated = gated_model(model, "gold_alignment")
    with reporting("gold alignment", progress) as tell:
        return _C.find_gold_alignment(
            gated,
            data,
            [list(each) for each in targets],
            [list(each) for each in candidates],
            cross,
            measure or _C.RoleMeasure(),
            tell,
        )


def image_roles(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    grid: _C.PatchGrid,
    masks: torch.Tensor | None = None,
    *,
    measure: _C.RoleMeasure | None = None,
    progress: bool | Told = False,
) -> _C.RoleTable:
    """Describe what the heads of a vision transformer look at.

    Roles ``image_local``, ``image_offset``, ``same_row``, ``same_column``, ``object`` and
    ``artefact_sink``; see ``role_registry()``. Two passes over the data: the first for the norms of
    the last hidden states.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once.
        grid: where the patches are among the tokens.
        masks: the patches of the object, bool [images, rows, columns]; None = ``object`` is not
            assessed.
        measure: of nulls and intervals; None = ``RoleMeasure()``.
        progress: True for a bar, or a function called with (batches done, batches).

    Returns:
        RoleTable: scores by head.

    Raises:
        ValueError: if images, grid and masks do not fit together.

    Source:
        Raghu et al. 2021; Caron et al. 2021; Darcet et al. 2023.

    Example:
        >>> import transformers
        >>> config = transformers.ViTConfig(
        ...     image_size=8,
        ...     patch_size=2,
        ...     hidden_size=24,
        ...     num_hidden_layers=2,
        ...     num_attention_heads=4,
        ... )
        >>> model = transformers.ViTModel(config)
        >>> gated = headkit.attach(model)
        >>> grid = headkit.PatchGrid(rows=4, columns=4, patch_size=2)
        >>> table = headkit.image_roles(model, [{"pixel_values": torch.rand(2, 3, 8, 8)}], grid)
        >>> table.find(0, 1, "image_local").rows
        32
    """
    gated = gated_model(model, "image_roles")
    with reporting("image roles", progress) as tell:
        return _C.find_image_roles(gated, data, grid, masks, measure or _C.RoleMeasure(), tell)


def audio_roles(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    hop: float,
    times: Sequence[Sequence[float]] | None = None,
    *,
    measure: _C.RoleMeasure | None = None,
    progress: bool | Told = False,
) -> _C.RoleTable:
    """Describe where in time the heads of a speech model look.

    Roles ``globalness``, ``verticality``, ``diag_distance``, ``diag_cumulative`` and
    ``monotonicity`` of blocks that read their own sequence, and, with ``times``,
    ``time_alignment`` of cross-attention. They are to be ranked: none has a threshold.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once.
        hop: seconds from frame to frame of the attention.
        times: for each example and decoder token the second at which its word was said; NaN = not
            known.
        measure: of nulls and intervals; None = ``RoleMeasure()``.
        progress: True for a bar, or a function called with (batches done, batches).

    Returns:
        RoleTable: scores by head.

    Raises:
        ValueError: if examples, tokens and times do not fit together, or hop is not above 0.

    Source:
        Yang et al. 2020; Shim et al. 2022; the values are length-normalised forms of theirs.

    Example:
        >>> import transformers
        >>> config = transformers.Wav2Vec2Config(
        ...     hidden_size=16,
        ...     num_hidden_layers=1,
        ...     num_attention_heads=2,
        ...     intermediate_size=16,
        ...     conv_dim=(8,),
        ...     conv_stride=(5,),
        ...     conv_kernel=(10,),
        ...     num_feat_extract_layers=1,
        ...     num_conv_pos_embeddings=4,
        ...     num_conv_pos_embedding_groups=2,
        ... )
        >>> model = transformers.Wav2Vec2Model(config).eval()
        >>> gated = headkit.attach(model)
        >>> data = [{"input_values": torch.rand(2, 100)}]
        >>> table = headkit.audio_roles(model, data, hop=5 / 16000)
        >>> table.find(0, 1, "diag_distance").rows  # two sounds of 19 frames
        38
    """
    gated = gated_model(model, "audio_roles")
    with reporting("audio roles", progress) as tell:
        return _C.find_audio_roles(
            gated,
            data,
            hop,
            None if times is None else [list(each) for each in times],
            measure or _C.RoleMeasure(),
            tell,
        )


def syntactic_labels(table: _C.RoleTable) -> Iterator[tuple[int, int, _C.RoleScore]]:
    """Labels of role ``syntactic``: (layer, head, score), the largest margin first.

    Args:
        table: what ``syntactic_roles`` returned.
    """
    found = [
        (layer, head, score)
        for layer in range(table.layout.layers)
        for head in range(table.layout.heads)
        for score in table.labels(layer, head)
        if score.role == "syntactic"
    ]
    yield from sorted(found, key=lambda each: each[2].margin or 0.0, reverse=True)
