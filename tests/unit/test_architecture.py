"""The house is as docs/design.md says: arrows point one way, heavy packages come late, every refusal is listed."""

import ast
import re
import sys
from pathlib import Path

import pytest

from bnpass.errors import RefusalId

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bnpass"

MAY_IMPORT = {
    "semantics": set(),
    "errors": set(),
    "graph": {"semantics", "errors"},
    "folding": {"graph", "semantics", "errors"},
    "ops": {"semantics", "errors"},
    "layers": {"ops", "semantics", "errors"},
    "collectives": {"graph", "ops", "errors"},
    "expansion": {"collectives", "graph", "ops", "semantics", "errors"},
    "model_io": {"errors"},
    "runtime": {"errors"},
    "verification": {"model_io", "ops", "runtime", "semantics", "errors"},
    "exporting": {"collectives", "graph", "layers", "ops", "semantics", "errors", "verification"},
    "census": set(),
    "comparison": {"errors", "graph", "model_io"},
    "passes": {"collectives", "expansion", "folding", "graph", "ops"},
    "report": {"census", "comparison", "expansion", "folding", "graph"},
    "checks": {"errors", "expansion", "model_io", "ops", "passes", "report", "semantics", "verification"},
    "api": {
        "census",
        "checks",
        "comparison",
        "errors",
        "expansion",
        "exporting",
        "folding",
        "graph",
        "model_io",
        "ops",
        "passes",
        "report",
        "verification",
    },
    "cli": {"api", "errors", "expansion", "exporting", "folding", "model_io", "report", "runtime", "verification"},
    "integrations": {"api", "errors", "folding"},
    "__main__": {"cli"},
    "__init__": {"api", "expansion", "exporting", "folding", "runtime", "verification"},
}
HEAVY = {
    "onnxruntime": {"runtime", "verification"},
    "tensorflow": {"exporting"},
    "tf2onnx": {"exporting"},
    "keras": {"exporting"},
    "tf_keras": {"exporting"},
    "onnxscript": set(),
    "olive": {"integrations"},
}


def imports(path: Path) -> set[str]:
    """Return the dotted names of the modules that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | ({f"bnpass.{a.name}" for a in node.names} if node.module == "bnpass" else set())
    return found


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_a_room_imports_only_from_the_rooms_its_arrows_point_to(path: Path) -> None:
    inner = {name.split(".")[1] for name in imports(path) if name.startswith("bnpass.")} - {"__version__"}
    assert inner - {room(path)} <= MAY_IMPORT[room(path)]
    for package, rooms in HEAVY.items():
        if package in {name.split(".")[0] for name in imports(path)}:
            assert room(path) in rooms


@pytest.mark.parametrize("path", sorted((PACKAGE / "semantics").rglob("*.py")), ids=lambda p: p.name)
def test_semantics_knows_numpy_and_no_onnx(path: Path) -> None:
    outer = {name.split(".")[0] for name in imports(path)} - {"bnpass"}
    assert outer <= {"numpy", "ml_dtypes", *sys.stdlib_module_names}


def test_every_room_that_the_design_page_draws_exists() -> None:
    drawing = (ROOT / "docs" / "design.md").read_text(encoding="utf-8").split("```")[1]
    drawn = re.findall(r"[\w/]+(?:\.py|/)(?=\s)", drawing)
    names = {p.name + ("/" if p.is_dir() else "") for p in [PACKAGE, *PACKAGE.rglob("*")]}
    assert len(drawn) > 15
    assert [name for name in drawn if name.split("/")[-2 if name.endswith("/") else -1].rstrip("/") not in
            {n.rstrip("/") for n in names}] == []  # fmt: skip


def test_every_refusal_id_is_unique_and_documented() -> None:
    listed = re.findall(r"`(BN\d{3} [\w-]+)`", (ROOT / "docs" / "refusals.md").read_text(encoding="utf-8"))
    assert listed == [str(refusal) for refusal in RefusalId]
    assert len({refusal.code for refusal in RefusalId}) == len(RefusalId)
