"""Ask whether anything that we depend on has a known hole (pip-audit); a database that is out of reach is no failure.

`python docs/audit.py` looks at the versions in constraints.txt, which are those that we test with.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"

AWAY = re.compile(
    r"Connection|Max retries|timed? ?out|resolve|Name or service|Temporary failure|Could not connect|ServiceError|SSL|"
    r"Proxy|HTTPError|[45]\d\d (?:Client|Server) Error"
)
"""What pip-audit says where it cannot ask."""


def main() -> int:
    """The exit status: 1 where something is known, or pip-audit is not itself."""
    asked = [sys.executable, "-m", "pip_audit", "--timeout", "10", "--progress-spinner", "off", "--format", "json"]
    try:
        done = subprocess.run(
            [*asked, "--no-deps", "--disable-pip", "-r", str(CONSTRAINTS)],
            capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return _not_audited("it did not answer in 300 s")
    try:
        packages = json.loads(done.stdout)["dependencies"]
    except (ValueError, LookupError, TypeError):
        if AWAY.search(done.stderr):
            return _not_audited("it cannot be reached from here")
        print(f"audit: {done.stderr.strip() or 'pip-audit said nothing'}", file=sys.stderr)
        return 1
    known = [(one["name"], one["version"], hole["id"]) for one in packages for hole in one.get("vulns", ())]
    for name, version, hole in known:
        print(f"audit: {name} {version} has the known hole {hole}", file=sys.stderr)
    audited = [one for one in packages if "skip_reason" not in one]
    if packages and not audited:
        return _not_audited("it knows none of our packages: a mirror of the index has no such list")
    print(f"audit: {len(audited)} of {len(packages)} packages looked at, {len(known)} holes known")
    return int(bool(known))


def _not_audited(why: str) -> int:
    print(f"audit: SKIPPED, the database of known holes was not asked: {why}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
