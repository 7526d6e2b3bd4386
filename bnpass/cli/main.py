"""Parse the command line, run one verb, turn errors into one line and an exit code."""

import argparse
import gc
import os
import sys
import traceback
from collections.abc import Sequence

from bnpass import __version__
from bnpass.cli import diff, doctor, expand, explain, export, fold, verify
from bnpass.errors import BnpassError, ExitCode

_COLLECT_AFTER = 200_000
"""A graph lives as long as the command: looking for garbage in it every 700 objects doubles the time."""

_EPILOG = """\
exit codes:
  0   done, and checked unless that was switched off
  1   two models that should agree do not, diff finds differences, or something installed does not work
  2   the call cannot be carried out: it is wrong, or needs a package that is not installed
  3   the model is refused: invalid or unsafe
  4   a file cannot be read or written, or exists already
  70  internal error: a bug in bnpass
On any code but 0 no file was created or changed, but for the report of a diff that finds differences."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: The words behind ``bnpass``; by default those of the process.

    Returns:
        The exit code.
    """
    options = _parser().parse_args(arguments)
    gc.set_threshold(_COLLECT_AFTER)
    code = ExitCode.DONE
    try:
        code = options.run(options)
        sys.stdout.flush()  # here, where a failure can still be told
    except BnpassError as error:
        print(f"bnpass: {_one_line(error)}", file=sys.stderr)
        return int(error.exit_code)
    except MemoryError:
        print("bnpass: out of memory; nothing was written", file=sys.stderr)
        return int(ExitCode.IO)
    except BrokenPipeError:
        _drop_unprinted()
    except OSError as error:
        _drop_unprinted()
        where = f"{error.filename}: " if error.filename else ""
        print(f"bnpass: {where}{error.strerror or error}", file=sys.stderr)
        return int(ExitCode.IO)
    except KeyboardInterrupt:
        print("bnpass: interrupted; nothing was written", file=sys.stderr)
        return 130
    except Exception as error:  # noqa: BLE001  the last resort: whatever arrives here is a bug of ours
        traceback.print_exc()
        print(f"bnpass: internal error ({type(error).__name__}): please report this", file=sys.stderr)
        return int(ExitCode.INTERNAL)
    return int(code)


def _drop_unprinted() -> None:
    """Send what cannot be printed nowhere, so that the flush at the end does not complain again."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bnpass",
        description="Batch normalization between training and deployment, for ONNX models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"bnpass {__version__}")
    verbs = parser.add_subparsers(metavar="VERB", required=True)
    for verb in (export, fold, expand, explain, verify, diff, doctor):
        verb.add_to(verbs)
    return parser


def _one_line(error: BnpassError) -> str:
    notes = [note for note in getattr(error, "__notes__", ()) if note]
    return "; ".join(" ".join(part.split()) for part in (str(error), *notes))
