"""``BnpassFold``, a pass of Olive's, and where Olive finds it.

Olive knows the passes of one package configuration: its own, or the one that a run names instead. So there are two of
ours: ``olive_config.json`` beside this file lists ``BnpassFold`` alone, ``package_config()`` adds it to Olive's own.

    python -m bnpass.integrations.olive                  # prints the path of the first
    python -m bnpass.integrations.olive passes.json      # writes the second, and prints its path
"""

import inspect
import json
import logging
import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

from olive.exception import OlivePassError
from olive.hardware import AcceleratorSpec
from olive.model import ONNXModelHandler
from olive.model.utils import resolve_onnx_path
from olive.package_config import OlivePackageConfig
from olive.passes import Pass
from olive.passes.pass_config import BasePassConfig, PassConfigParam
from olive.resource_path import LocalFile, LocalFolder

from bnpass.api.fold import fold
from bnpass.errors import ModelError, VerificationError
from bnpass.folding.options import FoldOptions, Runtime

logger = logging.getLogger("olive.bnpass")  # Olive shows what its own loggers are told

CONFIG = Path(__file__).with_name("olive_config.json")
"""The package configuration that lists ``BnpassFold`` and nothing else."""

_TARGETS: dict[str | None, Runtime] = {
    None: FoldOptions.target,
    "CPUExecutionProvider": "onnxruntime-cpu",
    "CUDAExecutionProvider": "onnxruntime-cuda",
}
_TRUST = "Accept symbolic and hard links as data files: some passes of Olive's leave hard links behind."


class BnpassFold(Pass):  # type: ignore[misc]  # Olive has no types
    """Fold batch normalization and per-channel affines into the weights around them: ``bnpass.fold``.

    The parameters are the fields of ``FoldOptions``, of which ``target`` follows the execution provider of the run,
    and ``trust_external_data``. Weights that came in a file of their own leave in one.
    """

    @classmethod
    def _default_config(cls, accelerator_spec: AcceleratorSpec) -> dict[str, PassConfigParam]:
        types = get_type_hints(FoldOptions)
        defaults = {field.name: field.default for field in fields(FoldOptions)}
        defaults["target"] = _TARGETS.get(accelerator_spec.execution_provider, "portable")
        said = dict(re.findall(r"^    (\w+): (.+)$", inspect.getdoc(FoldOptions) or "", re.MULTILINE))
        params = {
            name: PassConfigParam(type_=types[name], default_value=default, description=said.get(name))
            for name, default in defaults.items()
        }
        return params | {
            "trust_external_data": PassConfigParam(type_=bool, default_value=False, description=_TRUST),
        }

    def _run_for_config(
        self, model: ONNXModelHandler, config: type[BasePassConfig], output_model_path: str
    ) -> ONNXModelHandler:
        """Fold one model.

        Raises:
            OlivePassError: The model is refused, or before and after do not agree: another try would end the same way.
            BnpassError: Of any other kind; Olive then does not remember the model as one that cannot be folded.
        """
        if not isinstance(model, ONNXModelHandler):
            raise OlivePassError(f"BnpassFold takes ONNX models, not {type(model).__name__}; convert it first")
        if model.external_initializers_path or model.constant_inputs_path:
            raise OlivePassError(
                f"{model.model_path}: some of its weights are in a file of Olive's own, beside the model; "
                "run BnpassFold before the pass that takes them out"
            )
        values: dict[str, Any] = config.model_dump()  # an instance, though Olive says the class
        options = FoldOptions(**{field.name: values[field.name] for field in fields(FoldOptions)})
        output = Path(resolve_onnx_path(output_model_path, Path(model.model_path).name))
        try:
            done = fold(
                model.model_path,
                options,
                output=output,
                force=True,  # what an earlier run left there, Olive has given up
                trust_external_data=values["trust_external_data"],
            )
        except (ModelError, VerificationError) as error:
            raise OlivePassError("\n".join((str(error), *getattr(error, "__notes__", ())))) from error
        logger.info("BnpassFold: %d folded, %d kept", len(done.folded), len(done.kept))
        return _handler(output)


def _handler(path: Path) -> ONNXModelHandler:
    """Return what Olive passes on: a file, or a folder where weights lie beside it."""
    if any(other != path for other in path.parent.iterdir()):
        return ONNXModelHandler(LocalFolder({"path": path.parent}), onnx_file_name=path.name)
    return ONNXModelHandler(LocalFile({"path": path}))


def package_config() -> dict[str, Any]:
    """Return Olive's own package configuration with ``BnpassFold`` added."""
    merged: dict[str, Any] = json.loads(Path(OlivePackageConfig.get_default_config_path()).read_text(encoding="utf-8"))
    merged["passes"] |= json.loads(CONFIG.read_text(encoding="utf-8"))["passes"]
    return merged


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the path of a package configuration; given the name of a file, write the merged one there."""
    given = sys.argv[1:] if arguments is None else arguments
    if len(given) > 1 or any(word.startswith("-") for word in given):
        sys.stderr.write("usage: python -m bnpass.integrations.olive [FILE]\n")
        return 2
    path = Path(given[0]) if given else CONFIG
    if given:
        path.write_text(json.dumps(package_config(), indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"{path}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
