"""The 45 numbered conformance cases of the semantics of batch normalization: what each says, and where it is tested.

A place is a row of the catalogue ("row: mask"), a case of ``numbered_cases.py`` ("case: 07"), a deviation
("deviation: one_pass") or a test ("path::function", below tests/). ``test_numbered.py`` looks for each of them.
"""

from dataclasses import dataclass

HERE = "conformance/layers"
GRAPHS = "conformance/test_numbered_graph_cases.py"


@dataclass(frozen=True)
class Numbered:
    """One numbered case.

    Attributes:
        says: What it is about.
        where: Where it is tested.
    """

    says: str
    where: tuple[str, ...]


NUMBERED = {
    1: Numbered("ranks 2 to 5, every axis, lists of axes", ("row: axis", "row: axis list", "row: rank", "case: 01")),
    2: Numbered("scale and center off", ("row: center scale",)),
    3: Numbered("sample and population variance, N = 2", ("case: 03", "deviation: sample_variance")),
    4: Numbered("momentum 0, 0.5, 1; several steps", ("row: momentum epsilon", "row: pairs")),
    5: Numbered(
        "momentum conventions",
        (
            f"{HERE}/test_numbered_forward.py::test_case_05_momentum_conventions",
            f"{HERE}/test_numbered_forward.py::test_case_05_a_cumulative_average",
        ),
    ),
    6: Numbered("epsilon 0, 1e-7, 1e-3, 1", ("row: momentum epsilon", "deviation: no_smallest_epsilon")),
    7: Numbered(
        "a large mean, a constant channel, one pass below 0",
        ("row: formula", "case: 07", f"{HERE}/test_numbered_forward.py::test_case_07_a_large_mean_keeps_its_variance"),
    ),
    8: Numbered(
        "16 bits: values of 1000, a variance above 65504", ("row: dtype", "case: 08", "deviation: keras3_pure_float16")
    ),
    9: Numbered(
        "mixed types of BatchNormalization 15",
        (f"{HERE}/test_numbered_forward.py::test_case_09_types_of_parameters_and_statistics",),
    ),
    10: Numbered(
        "one element, one sample, no sample, no channel, any N",
        (
            "case: 10",
            "row: formula",
            "row: rank",
            "deviation: empty_batch",
            f"{HERE}/test_numbered_forward.py::test_case_10_one_model_for_every_batch",
        ),
    ),
    11: Numbered("NaN and infinity", ("case: 11", "deviation: masked_out_nan_leaks")),
    12: Numbered("training as a tensor", ("row: training tensor", "deviation: ghost_batches_and_a_tensor")),
    13: Numbered("trainable=False", ("row: trainable", "deviation: v1_not_trainable")),
    14: Numbered(
        "one layer twice in a step",
        (
            f"{HERE}/test_numbered_state.py::test_case_14_a_shared_layer",
            f"{HERE}/test_numbered_state.py::test_case_14_reuse",
        ),
    ),
    15: Numbered(
        "one initializer for several parameters",
        (f"{HERE}/test_numbered_forward.py::test_case_15_one_initializer_for_all_parameters",),
    ),
    16: Numbered(
        "Y does not depend on momentum and old statistics",
        (f"{HERE}/test_numbered_forward.py::test_case_16_Y_knows_no_moving_statistics",),
    ),
    17: Numbered("renorm exactly", ("row: renorm", "row: renorm clipping", "case: 17")),
    18: Numbered("renorm and adjustment", ("case: 18",)),
    19: Numbered("renorm and ghost batches", ("case: 19",)),
    20: Numbered(
        "ghost batches",
        (
            "row: virtual batch",
            "case: 20",
            "deviation: ghost_batches_of_inference",
            f"{HERE}/test_numbered_state.py::test_case_20_groups_are_strided",
            f"{HERE}/test_layers.py::test_what_the_class_refuses_is_refused",
        ),
    ),
    21: Numbered(
        "the way through a config", ("deviation: config_loses", f"{HERE}/test_layers.py::test_a_spec_survives_json")
    ),
    22: Numbered("masks", ("row: mask", "row: synchronized", "deviation: no_element_left")),
    23: Numbered(
        "an equal split is one large batch",
        ("row: synchronized", f"{HERE}/test_numbered_sync.py::test_case_23_a_split_batch_is_the_batch"),
    ),
    24: Numbered(
        "unequal shares",
        ("row: synchronized", "case: 24", f"{HERE}/test_numbered_sync.py::test_case_24_unequal_shares_are_the_batch"),
    ),
    25: Numbered("an empty replica, float16", ("row: synchronized", "case: 25")),
    26: Numbered("all replicas empty, one element", ("case: 26", "deviation: all_replicas_empty")),
    27: Numbered("groups", (f"{HERE}/test_numbered_sync.py::test_case_27_groups_keep_to_themselves",)),
    28: Numbered(
        "parallel branches", (f"{HERE}/test_numbered_sync.py::test_case_28_parallel_branches_have_one_order",)
    ),
    29: Numbered(
        "one replica",
        (
            "deviation: one_pass",
            f"{HERE}/test_numbered_sync.py::test_case_29_a_world_of_one_changes_no_bit_of_the_body",
        ),
    ),
    30: Numbered("channels last, 65 channels", ("case: 30",)),
    31: Numbered("more than 2^24 elements", (f"{HERE}/test_numbered_sync.py::test_case_31_a_count_above_2_to_the_24",)),
    32: Numbered(
        "gradients that not every rank needs",
        (f"{HERE}/test_numbered_sync.py::test_case_32_collectives_of_gradients_that_no_one_reads",),
    ),
    33: Numbered(
        "the arithmetic of Keras",
        ("case: 33", f"{HERE}/test_numbered_sync.py::test_case_33_keras_statistics_bit_for_bit"),
    ),
    34: Numbered(
        "the gradient divides by the global count",
        (f"{HERE}/test_numbered_sync.py::test_case_34_the_count_of_the_gradient_is_global",),
    ),
    35: Numbered("expansion of every version of the node", (f"{GRAPHS}::test_case_35_every_version_expands",)),
    36: Numbered("folding", (f"{GRAPHS}::test_case_36_folding",)),
    37: Numbered("chains of Mul and Add", (f"{GRAPHS}::test_case_37_chains_are_recognized",)),
    38: Numbered("five outputs", (f"{GRAPHS}::test_case_38_five_outputs",)),
    39: Numbered("the gradient against finite differences", (f"{GRAPHS}::test_case_39_finite_differences",)),
    40: Numbered("AllReduce of ONNX Runtime", (f"{GRAPHS}::test_case_40_the_collective_of_onnx_runtime",)),
    41: Numbered(
        "what the peers test",
        ("case: 41", f"{HERE}/test_numbered_sync.py::test_case_41_statistics_of_a_mask_are_those_of_what_it_leaves"),
    ),
    42: Numbered(
        "renorm without active clipping",
        ("case: 42", f"{HERE}/test_numbered_state.py::test_case_42_renorm_that_clips_nothing"),
    ),
    43: Numbered(
        "renorm in inference", ("case: 43", f"{HERE}/test_numbered_state.py::test_case_43_the_denominator_of_inference")
    ),
    44: Numbered(
        "fractional masks, the denominator of Keras 3",
        (
            "case: 44",
            "deviation: keras3_eta",
            "deviation: fractional_mask_synchronized",
            f"{HERE}/test_numbered_state.py::test_case_44_gradients_of_masks_by_differences",
        ),
    ),
    45: Numbered("masked and synchronized, one masked, one empty", ("case: 45",)),
}
