"""Knobs: a picture for each setting, a twin for a page without a kernel, and a real browser."""

import ast
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest

from cloudlearn.knobs import knob

NBS = Path(__file__).resolve().parents[1] / "nbs"
LESSONS = ("01_masks", "02_scores")  # whose first knobs a browser turns


def draw(ax, value):
    ax.plot([0, value])


@pytest.fixture
def shown(monkeypatch):
    "What was displayed, as mime bundles."
    bundles = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: bundles.append(data))
    yield bundles
    plt.close("all")


def test_the_twin_shows_its_settings(shown):
    knob(draw, range(5), name="height", twin=(1, 4))
    figure = plt.gcf()
    assert [ax.get_title() for ax in figure.axes] == ["height: 1", "height: 4"]
    assert [ax.lines[0].get_ydata()[1] for ax in figure.axes] == [1, 4]
    assert figure.get_size_inches()[0] * 100 >= 900
    (bundle,) = shown
    assert "stands as a picture" in bundle["text/plain"]


def test_the_slider_draws_anew(shown):
    from cloudlearn import knobs

    slider, picture = knobs._slider(draw, range(5), 1, "height").children
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG")
    slider.value = 3
    second = bytes(picture.value)
    slider.value = 1
    assert second != first and bytes(picture.value) == first


def test_a_twin_beside_the_settings_is_refused():
    with pytest.raises(ValueError, match="the twin shows 9, which is no setting"):
        knob(draw, range(5), name="height", twin=(1, 9))


def test_without_ipywidgets_the_twin_stands_alone(shown, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    knob(draw, range(5), name="height", twin=(2,))
    assert shown == [] and len(plt.gcf().axes) == 1
    assert "pip install ipywidgets" in capsys.readouterr().out


# ---------------------------------------------------------------------------------- in JupyterLab


def names(tree, context):
    return {
        node.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and type(node.ctx) is context
    }


def made(tree):
    "The names that a cell defines."
    found = names(tree, ast.Store)
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
    return found


def knob_cell(lesson):
    "The first knob of a lesson, with what it needs of the cells before it, as one cell."
    cells = nbformat.read(NBS / f"{lesson}.ipynb", as_version=4).cells
    sources = [re.sub(r"^#\|.*", "", cell.source) for cell in cells if cell.cell_type == "code"]
    place = next(i for i, source in enumerate(sources) if re.search(r"^knob\(", source, re.M))
    kept, wanted = [sources[place]], names(ast.parse(sources[place]), ast.Load)
    for source in reversed(sources[:place]):
        tree = ast.parse(source)
        if made(tree) & wanted:
            kept.insert(0, source)
            wanted |= names(tree, ast.Load)
    return nbformat.v4.new_code_cell("\n\n".join(kept))


@pytest.fixture
def lab(tmp_path):
    "A page of a browser in which JupyterLab has run the knobs of two lessons."
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium on this machine")
    pytest.importorskip("jupyterlab", reason="jupyterlab is not installed")
    notebook = nbformat.v4.new_notebook(cells=[knob_cell(lesson) for lesson in LESSONS])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "python3"}
    nbformat.write(notebook, tmp_path / "knobs.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "ServerApp": {"port": port, "root_dir": str(tmp_path), "open_browser": False},
        "IdentityProvider": {"token": ""},
        "LabApp": {"expose_app_in_browser": True},
    }
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "jupyter_server_config.json").write_text(json.dumps(settings))
    places = {
        f"JUPYTER_{name}_DIR": str(tmp_path / "own") for name in ("CONFIG", "RUNTIME", "DATA")
    }
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root"]
    server = subprocess.Popen(
        command, env=os.environ | places, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with sync_api.sync_playwright() as play:
            browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1300, "height": 900})
            page.set_default_timeout(90_000)
            open_lab(page, f"http://127.0.0.1:{port}/lab/tree/knobs.ipynb")
            yield page
            browser.close()
    finally:
        server.terminate()
        server.wait(20)


IDLE = "window.jupyterapp?.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"


def open_lab(page, address):
    "Open a notebook as soon as the server is up, and run its cells when its kernel is."
    for attempt in range(100):
        try:
            page.goto(address)
            break
        except Exception:
            if attempt == 99:
                raise
            page.wait_for_timeout(200)
    page.wait_for_function(IDLE)
    page.evaluate("void window.jupyterapp.commands.execute('notebook:run-all-cells')")
    page.wait_for_function("document.querySelectorAll('img.widget-image').length == 2")


def test_knobs_turn_in_jupyterlab(lab):
    pictures, said = lab.locator("img.widget-image"), lab.locator(".widget-readout")
    for number in range(len(LESSONS)):
        before = pictures.nth(number).get_attribute("src"), said.nth(number).inner_text()
        handle = lab.locator(".noUi-handle").nth(number)
        handle.focus()
        handle.press("ArrowRight")
        lab.wait_for_function(
            "([number, old]) => document.querySelectorAll('img.widget-image')[number].src !== old",
            arg=[number, before[0]],
        )
        assert said.nth(number).inner_text() != before[1]
