"""`BnpassFold` inside the real Olive: workflows are run from end to end, the one of `docs/integrations.md` among them.

Where olive-ai is missing, all but its configuration is skipped; docs/integrations.md says how to run it.
"""

import ast
import json
import logging
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from bnpass.errors import SaveError, VerificationError
from bnpass.folding.inference import set_inference_mode
from bnpass.folding.options import FoldOptions
from tests.support.judge import agree, draws

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "integrations.md"
QUIET = {"CI": "true", "OLIVE_DISABLE_TELEMETRY": "1"}
"""Olive reports home unless told otherwise; the first alone keeps it from saying that it has started."""


def installed() -> str | None:
    try:
        return version("olive-ai")
    except PackageNotFoundError:
        return None


needs_olive = pytest.mark.skipif(
    installed() is None, reason="olive-ai is not installed: pip install 'bnpass[cpu,olive]'"
)
pytestmark = pytest.mark.filterwarnings("default")  # what its packages warn of is theirs


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in QUIET.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[logging.LogRecord]]:
    """Collect what Olive's logger is told; it does not hand it on."""
    import olive  # noqa: F401

    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    monkeypatch.setattr(handler, "emit", records.append)
    logging.getLogger("olive").addHandler(handler)
    yield records
    logging.getLogger("olive").removeHandler(handler)


def training_graph() -> ir.Model:
    """Return the training graph without the outputs that a training loop reads: it has seven batch normalizations."""
    model = ir.load(ROOT / "models" / "digits_cnn_training.onnx")
    while len(model.graph.outputs) > 1:
        model.graph.outputs.pop()
    return model


def inference_graph() -> ir.Model:
    model = training_graph()
    assert set_inference_mode(model)
    return model


def in_memory(path: Path) -> ir.Model:
    return ir.external_data.load_to_model(ir.load(path))


def ops(model: ir.Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.all_nodes())


def workflow(folder: Path, source: Path, package_config: Any = None, **passes: dict[str, Any]) -> Any:
    """Run passes on a model; return what Olive returns."""
    from olive.workflows import run

    from bnpass.integrations.olive import CONFIG

    config = {
        "input_model": {"type": "ONNXModel", "model_path": str(source)},
        "passes": passes,
        "output_dir": str(folder / "out"),
        "cache_dir": str(folder / "cache"),
    }
    return run(config, package_config=package_config or str(CONFIG))


def output_of(done: Any) -> Path:
    """Return the path of the model that a workflow made."""
    assert done.has_output_model()
    config = done.get_best_candidate().model_config
    return Path(config["model_path"]) / (config.get("onnx_file_name") or "")


def child(*command: str, folder: Path) -> str:
    """Run a command as a user would, and return what it printed."""
    environment = {**os.environ, **QUIET, "PYTHONPATH": str(ROOT), "HOME": str(folder)}
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    ran = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


# --- without Olive ------------------------------------------------------------------------------------------------


def test_the_configuration_is_package_data_and_names_a_class_that_is_there() -> None:
    found = json.loads((files("bnpass.integrations") / "olive_config.json").read_text(encoding="utf-8"))
    module, _, name = found["passes"]["BnpassFold"]["module_path"].rpartition(".")
    assert module == "bnpass.integrations.olive"
    tree = ast.parse((files("bnpass.integrations") / "olive.py").read_text(encoding="utf-8"))
    assert name in {node.name for node in tree.body if isinstance(node, ast.ClassDef)}


def test_importing_bnpass_imports_no_olive(tmp_path: Path) -> None:
    code = "import sys, bnpass, bnpass.integrations, bnpass.api.fold, bnpass.passes; print('olive' in sys.modules)"
    assert child(sys.executable, "-c", code, folder=tmp_path) == "False\n"


# --- with Olive ---------------------------------------------------------------------------------------------------


@needs_olive
def test_the_example_of_the_page(tmp_path: Path) -> None:
    """Its run config and its commands, word for word."""
    olive = PAGE.read_text(encoding="utf-8").partition("## Olive")[2]
    (config,) = re.findall(r"```json\n(.*?)```", olive, re.DOTALL)
    (commands,) = re.findall(r"<!-- run -->\n```sh\n(.*?)```", olive, re.DOTALL)
    ir.save(inference_graph(), tmp_path / "model.onnx")
    (tmp_path / "run.json").write_text(config, encoding="utf-8")
    child("bash", "-euc", commands, folder=tmp_path)
    after = ir.load(tmp_path / "out" / "model.onnx")
    assert ops(inference_graph())["BatchNormalization"] == 7
    assert ops(after)["BatchNormalization"] == 2  # behind a Relu, and between a sum and one
    agree(inference_graph(), after, draws(after))


@needs_olive
@pytest.mark.parametrize("order", [("fold", "peephole"), ("peephole", "fold")], ids=" then ".join)
def test_beside_a_pass_of_olive(order: tuple[str, ...], tmp_path: Path) -> None:
    from bnpass.integrations.olive import package_config

    source = ROOT / "models" / "digits_cnn.onnx"
    passes = {"fold": {"type": "BnpassFold"}, "peephole": {"type": "OnnxPeepholeOptimizer"}}
    done = workflow(tmp_path, source, package_config(), **{name: passes[name] for name in order})
    before, after = ir.load(source), ir.load(output_of(done))
    assert ops(after).total() < ops(before).total()
    assert ops(after)["Mul"] == 0
    agree(before, after, draws(before))


@needs_olive
def test_parameters_reach_the_fold(tmp_path: Path) -> None:
    ir.save(training_graph(), tmp_path / "model.onnx")
    left = {}
    for name, config in {
        "as it is": {},
        "inference": {"inference": True},
        "but the stem": {"inference": True, "exclude": ["stem_bn"]},
        "only the stem": {"inference": True, "only": ["stem_bn"], "check": 1, "seed": 7},
    }.items():
        after = ir.load(
            output_of(workflow(tmp_path / name, tmp_path / "model.onnx", fold={"type": "BnpassFold", **config}))
        )
        left[name] = ops(after)["BatchNormalization"]
        if config:
            agree(inference_graph(), after, draws(after))
    assert left == {"as it is": 7, "inference": 2, "but the stem": 3, "only the stem": 6}


@needs_olive
def test_weights_in_a_file_of_their_own_stay_in_one(tmp_path: Path) -> None:
    from bnpass.integrations.olive import package_config

    (tmp_path / "given").mkdir()
    ir.save(inference_graph(), tmp_path / "given" / "model.onnx", external_data="weights.bin", size_threshold_bytes=0)
    source = tmp_path / "given" / "model.onnx"
    path = output_of(workflow(tmp_path, source, fold={"type": "BnpassFold"}))
    (data,) = path.parent.glob("*.data")
    assert data.stat().st_size > path.stat().st_size
    after = in_memory(path)
    agree(inference_graph(), after, draws(after))
    again = {"fold": {"type": "BnpassFold"}, "peephole": {"type": "OnnxPeepholeOptimizer"}}
    further = in_memory(output_of(workflow(tmp_path / "again", path, package_config(), **again)))
    agree(inference_graph(), further, draws(further))


@needs_olive
def test_hard_links_that_olive_makes_are_trusted_on_request(tmp_path: Path, log: list[logging.LogRecord]) -> None:
    ir.save(inference_graph(), tmp_path / "model.onnx", external_data="weights.bin", size_threshold_bytes=0)
    os.link(tmp_path / "weights.bin", tmp_path / "other name")
    done = workflow(tmp_path / "distrusted", tmp_path / "model.onnx", fold={"type": "BnpassFold"})
    assert not done.has_output_model()
    assert "'weights.bin' is a hard link, it has 2 names; pass trust_external_data=True" in told(log)
    trusting = {"type": "BnpassFold", "trust_external_data": True}
    after = in_memory(output_of(workflow(tmp_path / "trusted", tmp_path / "model.onnx", fold=trusting)))
    agree(inference_graph(), after, draws(after))


def told(log: list[logging.LogRecord]) -> str:
    """Return the messages of a log and of the exceptions in it."""
    return "\n".join(f"{record.getMessage()} {record.exc_info[1] if record.exc_info else ''}" for record in log)


@needs_olive
@pytest.mark.parametrize("remembered", [True, False], ids=["models that differ", "a full disk"])
def test_a_failure_is_a_failure_of_the_pass_and_keeps_its_sentence(
    remembered: bool, tmp_path: Path, log: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    sentence = "output 'probabilities' is off by 3.14"
    calls = []

    def fail(*_: Any, **__: Any) -> None:
        calls.append(1)
        error = (VerificationError if remembered else SaveError)(sentence)
        error.add_note("and a remedy")
        raise error

    source = ROOT / "models" / "digits_cnn.onnx"
    with monkeypatch.context() as planted:
        planted.setattr("bnpass.integrations.olive.fold", fail)
        for _ in range(2):
            assert not workflow(tmp_path, source, fold={"type": "BnpassFold"}).has_output_model()
    assert f"{sentence}\nand a remedy" in told(log) if remembered else sentence in told(log)
    assert len(calls) == (1 if remembered else 2)  # a model that cannot be folded is not tried again, a disk is
    assert workflow(tmp_path, source, fold={"type": "BnpassFold"}).has_output_model() is not remembered


@needs_olive
def test_what_happened_is_in_the_log_of_olive(tmp_path: Path, log: list[logging.LogRecord]) -> None:
    workflow(tmp_path, ROOT / "models" / "digits_cnn.onnx", fold={"type": "BnpassFold"})
    assert re.search(r"BnpassFold: \d+ folded, \d+ kept", told(log))


@needs_olive
def test_the_parameters_are_the_fields_of_the_options() -> None:
    from olive.hardware import AcceleratorSpec

    from bnpass.integrations.olive import BnpassFold

    def params(provider: str | None) -> dict[str, Any]:
        return dict(BnpassFold._default_config(AcceleratorSpec("cpu", provider)))

    found = params(None)
    options = FoldOptions(
        **{name: param.default_value for name, param in found.items() if name != "trust_external_data"}
    )
    assert options == FoldOptions()
    assert list(found) == [*(field.name for field in fields(FoldOptions)), "trust_external_data"]
    assert all(param.description and param.description.endswith(".") for param in found.values())
    targets = {name: params(name)["target"].default_value for name in (
        "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider")}  # fmt: skip
    assert list(targets.values()) == ["onnxruntime-cpu", "onnxruntime-cuda", "portable"]


@needs_olive
@pytest.mark.parametrize("wrong", [{"target": "abacus"}, {"check": "often"}, {"only": 3}], ids=str)
def test_a_wrong_parameter_is_refused_before_anything_runs(wrong: dict[str, Any], tmp_path: Path) -> None:
    source = ROOT / "models" / "digits_cnn.onnx"
    with pytest.raises(ValueError, match=next(iter(wrong))):  # pydantic's
        workflow(tmp_path, source, fold={"type": "BnpassFold", **wrong})


@needs_olive
def test_weights_that_olive_took_out_are_refused(tmp_path: Path) -> None:
    from olive.exception import OlivePassError
    from olive.model import ONNXModelHandler
    from olive.passes.olive_pass import create_pass_from_dict

    from bnpass.integrations.olive import BnpassFold

    ir.save(inference_graph(), tmp_path / "model.onnx")
    (tmp_path / "lora.npz").touch()
    model = ONNXModelHandler(str(tmp_path), "model.onnx", external_initializers_file_name="lora.npz")
    with pytest.raises(OlivePassError, match="run BnpassFold before the pass that takes them out"):
        create_pass_from_dict(BnpassFold, disable_search=True).run(model, str(tmp_path / "out"))


@needs_olive
def test_the_module_prints_where_its_configurations_are(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "bnpass.integrations.olive")
    alone = Path(child(*command, folder=tmp_path).strip())
    assert alone == ROOT / "bnpass" / "integrations" / "olive_config.json"
    merged = tmp_path / child(*command, "passes.json", folder=tmp_path).strip()
    names = json.loads(merged.read_text(encoding="utf-8"))["passes"].keys()
    assert names > {"BnpassFold", "OnnxPeepholeOptimizer"}
