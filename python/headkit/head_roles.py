"""What heads look at, and the roles that describe it."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.progress import Told, reporting
from headkit.scoring import gated_model

# What a piece of a word is marked with: WordPiece, byte-level BPE, SentencePiece.
PIECE_MARKS = "#\u0120\u010a\u2581"
# Some models count positions from 2 on.
POSITIONS_KEPT = 2
CONFIGURED = ("bos", "eos", "cls", "sep", "pad", "decoder_start")


def for_each_attention(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    visit: Callable[[_C.SampleAttention], None],
    *,
    gates: _C.GateSet | torch.Tensor | None = None,
    output_norms: bool = False,
    progress: bool | Told = False,
) -> None:
    """Show the attention probabilities of every (block, sample), one at a time.

    Attention is never held for more than one of them. Closed heads are shown too: a gate does not
    change what they look at.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once: a list, a DataLoader.
        visit: called with a SampleAttention each time.
        gates: of the run: a GateSet, or a tensor [layers, heads], or [batch, layers, heads] for one
            batch; None = all heads run.
        output_norms: also the norm of what each head writes.
        progress: True for a bar, or a function called with (batches done, batches).

    Raises:
        ValueError: if gates do not fit, or the model does not show its attention.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.tensor([[1, 2, 3]])}]
        >>> headkit.for_each_attention(
        ...     model, data, lambda rows: print(rows.layer, tuple(rows.probabilities.shape))
        ... )
        0 (4, 3, 3)
        1 (4, 3, 3)
    """
    with reporting("attention", progress) as tell:
        _C.for_each_attention(
            gated_model(model, "for_each_attention"),
            data,
            visit,
            gates=_gate_set(gates),
            output_norms=output_norms,
            progress=tell,
        )


def roles(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    tokenizer: Any = None,
    *,
    special_tokens: Sequence[int] | None = None,
    delimiters: Mapping[str, Sequence[int]] | None = None,
    gates: _C.GateSet | torch.Tensor | None = None,
    inactive_threshold: float | None = None,
    random_sequences: int = 32,
    draws: int = 200,
    bootstrap: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool | Told = False,
) -> _C.RoleTable:
    """Describe what every head looks at: scores of all roles, with nulls and intervals.

    One pass of the model over the data, in which attention is never kept, and one over random
    sequences for induction. A head may get several labels or none. A role is a description, not an
    explanation of what the model makes of it: see ``warnings`` of the result.

    Args:
        model: an attached model, or a GatedModel.
        data: batches (name -> tensor) that can be walked more than once: a list, a DataLoader.
        tokenizer: of transformers; says which tokens are special, which are delimiters and what a
            sequence begins with.
        special_tokens: ids, in place of the tokenizer's; without either those of the model's
            configuration.
        delimiters: name -> ids, in place of the tokenizer's CLS, SEP and punctuation.
        gates: of the run, as for ``for_each_attention``.
        inactive_threshold: of the norm of what a head writes, by the mean of its layer, below which
            it is called inactive; None = scored, never called so.
        random_sequences: for ``random_stripe``; 0 = not assessed.
        draws: shuffles behind a null.
        bootstrap: resamples over sequences for the interval; 0 = no interval, and so no label.
        confidence: level of the interval.
        seed: of draws, resamples and random sequences.
        progress: True for a bar, or a function called with (batches done, batches).

    Returns:
        RoleTable: for each head RoleScores, assessed first, then by margin over the best null.

    Raises:
        ValueError: for data without examples, options out of range, or a model that is not
            attached.

    Source:
        Voita et al. 2019; Clark et al. 2019; Olsson et al. 2022; thresholds and their sources are
        in ``headkit.role_registry()``.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> table = headkit.roles(model, [{"input_ids": torch.arange(5, 17).view(2, 6)}])
        >>> table.find(0, 1, "previous_token").rows
        10
        >>> table.labels(0, 1)  # two sequences are too few for any
        []
    """
    gated = gated_model(model, "roles")
    with reporting("roles", progress) as tell:
        options = _options(
            gated,
            tokenizer,
            special_tokens,
            delimiters,
            gates,
            inactive_threshold=inactive_threshold,
            random_sequences=random_sequences,
            draws=draws,
            bootstrap=bootstrap,
            confidence=confidence,
            seed=seed,
            progress=tell,
        )
        return _C.head_roles(gated, data, options)


def input_roles(
    model: torch.nn.Module | _C.GatedModel,
    data: Any,
    dataset: _C.RoleTable,
    tokenizer: Any = None,
    *,
    special_tokens: Sequence[int] | None = None,
    delimiters: Mapping[str, Sequence[int]] | None = None,
    gates: _C.GateSet | torch.Tensor | None = None,
) -> list[_C.RoleTable]:
    """Score the roles of every head on each input by itself.

    One input is too small a sample for a label. What its scores tell is whether they agree with the
    data set's verdict: ``RoleScore.agrees``.

    Args:
        model, tokenizer, special_tokens, delimiters, gates: as for ``roles``.
        data: batches; each example is an input.
        dataset: what ``roles`` found on a data set.

    Returns:
        list of RoleTable: one for each input, in order.

    Raises:
        ValueError: if ``dataset`` is of another model or of an input.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertModel(config)
        >>> gated = headkit.attach(model)
        >>> data = [{"input_ids": torch.arange(5, 17).view(2, 6)}]
        >>> first, second = headkit.input_roles(model, data, headkit.roles(model, data))
        >>> first.find(0, 1, "previous_token").agrees
        True
    """
    gated = gated_model(model, "input_roles")
    options = _options(gated, tokenizer, special_tokens, delimiters, gates, random_sequences=0)
    return _C.input_roles(gated, data, dataset, options)


def _options(
    gated: _C.GatedModel,
    tokenizer: Any,
    special_tokens: Sequence[int] | None,
    delimiters: Mapping[str, Sequence[int]] | None,
    gates: _C.GateSet | torch.Tensor | None,
    **others: Any,
) -> _C.RoleOptions:
    module = getattr(gated, "model", None)
    if special_tokens is None:
        special_tokens = (
            tokenizer.all_special_ids if tokenizer is not None else _configured_tokens(module)
        )
    if delimiters is None:
        delimiters = {} if tokenizer is None else token_delimiters(tokenizer)
    begin = None
    if tokenizer is not None:
        begin = tokenizer.cls_token_id
        begin = tokenizer.bos_token_id if begin is None else begin
    embedding, unembedding = _vocabulary_maps(module)
    places = getattr(getattr(module, "config", None), "max_position_embeddings", None)
    return _C.RoleOptions(
        gates=_gate_set(gates),
        special_tokens=sorted(set(special_tokens)),
        delimiters=[(name, sorted(set(ids))) for name, ids in delimiters.items()],
        embedding=embedding,
        unembedding=unembedding,
        begin_token=-1 if begin is None else begin,
        max_tokens=max(places - POSITIONS_KEPT, 0) if isinstance(places, int) else 0,
        **others,
    )


def _gate_set(gates: _C.GateSet | torch.Tensor | None) -> _C.GateSet:
    if gates is None:
        return _C.GateSet()
    return _C.GateSet(heads=gates) if isinstance(gates, torch.Tensor) else gates


def token_delimiters(tokenizer: Any) -> dict[str, list[int]]:
    """The delimiters of a tokenizer: ``cls``, ``sep`` and ``punctuation``, those that it has.

    Args:
        tokenizer: of transformers.

    Returns:
        dict: name -> token ids.
    """
    found: dict[str, list[int]] = {}
    for name, marks in (
        ("cls", (tokenizer.cls_token_id, tokenizer.bos_token_id)),
        ("sep", (tokenizer.sep_token_id, tokenizer.eos_token_id)),
    ):
        known = [mark for mark in marks if mark is not None]
        if known:
            found[name] = known[:1]
    special = set(tokenizer.all_special_ids)
    punctuation = [
        number
        for token, number in tokenizer.get_vocab().items()
        if number not in special and _is_punctuation(token.lstrip(PIECE_MARKS) or token)
    ]
    if punctuation:
        found["punctuation"] = punctuation
    return found


def _is_punctuation(token: str) -> bool:
    return all(unicodedata.category(letter).startswith("P") for letter in token)


def _configured_tokens(module: Any) -> list[int]:
    config = getattr(module, "config", None)
    found = [getattr(config, f"{name}_token_id", None) for name in CONFIGURED]
    return [
        number
        for each in found
        for number in (each if isinstance(each, list) else [each])
        if number is not None
    ]


def _vocabulary_maps(module: Any) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Weights of the input and the output embedding of a transformers model, where it has both."""
    try:
        into, out = module.get_input_embeddings(), module.get_output_embeddings()
    except (AttributeError, NotImplementedError):
        return None, None
    maps = [getattr(each, "weight", None) for each in (into, out)]
    return (None, None) if any(each is None for each in maps) else (maps[0], maps[1])


def plot_roles(table: _C.RoleTable, path: str | Path) -> None:
    """Draw the label of every head, layer 0 at the bottom; also ``table.plot(path)``.

    A label is a colour, a sign and a word, so that none has to be told from another by colour
    alone. Heads without label are white; in them the nearest role is written in grey.

    Args:
        table: what ``roles`` returned.
        path: a file whose ending matplotlib knows.

    Raises:
        RuntimeError: if matplotlib is not installed.
    """
    from headkit.plotting import draw_roles, pyplot_for, save_figure

    pyplot = pyplot_for("plot_roles")
    layers, heads = len(table.heads), len(table.heads[0])
    figure, axes = pyplot.subplots(
        figsize=(1.2 + 0.95 * heads, 1.3 + 0.6 * layers), constrained_layout=True
    )
    draw_roles(table, axes)
    save_figure(pyplot, figure, path)


_C.RoleTable.plot = plot_roles  # type: ignore[method-assign]
