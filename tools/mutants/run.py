"""Plant one fault at a time in a copy of the repository and show which test sees it.

    python tools/mutants/run.py [--blind] [--only WORD] [--write]

``--blind`` takes bnpass's own local check away first, so that the tests stand alone. ``--write`` writes RESULTS.md.
Exit code: 0 if every mutant was killed, 1 if one survived, 2 if a replacement does not fit the code any more.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from table import BLIND, MUTANTS, Mutant

ROOT = Path(__file__).resolve().parents[2]
STAGES = (
    ("tests/property/test_symbolic.py", "tests/property/test_fold_properties.py"),
    ("tests/unit/test_refusals.py", "tests/unit/test_opsets.py", "tests/golden", "tests/museum/test_museum.py"),
)
"""The second stage runs only what the first one lets through, and only files that are green without a mutant."""

PERCENT = "50"


@dataclass(frozen=True)
class Verdict:
    """What became of one mutant.

    Attributes:
        mutant: The mutant.
        killer: The test that failed; "" if none did.
        why: The first line of the failure.
        seconds: Time until then.
    """

    mutant: Mutant
    killer: str
    why: str
    seconds: float


def plant(folder: Path, mutants: Iterable[Mutant]) -> None:
    """Replace the text of each mutant; exit loudly where it does not stand exactly once."""
    for mutant in mutants:
        path = folder / mutant.file
        text = path.read_text() if path.exists() else ""
        if text.count(mutant.old) != 1:
            sys.exit(f"mutant '{mutant.name}': its text stands {text.count(mutant.old)} times in {mutant.file}")
        path.write_text(text.replace(mutant.old, mutant.new))


def snapshot(folder: Path) -> Path:
    """Copy what the tests need, once: the tree may be edited while the mutants run."""
    target = folder / "snapshot"
    ignored = shutil.ignore_patterns("__pycache__", ".git", "*.pyc", ".pytest_cache", ".hypothesis")
    for name in ("bnpass", "tests", "models"):
        shutil.copytree(ROOT / name, target / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, target / name)
    return target


def pytest(folder: Path, paths: Iterable[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Run tests of a copy."""
    present = [p for p in paths if (folder / p).exists()]
    environment = {
        **os.environ,
        "PYTHONPATH": str(folder),
        "PYTHONDONTWRITEBYTECODE": "1",
        "BNPASS_PROPERTY_PERCENT": PERCENT,
        "BNPASS_PROPERTY_SHRINK": "0",
    }
    command = [
        *(sys.executable, "-m", "pytest", "-q", "--tb=line", "-rfE", "-p", "no:cacheprovider", *options),
        # a known bug that a mutant hides is no kill
        *("-p", "no:randomly", "-o", "xfail_strict=false", *present),
    ]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=900
    )


def red_without(folder: Path, paths: Iterable[str]) -> list[str]:
    """Return the tests that fail without any mutant: they prove nothing."""
    done = pytest(folder, paths)
    return re.findall(r"^(?:FAILED|ERROR) (.+?)(?: - .*)?$", done.stdout, re.MULTILINE)


def run_tests(folder: Path, paths: Iterable[str], red: Iterable[str]) -> tuple[str, str]:
    """Return the first failing test and why, or two empty strings."""
    done = pytest(folder, paths, "-x", *(f"--deselect={test}" for test in red))
    if done.returncode == 0:
        return "", ""
    found = re.search(r"^(?:FAILED|ERROR) (.+?)(?: - (.*))?$", done.stdout, re.MULTILINE)
    if found is None:
        return f"pytest itself (exit {done.returncode})", (done.stdout + done.stderr)[-200:]
    return found[1].split("/")[-1], _reason(done.stdout, found[2] or "")


def _reason(output: str, short: str) -> str:
    """Return the kind of failure: bnpass's own check, a statement of the judge, or the assertion."""
    for pattern in (r"VerificationError: [^;\n]*", r"BrokenError: [^\n;]*"):
        if (found := re.search(pattern, output)) is not None:
            return found[0][:110]
    return short[:110]


def judge(mutant: Mutant, base: Path, red: Iterable[str], *, blind: bool) -> Verdict:
    """Plant one mutant and run the stages until a test fails."""
    with tempfile.TemporaryDirectory(prefix="bnpass-mutant-") as name:
        folder = Path(shutil.copytree(base, Path(name) / "repository"))
        plant(folder, (*(BLIND if blind else ()), mutant))
        begun = time.monotonic()
        for paths in STAGES:
            killer, why = run_tests(folder, paths, red)
            if killer:
                return Verdict(mutant, killer, why, time.monotonic() - begun)
        return Verdict(mutant, "", "", time.monotonic() - begun)


def table(verdicts: list[Verdict]) -> str:
    """Return the verdicts as a Markdown table."""
    lines = ["| mutant | file | killed by | how | s |", "|---|---|---|---|---|"]
    for v in verdicts:
        why = v.why.replace("|", "\\|")
        where = v.mutant.file.removeprefix("bnpass/")
        killer = f"`{v.killer}`" if v.killer else "**survived**"
        lines.append(f"| {v.mutant.name} | `{where}` | {killer} | {why} | {v.seconds:.0f} |")
    killed = sum(bool(v.killer) for v in verdicts)
    return "\n".join([*lines, "", f"{killed} of {len(verdicts)} killed."])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blind", action="store_true", help="take the local check of bnpass away first")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--write", action="store_true", help="write tools/mutants/RESULTS.md")
    arguments = parser.parse_args()
    chosen = [m for m in MUTANTS if arguments.only in m.name]
    with tempfile.TemporaryDirectory(prefix="bnpass-mutant-") as name:
        base = snapshot(Path(name))
        for mutant in (*BLIND, *MUTANTS):  # all replacements are tried before any test is run
            text = (base / mutant.file).read_text()
            if text.count(mutant.old) != 1:
                print(f"mutant '{mutant.name}': its text stands {text.count(mutant.old)} times in {mutant.file}")
                return 2
        plain = Path(shutil.copytree(base, Path(name) / "plain"))
        plant(plain, BLIND if arguments.blind else ())
        red = [test for paths in STAGES for test in red_without(plain, paths)]
        print(f"red without any mutant, so left out: {', '.join(red) or 'none'}", flush=True)
        verdicts = []
        for mutant in chosen:
            verdict = judge(mutant, base, red, blind=arguments.blind)
            verdicts.append(verdict)
            told = f"{verdict.killer or 'SURVIVED':70} {verdict.seconds:5.1f} s  {mutant.name}  {verdict.why}"
            print(told, flush=True)
    if arguments.write:
        write(verdicts, blind=arguments.blind)
    print(table(verdicts).rsplit("\n", 1)[-1])
    return int(any(not v.killer for v in verdicts))


def write(verdicts: list[Verdict], *, blind: bool) -> None:
    """Replace one section of RESULTS.md."""
    path = Path(__file__).parent / "RESULTS.md"
    heading = "## The tests alone (local check taken away)" if blind else "## With bnpass as it is"
    text = path.read_text() if path.exists() else "# Planted mutants\n\nWritten by `tools/mutants/run.py --write`.\n"
    sections = re.split(r"(?m)^(?=## )", text)
    sections = [s.rstrip() for s in sections if not s.startswith(heading)]
    path.write_text("\n\n".join([*sections, f"{heading}\n\n{table(verdicts)}"]) + "\n")


if __name__ == "__main__":
    sys.exit(main())
