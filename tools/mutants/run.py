"""Plant one fault at a time in a copy of the repository and show which test sees it.

    python tools/mutants/run.py [--suite folding|carriers|merging|operator|all] [--blind] [--only WORD] [--write]

``--blind`` takes bnpass's own local check away first, so that the tests stand alone; only folding has one. ``--write``
brings RESULTS.md up to date: the rows of what was run, and no row of a mutant that is gone.
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

from mutant import Mutant
from suites import SUITES, Suite

ROOT = Path(__file__).resolve().parents[2]
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
    for name in ("bnpass", "tests", "models", "tools", "docs"):
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


def judge(mutant: Mutant, suite: Suite, base: Path, red: Iterable[str], *, blind: bool) -> Verdict:
    """Plant one mutant and run the stages until a test fails."""
    stages = ((mutant.tests,), *suite.stages) if mutant.tests else suite.stages
    with tempfile.TemporaryDirectory(prefix="bnpass-mutant-") as name:
        folder = Path(shutil.copytree(base, Path(name) / "repository"))
        plant(folder, (*(suite.blind if blind else ()), mutant))
        begun = time.monotonic()
        for paths in stages:
            killer, why = run_tests(folder, paths, red)
            if killer:
                return Verdict(mutant, killer, why, time.monotonic() - begun)
        return Verdict(mutant, "", "", time.monotonic() - begun)


def run(suite: Suite, base: Path, *, blind: bool, only: str) -> list[Verdict]:
    """Judge the mutants of a suite whose name contains a word."""
    with tempfile.TemporaryDirectory(prefix="bnpass-mutant-") as name:
        plain = Path(shutil.copytree(base, Path(name) / "plain"))
        plant(plain, suite.blind if blind else ())
        red = [test for paths in suite.stages for test in red_without(plain, paths)]
    print(f"{suite.title}: red without any mutant, so left out: {', '.join(red) or 'none'}", flush=True)
    verdicts = []
    for mutant in suite.mutants:
        if only in mutant.name:
            verdict = judge(mutant, suite, base, red, blind=blind)
            verdicts.append(verdict)
            told = f"{verdict.killer or 'SURVIVED':70} {verdict.seconds:5.1f} s  {mutant.name}  {verdict.why}"
            print(told, flush=True)
    return verdicts


def fits(suite: Suite, base: Path) -> bool:
    """Whether all replacements fit the code, and all tests are there; found out before any test is run."""
    wrong = []
    for mutant in (*suite.blind, *suite.mutants):
        found = (base / mutant.file).read_text().count(mutant.old)
        if found != 1:
            wrong.append(f"mutant '{mutant.name}': its text stands {found} times in {mutant.file}")
        if not (base / mutant.tests).exists():
            wrong.append(f"mutant '{mutant.name}': there is no {mutant.tests}")
    print("\n".join(wrong), end="\n" * bool(wrong))
    return not wrong


def row(verdict: Verdict) -> str:
    """Return a verdict as a row of a Markdown table."""
    why = verdict.why.replace("|", "\\|")
    where = verdict.mutant.file.removeprefix("bnpass/")
    killer = f"`{verdict.killer}`" if verdict.killer else "**survived**"
    return f"| {verdict.mutant.name} | `{where}` | {killer} | {why} | {verdict.seconds:.0f} |"


def write(suite: Suite, verdicts: list[Verdict], *, blind: bool) -> None:
    """Bring the section of a suite in RESULTS.md up to date."""
    path = Path(__file__).parent / "RESULTS.md"
    text = path.read_text() if path.exists() else "# Planted mutants\n\nWritten by `tools/mutants/run.py --write`.\n"
    title = suite.title + (": the tests alone (local check taken away)" if blind else "")
    head, *parts = re.split(r"(?m)^## ", text)
    sections = dict(part.split("\n", 1) for part in parts)
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in sections.get(title, "").splitlines()}
    rows |= {verdict.mutant.name: row(verdict) for verdict in verdicts}
    known = [rows[mutant.name] for mutant in suite.mutants if mutant.name in rows]
    killed = sum("**survived**" not in line for line in known)
    table = ["| mutant | file | killed by | how | s |", "|---|---|---|---|---|", *known]
    sections[title] = "\n".join(["", *table, "", f"{killed} of {len(suite.mutants)} killed."])
    body = (f"## {title}\n{section.rstrip()}" for title, section in sections.items())
    path.write_text("\n\n".join([head.rstrip(), *body]) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", choices=(*SUITES, "all"), default="all", help="which part of bnpass")
    parser.add_argument("--blind", action="store_true", help="take the local check of bnpass away first")
    parser.add_argument("--only", default="", help="mutants whose name contains this")
    parser.add_argument("--write", action="store_true", help="bring tools/mutants/RESULTS.md up to date")
    arguments = parser.parse_args()
    suites = list(SUITES.values()) if arguments.suite == "all" else [SUITES[arguments.suite]]
    if arguments.blind:
        suites = [suite for suite in suites if suite.blind]
        if not suites:
            parser.error(f"the suite {arguments.suite} has no check that could be taken away")
    verdicts = []
    with tempfile.TemporaryDirectory(prefix="bnpass-mutant-") as name:
        base = snapshot(Path(name))
        if not all(fits(suite, base) for suite in suites):
            return 2
        for suite in suites:
            found = run(suite, base, blind=arguments.blind, only=arguments.only)
            verdicts += found
            if arguments.write:
                write(suite, found, blind=arguments.blind)
    print(f"{sum(bool(v.killer) for v in verdicts)} of {len(verdicts)} killed.")
    return int(any(not v.killer for v in verdicts))


if __name__ == "__main__":
    sys.exit(main())
