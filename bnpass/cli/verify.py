"""``bnpass verify A B``: compare two models numerically; ``verify MODEL``: the kernels and replicas of one."""

import argparse
import json
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

from bnpass.cli.transform import add_trust, count
from bnpass.errors import ExitCode, FileAccessError, UsageError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from bnpass.verification import Verification


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "verify",
        usage="bnpass verify A B [--kernels] [options]\n"
        "       bnpass verify MODEL [--kernels] [--replicas N] [options]",
        help="compare two models numerically, or the kernels and replicas of one",
        description="Run two models in ONNX Runtime, optimizations off, and compare their outputs: the second may be "
        "at most twice as far from a float64 evaluation of the first as the first is itself, plus what one unit in the "
        "last place of the weights is worth. With one model, hold the kernels of its bnpass operators against their "
        "bodies and their definition, and several replicas against one. Batch normalization in training mode is then "
        "turned into bnpass operators first.",
    )
    parser.add_argument("original", metavar="A", type=Path, help="the original, or the one model")
    parser.add_argument("new", metavar="B", type=Path, nargs="?", help="the model to judge")
    parser.add_argument(
        "--kernels", action="store_true", help="run the bnpass operators by the kernels, and not by their bodies"
    )
    parser.add_argument(
        "--replicas", metavar="N", type=_several,
        help="start N replicas of one model as processes of MPI, and compare them with one replica on the whole batch",
    )  # fmt: skip
    parser.add_argument("--draws", metavar="N", type=_positive, default=3, help="sets of random inputs (default 3)")
    parser.add_argument("--seed", type=count, default=0, help="seed of the first draw (default 0)")
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
    add_trust(parser)
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.set_defaults(run=run, refuse=parser.error)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    if arguments.new is None and not arguments.kernels and arguments.replicas is None:
        arguments.refuse("the following arguments are required: B (or --kernels or --replicas N for one model)")
    if arguments.new is not None and arguments.replicas is not None:
        raise UsageError("--replicas takes one model: leave B out")
    if arguments.new is None and (arguments.atol is not None or arguments.rtol is not None):
        raise UsageError("--atol and --rtol are for two models: kernels and replicas are held against a bound")
    found = _one_model(arguments) if arguments.new is None else _two_models(arguments)
    from bnpass.verification import Status

    if arguments.json:
        print(json.dumps(found.to_json(), indent=2, allow_nan=False))
    elif found.status is not Status.NOT_RUN:
        print(found.to_text())
    if found.status is Status.NOT_RUN:
        raise UsageError(found.failure)
    return ExitCode.DONE if found.ok else ExitCode.MISMATCH


def _two_models(arguments: argparse.Namespace) -> "Verification":
    from bnpass.model_io import load
    from bnpass.verification import verify  # --help must stay instant

    original, new = (
        load(path, trust_external_data=True) if arguments.trust_external_data else path
        for path in (arguments.original, arguments.new)
    )
    tolerances = {"atol": arguments.atol, "rtol": arguments.rtol}
    return verify(original, new, kernels=arguments.kernels, **tolerances, **_how(arguments))


def _one_model(arguments: argparse.Namespace) -> "Verification":
    from bnpass.api.kernels import as_operators
    from bnpass.model_io import load
    from bnpass.verification import Status
    from bnpass.verification.kernels import verify_kernels
    from bnpass.verification.mpi_replicas import verify_replicas  # --help must stay instant

    given = load(arguments.original, trust_external_data=arguments.trust_external_data)
    model, note = as_operators(given, group="world" if arguments.replicas else "")
    how = {"truth": given, **_how(arguments)}
    found = [verify_kernels(model, **how)] if arguments.kernels else []
    if arguments.replicas is not None and not any(one.status is Status.NOT_RUN for one in found):
        found.append(verify_replicas(model, arguments.replicas, **how))
    return found[0].with_more(found[1:], note)


def _how(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what all ways to verify share."""
    return {
        "draws": arguments.draws,
        "seed": arguments.seed,
        "shapes": dict(arguments.shape),
        "data": _data(arguments.data),
        "provider": arguments.provider,
    }


def _several(text: str) -> int:
    if not text.isdecimal() or int(text) < 2:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 2 on")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number from 1 on")
    return int(text)


def _shape(text: str) -> tuple[str, tuple[int, ...]]:
    name, _, dims = text.rpartition(":")
    try:
        return name, tuple(count(d) for d in dims.split(",") if d)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"'{text}' is not of the form name:1,3,224,224") from None


def _data(words: list[str]) -> "dict[str, NDArray[np.generic]]":
    found: dict[str, NDArray[np.generic]] = {}
    for word in words:
        name, _, file = ("", "", word) if Path(word).exists() else word.rpartition(":")
        loaded = _load(Path(file))
        if isinstance(loaded, dict) and not name:
            found.update(loaded)
        elif isinstance(loaded, dict):
            raise UsageError(f"--data {word}: an .npz file names its arrays itself; give the file alone")
        elif not name:
            raise UsageError(f"--data {word}: an array needs the name of its input; give NAME:{word}")
        else:
            found[name] = loaded
    return found


def _load(path: Path) -> "NDArray[np.generic] | dict[str, NDArray[np.generic]]":
    """Read the array of an .npy file, or those of an .npz file by name; nothing pickled."""
    import numpy as np  # --help must stay instant

    try:
        with path.open("rb") as file:
            loaded = np.load(file, allow_pickle=False)
            if isinstance(loaded, np.lib.npyio.NpzFile):
                return {name: np.asarray(loaded[name]) for name in loaded.files}
            return np.asarray(loaded)
    except OSError as error:
        raise FileAccessError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, EOFError, BadZipFile, zlib.error) as error:
        raise UsageError(
            f"{path}: is no .npy or .npz file of plain numbers; write it with numpy.save or savez, nothing pickled"
        ) from error
