"""What an affine costs at run time, in passes over the elements of a value, by target.

ONNX Runtime writes a batch normalization, and a Relu behind it, as one blocked convolution on the CPU. Mul, Add, Max
and Min take a pass each there, and take the layout of blocks apart (``tools/bench/lowering.py`` has the figures).
Elsewhere a batch normalization is a multiplication and an addition. An activation alone costs nothing: it is part of
what stands before it. The figures for CUDA count kernels, each of which reads and writes a value once; they were not
measured.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from bnpass.folding.options import Runtime
from bnpass.folding.recognize import Site
from bnpass.folding.rules.carrier import Rewrite
from bnpass.graph.nodes import is_standard
from bnpass.semantics.affine import Affine


@dataclass(frozen=True)
class Costs:
    """Passes over the elements.

    Attributes:
        batch_norm: Of a BatchNormalization; Mul, Add, Max and Min take one each.
        bias: Of an Add behind a MatMul, which runtimes make one of.
    """

    batch_norm: float
    bias: float

    def of_sites(self, sites: Iterable[Site]) -> float:
        """Return what affines cost as they are spelled."""
        return sum(self._of_site(site) for site in sites)

    def _of_site(self, site: Site) -> float:
        producer = site.data.producer()
        if site.node.op_type == "Add" and producer is not None and is_standard(producer, "MatMul"):
            return self.bias
        return self.batch_norm if site.is_batch_norm else 1.0

    def of_affine(self, affine: Affine, *, as_batch_norm: bool) -> float:
        """Return what an affine costs in Mul and Add, or, if it is not nothing, as a batch normalization."""
        count = int(affine.has_scale) + int(affine.has_shift)
        return self.batch_norm if as_batch_norm and count else count

    @staticmethod
    def of_rewrite(rewrite: Rewrite | None) -> float:
        """Return what a carrier costs that has become a chain of ops."""
        ops = rewrite.ops if rewrite is not None else None
        return sum(op_type in ("Max", "Min") for op_type, _ in ops or ())


COSTS: Mapping[Runtime, Costs] = {
    "onnxruntime-cpu": Costs(batch_norm=1.0, bias=0.5),
    "onnxruntime-cuda": Costs(batch_norm=1.0, bias=0.5),
    "portable": Costs(batch_norm=2.0, bias=1.0),
}
