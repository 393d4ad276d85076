"""The command line in processes that begin with everything imported, so that hundreds of them can be run and killed.

`Forge` is the client: it starts this file as a server of its own, which imports what the commands import, and forks a
child for each command. The child is a process like any other: it is killed by the kernel, or by itself at a chosen
point, has its own limits and its own standard streams, and runs `calibrune.cli.main`.
"""

import atexit
import ctypes
import importlib
import json
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

LIMITS = {"file": resource.RLIMIT_FSIZE, "memory": resource.RLIMIT_AS}
TRACEBACK = 70
"""What a child ends with whose command raised what it should not have."""

CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "os.chmod")
"""What the interpreter tells of before it changes a folder; files that are opened to be written, and syncs, beside."""


@dataclass(frozen=True)
class Ended:
    """A command that has ended."""

    status: int
    """Exit status; below 0 the signal that ended it."""
    out: str
    err: str
    seconds: float
    changes: int
    """Changes of the disk that it began, if they were counted."""

    @property
    def was_killed(self) -> bool:
        """By one of our signals, whether it took notice of it or not."""
        return self.status in (-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 130)


class Forge:
    """Starts commands; one at a time."""

    def __init__(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        source = Path(__file__).resolve().parents[2] / "src"
        self._server = subprocess.Popen(
            [sys.executable, __file__],
            env=environment | {"PYTHONPATH": str(source), "HF_HUB_OFFLINE": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._modules: str | None = None

    def run(
        self,
        arguments: Sequence[object],
        folder: Path,
        *,
        kill: tuple[float, int] | None = None,
        kill_at: tuple[int, int] | None = None,
        fail: tuple[str, int] | None = None,
        limits: dict[str, int] | None = None,
        humble: bool = False,
        seconds: float = 1800,
    ) -> Ended:
        """Run `calibrune ARGUMENTS` in a folder, whose `cache/` is its cache.

        Args:
            kill: after so many seconds, with this signal.
            kill_at: before its so manieth change of the disk (from 0), with this signal.
            fail: "allocation", or a call of `os`, and which of them fails (from 0).
            limits: "file": the size of the largest file; "memory": bytes more than it has at its start.
            humble: whether the rights of files bind it, which they do not for root.
            seconds: after which it is taken for hung.
        """
        asked = {"arguments": list(map(str, arguments)), "folder": str(folder), "kill_at": kill_at, "fail": fail}
        begun = time.monotonic()
        self.pid = pid = int(self._ask(asked | {"limits": limits or {}, "humble": humble, "modules": self._modules}))
        alarm = threading.Timer(
            *((kill[0], _send, (pid, kill[1])) if kill else (seconds, _send, (pid, signal.SIGKILL)))
        )
        alarm.daemon = True
        alarm.start()
        status = int(self._ask("wait"))
        alarm.cancel()
        took = time.monotonic() - begun
        assert kill or took < seconds, f"{arguments} hung: it was ended after {seconds} s"
        out, err, changes = ((folder / f".{name}") for name in ("stdout", "stderr", "changes"))
        said = Ended(status, out.read_text(), err.read_text(), took, int(changes.read_text() or 0))
        for file in (out, err, changes):
            file.unlink()
        return said

    def close(self) -> None:
        """End the server."""
        self._server.communicate()

    def learn(self, arguments: Sequence[object], folder: Path) -> Ended:
        """Run a command, and import beforehand what it imported for every later one."""
        self._modules = str(folder / ".modules")
        ended = self.run(arguments, folder)
        self._ask({"import": self._modules})
        Path(self._modules).unlink()
        self._modules = None
        return ended

    def _ask(self, asked: Any) -> str:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(asked) + "\n")
        self._server.stdin.flush()
        return self._server.stdout.readline()


def _send(pid: int, number: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def _serve() -> None:
    import torch

    importlib.import_module("calibrune.cli")
    torch.set_num_threads(1)
    pid = 0
    for line in sys.stdin:
        asked = json.loads(line)
        if asked == "wait":
            _, status = os.waitpid(pid, 0)
            answer = os.waitstatus_to_exitcode(status)
        elif "import" in asked:
            for name in json.loads(Path(asked["import"]).read_text()):
                with suppress(Exception):
                    importlib.import_module(name)
            answer = 0
        else:
            answer = pid = os.fork()
            if not pid:
                _be(asked)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


def _be(asked: dict[str, Any]) -> NoReturn:
    """The child's life."""
    status = TRACEBACK
    try:
        os.chdir(asked["folder"])
        os.environ["CALIBRUNE_CACHE"] = "cache"
        for number, name in ((0, os.devnull), (1, ".stdout"), (2, ".stderr")):
            file = os.open(name, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(file, number)
        changes = os.open(".changes", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if asked["humble"]:
            _give_up_capabilities()
        status = _command(asked, changes)
    except BaseException:  # noqa: BLE001  (whatever it is, the test is to see it)
        traceback.print_exc()
    finally:
        with suppress(BaseException):
            threading._shutdown()  # type: ignore[attr-defined]
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def _command(asked: dict[str, Any], changes: int) -> int:
    from calibrune.cli import main

    _watch(asked["kill_at"], changes)
    if asked["fail"]:
        _let_fail(*asked["fail"])
    for name, size in asked["limits"].items():
        if name == "memory":
            size += int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(LIMITS[name], (size, size))
    sys.argv = ["calibrune", *asked["arguments"]]
    try:
        main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    finally:
        if asked["modules"]:
            Path(asked["modules"]).write_text(json.dumps([name for name in sys.modules if name != "__main__"]))
    return 0


def _give_up_capabilities() -> None:
    """Be an ordinary user as far as files are concerned, who can still import what root can."""
    head = struct.pack("Ii", 0x20080522, 0)
    if ctypes.CDLL(None, use_errno=True).capset(head, bytes(24)):
        raise OSError(ctypes.get_errno(), "capset")


def _watch(kill_at: tuple[int, int] | None, changes: int) -> None:
    """Count the changes of the disk, and be killed before one of them."""
    counted = 0

    def change() -> None:
        nonlocal counted
        if kill_at is not None and counted == kill_at[0]:
            counted += 1
            os.kill(os.getpid(), kill_at[1])
        counted += 1
        os.pwrite(changes, str(counted).encode(), 0)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open":
            path, _, flags = arguments
            writes = isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR)
            if writes and isinstance(path, str) and not path.startswith(("/dev", "/proc", "/sys")):
                change()
        elif event in CHANGES:
            change()

    def fsync(handle: int, original: Callable[[int], None] = os.fsync) -> None:
        change()
        original(handle)

    sys.addaudithook(hook)
    os.fsync = fsync


def _let_fail(what: str, number: int) -> None:
    """Let a call of torch run out of memory, or the system refuse a call of `os`."""
    counted = 0

    def is_the_one() -> bool:
        nonlocal counted
        counted += 1
        return counted == number + 1

    if what != "allocation":
        original = getattr(os, what)

        def refused(*arguments: Any, **options: Any) -> Any:
            if is_the_one():
                raise OSError(28, "No space left on device")
            return original(*arguments, **options)

        setattr(os, what, refused)
        return

    from torch.overrides import TorchFunctionMode

    class Starved(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if is_the_one():
                if number % 3 == 0:
                    raise MemoryError
                raise RuntimeError(
                    "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you "
                    "tried to allocate 4194304 bytes. Error code 12 (Cannot allocate memory)"
                )
            return function(*args, **(kwargs or {}))

    Starved().__enter__()


if __name__ == "__main__":
    _serve()
