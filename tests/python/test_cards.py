"""Head cards: what they tell is what was measured, on one task and between tasks."""

import pytest
import scipy.stats
import torch
import transformers

import headkit as hk

from .cli_models import image_classifier, refused, told, write_pictures

LAYERS, HEADS = 2, 4


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=50, hidden_size=24, num_hidden_layers=LAYERS, num_attention_heads=HEADS,
        num_labels=3,
    )  # fmt: skip
    model = transformers.BertForSequenceClassification(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    hk.attach(model)
    return model


def data_of(seed):
    generator = torch.Generator().manual_seed(seed)
    return [{"input_ids": torch.randint(5, 50, (8, 12), generator=generator)}]


@pytest.fixture(scope="module")
def tasks(model):
    gate = hk.LinearGate(
        weight=20 * torch.randn(LAYERS, HEADS, 24, dtype=torch.float64),
        reference=torch.zeros(24, dtype=torch.float64),
        static_logits=torch.zeros(LAYERS, HEADS, dtype=torch.float64),
        threshold=0.0,
    )
    return {
        name: hk.HeadBehaviour(
            usage=hk.head_usage(model, data_of(seed), gate),
            roles=hk.roles(model, data_of(seed), special_tokens=[2], draws=20, bootstrap=50),
            effects=hk.effects(model, data_of(seed)[0], ablation="zero"),
        )
        for seed, name in enumerate(("news", "mail"))
    }


def test_a_card_tells_what_was_measured(tasks):
    cards = hk.head_cards("tiny", tasks, tags=["text-classification"])
    text = cards.markdown()
    assert text.startswith("---\nlibrary_name: headkit\n") and "- text-classification\n---" in text
    assert "<" not in text, "no HTML"
    sections = text.split("\n## ")
    assert [each.split("\n")[0] for each in sections[2:]] == [
        f"L{layer} H{head}" for layer in range(LAYERS) for head in range(HEADS)
    ]
    head = tasks["mail"].usage.heads[5]
    mean = hk.mean_effects(tasks["mail"].effects).heads[5].toggle
    card = next(each for each in sections if each.startswith("L1 H1"))
    row = next(line for line in card.splitlines() if line.startswith("| mail"))
    assert f"| {100 * head.frequency:.0f} ({100 * head.lower:.0f}.." in row
    assert f"{mean.frozen:+.3g} ({mean.interval[0]:+.3g}..{mean.interval[1]:+.3g})" in row
    width = {line.count("|") for line in card.splitlines() if line.startswith("|")}
    assert width == {5}, "all rows of a table have as many cells"


def test_three_claims_between_tasks(tasks):
    (found,) = hk.head_cards("tiny", tasks).agreement
    assert found.tasks == ("news", "mail")
    shares = [[head.frequency for head in each.usage.heads] for each in tasks.values()]
    assert found.selection == pytest.approx(scipy.stats.spearmanr(*shares).statistic)
    effects = [
        [head.toggle.frozen for head in hk.mean_effects(each.effects).heads]
        for each in tasks.values()
    ]
    assert found.effect == pytest.approx(scipy.stats.spearmanr(*effects).statistic)
    same = hk.head_cards("tiny", {"a": tasks["news"], "b": tasks["news"]}).agreement[0]
    assert same.selection == pytest.approx(1) and same.effect == pytest.approx(1)


def test_labels_are_compared_where_there_are_any(tasks):
    vit = transformers.ViTModel(
        transformers.ViTConfig(
            image_size=8, patch_size=2, hidden_size=24, num_hidden_layers=2, num_attention_heads=4
        )
    ).eval()
    hk.attach(vit)
    grid = hk.PatchGrid(rows=4, columns=4, patch_size=2)
    roles = hk.image_roles(vit, [{"pixel_values": torch.rand(4, 3, 8, 8)}], grid)
    cards = hk.head_cards("vit", {"noise": hk.HeadBehaviour(roles=roles)})
    assert cards.agreement == [] and "not measured" in cards.markdown()
    labelled = sum(bool(roles.labels(lay, head)) for lay in range(2) for head in range(4))
    (same,) = hk.head_cards("vit", dict.fromkeys("ab", hk.HeadBehaviour(roles=roles))).agreement
    assert same.explanation == (1 if labelled else None)
    assert same.selection is None and same.effect is None


def test_one_head_and_a_file(tasks, tmp_path):
    cards = hk.head_cards("tiny", tasks)
    text = cards.markdown([hk.HeadId(1, 2)])
    assert "## L1 H2" in text and "## L0 H0" not in text
    assert cards.save(tmp_path / "cards.md").read_text() == cards.markdown()
    assert cards._repr_markdown_() == cards.markdown()
    with pytest.raises(ValueError, match=r"heads of 2 layers of 4; found \(2, 0\)"):
        cards.markdown([hk.HeadId(2, 0)])


def test_what_does_not_fit_is_refused(tasks):
    with pytest.raises(ValueError, match="at least one task; found none"):
        hk.head_cards("tiny", {})
    with pytest.raises(ValueError, match="usage or roles of each task; found neither for 'a'"):
        hk.head_cards("tiny", {"a": hk.HeadBehaviour()})
    other = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50, hidden_size=24, num_hidden_layers=1, num_attention_heads=4
        )
    )
    hk.attach(other)
    usage = hk.head_usage(other, data_of(3), hk.MaskPolicy(hk.HeadMask.all(1, 4)))
    with pytest.raises(ValueError, match="tasks of one model"):
        hk.head_cards("tiny", {**tasks, "b": hk.HeadBehaviour(usage)})


def test_the_command_writes_cards_of_two_data_sets(tmp_path):
    model = image_classifier(tmp_path / "model")
    pictures = write_pictures(tmp_path / "pictures", each=4)
    data = [f"--data={name}={pictures}" for name in ("first", "second")]
    found = told(
        "cards", "--model", model, *data, "--inputs", 2, "--out", tmp_path / "cards.md"
    )  # fmt: skip
    (agreement,) = found["agreement"]
    assert agreement["tasks"] == ["first", "second"]
    assert agreement["effect"] == pytest.approx(1), "the same pictures"
    text = (tmp_path / "cards.md").read_text()
    assert "- image-classification" in text and "effects on 2 inputs" in text
    refused("different names in --data NAME=FILE; found 'x'",
            "cards", "--model", model, "--data", "x", "--out", tmp_path / "cards.md")  # fmt: skip
    refused("a file named *.md as --out", "cards", "--model", model, *data, "--out", "cards.txt")
