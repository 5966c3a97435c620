"""Every notebook as a reader meets it: a real JupyterLab server, a real browser, Run All from the menu, twice.

RESLIB_SCREENSHOTS=FOLDER keeps what was seen.
"""

import io
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from browser_driver import chromium, console_errors  # noqa: E402
from own_results import with_results  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted(path.stem for path in (ROOT / "notebooks").glob("*.ipynb"))
PATIENCE = 900  # seconds for the whole notebook on a busy machine
pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
CELLS = """const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells;
    return cells.filter(c => c.cell_type === "code").map(c => [c.execution_count,
        c.outputs.filter(o => o.output_type === "error").map(o => o.ename + ": " + o.evalue).join(" ")]);"""
READY = """const context = window.jupyterapp?.shell.currentWidget?.sessionContext;
    return !!context?.isReady && context.session?.kernel?.connectionStatus === "connected"
        && !!document.querySelector(".jp-Notebook-ExecutionIndicator[data-status=idle]");"""
ASKED = "return [...document.querySelectorAll('.jp-Dialog .jp-mod-accept')].find(e => e.offsetParent) || null"
PROGRESS = """const bar = [...document.querySelectorAll(".reslib-progress [role=progressbar]")].at(-1);
    if (!bar) return null;
    const {top, bottom} = bar.getBoundingClientRect();
    if (top < 150 || bottom > innerHeight - 150) bar.scrollIntoView({block: "center"});
    return Number(bar.getAttribute("aria-valuenow"));"""
IMAGES = (
    "return [...document.querySelectorAll('.jp-RenderedImage img')].filter(i => i.complete && i.naturalWidth > 100)"
)
TABLES = "return [...document.querySelectorAll('.jp-RenderedHTML table')].filter(t => t.rows.length > 4)"
OF_TABLES = ("cifar10_table", "imagenet_tables")  # these draw nothing


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab that serves copies of the notebooks, each with a results folder of its own: (address, folder)."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    folder = tmp_path_factory.mktemp("lab")
    (folder / "notebooks").mkdir()
    for name in NOTEBOOKS:
        text = with_results(ROOT / "notebooks" / f"{name}.ipynb", folder / "results" / name)
        (folder / "notebooks" / f"{name}.ipynb").write_text(text, encoding="utf-8")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root", f"--port={port}"]
    command += ["--ip=127.0.0.1", "--IdentityProvider.token=", "--ServerApp.disable_check_xsrf=True"]
    command += [f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True"]
    environment = {k: v for k, v in os.environ.items() if k not in ("RESLIB_PROGRESS", "PYTEST_CURRENT_TEST")}
    environment |= {"RESLIB_PRESET": "smoke", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    environment |= {"JUPYTER_CONFIG_DIR": str(folder / "config"), "RESLIB_NOTEBOOKS": str(ROOT / "notebooks")}
    with open(folder / "lab.log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log, cwd=folder)
    address = f"http://127.0.0.1:{port}"
    try:
        for _ in range(600):
            try:
                urllib.request.urlopen(f"{address}/api", timeout=5).close()
                break
            except OSError:
                assert server.poll() is None, (folder / "lab.log").read_text()[-2000:]
                time.sleep(0.2)
        yield address, folder
    finally:
        server.terminate()
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="module")
def browser(lab):
    with chromium(1400, 1000) as driver:
        yield driver


@pytest.fixture
def notebook(lab, browser, request):
    """Opens the notebook named by the test's parameter, with a fresh kernel; shuts the kernel down afterwards."""
    address, _ = lab
    browser.get(f"{address}/lab/tree/notebooks/{request.param}.ipynb?reset")
    until(lambda: browser.execute_script(READY), 240, "idle kernel")
    severe(browser)  # the last notebook's kernel was taken away from it, which it may have said
    yield request.param
    with urllib.request.urlopen(f"{address}/api/sessions") as answer:
        sessions = json.load(answer)
    for session in sessions:
        gone = urllib.request.Request(f"{address}/api/sessions/{session['id']}", method="DELETE")
        urllib.request.urlopen(gone).close()


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


def run_all(browser, after=0) -> set[int]:
    """Run All Cells from the menu, wait until every cell has run after execution `after`; the progress seen, in %."""
    click(browser, ".lm-MenuBar-item", "Run")
    time.sleep(1)  # the menu takes no click in the moment it opens
    click(browser, ".lm-Menu-item", "Run All Cells")
    shares = set()

    def finished():
        if question := browser.execute_script(ASKED):  # which kernel, where the session is still being set up
            question.click()
        shares.add(browser.execute_script(PROGRESS))
        cells = browser.execute_script(CELLS)
        errors = [error for _, error in cells if error]
        assert not errors, errors
        return all(count is not None and count > after for count, _ in cells)

    try:
        until(finished, PATIENCE, "end of the notebook")
    except AssertionError:
        keep("stopped-here", browser.get_screenshot_as_png())
        raise
    shares.add(browser.execute_script(PROGRESS))
    return shares - {None}


def severe(browser) -> list[str]:
    """What the console calls severe since the notebook was open; JupyterLab itself says nothing of that kind."""
    return console_errors(browser, ("SEVERE",))


def keep(name: str, png: bytes) -> None:
    if os.environ.get("RESLIB_SCREENSHOTS"):
        (Path(os.environ["RESLIB_SCREENSHOTS"]) / f"{name}.png").write_bytes(png)


def shot(browser, image) -> bytes:
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", image)
    time.sleep(0.5)
    return image.screenshot_as_png


def assert_not_blank(png: bytes, least: int = 50) -> None:
    """More than `least` colours, and none of them (nearly) everywhere."""
    from PIL import Image

    picture = Image.open(io.BytesIO(png)).convert("RGB")
    colours = picture.getcolors(maxcolors=1 << 24)
    assert picture.width > 100 and picture.height > 60
    assert len(colours) > least, "the figure is blank"
    assert max(n for n, _ in colours) < 0.98 * picture.width * picture.height, "the figure is blank"


def code(name: str) -> list[str]:
    cells = json.loads((ROOT / "notebooks" / f"{name}.ipynb").read_text())["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, indirect=True)
def test_run_all_from_the_menu_twice(browser, lab, notebook):
    sources = code(notebook)
    shares = run_all(browser)
    if any("study.train()" in source for source in sources):
        assert max(shares) == 100 and len(shares) >= 3, f"progress went through {sorted(shares)}"
    shown, least = (TABLES, 8) if notebook in OF_TABLES else (IMAGES, 50)  # text has a few shades of grey
    for number, element in enumerate(until(lambda: browser.execute_script(shown), 60, "figure or table")):
        png = shot(browser, element)
        keep(f"{notebook}-{number}", png)
        assert_not_blank(png, least)
    keep(f"{notebook}-page", browser.get_screenshot_as_png())
    run_all(browser, after=len(sources))
    element = until(lambda: browser.execute_script(shown), 60, "figure or table")[0]
    assert_not_blank(shot(browser, element), least)
    assert not severe(browser)


LIST = """const [code, label] = arguments, notebook = window.jupyterapp.shell.currentWidget.content;
    const holds = cell => cell.model.type === "code" && cell.model.sharedModel.source.includes(code);
    const number = notebook.widgets.findIndex(holds);
    notebook.scrollToItem(number);
    const found = [...notebook.widgets[number].node.querySelectorAll('.widget-dropdown')];
    return found.find(e => e.querySelector('label').textContent === label)?.querySelector('select') || null;"""
OUTPUTS = """const cells = window.jupyterapp.shell.currentWidget.content.model.sharedModel.toJSON().cells;
    const data = cells.flatMap(c => c.outputs || []).map(o => o.data || {});
    const of = kind => data.filter(d => d[kind]).map(d => [d[kind]].flat().join("").trim());
    return {images: of("image/png"), text: of("text/html").concat(of("text/plain")).join("\\n")};"""
SEEN = """return [...document.querySelectorAll('.jp-RenderedImage img')].some(
    i => i.complete && i.naturalWidth > 100 && i.src.endsWith(arguments[0]));"""


@pytest.fixture
def trained(lab):
    """A plain and a residual net for `explore` to look into, trained at smoke scale."""
    command = [sys.executable, "-m", "reslib", "reproduce", "figure1", "--preset=smoke", "--runs-only", "--device=cpu"]
    command += ["--models=plain20,resnet20", f"--results={lab[1] / 'results' / 'explore'}"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RESLIB_DATA": ""}
    subprocess.run(command, env=environment, check=True, timeout=900)


@pytest.mark.parametrize("notebook", ["explore"], indirect=True)
def test_the_controls_of_explore_draw_anew(browser, trained, notebook):
    """Every choice in a real drop-down list changes what stands below it, and that alone."""
    from selenium.webdriver.support.ui import Select

    run_all(browser)
    assert len(browser.execute_script(OUTPUTS)["images"]) == 3, "a diagram, responses and mistakes"

    def choose(code, label, value, text, changed=None):
        """Take `value` in a list below the cell with this code, until `text` stands in the notebook and the image
        numbered `changed` is another one, in the page too; no other image may change. The text that was not there."""
        before = browser.execute_script(OUTPUTS)
        element = until(lambda: browser.execute_script(LIST, code, label), 60, f"list {label!r}")
        Select(element).select_by_visible_text(value)

        def drawn():
            after = browser.execute_script(OUTPUTS)
            pairs = zip(before["images"], after["images"], strict=True)
            differ = [number for number, (old, new) in enumerate(pairs) if old != new]
            assert differ in ([], [changed]), f"{label} {value} changed the images {differ}"
            done = text in after["text"] and after["text"] != before["text"] and (differ or changed is None)
            return after if done else None

        after = until(drawn, 120, f"other outputs after {label} {value}")
        if changed is not None:
            end = after["images"][changed][-200:]
            until(lambda: browser.execute_script(SEEN, end), 60, f"image {changed} in the page")
        keep(f"explore-{label}-{value}", browser.get_screenshot_as_png())
        return "\n".join(set(after["text"].splitlines()) - set(before["text"].splitlines()))

    network, responses, confused = "explore.network", "nets.responses", "nets.confused"
    assert "269,722" in choose(network, "family", "plain", "plain20 (no shortcuts)", 0)  # as many as with option A
    choose(network, "family", "resnet", "resnet20, option A", 0)
    choose(network, "depth", "56", "853,018")  # the same block
    choose(network, "depth", "50", "22,780,456", 0)  # bottlenecks
    choose(network, "depth", "20", "269,722", 0)
    choose(network, "shortcut", "B", "272,474", 0)  # 2,752 more: two projections and their norms
    nets = until(lambda: browser.execute_script(LIST, responses, "net"), 60, "nets").text.split()
    assert len(nets) == 2 and {name.split("-")[0] for name in nets} == {"plain20", "resnet20"}
    assert "the network says" in choose(responses, "net", nets[1], "the network says", 1)
    assert "the network says" in choose(responses, "image", "3", "the network says", 1)
    assert "<td>" in choose(confused, "net", nets[1], "probability", 2)  # other mistakes
    assert not severe(browser)
