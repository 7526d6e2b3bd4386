"""The published cases of AIMET's tests of batch-norm folding, for ONNX and for Keras, rebuilt.

Its models are exported from PyTorch and Keras; these graphs are what such an export gives, smaller. What those tests
say of quantizers, of Keras layers taken out of a model and of lists of candidates is not about a graph.
"""

import pytest

from bnpass.errors import RefusalId
from tests.golden.pairs import read
from tests.museum.published import batch_norm, becomes, parameters, stays
from tests.support.judge import folded_and_right

BIASES = pytest.mark.parametrize("bias", ["", ", c2"], ids=["no bias", "bias"])
PADDINGS = pytest.mark.parametrize("padding", [0, 1])
BN6 = parameters(6)


# --- ONNX: behind a linear op -------------------------------------------------------------------------------------


@BIASES
@PADDINGS
@pytest.mark.parametrize(("groups", "inputs"), [(1, 6), (2, 3), (6, 1)])
def test_fold_bn_after_conv(bias: str, padding: int, groups: int, inputs: int) -> None:
    pads = ", ".join([str(padding)] * 4)
    size = 2 + 2 * padding
    graph = f"""g (float[2,5,6,6] x) => (float[2,6,{size},{size}] y)
        <float[6,5,3,3] W1, float[6,{inputs},3,3] W2, float[6] c2, {BN6}> {{
        [conv1] t = Conv (x, W1)
        [relu1] u = Relu (t)
        [conv2] w = Conv <group = {groups}, pads = [{pads}]> (u, W2{bias})
        [bn] p = {batch_norm("w")}
        [relu2] y = Relu (p)
    }}"""
    becomes(graph, "Conv Relu Conv Relu")


@BIASES
def test_fold_bn_after_conv1d(bias: str) -> None:
    graph = f"""g (float[2,5,8] x) => (float[2,6,4] y)
        <float[6,5,3] W1, float[6,6,3] W2, float[6] c2, {BN6}> {{
        [conv1] t = Conv (x, W1{bias})
        [bn] u = {batch_norm("t")}
        [relu] w = Relu (u)
        [conv2] y = Conv (w, W2{bias})
    }}"""
    becomes(graph, "Conv Relu Conv")


@pytest.mark.parametrize(("groups", "outputs"), [(1, 6), (2, 3), (6, 1)])
def test_filter_bn_after_conv_transpose_and_fold_depthwise(groups: int, outputs: int) -> None:
    """AIMET leaves the one with 2 groups."""
    graph = f"""g (float[2,6,5,5] x) => (float[2,6,7,7] y) <float[6,{outputs},3,3] W, float[6] c, {BN6}> {{
        [conv] t = ConvTranspose <group = {groups}> (x, W, c)
        [bn] u = {batch_norm("t")}
        [relu] y = Relu (u)
    }}"""
    becomes(graph, "ConvTranspose Relu")


def test_fold_bn_after_transposed_conv1d() -> None:
    graph = f"""g (float[2,6,5] x) => (float[2,6,7] y) <float[6,6,3] W, float[6] c, {BN6}> {{
        [conv] t = ConvTranspose (x, W, c)
        [bn] u = {batch_norm("t")}
        [relu] y = Relu (u)
    }}"""
    becomes(graph, "ConvTranspose Relu")


@BIASES
def test_fold_bn_after_linear_layer(bias: str) -> None:
    graph = f"""g (float[8,5] x) => (float[8,6] y) <float[6,5] W, float[6] c2, {BN6}> {{
        [fc] t = Gemm <transB = 1> (x, W{bias})
        [bn] y = {batch_norm("t")}
    }}"""
    becomes(graph, "Gemm")


def test_fold_bn_after_linear_layer_no_bias_with_transpose() -> None:
    """Without constant folding, a Linear is the Transpose of its weight and a MatMul; AIMET makes a Gemm of it."""
    graph = f"""g (float[8,5] x) => (float[8,6] y) <float[6,5] W, {BN6}> {{
        [transpose] t = Transpose <perm = [1, 0]> (W)
        [fc] u = MatMul (x, t)
        [bn] y = {batch_norm("u")}
    }}"""
    becomes(graph, "MatMul Add")


@BIASES
def test_fold_bn_after_dynamic_matmul(bias: str) -> None:
    """Both operands are computed: AIMET leaves it, too."""
    graph = f"""g (float[2,5,6] x) => (float[2,1,6] y)
        <float[4,5,3] W, float[4] c2, float[4,30] F, float[4] f, int64[1] axis = {{1}}, {parameters(1)}> {{
        [conv] t = Conv <pads = [1, 1]> (x, W{bias})
        [flatten] u = Flatten (x)
        [fc] w = Gemm <transB = 1> (u, F, f)
        [unsqueeze] p = Unsqueeze (w, axis)
        [matmul] q = MatMul (p, t)
        [bn] y = {batch_norm("q")}
    }}"""
    stays(graph, {"bn": (RefusalId.NON_CONSTANT_PARAMETER, "matmul")})


# --- ONNX: before a linear op -------------------------------------------------------------------------------------


def before_conv(conv: str, shape: str, size: int, bias: str = "") -> str:
    return f"""g (float[2,5,6,6] x) => (float[2,6,{size},{size}] y)
        <float[6,5,3,3] W1, float[{shape}] W2, float[6] c2, {BN6}> {{
        [conv1] t = Conv (x, W1)
        [relu] u = Relu (t)
        [bn] w = {batch_norm("u")}
        [conv2] y = {conv} (w, W2{bias})
    }}"""


@BIASES
@pytest.mark.parametrize("attributes", ["", " <pads = [0, 0, 0, 0], group = 1>", ' <auto_pad = "VALID">'])
def test_fold_bn_before_conv(bias: str, attributes: str) -> None:
    """AIMET reads the attributes ``pads`` and ``group`` and fails where they are left out."""
    becomes(before_conv(f"Conv{attributes}", "6,6,3,3", 2, bias), "Conv Relu Conv")


@BIASES
def test_fold_bn_before_conv_depthwise(bias: str) -> None:
    """AIMET leaves groups."""
    becomes(before_conv("Conv <group = 6>", "6,1,3,3", 2, bias), "Conv Relu Conv")


@pytest.mark.parametrize(("groups", "shape"), [(1, "6,6,3,3"), (6, "6,1,3,3")])
def test_filter_bn_before_conv_with_padding(groups: int, shape: str) -> None:
    """AIMET leaves it; the scale goes here, and the shift is an Add. For ONNX Runtime that is as dear."""
    graph = before_conv(f"Conv <group = {groups}, pads = [1, 1, 1, 1]>", shape, 4)
    becomes(graph, "Conv Relu Add Conv")
    stays(graph, {"bn": (RefusalId.NO_GAIN, "bn")}, target="onnxruntime-cpu")


@pytest.mark.parametrize("attributes", ["", " <pads = [1, 1, 1, 1]>", " <strides = [2, 2]>"])
def test_filter_bn_before_conv_transpose(attributes: str) -> None:
    """AIMET leaves it. At its borders fewer taps meet than within, so the shift is no bias; the scale goes."""
    size = {"": 6, " <pads = [1, 1, 1, 1]>": 4, " <strides = [2, 2]>": 9}[attributes]
    becomes(before_conv(f"ConvTranspose{attributes}", "6,6,3,3", size), "Conv Relu Add ConvTranspose")


def test_fold_bn_before_conv1d() -> None:
    graph = f"""g (float[2,6,8] x) => (float[2,4,6] y) <float[4,6,3] W, {BN6}> {{
        [bn] t = {batch_norm("x")}
        [conv] y = Conv (t, W)
    }}"""
    becomes(graph, "Conv")


def before_linear(layer: str, values: str) -> str:
    return f"""g (float[8,5] x) => (float[8,4] y) <float[6,5] W1, {values}, {BN6}> {{
        [fc1] t = Gemm <transB = 1> (x, W1)
        [relu] u = Relu (t)
        [bn] w = {batch_norm("u")}
        {layer}
    }}"""


@BIASES
def test_fold_bn_before_linear_layer(bias: str) -> None:
    graph = before_linear(f"[fc2] y = Gemm <transB = 1> (w, W2{bias})", "float[4,6] W2, float[4] c2")
    becomes(graph, "Gemm Relu Gemm")


def test_fold_bn_before_linear_layer_no_bias_with_transpose() -> None:
    graph = before_linear("[transpose] p = Transpose <perm = [1, 0]> (W2) [fc2] y = MatMul (w, p)", "float[4,6] W2")
    becomes(graph, "Gemm Relu MatMul Add")


def before_flatten(layer: str, flatten: str = "Flatten (w)") -> str:
    return f"""g (float[2,5,4,4] x) => (float[2,4] y)
        <float[6,5,3,3] W1, float[6] c1, float[4,24] W2, float[4] c2, int64[2] shape = {{2, -1}}, {BN6}> {{
        [conv] t = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, W1, c1)
        [relu] u = Relu (t)
        [bn] w = {batch_norm("u")}
        [flatten] p = {flatten}
        {layer}
    }}"""


@BIASES
@pytest.mark.parametrize("flatten", ["Flatten (w)", "Reshape (w, shape)"])
def test_filter_and_fold_bn_before_flatten(bias: str, flatten: str) -> None:
    """Each channel stands for its 2 × 2 points."""
    graph = before_flatten(f"[fc] y = Gemm <transB = 1> (p, W2{bias})", flatten)
    becomes(graph, f"Conv Relu {flatten.split()[0]} Gemm")


def test_fold_bn_before_flatten_no_bias_with_transpose() -> None:
    graph = before_flatten("[transpose] q = Transpose <perm = [1, 0]> (W2) [fc] y = MatMul (p, q)")
    becomes(graph, "Conv Relu Flatten MatMul Add")


# --- ONNX: whole models -------------------------------------------------------------------------------------------


def test_find_batch_norms_to_fold() -> None:
    """One behind a Conv, one behind Relu and before a Conv, and two that read one Conv: these stay.

    The sum of the two would be one affine of that Conv; their scales stay here, for any runtime as two Muls.
    """
    graph = f"""g (float[2,3,12,12] x) => (float[2,2] y)
        <float[4,3,3,3] W1, float[4] c1, {parameters(4, 1)}, float[3,4,3,3] W2, float[3] c2, {parameters(3, 2)},
         float[4,3,3,3] W3, float[4] c3, float[4,4,3,3] W4, float[4] c4, {parameters(4, 3)}, {parameters(4, 4)},
         float[2,64] F, float[2] f> {{
        [conv1] a = Conv (x, W1, c1)
        [bn1] b = {batch_norm("a", 1)}
        [relu1] c = Relu (b)
        [conv2] d = Conv (c, W2, c2)
        [relu2] e = Relu (d)
        [bn2] h = {batch_norm("e", 2)}
        [conv3] i = Conv (h, W3, c3)
        [conv4] j = Conv (i, W4, c4)
        [bn3] k = {batch_norm("j", 3)}
        [bn4] l = {batch_norm("j", 4)}
        [sum] n = Add (k, l)
        [flatten] o = Flatten (n)
        [fc] y = Gemm <transB = 1> (o, F, f)
    }}"""
    used = (RefusalId.PRODUCER_USED_ELSEWHERE, "conv4")
    becomes(graph, "Conv Relu Conv Relu Conv Conv Mul Mul Add Flatten Gemm", {"bn3/Mul": used, "bn4/Mul": used})
    left = "Conv Relu Conv Relu Conv Conv BatchNormalization BatchNormalization Add Flatten Gemm"
    becomes(graph, left, {"bn3": used, "bn4": used}, target="onnxruntime-cpu")


def test_single_batchnorm_layer() -> None:
    """AIMET writes it with mean 0 and variance 1; here nothing is gained."""
    graph = f"g (float[2,5,6,6] x) => (float[2,5,6,6] y) <{parameters(5)}> {{ [bn] y = {batch_norm('x')} }}"
    stays(graph, {"bn": (RefusalId.PRODUCER_IS_GRAPH_OUTPUT, "bn")})


def resnet18() -> str:
    """Return ResNet-18 with 2, 4, 6, 8 channels: 20 batch normalizations behind 20 Convs, and a head."""
    nodes: list[str] = []
    constants: list[str] = []

    def conv_bn(name: str, x: str, shape: tuple[int, int, int], stride: int) -> str:
        made, read, kernel = shape
        constants.extend((f"float[{made},{read},{kernel},{kernel}] W{name}", parameters(made, name)))
        pads = ", ".join([str(kernel // 2)] * 4)
        nodes.append(f"[conv{name}] t{name} = Conv <strides = [{stride}, {stride}], pads = [{pads}]> ({x}, W{name})")
        nodes.append(f"[bn{name}] n{name} = {batch_norm(f't{name}', name)}")
        return f"n{name}"

    nodes.append(f"stem = Relu ({conv_bn('0', 'x', (2, 3, 7), 2)})")
    nodes.append("p = MaxPool <kernel_shape = [3, 3], strides = [2, 2], pads = [1, 1, 1, 1]> (stem)")
    x, width = "p", 2
    for stage, channels in enumerate((2, 4, 6, 8), start=1):
        for block in (1, 2):
            key, stride = f"{stage}{block}", 2 if stage > 1 and block == 1 else 1
            nodes.append(f"r{key} = Relu ({conv_bn(key + '1', x, (channels, width, 3), stride)})")
            behind = conv_bn(key + "2", f"r{key}", (channels, channels, 3), 1)
            around = x if width == channels else conv_bn(key + "3", x, (channels, width, 1), stride)
            nodes += [f"a{key} = Add ({behind}, {around})", f"o{key} = Relu (a{key})"]
            x, width = f"o{key}", channels
    nodes += [f"q = GlobalAveragePool ({x})", "k = Flatten (q)", "y = Gemm <transB = 1> (k, F, f)"]
    constants += ["float[5,8] F", "float[5] f"]
    return f"g (float[1,3,32,32] x) => (float[1,5] y) <{', '.join(constants)}> {{ {' '.join(nodes)} }}"


def test_fold_resnet18() -> None:
    result = becomes(resnet18(), " ".join(RESNET18))
    assert sum(len(folded.batch_norms) for folded in result.folded) == 20


_PLAIN = ["Conv", "Relu", "Conv", "Add", "Relu"]
_WITH_DOWNSAMPLE = ["Conv", "Relu", "Conv", "Conv", "Add", "Relu"]
RESNET18 = [
    *("Conv", "Relu", "MaxPool"),
    *(op for block in (_PLAIN, _PLAIN, *[_WITH_DOWNSAMPLE, _PLAIN] * 3) for op in block),
    *("GlobalAveragePool", "Flatten", "Gemm"),
]


# --- Keras --------------------------------------------------------------------------------------------------------


def test_bn_removal_functional_with_sequantial_bns() -> None:
    graph = f"""g (float[2,3,6,6] x) => (float[2,3,2,2] y)
        <float[3,3,3,3] W1, float[3,3,3,3] W2, {parameters(3, 1)}, {parameters(3, 2)}, {parameters(3, 3)}> {{
        [conv1] t = Conv (x, W1)
        [bn1] u = {batch_norm("t", 1)}
        [bn2] w = {batch_norm("u", 2)}
        [relu1] p = Relu (w)
        [conv2] q = Conv (p, W2)
        [bn3] r = {batch_norm("q", 3)}
        [relu2] y = Relu (r)
    }}"""
    becomes(graph, "Conv Relu Conv Relu")


def two_paths(join: str, behind: str = "") -> str:
    return f"""g (float[2,3,6,6] x) => (float[2,P,Q,R] y)
        <float[3,3,3,3] W1, float[3,3,3,3] W2, float[2,3,2,2] W3,
         {parameters(3, 1)}, {parameters(3, 2)}, {parameters(2, 3)}> {{
        [conv1] t = Conv (x, W1)
        [bn1] u = {batch_norm("t", 1)}
        [relu1] w = Relu (u)
        [conv2] p = Conv (x, W2)
        [bn2] q = {batch_norm("p", 2)}
        [relu2] r = Relu (q)
        [join] k = {join} (w, r)
        {behind or "y = Identity (k)"}
    }}"""


def test_bn_removal_functional_two_paths() -> None:
    becomes(two_paths("Concat <axis = 1>"), "Conv Relu Conv Relu Concat")


def test_bn_removal_functional_lambda() -> None:
    main = f"[conv3] l = Conv (k, W3) [bn3] n = {batch_norm('l', 3)} [relu3] y = Relu (n)"
    becomes(two_paths("Add", main), "Conv Relu Conv Relu Add Conv Relu")


WITH_AND_WITHOUT_GAMMA = {
    "1, 1, 1": (RefusalId.PRODUCER_IS_GRAPH_OUTPUT, "relu"),
    "0.5, 2, -1": (RefusalId.NONLINEAR_BETWEEN, "first"),
}


@pytest.mark.parametrize("gamma", WITH_AND_WITHOUT_GAMMA)
def test_bn_without_gamma_for_standalone_bn(gamma: str) -> None:
    """A layer without gamma has a scale of ones in ONNX. One stands alone between a pool and Relu."""
    graph = f"""g (float[2,3,6,6] x) => (float[2,3,4,4] y)
        <float[3,3,3,3] W, float[3] one = {{{gamma}}}, float[3] b, float[3] m, float[3] v> {{
        [first] t = Conv (x, W)
        [bn] u = BatchNormalization (t, one, b, m, v)
        [relu] y = Relu (u)
    }}"""
    becomes(graph, "Conv Relu")
    alone = graph.replace("Conv (x, W)", "MaxPool <kernel_shape = [3, 3]> (x)").replace("float[3,3,3,3] W, ", "")
    stays(alone, {"bn": WITH_AND_WITHOUT_GAMMA[gamma]})


def test_bn_fold_layer_selection_looped_network() -> None:
    """Two read one Conv, and are added: AIMET folds none. Their shifts go into the bias of the second Conv here."""
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,4,4] y)
        <float[4,3,1,1] W1, float[4] c1, float[4,4,3,3] W2, float[4] c2, {parameters(4, 1)}, {parameters(4, 2)}> {{
        [conv1] t = Conv (x, W1, c1)
        [bn1] u = {batch_norm("t", 1)}
        [bn2] w = {batch_norm("t", 2)}
        [sum] p = Add (u, w)
        [conv2] y = Conv (p, W2, c2)
    }}"""
    used = (RefusalId.PRODUCER_USED_ELSEWHERE, "conv1")
    becomes(graph, "Conv Mul Mul Add Conv", {"bn1/Mul": used, "bn2/Mul": used})
    stays(graph, {"bn1": used, "bn2": used}, target="onnxruntime-cpu")


def test_bn_fold_find_layers_model_with_multi_input() -> None:
    graph = f"""g (float[2,3,6,6] x, float[2,3,8,8] z) => (float[2,4,6,6] y)
        <float[5,3,1,1] W1, float[5,3,3,3] W2, float[4,5,1,1] W3, {parameters(4)}> {{
        [conv1] t = Conv (x, W1)
        [conv2] u = Conv (z, W2)
        [sum] w = Add (t, u)
        [conv3] p = Conv (w, W3)
        [bn] q = {batch_norm("p")}
        [relu] y = Relu (q)
    }}"""
    becomes(graph, "Conv Conv Add Conv Relu")


def test_bn_fold_auto_rules_conv_bn_conv() -> None:
    """It goes backward, into the first."""
    graph = f"""g (float[2,3,6,6] x) => (float[2,4,2,2] y) <float[4,3,3,3] W1, float[4,4,3,3] W2, {parameters(4)}> {{
        [conv1] t = Conv (x, W1)
        [bn] u = {batch_norm("t")}
        [conv2] y = Conv (u, W2)
    }}"""
    (folded,) = becomes(graph, "Conv Conv").folded
    assert (folded.nodes, folded.into, folded.side) == (("bn",), ("conv1",), "output")


def test_bn_fold_with_linear_layer() -> None:
    """Channels last: Flatten and Dense behind a batch normalization of an image of one point."""
    graph = f"""g (float[2,1,1,4] x) => (float[2,2] y)
        <float[4,2] D, float[2] d, int64[2] shape = {{-1, 4}}, {parameters(4)}> {{
        [in] t = Transpose <perm = [0, 3, 1, 2]> (x)
        [bn] u = {batch_norm("t")}
        [out] w = Transpose <perm = [0, 2, 3, 1]> (u)
        [flatten] p = Reshape (w, shape)
        [dense] q = MatMul (p, D)
        [bias] r = Add (q, d)
        [relu] y = Relu (r)
    }}"""
    becomes(graph, "Transpose Transpose Reshape MatMul Add Relu")


def test_find_conv_bn_pairs_functional_nested() -> None:
    """A Conv and a batch normalization read the same value, and the sum of both ways goes on."""
    graph = f"""g (float[2,5,8,8] x) => (float[2,3,4,4] y)
        <{parameters(5, 1)}, float[3,5,3,3] W0, float[3,3,3,3] W1, {parameters(3, 2)}, float[3,3,3,3] W2> {{
        [bn1] t = {batch_norm("x", 1)}
        [relu1] u = Relu (t)
        [conv0] w = Conv (u, W0)
        [conv1] p = Conv (w, W1)
        [bn2] q = {batch_norm("w", 2)}
        [conv2] r = Conv (q, W2)
        [sum] k = Add (p, r)
        [relu2] y = Relu (k)
    }}"""
    result = folded_and_right(read(graph))
    assert result.ops.count("BatchNormalization") == 1  # and the two Convs may be one
    assert result.refusals == {"bn1": RefusalId.NO_GAIN}


@pytest.mark.parametrize("groups", [1, 3])
def test_bn_fold_with_no_bias_and_depthwise_convolution(groups: int) -> None:
    """As tf2onnx exports Keras: Transposes around the Conv, channels first between them."""
    graph = f"""g (float[2,6,6,3] x) => (float[2,4,4,3] y) <float[3,{3 // groups},3,3] W, {parameters(3)}> {{
        [in] t = Transpose <perm = [0, 3, 1, 2]> (x)
        [conv] u = Conv <group = {groups}> (t, W)
        [bn] w = {batch_norm("u")}
        [relu] p = Relu (w)
        [out] y = Transpose <perm = [0, 2, 3, 1]> (p)
    }}"""
    becomes(graph, "Transpose Conv Relu Transpose")


def test_bn_conversion() -> None:
    """One stands alone between a pool and Relu, one folds."""
    graph = f"""g (float[2,3,8,8] x) => (float[2,5] y)
        <{parameters(3, 1)}, float[3,3,3,3] W, {parameters(3, 2)}, float[12,5] D, float[5] d> {{
        [pool] t = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)
        [bn1] u = {batch_norm("t", 1)}
        [relu1] w = Relu (u)
        [conv] p = Conv (w, W)
        [bn2] q = {batch_norm("p", 2)}
        [relu2] r = Relu (q)
        [flatten] k = Flatten (r)
        [dense] y = Gemm (k, D, d)
    }}"""
    left = "MaxPool BatchNormalization Relu Conv Relu Flatten Gemm"
    becomes(graph, left, {"bn1": (RefusalId.NONLINEAR_BETWEEN, "pool")}, target="onnxruntime-cpu")


def test_reused_conv_with_two_batch_norms() -> None:
    """A shared layer is two Convs with one weight: each has its own afterwards, or one if both are scaled alike."""
    graph = f"""g (float[2,3,6,6] x, float[2,3,6,6] z) => (float[2,4,4,4] y)
        <float[4,3,3,3] W, {parameters(4, 1)}, {parameters(4, 2)}> {{
        [conv1] t = Conv (x, W)
        [bn1] u = {batch_norm("t", 1)}
        [conv2] w = Conv (z, W)
        [bn2] p = {batch_norm("w", 2)}
        [sum] y = Add (u, p)
    }}"""
    apart = becomes(graph, "Conv Conv Add").after.graph
    assert apart.node(0).inputs[1] is not apart.node(1).inputs[1]
    becomes(graph.replace(batch_norm("w", 2), batch_norm("w", 1)), "Conv Conv Add")
