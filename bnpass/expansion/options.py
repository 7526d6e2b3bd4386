"""What a caller can choose about expansion."""

from dataclasses import dataclass
from typing import Literal, get_args

from bnpass.errors import UsageError
from bnpass.ops import GROUP_NAME

Collective = Literal["bnpass", "com.microsoft", "none"]
Statistics = Literal["exact", "keras"]


@dataclass(frozen=True)
class ExpandOptions:
    """Options of ``expand``; the command line's flags and the report show the same fields.

    Attributes:
        group: The replicas over which ``BatchNormalization`` shares its statistics; ``""`` for none. Operators of
            bnpass carry their own group.
        correction: ddof of the running variance of ``BatchNormalization``: 0 population, 1 sample.
        collective: Which AllReduce is written. ``com.microsoft`` is ONNX Runtime's own: it knows no groups but the
            world, sums alone, and has no input that could carry the order. ``none``: every group is one replica, so
            nothing is exchanged.
        stats: ``exact``, or ``keras``: its three one-pass sums in the type of the parameters, each exchanged alone,
            with their rounding and their cancellation.
        as_functions: Write ``bnpass::SyncBatchNormalization`` for each ``BatchNormalization``, and leave the
            operators of bnpass as they are; all get a body.
        coalesce: Let collectives that do not wait for each other share one message.
        uniform: Names of inputs that are the same on all replicas, so that they may decide about collectives.
        check: Random draws of the whole-model check; 0 leaves the check of each site alone.
        seed: Seed of those draws.

    Raises:
        UsageError: A value is out of range, or two contradict each other.
    """

    group: str = ""
    correction: int = 0
    collective: Collective = "bnpass"
    stats: Statistics = "exact"
    as_functions: bool = False
    coalesce: bool = True
    uniform: tuple[str, ...] = ()
    check: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.group and not GROUP_NAME.fullmatch(self.group):
            raise UsageError(f"'{self.group}' is no name of a group: 1 to 64 letters, digits, '_', '.' and '-'")
        if self.correction not in (0, 1):
            raise UsageError(f"correction is {self.correction}, not 0 (population) or 1 (sample)")
        for name, value, known in (
            ("collective", self.collective, get_args(Collective)),
            ("stats", self.stats, get_args(Statistics)),
        ):
            if value not in known:
                raise UsageError(f"{name} is '{value}', not one of {', '.join(known)}")
        if self.check < 0:
            raise UsageError(f"check is {self.check}, less than 0")
        if self.as_functions and self.stats != "exact":
            raise UsageError("the operators of bnpass have exact statistics: stats goes without as_functions")
        if self.as_functions and self.collective == "com.microsoft":
            raise UsageError("the operators of bnpass use their own AllReduce: collective goes without as_functions")
