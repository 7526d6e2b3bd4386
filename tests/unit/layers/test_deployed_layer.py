"""A layer composed for inference is one operator with a body, and it folds like any batch normalization."""

import numpy as np
import onnx_ir as ir

import bnpass
from bnpass.layers.model import layer_model
from bnpass.ops.bodies import add_bodies
from bnpass.semantics.spec import BatchNormSpec
from tests.support.build import normal


def behind_a_conv() -> ir.Model:
    layer = BatchNormSpec("tf_keras", axis=1, renorm=True).resolve((None, 8, 4, 4))
    model = layer_model(layer, training=False)
    graph = model.graph
    for value in list(graph.inputs)[1:]:
        graph.inputs.remove(value)
        value.const_value = ir.tensor(np.abs(normal(8)) + 0.5, name=value.name)
        graph.register_initializer(value)
    weight = ir.val("w", const_value=ir.tensor(normal(8, 3, 1, 1), name="w"))
    graph.register_initializer(weight)
    given, image = graph.inputs[0], ir.val("image", ir.DataType.FLOAT, ["N", 3, 4, 4])
    conv = ir.node("Conv", [image, weight])
    given.replace_all_uses_with(conv.outputs[0])
    graph.inputs[0] = image
    graph.insert_before(graph[0], conv)
    add_bodies(model)
    return model


def test_it_folds_and_takes_its_body_along() -> None:
    given = behind_a_conv()
    assert len(given.functions) == 3
    result = bnpass.fold(given)
    assert isinstance(result.model, ir.Model)
    assert [node.op_type for node in result.model.graph] == ["Conv"]
    assert not result.model.functions
    assert "bnpass" not in result.model.opset_imports
    whole = result.report.checks[-1]
    assert whole.ran
    assert whole.details is not None
    assert whole.details["reference"] == "float64"
