"""A page as a real browser shows it, and what the browser asked of the network for it."""

import re
import shutil
import subprocess
from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
"""None where no browser is installed: tests are skipped then."""

# the browser's own calls home are no part of the page
_OWN = re.compile(r"^\w+://[\w.-]*(google|googleapis|gvt1)\.com[/:]")


def shown(page: Path, scratch: Path) -> tuple[str, list[str]]:
    """The page as the browser holds it after loading, and the addresses elsewhere that it asked for."""
    log = scratch / "net.json"
    html = _browse(page, scratch, "--dump-dom", f"--log-net-log={log}", "--disable-background-networking")
    asked = set(re.findall(r'"url":"((?!file:|data:|chrome|about:)[^"]+)"', log.read_text()))
    return html, sorted(url for url in asked if not _OWN.match(url))


def drawn(page: Path, scratch: Path) -> Path:
    """A picture of the page."""
    picture = scratch / "page.png"
    _browse(page, scratch, f"--screenshot={picture}", "--window-size=1000,3000")
    return picture


def _browse(page: Path, scratch: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    still = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command = [CHROMIUM, *still, f"--user-data-dir={scratch / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=True).stdout
