"""docs/conformance.md: its parts, and how to read its table again. ``tools.conformance.table`` writes it."""

from collections import Counter
from functools import cache
from pathlib import Path

from tests.conformance.layers.cases import Api
from tests.conformance.layers.catalogue import cases
from tests.conformance.layers.rows import Row

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "conformance.md"

NAMES: dict[Api, str] = {
    "sync": "Sync",
    "tf1": "tf1",
    "keras_v1": "V1",
    "tf_keras": "V2",
    "keras3": "K3",
}
"""The classes as the table calls them."""

HEADER = """# Conformance with TensorFlow and Keras

This file is written by `python -m tools.conformance.table`; a test holds it to the cases that there are.

Every case builds the real layer in TensorFlow 2.21 (tf_keras 2.21, Keras 3.15) on CPU, gives it weights and moving
statistics that are neither 0 nor 1, and takes five training steps and one of inference. Y, every statistic after each
step, and the gradients with regard to X, gamma and beta are compared with four products, each keeping its own state:

- **reference**: `bnpass/semantics/reference.py`, float64 NumPy;
- **body**: the layer as a model of our operators with their function bodies, in stock ONNX Runtime;
- **kernel**: the same model without these bodies, run by the kernels on the CPU; several replicas are threads;
- **expanded**: the same model after `ExpandSyncBatchNorm`, without our operators. Several replicas run side by side.

The tolerance of each number is derived, not chosen: a running error analysis of TensorFlow's order of operations
(`tests/conformance/layers/replay.py`), by the type, the number of elements and the size of the mean over the standard
deviation. It also gives a second derivation of all formulas, by automatic differentiation's rules.

**Sync** is `tf.keras.layers.experimental.SyncBatchNormalization`; **tf1** is `tf.compat.v1.layers.batch_normalization`,
in a graph with TensorFlow 2 behaviour disabled; **V1** is `tf.compat.v1.keras.layers.BatchNormalization` of tf_keras;
**V2** is `tf_keras.layers.BatchNormalization`; **K3** is `keras.layers.BatchNormalization` of Keras 3.

## Each argument, each class

{cases} cases, in each test run. A cell of the four products is the number of cases that hold.

| row | class | cases | reference | body | kernel | expanded |
|---|---|---|---|---|---|---|
{rows}

## Deviations

Where TensorFlow, its documents and bnpass do not say the same. Each has a test that turns red when TensorFlow changes.
*Followed*: bnpass does as the class does. *Option*: so it does, and one can choose. *Right instead*: bnpass does what
the class should do.

| deviation | rows | what differs | bnpass |
|---|---|---|---|
{deviations}

## The numbered cases

The 45 cases of the semantics, and in how many places each is tested (`tests/conformance/layers/numbered.py`).
{numbered} cases of layers are theirs alone.

| number | about | places |
|---|---|---|
{numbers}

The cases of the published tests of tf_keras and Keras 3, rebuilt from what they say, are in
`tests/conformance/layers/test_tf_keras_published.py`; it also lists those that have no counterpart here.

## The full product

`python -m tools.conformance.full`: every legal combination of the arguments that change the formula, the others drawn.
Cases by class, and how many failed in any product.

| argument | {names} | failed |
|---|---|---|---|---|---|---|
{full}
"""


@cache
def _counts() -> Counter[tuple[str, str]]:
    return Counter((case.row, case.api) for case in cases())


def counted(row: str, api: Api) -> int:
    """Return the number of cases of a row and a class."""
    return _counts()[row, api]


def cell(row: Row, api: Api, count: int, held: list[int]) -> str:
    """Return a line of the table: the numbers of cases that hold, or why there are none."""
    if api in row.taken:
        return f"| {row.says} | {NAMES[api]} | {count} | {' | '.join(map(str, held))} |"
    return f"| {row.says} | {NAMES[api]} | 0 | {row.otherwise(api)} | – | – | – |"


def lines() -> dict[tuple[str, str], list[str]]:
    """Return the cells behind row and class of the committed table."""
    found = {}
    for line in DOCUMENT.read_text(encoding="utf-8").partition("## Deviations")[0].splitlines():
        cells = [part.strip() for part in line.strip("|").split(" | ")]
        if len(cells) == 7 and cells[1] in NAMES.values():
            found[cells[0], cells[1]] = cells[2:]
    return found
