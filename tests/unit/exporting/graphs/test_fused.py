"""FusedBatchNorm of any version, layout, rank and mode; its other outputs are right, or refused by name."""

from typing import Any

import numpy as np
import pytest

from bnpass.exporting.errors import ExportError
from tests.unit.exporting.graphs.models import Built, agree, built, norms, ops, traced, vectors

pytestmark = pytest.mark.keras

C = 4
LAYOUTS = ["NHWC", "NCHW", "NDHWC", "NCDHW"]


def shape_of(layout: str) -> list[int | None]:
    return [None if letter == "N" else C if letter == "C" else 3 for letter in layout]


def fused(x: Any, version: int = 3, layout: str = "NHWC", *, training: bool = False, factor: float = 1.0) -> Any:
    """Write the op itself; its mean and var are empty where it does not read them."""
    import tensorflow as tf

    mean, var, B, scale = vectors(C)
    if training and factor == 1:
        mean = var = np.zeros([0], "float32")
    write = {
        1: tf.raw_ops.FusedBatchNorm,
        2: tf.raw_ops.FusedBatchNormV2,
        3: tf.raw_ops.FusedBatchNormV3,
    }[version]
    return write(
        x=x,
        scale=scale,
        offset=B,
        mean=mean,
        variance=var,
        epsilon=2e-3,
        exponential_avg_factor=factor,
        data_format=layout,
        is_training=training,
    )


@pytest.mark.parametrize("version", [1, 2, 3])
def test_every_version_is_one_batch_normalization(version: int) -> None:
    exported = agree(built(lambda x: fused(x, version).y, shape_of("NHWC")))
    assert ops(exported) == {"Transpose": 2, "BatchNormalization": 1}


@pytest.mark.parametrize("layout", ["NHWC", "NDHWC"])
def test_channels_last_are_normalized_in_both_modes(layout: str) -> None:
    agree(built(lambda x: fused(x, layout=layout).y, shape_of(layout)))
    agree(built(lambda x: fused(x, layout=layout, training=True).y, shape_of(layout)), bound=2**-19)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layout", ["NCHW", "NCDHW"])
def test_channels_first_are_what_the_same_numbers_are_with_channels_last(layout: str, training: bool) -> None:
    # TensorFlow has no CPU kernel for channels first: it is run on the transposed input
    from bnpass.exporting.model import finish
    from bnpass.exporting.options import ExportOptions
    from tests.unit.exporting.graphs.models import close, expected, run

    first = built(lambda x: fused(x, layout=layout, training=training).y, shape_of(layout))
    last_layout = layout.replace("C", "") + "C"
    last = built(lambda x: fused(x, layout=last_layout, training=training).y, shape_of(last_layout))
    exported = finish(traced(first), ExportOptions())
    assert norms(exported) == 1
    assert ops(exported)["Transpose"] == 0
    (want,) = expected(Built(last.graph_def, last.outputs, {"x": np.moveaxis(first.feeds["x"], 1, -1)}))
    close(run(exported, first.feeds)[0], np.moveaxis(want, -1, 1), 2**-19)


@pytest.mark.parametrize("training", [False, True])
def test_float16_is_normalized_in_float32(training: bool) -> None:
    agree(built(lambda x: fused(x, training=training).y, shape_of("NHWC"), "float16"))


@pytest.mark.parametrize("training", [False, True])
def test_bfloat16_is_normalized_in_float32(training: bool) -> None:
    # ONNX Runtime's CPU has hardly a kernel for bfloat16: the graph begins and ends in float32
    def write(x: Any) -> Any:
        import tensorflow as tf

        return tf.cast(fused(tf.cast(x, "bfloat16"), training=training).y, "float32")

    agree(built(write, shape_of("NHWC")), bound=2**-7)


def test_no_length_needs_to_be_known_but_that_of_the_parameters() -> None:
    agree(built(lambda x: fused(x).y, [None, None, None, None], size=C))


def test_parameters_can_be_inputs_of_the_graph() -> None:
    def write(x: Any) -> Any:
        import tensorflow as tf

        scale = tf.reduce_mean(x, [0, 1, 2])
        mean, var, B, _ = vectors(C)
        return tf.compat.v1.nn.fused_batch_norm(x, scale, B, mean, var, is_training=False)[0]

    agree(built(write, shape_of("NHWC")))


@pytest.mark.parametrize("factor", [1.0, 0.25])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_statistics_after_a_step_come_out_with_the_sample_variance(version: int, factor: float) -> None:
    exported = agree(
        built(lambda x: list(fused(x, version, training=True, factor=factor))[:3], shape_of("NHWC")), bound=2**-18
    )
    (node,) = [n for n in exported.model.graph if n.op_type == "SyncBatchNormalization"]
    assert node.attributes["running_var_correction"].as_int() == 1


def test_moving_averages_in_the_graph_read_the_right_statistics() -> None:
    def write(x: Any) -> Any:
        y, mean, var, *_ = fused(x, training=True)
        return y, 0.9 * vectors(C)[0] + 0.1 * mean, var * 2

    agree(built(write, shape_of("NHWC")), bound=2**-18)


def test_in_inference_the_statistics_are_handed_on() -> None:
    agree(built(lambda x: list(fused(x))[:3], shape_of("NHWC")))


def test_outputs_for_the_gradient_are_refused_by_name() -> None:
    model = built(lambda x: list(fused(x, training=True))[:4], shape_of("NHWC"))
    with pytest.raises(ExportError, match=r"^'FusedBatchNormV3' \(FusedBatchNormV3\): an output that is for its"):
        traced(model)


def test_a_chain_keeps_the_order_of_its_layers() -> None:
    def write(x: Any) -> Any:
        import tensorflow as tf

        for name in ("first", "second", "third"):
            with tf.name_scope(name):
                x = tf.nn.relu(fused(x).y)
        return x

    exported = agree(built(write, shape_of("NHWC")), norm_count=3)
    assert dict(exported.assembled.layers) == {"first": 1, "second": 1, "third": 1}
    assert ops(exported)["Transpose"] == 2
