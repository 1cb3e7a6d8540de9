"""``headkit explain --out report.html``: the page of one input, or of two."""

import json

import torch

import headkit as hk

from .cli_models import call, causal_lm, image_classifier, refused, said, write_pictures


def block(path):
    text = path.read_text(encoding="utf-8")
    return json.loads(text.split('id="data">', 1)[1].split("</script>", 1)[0])


def test_two_prompts_are_compared_under_a_policy_from_a_file(tmp_path):
    model = causal_lm(tmp_path / "model")
    gate = hk.LinearGate(
        weight=torch.randn(3, 4, 24, dtype=torch.float64),
        reference=torch.zeros(24, dtype=torch.float64),
        static_logits=torch.zeros(3, 4, dtype=torch.float64),
        threshold=0.0,
    )
    policy, page = tmp_path / "gate.json", tmp_path / "report.html"
    policy.write_text(gate.to_json())
    asked = ("explain", "--model", model, "--text", "w1 w2 w3 w4")
    done = call(*asked, "--compare", "w5 w6", "--policy", policy, "--out", page)
    assert done.exit_code == 0, said(done)
    assert "report.html" in said(done).replace(" ", "")
    first, second = block(page)["records"]
    assert [unit["text"] for unit in second["input"]["units"]] == ["w5", "w6"]
    assert first["policy"]["name"] == "linear_gate"
    assert first["output"]["metric"] == "token_log_odds"
    assert first["model"]["name"] == "model"
    assert all(head["effects"]["toggle"] for head in first["heads"])
    refused("--out FILE.html", *asked, "--compare", "w5")
    refused("a policy in", *asked, "--policy", tmp_path / "none.json", "--out", page)


def test_a_picture_gets_a_page(tmp_path):
    model = image_classifier(tmp_path / "model")
    pictures = write_pictures(tmp_path / "pictures", each=1)
    page = tmp_path / "report.html"
    picture = next(pictures.rglob("*.png"))
    done = call("explain", "--model", model, "--image", picture, "--out", page)
    assert done.exit_code == 0, said(done)
    data = block(page)
    assert data["pictures"][0].startswith("data:image/png;base64,")
    assert data["records"][0]["output"]["target_name"] in ("dark", "light")
