"""Files that are not what they should be are refused with one line, and nothing in them is run."""

from pathlib import Path
from typing import Any

import pytest

from bnpass.errors import BnpassError, FileAccessError
from bnpass.exporting.errors import ExportError
from bnpass.exporting.graphs import read_graph_def, trace_graph_def, trace_saved_model
from tests.unit.exporting.graphs.models import built, vectors

pytestmark = pytest.mark.keras

C = 3


def graph_def() -> Any:
    import tensorflow as tf

    def write(x: Any) -> Any:
        return tf.nn.batch_normalization(x, *(tf.constant(v) for v in vectors(C)), 1e-3)

    return built(write, [None, C]).graph_def


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a SavedModel of one variable."""
    import tensorflow as tf

    module = tf.Module()
    module.mean = tf.Variable(vectors(C)[0], name="mean")
    module.call = tf.function(lambda x: {"y": x - module.mean}, input_signature=[tf.TensorSpec([None, C], name="x")])
    folder = tmp_path_factory.mktemp("saved") / "model"
    tf.saved_model.save(module, str(folder))
    return folder


@pytest.fixture
def copy(saved: Path, tmp_path: Path) -> Path:
    import shutil

    return Path(shutil.copytree(saved, tmp_path / "model"))


def refused(path: Path, *, folder: bool) -> BnpassError:
    with pytest.raises((ExportError, FileAccessError)) as found:
        trace_saved_model(path) if folder else trace_graph_def(read_graph_def(path))
    assert "\n" not in str(found.value)
    return found.value


def test_a_graph_that_was_written_is_read(tmp_path: Path) -> None:
    (tmp_path / "graph.pb").write_bytes(graph_def().SerializeToString())
    assert len(trace_graph_def(read_graph_def(tmp_path / "graph.pb")).calls.records) == 1


def test_a_graph_as_text_is_read_and_half_of_it_refused(tmp_path: Path) -> None:
    text = str(graph_def())
    (tmp_path / "graph.pbtxt").write_text(text, encoding="utf-8")
    assert len(trace_graph_def(read_graph_def(tmp_path / "graph.pbtxt")).calls.records) == 1
    for wrong in (text[: len(text) // 2].encode(), b"", b"\xff\xfe", b"node {"):
        (tmp_path / "graph.pbtxt").write_bytes(wrong)
        assert "graph.pbtxt' is no GraphDef" in str(refused(tmp_path / "graph.pbtxt", folder=False))


@pytest.mark.parametrize("content", [b"", b"not a graph at all", b"\x00" * 64, b"\xff" * 64, b"\n\x04\n\x02ab"])
def test_a_file_that_is_no_graph_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "graph.pb").write_bytes(content)
    assert "graph.pb' is no GraphDef" in str(refused(tmp_path / "graph.pb", folder=False))


def test_half_of_a_graph_is_refused(tmp_path: Path) -> None:
    data = graph_def().SerializeToString()
    for end in range(1, len(data), 97):
        (tmp_path / "graph.pb").write_bytes(data[:end])
        refused(tmp_path / "graph.pb", folder=False)


def test_a_graph_of_missing_nodes_or_unknown_ops_is_refused() -> None:
    wrong = graph_def()
    wrong.node[-2].input[0] = "nowhere"
    assert "reads 'nowhere', which the graph does not have" in str(trouble(wrong))
    wrong = graph_def()
    wrong.node[-2].op = "Unheard"
    assert "the graph is not one of TensorFlow: " in str(trouble(wrong))
    wrong = graph_def()
    wrong.node.extend([wrong.node[-1]])
    assert "two nodes 'y0'" in str(trouble(wrong))


def trouble(wrong: Any) -> ExportError:
    with pytest.raises(ExportError) as found:
        trace_graph_def(wrong, ["x"], ["y0"])
    assert "\n" not in str(found.value)
    return found.value


def test_names_in_a_file_cannot_break_a_message_into_lines() -> None:
    wrong = graph_def()
    wrong.node[-2].input[0] = "no\nwhere\x1b[31m"
    assert r"reads 'no\nwhere\x1b[31m', which the graph does not have" in str(trouble(wrong))


def test_a_cycle_is_refused() -> None:
    wrong = graph_def()
    product = next(node for node in wrong.node if node.name == "batchnorm/mul_1")
    product.input[0] = "batchnorm/add_1:0"
    trouble(wrong)


def test_functions_that_call_themselves_are_refused() -> None:
    from tensorflow.core.framework import types_pb2

    wrong = graph_def()
    function = wrong.library.function.add()
    function.signature.name = "again"
    function.signature.input_arg.add(name="v", type=types_pb2.DT_FLOAT)
    function.signature.output_arg.add(name="r", type=types_pb2.DT_FLOAT)
    for target in (function.node_def.add(), wrong.node.add()):
        target.name, target.op = "call", "PartitionedCall"
        target.attr["f"].func.name = "again"
        for name in ("Tin", "Tout"):
            target.attr[name].list.type.append(types_pb2.DT_FLOAT)
    function.node_def[0].input.append("v")
    function.ret["r"] = "call:output:0"
    wrong.node[-1].input.append("x")
    with pytest.raises(ExportError, match="calls itself"):
        trace_graph_def(wrong, ["x"], ["call"])
    function.ret["r"] = "nothing:output:0"
    with pytest.raises(ExportError, match=r"^'call' \(PartitionedCall\) calls 'again', which does not fit it"):
        trace_graph_def(wrong, ["x"], ["call"])
    function.signature.name = "other"
    with pytest.raises(ExportError, match="calls a function that is not there"):
        trace_graph_def(wrong, ["x"], ["call"])


def test_a_file_or_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    assert isinstance(refused(tmp_path / "graph.pb", folder=False), FileAccessError)
    assert isinstance(refused(tmp_path / "model", folder=True), FileAccessError)
    assert isinstance(refused(tmp_path, folder=False), FileAccessError)
    assert str(refused(tmp_path, folder=True)).endswith("has no saved_model.pb")


def test_the_graph_of_a_saved_model_alone_is_said_to_need_its_folder(saved: Path) -> None:
    assert str(refused(saved / "saved_model.pb", folder=False)).endswith("belongs to a SavedModel: name its folder")


def test_a_saved_model_that_was_written_is_read(saved: Path) -> None:
    traced = trace_saved_model(saved)
    assert [port.name for port in (*traced.inputs, *traced.outputs)] == ["x", "y"]


def test_half_of_a_saved_model_is_refused(copy: Path) -> None:
    data = (copy / "saved_model.pb").read_bytes()
    for end in (0, 1, 10, len(data) // 2, len(data) - 1):
        (copy / "saved_model.pb").write_bytes(data[:end])
        assert isinstance(refused(copy, folder=True), ExportError)


def test_a_saved_model_without_its_values_is_refused(copy: Path) -> None:
    values = copy / "variables" / "variables.data-00000-of-00001"
    values.write_bytes(values.read_bytes()[:5])
    assert "the variables of '" in str(refused(copy, folder=True))
    values.unlink()
    assert "the variables of '" in str(refused(copy, folder=True))
    (copy / "variables" / "variables.index").write_bytes(b"")
    refused(copy, folder=True)
    (copy / "variables" / "variables.index").unlink()
    assert "lacks the values of its variables" in str(refused(copy, folder=True))


def test_an_unknown_signature_is_refused_with_those_that_there_are(saved: Path) -> None:
    with pytest.raises(ExportError, match=r"has no signature 'other'; it has 'serving_default'$"):
        trace_saved_model(saved, "other")


@pytest.mark.parametrize("op", ["WriteFile", "Print", "ReadFile"])
def test_a_saved_model_that_does_more_than_restore_is_not_run(copy: Path, tmp_path: Path, op: str) -> None:
    from tensorflow.core.protobuf import saved_model_pb2

    file = copy / "saved_model.pb"
    model = saved_model_pb2.SavedModel.FromString(file.read_bytes())
    graph = model.meta_graphs[0].graph_def
    restore = next(n for n in graph.node if n.name == model.meta_graphs[0].saver_def.restore_op_name)
    graph.node.add(name="evil", op=op)
    restore.input.append("^evil")
    file.write_bytes(model.SerializeToString())
    with pytest.raises(ExportError, match=rf"^'evil' \({op}\) would be run where variables are restored"):
        trace_saved_model(copy)
    assert list(tmp_path.iterdir()) == [copy]
