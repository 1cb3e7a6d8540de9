"""Figures of records in matplotlib: they draw what the record holds."""

import json

import numpy as np
import pytest
import torch
from matplotlib import pyplot

import headkit as hk

from .report_records import explained


@pytest.fixture
def ax():
    figure, axes = pyplot.subplots()
    yield axes
    pyplot.close(figure)


def test_the_grid_shows_effects_and_hatches_what_is_off(ax):
    record = explained(3, 4)
    image = hk.plot_record(json.dumps(record), ax)
    expected = [head["effects"]["toggle"]["frozen"] for head in record["heads"]]
    assert np.allclose(image.get_array(), np.array(expected).reshape(3, 4), atol=1e-6)
    assert image.get_clim() == pytest.approx((-max(map(abs, expected)), max(map(abs, expected))))
    off = sum(head["gate"] == 0 for head in record["heads"])
    assert len(ax.patches) == off
    assert ax.get_ylim()[0] < ax.get_ylim()[1], "layer 0 at the bottom"
    bare = {**record, "heads": [{**head, "effects": None} for head in record["heads"]]}
    assert set(np.unique(hk.plot_record(bare, ax).get_array())) <= {0.0, 1.0}
    with pytest.raises(ValueError, match=r"\[plot\] expected a record with direct"):
        hk.plot_record(bare, ax, effect="direct")


def test_the_waterfall_ends_at_m(ax):
    record = explained(3, 4)
    bars = hk.plot_waterfall(record, ax, heads=4)
    total = record["output"]["value_selected"]
    steps = [bar.get_width() for bar in bars]
    assert steps[-1] == pytest.approx(total)
    assert sum(steps[:-1]) == pytest.approx(total)
    assert len(bars) == 1 + 4 + 1 + 1
    ends = [bar.get_x() + bar.get_width() for bar in bars]
    assert ends[-2] == pytest.approx(total)
    with pytest.raises(ValueError, match="value of m"):
        hk.plot_waterfall({**record, "output": None}, ax)


def test_attention_is_decoded(ax):
    weights = torch.tensor([[[0.75, 0.25, 0.0], [0.0, 1.0, 0.0], [0.0, 0.2, 0.8]]])
    record = explained(1, 1, texts=["a", "$b", "c"])
    coded = hk.code_attention(weights)[0]
    record["heads"][0]["attention"] = {"data": coded.data, "kept_mass": coded.kept_mass}
    image = hk.plot_attention(record, 0, 0, ax)
    assert np.allclose(image.get_array(), weights[0], atol=0.5 / 255)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["a", r"\$b", "c"]
    record["heads"][0]["attention"] = None
    for layer in (0, 5):
        with pytest.raises(ValueError, match="expected the attention of"):
            hk.plot_attention(record, layer, 0, ax)


def test_pairs_are_symmetric_and_unknown_ones_stay_empty(ax):
    record = explained(2, 3)
    image = hk.plot_pairs(record, ax)
    shown = np.ma.filled(image.get_array(), np.nan)
    pair = record["pairs"][0]
    a, b = pair["a"]["head"], 3 + pair["b"]["head"]
    assert shown[a, b] == shown[b, a] == pytest.approx(pair["value"])
    assert np.isnan(shown[0, 0]) and np.isnan(shown[0, 1])
    with pytest.raises(ValueError, match="pairs of heads"):
        hk.plot_pairs({**record, "pairs": None}, ax)


def test_faithfulness_is_drawn_with_its_band(ax):
    record = explained()
    curve = record["trust"]["faithfulness"]["comprehensiveness"]
    line = hk.plot_faithfulness(record, ax)
    assert line.get_ydata() == pytest.approx(curve["values"])
    assert len(ax.collections) == 1 and len(ax.lines) == 2
    with pytest.raises(ValueError, match="sufficiency"):
        hk.plot_faithfulness(record, ax, curve="sufficiency")


def test_axes_are_made_where_none_are_given():
    image = hk.plot_record(explained())
    pyplot.close(image.axes.figure)
    with pytest.raises(ValueError, match="expected a decision record"):
        hk.plot_record("{}")
