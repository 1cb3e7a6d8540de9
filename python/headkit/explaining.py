"""Everything about why heads are on for some inputs, in one call and on one page."""

import base64
import html
import io
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from headkit import _C
from headkit.contributions import effects as measure_effects
from headkit.decisions import explain_decisions
from headkit.files import write_text
from headkit.head_roles import input_roles
from headkit.hybrid import HybridPruner, as_policy
from headkit.input_units import picture_of, sink_keys, units_of
from headkit.scoring import gated_model
from headkit.trust import effect_faithfulness

# Of a page inside a notebook.
COMPACT_BYTES, COMPACT_HEADS = 500_000, 12
ROLES_KEPT = 5


class Explanation:
    """Decision records of some inputs with all that was found about them.

    Attributes:
        records: list of DecisionRecord, one an input.
        pictures: what lies behind the tokens of each, as data URIs; "" = nothing.

    In a notebook it shows itself: a picture that needs no script, and the page around it.
    """

    def __init__(self, records: Sequence[_C.DecisionRecord], pictures: Sequence[str] = ()) -> None:
        if not records:
            raise ValueError("[explanation] expected at least one record; found none")
        self.records = list(records)
        self.pictures = list(pictures) or [""] * len(self.records)

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, example: int) -> "Explanation":
        """The explanation of one input."""
        return Explanation([self.records[example]], [self.pictures[example]])

    def __add__(self, other: "Explanation") -> "Explanation":
        """Both, one after the other: two inputs make a page that compares them."""
        return Explanation([*self.records, *other.records], [*self.pictures, *other.pictures])

    def __repr__(self) -> str:
        heads = self.records[0].layout.total_heads
        return f"Explanation({len(self)} inputs, {heads} heads)"

    def to_json(self) -> str:
        """The records, one JSON object a line."""
        return "".join(record.to_json() + "\n" for record in self.records)

    def html(
        self,
        *,
        title: str = "",
        max_bytes: int = 5_000_000,
        detailed_heads: int = -1,
    ) -> str:
        """The report as one HTML document; of two inputs, it compares them.

        Args:
            title: empty = the text of the first input.
            max_bytes: of the page; heads lose attention and parts until it fits.
            detailed_heads: heads that keep them; -1 = all.

        Raises:
            ValueError: if there are more than two inputs.
        """
        if len(self) > 2:
            raise ValueError(
                f"[report] expected one input, or two to compare; found {len(self)} "
                "(explanation[i] is that of one, and + puts two together)"
            )
        return _C.html_report(
            [record.to_json() for record in self.records],
            title=title,
            pictures=self.pictures,
            max_bytes=max_bytes,
            detailed_heads=detailed_heads,
        )

    def to_html(self, path: str | os.PathLike[str], **options: Any) -> Path:
        """Write the report: one file that needs no network.

        Args:
            path: of the file; it appears whole or not at all.
            options: as for ``html``.

        Returns:
            Path: of the file.

        Raises:
            ValueError: if there are more than two inputs.
            RuntimeError: if the file cannot be written.
        """
        return write_text(path, self.html(**options))

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write the full report, as ``to_html``."""
        return self.to_html(path)

    def summary(self) -> list[str]:
        """The first input in few sentences."""
        return [line.text for line in _C.summarise_record(self.records[0].to_json())]

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> dict[str, str]:
        shown = self if len(self) <= 2 else self[0]
        first = shown.records[0].to_json()
        svg = _C.report_picture(first)
        page = shown.html(max_bytes=COMPACT_BYTES, detailed_heads=COMPACT_HEADS)
        lines = self.summary()
        picture = base64.b64encode(svg.encode()).decode()
        bundle = {
            "text/plain": "\n".join(lines),
            "text/html": (
                f'<img alt="{html.escape(lines[0])}" '
                f'src="data:image/svg+xml;base64,{picture}">'
                '<iframe title="headkit report" sandbox="allow-scripts" width="100%" height="900" '
                f'srcdoc="{html.escape(page)}"></iframe>'
            ),
            "image/svg+xml": svg,
        }
        png = _png_of(first)
        if png:
            bundle["image/png"] = png
        return bundle


def _png_of(record: str) -> str:
    """The grid as a PNG in base64; empty without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        return ""
    from headkit.record_plots import plot_record

    figure = Figure(figsize=(6, 4), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    plot_record(record, figure.add_subplot())
    target = io.BytesIO()
    canvas.print_png(target)
    return base64.b64encode(target.getvalue()).decode()


def explain(
    model: torch.nn.Module | _C.GatedModel,
    batch: Mapping[str, torch.Tensor],
    policy: _C.GatePolicy | HybridPruner | None = None,
    *,
    tokenizer: Any = None,
    ablation: str = "zero",
    metric: str | _C.OutputMetric | None = None,
    reference: Any = None,
    target: torch.Tensor | None = None,
    roles: _C.RoleTable | None = None,
    path_nodes: int = 0,
    pair_heads: int = 8,
    faithfulness: bool = False,
    attention: bool = True,
    pictures: bool = True,
    logit_spread: torch.Tensor | None = None,
    removals: int | None = 8,
    first_input: int = 0,
    about: Mapping[str, Any] | None = None,
    names: Mapping[int, str] | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> Explanation:
    """Explain a policy's choice of heads for each input of a batch.

    Joins ``explain_decisions`` (why each gate is open or closed), ``effects`` (what each head
    contributes, what if it were toggled), attention, and the roles of each head. What cannot be
    computed is named in the records, with the reason.

    Args:
        model: an attached model, or a GatedModel.
        batch: name -> tensor.
        policy: GatePolicy, or a fitted HybridPruner; None = every head that is there runs.
        tokenizer: names the tokens. It puts the text of the inputs into the records; without it
            nothing raw is in them, unless ``pictures`` are.
        ablation, metric, reference, target, path_nodes, pair_heads: as for ``effects``.
        roles: what ``headkit.roles`` found on a data set; also each input is then compared with it.
        faithfulness: take heads away in the order of their toggles, and in 50 random orders: some
            hundred runs of each input.
        attention: keep what the heads look at: the eight largest keys of each query.
        pictures: put pictures and spectrograms behind patches and frames.
        logit_spread, removals, first_input, about: as for ``explain_decisions``.
        names: of classes or tokens that m compares.
        progress: told the step, how many are done and of how many.

    Returns:
        Explanation: ``records``, ``to_html``, ``to_json``, and a view of itself in notebooks.

    Raises:
        ValueError: if model, batch, policy and options do not fit.

    Example:
        >>> import transformers
        >>> config = transformers.BertConfig(
        ...     vocab_size=50, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        ... )
        >>> model = transformers.BertForSequenceClassification(config).eval()
        >>> gated = headkit.attach(model)
        >>> found = headkit.explain(model, {"input_ids": torch.tensor([[1, 2, 3]])})
        >>> found
        Explanation(1 inputs, 8 heads)
        >>> found.to_html("report.html").name
        'report.html'
    """
    gated = gated_model(model, "explain")
    batch = dict(batch)
    tell = progress or (lambda step, done, total: None)
    policy = _C.MaskPolicy(gated.heads()) if policy is None else as_policy(policy)
    tell("taking gates apart", 0, 4)
    records = explain_decisions(
        gated,
        batch,
        policy,
        logit_spread=logit_spread,
        removals=removals,
        first_input=first_input,
        about=about,
    )
    gates = _C.GateSet(heads=torch.stack([record.gates() for record in records]))
    tell("toggling heads", 1, 4)
    found = measure_effects(
        gated,
        batch,
        ablation=ablation,
        metric=metric,
        gates=gates if isinstance(policy, _C.Escalation | _C.MaskPolicy) else policy,
        reference=reference,
        target=target,
        path_nodes=path_nodes,
        pair_heads=pair_heads,
    )
    units = [units_of(batch, row, record.tokens, tokenizer) for row, record in enumerate(records)]
    width = gated.layout().heads
    patches = [
        _effects_patch(one) | {"input": {"units": told}, "width": width}
        for one, told in zip(found, units, strict=True)
    ]
    for patch in patches:
        for which in ("target", "distractor"):
            name = (names or {}).get(patch["output"][which])
            patch["output"] |= {} if name is None else {f"{which}_name": str(name)}
        _add_agreement(patch)
    if not faithfulness:
        _note(patches, "trust.faithfulness", "it was not asked for")
    for row, patch in enumerate(patches if faithfulness else ()):
        if not any(head.on for head in found[row].heads):
            _note([patch], "trust.faithfulness", "no head is on")
            continue
        one = {name: tensor[row : row + 1] for name, tensor in batch.items()}
        curves = effect_faithfulness(gated, one, [found[row]], reference=reference)[0]
        patch.setdefault("trust", {})["faithfulness"] = json.loads(curves.to_json())
    tell("looking at attention", 2, 4)
    sinks, sink_words = sink_keys(units)
    if attention:
        coded = _C.input_attention(gated, batch, gates=gates, sinks=sinks)
        for patch, heads in zip(patches, coded, strict=True):
            _add_attention(patch, heads, sink_words)
    else:
        _note(patches, "heads.attention", "it was not asked for")
    tell("scoring roles", 3, 4)
    if roles is None:
        _note(patches, "heads.roles", "no roles of a data set were given")
    else:
        own = input_roles(gated, [batch], roles, tokenizer, gates=gates)
        for patch, table in zip(patches, own, strict=True):
            _add_roles(patch, roles, table)
    tell("joining", 4, 4)
    joined = [_joined(record, patch) for record, patch in zip(records, patches, strict=True)]
    shown = [picture_of(batch, row) if pictures else "" for row in range(len(joined))]
    return Explanation(joined, shown)


# A patch is what is put into a record: {place of a head: its members} under "heads", other members
# as they are.
Patch = dict[str, Any]


def _effects_patch(found: _C.InputEffects) -> Patch:
    told = json.loads(found.to_json())
    output = {
        "metric": told["metric"],
        "target": told["target"],
        "distractor": told["distractor"],
        "value_selected": told["value"],
        "value_without_heads": told["value_without_heads"],
    }
    heads = {}
    for one in told["heads"]:
        place = (one.pop("layer"), one.pop("head"))
        one.pop("gate")
        heads[place] = {"effects": one}
    missing = [
        {"field": f"heads.effects.{hole['quantity']}", "reason": hole["reason"]}
        for hole in told["not_computed"]
    ]
    patch = {"output": output, "heads": heads, "missing": missing}
    if told["pairs"]:
        patch["pairs"] = told["pairs"]
    else:
        missing.append({"field": "pairs", "reason": "no pairs were asked for"})
    return patch


def _add_agreement(patch: Patch) -> None:
    """How far the ways to say what the heads that run do agree, on this input."""
    names = ("write_norm", "direct", "gate_gradient", "toggle")
    values: dict[str, list[float]] = {name: [] for name in names}
    for members in patch["heads"].values():
        found = members["effects"]
        for name in names:
            value = found[name]["frozen"] if name == "toggle" and found[name] else found[name]
            values[name].append(float("nan") if value is None else value)
    known = {
        name.replace("_", " "): torch.tensor([numbers], dtype=torch.float64)
        for name, numbers in values.items()
        if numbers and not any(math.isnan(value) for value in numbers)
    }
    if len(known) < 2:
        return
    patch["trust"] = {
        "agreement": {
            "kendall tau-b, one input": {
                f"{a} and {b}": _tau(known[a], known[b])
                for place, a in enumerate(known)
                for b in list(known)[place + 1 :]
            }
        }
    }


def _tau(a: torch.Tensor, b: torch.Tensor) -> float | None:
    found = _C.kendall_tau(a[0].tolist(), b[0].tolist())
    return None if found is None or math.isnan(found) else round(found, 4)


def _add_attention(patch: Patch, heads: Sequence[_C.CodedAttention | None], sinks: str) -> None:
    patch["sinks"] = sinks
    for (_, members), coded in zip(_places(patch, len(heads)), heads, strict=True):
        if coded is not None:
            members["attention"] = json.loads(coded.to_json())


def _places(patch: Patch, count: int) -> list[tuple[tuple[int, int], dict[str, Any]]]:
    """Every head of a patch in the order of records, made where it is not there."""
    width = patch["width"]
    places = [divmod(place, width) for place in range(count)]
    return [(place, patch["heads"].setdefault(place, {})) for place in places]


def _add_roles(patch: Patch, dataset: _C.RoleTable, own: _C.RoleTable) -> None:
    of_data, of_input = (json.loads(table.to_json())["roles"] for table in (dataset, own))
    for layer, row in enumerate(of_data):
        for head, scores in enumerate(row):
            members = patch["heads"].setdefault((layer, head), {})
            members["roles"] = {
                "dataset": _foremost(scores),
                "input": _foremost(of_input[layer][head]),
            }
    patch.setdefault("trust", {})["registry_version"] = dataset.registry_version


def _foremost(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The best of the ranked scores, and every label."""
    kept = [score for rank, score in enumerate(scores) if rank < ROLES_KEPT or score["assigned"]]
    return [{name: value for name, value in score.items() if name != "details"} for score in kept]


def _note(patches: Sequence[Patch], field: str, reason: str) -> None:
    for patch in patches:
        patch["missing"].append({"field": field, "reason": reason})


def _joined(record: _C.DecisionRecord, patch: Patch) -> _C.DecisionRecord:
    missing = patch.pop("missing")
    told = {hole["field"] for hole in missing}
    filled = {"output", "input.units"} | ({"pairs"} if "pairs" in patch else set())
    filled |= {f"trust.{name}" for name in patch.get("trust", {})}
    filled |= {f"heads.{name}" for members in patch["heads"].values() for name in members}
    kept = [
        hole
        for hole in json.loads(record.to_json())["not_computed"]
        if hole["field"] not in filled | told
    ]
    patch.pop("width")
    patch["heads"] = [
        {"layer": layer, "head": head, **members}
        for (layer, head), members in sorted(patch["heads"].items())
    ]
    patch["not_computed"] = kept + missing
    return record.updated(json.dumps(patch, allow_nan=False))
