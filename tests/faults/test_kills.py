"""Killed at any point and started again, a command gives what it gives undisturbed; what is half is not called whole.

`CALIBRUNE_KILLS` says how many kills there are to be (at least one a command); `make test` prints how many there were.
"""

import os
import random
import shutil
import signal
from collections import Counter

import pytest
from faults.jobs import JOBS, check_nothing_false, differences, result

from calibrune.errors import ModelError
from calibrune.lm.loading import locate
from calibrune.lm.record import MANIFEST, MASKED

KILLS = int(os.environ.get("CALIBRUNE_KILLS", "210"))
SHARES = {"prune": 12, "prune --stream": 10, "calibrate selfgen": 8, "evaluate": 6, "mask apply": 4, "study run": 6}
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)


def share(name):
    return max(1, round(KILLS * SHARES[name] / sum(SHARES.values())))


@pytest.mark.slow
@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_killed_at_any_point_and_started_again_it_gives_the_same(job, place, forge, undisturbed, record_property):
    expected, seconds, changes, names = undisturbed(job)
    chance = random.Random(f"kills of {job.name}")
    wanted, killed, signals, trial = share(job.name), 0, Counter(), 0
    while killed < wanted:
        trial += 1
        assert trial < 3 * wanted + 20, f"of {trial} runs only {killed} could be killed"
        folder = place / f"{job.name.replace(' ', '')}-{trial}"
        folder.mkdir()
        number = SIGNALS[trial % 3]
        # half of them before a change of the disk, half at any time; some again, in the middle of going on
        for again in range(1 + (trial % 4 == 0)):
            if (trial + again) % 2:
                when = {"kill_at": (chance.randrange(changes), number)}
            else:
                when = {"kill": (chance.uniform(0, seconds), number)}
            ended = forge.run(job.arguments, folder, **when)
            assert "Traceback" not in ended.err, ended.err
            # one that had made its folder before it was killed is told so
            assert ended.status == 0 or ended.was_killed or "already holds" in ended.err, (ended.status, ended.err)
            killed += ended.was_killed
            signals.update([ended.status] if ended.was_killed else [])
            check_nothing_false(job, folder, expected)
        for left in folder.glob(job.works_in or "nothing"):
            if not any((left / whole).is_file() for whole in (MANIFEST, MASKED)):  # all but its name is there
                with pytest.raises(ModelError):
                    locate(str(left), None)
        last = forge.run(job.arguments, folder)
        if last.status == 2:  # it had been done before it was killed, or is there from the run before
            assert "already holds" in last.err
        else:
            assert last.status == 0, last.err
        assert not differences(result(folder / job.makes), expected)
        assert sorted(path.name for path in folder.iterdir()) == names, "something was left behind"
        shutil.rmtree(folder)
    record_property("kills", killed)
    assert wanted < 20 or {-signal.SIGKILL, 128 + signal.SIGTERM, 130} <= signals.keys()
