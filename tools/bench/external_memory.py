"""Fold a model with 4 GiB of external data: how much of it is ever in memory?

    python tools/bench/external_memory.py               4 GiB: needs 9 GiB of free disk, gives it all back
    python tools/bench/external_memory.py --gib 0.5     the same with less

256 weights of 16 MiB, convolutions and MatMuls; in one variant 8 of them have a BN behind them, in the other all.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import measure
from contestants import command
from measure import MIB, Sample

BASE_MIB, TENSORS = 512, 3
"""The target: peak of at most this much and so many times the largest touched tensor."""
TENSOR_MIB = 16
FEW = 8
HEADROOM_GIB = 1.0
_ONNX_IR = "import sys, onnx_ir; onnx_ir.save(onnx_ir.load(sys.argv[1]), sys.argv[2], external_data='baseline.bin')"
_MAKE = """\
import sys
from pathlib import Path
import synthetic
synthetic.external(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
"""


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="rounds that count (default 3)")
    parser.add_argument("--gib", type=float, default=4.0, help="size of the data (default 4)")
    arguments = parser.parse_args()
    layers = max(2 * FEW, 2 * round(arguments.gib * 1024 / TENSOR_MIB / 2))
    how = (
        f"`python tools/bench/external_memory.py --repeats {arguments.repeats} --gib {arguments.gib:g}`: "
        f"{layers} weights of {TENSOR_MIB} MiB in external data. Whole processes, interleaved, {arguments.repeats} "
        "rounds after a warm-up, medians; the peak is the resident set, file pages that are mapped included."
    )
    conditions = measure.conditions(how)
    with measure.scratch(arguments) as folder:
        _check_disk(folder, layers * TENSOR_MIB / 1024)
        text = _measure(arguments, folder, layers)
    measure.publish("external_memory", f"{conditions}\n\n{text}", arguments.write)
    return 0


def _check_disk(folder: Path, gib: float) -> None:
    free = shutil.disk_usage(folder).free / (1 << 30)
    needed = 2 * gib + HEADROOM_GIB
    if free < needed:
        raise SystemExit(
            f"{needed:.1f} GiB of free disk needed, {free:.1f} found: give another --scratch or less --gib"
        )


def _measure(arguments: argparse.Namespace, folder: Path, layers: int) -> str:
    variants = {f"{FEW} of {layers} touched": FEW, f"all {layers} touched": layers}
    output = folder / "out"
    contestants: dict[str, list[str]] = {}
    for number, (title, touched) in enumerate(variants.items()):
        measure.say(f"making {title}")
        make = [sys.executable, "-c", _MAKE, str(folder), f"variant{number}", str(layers), str(touched)]
        subprocess.run(make, cwd=Path(__file__).parent, check=True)
        source = folder / f"variant{number}.onnx"
        contestants[f"bnpass, {title}"] = command("bnpass", source, output / "out.onnx")
    bare = [str(folder / "variant0.onnx"), str(output / "out.onnx")]
    contestants["onnx_ir load + save, external"] = [sys.executable, "-c", _ONNX_IR, *bare]
    left: dict[str, str] = {}
    output.mkdir()

    def after(name: str, sample: Sample, last: bool) -> None:
        if last and sample.ok:
            left[name] = _left(output)
        shutil.rmtree(output)
        output.mkdir()

    samples = measure.interleaved(contestants, folder=folder, repeats=arguments.repeats, timeout_s=1800, after=after)
    rows, targets = [], []
    for name, found in samples.items():
        if not found[0].ok:
            rows.append([name, f"{found[0].failure}: {found[0].complaint}", "", "", ""])
            targets += [f"- **FAIL** {name}"] if name.startswith("bnpass") else []
            continue
        peaks = measure.spread((s.peak_mib for s in found), 0)
        rows.append([name, measure.spread(s.seconds for s in found), peaks, *left[name].split()])
        if name.startswith("bnpass"):
            limit = BASE_MIB + TENSORS * TENSOR_MIB
            text = f"{name}: peak, at most {BASE_MIB} MiB + {TENSORS} × the largest touched tensor ({TENSOR_MIB} MiB)"
            targets.append(measure.verdict(text, max(s.peak_mib for s in found), limit, " MiB"))
    head = ("", "seconds: median [range]", "peak MiB: median [range]", "BN left", "data written, MiB")
    return measure.table(head, rows) + "\n\n" + "\n".join(targets)


def _left(output: Path) -> str:
    judge = [sys.executable, str(Path(__file__).with_name("judge.py")), "out.onnx", "--no-run"]
    sample = measure.run(judge, folder=output)
    written = sum(f.stat().st_size for f in output.iterdir() if f.suffix != ".onnx")
    return f"{json.loads(sample.output)['batch_norms'] if sample.ok else '?'} {written // MIB}"


if __name__ == "__main__":
    sys.exit(main())
