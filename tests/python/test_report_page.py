"""The page of html_report in a headless browser: what a reader sees, and what it must not do."""

import base64
import hashlib
import io
import json
import re

import pytest

import headkit as hk

from .browser import chromium
from .report_records import HOSTILE, explained

RTL, EMOJI, LONG = "שלום\u202eevil", "👩‍🚀\u2028", "wörter"
SECTIONS = ("why", "looks", "roles", "effects", "waterfall", "toggles", "trust", "compare", "pairs")


@pytest.fixture(scope="module")
def browser():
    with chromium() as found:
        yield found


@pytest.fixture
def shown(browser, tmp_path):
    """Writes the page of some records and opens it; afterwards nothing may have been said."""

    def show(*records, width=1500, **options):
        page = hk.html_report([json.dumps(one) for one in records], **options)
        path = tmp_path / "report.html"
        path.write_text(page, encoding="utf-8")
        browser.media()
        browser.size(width, 1000)
        browser.open(path)
        return browser

    yield show
    assert browser.said == []
    assert [url[:40] for url in browser.asked if not url.startswith(("file:", "data:image/"))] == []


# The smallest contrast (WCAG) between the text of some elements and what lies behind it.
CONTRAST = """(() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b + 0.05;
  };
  const ground = node => {
    for (; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)/.test(colour)) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return Math.min(...[...document.querySelectorAll("SELECTOR")].map(node => {
    const [a, b] = [light(getComputedStyle(node).color), light(ground(node))];
    return Math.max(a, b) / Math.min(a, b);
  }));
})()"""


def text_of(browser, selector):
    return browser.run(f"document.querySelector({selector!r}).textContent")


def test_the_policy_is_strict_and_comes_first():
    page = hk.html_report([json.dumps(explained())])
    first = re.search(
        r"<head>\s*<meta http-equiv=\"Content-Security-Policy\" content=\"(.*?)\">", page
    )
    parts = dict(part.strip().split(" ", 1) for part in first[1].split(";"))
    style = re.search(r"<style>(.*?)</style>", page, re.DOTALL)[1]
    script = re.search(r"<script>(.*)</script>", page, re.DOTALL)[1]
    assert parts == {
        "default-src": "'none'",
        "script-src": f"'sha256-{digest(script)}'",
        "style-src": f"'sha256-{digest(style)}'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
    }
    assert len(script.encode()) < 40_000
    assert not re.search(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script)
    assert not re.search(r" style=| on[a-z]+=", page.split('<script type="application/json"')[0])
    urls = set(re.findall(r"https?://[^\s\"'`)]+", page))
    assert urls == {"http://www.w3.org/2000/svg"}, "a name of XML, never fetched"


def digest(text):
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def test_the_page_answers_every_question(shown):
    page = shown(explained(6, 12))
    assert page.run("document.querySelectorAll('#grid [role=gridcell]').length") == 72
    labels = page.run("[...document.querySelectorAll('[role=gridcell]')].map(c => c.ariaLabel)")
    assert all(re.match(r"layer \d+ head \d+, .*gate [\d.]+", label) for label in labels)
    for section in SECTIONS:
        assert len(text_of(page, f"#{section} .fill")) > 20, section
    assert "Nearest flip" in text_of(page, "#why")
    assert "sink mass" in text_of(page, "#looks")
    assert "base and residual" in text_of(page, "#waterfall")
    assert "one run was given" in text_of(page, "#trust"), "the reason of what is missing"
    assert page.run("document.querySelectorAll('#trust svg').length") == 1


def test_every_figure_has_its_table(shown):
    page = shown(explained(), explained(seed=1))
    figures = "[role=grid], .bars, .chart, .view, .matrix"
    without = page.run(
        f"""[...document.querySelectorAll("{figures}")].filter(figure => {{
          const part = figure.closest(".part, section");
          return !part.querySelector("details.data table tbody tr");
        }}).map(figure => figure.outerHTML.slice(0, 80))"""
    )
    assert without == []
    assert page.run("document.querySelectorAll('details.data').length") > 8


def test_the_keyboard_leads_from_the_grid_to_the_card_and_back(shown):
    page = shown(explained(4, 6))
    stops = "document.querySelectorAll('#grid [tabindex=\"0\"]').length"
    assert page.run(stops) == 1, "one stop for Tab"
    page.run("document.querySelector('#grid [tabindex=\"0\"]').focus()")
    for key in ("Home", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.press(key)
    where = "document.activeElement.getAttribute('aria-label')"
    assert page.run(where).startswith("layer 0 head 1,")
    page.press("ArrowUp")
    page.press("End")
    assert page.run(where).startswith("layer 1 head 5,")
    page.press("Enter")
    assert page.run("document.activeElement.id") == "card"
    assert text_of(page, "#card-title") == "Layer 1, head 5"
    page.press("Escape")
    assert page.run(where).startswith("layer 1 head 5,")
    assert page.run("document.querySelector('#card-body').hidden")
    page.press("f")
    assert "flipped in what-if" in page.run(where)
    assert page.run(stops) == 1
    page.press("Tab")
    assert page.run("document.activeElement.closest('#grid') === null")


def test_flips_add_up(shown):
    record = explained()
    on = [head for head in record["heads"] if head["gate"]][:2]
    off = next(head for head in record["heads"] if not head["gate"])
    record["pairs"] = [
        {"a": on[0], "b": on[1], "index": "synergy", "value": 0.25, "ablation": "zero"}
    ]
    for head, effect in zip([*on, off], (1.0, 2.0, 4.0), strict=True):
        head["effects"]["toggle"]["frozen"] = effect
    record["output"]["value_selected"] = 5.0
    page = shown(json.loads(json.dumps(record)))

    def flip(head):
        place = head["layer"] * 6 + head["head"]
        page.run(f"document.querySelector('#grid [data-place=\"{place}\"]').click()")
        page.run("document.getElementById('flip').click()")
        return text_of(page, "#toggles")

    assert "Measured: m goes from 5 to 4" in flip(on[0])
    assert "Measured: m goes from 5 to 2.25" in flip(on[1]), "5 - 1 - 2 + 0.25"
    assert "Estimated from single toggles and known pairs: m goes from 5 to 6.25" in flip(off)
    assert "m goes from 5 to 8" in flip(on[1]), "taken back: 5 - 1 + 4"


def test_hostile_text_stays_text(shown):
    texts = ["[CLS]", HOSTILE, RTL, EMOJI, "", "  ", '"><svg/onload=alert(1)>', "[SEP]"]
    record = explained(texts=texts)
    record["policy"]["name"] = record["model"]["name"] = HOSTILE
    record["output"]["target"] = HOSTILE
    record["not_computed"] = [{"field": "pairs", "reason": HOSTILE}]
    record["pairs"] = []
    page = shown(record, record, title=HOSTILE)
    assert page.run("document.images.length") == 0
    assert page.run("document.scripts.length") == 2
    words = page.run("[...document.querySelectorAll('.word')].map(word => word.textContent)")
    assert words == ["[CLS]", HOSTILE, RTL, EMOJI, "␣", "␣", '"><svg/onload=alert(1)>', "[SEP]"]
    assert text_of(page, "#title") == HOSTILE


def test_an_input_without_tokens_is_shown(shown):
    page = shown(explained(units=[{"text": "", "special": False, "padding": True}]))
    assert page.run("document.querySelectorAll('.unit').length") == 0
    record = explained()
    record["input"]["units"] = []
    for head in record["heads"]:
        head["attention"] = None
    assert "names no tokens" in text_of(shown(record), "#looks")


def test_what_is_missing_is_said_and_never_zero(shown):
    bare = explained()
    for head in bare["heads"]:
        for group in ("why", "roles", "effects", "attention", "margin", "logit"):
            head[group] = None
    bare |= {"output": None, "pairs": None, "trust": None, "not_computed": []}
    bare["budget"] = {"active": 3, "total": 24}
    page = shown(bare)
    for section in SECTIONS:
        assert "not computed" in text_of(page, f"#{section} .fill"), section
    assert page.run("document.querySelectorAll('.bars, .chart, .view, .matrix').length") == 0


def test_the_largest_page_is_small_enough(shown):
    record = explained(12, 12, texts=["[CLS]", *[LONG] * 510, "[SEP]"], parts=16)
    text = json.dumps(record)
    page = hk.html_report([text])
    assert len(page.encode()) <= 5_000_000
    assert "kept for the" not in page, "nothing was left out"
    assert len(hk.html_report([text], max_bytes=500_000, detailed_heads=12).encode()) <= 500_000
    opened = shown(record)
    assert opened.run("document.querySelectorAll('.unit').length") == 512
    opened.run("document.querySelector('[data-unit=\"300\"]').click()")
    assert "“wörter”" in text_of(opened, "#looks")


def test_dark_print_and_narrow_pages_can_be_read(shown, tmp_path):
    page = shown(explained(6, 12), explained(6, 12, seed=2))

    def contrast(selector):
        return page.run(CONTRAST.replace("SELECTOR", selector))

    for features in ({"prefers_color_scheme": "light"}, {"prefers_color_scheme": "dark"}):
        page.media(**features)
        for part in (
            "p",
            "li",
            "td",
            "th",
            "button",
            "summary",
            ".number",
            ".role",
            ".level",
            "h2",
        ):
            assert contrast(part) >= 4.5, (features, part)
    page.media(prefers_reduced_motion="reduce")
    assert page.run("getComputedStyle(document.querySelector('.mass')).transitionDuration") == "0s"
    page.media("print")
    page.run("dispatchEvent(new Event('beforeprint'))")
    assert page.run("document.querySelectorAll('details:not([open])').length") == 0
    assert page.run("getComputedStyle(document.querySelector('.tools')).display") == "none"
    page.run("dispatchEvent(new Event('afterprint'))")
    page.media()
    page.size(380, 800)
    assert page.run("document.documentElement.scrollWidth") <= 380


def png():
    from PIL import Image

    target = io.BytesIO()
    Image.new("RGB", (8, 8), (10, 90, 160)).save(target, "PNG")
    return "data:image/png;base64," + base64.b64encode(target.getvalue()).decode()


def test_patches_and_frames_lie_over_their_picture(shown):
    special = {"text": None, "special": True, "padding": False}
    patches = [
        {"grid": [row, column], "special": False, "padding": False}
        for row in range(3)
        for column in range(4)
    ]
    page = shown(explained(units=[special, *patches]), pictures=[png()])
    assert page.run("document.querySelector('.over img').naturalWidth") == 8
    box = "document.querySelector('[data-unit=\"6\"]').getBoundingClientRect()"
    view = "document.querySelector('.view').getBoundingClientRect()"
    assert page.run(f"({box}.left - {view}.left) / {view}.width") == pytest.approx(1 / 4, abs=0.01)
    assert page.run(f"({box}.top - {view}.top) / {view}.height") == pytest.approx(1 / 3, abs=0.01)
    assert "row 1, column 1" in page.run("document.querySelector('[data-unit=\"6\"]').ariaLabel")

    frames = [
        {"seconds": [0.02 * n, 0.02 * n + 0.02], "special": False, "padding": False}
        for n in range(20)
    ]
    page = shown(explained(units=frames), pictures=[png()])
    assert page.run(f"({box}.left - {view}.left) / {view}.width") == pytest.approx(0.3, abs=0.01)


def test_two_inputs_share_one_scale(shown):
    first, second = explained(seed=1), explained(texts=["[CLS]", "dull", "[SEP]"], seed=2)
    page = shown(first, second)
    assert page.run("document.querySelectorAll('#compare [role=gridcell]').length") == 24
    difference = [
        b["effects"]["toggle"]["frozen"] - a["effects"]["toggle"]["frozen"]
        for a, b in zip(first["heads"], second["heads"], strict=True)
    ]
    scale = text_of(page, "#compare .scale")
    assert f"+{max(map(abs, difference)):.2f}" in scale
    own = text_of(page, "#grid-scale")
    page.run("[...document.querySelectorAll('#inputs button')][1].click()")
    assert text_of(page, "#title") == "dull"
    assert text_of(page, "#grid-scale") == own


def test_the_picture_and_the_summary_stand_alone():
    text = json.dumps(explained(6, 12))
    assert hk.report_picture(text).startswith("<svg")
    lines = hk.summarise_record(text)
    assert len(lines) == 5 and all(line.text.endswith(".") for line in lines)
    with pytest.raises(ValueError, match=r"\[html_report\] expected"):
        hk.html_report(["{}"])
