"""``bnpass explain IN``: say of every batch normalization and affine where it folds to, or why it stays."""

import argparse

from bnpass.cli.fold import add_selection, options_of
from bnpass.cli.transform import add_input
from bnpass.errors import ExitCode, UsageError


def add_to(verbs: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this verb to the command line."""
    parser = verbs.add_parser(
        "explain",
        help="say where each batch normalization folds to, or why it stays",
        description="Say of every batch normalization and per-channel affine where it folds to, or why it stays. "
        "Nothing is written.",
    )
    add_input(parser)
    parser.add_argument("--node", metavar="NAME", help="this node only: its name, or its first output if it has none")
    add_selection(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> ExitCode:
    """Carry the verb out."""
    from bnpass.api.fold import fold  # --help must stay instant

    trusted = arguments.trust_external_data
    result = fold(arguments.input, options_of(arguments), dry_run=True, trust_external_data=trusted)
    lines = [
        (node, f"'{node}' folds into {_targets(f.into)} ({_side(f.side)})") for f in result.folded for node in f.nodes
    ]
    lines += [(node, f"'{node}' is merged into '{m.into}' ({m.kind})") for m in result.merged for node in m.nodes]
    lines += [(node, f"'{node}' changes nothing and is removed") for node in result.idle if node == arguments.node]
    lines += [(kept.node, str(kept)) for kept in (*result.kept, *result.apart)]
    wanted = [text for node, text in lines if arguments.node in (None, node)]
    if arguments.node is not None and not wanted:
        raise UsageError(f"{arguments.input}: there is no batch normalization or affine named '{arguments.node}'")
    print("\n".join(wanted) if wanted else "there is no batch normalization and no per-channel affine in this model")
    return ExitCode.DONE


def _targets(names: tuple[str, ...]) -> str:
    return ", ".join(f"'{name}'" for name in names) if names else "nothing: it changes no value"


def _side(side: str) -> str:
    return {"output": "at its output", "input": "at its input"}.get(side, "joined with its neighbours")
