"""Who does the runs of a study: this process, or a cluster (`on_ray`)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from calibrune.study.spec import Model, RunSpec
from calibrune.study.workbench import Outcome, Workbench


@runtime_checkable
class Executor(Protocol):
    """Does runs; the outcomes are the same whoever does them."""

    def pin(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """The runs of one model, with all that their keys need; see `Workbench.pin`."""

    def outcomes(self, specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, Outcome]]:
        """Do the runs of one model; each is yielded when it is done, in any order."""


class InProcess:
    """One run after another, in this process, in the order of the plan."""

    def __init__(self, data: Path | None = None, device: str = "auto", trust_remote_code: bool = False) -> None:
        self._how = data, device, trust_remote_code
        self._bench: tuple[Model, Workbench] | None = None

    def pin(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        model = specs[0].model
        self._bench = None  # the model before makes room first
        self._bench = model, Workbench(model, *self._how)
        return self._bench[1].pin(specs)

    def outcomes(self, specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, Outcome]]:
        for spec in specs:
            if self._bench is None or self._bench[0] != spec.model:
                self.pin([spec])
            assert self._bench is not None
            yield spec, self._bench[1].run(spec)
