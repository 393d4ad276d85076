"""A newcomer's path: what the README has one type, from top to bottom, in an environment that has the wheel alone.

Only where `CALIBRUNE_FULL_INSTALL` is set, which `make newcomer` does: it takes ten minutes and more, and less with
smaller numbers than the README's (`CALIBRUNE_README=smaller`, as CI has it).
"""

import json
import os
import pydoc_data.topics
import re
import shlex

import pytest
from release.conftest import FULL, REPOSITORY

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not os.environ.get(FULL), reason="make newcomer runs it")]

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def as_asked(line: str) -> str:
    if os.environ.get("CALIBRUNE_README") == "smaller":
        for option, n in (("samples", 4), ("seq-len", 64), ("limit", 2)):
            line = re.sub(rf"--{option} \d+", f"--{option} {n}", line)
    return line


def test_the_readme_from_top_to_bottom(installed):
    texts = [text for text in pydoc_data.topics.topics.values() if len(text) > 2000]
    (installed.folder / "my-texts.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    said, commands = "", 0
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.DOTALL | re.MULTILINE):
        if language == "python" or block.startswith("from "):
            said += installed.run("python", "-c", block)
        for line in block.splitlines():
            if line.startswith("calibrune "):
                commands += 1
                said += installed.run(*shlex.split(as_asked(line)))
    assert commands >= 5
    assert "load it with AutoModelForCausalLM.from_pretrained('out/smollm2')" in said
    assert re.search(r"50\.0% of 106,168,320 weights are zero", said)
