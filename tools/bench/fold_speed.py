"""Fold ResNet-50 (224x224, 100 MB, weights inline) with every tool: time, peak memory, and what is left.

    python tools/bench/fold_speed.py                    two variants, 7 rounds: about 4 minutes once built
    python tools/bench/fold_speed.py --repeats 15 --write

Variants: "as exported" is what Keras 3 and tf2onnx give (batch normalization as loose Mul and Add), "BN intact"
has every batch normalization as one node. Building them needs TensorFlow (`pip install "bnpass[keras]"`).
"""

import argparse
import json
import sys
from pathlib import Path

import measure
from contestants import CONTESTANTS, PEERS, command
from measure import MIB, Sample
from zoo_files import zoo_file

BASELINE = "onnx_ir load + save"
TIME_LIMIT, PEER_LIMIT, TENSORS_LIMIT = 1.2, 0.8, 3
"""The targets: times the baseline's time, times the fastest peer's time, largest tensors above the baseline's peak."""
LEFT_OUT = {"ONNX Runtime extended"}  # for information one level of it is enough
HEAD = ("", "seconds: median [range]", "× onnx_ir", "CPU s", "peak MiB", "BN", "affine", "runs", "max. difference")


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=7, metavar="N", help="rounds that count (default 7)")
    parser.add_argument("--variant", choices=("exported", "bn"), help="one variant only (default: both)")
    arguments = parser.parse_args()
    how = (
        f"`python tools/bench/fold_speed.py --repeats {arguments.repeats}`: whole processes, interleaved, "
        f"{arguments.repeats} rounds after a warm-up; seconds and peak are medians. BN and affine: nodes left "
        "(counted by `tools/bench/judge.py`); max. difference: to the original's output, relative to its largest "
        "element. ONNX Runtime is here for information: its file is meant for its own use."
    )
    parts = [measure.conditions(how)]
    with measure.scratch(arguments) as folder:
        for variant, title in (("exported", "as Keras 3 and tf2onnx export it"), ("bn", "BN intact")):
            if arguments.variant in (None, variant):
                parts += [f"**ResNet-50, {title}**", _variant(arguments, folder, keep_bn=variant == "bn")]
    measure.publish("fold_speed", "\n\n".join(parts), arguments.write)
    return 0


def _variant(arguments: argparse.Namespace, folder: Path, *, keep_bn: bool) -> str:
    source = zoo_file(arguments.models, "ResNet50", keep_bn=keep_bn, small=False)
    expected = folder / "expected.npz"
    names = [name for name in CONTESTANTS if name not in LEFT_OUT]
    targets = {name: folder / f"{number}.onnx" for number, name in enumerate(names)}
    judged: dict[str, dict[str, object]] = {"input": _judge(source, folder, "--record", expected)}

    def after(name: str, sample: Sample, last: bool) -> None:
        if last and sample.ok:
            judged[name] = _judge(targets[name], folder, "--expect", expected)
        targets[name].unlink(missing_ok=True)  # every run creates its file, none replaces one

    samples = measure.interleaved(
        {name: command(name, source, targets[name]) for name in names},
        folder=folder,
        repeats=arguments.repeats,
        after=after,
    )
    if not samples[BASELINE][0].ok:
        raise SystemExit(f"the baseline failed: {samples[BASELINE][0].complaint}")
    baseline = measure.median(samples[BASELINE])
    rows = [["input", *[""] * 4, *_left(judged["input"])]]
    for name in names:
        if samples[name][0].ok:
            times = measure.spread(s.seconds for s in samples[name])
            ratio = f"{measure.median(samples[name]) / baseline:.2f}"
            cpu = measure.spread(s.cpu_seconds for s in samples[name]).split()[0]
            rows.append([name, times, ratio, cpu, f"{measure.peak(samples[name]):.0f}", *_left(judged[name])])
        else:
            rows.append([name, f"{samples[name][0].failure}: {samples[name][0].complaint}", *[""] * 7])
    largest = float(str(judged["input"]["largest_tensor_bytes"])) / MIB
    return measure.table(HEAD, rows) + "\n\n" + _targets(samples, largest)


def _judge(model: Path, folder: Path, *options: str | Path) -> dict[str, object]:
    judge = Path(__file__).with_name("judge.py")
    sample = measure.run([sys.executable, str(judge), str(model), *map(str, options)], folder=folder)
    found: dict[str, object] = json.loads(sample.output) if sample.ok else {"loads": False, "error": sample.failure}
    return found


def _left(judged: dict[str, object]) -> list[str]:
    if not judged.get("loads"):
        return [str(judged.get("batch_norms", "?")), str(judged.get("affines", "?")), "no", str(judged.get("error"))]
    return [str(judged["batch_norms"]), str(judged["affines"]), "yes", f"{judged['difference']:.1e}"]


def _targets(samples: dict[str, list[Sample]], largest_mib: float) -> str:
    ours, base = samples["bnpass"], samples[BASELINE]
    if not ours[0].ok:
        return f"- **FAIL** bnpass: {ours[0].failure}: {ours[0].complaint}"
    lines = [
        measure.verdict(
            f"time, at most {TIME_LIMIT} × {BASELINE}", measure.median(ours), TIME_LIMIT * measure.median(base), " s"
        ),
        measure.verdict(
            f"peak, at most that of {BASELINE} + {TENSORS_LIMIT} × the largest tensor ({largest_mib:.1f} MiB)",
            measure.peak(ours),
            measure.peak(base) + TENSORS_LIMIT * largest_mib,
            " MiB",
        ),
    ]
    times = {name: measure.median(samples[name]) for name in PEERS if samples[name][0].ok}
    if times:
        fastest = min(times, key=times.__getitem__)
        text = f"time, at most {PEER_LIMIT} × the fastest peer ({fastest}, {times[fastest]:.2f} s)"
        lines.append(measure.verdict(text, measure.median(ours), PEER_LIMIT * times[fastest], " s"))
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
