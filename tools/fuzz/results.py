"""The file in which each fuzzer keeps its last long run, one section each."""

import re
from pathlib import Path

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "# The last long runs"


def keep(section: str, command: str, table: str) -> None:
    """Replace a section of RESULTS.md, or add it.

    Args:
        section: Its heading.
        command: What was run.
        table: What came of it, as Markdown.
    """
    text = RESULTS.read_text() if RESULTS.exists() else ""
    found = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE))
    found[section] = f"\n`{command}`\n\n{table}\n"
    sections = [f"## {name}\n\n{body.strip()}\n" for name, body in found.items()]
    RESULTS.write_text("\n".join([f"{TITLE}\n", *sections]))
