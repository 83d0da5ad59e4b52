"""The report in a real browser: chromium without a window. Skipped where there is none."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.unit.test_report_page import headings, whole_report

WIDTHS = (380, 1280)
# Runs inside a copy of the report, in a frame of each width, and tells the page around it what it sees.
PROBE = """<script>addEventListener('load', () => {
  const root = document.documentElement, seen = e => getComputedStyle(e).display !== 'none';
  const wide = [...document.querySelectorAll('body *')].filter(
    e => e.getBoundingClientRect().right > root.clientWidth + 1 && !e.closest('.wide'));
  const size = e => { const box = e.getBoundingClientRect(); return [box.width, box.height] };
  parent.postMessage({
    frame: innerWidth, client: root.clientWidth, scroll: root.scrollWidth,
    wide: wide.map(e => e.outerHTML.slice(0, 99)),
    headings: [...document.querySelectorAll('h2,h3[id]')].map(e => e.textContent),
    requests: performance.getEntriesByType('resource').map(e => e.name).filter(name => !name.startsWith('data:')),
    pictures: [...document.querySelectorAll('svg,img')].filter(e => !e.closest('details:not([open])')).map(size),
    loaded: [...document.images].every(e => e.complete && e.naturalWidth > 0),
    side: seen(document.querySelector('nav.side')), top: seen(document.querySelector('nav.top')),
    anchors: [...document.querySelectorAll('a')].every(e => document.getElementById(e.getAttribute('href').slice(1))),
    text: [...document.querySelectorAll('.picture svg text')].map(e => e.textContent).join('|'),
  }, '*')
})</script></body>"""
AROUND = """<!doctype html><title>waiting</title><script>
const found = []; addEventListener('message', e => {
  found.push(e.data); if (found.length === %d) document.title = JSON.stringify(found) })
</script>%s"""


def chromium() -> str:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
    if found is None:
        pytest.skip("no chromium or chrome on this machine")
    return found


def browse(page: Path, profile: Path, *more: str) -> tuple[str, list[str]]:
    """Return the page's final DOM, and what it wrote on the console."""
    command = [
        *(chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *(f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=5000"),
        "--host-resolver-rules=MAP * ~NOTFOUND",  # no network
        *(*more, "--dump-dom", page.as_uri()),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return run.stdout, [line for line in run.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chromium()
    return whole_report(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="module")
def seen(page: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What a copy of the report tells of itself at each width."""
    folder = tmp_path_factory.mktemp("probe")
    text = page.read_text(encoding="utf-8")
    (folder / "copy.html").write_text(text.replace("</body>", PROBE), encoding="utf-8")
    frames = "".join(f"<iframe src='copy.html' width='{w}' height='900' style='border:0'></iframe>" for w in WIDTHS)
    (folder / "around.html").write_text(AROUND % (len(WIDTHS), frames), encoding="utf-8")
    dom, console = browse(folder / "around.html", folder / "profile", "--window-size=1400,1000")
    assert console == []
    (title,) = re.findall("<title>(.*?)</title>", dom, re.DOTALL)
    return {found["frame"]: found for found in json.loads(html.unescape(title))}


def test_the_browser_shows_what_was_written(page: Path, tmp_path: Path) -> None:
    dom, console = browse(page, tmp_path / "profile")
    assert console == []
    assert headings(dom.replace('"', "'")) == headings(page.read_text(encoding="utf-8"))
    assert dom.count("<svg") == 10
    assert dom.count("</table>") == page.read_text(encoding="utf-8").count("</table>")


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(seen: dict[int, dict[str, Any]], width: int) -> None:
    found = seen[width]
    assert found["scroll"] <= found["client"] <= width
    assert found["wide"] == []


@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_needs_nothing_from_elsewhere(seen: dict[int, dict[str, Any]], width: int) -> None:
    assert seen[width]["requests"] == []
    assert seen[width]["loaded"]
    assert seen[width]["anchors"]


@pytest.mark.parametrize("width", WIDTHS)
def test_pictures_have_a_size_and_words(seen: dict[int, dict[str, Any]], width: int) -> None:
    found = seen[width]
    assert len(found["pictures"]) == 10 + 1
    assert all(across > 200 and high > 80 for across, high in found["pictures"])
    for word in ("iteration", "accuracy %", "KnockoffNets(train)", "scaled similarity", "judged derived"):
        assert word in found["text"].split("|"), word


def test_the_contents_stand_at_the_side_or_on_top(seen: dict[int, dict[str, Any]]) -> None:
    assert [(seen[width]["side"], seen[width]["top"]) for width in WIDTHS] == [(False, True), (True, False)]
