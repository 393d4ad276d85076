"""Runs on a Ray cluster: workers with a model each, a run at a time; one that dies is replaced, and its run done again.

What a run gives is what it gives in this process: the same code, as many threads. The folders of models, data and cache
must be the same on all nodes.
"""

import importlib.util
import logging
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt

from calibrune.errors import CalibruneError, ConfigError, StorageError
from calibrune.settings import settings
from calibrune.study.spec import Model, RunSpec
from calibrune.study.workbench import Outcome, Workbench, failed

log = logging.getLogger(__name__)

HANDED_ON = ("CALIBRUNE_CACHE", "HF_HOME", "HF_TOKEN", "HF_HUB_OFFLINE")
"""Variables of the environment that workers get from this process."""


@settings
class Resources:
    """What a run is given, and how often it is tried."""

    cpus: Annotated[float, Gt(0)] = 1.0
    gpus: Annotated[float, Ge(0)] = 0.0
    memory_gb: Annotated[float, Gt(0)] | None = None
    """None: not reckoned with."""
    retries: Annotated[int, Ge(0)] = 3
    """How often a run is done again whose worker died; then it is a failed row."""


class Bench:
    """A worker: a process with a `Workbench`."""

    def __init__(self, asked: tuple[Model, Path | None, str, bool], threads: int, folder: str) -> None:
        self._asked = asked
        self._bench: Workbench | None = None
        torch.set_num_threads(threads)
        if os.path.isdir(folder):
            os.chdir(folder)  # the model may be named from there

    def process(self) -> int:
        """Its number."""
        return os.getpid()

    def pin(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        """As `Workbench.pin`."""
        return self._ready().pin(specs)

    def run(self, spec: RunSpec) -> Outcome:
        """As `Workbench.run`."""
        return self._ready().run(spec)

    def _ready(self) -> Workbench:
        self._bench = self._bench or Workbench(*self._asked)
        return self._bench


class OnRay:
    """Runs on as many workers as the cluster has room for.

    Args:
        address: "local" starts Ray on this machine; "auto" finds the cluster that runs here; else a cluster's address.
        data, device, trust_remote_code: as for `Workbench`.
        resources: of each run.

    Raises:
        ConfigError: Ray is not installed, or there is no such cluster.
    """

    def __init__(
        self,
        address: str,
        data: Path | None = None,
        device: str = "auto",
        resources: Resources | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        if importlib.util.find_spec("ray") is None:
            raise ConfigError("--ray needs Ray, which is not installed: pip install 'calibrune[ray]'")
        import ray

        self._ray = ray
        self._how = None if data is None else data.resolve(), device, trust_remote_code
        self._resources = resources or Resources()
        self._model: Model | None = None
        self.workers: dict[Any, int] = {}
        """Handle -> process number, of the workers that are alive as far as is known."""
        try:
            environment = {name: os.environ[name] for name in HANDED_ON if name in os.environ}
            ray.init(
                None if address == "local" else address,
                runtime_env={"env_vars": environment},
                ignore_reinit_error=True,
                log_to_driver=False,
                configure_logging=False,
            )
        except (ConnectionError, ValueError) as error:
            raise ConfigError(
                f"there is no Ray cluster at {address!r} ({str(error).splitlines()[0]}); start one, or use --ray local"
            ) from None

    def pin(self, specs: Sequence[RunSpec]) -> list[RunSpec]:
        for worker in list(self.workers):
            self._dismiss(worker)
        self._model = specs[0].model
        try:
            pinned: list[RunSpec] = self._ray.get(self._worker().pin.remote(list(specs)))
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause if isinstance(error.cause, CalibruneError) else error from None
        return pinned

    def outcomes(self, specs: Sequence[RunSpec]) -> Iterator[tuple[RunSpec, Outcome]]:
        waiting, deaths = list(reversed(specs)), Counter[RunSpec]()
        busy: dict[Any, tuple[RunSpec, Any]] = {}
        idle = list(self.workers)
        while waiting or busy:
            while waiting and len(busy) < self._places:
                worker = idle.pop() if idle else self._worker()
                spec = waiting.pop()
                busy[worker.run.remote(spec)] = spec, worker
            (answer,), _ = self._ray.wait(list(busy), num_returns=1)
            spec, worker = busy.pop(answer)
            try:
                outcome = self._ray.get(answer)
                idle.append(worker)
            except self._ray.exceptions.RayError as error:
                if isinstance(cause := getattr(error, "cause", None), StorageError):
                    raise cause from None
                self._dismiss(worker)
                deaths[spec] += 1
                if deaths[spec] <= self._resources.retries:
                    log.warning("a worker died, and its run is done again: %s", spec)
                    waiting.append(spec)
                    continue
                outcome = failed(spec, f"its worker died {deaths[spec]} times: {str(error).splitlines()[0]}")
            yield spec, outcome

    def close(self) -> None:
        """Let the cluster go."""
        self._ray.shutdown()
        self.workers.clear()

    @property
    def _places(self) -> int:
        """Runs that the cluster has room for at once; at least one, which may have to wait for it."""
        there, wanted = self._ray.cluster_resources(), self._resources
        room = [there.get("CPU", 0) / wanted.cpus]
        room += [there.get("GPU", 0) / wanted.gpus] if wanted.gpus else []
        room += [there.get("memory", 0) / (wanted.memory_gb * 1e9)] if wanted.memory_gb else []
        return max(1, int(min(room)))

    def _worker(self) -> Any:
        memory = self._resources.memory_gb
        kind = self._ray.remote(
            num_cpus=self._resources.cpus,
            num_gpus=self._resources.gpus,
            memory=None if memory is None else int(memory * 1e9),
        )(Bench)
        worker = kind.remote((self._model, *self._how), torch.get_num_threads(), os.getcwd())
        self.workers[worker] = self._ray.get(worker.process.remote())
        return worker

    def _dismiss(self, worker: Any) -> None:
        self.workers.pop(worker, None)
        self._ray.kill(worker)
