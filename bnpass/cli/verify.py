"""``bnpass verify A B``: compare two models numerically."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from bnpass.errors import ExitCode, FileAccessError, UsageError

T = TypeVar("T")

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "verify",
        help="compare two models numerically",
        description="Run two models in ONNX Runtime, optimizations off, and compare their outputs: the second may be "
        "at most twice as far from a float64 evaluation of the first as the first is itself, plus what one unit in the "
        "last place of the weights is worth.",
    )
    parser.add_argument("original", metavar="A", type=Path, help="the original")
    parser.add_argument("new", metavar="B", type=Path, help="the model to judge")
    parser.add_argument("--draws", metavar="N", type=_positive, default=3, help="sets of random inputs (default 3)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first draw (default 0)")
    parser.add_argument(
        "--shape", metavar="NAME:D,D,…", type=_shape, action="append", default=[], help="shape of an input left open"
    )
    parser.add_argument(
        "--data", metavar="[NAME:]FILE", action="append", default=[],
        help="inputs from NAME:file.npy, or all from file.npz, in place of random ones",
    )  # fmt: skip
    parser.add_argument("--provider", choices=("cpu", "cuda"), default="cpu", help="where to run (default cpu)")
    parser.add_argument("--atol", type=float, help="absolute tolerance, in place of the bound")
    parser.add_argument("--rtol", type=float, help="tolerance relative to the largest element, in place of the bound")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    from bnpass.verify import Status, verify  # --help must stay instant

    found = verify(
        arguments.original,
        arguments.new,
        draws=arguments.draws,
        seed=arguments.seed,
        shapes=dict(arguments.shape),
        data=_data(arguments.data),
        provider=arguments.provider,
        atol=arguments.atol,
        rtol=arguments.rtol,
    )
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found.to_text())
    if found.status is Status.NOT_RUN:
        raise UsageError(found.failure)
    return ExitCode.DONE if found.ok else ExitCode.MISMATCH


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return int(text)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, dims = text.rpartition(":")
    try:
        return name, tuple(int(d) for d in dims.split(",") if d)
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form name:1,3,224,224") from None


def _data(words: list[str]) -> "dict[str, NDArray[np.generic]]":
    import numpy as np  # --help must stay instant

    found: dict[str, NDArray[np.generic]] = {}
    for word in words:
        name, colon, file = word.rpartition(":")
        loaded = _reading(Path(file), lambda path: np.load(path, allow_pickle=False))
        if isinstance(loaded, np.lib.npyio.NpzFile):
            found.update(_reading(Path(file), lambda _: {key: loaded[key] for key in loaded.files}))  # noqa: B023
        elif not colon:
            raise UsageError(f"--data {word}: an array needs the name of its input, NAME:{word}")
        else:
            found[name] = loaded
    return found


def _reading(path: Path, read: "Callable[[Path], T]") -> "T":
    try:
        return read(path)
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (ValueError, EOFError) as error:
        raise UsageError(f"{path}: is no .npy or .npz file of plain numbers ({error})") from error
