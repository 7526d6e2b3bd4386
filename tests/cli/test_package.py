"""What importing costs, what is public, and that there is one command however it is called."""

import ast
import json
import re
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import bnpass
from bnpass.cli.main import main
from tests.cli import models
from tests.cli.command import ROOT, Call, command, python
from tests.cli.models import written

VERBS = ("export", "fold", "expand", "explain", "verify", "diff", "doctor")
HEAVY = {"onnxruntime", "tensorflow", "onnxscript", "tf2onnx", "tf_keras", "keras", "sklearn", "mpi4py"}
OF_OTHERS = {
    *("--allow-run-as-root", "--bind-to", "--map-by"),  # Open MPI
    *("--format", "--query-gpu"),  # nvidia-smi
    *("--force-reinstall", "--no-cache-dir", "--no-deps"),  # pip
}
"""Options that bnpass names, or gives, to other commands."""
SAY_MODULES = "import json, sys; print('\\n' + json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"


def modules_after(code: str) -> set[str]:
    """Return the top-level modules that are imported once ``code`` has run in a fresh interpreter."""
    ran = python("-c", f"try:\n  {code}\nexcept SystemExit: pass\n{SAY_MODULES}")
    assert ran.code == 0, ran
    return set(json.loads(ran.out.splitlines()[-1]))


def test_import_is_light() -> None:
    found = modules_after("import bnpass")
    assert "bnpass" in found
    assert not found & (HEAVY | {"onnx", "onnx_ir", "numpy"})


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([verb, "--help"] for verb in VERBS)], ids=" ".join)
def test_help_is_light(words: list[str]) -> None:
    found = modules_after(f"from bnpass.cli.main import main; main({words!r})")
    assert not found & (HEAVY | {"onnx", "onnx_ir", "numpy"})


def test_fold_itself_imports_no_runtime(tmp_path: Path) -> None:
    words = ["fold", str(written(tmp_path, models.conv_bn()))]
    found = modules_after(f"from bnpass.cli.main import main; main({words!r})")
    assert "onnx_ir" in found
    assert not found & HEAVY  # the whole-model check runs in a child process


def test_public_names() -> None:
    assert bnpass.__all__ == [
        *("DiffResult", "ExpandOptions", "ExpandResult", "ExportOptions", "ExportResult", "FoldOptions", "FoldResult"),
        *("Verification", "__version__", "diff", "expand", "export", "fold", "get_library_path", "register", "verify"),
    ]


@pytest.mark.parametrize("name", [name for name in bnpass.__all__ if name != "__version__"])
def test_every_public_name_is_there_in_a_fresh_interpreter(name: str) -> None:
    ran = python("-c", f"import bnpass; assert callable(bnpass.{name}), bnpass.{name}")
    assert ran.code == 0, ran.err


def test_public_names_survive_each_other() -> None:
    ran = python("-c", "import bnpass\nfor _ in range(2): assert all(callable(getattr(bnpass, n)) or n[0] == '_' "
                 "for n in bnpass.__all__), [getattr(bnpass, n) for n in bnpass.__all__]")  # fmt: skip
    assert ran.code == 0, ran.err


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'bnpass' has no attribute 'unfold'"):
        _ = bnpass.unfold


def test_the_script_is_the_module(tmp_path: Path) -> None:
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
    assert EntryPoint("bnpass", scripts["bnpass"], "console_scripts").load() is main
    source = written(tmp_path, models.conv_bn())
    script = "import sys; from bnpass.cli.main import main; sys.exit(main())"  # what an installed script does
    for words in (("--help",), ("--version",), ("explain", source), ("explain", tmp_path / "none"), ()):
        assert python("-c", script, *words) == command(*words)


def test_version(call: Call) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert call("--version").out == f"bnpass {project['version']}\n"
    assert bnpass.__version__ == project["version"]


def test_help_states_the_exit_codes(call: Call) -> None:
    ran = call("--help")
    assert ran.code == 0
    assert re.findall(r"^  (\d+) ", ran.out, re.MULTILINE) == ["0", "1", "2", "3", "4", "70"]
    for verb in VERBS:
        assert verb in ran.out


def test_a_bug_is_told_as_one(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fold(*_: object, **__: object) -> None:
        raise KeyError("frob")

    monkeypatch.setattr("bnpass.api.fold.fold", fold)
    ran = call("fold", tmp_path / "m.onnx")
    assert ran.code == 70
    assert "Traceback" in ran.err
    assert ran.err.splitlines()[-1] == "bnpass: internal error (KeyError): please report this"


@pytest.mark.parametrize(("error", "code"), [(MemoryError, 4), (KeyboardInterrupt, 130)])
def test_what_comes_from_outside_is_one_line(
    call: Call, monkeypatch: pytest.MonkeyPatch, error: type[BaseException], code: int
) -> None:
    def fold(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("bnpass.api.fold.fold", fold)
    ran = call("fold", "m.onnx")
    assert (ran.code, len(ran.err.splitlines())) == (code, 1)
    assert "nothing was written" in ran.err


def strings_of(path: Path) -> list[str]:
    """Return the strings of a module, its docstrings left out."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    constants = (node for node in ast.walk(tree) if isinstance(node, ast.Constant) and id(node) not in prose)
    return [node.value for node in constants if isinstance(node.value, str)]


def test_every_option_that_a_message_names_exists(call: Call) -> None:
    known = set(re.findall(r"--[a-z][a-z-]+", "".join(call(verb, "--help").out for verb in VERBS))) | {"--version"}
    known |= OF_OTHERS
    named = {
        (path.name, option)
        for path in sorted((ROOT / "bnpass").rglob("*.py"))
        for text in strings_of(path)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
    }
    assert {option for _, option in named} & {"--force", "--in-place"}  # it does find them
    assert [pair for pair in sorted(named) if pair[1] not in known] == []
