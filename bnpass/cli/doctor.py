"""``bnpass doctor``: what is installed, and whether it works."""

import argparse
import json

from bnpass.errors import ExitCode


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "doctor",
        help="say what is installed, and try whether it works",
        description="Look for ONNX Runtime, the kernels, MPI, NCCL and a GPU, and try what is found: each kernel on "
        "numbers whose result is known, MPI with two processes. The exit code is 1 if something is there that does not "
        "work; what is not there is no fault. Nothing is fetched from the network.",
    )
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    from bnpass.runtime.doctor import examine  # --help must stay instant

    found = examine()
    print(json.dumps(found.to_json(), indent=2) if arguments.json else found.to_text())
    return ExitCode.DONE if found.ok else ExitCode.MISMATCH
