"""Every promise of docs/security.md names a test, and the test is there."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PAGE = (REPOSITORY / "docs" / "security.md").read_text(encoding="utf-8")


def promises() -> list[tuple[str, str]]:
    rows = re.findall(r"^\| (.+?) \| (.+?) \|$", PAGE, re.MULTILINE)
    return [row for row in rows if row[0] not in ("promise", "---")]


def test_every_promise_names_a_test_that_is_there():
    assert len(promises()) >= 25
    for promise, said in promises():
        found = re.fullmatch(r"`(tests/[\w/]+\.py)::(test_\w+)`", said)
        assert found, promise
        tree = ast.parse((REPOSITORY / found[1]).read_text(encoding="utf-8"))
        assert found[2] in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, promise


BESIDE = {
    "test_a_file_named_by_others_is_told_plain",
    "test_a_real_key_is_found_in_a_record_alone_and_in_a_sentence",
    "test_a_terminal_that_knows_few_signs_gets_what_it_can_show",
    "test_an_answer_that_is_deep_or_no_http_is_one_sentence",
    "test_an_index_that_names_its_own_shards_is_read",
    "test_half_a_character_can_be_written",
    "test_no_sequence_and_nothing_unseen_is_left",
    "test_the_key_is_sent_to_the_server_alone",
    "test_what_is_no_secret_is_left_as_it_is",
    "test_whatever_the_text_a_terminal_obeys_nothing_of_it",
}
"""Tests of this folder that say more of a promise, or how far it goes; no other is without one."""


def test_every_test_of_this_folder_is_named_by_a_promise_or_known_to_stand_beside_one():
    tests = {
        node.name
        for path in Path(__file__).parent.glob("test_*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }
    named = set(re.findall(r"test_\w+", PAGE))
    own = {name for name in globals() if name.startswith("test_")}
    assert tests - named - own == BESIDE


PIP_AUDIT = """
import sys
print({out!r})
print({err!r}, file=sys.stderr)
sys.exit({status})
"""


def audited(folder: Path, out: object, err: str, status: int) -> subprocess.CompletedProcess[str]:
    """The audit with a stand-in for pip-audit, whose database no test may ask."""
    package = folder / "pip_audit"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(PIP_AUDIT.format(out=json.dumps(out), err=err, status=status))
    script = str(REPOSITORY / "docs" / "audit.py")
    environment = {"PYTHONPATH": str(folder)}
    return subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=False)


def test_the_audit_finds_what_is_known_and_says_where_it_cannot_ask(tmp_path):
    fine = {"name": "a", "version": "1", "vulns": []}
    ill = {"name": "b", "version": "2", "vulns": [{"id": "CVE-1"}]}
    unknown = {"name": "c", "skip_reason": "not found"}
    clean = audited(tmp_path / "clean", {"dependencies": [fine, unknown]}, "", 0)
    assert (clean.returncode, clean.stdout) == (0, "audit: 1 of 2 packages looked at, 0 holes known\n")
    known = audited(tmp_path / "known", {"dependencies": [fine, ill]}, "Found 1 known vulnerability", 1)
    assert (known.returncode, known.stderr) == (1, "audit: b 2 has the known hole CVE-1\n")
    mirror = audited(tmp_path / "mirror", {"dependencies": [unknown]}, "", 0)
    away = audited(tmp_path / "away", None, "ConnectionError: Max retries exceeded", 1)
    assert (mirror.returncode, away.returncode) == (0, 0)
    assert all("SKIPPED" in done.stderr for done in (mirror, away))
    assert audited(tmp_path / "broken", None, "usage: pip-audit: error: unrecognized arguments", 2).returncode == 1
