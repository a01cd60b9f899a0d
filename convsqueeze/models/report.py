"""What comparing a whole model before and after showed."""

from dataclasses import asdict, dataclass
from typing import Any

from convsqueeze.errors import VerificationError
from convsqueeze.models.layerwise import FirstDifference
from convsqueeze.verify import Worst


@dataclass(frozen=True)
class WholeReport:
    """What two models gave on the same inputs.

    `worst` is the output nearest to its bound with the stored weights, `before_rounding` the same
    with the merged weights in float64, where those are known. `largest` is the largest output.
    `dtype` is the coarsest in which the models computed. `first` is the first module whose output
    differs, where one was found.
    """

    inputs: str
    runs: int
    seed: int
    dtype: str
    worst: Worst
    largest: float
    problem: str | None = None
    first: FirstDifference | None = None
    notes: tuple[str, ...] = ()
    before_rounding: Worst | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None

    @property
    def failures(self) -> tuple[str, ...]:
        if self.problem is None:
            return ()
        told = f" {self.first.describe()}" if self.first is not None else ""
        return (f"the whole model {self.problem}.{told}",)

    def raise_if_failed(self) -> None:
        """Raises VerificationError with what differs and where it begins."""
        if self.problem is not None:
            raise VerificationError(self.failures)

    def describe(self) -> str:
        """In a sentence, of models that agree."""
        worst = self.before_rounding or self.worst
        how = "" if self.before_rounding is None else ", merged weights before rounding"
        inputs = "1 random input" if self.runs == 1 else f"{self.runs} random inputs"
        return (
            f"same output before and after on {inputs} of {self.inputs} (largest error "
            f"{self.worst.error:.2e} of {self.largest:.3g}; in {self.dtype}{how}: "
            f"{worst.error:.2e} / {worst.bound:.2e}, seed {self.seed})"
        )

    def to_data(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "ok": self.ok, "notes": list(self.notes)}
