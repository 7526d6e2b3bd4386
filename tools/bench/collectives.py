"""Expand Keras models with every batch normalization in training mode and synchronized: how many messages are left.

    python tools/bench/collectives.py                   the families of models/zoo.py: a few minutes once built
    python tools/bench/collectives.py --write

A model is the zoo's file with its batch normalizations intact, switched to training mode, their updated statistics
outputs of the graph. One message for each layer is what frameworks send; a level is a set of layers of which none
waits for another. Building the files needs TensorFlow (`pip install "bnpass[keras]"`).
"""

import argparse
import sys
import time
from pathlib import Path

import measure
import onnx_ir as ir
from zoo_files import zoo_file

from bnpass import ExpandOptions, expand, model_io
from bnpass.graph.batch_norm import is_batch_norm

FAMILIES = ("InceptionV3", "InceptionResNetV2", "NASNetMobile", "DenseNet121", "Xception", "ResNet50", "MobileNetV2")
HEAD = ("", "layers", "messages: one per layer", "coalesced", "levels", "expand, s", "load + save, s")


def main() -> int:
    parser = measure.parser(__doc__)
    parser.add_argument("--family", action="append", help="one family only; may be given more than once")
    arguments = parser.parse_args()
    how = (
        "`python tools/bench/collectives.py`: synchronized training batch normalization, written out; whole-model "
        "check switched off (`--check 0`), the check of each kind of node included; one run each, in one process."
    )
    with measure.scratch(arguments) as folder:
        rows = [_row(arguments, folder, family) for family in arguments.family or FAMILIES]
    measure.publish("collectives", "\n\n".join([measure.conditions(how), measure.table(HEAD, rows)]), arguments.write)
    return 0


def _row(arguments: argparse.Namespace, folder: Path, family: str) -> list[str]:
    source, target = folder / f"{family}.training.onnx", folder / f"{family}.expanded.onnx"
    model = model_io.load(zoo_file(arguments.models, family, keep_bn=True, small=True))
    layers = in_training_mode(model)
    ir.save(model, source)
    begun = time.perf_counter()
    ir.save(model_io.load(source), target)
    copied = time.perf_counter()
    found = expand(source, ExpandOptions(group="world", check=0), output=target, force=True)
    done = time.perf_counter()
    source.unlink()
    target.unlink()
    if found.collectives.before != layers:
        raise SystemExit(f"{family}: {layers} layers, but {found.collectives.before} messages")
    c = found.collectives
    return [family, f"{layers}", f"{c.before}", f"{c.after}", f"{c.depth}", f"{done - copied:.2f}",
            f"{copied - begun:.2f}"]  # fmt: skip


def in_training_mode(model: ir.Model) -> int:
    """Switch every batch normalization to training mode, its new statistics outputs of the graph; return how many."""
    nodes = [node for node in model.graph if is_batch_norm(node)]
    for number, node in enumerate(nodes):
        node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
        node.resize_outputs(3)
        for value, like in zip(node.outputs[1:], node.inputs[3:5], strict=True):
            value.name, value.type, value.shape = f"{like.name}_{number}_new", like.type, like.shape
            model.graph.outputs.append(value)
    return len(nodes)


if __name__ == "__main__":
    sys.exit(main())
