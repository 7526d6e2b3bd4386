"""Planted faults of what travels: carriers, the way of an affine, maps, costs."""

from mutant import Mutant

CHECK = "bnpass/folding/carrier_check.py"
CARRIER = "bnpass/folding/rules/carrier.py"
ACTIVATION = "bnpass/folding/rules/activation.py"
BRANCHES = "bnpass/folding/rules/branches.py"
POOL = "bnpass/folding/rules/pool.py"
RESAMPLE = "bnpass/folding/rules/resample.py"
REGION = "bnpass/folding/region.py"
PLAN = "bnpass/folding/plan.py"
SPATIAL = "bnpass/folding/spatial.py"
REWRITING = "bnpass/folding/rewriting.py"
LOWER = "bnpass/folding/lower.py"
COSTS = "bnpass/folding/costs.py"
SOLVER = "bnpass/folding/solver.py"

BLIND = (
    Mutant("no check of carriers", CHECK, "            if not found:\n", "            if False:\n"),
    Mutant("no check of maps", SPATIAL, "    _check(node, weight, before, found, image)\n", ""),
    Mutant(
        "no check of the way",
        "bnpass/folding/path_check.py",
        "    _compare(way, before,",
        "    0 and _compare(way, before,",
    ),
    Mutant(
        "no check of the op", "bnpass/folding/linear_check.py", "if not ratio <= 1 or", "if False and not ratio <= 1 or"
    ),
)
"""Applied on request to every mutant: bnpass then has no local check, and the tests stand alone."""

MUTANTS = (
    Mutant("Relu lets a negative scale pass", ACTIVATION,
           "return not affine.has_shift and bool((affine.scale >= 0).all())", "return not affine.has_shift"),
    Mutant("Relu lets a shift pass", ACTIVATION,
           "return not affine.has_shift and bool((affine.scale >= 0).all())", "return bool((affine.scale >= 0).all())"),
    Mutant("bounds not swapped for a negative scale", ACTIVATION,
           "low, high = np.where(s > 0, ends[0], ends[1]), np.where(s > 0, ends[1], ends[0])", "low, high = ends"),
    Mutant("bounds behind not in order", ACTIVATION,
           "return np.minimum(*ends), np.maximum(*ends)", "return ends[0], ends[1]"),
    Mutant("bound moved the wrong way", ACTIVATION,
           "ends = [(bound - t) / divisor for bound in bounds]", "ends = [(bound + t) / divisor for bound in bounds]"),
    Mutant("a dead channel keeps its shift without the bounds", ACTIVATION,
           "np.where(dead, np.clip(t, *bounds), t)", "t"),
    Mutant("upper bound of Clip forgotten", ACTIVATION,
           "    if not np.isposinf(high).all():\n", "    if False:\n"),
    Mutant("Max where the lower bound is 0 in some channels", ACTIVATION,
           'if (low != 0).any() else [("Relu", None)]', 'if (low != 0).all() else [("Relu", None)]'),
    Mutant("one bound for channels that differ", ACTIVATION,
           "if (bound == bound.reshape(-1)[0]).all() else bound", "if True else bound"),
    Mutant("LeakyRelu lets a negative scale pass", ACTIVATION,
           "return passed(step, affine) if _is_scale(affine) else", "return passed(step, affine) if True else"),
    Mutant("Abs keeps the sign", ACTIVATION,
           "return passed(step, Affine(np.abs(affine.scale), affine.shift))", "return passed(step, affine)"),
    Mutant("the slope of PRelu taken for its data", CARRIER,
           "    if set(given) != {0}:\n", "    if False:\n"),
    Mutant("a sibling is multiplied by the scale", BRANCHES,
           "found = _each(step, Affine(1 / scale, np.zeros(())), others)",
           "found = _each(step, Affine(scale, np.zeros(())), others)"),
    Mutant("a sibling is forgotten", BRANCHES,
           "    if others and (scale != 1).any():\n", "    if False:\n"),
    Mutant("Sub adds the shift", BRANCHES,
           '-1.0 if step.node.op_type == "Sub" and i == 1 else 1.0', "1.0"),
    Mutant("both branches take the shift", BRANCHES,
           "        wanted[index] = Affine(scale, signs[index] * shift)\n",
           "        wanted = {i: Affine(scale, signs[i] * shift) for i in range(len(step.node.inputs))}\n"),
    Mutant("one branch takes the scale", BRANCHES,
           "found = _each(step, Affine(whole.scale, np.zeros(())), range(len(step.node.inputs)))",
           "found = _each(step, Affine(whole.scale, np.zeros(())), range(1))"),
    Mutant("different scales of two branches accepted", BRANCHES,
           "    if any(not _equal(a.scale, scale) for a in placed.values()):\n", "    if False:\n"),
    Mutant("a product lets a shift pass", BRANCHES,
           "    if any(a.has_shift for a in given.values()):\n", "    if False:\n"),
    Mutant("a divisor multiplies", BRANCHES,
           "scale / affine.scale if divides and index == 1 else scale * affine.scale", "scale * affine.scale"),
    Mutant("parts of a Concat cut at the wrong place", BRANCHES,
           "return [_picked(whole, axis, np.arange(end - n, end)) for n, end in zip(lengths, ends, strict=True)]",
           "return [_picked(whole, axis, np.arange(n)) for n, end in zip(lengths, ends, strict=True)]"),
    Mutant("a part without an affine scales by 0", BRANCHES,
           "none = Affine(np.ones(()), np.zeros(()))", "none = Affine(np.zeros(()), np.zeros(()))"),
    Mutant("Slice forgets its steps", BRANCHES,
           "window = slice(int(start), int(end), int(stride))", "window = slice(int(start), int(end))"),
    Mutant("Gather of a channel twice accepted backward", BRANCHES,
           "    if len(set(places.tolist())) != len(places):\n", "    if False:\n"),
    Mutant("an axis that broadcasts accepted", CARRIER,
           "if length != 1 and (axis < lead or dims[axis - lead] != length):", "if length != 1 and axis < lead:"),
    Mutant("MaxPool lets a negative scale pass", POOL,
           "        return affine\n    if (affine.scale < 0).any():\n",
           "        return affine\n    if False:\n"),
    Mutant("zeros of padding that are counted forgotten", POOL,
           "if affine.has_shift and counts and padded:", "if False:"),
    Mutant("a sum shifts once", POOL, "count = float(math.prod(known))", "count = 1.0"),
    Mutant("ReduceMax lets a negative scale pass", POOL,
           "    if any((affine.scale < 0).any() for affine in given.values()):\n", "    if False:\n"),
    Mutant("axes that a reduction drops are kept", POOL,
           "keeps = flag == 1", "keeps = True"),
    Mutant("a reduction over the channels accepted", POOL,
           "        if varies_over(affine, set(axes)):\n", "        if False:\n"),
    Mutant("Pad: the value stays", RESAMPLE, "    if (moved == value).all():\n", "    if True:\n"),
    Mutant("Pad: the value moves the wrong way", RESAMPLE, "(value - t) / s if", "(value + t) / s if"),
    Mutant("Pad of channels accepted", RESAMPLE, "    if padded & set(affine.axes):\n", "    if False:\n"),
    Mutant("tf_crop_and_resize accepted", RESAMPLE, '== "tf_crop_and_resize"', '== "tf_crop"'),
    Mutant("DepthToSpace: the modes swapped", RESAMPLE,
           '== "CRD" else 0', '== "DCR" else 0'),
    Mutant("DepthToSpace: channels of a block may differ", RESAMPLE,
           "result = blocks_of[0] if (blocks_of == blocks_of[0]).all() else None", "result = blocks_of[0]"),
    Mutant("a graph output may owe", REGION, "        if value.is_graph_output():\n", "        if False:\n"),
    Mutant("one reader is asked for all", REGION,
           "        for node, _ in value.uses():\n", "        for node, _ in tuple(value.uses())[:1]:\n"),
    Mutant("a value that others read may become another", REGION,
           "        blocked = blocked_use(value)\n", "        blocked = None\n"),
    Mutant("a weight may owe", REGION, "        if set(owed) - {index}:\n", "        if False:\n"),
    Mutant("a constant branch is forgotten", REGION,
           "                self.region.operands[node, index] = affine\n", ""),
    Mutant("scale and shift part, and the shift is not divided", PLAN,
           "parts.insert(0, _Part(scale, replace(shift, shift=affine.shift / affine.scale)))",
           "parts.insert(0, _Part(scale, shift))"),
    Mutant("the map sees padding as data", SPATIAL,
           "((place >= 0) & (place < length)).astype(np.float64)", "np.ones(place.shape)"),
    Mutant("the map is not scaled by what stands behind", SPATIAL,
           "found * absorption.out.scale.reshape(-1, *(1,) * len(window))", "found"),
    Mutant("no tap of a map reads padding at the end", SPATIAL, "(place >= 0) & (place < length)", "place >= 0"),
    Mutant("a constant branch takes only the scale", REWRITING,
           "found.array().astype(wide(kind)) * scale + shift", "found.array().astype(wide(kind)) * scale"),
    Mutant("a new batch normalization with the default epsilon", LOWER,
           '    node.attributes["epsilon"] = ir.AttrFloat32("epsilon", 0.0)\n', ""),
    Mutant("a batch normalization over another axis", LOWER, "cell.affine.axes == (1,)", "len(cell.affine.axes) == 1"),
    Mutant("Max and Min cost nothing", COSTS, 'op_type in ("Max", "Min")', "False"),
    Mutant("scale and shift part though numbers are bad", SOLVER,
           "return any(refusal.id in _OF_NUMBERS for refusal in refusals)", "return False"),
)  # fmt: skip
