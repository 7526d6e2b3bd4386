"""Models and inputs as they are run: copies with inner values as outputs and with moved weights, and their files."""

import os
from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir

from bnpass.model_io import ModelLike
from bnpass.verification.inputs import Draw
from bnpass.verification.perturb import perturbed
from bnpass.verification.retype import cast_array, retype, uses_type
from bnpass.verification.runner import ORIGINAL, write_inputs

__all__ = ["NEW", "PreparedModels", "exposed", "write_draws", "write_model"]

NEW = "new"

_BFLOAT16 = frozenset({ir.DataType.BFLOAT16})
# Weights move by chance; with few outputs a single copy may hardly move them.
_COPIES_SMALL, _COPIES_LARGE, _SMALL_BYTES = 4, 2, 64 << 20
_EXTERNAL_BYTES = 256 << 20


def _weight_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


def exposed(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Return a copy with the named inner values of the main graph as further outputs."""
    copy = model.clone()
    wanted = set(names)
    found = {v.name: v for node in copy.graph for v in node.outputs if v.name in wanted}
    copy.graph.outputs.extend(found[name] for name in names)
    return copy


class PreparedModels:
    """The models as they are run: prepared copies, and where their files are."""

    def __init__(
        self,
        given: tuple[ModelLike, ModelLike],
        loaded: tuple[ir.Model, ir.Model],
        inner: Sequence[str],
        seed: int,
    ) -> None:
        self._given = dict(zip((ORIGINAL, NEW), given, strict=True))
        self._inner = tuple(inner)
        self._seed = seed
        self.old, self.new = loaded
        self.through_float32 = any(uses_type(m, ir.DataType.BFLOAT16) for m in (self.old, self.new))
        small = _weight_bytes(self.old) <= _SMALL_BYTES
        self.copies = tuple(f"perturbed{i}" for i in range(_COPIES_SMALL if small else _COPIES_LARGE))

    def model(self, name: str) -> ir.Model | None:
        """Return the model of this name as it is run; None if it has no weights to perturb."""
        model: ir.Model | None = self.new if name == NEW else self.old
        if name in self.copies:
            model = perturbed(self.old, self._seed + 1000 + self.copies.index(name))
        if model is None:
            return None
        if self._inner:
            model = exposed(model, self._inner)
        if self.through_float32:
            model = model.clone()
            retype(model, _BFLOAT16, ir.DataType.FLOAT)
        return model

    def files(self, folder: Path, *, with_copies: bool) -> list[tuple[str, Path]]:
        """Write what is not a file already as it is to be run."""
        found = []
        for name in (ORIGINAL, NEW, *(self.copies if with_copies else ())):
            given = self._given.get(name)
            if isinstance(given, str | os.PathLike) and not self._inner and not self.through_float32:
                found.append((name, Path(given)))
                continue
            model = self.model(name)
            if model is not None:
                found.append((name, write_model(model, folder / f"{name}.onnx")))
        return found


def write_model(model: ir.Model, path: Path) -> Path:
    """Write a model, a large one with its weights beside it; return the path."""
    weights = [value.const_value for value in model.graph.initializers.values()]
    # Data files of the original are named relative to its folder: they are not found from here.
    apart = any(isinstance(weight, ir.ExternalTensor) for weight in weights) or _weight_bytes(model) > _EXTERNAL_BYTES
    ir.save(model, path, external_data=f"{path.name}.data" if apart else None)
    return path


def write_draws(draws: Sequence[Sequence[Draw]], folder: Path) -> list[list[Path]]:
    """Write the candidates of every draw as files for the runtime, bfloat16 as float32."""
    return [
        [
            write_inputs(
                folder / f"draw{number}-{which}.npz",
                [cast_array(array, _BFLOAT16, ir.DataType.FLOAT) for array in draw.arrays.values()],
            )
            for which, draw in enumerate(candidates)
        ]
        for number, candidates in enumerate(draws)
    ]
