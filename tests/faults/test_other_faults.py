"""No room, no right to write, no memory: one sentence, nothing false, and afterwards the same command works."""

import os
import random
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from faults.forked import Forge
from faults.jobs import JOBS, check_nothing_false, check_same

pytestmark = pytest.mark.slow

EACH = max(1, int(os.environ.get("CALIBRUNE_KILLS", "210")) // 40)
ENDED_BY_THE_LIBRARY = -signal.SIGABRT
"""What Rust does where an allocation fails."""
ROUNDING = 1e-6
"""A library of the processor's that is refused memory for its own kernels takes others, which round differently."""


@pytest.fixture(params=JOBS, ids=lambda job: job.name)
def job(request):
    return request.param


def told(ended, *, crash=False) -> bool:
    """Whether a command went wrong, and said so in one sentence."""
    assert "Traceback" not in ended.err, ended.err
    if ended.status == 0 or (crash and ended.status in (ENDED_BY_THE_LIBRARY, -signal.SIGSEGV)):
        return False
    assert ended.status in (1, 2), (ended.status, ended.err)
    assert ended.err.count("calibrune: error: ") == 1 or "failed: " in ended.out, ended.err
    return True


def again(job, forge, folder, expected, rounding=0.0):
    """The same command, undisturbed; of a study, with the runs that failed."""
    ended = forge.run(job.arguments, folder)
    if job.name == "study run" and ended.status == 1:
        assert "--retry-failed" in ended.out
        ended = forge.run((*job.arguments, "--retry-failed"), folder)
    assert ended.status == 0 or "already holds" in ended.err, ended.err
    check_same(job, folder, expected, rounding)


def suffer(job, place, forge, undisturbed, record_property, faults, crash=False, rounding=0.0, **always):
    """Run the job once with each fault, and then without."""
    expected, _, _, names = undisturbed(job)
    met = 0
    for fault in faults:
        folder = place / f"suffering-{job.name.replace(' ', '')}"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        met += told(forge.run(job.arguments, folder, **fault, **always), crash=crash)
        check_nothing_false(job, folder, expected, rounding)
        again(job, forge, folder, expected, rounding)
        assert {path.name for path in folder.iterdir()} <= {*names, "cache"}
    record_property("faults", met)
    return met


def test_a_full_disk(job, place, forge, undisturbed, record_property):
    chance = random.Random(f"full disk, {job.name}")
    changes = undisturbed(job)[2]
    sizes = [{"limits": {"file": chance.randrange(2500, 25_000)}} for _ in range(EACH)]
    calls = [{"fail": (call, chance.randrange(1 + changes // 4))} for call in ("fsync", "rename", "mkdir", "write")]
    assert suffer(job, place, forge, undisturbed, record_property, sizes + calls) > 0


def test_memory_that_is_refused(job, place, forge, undisturbed, record_property):
    chance = random.Random(f"memory, {job.name}")
    faults = [{"fail": ("allocation", int(10 ** chance.uniform(0, 3.3)))} for _ in range(EACH)]
    faults += [{"limits": {"memory": chance.randrange(1 << 20, 48 << 20)}} for _ in range(EACH // 2)]
    assert suffer(job, place, forge, undisturbed, record_property, faults, crash=True, rounding=ROUNDING) > 0


def test_no_right_to_write(job, place, forge, undisturbed, record_property):
    expected = undisturbed(job)[0]
    for number, closed in enumerate((".", "cache")):
        folder = place / f"closed-{number}-{job.name.replace(' ', '')}"
        (folder / "cache").mkdir(parents=True)
        for name in (".stdout", ".stderr", ".changes"):
            (folder / name).touch()
        (folder / closed).chmod(0o555)
        ended = forge.run(job.arguments, folder, humble=True)
        (folder / closed).chmod(0o755)
        assert told(ended) or closed == "cache", "written where nothing may be"
        check_nothing_false(job, folder, expected)
        again(job, forge, folder, expected)
        record_property("faults", int(ended.status != 0))
        shutil.rmtree(folder)


def test_of_two_at_once_one_works_and_the_other_is_told(job, place, forge, undisturbed, record_property):
    if job.makes != "out":
        pytest.skip("it makes no folder; of two files of one name the later counts")
    expected, _, changes, _ = undisturbed(job)
    other = Forge()
    try:
        folder = place / f"two-{job.name.replace(' ', '')}"
        folder.mkdir()
        ended = []
        stopped = {"kill_at": (changes // 2, signal.SIGSTOP)}
        first = threading.Thread(target=lambda: ended.append(forge.run(job.arguments, folder, **stopped)))
        first.start()
        while other_state(forge) != "T":
            assert first.is_alive()
            time.sleep(0.01)
        (place / "beside").mkdir(exist_ok=True)
        second = other.run(
            [part.replace("out", f"../{folder.name}/out") if part == "out" else part for part in job.arguments],
            place / "beside",
        )
        os.kill(forge.pid, signal.SIGCONT)
        first.join()
    finally:
        other.close()
    assert told(second)
    assert "another" in second.err
    assert ended[0].status == 0, ended[0].err
    check_same(job, folder, expected)
    record_property("faults", 1)


def other_state(forge):
    """Of the process that runs there: "T" if it is stopped."""
    pid = getattr(forge, "pid", None)
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return None
