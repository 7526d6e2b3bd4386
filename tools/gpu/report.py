"""What a machine with a GPU found: docs/gpu/<device>.json, and of all such files the table docs/gpu/README.md."""

import json
import re
from pathlib import Path
from typing import Any

from library_build import ROOT

FOLDER = ROOT / "docs" / "gpu"
HEAD = """\
# On GPUs

Made by `python tools/gpu/run.py` on a machine with an NVIDIA GPU: it builds the CUDA library for that GPU, judges every
kernel by float64 NumPy, runs compute-sanitizer and the benchmark, and writes a JSON file per device here; this page is
made of them.

Bandwidth: the bytes that a step moves at least (forward 2 reads and 1 write, backward 4 and 1), by its time, as a share
of what copying device memory reaches in the same run. A layer that stays in the L2 cache can exceed 100 %.
"""
NONE = """
No GPU has been at hand yet: nothing here has run on one. The sources compile with warnings as errors, and are run on
the host by `python tools/gpu/host.py`.
"""


def write(device: str, found: dict[str, Any]) -> Path:
    """Write the file of a device and the table of all; returns the file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / (re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") + ".json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    write_table()
    return path


def write_table() -> None:
    """Write docs/gpu/README.md of the files that are there."""
    parts = [HEAD]
    files = sorted(FOLDER.glob("*.json"))
    parts += [section(json.loads(file.read_text(encoding="utf-8"))) for file in files]
    (FOLDER / "README.md").write_text("".join(parts if files else [HEAD, NONE]), encoding="utf-8")


def section(found: dict[str, Any]) -> str:
    """Return what one device found, as Markdown."""
    summary = (
        f"{found['when']}, commit {found['commit']}, compute capability {found['capability']}. "
        f"Verified: {found['cases']} cases, {len(found['failures'])} failures. "
        f"ONNX Runtime: {found['onnxruntime']}. "
        f"compute-sanitizer: {', '.join(f'{t} {r}' for t, r in found['sanitizer'].items()) or 'not there'}. "
        f"Copy: {found['copy'] / 1e12:.2f} TB/s.\n"
    )
    lines = [
        f"\n## {found['device']}\n",
        summary,
        "| op | shape | layout | type | µs | of copy | × cuDNN | × PyTorch |",
        "| --- | --- | --- | --- | ---: | ---: | ---: | ---: |",
    ]
    for t in found["times"]:
        share = t["bytes"] / t["seconds"] / found["copy"]
        faster = [f"{t[p] / t['seconds']:.2f}" if t.get(p) else "" for p in ("cudnn", "native")]
        cells = [t["op"], "×".join(map(str, t["shape"])), t["layout"], t["element"], f"{t['seconds'] * 1e6:.1f}"]
        lines.append("| " + " | ".join([*cells, f"{share:.0%}", *faster]) + " |")
    return "\n".join(lines) + "\n"
