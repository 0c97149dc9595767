"""A real web app and a real worker on a private folder, and a Chromium that can reach nothing else."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, expect, sync_playwright

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_MS = 30_000
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
expect.set_options(timeout=TIMEOUT_MS)


def free_port() -> int:
    """A port that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def chromium() -> str:
    """The program of the browser."""
    names = (os.environ.get("CHROMIUM", ""), "/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")
    return next((n for n in names if n and Path(n).exists()), "chromium")


def environment(home: Path, port: int) -> dict[str, str]:
    """What the processes under test see."""
    return dict(os.environ, ISOQUANT_HOME=str(home), PORT=str(port), OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")


class Stack:
    """``app.py`` and, where asked for, ``cli.py worker``, on one folder."""

    def __init__(self, home: Path) -> None:
        self.home, self.port = home, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.web: subprocess.Popen[bytes] | None = None
        self.worker: subprocess.Popen[bytes] | None = None

    def _start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        with (self.home / f"{name}.log").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, *words], cwd=ROOT, env=environment(self.home, self.port), stdout=log, stderr=log
            )

    def start_web(self) -> None:
        """Start the web app and wait until it answers."""
        self.web = self._start("web", "app.py")
        for _ in range(600):
            with contextlib.suppress(OSError):
                if urllib.request.urlopen(f"{self.url}/_stcore/health", timeout=2).status == 200:
                    return
            if self.web.poll() is not None:
                break
            time.sleep(0.1)
        raise AssertionError((self.home / "web.log").read_text())

    def start_worker(self) -> None:
        """Start the worker; it announces itself in the database."""
        self.worker = self._start("worker", "cli.py", "worker")

    def kill_worker(self) -> None:
        """What a power cut does to a worker."""
        assert self.worker is not None
        self.worker.send_signal(signal.SIGKILL)
        self.worker.wait(10)

    def stop(self) -> None:
        """End what was started."""
        for process in (self.worker, self.web):
            if process is not None and process.poll() is None:
                process.terminate()
                try:
                    process.wait(15)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait(10)


@contextlib.contextmanager
def stack(home: Path, *, worker: bool = True) -> Iterator[Stack]:
    """A running stack on ``home``."""
    running = Stack(home)
    try:
        running.start_web()
        if worker:
            running.start_worker()
        yield running
    finally:
        running.stop()


@contextlib.contextmanager
def chrome() -> Iterator[Browser]:
    """A browser without a network."""
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=chromium(), args=FLAGS)
        yield found
        found.close()


def context(browser: Browser, url: str, **options: Any) -> Any:
    """A browser profile; pages opened in it share the cache."""
    size = {"width": 1280, "height": 720}
    made = browser.new_context(base_url=url, reduced_motion="reduce", **({"viewport": size} | options))
    made.set_default_timeout(TIMEOUT_MS)
    return made


@contextlib.contextmanager
def returning_visitor(url: str, profile: Path) -> Iterator[Any]:
    """A browser with a profile on disk: like anybody's, it keeps files and compiled scripts from visit to visit."""
    with sync_playwright() as playwright:
        size: Any = {"width": 1280, "height": 720}
        found = playwright.chromium.launch_persistent_context(
            profile, executable_path=chromium(), args=FLAGS, base_url=url, reduced_motion="reduce", viewport=size
        )
        found.set_default_timeout(TIMEOUT_MS)
        yield found
        found.close()


def ready(page: Page) -> Page:
    """Wait until the script has run; no exception may be on the page."""
    expect(page.get_by_test_id("stApp")).to_have_attribute("data-test-script-state", "notRunning")
    assert page.get_by_test_id("stException").count() == 0, page.get_by_test_id("stException").first.inner_text()
    return page


def go(page: Page, path: str) -> Page:
    """Open an address of the app."""
    page.goto(path)
    return ready(page)


def drawn(page: Page) -> Any:
    """Wait for the chart; its drawing area."""
    page.wait_for_function("document.querySelector('.js-plotly-plot')?.calcdata?.length > 0")
    return page.locator(".js-plotly-plot .nsewdrag").first


def position(page: Page, run_id: str) -> tuple[float, float]:
    """Where on the screen the point of a run lies."""
    return tuple(
        page.evaluate(
            """(id) => {
              const plot = document.querySelector('.js-plotly-plot'), l = plot._fullLayout
              const box = plot.getBoundingClientRect()
              for (const trace of plot._fullData) {
                const i = (trace.customdata || []).indexOf(id)
                if (i >= 0) return [
                  box.x + l.xaxis._offset + l.xaxis.d2p(trace.x[i]), box.y + l.yaxis._offset + l.yaxis.d2p(trace.y[i])]
              }
            }""",
            run_id,
        )
    )


def choose(page: Page, label: str, text: str) -> None:
    """Type into a list that takes new words, as a person does, and settle."""
    box = page.get_by_role("combobox", name=re.compile(label)).first
    if box.input_value() == text:
        return
    box.click()
    box.press("ControlOrMeta+a")
    box.press_sequentially(text)
    expect(page.get_by_role("option").first).to_contain_text(text)
    box.press("Enter")
    expect(box).to_have_value(text)
    ready(page)


def run_id_of(page: Page) -> str:
    """The run in the address."""
    expect(page).to_have_url(re.compile(r"run=[0-9a-f]{12}"))
    return str(re.search(r"run=([0-9a-f]{12})", page.url).group(1))  # type: ignore[union-attr]
