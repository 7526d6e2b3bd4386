"""Where TensorFlow, its documents and bnpass do not say the same: each with what bnpass does, and a test that shows it.

A test here turns red when TensorFlow changes: then the sentence has to change too.
"""

from dataclasses import dataclass
from typing import Literal

Choice = Literal["followed", "option", "right instead", "refused"]


@dataclass(frozen=True)
class Deviation:
    """One deviation.

    Attributes:
        id: Its name; ``test_<id>`` shows it.
        rows: The rows of the promise that it belongs to.
        says: What differs.
        choice: What bnpass does: as the class does ("followed"), as the class does and one can choose ("option"), what
            the class should do ("right instead"), or nothing ("refused").
    """

    id: str
    rows: tuple[str, ...]
    says: str
    choice: Choice


DEVIATIONS = (
    Deviation(
        "random_initializers",
        ("initializers",),
        "Random initializers draw from the same distribution, but not the same numbers.",
        "followed",
    ),
    Deviation(
        "sample_variance",
        ("fused", "formula"),
        "TensorFlow's fused kernel moves the moving variance towards the sample variance, all other paths towards the "
        "population variance; running_var_correction says which.",
        "option",
    ),
    Deviation(
        "no_smallest_epsilon",
        ("momentum epsilon", "fused"),
        "Earlier versions of TensorFlow raised the epsilon of the fused kernel to 1.001e-5; 2.21 takes it as it is.",
        "followed",
    ),
    Deviation(
        "float32_decay",
        ("momentum epsilon", "dtype"),
        "tf_keras rounds 1 − momentum to float32 in a float64 layer too: 1e-8 of the update.",
        "right instead",
    ),
    Deviation(
        "float_attributes",
        ("momentum epsilon", "dtype"),
        "epsilon and momentum are float attributes of the operator, as in ONNX: in a float64 layer Y is off by up to "
        "4.7e-8, an update by 9.5e-7.",
        "followed",
    ),
    Deviation(
        "float64_with_renorm",
        ("renorm", "dtype"),
        "Renorm in a float64 layer raises in tf_keras, which compares float64 with float32 numbers; Keras 3 runs it.",
        "right instead",
    ),
    Deviation(
        "float64_with_non_neg",
        ("constraints", "dtype"),
        "The constraint NonNeg of a float64 layer raises in tf_keras, for the same reason.",
        "right instead",
    ),
    Deviation(
        "v1_never_refuses_fused",
        ("fused",),
        "The V1 classes take fused=True with every input and argument and are silently not fused; their documentation "
        "says ValueError.",
        "followed",
    ),
    Deviation(
        "fused_ignores_the_mask", ("fused", "mask"), "The fused path warns about a mask and ignores it.", "followed"
    ),
    Deviation(
        "masked_out_nan_leaks",
        ("mask",),
        "In tf_keras a NaN in an element that is masked out reaches everything (0·NaN); Keras 3 never looks at it.",
        "followed",
    ),
    Deviation(
        "no_element_left", ("mask",), "A mask that leaves nothing pulls the moving statistics towards 0.", "followed"
    ),
    Deviation(
        "keras3_eta",
        ("mask",),
        "Keras 3 divides masked sums by W + 1e-7, which shows in float64, and in float32 where W is 1.",
        "followed",
    ),
    Deviation(
        "keras3_mask_is_local",
        ("mask", "synchronized"),
        "Keras 3 does not synchronize the statistics of a masked batch.",
        "followed",
    ),
    Deviation(
        "fractional_mask_synchronized",
        ("mask", "synchronized"),
        "With weights other than 0 and 1 the synchronized layers of tf_keras sum (w·x)² for w·x²: a wrong variance.",
        "right instead",
    ),
    Deviation(
        "one_pass",
        ("synchronized",),
        "Synchronized layers take E[x²] − E[x]², with or without a strategy: not what the plain layer computes, and "
        "with little left of it where the mean is large; the documentation calls it the same layer.",
        "right instead",
    ),
    Deviation(
        "empty_replica",
        ("synchronized",),
        "In tf_keras a replica without data does not update its own copy of the statistics, and .numpy() is the mean "
        "of all copies; Keras 3 updates all.",
        "right instead",
    ),
    Deviation(
        "all_replicas_empty",
        ("synchronized",),
        "Without any data Keras 3 pulls the moving statistics towards 0; tf_keras leaves them, as bnpass does.",
        "right instead",
    ),
    Deviation(
        "empty_batch",
        ("formula",),
        "A batch without samples makes the moving statistics NaN, outside a strategy; bnpass leaves them.",
        "right instead",
    ),
    Deviation(
        "ghost_groups_over_replicas",
        ("virtual batch", "synchronized"),
        "Synchronized ghost batches pool those of the same index over the replicas; replicas with different numbers of "
        "them fail in a collective.",
        "followed",
    ),
    Deviation("keras_v1_ignores_synchronized", ("synchronized",), "The V1 layer drops synchronized=True.", "followed"),
    Deviation(
        "ghost_batches_and_a_tensor",
        ("virtual batch", "training tensor"),
        "Where training is a tensor the batch is not divided; in a graph of TensorFlow 1 it is.",
        "followed",
    ),
    Deviation(
        "ghost_batches_of_inference",
        ("virtual batch",),
        "In a graph of TensorFlow 1 virtual_batch_size must divide the batch in inference too, where it changes no "
        "number.",
        "right instead",
    ),
    Deviation(
        "keras3_training_tensor",
        ("training tensor",),
        "Keras 3 cannot decide by a tensor; the model can.",
        "right instead",
    ),
    Deviation(
        "v1_not_trainable",
        ("trainable",),
        "With trainable=False the V1 classes still normalize with the batch, where the others turn to inference.",
        "followed",
    ),
    Deviation(
        "v1_not_trainable_renorm",
        ("trainable", "renorm"),
        "With trainable=False the V1 classes still move the averages of renorm when run eagerly, and not in a graph: "
        "keras_v1 stands for the first, tf1 for the second.",
        "followed",
    ),
    Deviation(
        "tf1_runs_eagerly",
        ("eager",),
        "tf.compat.v1.layers.batch_normalization runs eagerly and raises only inside a tf.function; its documentation "
        "says ValueError.",
        "followed",
    ),
    Deviation(
        "update_that_no_one_ran",
        ("UPDATE_OPS",),
        "An update that no session runs is none in TensorFlow 1; in the model it is an output all the same.",
        "followed",
    ),
    Deviation(
        "keras3_pure_float16",
        ("dtype",),
        "Under the policy float16 Keras 3 keeps gamma, beta and statistics in float16; tf_keras in float32, as bnpass.",
        "right instead",
    ),
    Deviation(
        "keras3_renorm_arguments",
        ("renorm clipping",),
        "Keras 3 keeps renorm_clipping unchecked without renorm, and where it checks it, it prints the names of its "
        "placeholders.",
        "followed",
    ),
    Deviation(
        "config_loses",
        ("name reuse", "synchronized", "fused", "virtual batch", "adjustment"),
        "get_config of tf_keras loses synchronized, fused and adjustment, and of a built layer with ghost batches it "
        "gives a shifted axis: arguments are read from the layer, not from its config.",
        "right instead",
    ),
)
