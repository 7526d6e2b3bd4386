"""The page of ``--report FILE.html``, opened in headless Chromium on a phone and on a desk."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bnpass.api.fold import fold
from bnpass.cli.main import main
from bnpass.folding.options import FoldOptions
from tests.cli.command import ROOT, Call, caller
from tests.support.chromium import MISSING, Chromium, browser, executable
from tests.unit.test_report_html import HOSTILE, many, named

pytestmark = pytest.mark.browser

PHONE, DESK = 375, 1280
DIGITS = ROOT / "models" / "digits_cnn.onnx"
SHOTS = os.environ.get("BNPASS_SCREENSHOTS")
"""A folder where screenshots are kept for somebody to look at."""

OVERFLOWING = """[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  return !e.closest("svg svg") && box.width && (box.right > innerWidth + 1 || box.left < -1);
}).map(e => e.tagName + "." + e.getAttribute("class"))"""
"""What sticks out of the window; in a box of a picture, the box cuts it off."""

TINY = """[...document.querySelectorAll("p, td, th, li, summary, h1, h2")].filter(
  e => e.innerText.trim() && parseFloat(getComputedStyle(e).fontSize) < 12
).map(e => e.innerText)"""

CONTRAST = """(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).slice(0, 3).map(v => {
    v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const ground = e => { for (; e; e = e.parentElement) { const c = getComputedStyle(e).backgroundColor;
    if (!c.endsWith(", 0)") && c !== "transparent") return c; } return "rgb(255, 255, 255)"; };
  return [...document.querySelectorAll("p, td, th, li, summary, h1, h2, .chip, .quiet, .name, .note")].map(e => {
    const [a, b] = [light(getComputedStyle(e).color), light(ground(e))];
    return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05); }).reduce((a, b) => Math.min(a, b), 21);
})()"""
"""The least contrast of any text with what it stands on; 4.5 is what the WCAG asks for."""


@pytest.fixture(scope="module")
def chromium() -> Iterator[Chromium]:
    path = executable()
    if path is None:
        pytest.skip(MISSING)
    with browser(path) as started:
        yield started


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the model that the README folds."""
    folder = tmp_path_factory.mktemp("report")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["fold", str(DIGITS), "-o", "folded.onnx", "--report", "digits.html"]
        assert main([*words, "--quiet"]) == 0
    return folder / "digits.html"


def complaints(chromium: Chromium) -> list[str]:
    """Return what the browser has logged or asked for besides the page itself."""
    logged = [e["params"]["entry"]["text"] for e in chromium.events if e.get("method") == "Log.entryAdded"]
    asked = [e["params"]["request"]["url"] for e in chromium.events if e.get("method") == "Network.requestWillBeSent"]
    return logged + asked[1:]


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [PHONE, DESK])
def test_a_real_report(chromium: Chromium, page: Path, width: int, dark: bool) -> None:
    chromium.open(page, width, dark=dark)
    assert complaints(chromium) == []
    assert chromium.value("document.documentElement.scrollWidth") == width
    assert chromium.value(OVERFLOWING) == []
    assert chromium.value(TINY) == []
    assert chromium.value(CONTRAST) > 4.5
    done = fold(DIGITS, FoldOptions(check=0), dry_run=True)
    assert chromium.value('document.querySelectorAll("svg[role=img]").length') == len(done.folded) + len(done.kept) > 0
    shown = chromium.value("document.body.innerText")
    assert all(node in shown for folded in done.folded for node in (*folded.nodes, *folded.into))
    assert all(kept.node in shown and str(kept.refusal.code) in shown for kept in done.kept)
    ground = chromium.value("getComputedStyle(document.body).backgroundColor")
    assert (ground == "rgb(18, 21, 26)") is dark
    if SHOTS:
        chromium.screenshot(Path(SHOTS) / f"digits-{width}{'-dark' if dark else ''}.png")


@pytest.mark.parametrize("width", [PHONE, DESK])
@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_name_runs_nothing_and_breaks_nothing(
    chromium: Chromium, tmp_path: Path, case: str, width: int
) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(named(HOSTILE[case]), encoding="utf-8")
    chromium.open(file, width)
    opened = [e.get("method") for e in chromium.events]
    assert "Page.javascriptDialogOpening" not in opened
    assert complaints(chromium) == []
    assert chromium.value('document.querySelectorAll("script, img, b, [onclick]").length') == 0
    assert chromium.value("document.documentElement.scrollWidth") == width
    assert chromium.value(OVERFLOWING) == []
    if SHOTS:
        chromium.screenshot(Path(SHOTS) / f"{case.replace(' ', '-')}-{width}.png")


def test_the_policy_forbids_what_the_page_does_not_hold(chromium: Chromium, page: Path, tmp_path: Path) -> None:
    """Were there a hole, a script or picture that came in through it would not run."""
    file = tmp_path / "hole.html"
    hole = "<script>document.title = 'run'</script><img src=x.png onerror=\"document.title = 'run'\"><p>"
    file.write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{hole}"), encoding="utf-8")
    chromium.open(file, DESK)
    assert chromium.value("document.title") != "run"
    assert any("Content Security Policy" in text for text in complaints(chromium))


def test_five_thousand_are_shown_in_time(chromium: Chromium, tmp_path: Path) -> None:
    file = tmp_path / "many.html"
    file.write_text(many(5_000).to_html(), encoding="utf-8")
    chromium.open(file, PHONE)
    assert chromium.value("document.documentElement.scrollWidth") == PHONE
    opened = 'document.querySelectorAll("details").forEach(e => e.open = true); document.body.offsetHeight'
    assert (
        chromium.value(f"performance.now() - (() => {{ const t = performance.now(); {opened}; return t }})()") < 3_000
    )
    assert chromium.value(OVERFLOWING) == []


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    return caller(capsys)


def test_an_expansion_fits_too(chromium: Chromium, call: Call, tmp_path: Path) -> None:
    source, file = ROOT / "models" / "digits_cnn_training.onnx", tmp_path / "e.html"
    words = ("expand", source, "-o", tmp_path / "e.onnx", "--sync", "world", "--check", 0, "--report", file)
    assert call(*words).code == 0
    for width in (PHONE, DESK):
        chromium.open(file, width)
        assert complaints(chromium) == []
        assert chromium.value(OVERFLOWING) == []
