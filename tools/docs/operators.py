"""Write docs/operators.md from the schemas of the operators.

    python tools/docs/operators.py [--write]

Without ``--write`` the page is compared with the file. Exit code: 0 if they are the same, 1 if not.
"""

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from onnx.defs import OpSchema

from bnpass.ops import DOMAIN, VERSION
from bnpass.ops.bodies import MIN_BODY_OPSET
from bnpass.ops.schemas import ATTRIBUTES, SCHEMAS, TERMS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operators.md"
INTRODUCTION = f"""\
# The operators

The ONNX domain `{DOMAIN}`, version {VERSION}. Each operator has a portable body, a model-local function
(`bnpass.ops.bodies`, opset {MIN_BODY_OPSET} or newer), so that a file runs in any runtime, as one replica. Where a
kernel is registered, it takes the place of the body.

The schemas in `bnpass/ops/schemas.py` are normative; `python tools/docs/operators.py --write` makes this page of them.
"""
ANY = 8
"""A type variable with more types than this is described, not listed."""


def page() -> str:
    """Return the whole page."""
    parts = [INTRODUCTION, TERMS.replace("#### ", "## ") + "\n", *(section(schema) for schema in SCHEMAS.values())]
    return "\n".join(parts)


def section(schema: OpSchema) -> str:
    """Return what the page says of one operator."""
    text = schema.doc.removesuffix(TERMS).rstrip()
    inputs = [(p.name, _option(p), _code(p.type_str), p.description) for p in schema.inputs]
    outputs = [(p.name, _option(p), _code(p.type_str), p.description) for p in schema.outputs]
    ordered = [schema.attributes[name] for name in ATTRIBUTES[schema.name]]
    attributes = [(_code(a.name), a.type.name.lower(), _code(_default(a)), a.description) for a in ordered]
    types = [(_code(c.type_param_str), _allowed(c.allowed_type_strs), c.description) for c in schema.type_constraints]
    return "\n".join(
        [
            f"## {schema.name}\n\n{text}\n",
            _table(("input", "", "type", ""), [(_code(name), *rest) for name, *rest in inputs]),
            _table(("output", "", "type", ""), [(_code(name), *rest) for name, *rest in outputs]),
            _table(("attribute", "type", "default", ""), attributes),
            _table(("type", "is", ""), types),
        ]
    )


def _option(parameter: OpSchema.FormalParameter) -> str:
    return "optional" if parameter.option == OpSchema.FormalParameterOption.Optional else ""


def _default(attribute: OpSchema.Attribute) -> str:
    default = attribute.default_value
    if default.type == default.STRING:
        return f'"{default.s.decode()}"'
    return f"{default.f:.7g}" if default.type == default.FLOAT else str(default.i)


def _allowed(types: Sequence[str]) -> str:
    return "any `tensor(…)`" if len(types) > ANY else ", ".join(_code(name) for name in types)


def _code(text: str) -> str:
    return f"`{text}`"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> int:
    """Write or compare the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="write the file")
    if parser.parse_args().write:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    old = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
    difference = list(difflib.unified_diff(old.splitlines(), page().splitlines(), "docs/operators.md", "schemas"))
    print("\n".join(difference) or "docs/operators.md is up to date")
    return 1 if difference else 0


if __name__ == "__main__":
    sys.exit(main())
