"""Judge the kernels, called on plain device buffers, by the formula in float64.

    python tools/gpu/verify.py LIBRARY [--large] [--only WORD] [--every N]

LIBRARY is libbnpass_ort_cuda.so, or its stand-in for hosts without a GPU. Exit code: 0 if every result is within its
bound, 1 if one is not.
"""

import argparse
import ctypes
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import formula
import numpy as np
from cases import Case, large_cases, small_cases
from device import DTYPES, BackwardArguments, Buffer, Device, ForwardArguments, Pointer, Tensor, tensor

HALF_ULP = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8, "float64": 2.0**-53}
LEAST = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133, "float64": 2.0**-1074}
"""The smallest number of a type: half of it is the rounding error near 0."""


@dataclass(frozen=True)
class Precision:
    """What a kernel promises: relative errors of the statistics, and of one step of the arithmetic per element."""

    statistics: float
    step: float

    @classmethod
    def of(cls, case: Case, fast_double: bool) -> "Precision":
        """Return the promise for a type on a GPU (cuda/value.h)."""
        sums = case.element == "float64" or fast_double
        steps = case.element == "float64" or (case.element == "float32" and fast_double)
        return cls(1e-12 if sums else 1e-6, 2.0**-51 if steps else 2.0**-21)


@dataclass
class Findings:
    """Results outside of their bounds, and how near the others came."""

    failures: list[str] = field(default_factory=list)
    worst: dict[str, float] = field(default_factory=dict)

    def judge(self, case: Case, name: str, found: np.ndarray, expected: np.ndarray, bound: np.ndarray | float) -> None:
        """Compare found and expected; the error may be as large as the bound."""
        error = np.abs(found.astype(np.float64).reshape(expected.shape) - expected)
        ratio = float(np.max(error / np.maximum(bound, 1e-300), initial=0.0))
        if not ratio <= 1 or np.isnan(error).any():
            self.failures.append(f"{case}: {name}: error {error.max():.3g} is {ratio:.3g} times its bound")
        self.worst[name] = max(self.worst.get(name, 0.0), ratio)

    def require(self, case: Case, name: str, held: bool) -> None:
        """Note a failure unless it held."""
        if not held:
            self.failures.append(f"{case}: {name}")


class Trial:
    """One case on the device: inputs, outputs and the workspace, for the time of a with block."""

    def __init__(self, device: Device, case: Case, seed: int) -> None:
        self.device, self.case = device, case
        self.stack = ExitStack()
        rng = np.random.default_rng(seed)
        self.described: Tensor = tensor(case.shape, case.axis, case.virtual_batch_size, case.element)
        self.dtype, self.vectors = DTYPES[case.element], DTYPES[case.parameters]
        channels = case.shape[case.axis]
        means = case.offset * rng.choice([-1.0, 1.0], channels)
        shape = [1] * len(case.shape)
        shape[case.axis] = channels
        self.x = (rng.standard_normal(case.shape) + means.reshape(shape)).astype(self.dtype)
        self.dy = rng.standard_normal(case.shape).astype(self.dtype)
        vectors = [rng.uniform(0.5, 2, channels).astype(self.vectors) for _ in range(4)]
        self.layer = formula.Parameters(*(vector.astype(np.float64) for vector in vectors))
        self.inputs = dict(zip(("scale", "B", "input_mean", "input_var"), vectors, strict=True))

    def __enter__(self) -> "Trial":
        enter, device, misalign = self.stack.enter_context, self.device, self.case.misalign
        self.X = enter(device.upload(self.x, misalign))
        self.dY = enter(device.upload(self.dy, misalign))
        self.result = enter(device.empty(self.case.shape, self.dtype, misalign))
        self.params = {name: enter(device.upload(vector)) for name, vector in self.inputs.items()}
        self.workspace = enter(device.workspace(self.described))
        canonical = formula.canonical(self.x, self.case.axis, self.case.virtual_batch_size)
        self.statistics = (canonical.shape[1], canonical.shape[3])
        return self

    def __exit__(self, *exception: object) -> None:
        self.stack.close()

    def doubles(self, count: int) -> list[Buffer]:
        """Vectors [groups, channels], in double, without a value yet."""
        return [
            self.stack.enter_context(self.device.empty(self.statistics, np.dtype(np.float64))) for _ in range(count)
        ]

    def vector(self) -> Buffer:
        """A vector [channels] of the type of the parameters, without a value yet."""
        return self.stack.enter_context(self.device.empty((self.statistics[1],), self.vectors))

    def refill(self, buffer: Buffer) -> None:
        """Forget what a buffer holds."""
        self.device.launch("fill", Pointer(buffer.address), 0xFF, ctypes.c_size_t(buffer.nbytes))


def rounding(case: Case, expected: np.ndarray) -> np.ndarray:
    """Return what one rounding to the type of X may cost."""
    return HALF_ULP[case.element] * np.abs(expected) * 1.001 + LEAST[case.element] / 2


def check_forward(trial: Trial, precision: Precision, findings: Findings) -> formula.Forward:
    device, case = trial.device, trial.case
    want = formula.forward(trial.x, case.axis, case.virtual_batch_size, trial.layer)
    mean, inv_std, var, factor = trial.doubles(4)
    count = trial.stack.enter_context(device.empty((), np.dtype(np.float64)))
    running_mean, running_var = trial.vector(), trial.vector()
    arguments = ForwardArguments(
        trial.X.address,
        *(trial.params[name].vector() for name in ("scale", "B", "input_mean", "input_var")),
        running_mean.vector(),
        running_var.vector(),
        trial.layer.epsilon,
        trial.layer.momentum,
        trial.layer.correction,
        *(buffer.address for buffer in (mean, inv_std, var, factor, count, trial.result)),
    )

    def step() -> None:
        device.launch("forward", ctypes.byref(trial.described), ctypes.byref(arguments), trial.workspace)

    step()
    std, e = np.sqrt(want.var), precision.statistics
    spread_of_mean = std + 1e-3 * e * np.abs(want.mean) + 1e-300
    mean_bound = e * spread_of_mean + 2.0**-52 * np.abs(want.mean)
    findings.judge(case, "mean", device.download(mean), want.mean, mean_bound)
    findings.judge(case, "var", device.download(var), want.var, 2 * e * want.var + mean_bound**2)
    findings.judge(case, "inv_std", device.download(inv_std), want.inv_std, (2 * e + 1e-15) * want.inv_std)
    findings.judge(case, "count", device.download(count), np.array(want.count), 0.0)
    ulp = HALF_ULP[case.parameters]
    for name, buffer, expected, batch in (
        ("running_mean", running_mean, want.running_mean, np.sqrt(want.var).mean(0)),
        ("running_var", running_var, want.running_var, want.var.mean(0)),
    ):
        bound = ulp * np.abs(expected) * 1.001 + 4 * e * batch + 1e-15 * np.abs(want.mean).max() + 1e-15
        findings.judge(case, name, device.download(buffer), expected, bound)
    scaled = np.abs(formula.spread(trial.layer.scale * want.inv_std) * want.away)
    size = scaled + np.abs(formula.spread(trial.layer.B[None]))
    shifted = np.abs(formula.spread(trial.layer.scale * want.inv_std * mean_bound))
    bound = rounding(case, want.Y) + precision.step * size + 2 * e * scaled + 2 * shifted
    first = device.download(trial.result)
    findings.judge(case, "Y", first, want.Y, bound)

    trial.refill(trial.result)
    step()
    findings.require(case, "Y differs from run to run", first.tobytes() == device.download(trial.result).tobytes())
    trial.refill(trial.result)
    if device.replay(step):
        again = device.download(trial.result).tobytes()
        findings.require(case, "Y differs in a CUDA graph", first.tobytes() == again)
    return want


def check_backward(trial: Trial, precision: Precision, findings: Findings, count: float, want: formula.Forward) -> None:
    device, case = trial.device, trial.case
    mean, inv_std = (trial.stack.enter_context(device.upload(vector)) for vector in (want.mean, want.inv_std))
    M = trial.stack.enter_context(device.upload(np.array(count)))
    sum_dY, sum_dYX, factor, shift, slope = trial.doubles(5)
    dscale, dB = trial.vector(), trial.vector()
    trial.refill(trial.result)
    arguments = BackwardArguments(
        trial.dY.address,
        trial.X.address,
        trial.params["scale"].vector(),
        dscale.vector(),
        dB.vector(),
        *(b.address for b in (mean, inv_std, M, sum_dY, sum_dYX, factor, shift, slope, trial.result)),
    )
    device.launch("backward", ctypes.byref(trial.described), ctypes.byref(arguments), trial.workspace)
    back = formula.backward(
        trial.dy, trial.x, want.mean, want.inv_std, count, trial.layer.scale, case.axis, case.virtual_batch_size
    )
    e, ulp = precision.statistics, HALF_ULP[case.parameters]
    slip = 2.0**-52 * np.abs(want.mean) * back.size_dY
    findings.judge(case, "sum dY", device.download(sum_dY), back.sum_dY, e * back.size_dY)
    findings.judge(case, "sum dY·(X-mean)", device.download(sum_dYX), back.sum_dYX, e * back.size_dYX + slip)
    dB_bound = ulp * np.abs(back.dB) * 1.001 + e * back.size_dY.sum(0)
    findings.judge(case, "dB", device.download(dB), back.dB, dB_bound)
    dscale_bound = ulp * np.abs(back.dscale) * 1.001 + (want.inv_std * (e * back.size_dYX + slip)).sum(0)
    findings.judge(case, "dscale", device.download(dscale), back.dscale, dscale_bound)
    values = formula.canonical(trial.dy, case.axis, case.virtual_batch_size)
    centred = np.abs(formula.spread(back.slope) * want.away)
    magnitudes = np.abs(values) + np.abs(formula.spread(back.shift)) + centred
    sums = formula.spread(back.size_dY / max(count, 1)) + formula.spread(
        want.inv_std**2 * back.size_dYX / max(count, 1)
    ) * np.abs(want.away)
    bound = rounding(case, back.dX) + np.abs(formula.spread(back.factor)) * (precision.step * magnitudes + 2 * e * sums)
    name = "dX" if count else "dX of constants"
    findings.judge(case, name, device.download(trial.result), back.dX, bound)


def check_passes(trial: Trial, precision: Precision, findings: Findings, want: formula.Forward) -> None:
    """Judge the single passes, and normalize in place."""
    device, case = trial.device, trial.case
    mean, square_sum = trial.doubles(2)
    device.launch(
        "moments", ctypes.byref(trial.described), *map(_pointer, (trial.X, mean, square_sum)), trial.workspace
    )
    bound = 2 * precision.statistics * want.var * want.count + 1e-300
    findings.judge(case, "square sum", device.download(square_sum), want.var * want.count, bound + want.count * 1e-20)
    factor = trial.stack.enter_context(device.upload(trial.layer.scale * want.inv_std))
    exact_mean = trial.stack.enter_context(device.upload(want.mean))
    B = trial.stack.enter_context(device.upload(trial.layer.B))
    copy = trial.stack.enter_context(device.upload(trial.x, case.misalign))
    device.launch("normalize", ctypes.byref(trial.described), *map(_pointer, (copy, exact_mean, factor, B, copy)))
    size = np.abs(formula.spread(trial.layer.scale * want.inv_std) * want.away) + np.abs(trial.layer.B).max()
    slip = 2.0**-52 * np.abs(formula.spread(trial.layer.scale * want.inv_std * want.mean))
    bound = rounding(case, want.Y) + precision.step * size + slip
    findings.judge(case, "Y in place", device.download(copy), want.Y, bound)


def _pointer(buffer: Buffer) -> Pointer:
    return Pointer(buffer.address)


def check_nan(device: Device, case: Case, findings: Findings) -> None:
    """A NaN reaches its own channel and ghost batch, and no other."""
    with Trial(device, case, 7) as trial:
        canonical = formula.canonical(trial.x, case.axis, case.virtual_batch_size)
        spoilt = np.zeros(canonical.shape, bool)
        spoilt[-1, -1, -1, -1, -1] = True
        x = np.where(spoilt.reshape(trial.x.shape), np.nan, trial.x.astype(np.float64)).astype(trial.dtype)
        X = trial.stack.enter_context(device.upload(x))
        mean, square_sum = trial.doubles(2)
        device.launch("moments", ctypes.byref(trial.described), *map(_pointer, (X, mean, square_sum)), trial.workspace)
        for buffer in (mean, square_sum):
            is_nan = np.isnan(device.download(buffer))
            findings.require(case, "a NaN stays in its channel", bool(is_nan[-1, -1]) and is_nan.sum() == 1)


def verify(device: Device, cases: list[Case]) -> Iterator[tuple[Case, Findings]]:
    """Judge each case; findings add up."""
    findings = Findings()
    for seed, case in enumerate(cases):
        precision = Precision.of(case, device.has_fast_double)
        with Trial(device, case, seed) as trial:
            want = check_forward(trial, precision, findings)
            check_backward(trial, precision, findings, want.count, want)
            check_backward(trial, precision, findings, 0.0, want)
            check_passes(trial, precision, findings, want)
        if not case.misalign and case.offset < 100:
            check_nan(device, case, findings)
        yield case, findings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library", type=Path)
    parser.add_argument("--large", action="store_true", help="also the shapes of real layers")
    parser.add_argument("--only", default="", metavar="WORD", help="cases with this word in their name")
    parser.add_argument("--every", type=int, default=1, metavar="N", help="every N-th case only")
    arguments = parser.parse_args()
    cases = small_cases() + (large_cases() if arguments.large else [])
    cases = [case for case in cases if arguments.only in str(case)][:: arguments.every]
    findings = [found for _, found in verify(Device(arguments.library), cases)][-1] if cases else Findings()
    for failure in findings.failures:
        print(failure)
    near = ", ".join(f"{name} {ratio:.2f}" for name, ratio in sorted(findings.worst.items()))
    print(f"{len(cases)} cases, {len(findings.failures)} failures; worst error over its bound: {near}")
    return 1 if findings.failures else 0


if __name__ == "__main__":
    sys.exit(main())
