"""Planted faults of folding: each is a small, plausible mistake in its rules or its arithmetic."""

from mutant import Mutant

AFFINE = "bnpass/semantics/affine.py"
REGROUP = "bnpass/semantics/regroup.py"
ABSORB = "bnpass/folding/absorb.py"
CELLS = "bnpass/folding/cells.py"
CONSTANTS = "bnpass/graph/constants.py"
GRAPH = "bnpass/graph/nodes.py"
BATCH_NORM = "bnpass/graph/batch_norm.py"
LOWER = "bnpass/folding/lower.py"
PLAN = "bnpass/folding/plan.py"
REGION = "bnpass/folding/region.py"
COMMIT = "bnpass/folding/commit.py"
RECOGNIZE = "bnpass/folding/recognize.py"
WRITE = "bnpass/folding/write.py"
SOLVER = "bnpass/folding/solver.py"
CONV = "bnpass/folding/rules/conv.py"
CONV_TRANSPOSE = "bnpass/folding/rules/conv_transpose.py"
GEMM = "bnpass/folding/rules/gemm.py"
MATMUL = "bnpass/folding/rules/matmul.py"
LAYOUT = "bnpass/folding/rules/layout.py"

BLIND = (
    Mutant(
        "no check of the way",
        "bnpass/folding/path_check.py",
        "    _compare(way, before,",
        "    0 and _compare(way, before,",
    ),
    Mutant(
        "no check of the op", "bnpass/folding/linear_check.py", "if not ratio <= 1 or", "if False and not ratio <= 1 or"
    ),
    Mutant("no check of gaps", "bnpass/folding/linear_check.py", "or not self._gaps_agree(b_old, b_new):", "or False:"),
)
"""Applied on request to every mutant: bnpass then has no local check, and the tests stand alone."""

MUTANTS = (
    Mutant("drop the mean", AFFINE,
           "return Affine(s, B - input_mean * s)", "return Affine(s, B + 0 * input_mean)"),
    Mutant("forget beta", AFFINE,
           "return Affine(s, B - input_mean * s)", "return Affine(s, 0 * B - input_mean * s)"),
    Mutant("epsilon outside the root", AFFINE,
           "s = scale / np.sqrt(input_var + input_var.dtype.type(epsilon))",
           "s = scale / (np.sqrt(input_var) + input_var.dtype.type(epsilon))"),
    Mutant("epsilon read as decimal text", RECOGNIZE,
           'return float(np.float32(node.attributes.get_float("epsilon", default)))',
           'return float(format(node.attributes.get_float("epsilon", default), ".6g"))'),
    Mutant("epsilon default 1e-3", RECOGNIZE,
           'default = 1e-3 if node.domain == "bnpass" else 1e-5', "default = 1e-3"),
    Mutant("shift order swapped in composition", AFFINE,
           "later.scale * self.shift + later.shift", "self.scale * later.shift + self.shift"),
    Mutant("composition forgets to scale the shift", AFFINE,
           "later.scale * self.shift + later.shift", "self.shift + later.shift"),
    Mutant("two roundings to bfloat16", AFFINE,
           "if dtype != ml_dtypes.bfloat16 or x.dtype == np.float32:", "if True:"),
    Mutant("weight computed in its own type", AFFINE,
           "exact = piece.astype(wide(self.dtype))",
           "exact = piece.astype(np.float32 if self.dtype.itemsize < 8 else self.dtype)"),
    Mutant("bias not scaled", AFFINE,
           "return self.out.scale * inner + self.out.shift", "return inner + self.out.shift"),
    Mutant("gain of the product forgotten in the bias", AFFINE,
           "inner = inner + gain * self.shift_through(weight)", "inner = inner + self.shift_through(weight)"),
    Mutant("swap the axis of a batch normalization", RECOGNIZE,
           'axis = node.attributes.get_int("axis", -1) if node.domain == "bnpass" else 1',
           'axis = node.attributes.get_int("axis", -1) if node.domain == "bnpass" else -1'),
    Mutant("training mode taken for inference", BATCH_NORM,
           'return bool(node.attributes.get_int("training_mode", 0))', "return False"),
    Mutant("negative variance accepted", RECOGNIZE, "if (var < 0).any():", "if False:"),
    Mutant("Sub reversed", RECOGNIZE,
           "return Affine(-one, c) if constant_first else Affine(one, -c)",
           "return Affine(one, -c) if constant_first else Affine(-one, c)"),
    Mutant("constant minus x read as x minus constant", RECOGNIZE,
           "return Affine(-one, c) if constant_first else Affine(one, -c)", "return Affine(one, -c)"),
    Mutant("Div reversed", RECOGNIZE, "return Affine(one / c, zero)", "return Affine(c, zero)"),
    Mutant("constant over x read as x over constant", RECOGNIZE,
           'and node.op_type != "Div":', "and True:"),
    Mutant("constant that enlarges the value accepted", RECOGNIZE,
           "        if length != 1 and dims[axis] != length:",
           "        if length != 1 and dims[axis] not in (1, length):"),
    Mutant("groups ignored on Conv's input side", CONV, "in_axes=(0, 2),", "in_axes=(2,),"),
    Mutant("groups ignored in Conv", CONV,
           "view=(group, out_channels // group, in_per_group, math.prod(kernel)),",
           "view=(1, out_channels, in_per_group, math.prod(kernel)),"),
    Mutant("padding ignored for a shift", CONV,
           "shift_at_input=_padding(node, kernel),", "shift_at_input=None,"),
    Mutant("SAME padding taken for none", CONV,
           'if auto_pad == "VALID" or (auto_pad.startswith("SAME") and all(k == 1 for k in kernel)):',
           'if auto_pad != "NOTSET":'),
    Mutant("groups ignored in ConvTranspose", CONV_TRANSPOSE, "out_axes=(0, 2),", "out_axes=(2,),"),
    Mutant("ConvTranspose: any stride takes a shift", CONV_TRANSPOSE,
           'and all(s == 1 for s in ints("strides", ()))', "and True"),
    Mutant("ConvTranspose: output padding takes a shift", CONV_TRANSPOSE,
           'and not any(ints("output_padding", ()))', "and True"),
    Mutant("ConvTranspose: any kernel takes a shift", CONV_TRANSPOSE, "all(k == 1 for k in kernel)", "True"),
    Mutant("Gemm: transB ignored", GEMM,
           "out_axis = (1 if is_right else 0) ^ transposed[index]", "out_axis = 1 if is_right else 0"),
    Mutant("Gemm: transA ignored", GEMM,
           "data_axis = (1 if is_right else 0) ^ transposed[1 - index]", "data_axis = 1 if is_right else 0"),
    Mutant("Gemm: alpha applied twice", GEMM, "return Bias(2, value, alpha, beta, column, stored)",
           "return Bias(2, value, alpha * alpha, beta, column, stored)"),
    Mutant("Gemm: beta applied twice", GEMM, "value = np.asarray(value.astype(wide(weight.dtype.numpy())) * beta)",
           "value = np.asarray(value.astype(wide(weight.dtype.numpy())) * beta * beta)"),
    Mutant("Gemm: beta = 0 not reset", WRITE,
           'node.attributes["beta"] = ir.AttrFloat32("beta", slot.factor)', "pass"),
    Mutant("MatMul: rows and columns of a left weight swapped", MATMUL,
           "(rank - 1, rank - 2) if is_right else (rank - 2, rank - 1)", "(rank - 1, rank - 2)"),
    Mutant("MatMul: a batch of weights summed over", MATMUL,
           "batch_axes=tuple(range(rank - 2))", "batch_axes=()"),
    Mutant("several readers ignored", GRAPH, "if len(value.uses()) > 1:", "if len(value.uses()) > 99:"),
    Mutant("graph output ignored", GRAPH, "    if value.is_graph_output():\n        return Refusal(",
           "    if False:\n        return Refusal("),
    Mutant("graph output ignored on the way on", REGION,
           "        if value.is_graph_output():\n", "        if False:\n"),
    Mutant("overridable initializer folded", CONSTANTS,
           "if value.is_graph_input() and scope.has_defaults:", "if False:"),
    Mutant("shared weight not cloned", WRITE, "        and len(value.uses()) == 1\n", ""),
    Mutant("overflow of the bias unchecked", ABSORB,
           "if stored is not None and not np.isfinite(stored).all():", "if False:"),
    Mutant("overflow of the weight unchecked", ABSORB,
           "if np.isfinite(check.channel_peak).all():", "if True:"),
    Mutant("underflow of a channel unchecked", ABSORB,
           "refusal = _judge(linear, check, weight) or _lost(absorption, weight, check)",
           "refusal = _judge(linear, check, weight)"),
    Mutant("any axis of the right length is the channel axis", AFFINE,
           "if axis < 0 or self.axes != (axis,) or shape[axis] != length:",
           "if len(self.axes) != 1 or max(shape) != length:"),
    Mutant("Transpose not inverted on the way back", LAYOUT, "else np.argsort(perm)", "else perm"),
    Mutant("Squeeze and Unsqueeze swapped", LAYOUT,
           "lambda a: np.expand_dims(a, axes) if adds else np.squeeze(a, axes)",
           "lambda a: np.squeeze(a, axes) if adds else np.expand_dims(a, axes)"),
    Mutant("Cast: towards the narrower type allowed", LAYOUT,
           "if here is None or there is None or there not in _WIDER.get(here, ()):",
           "if here is None or there is None:"),
    Mutant("Dropout: mask that is read ignored", LAYOUT,
           "if any(v.uses() or v.is_graph_output() for v in node.outputs[1:]):", "if False:"),
    Mutant("Dropout: training mode ignored", LAYOUT, "    if trains:\n", "    if False:\n"),
    Mutant("Reshape: an axis of equal length is the same axis", REGROUP,
           "    return _without_constant_axes(np.broadcast_to(array, before).reshape(after))",
           "    long = max(array.shape, default=1)\n"
           "    if long > 1 and long in new:\n"
           "        return array.reshape([long if i == list(new).index(long) else 1 for i in range(len(new))])\n"
           "    return _without_constant_axes(np.broadcast_to(array, before).reshape(after))"),
    Mutant("joined batch normalization keeps its mean", LOWER,
           "(mean - q) / np.where(dead, 1, p)))", "mean - q))"),
    Mutant("split leaves t instead of t/s", PLAN,
           "_Part(scale, replace(shift, shift=affine.shift / affine.scale))", "_Part(scale, shift)"),
    Mutant("Add behind MatMul forgotten", COMMIT, "        if shift is None:\n", "        if True:\n"),
    Mutant("modified is always true", SOLVER,
           "        return changed\n\n    def _remove", "        return True\n\n    def _remove"),
    Mutant("modified is never true", SOLVER,
           "        return changed\n\n    def _remove", "        return False\n\n    def _remove"),
)  # fmt: skip
