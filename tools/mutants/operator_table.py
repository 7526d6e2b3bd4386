"""Planted faults of the operator part: definition, bodies, layers, expansion, and the order of collectives."""

from mutant import Mutant

REFERENCE = "bnpass/semantics/reference.py"
CANONICAL = "bnpass/semantics/canonical.py"
BODIES = "bnpass/ops/bodies.py"
FORM = "bnpass/ops/body_form.py"
FORMULAS = "bnpass/ops/body_formulas.py"
LAYER = "bnpass/layers/layer.py"
MODES = "bnpass/layers/modes.py"
RENORM = "bnpass/layers/renorm.py"
MASK = "bnpass/layers/mask.py"
ADJUSTMENT = "bnpass/layers/adjustment.py"
GRADIENT = "bnpass/layers/gradient.py"
AXES = "bnpass/layers/axes.py"
BRANCH = "bnpass/layers/branch.py"
STATISTICS = "bnpass/expansion/statistics.py"
FORWARD = "bnpass/expansion/forward.py"
BACKWARD = "bnpass/expansion/backward.py"
MESSAGE = "bnpass/expansion/message.py"
VIEW = "bnpass/expansion/view.py"
SITES = "bnpass/expansion/sites.py"
TERMS = "bnpass/expansion/terms.py"
ATTRIBUTES = "bnpass/expansion/attributes.py"
CALL = "bnpass/expansion/call.py"
LOWER = "bnpass/expansion/lower.py"
MODE = "bnpass/graph/batch_norm.py"
COALESCE = "bnpass/collectives/coalesce.py"
ORDER = "bnpass/collectives/order.py"
CHECK = "bnpass/collectives/check.py"
UNIFORM = "bnpass/collectives/uniform.py"
TIE = "bnpass/collectives/tie.py"

IN_REFERENCE = "tests/unit/semantics/test_reference.py"
IN_BODIES = "tests/unit/ops/test_bodies.py"
IN_LAYERS = "tests/unit/layers/test_layer.py"
IN_TRAINING = "tests/unit/expansion/test_training.py"
IN_OURS = "tests/unit/expansion/test_ours.py"
IN_GRADIENT = "tests/unit/expansion/test_gradient.py"
IN_ACCURACY = "tests/unit/expansion/test_accuracy.py"
IN_REPLICAS = "tests/unit/expansion/test_replicas.py"
IN_REFUSALS = "tests/unit/expansion/test_expand_refusals.py"
IN_PLACES = "tests/unit/expansion/test_places.py"
IN_COALESCE = "tests/unit/collectives/test_coalesce.py"
IN_ORDER = "tests/unit/collectives/test_order.py"

DEFINITION = (
    Mutant("sample variance normalizes", REFERENCE,
           "    return mean, var, shares, lost\n",
           "    return mean, var * total / np.maximum(total - 1, 1), shares, lost\n", IN_REFERENCE),
    Mutant("count of the first replica alone", REFERENCE,
           "count = float(sum(form.elements for form in forms))", "count = float(forms[0].elements)", IN_BODIES),
    Mutant("gradient: sums of the first replica alone", REFERENCE,
           "sum_g = _total(grads)[:, None]", "sum_g = _total(grads[:1])[:, None]", IN_REFERENCE),
    Mutant("gradient goes through the running statistics", REFERENCE,
           "forms, plain, None, 0 * mean, True)",
           "forms, plain, _statistics(parts, _weights(layer, forms, None))[2], 0 * mean, True)",
           IN_REFERENCE),
    Mutant("gradient: renorm's r forgotten", REFERENCE,
           "grads.append(dY * scale * a * result.r)", "grads.append(dY * scale * a)", IN_REFERENCE),
    Mutant("gradient: the adjustment forgotten in dscale", REFERENCE,
           "(dY * (a * renormed + c)).sum((0, 1, 2))", "(dY * renormed).sum((0, 1, 2))", IN_REFERENCE),
    Mutant("Keras 3's η forgotten", REFERENCE,
           "_statistics(seen, weights, KERAS3_ETA)", "_statistics(seen, weights)", IN_LAYERS),
    Mutant("gradient: Keras 3's η forgotten", REFERENCE, "(x_hat - lost) * sum_gx", "x_hat * sum_gx", IN_REFERENCE),
    Mutant("what Keras 3 masks out is looked at", REFERENCE,
           "seen = [np.where(w == 0, 0, part)", "seen = [part + 0 * w", IN_REFERENCE),
    Mutant("weights of a mask read as yes or no", REFERENCE,
           '    if layer.mask_rule == "select":\n        masks = ', "    if True:\n        masks = ", IN_LAYERS),
    Mutant("a fused layer heeds its mask", REFERENCE,
           'if masks is None or layer.mask_rule == "ignored":', "if masks is None:", IN_LAYERS),
    Mutant("r is clipped from above, then from below", REFERENCE,
           "np.minimum(np.maximum(r, rmin), rmax)", "np.maximum(np.minimum(r, rmax), rmin)", IN_REFERENCE),
    Mutant("renorm divides by less than √epsilon", REFERENCE,
           "floor = np.maximum(state.renorm_stddev, np.sqrt(layer.epsilon))", "floor = state.renorm_stddev", IN_LAYERS),
    Mutant("renorm's floor is epsilon", REFERENCE,
           "state.renorm_stddev, np.sqrt(layer.epsilon))", "state.renorm_stddev, layer.epsilon)", IN_LAYERS),
    Mutant("renorm corrects by the state after the step", REFERENCE,
           "_renorm(layer, layer.renorm, mean, var, state, clip or {})",
           "_renorm(\n            layer, layer.renorm, mean, var,"
           " _renorm_updated(layer, layer.renorm, state, mean, var), clip or {}\n        )",
           IN_LAYERS),
    Mutant("momentum reversed", REFERENCE,
           "running_mean=m * state.running_mean + (1 - m) * batch_mean",
           "running_mean=(1 - m) * state.running_mean + m * batch_mean", IN_REFERENCE),
    Mutant("renorm's averages with the layer's momentum", REFERENCE,
           "rho, batch_stddev = renorm.momentum,", "rho, batch_stddev = layer.momentum,", IN_LAYERS),
    Mutant("an empty batch pulls the statistics", REFERENCE,
           "if count and layer.updates_statistics(training):", "if layer.updates_statistics(training):", IN_REFERENCE),
    Mutant("a frozen layer moves its statistics", REFERENCE,
           "if count and layer.updates_statistics(training):", "if count:", IN_REFERENCE),
    Mutant("sample variance counts all ghost batches", REFERENCE,
           "(count / max(count - layer.running_var_correction, 1.0))",
           "(count * len(var) / max(count * len(var) - layer.running_var_correction, 1.0))", IN_BODIES),
    Mutant("sample variance of one element is 0 / 0", REFERENCE,
           "max(count - layer.running_var_correction, 1.0)", "(count - layer.running_var_correction)", IN_REFERENCE),
    Mutant("renorm's variance keeps epsilon", REFERENCE,
           "running_var=np.maximum(stddev**2 - layer.epsilon, 0.0)", "running_var=stddev**2", IN_REFERENCE),
    Mutant("adjustment before renorm", REFERENCE,
           "state.scale * (a * (x_hat * r + d) + c) + state.B", "state.scale * ((a * x_hat + c) * r + d) + state.B",
           IN_LAYERS),
    Mutant("ghost batches with a symbolic mode", REFERENCE,
           "ghost = layer.virtual_batch_size if from_batch and not symbolic else 0",
           "ghost = layer.virtual_batch_size if from_batch else 0", IN_REFERENCE),
    Mutant("ghost batches of neighbours", CANONICAL,
           "        return full.transpose(self._order).reshape(samples, self.groups, self._positions, self.channels)\n"
           "\n"
           "    def unpack(self, packed: Array) -> Array:\n"
           '        """Return [b, G, S, C] as a value of the original shape."""\n',
           "        shape = (self.groups, samples, self._positions, self.channels)\n"
           "        return full.transpose(self._order).reshape(shape).swapaxes(0, 1)\n\n"
           "    def unpack(self, packed: Array) -> Array:\n"
           "        packed = packed.swapaxes(0, 1)\n", IN_REFERENCE),
    Mutant("a ghost batch counts the whole batch", CANONICAL,
           "return (self.virtual_batch_size or self._batch) * self._positions if",
           "return self._batch * self._positions if",
           IN_BODIES),
    Mutant("axes come back in the order they left", CANONICAL,
           ".transpose(np.argsort(self._order))", ".transpose(self._order)", IN_LAYERS),
)  # fmt: skip

OPERATORS = (
    Mutant("body: sample variance", FORMULAS,
           'var = op("Div", second, divisor, name="var")',
           'var = op("Div", second, op.at_least_one(op("Sub", count, op.real(1.0))), name="var")', IN_BODIES),
    Mutant("body: one element counts as none", FORMULAS,
           '    counted = op("Greater", count, op.real(0.0), name="counted")',
           '    counted = op("Greater", count, op.real(1.0), name="counted")', IN_BODIES),
    Mutant("body: constants have a gradient", FORMULAS,
           'shares = op("Where", counted, op("Div", total, divisor), op.real(0.0), name="shares")',
           'shares = op("Div", total, divisor, name="shares")', IN_BODIES),
    Mutant("body: epsilon outside the root", FORMULAS,
           'op("Reciprocal", op("Sqrt", op("Add", var, op.real_attribute("epsilon"))), name="inv_std")',
           'op("Reciprocal", op("Add", op("Sqrt", var), op.real_attribute("epsilon")), name="inv_std")', IN_BODIES),
    Mutant("body: correction forgotten", FORMULAS,
           'unbiased = op("Mul", var, _correction(op, count))', "unbiased = var", IN_BODIES),
    Mutant("body: correction of one element divides by 0", FORMULAS,
           'op.at_least_one(op("Sub", count, ddof))', 'op("Sub", count, ddof)', IN_BODIES),
    Mutant("body: momentum reversed", FORMULAS,
           'kept = op("Mul", momentum, before)\n    taken = op("Mul", op("Sub", op.real(1.0), momentum), average)',
           'kept = op("Mul", momentum, average)\n    taken = op("Mul", op("Sub", op.real(1.0), momentum), before)',
           IN_BODIES),
    Mutant("body: ghost batches added up, not averaged", FORMULAS,
           'average = op("Div", over_groups(op, batch, form), op.at_least_one(op.double(form.groups)), name="average")',
           "average = over_groups(op, batch, form)", IN_BODIES),
    Mutant("body: dscale of all replicas", FORMULAS,
           'op("Mul", s, op.reshape(s2, form.table))', 'op("Mul", s, op.reshape(op.part(total, half), form.table))',
           IN_BODIES),
    Mutant("body: dB of all replicas", FORMULAS,
           "over_groups(op, op.reshape(s1, form.table), form), scale)",
           "over_groups(op, op.reshape(op.part(total, op.number(0), half), form.table), form), scale)", IN_BODIES),
    Mutant("body: S2 around 0", FORMULAS,
           'sums(op, op("Mul", upstream, centred), form, "s2")',
           'sums(op, op("Mul", upstream, form.pack(op, X)), form, "s2")', IN_BODIES),
    Mutant("body: inv_std once instead of squared", FORMULAS,
           'form.spread(op, op("Mul", s, s))', "form.spread(op, s)", IN_BODIES),
    Mutant("body: b and G exchanged", FORM,
           "samples, groups, is_whole = _ghost_batches(", "groups, samples, is_whole = _ghost_batches(", IN_BODIES),
    Mutant("body: double X through float", FORM,
           'return op.reshape(op.double(value), self.packed, "packed")',
           'return op.reshape(op.double(op("Cast", value, to=1)), self.packed, "packed")', IN_BODIES),
    Mutant("body: positions behind the channels not counted", FORM,
           'elements = op("Mul", op("Mul", samples, between), behind)', 'elements = op("Mul", samples, between)',
           IN_BODIES),
    Mutant("body: no ghost batch has elements all the same", FORM,
           'elements=op("Where", op("Equal", groups, zero), zero, elements, name="elements")', "elements=elements",
           IN_BODIES),
    Mutant("body: a negative axis is one off", FORM,
           'op("Add", axis, op("Shape", shape))', 'op("Sub", op("Add", axis, op("Shape", shape)), one)', IN_BODIES),
    Mutant("body: a vector of another length is cut", FORM,
           "return op.reshape(op.double(parameter), op.join(op.number(1), self.channels))",
           "return op.reshape(op.part(op.double(parameter), op.number(0), self.channels),"
           " op.join(op.number(1), self.channels))", IN_BODIES),
    Mutant("bodies: callers before callees", BODIES,
           "return [op_type for op_type in CALLEES if op_type in found]",
           "return [op_type for op_type in reversed(CALLEES) if op_type in found]", IN_BODIES),
    Mutant("bodies: only what stands in the graph", BODIES,
           "found.update(CALLEES[op_type])", "pass", IN_BODIES),
)  # fmt: skip

LAYERS = (
    Mutant("layer: renorm's floor is epsilon", RENORM,
           "math.sqrt(layer.epsilon)", "layer.epsilon", IN_LAYERS),
    Mutant("layer: r is clipped from above, then from below", RENORM,
           '    if renorm.rmin != 0:\n'
           '        r = f64(op, "Max", r, _limit(op, renorm.rmin, inputs, "rmin"), name="r")\n'
           '    if renorm.rmax != math.inf:\n'
           '        r = f64(op, "Min", r, _limit(op, renorm.rmax, inputs, "rmax"), name="r")\n',
           '    if renorm.rmax != math.inf:\n'
           '        r = f64(op, "Min", r, _limit(op, renorm.rmax, inputs, "rmax"), name="r")\n'
           '    if renorm.rmin != 0:\n'
           '        r = f64(op, "Max", r, _limit(op, renorm.rmin, inputs, "rmin"), name="r")\n', IN_LAYERS),
    Mutant("layer: d is clipped on one side", RENORM,
           'f64(op, "Max", d, f64(op, "Neg", limit, name="dmin"), name="d")', "d", IN_LAYERS),
    Mutant("layer: renorm's stddev with the layer's momentum", RENORM,
           '(_given(inputs, "renorm_stddev"), stddev, renorm.momentum)',
           '(_given(inputs, "renorm_stddev"), stddev, layer.momentum)', IN_LAYERS),
    Mutant("layer: moving stddev starts from renorm's", RENORM,
           '"running_stddev": (_given(inputs, "input_stddev")', '"running_stddev": (_given(inputs, "renorm_stddev")',
           IN_LAYERS),
    Mutant("layer: renorm's variance keeps epsilon", RENORM,
           'f64(op, "Max", f64(op, "Sub", square, number(op, layer.epsilon)), number(op, 0.0), name="variance")',
           'f64(op, "Max", square, number(op, 0.0), name="variance")', IN_LAYERS),
    Mutant("layer: d not scaled", MODES,
           'f64(op, "Add", core.B, f64(op, "Mul", core.scale, d), name="B_d")', 'f64(op, "Add", core.B, d, name="B_d")',
           IN_LAYERS),
    Mutant("layer: gradient with the scale without r", MODES,
           '"scale": parameters["scale"]}', '"scale": f64(op, "Identity", core.scale)}', IN_LAYERS),
    Mutant("layer: ghost batches added up, not averaged", MODES,
           'return f64(op, "Div", typed(total, DOUBLE), f64(op, "Max", ghosts, number(op, 1.0)), name="average")',
           "return typed(total, DOUBLE)", IN_LAYERS),
    Mutant("layer: an empty batch pulls the statistics", MODES,
           'typed(op("Where", any_element, rounded, before, name=name), rounded.dtype)', "rounded", IN_LAYERS),
    Mutant("layer: momentum reversed", MODES,
           'old = f64(op, "Mul", before, number(op, kept))\n'
           '        after[name] = f64(op, "Add", old, f64(op, "Mul", batch, number(op, 1 - kept)), name=name)',
           'old = f64(op, "Mul", before, number(op, 1 - kept))\n'
           '        after[name] = f64(op, "Add", old, f64(op, "Mul", batch, number(op, kept)), name=name)', IN_LAYERS),
    Mutant("layer: inference branch with a gradient through its constants", MODES,
           'values["share"] = constant_vector(op, 0.0, channels, DOUBLE)',
           'values["share"] = constant_vector(op, 0.1, channels, DOUBLE)', IN_LAYERS),
    Mutant("layer: inference branch trains", MODES,
           "    values, channels = inference(op, core), core.layer.channels",
           "    values, channels = _values(_normalized(op, core, training=True)), core.layer.channels", IN_LAYERS),
    Mutant("layer: inference meets the group", MODES,
           'group=core.group if training else ""', "group=core.group", IN_LAYERS),
    Mutant("layer: weights of a mask read as yes or no", MASK,
           "op.cast(mask, TYPES[layer.parameter_dtype if group else layer.dtype])",
           "op.cast(mask, ir.DataType.BOOL)", IN_LAYERS),
    Mutant("layer: a mask lacks the first axis", MASK,
           'op("Unsqueeze", mask, op.ints(rank - 1))', 'op("Unsqueeze", mask, op.ints(0))', IN_LAYERS),
    Mutant("layer: Keras 3's η forgotten", MASK,
           'Mask(op.cast(x_like, DOUBLE), x_like, KERAS3_ETA, "")', 'Mask(op.cast(x_like, DOUBLE), x_like, 0.0, "")',
           IN_LAYERS),
    Mutant("layer: what Keras 3 masks out is looked at", MASK, "if self.chosen is None:", "if True:", IN_LAYERS),
    Mutant("layer: gradient without Keras 3's η", MASK,
           'S1 = f64(op, "Sub", S1, f64(op, "Mul", lost, S2))', "pass", IN_LAYERS),
    Mutant("layer: gradient under a mask with local sums", MASK,
           "S1, S2 = _summed(op, (dB, dscale), [way.channels] * 2, saved.group) if saved.group else (dB, dscale)",
           "S1, S2 = dB, dscale", IN_LAYERS),
    Mutant("layer: gradient under a mask without its weights", MASK,
           'f64(op, "Mul", f64(op, "Mul", saved.weights, share), through)', 'f64(op, "Mul", share, through)',
           IN_LAYERS),
    Mutant("layer: squares of replicas around their own means", MASK,
           'around_zero = f64(op, "Add", squares, f64(op, "Mul", total, mean), name="squares")',
           "around_zero = squares",
           IN_LAYERS),
    Mutant("layer: c scaled by a", ADJUSTMENT,
           'op("Add", op("Mul", z, a), c, name="adjusted")',
           'op("Mul", op("Add", z, c), a, name="adjusted")', IN_LAYERS),
    Mutant("layer: adjustment in inference", ADJUSTMENT,
           "    if training is not None:\n        a = ", "    if False:\n        a = ", IN_LAYERS),
    Mutant("layer: gradient of c without the scale", ADJUSTMENT,
           "_as_broadcast(op, u, pair[1], rank)", "_as_broadcast(op, dY, pair[1], rank)", IN_LAYERS),
    Mutant("layer: gradient not through a", ADJUSTMENT,
           'dz = typed(op("Mul", u, adjusted.a, name="dz")', 'dz = typed(op("Identity", u, name="dz")', IN_LAYERS),
    Mutant("layer: dscale without d", GRADIENT,
           'f64(op, "Add", f64(op, "Mul", saved.r, dscale), f64(op, "Mul", saved.d, dB), name="dscale")',
           'f64(op, "Mul", saved.r, dscale, name="dscale")', IN_LAYERS),
    Mutant("layer: axes come back in the order they left", AXES,
           "back = sorted(range(len(self.order)), key=self.order.__getitem__)", "back = list(self.order)", IN_LAYERS),
    Mutant("layer: channel axes in reverse", AXES,
           "order = (*(i for i in range(rank) if i not in axes), *axes)",
           "order = (*(i for i in range(rank) if i not in axes), *reversed(axes))", IN_LAYERS),
    Mutant("layer: ghost batches with a mode at run time", LAYER,
           "ghost = layer.virtual_batch_size if condition is None else 0",
           "ghost = layer.virtual_batch_size", IN_LAYERS),
    Mutant("layer: any layer meets the group", LAYER,
           'group=group if layer.synchronized else ""', "group=group", IN_LAYERS),
    Mutant("layer: a fused one heeds its mask", LAYER,
           'if inputs.mask is not None and layer.mask_rule != "ignored":', "if inputs.mask is not None:", IN_LAYERS),
    Mutant("layer: branches exchanged", BRANCH,
           "then_branch=graphs[0], else_branch=graphs[1]", "then_branch=graphs[1], else_branch=graphs[0]", IN_LAYERS),
)  # fmt: skip

EXPANSION = (
    Mutant("mean of means", STATISTICS,
           "    M, S1, S2 = replicas.total_with_count(n, n_mean, M2 + n_mean * mean)\n"
           "    divisor = _divisor(M, view)\n",
           "    ones, square = mean * 0.0 + 1.0, M2 / divisor + mean * mean\n"
           "    M, divisor, S1, S2 = replicas.total_with_count(n, ones, mean, square)\n",
           IN_REPLICAS),
    Mutant("M2 without n·mean²", STATISTICS, "M2 + n_mean * mean)", "M2)", IN_REPLICAS),
    Mutant("squares around K taken for those around the mean", STATISTICS,
           "M2 = (d2 - sum_D * d1).at_least(0.0)", "M2 = d2", IN_ACCURACY),
    Mutant("rest dropped, one replica", STATISTICS, "n, K, D, -d1)", "n, K, D, None)", IN_ACCURACY),
    Mutant("rest dropped, replicas", STATISTICS,
           "return Batch(mean, var, M, K, D, K.to(DOUBLE) - mean)",
           "return Batch(mean, var, M, K, D, None)", IN_REPLICAS),
    Mutant("sums divided by an empty batch", STATISTICS,
           "return M.at_least(1.0) if view.may_be_empty else M", "return M", IN_OURS),
    Mutant("negative variance of one-pass sums", STATISTICS,
           "var = (Q / divisor - mean * mean).at_least(0.0)", "var = (Q / divisor - mean * mean)", IN_ACCURACY),
    Mutant("variance of a double batch by its own count", STATISTICS,
           'return Batch(mean, (M2 / divisor).named("var"), M, mean, D, None)',
           'return Batch(mean, (M2 / _divisor(view.count, view)).named("var"), M, mean, D, None)', IN_REPLICAS),
    Mutant("epsilon outside the root", FORWARD,
           '    inv_std = (1.0 / (var + site.epsilon).sqrt()).named("inv_std")\n    return {\n'
           '        "Y": _normalized(view, batch, inv_std),\n        "running_mean"',
           '    inv_std = (1.0 / (var.sqrt() + site.epsilon)).named("inv_std")\n    return {\n'
           '        "Y": _normalized(view, batch, inv_std),\n        "running_mean"', IN_TRAINING),
    Mutant("epsilon outside the root in inference", FORWARD,
           '    inv_std = (1.0 / (var + site.epsilon).sqrt()).named("inv_std")\n    return {\n'
           '        "Y": _normalized(view, batch, inv_std),\n        "saved_mean"',
           '    inv_std = (1.0 / (var.sqrt() + site.epsilon)).named("inv_std")\n    return {\n'
           '        "Y": _normalized(view, batch, inv_std),\n        "saved_mean"', IN_OURS),
    Mutant("momentum: the new taken for the kept", FORWARD,
           "site.momentum * before + (1.0 - site.momentum) *", "(1.0 - site.momentum) * before + site.momentum *",
           IN_TRAINING),
    Mutant("correction forgotten", FORWARD,
           "unbiased = var * (M / (M - 1.0).at_least(1.0)) if site.correction else var", "unbiased = var", IN_TRAINING),
    Mutant("correction of one element divides by 0", FORWARD, "(M - 1.0).at_least(1.0)", "(M - 1.0)", IN_OURS),
    Mutant("expanded: sample variance normalizes", FORWARD,
           '    inv_std = (1.0 / (var + site.epsilon).sqrt()).named("inv_std")\n    return {\n'
           '        "Y": _normalized(view, batch, inv_std),\n        "running_mean"',
           '    inv_std = (1.0 / (unbiased + site.epsilon).sqrt()).named("inv_std")\n    return {\n'
           '        "Y": _normalized(view, batch, inv_std),\n        "running_mean"', IN_TRAINING),
    Mutant("zeros are the statistics of an empty batch", FORWARD,
           "    if view.may_be_empty:\n        mean, var =", "    if False:\n        mean, var =", IN_OURS),
    Mutant("rest not scaled", FORWARD, "shift = shift + batch.rest * a", "shift = shift + batch.rest", IN_ACCURACY),
    Mutant("r·c2 dropped", BACKWARD, "c3 = c3 - r * c2", "pass", IN_GRADIENT),
    Mutant("S2 around K", BACKWARD, "S2 = S2 - r * S1", "pass", IN_GRADIENT),
    Mutant("dscale of all replicas", BACKWARD,
           "view.over_groups(inv_std * S2)", "view.over_groups(inv_std * T2)", IN_GRADIENT),
    Mutant("dB of all replicas", BACKWARD, "view.over_groups(S1)", "view.over_groups(T1)", IN_GRADIENT),
    Mutant("inv_std once instead of squared", BACKWARD,
           "share * inv_std * inv_std * T2", "share * inv_std * T2", IN_GRADIENT),
    Mutant("constants have a gradient", BACKWARD,
           "c3 = (-(share * T1)).where_positive(M, 0.0)", "c3 = -(share * T1)", IN_GRADIENT),
    Mutant("count of this replica", MESSAGE,
           "return M, *map(self._restored, pieces)", "return count, *map(self._restored, pieces)", IN_REPLICAS),
    Mutant("message of a length for one ghost batch", MESSAGE,
           "[(groups or 0) * self._site.channels] * statistics", "[self._site.channels] * statistics", IN_REPLICAS),
    Mutant("b and G exchanged", VIEW,
           "return self._op.integers(size, batch // size, *lengths), True",
           "return self._op.integers(batch // size, size, *lengths), True", IN_OURS),
    Mutant("any number of floats added in float", VIEW,
           "return inner if math.prod(n for n in lengths if isinstance(n, int)) <= _MOST_IN_FLOAT else ()",
           "return inner", IN_ACCURACY),
    Mutant("all sums in float", VIEW,
           "return self._reduced(self._reduced(term, inner).to(DOUBLE), outer)",
           "return self._reduced(self._reduced(term, inner), outer).to(DOUBLE)", IN_ACCURACY),
    Mutant("ghost batches added up, not averaged", VIEW,
           "return self.over_groups(statistics) / float(max(groups, 1))",
           "return self.over_groups(statistics)", IN_OURS),
    Mutant("open ghost batches added up, not averaged", VIEW,
           "return self.over_groups(statistics) / self._double(self._groups).at_least(1.0)",
           "return self.over_groups(statistics)", IN_OURS),
    Mutant("float16 worked on as it is", VIEW,
           "self.dtype = DOUBLE if site.dtype == DOUBLE else ir.DataType.FLOAT",
           "self.dtype = site.dtype", IN_ACCURACY),
    Mutant("an open ghost batch counts the whole batch", VIEW,
           "        if self._ghost:\n            share =", "        if False:\n            share =", IN_OURS),
    Mutant("expanded: a ghost batch counts the whole batch", SITES,
           "return others // self.groups if self.groups else others", "return others", IN_OURS),
    Mutant("correction of the options not read", SITES,
           "if ours else options.correction", "if ours else 0", IN_TRAINING),
    Mutant("our operators in the group of the options", SITES,
           "group=attributes.group() if ours else options.group", "group=options.group", IN_REPLICAS),
    Mutant("the fifth output taken for a variance", SITES,
           'if "saved_var" in site.results:', "if False:", IN_REFUSALS),
    Mutant("C of scale not compared with that of X", SITES, "if len(found) > 1:", "if False:", IN_REFUSALS),
    Mutant("dY of another shape accepted", SITES,
           "if len(dims) != len(site.dims) or any(a != b for a, b in pairs):", "if len(dims) != len(site.dims):",
           IN_GRADIENT),
    Mutant("epsilon of ONNX 1e-3", ATTRIBUTES,
           '{"epsilon": 1e-5, "momentum": 0.9}', '{"epsilon": 1e-3, "momentum": 0.9}', IN_TRAINING),
    Mutant("mode before 14 by training_mode", MODE,
           '    if node.domain == "bnpass" or opset >= 14:', "    if True:", IN_TRAINING),
    Mutant("mode from 7 to 13: always inference", MODE,
           "return any(v.name for v in node.outputs[1:])", "return False", IN_TRAINING),
    Mutant("mode before 7 reversed", MODE,
           'return not node.attributes.get_int("is_test", 0)', 'return bool(node.attributes.get_int("is_test", 0))',
           IN_TRAINING),
    Mutant("1/x taken for x", TERMS, '_COMMUTES = frozenset({"Add", "Mul"})',
           '_COMMUTES = frozenset({"Add", "Mul", "Div"})', IN_TRAINING),
    Mutant("bound of a constant from above", TERMS,
           "max(self.constant, bound)", "min(self.constant, bound)", IN_TRAINING),
    Mutant("a count of 0 is positive", TERMS,
           "if of.constant is not None and of.constant > 0:", "if of.constant is not None:", IN_TRAINING),
    Mutant("correction lost in the call of our operator", CALL,
           "        running_var_correction=site.correction,\n", "", IN_PLACES),
    Mutant("a local AllReduce meets the world", LOWER,
           'if collective == "none" or not has_group:', 'if collective == "none":', IN_REPLICAS),
)  # fmt: skip

COLLECTIVES = (
    Mutant("merged by pairwise independence", COALESCE,
           "    for node in topological(before):\n"
           "        levels[node] = max((levels[one] for one in before[node]), default=0) + depths[node]\n",
           "    above: dict[ir.Node, set[ir.Node]] = {}\n"
           "    for node in topological(before):\n"
           "        above[node] = {up for one in before[node] for up in (one, *above[one])}\n"
           "        top = max(levels.values(), default=0)\n"
           "        taken = {levels[up] for up in above[node] if depths[up]}\n"
           "        free = [n for n in range(1, top + 1) if n not in taken]\n"
           "        levels[node] = (free or [top + 1])[-1] if depths[node] else 0\n", IN_COALESCE),
    Mutant("level of the last step alone", COALESCE,
           "max((levels[one] for one in before[node]), default=0)",
           "max((depths[one] for one in before[node]), default=0)",
           IN_COALESCE),
    Mutant("a branch with collectives counts as none", COALESCE,
           "return max((self.merge_in(body) for body in bodies(node)), default=0)",
           "return 0 * sum(self.merge_in(body) for body in bodies(node))", IN_COALESCE),
    Mutant("different groups merged", COALESCE,
           "                    group_of(node),\n", "", IN_COALESCE),
    Mutant("different reductions merged", COALESCE,
           '                    text(node, "reduction", "sum"),\n', "", IN_COALESCE),
    Mutant("different types merged", COALESCE,
           "                    self._facts[node].dtype,\n", "", IN_COALESCE),
    Mutant("different afters merged", COALESCE,
           "                    after,\n", "", IN_COALESCE),
    Mutant("after lost in merging", COALESCE,
           "        inputs.append(operand(like, 1))\n", "", IN_COALESCE),
    Mutant("reduction lost in merging", COALESCE,
           'str(text(like, "reduction", "sum"))', '"sum"', IN_COALESCE),
    Mutant("after not set", ORDER, "node.replace_input_with(slot, result)", "pass", IN_ORDER),
    Mutant("after of the caller overwritten", ORDER,
           "if present is not None and (slot == 0 or present.producer() is not None):",
           "if present is not None and slot == 0:", IN_ORDER),
    Mutant("order: any step before is enough", ORDER,
           "depends[node] == place - 1", "depends[node] >= 0", IN_ORDER),
    Mutant("order: a body does not wait", ORDER, "self._chain(body, awaited)", "self._chain(body, None)", IN_ORDER),
    Mutant("order: refused when half is done", ORDER, "    _check_steps(model.graph)\n", "", IN_ORDER),
    Mutant("checker: equal ids accepted", CHECK, "number <= last_id", "number < last_id", IN_ORDER),
    Mutant("checker: any step before is enough", CHECK,
           "if depends[node] != place - 1:", "if depends[node] < 0 < place:", IN_ORDER),
    Mutant("checker: ids start anew behind a branch", CHECK,
           "last_id = _check_graph(body, last_id)", "_check_graph(body, last_id)", IN_ORDER),
    Mutant("checker: the shape of a value waits for it", CHECK,
           'elif node.domain == "" and node.op_type in ("Shape", "Size"):', "elif False:", IN_ORDER),
    Mutant("checker: branches that differ accepted", CHECK,
           "if not known[group].same_way(node):", "if False:", IN_ORDER),
    Mutant("checker: functions not looked into", CHECK,
           "holds[identifier] = any(is_collective(n) or _calls_collectives(n, model, holds) for n in nodes)",
           "holds[identifier] = any(is_collective(n) for n in nodes)", IN_ORDER),
    Mutant("uniform: random numbers", UNIFORM,
           "node.op_type in _RANDOM:", "False:", IN_ORDER),
    Mutant("uniform: what any group agreed on", UNIFORM,
           "if group_of(node) not in (self._group, WORLD):", 'if group_of(node) == "":', IN_ORDER),
    Mutant("uniform: an initializer that can be overridden", UNIFORM,
           "default = value.is_initializer() and model.ir_version < 4", "default = value.is_initializer()", IN_ORDER),
    Mutant("uniform: the first iteration alone", UNIFORM, "if after == states:", "if True:", IN_ORDER),
    Mutant("uniform: Y of a synchronized layer", UNIFORM,
           "return [local, *[statistics] * 4, True]", "return [True, *[statistics] * 4, True]", IN_ORDER),
    Mutant("uniform: what a branch returns, whoever chose it", UNIFORM,
           "return [same and all(map(self._holds, values)) for values in ends]",
           "return [all(map(self._holds, values)) for values in ends]", IN_ORDER),
    Mutant("tie: NaN changes the shape", TIE, 'zero = op("Min", count,', 'zero = op("Max", count,', IN_ORDER),
)  # fmt: skip

MUTANTS = (*DEFINITION, *OPERATORS, *LAYERS, *EXPANSION, *COLLECTIVES)
