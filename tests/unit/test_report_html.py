"""The report as a page: what it says, and that nothing in a model can become markup or make the page unusable."""

import unicodedata
from html.parser import HTMLParser
from typing import Any

import pytest

from bnpass.api.expand import expand
from bnpass.census import Census
from bnpass.errors import RefusalId
from bnpass.expansion.options import ExpandOptions
from bnpass.exporting.options import ExportOptions
from bnpass.folding.options import FoldOptions
from bnpass.folding.result import BiasRounding, Folded
from bnpass.graph.kept import Kept
from bnpass.report import Check, ExportReport, FileFact, FoldReport
from bnpass.report.html import figures
from bnpass.report.html.markup import shown
from bnpass.report.html.page import POLICY
from tests.cli import models
from tests.unit.test_report import AFTER, BEFORE, LOCAL, example

OUTPUT = {
    "name": "y", "inner": False, "ok": True, "max_abs_error": 2e-7, "max_rel_error": 1e-7, "original_error": 1e-7,
    "slack": 0.0, "allowed": 8e-7, "snr_db": 130.5, "atol_that_would_pass": 1e-7, "draw": 0, "reason": "",
}  # fmt: skip
TAGS = {
    *("html", "head", "meta", "title", "style", "body", "header", "main", "footer", "section", "details", "summary"),
    *("h1", "h2", "h3", "p", "ul", "li", "span", "strong", "bdi", "div", "table", "thead", "tbody", "tr", "th", "td"),
    *("svg", "rect", "text", "path"),
}
ATTRIBUTES = {
    *("lang", "charset", "http-equiv", "content", "name", "class", "open", "scope", "data-label", "role", "aria-label"),
    *("aria-hidden", "width", "height", "viewbox", "x", "y", "rx", "d", "preserveaspectratio"),
}
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "end of text": "</text></svg></style><img src=x onerror=alert(1)>",
    "quotes": "\"'><b onclick=\"x\" y='z'>",
    "entity": "&lt;script&gt;&amp;",
    "comment": "<!-- --!> <![CDATA[ x ]]>",
    "lines": "one\ntwo\r\nthree\ttab",
    "nul": "nul\0escape\x1b[31mred",
    "bidi": "safe\u202egnp.exe\u2066x\u2069\u200f",
    "invisible": "zero\u200bwidth\ufeff",
    "surrogate": "half\udcff",
    "hebrew": "שכבה/נרמול",
    "endless": "n" * 10_000,
    "endless and hostile": "<\u202e\n" * 3_334,
    "empty": "",
}


class Page(HTMLParser):
    """What a page holds: its tags, attributes and text; it fails on tags that do not close in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(key, value or "") for key, value in attrs]
        if tag != "meta":
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    def handle_comment(self, data: str) -> None:
        raise AssertionError(f"a comment: {data}")


def whole(*outputs: dict[str, Any], ran: bool = True) -> Check:
    details = {"outputs": [{**OUTPUT, **output} for output in outputs], "not_compared": []}
    return Check("whole model", ran=ran, text="3 draws", details=details)


def page_of(**changes: Any) -> Page:
    return Page(example(**changes).to_html())


def named(name: str) -> str:
    """Return a page in which everything that a model names has this name."""
    kept = Kept(name, name or "Mul", RefusalId.NONLINEAR_BETWEEN, name, f"{name} stands before it")
    return FoldReport(
        FileFact(f"{name}.onnx", 1, None),
        FileFact(f"{name}.out.onnx", 1, None),
        Census({name: 3, "Conv": 1}, 10),
        Census({name: 2, "Conv": 1}, 10),
        (kept, Kept(name, "Mul", RefusalId.NO_GAIN, "other", "so")),
        (LOCAL, whole({"name": name}, {"name": name, "ok": False, "reason": name or "so"})),
        FoldOptions(only=(name,)),
        tuple(Folded((name, name), into, side, (name,)) for side in ("output", "input", "joined")
              for into in ((name,), ())),
        idle=(name, name),
    ).to_html()  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_a_name_is_text_and_nothing_else(case: str) -> None:
    name = HOSTILE[case]
    text = named(name)
    page, harmless = Page(text), Page(named("a"))
    lines = {"text"}  # a longer name has more of them
    assert [t for t in page.tags if t not in lines] == [t for t in harmless.tags if t not in lines]
    assert set(page.tags) <= TAGS
    assert {key for key, _ in page.attributes} == {key for key, _ in harmless.attributes} <= ATTRIBUTES
    assert shown(name)[:30] in "".join(page.texts)
    assert len(text) < 80_000
    odd = [c for c in text if c != "\n" and unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co", "Cn")]
    assert odd == []
    assert text.encode("utf-8")


def test_nothing_comes_from_elsewhere() -> None:
    page = page_of(checks=(LOCAL, whole({})), seconds={"load": 0.1})
    assert set(page.tags) <= TAGS
    assert {key for key, _ in page.attributes} <= ATTRIBUTES
    assert ("content", POLICY) in page.attributes
    assert POLICY == "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    text = example().to_html()
    assert "url(" not in text
    assert "@import" not in text
    assert "//" not in text


def test_the_overview() -> None:
    text = page_of(checks=(LOCAL, whole({})), seconds={"load": 0.5, "fold": 1.0, "check": 61.0}).text
    assert text.startswith("bnpass fold: in.onnx bnpass fold in.onnx → out.onnx batch normalization: 2 folded, 1 kept;")
    assert "batch normalizations 3 → 1 nodes 12 → 9 constants 12.3 kB → 2 kB file 20 kB → 9 kB" in text
    assert "largest error 25% of what is allowed, 1 output" in text
    assert "time 1 min 2 s" in text
    assert "load 0.5 s fold 1 s check 1 min 1 s" in text


def test_a_dry_run_and_a_model_in_memory() -> None:
    assert "in.onnx →" not in page_of(target=None).text
    text = page_of(source=None, target=None).text
    assert "a model in memory" in text
    assert "Files" not in text
    assert "checks 1 of 2 whole model not run" in text
    assert "not checked whole model : switched off" in text
    assert "Time" not in text


def test_every_node_has_a_picture_and_a_sentence() -> None:
    page = page_of()
    assert page.tags.count("details") == 7  # 2 refusals, 2 sides, ops that stay, options, versions
    assert [value for key, value in page.attributes if key == "aria-label"] == [
        "BatchNormalization bn3 stays: BN108 nonlinear-between, at relu",
        "Mul mul2 stays: BN112 clone-budget, at conv3",
        "bn1, mul1 went into the output of conv1",
        "bn2 went into the input of conv2, conv3",
    ]
    assert "BN108 nonlinear-between 1" in page.text
    assert "BatchNormalization bn3 : Relu 'relu' stands before it" in page.text
    assert "bn1 , mul1 into the output of conv1" in page.text


def test_a_picture_has_data_going_from_left_to_right() -> None:
    """What takes an affine in at its output stands before it, so to the left; at its input, to the right."""
    output = page_of(kept=(), folded=(Folded(("bn",), ("conv",), "output", ("bn",)),)).text
    assert "takes it in conv BatchNormalization bn output" in output
    behind = page_of(kept=(), folded=(Folded(("bn",), ("conv",), "input", ("bn",)),)).text
    assert "BatchNormalization bn takes it in conv input" in behind
    joined = page_of(kept=(), folded=(Folded(("add", "mul"), ("mul/Mul",), "joined", ()),)).text
    assert "affine add affine mul affine mul/Mul joined" in joined
    nothing = page_of(kept=(), folded=(Folded(("mul",), (), "joined", ()),)).text
    assert "mul changed no value and is gone" in nothing


def test_a_rounded_bias_is_told() -> None:
    rounded = Folded(("bn",), ("conv",), "output", ("bn",), (BiasRounding("conv<i>", 0.437, 1e-3),))
    text = page_of(folded=(rounded,)).text
    assert "into the output of conv ; bias of conv<i> rounded to integers, by at most 0.44 units" in text


def test_a_node_that_is_in_its_own_way_stands_alone() -> None:
    page = page_of(folded=(), kept=(Kept("bn", "BatchNormalization", RefusalId.TRAINING_MODE, "bn", "it trains"),))
    assert page.text.count("in the way") == 0
    assert "BatchNormalization bn : it trains" in page.text


def test_a_long_run_is_counted() -> None:
    nodes = tuple(f"mul{i}" for i in range(100))
    text = page_of(kept=(), folded=(Folded(nodes, nodes[:1], "joined", ()),)).text
    assert "mul1 98 more affine mul0 joined" in text
    assert "mul19 and 80 more joined in mul0" in text


def test_nodes_that_changed_nothing_are_counted_and_named() -> None:
    page = page_of(kept=(), folded=(), idle=tuple(f"reshape{i}" for i in range(40)))
    assert "40 nodes that changed nothing removed" in page.text
    assert "other nodes that changed no value 40" in page.text
    assert "reshape19 and 20 more changed no value and are gone" in page.text
    assert "reshape changed no value and is gone" in page_of(kept=(), folded=(), idle=("reshape",)).text


def test_the_errors_of_the_outputs() -> None:
    wrong = {"name": "z", "ok": False, "max_abs_error": 3e-6, "allowed": 1e-6, "reason": "3e-06 is more than 1e-06"}
    strange = {"name": "inf", "max_abs_error": None, "allowed": None, "snr_db": None}
    text = page_of(checks=(LOCAL, whole({}, wrong, strange, {"name": "in", "inner": True}))).text
    assert "y 2e−07 8e−07 25% 130 dB" in text
    assert "z 3e-06 is more than 1e-06 3e−06 1e−06 300%: too far 130 dB" in text
    assert "inf – – 0% exact" in text
    assert "in inner value" in text
    exact = page_of(checks=(LOCAL, whole({"max_abs_error": 0.0, "allowed": 0.0}))).text
    assert "largest error 0%" in exact


def test_ops_that_change_come_first_and_the_others_are_folded_away() -> None:
    text = page_of().text
    assert "op before after change BatchNormalization 3 1 −2 Mul 2 1 −1 2 ops of which nothing changed: 7 nodes" in text
    assert "No op was added or taken away." in page_of(after=BEFORE).text


def many(number: int, name: str = "{}") -> FoldReport:
    """Return a report of a model with so many batch normalizations, half of them kept."""
    names = [name.format(f"encoder/stage{i // 100}/block{i}/bn/FusedBatchNormV3") for i in range(number)]
    return FoldReport(
        None, None, Census({"BatchNormalization": number}, 0), Census({}, 0),
        tuple(Kept(n, "BatchNormalization", RefusalId.NONLINEAR_BETWEEN, f"{n}/relu", f"Relu '{n}/relu' stands before "
                   "it; MaxPool behind") for n in names[: number // 2]),
        (LOCAL,), FoldOptions(),
        tuple(Folded((n,), (f"{n}/conv",), "output", (n,)) for n in names[number // 2 :]),
    )  # fmt: skip


def test_a_page_of_five_thousand_lists_them_all() -> None:
    text = many(5_000).to_html()
    assert len(text.encode()) < 5_000_000
    assert text.count("<li><") >= 5_000
    assert "stage49/block4999/bn" in text
    assert "Pictures of the first 1,000 only." in Page(text).text


@pytest.mark.parametrize("name", ["{}" + "x" * 10_000, "{}" + "<&\u202e" * 3_000])
def test_a_page_never_grows_beyond_what_a_browser_likes(name: str) -> None:
    text = many(5_000, name).to_html()
    page = Page(text)
    assert len(text.encode()) < 5_000_000
    listed = page.tags.count("li") - 8  # tiles and checks
    told = next(word for word in page.text.split() if word.replace(",", "").isdecimal() and "," in word
                and f"{word} more are counted above and not listed" in page.text)  # fmt: skip
    assert int(told.replace(",", "")) + listed in range(4_995, 5_005)


def test_many_ops_and_outputs_are_counted() -> None:
    ops = {f"op{i}": 1 for i in range(1_000)}
    text = page_of(after=Census(ops, 0), checks=(LOCAL, whole(*({"name": f"y{i}"} for i in range(300))))).text
    assert f"and {1_000 + 4 - figures.ROWS:,} more" in text
    assert f"and {300 - figures.ROWS} more" in text


def test_an_expansion() -> None:
    report = expand(models.training(), ExpandOptions(group="world", check=0)).report
    page = Page(report.to_html())
    assert "training, written out 1" in page.text
    assert "AllReduce 'world'" in page.text
    assert "BatchNormalization bn : float32, N × 4 × 8 × 8, 4 channels on axis 1" in page.text
    assert page.text.startswith("bnpass expand")


def test_an_export() -> None:
    checks = (Check("round trip", ran=True, text="fine", details=whole({}).details),)
    given = {"stem<b>": 1, "shared": 3, "unused": 0}
    norms = Census({"BatchNormalization": 4, "Conv": 2}, 100)
    report = ExportReport("m.keras", "Keras 3", None, FileFact("m.onnx", 5, None), given, (0, 0), norms,
                          ("a note",), checks, ExportOptions())  # fmt: skip
    page = Page(report.to_html())
    assert set(page.tags) <= TAGS
    assert page.text.startswith("bnpass export: m.keras bnpass export m.keras → m.onnx")
    assert "stem<b> : 1 node" in page.text
    assert "shared : 3 nodes" in page.text
    assert "Notes a note" in page.text
    assert "op nodes BatchNormalization 4 Conv 2" in page.text
    assert "Folded then" not in page.text
    folded = ExportReport("m.keras", "Keras 3", None, None, given, (0, 0), AFTER, (), (*checks, LOCAL), ExportOptions())
    assert "Folded then: 1 batch normalization left." in Page(folded.to_html()).text


@pytest.mark.parametrize(
    ("number", "said"),
    [(0, "0 B"), (999, "999 B"), (1000, "1 kB"), (85_785, "85.8 kB"), (999_600, "1 MB"), (5 * 10**12, "5e+03 GB")],
)
def test_sizes(number: int, said: str) -> None:
    assert figures.size(number) == said


@pytest.mark.parametrize(
    ("text", "said"),
    [("a\nb", r"a\nb"), ("\u202e", r"\u202e"), ("x" * 201, "x" * 99 + "…" + "x" * 100 + " (201 characters)")],
)
def test_shown(text: str, said: str) -> None:
    assert shown(text) == said
