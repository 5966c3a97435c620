"""A notebook as a reader meets it: a real JupyterLab server, a real browser, Run All from the menu."""

import io
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from browser_driver import chromium  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 420  # seconds for the whole notebook on a busy machine
pytestmark = [pytest.mark.long, pytest.mark.timeout(1200)]


@pytest.fixture
def lab(tmp_path):
    """The address of a JupyterLab that serves a copy of the notebooks; results go into a folder of their own."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    (tmp_path / "notebooks").mkdir()
    shutil.copy(ROOT / "notebooks" / "figure1.ipynb", tmp_path / "notebooks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "jupyter",
        "lab",
        "--no-browser",
        "--allow-root",
        f"--port={port}",
        "--ip=127.0.0.1",
    ]
    command += ["--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True", f"--ServerApp.root_dir={tmp_path}"]
    environment = {**os.environ, "RESLIB_PRESET": "smoke", "RESLIB_RESULTS": str(tmp_path / "results")}
    environment |= {"JUPYTER_CONFIG_DIR": str(tmp_path / "config"), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("RESLIB_PROGRESS", None)
    with open(tmp_path / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=tmp_path)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (tmp_path / "lab.log").read_text()[-2000:]
                time.sleep(0.2)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


def until(condition, seconds, what):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, f"no {what} within {seconds} s"
        time.sleep(0.1)
    return found


def click(browser, selector, text=""):
    """Click the first visible element with this text, when it is there."""
    script = """const [selector, text] = arguments;
        const all = [...document.querySelectorAll(selector)];
        const found = all.find(e => e.offsetParent && e.textContent.includes(text));
        return found || null;"""
    element = until(lambda: browser.execute_script(script, selector, text), 120, f"{selector} {text!r}")
    element.click()


def test_run_all_from_the_menu(lab, tmp_path):
    from PIL import Image

    with chromium(1400, 1000) as browser:
        browser.get(f"{lab}/lab/tree/notebooks/figure1.ipynb?reset")
        kernel = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
        until(lambda: browser.execute_script(f"return !!document.querySelector('{kernel}')"), 180, "idle kernel")
        click(browser, ".lm-MenuBar-item", "Run")
        time.sleep(1)  # the menu takes no click in the moment it opens
        click(browser, ".lm-Menu-item", "Run All Cells")
        stars = "return document.querySelector('.jp-Notebook').textContent.includes('[*]')"
        until(lambda: browser.execute_script(stars), 30, "cell that runs")
        progress, shares = ".reslib-progress [role=progressbar]", set()
        count = (
            "return [...document.querySelectorAll('.jp-CodeCell .jp-InputPrompt')].map(p => p.textContent)"
            ".filter(Boolean)"
        )

        def finished():
            bar = browser.execute_script(f"return document.querySelector('{progress}')?.getAttribute('aria-valuenow')")
            if bar:
                shares.add(int(bar))
            prompts = browser.execute_script(count)
            errors = browser.execute_script(
                "return [...document.querySelectorAll('.jp-OutputArea-output[data-mime-type*=error]')]"
                ".map(e => e.textContent)"
            )
            assert not errors, errors
            written = (tmp_path / "results" / "smoke" / "figures" / "depth.png").exists()
            return written and prompts and not any("*" in p for p in prompts)

        until(finished, PATIENCE, "end of the notebook")
        assert max(shares) == 100 and len(shares) >= 3, f"progress went through {sorted(shares)}"
        find = "return [...document.querySelectorAll('.jp-RenderedImage img')].filter(i => i.naturalWidth > 300)"
        images = until(lambda: browser.execute_script(find), 60, "figure")
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", images[0])
        time.sleep(1)
        shot = images[0].screenshot_as_png
        if os.environ.get("RESLIB_SCREENSHOTS"):
            browser.save_screenshot(str(Path(os.environ["RESLIB_SCREENSHOTS"]) / "jupyterlab.png"))
    picture = Image.open(io.BytesIO(shot)).convert("RGB")
    colours = picture.getcolors(maxcolors=1 << 24)
    assert picture.width > 300 and picture.height > 150
    assert len(colours) > 50, "the figure is blank"
    assert max(n for n, _ in colours) < 0.98 * picture.width * picture.height, "the figure is blank"
