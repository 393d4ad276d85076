"""One measurement, one line of JSON, with all that is needed to take it again."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def save(name: str, row: dict[str, Any]) -> str:
    """Add a row to today's file of this measurement; returns it as it was written."""
    now = datetime.now(UTC)
    whole = {
        "date": now.isoformat(timespec="seconds"),
        "command": f"python -m benchmarks {name}",
        "commit": _commit(),
        "machine": _machine(),
        "versions": {package: version(package) for package in ("torch", "transformers")}
        | {"python": platform.python_version()},
    } | row
    line = json.dumps(whole, ensure_ascii=False)
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{now:%Y-%m-%d}-{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(line + "\n")
    return line


def read(name: str) -> list[dict[str, Any]]:
    """All rows of a measurement, of every day, the oldest first."""
    files = sorted(RESULTS.glob(f"????-??-??-{name}.jsonl"))
    return [json.loads(line) for file in files for line in file.read_text(encoding="utf-8").splitlines()]


def peak_bytes(pid: int | str = "self") -> int:
    """The most memory that was ever resident of a process; what `getrusage` says a child inherits from its parent."""
    return _bytes("VmHWM:", pid)


def resident_bytes() -> int:
    """What is resident of this process now."""
    return _bytes("VmRSS:", "self")


def _bytes(field: str, pid: int | str) -> int:
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith(field))


def _commit() -> str:
    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, check=True, cwd=RESULTS.parent).stdout

    # the rows that are being added are no change to what is measured
    changed = [line for line in git("status", "--porcelain").splitlines() if "benchmarks/results/" not in line]
    return git("rev-parse", "--short=12", "HEAD").strip() + ("-dirty" if changed else "")


def _machine() -> dict[str, Any]:
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    accelerator = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {"processor": model, "threads": torch.get_num_threads(), "accelerator": accelerator}
