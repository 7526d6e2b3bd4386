"""What can go wrong, and what was deliberately not done.

Exceptions carry the exit code of the command line. A refusal is not an exception: it is the
recorded reason why one node was left as it was, with an id that never changes its meaning.
"""

from dataclasses import dataclass
from enum import Enum, IntEnum


class ExitCode(IntEnum):
    """Exit codes of ``python -m bnpass``."""

    DONE = 0
    MISMATCH = 1
    USAGE = 2
    MODEL_REFUSED = 3
    IO = 4
    INTERNAL = 70


class BnpassError(Exception):
    """Base of every error that bnpass raises on purpose."""

    exit_code = ExitCode.INTERNAL


class UsageError(BnpassError):
    """The call cannot be carried out as it was made."""

    exit_code = ExitCode.USAGE


class MissingDependencyError(UsageError):
    """An optional package is needed; the message says what to install."""


class ModelError(BnpassError):
    """The file is not a model that bnpass can work on."""

    exit_code = ExitCode.MODEL_REFUSED


class UnsafeModelError(ModelError):
    """The model reaches outside its folder, or lies about its data."""


class CollectiveError(BnpassError):
    """Replicas could not add up what they have: one failed, was late, or asked for something else than the others."""


class VerificationError(BnpassError):
    """Two models that should agree do not."""

    exit_code = ExitCode.MISMATCH


class FileAccessError(BnpassError):
    """A file cannot be read."""

    exit_code = ExitCode.IO


class SaveError(BnpassError):
    """Nothing was written: the target exists, the disk is full, or it is not ours to write."""

    exit_code = ExitCode.IO


class RefusalId(Enum):
    """Stable ids of the reasons why a node was kept (1xx: folding, 2xx: expansion); the value is ``(code, slug)``."""

    TRAINING_MODE = ("BN101", "training-mode")
    NON_CONSTANT_PARAMETER = ("BN102", "non-constant-parameter")
    OVERRIDABLE_INITIALIZER = ("BN103", "overridable-initializer")
    PRODUCER_USED_ELSEWHERE = ("BN104", "producer-used-elsewhere")
    PRODUCER_IS_GRAPH_OUTPUT = ("BN105", "producer-is-graph-output")
    AXIS_NOT_PROVABLE = ("BN106", "axis-not-provable")
    PADDING_BLOCKS_SHIFT = ("BN107", "padding-blocks-shift")
    NONLINEAR_BETWEEN = ("BN108", "nonlinear-between")
    WOULD_OVERFLOW = ("BN109", "would-overflow")
    INVALID_STATISTICS = ("BN110", "invalid-statistics")
    DTYPE_WOULD_LOSE_PRECISION = ("BN111", "dtype-would-lose-precision")
    CLONE_BUDGET = ("BN112", "clone-budget")
    NO_LINEAR_NEIGHBOUR = ("BN113", "no-linear-neighbour")
    UNSUPPORTED_OP = ("BN114", "unsupported-op")
    CROSSES_SCOPE = ("BN115", "crosses-scope")
    QUANTIZED_WEIGHT = ("BN116", "quantized-weight")
    NOT_SELECTED = ("BN117", "not-selected")
    NO_GAIN = ("BN118", "no-gain")
    BRANCHES_DO_NOT_FIT = ("BN119", "branches-do-not-fit")
    WORK_WOULD_GROW = ("BN120", "multiply-adds-would-grow")
    INFERENCE_MODE = ("BN201", "inference-mode")
    UNKNOWN_SHAPE = ("BN202", "unknown-shape")
    SAVED_STATISTICS = ("BN203", "saved-statistics")
    OPSET_NOT_UPGRADABLE = ("BN204", "opset-not-upgradable")
    STATISTICS_TYPE = ("BN205", "statistics-type")
    BAD_ATTRIBUTE = ("BN206", "bad-attribute")
    ORDER_NOT_PROVABLE = ("BN207", "order-not-provable")
    BAD_GROUP = ("BN208", "bad-group")
    COLLECTIVE_CANNOT_SAY_IT = ("BN209", "collective-cannot-say-it")

    @property
    def code(self) -> str:
        """The id alone, ``BN101``."""
        return self.value[0]

    @property
    def slug(self) -> str:
        """The words alone, ``training-mode``."""
        return self.value[1]

    def __str__(self) -> str:
        return f"{self.code} {self.slug}"


@dataclass(frozen=True)
class Refusal:
    """Why something was not done.

    Attributes:
        id: The stable id.
        node: The node that is in the way: its name, or its first output if it has none.
        reason: One true sentence.
    """

    id: RefusalId
    node: str
    reason: str

    def __str__(self) -> str:
        return f"{self.id}: {self.reason}"


class RefusedError(ModelError):
    """A model is refused because one of its nodes cannot be done exactly; nothing was changed.

    Args:
        refusal: What is in the way.
    """

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(f"{refusal.id}: '{refusal.node}': {refusal.reason}")
        self.refusal = refusal
