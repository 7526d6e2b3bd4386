"""Try the statements about layers and training graphs on random ones for as long as it takes.

    python tools/fuzz/fuzz_layers.py --minutes 10 --seed 1 [--only NAME] [--out DIR] [--write]
    python tools/fuzz/fuzz_layers.py --case 4711                        one case again, printed

Generators and statements are those of tests/property/test_layer_properties.py. Case k of seed s is the integer
s·2³² + k, which decides everything, the statement included: with the option --only it chooses that one.
Exit code: 0 if every statement held, 1 if one did not.
"""

import argparse
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
sys.path.insert(0, str(Path(__file__).parent))

import numpy as np  # noqa: E402
from results import keep  # noqa: E402

from tests.property import layer_judge  # noqa: E402
from tests.property.graphs import Choices, RandomChoices, pick  # noqa: E402
from tests.property.specs import LayerCase, layer_case  # noqa: E402
from tests.property.training_graphs import GraphCase, graph_case, replicas_are_the_batch  # noqa: E402

Example = tuple[LayerCase | GraphCase, Callable[[], float | None]]
"""A case, and what judges it: returns the largest deviation over what roundings permit, where there is one."""


def _of_any_layer(statement: Callable[[LayerCase], float | None], *, several: bool | None = None) -> object:
    def example(choices: Choices) -> Example:
        case = layer_case(choices, several=several)
        return case, lambda: statement(case)

    return example


def _of_plain_layers(statement: Callable[..., float | None], reach: int = 0, no: str = "") -> object:
    def example(choices: Choices) -> Example:
        dtypes = [name for name in ("float32", "float64", "float16", "bfloat16") if name != no]
        case = layer_case(choices, tame=True, dtypes=dtypes)
        more = [choices.below(2 * reach + 1) - reach] if reach else []
        return case, lambda: statement(case, *more)

    return example


def _json(case: LayerCase) -> None:
    layer_judge.survives_json(case.spec, case.layer)


def _graph(choices: Choices) -> Example:
    case = graph_case(choices)
    return case, lambda: replicas_are_the_batch(case)


STATEMENTS = {
    "json": _of_any_layer(_json),
    "bodies": _of_any_layer(layer_judge.bodies_are_right),
    "expansion": _of_any_layer(layer_judge.expansion_is_right),
    "bodies in replicas": _of_any_layer(layer_judge.bodies_are_right, several=True),
    "expansion in replicas": _of_any_layer(layer_judge.expansion_is_right, several=True),
    "valid and in order": _of_any_layer(layer_judge.graphs_are_valid),
    "moving statistics": _of_plain_layers(layer_judge.moving_statistics_do_not_matter),
    "orthogonal gradients": _of_plain_layers(layer_judge.gradients_are_orthogonal),
    "shift": _of_plain_layers(layer_judge.a_shift_does_not_matter, 8, no="bfloat16"),
    "power of two": _of_plain_layers(layer_judge.a_power_of_two_does_not_matter, 20, no="float16"),
    "training graphs": _graph,
}


@dataclass
class Tally:
    """What was seen.

    Attributes:
        cases: Cases by statement.
        worst: Largest deviation over what is permitted, by statement.
        apis: Layers by class.
        failures: Failing cases by kind of failure.
    """

    cases: Counter[str] = field(default_factory=Counter)
    worst: dict[str, float] = field(default_factory=dict)
    apis: Counter[str] = field(default_factory=Counter)
    failures: dict[str, list[int]] = field(default_factory=dict)


def drawn(number: int, only: str | None) -> tuple[str, Example]:
    """Return the statement and the case of a number."""
    choices = RandomChoices(number)
    name = pick(choices, list(STATEMENTS))
    name = only or name
    return name, STATEMENTS[name](choices)  # type: ignore[operator]


def one(number: int, only: str | None, tally: Tally, out: Path) -> None:
    """Judge one case and count it."""
    name, (case, judged) = drawn(number, only)
    tally.cases[name] += 1
    if isinstance(case, LayerCase):
        tally.apis[case.spec.api] += 1
    try:
        with np.errstate(all="ignore"):
            ratio = judged()
    except Exception as error:  # noqa: BLE001 (anything that escapes is a finding)
        seen = tally.failures.setdefault(kind_of(name, error), [])
        seen.append(number)
        if len(seen) <= 5:
            save(number, only, case, error, out)
        return
    if ratio is not None:
        tally.worst[name] = max(tally.worst.get(name, 0.0), ratio)


def kind_of(name: str, error: Exception) -> str:
    """Return a failure without its names and numbers."""
    text = f"{type(error).__name__}: {error}".split("\n")[0]
    return f"{name}: " + re.sub(r"'[^']*'|\[[^\]]*\]|[-+]?\d[\d.e+-]*", "…", text)[:120]


def save(number: int, only: str | None, case: LayerCase | GraphCase, error: Exception, out: Path) -> None:
    """Keep a failing case with the command that shows it again."""
    out.mkdir(parents=True, exist_ok=True)
    option = f" --only '{only}'" if only else ""
    command = f"python tools/fuzz/fuzz_layers.py --case {number}{option}"
    trace = "".join(traceback.format_exception(error))
    (out / f"layers-{number}.txt").write_text(f"{command}\n{case}\n\n{trace}\n")
    print(f"FAILED  {command}\n        {type(error).__name__}: {str(error)[:200]}", flush=True)


def report(tally: Tally, seed: int, seconds: float) -> str:
    """Return the summary as Markdown."""
    rows = [
        ("seed", str(seed)),
        ("cases", f"{sum(tally.cases.values()):,}"),
        ("seconds", f"{seconds:.0f}"),
        ("by statement", ", ".join(f"{name} {tally.cases[name]:,}" for name in STATEMENTS if tally.cases[name])),
        ("layers by class", ", ".join(f"{name} {n:,}" for name, n in tally.apis.most_common())),
        ("largest deviation / permitted", ", ".join(f"{name} {worst:.3f}" for name, worst in tally.worst.items())),
        ("failing cases", str(sum(map(len, tally.failures.values())))),
    ]
    lines = ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]
    for kind, numbers in sorted(tally.failures.items(), key=lambda item: -len(item[1])):
        lines.append(f"| {len(numbers)} × `{kind}` | cases {', '.join(map(str, numbers[:5]))} |")
    return "\n".join(lines)


def show(number: int, only: str | None) -> int:
    """Judge one case and print it."""
    name, (case, judged) = drawn(number, only)
    print(f"{name}\n{case}")
    with np.errstate(all="ignore"):
        print(judged())
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=STATEMENTS, help="one statement; default: all")
    parser.add_argument("--out", type=Path, default=Path("fuzz-failures"))
    parser.add_argument("--case", type=int, help="show one case again")
    parser.add_argument("--write", action="store_true", help="write the section of tools/fuzz/RESULTS.md")
    arguments = parser.parse_args()
    if arguments.case is not None:
        return show(arguments.case, arguments.only)
    print(f"seed {arguments.seed}", flush=True)
    tally, begun, index = Tally(), time.monotonic(), 0
    while time.monotonic() - begun < 60 * arguments.minutes:
        one((arguments.seed << 32) + index, arguments.only, tally, arguments.out)
        index += 1
    told = report(tally, arguments.seed, time.monotonic() - begun)
    print(told)
    if arguments.write:
        only = f" --only '{arguments.only}'" if arguments.only else ""
        command = f"python tools/fuzz/fuzz_layers.py --minutes {arguments.minutes:g} --seed {arguments.seed}{only}"
        keep("Layers and training graphs", command, told)
    return int(bool(tally.failures))


if __name__ == "__main__":
    sys.exit(main())
