"""The painter: a brush that is exact, the browser's side of it, and what is saved."""

import base64
import json
import shutil
import sys

import cv2
import numpy as np
import pytest

from cloudlearn import painter as module
from cloudlearn.formats import check_labelled, read_labelled
from cloudlearn.masks import overlay
from cloudlearn.painter import draw_strokes, painter, save_labelled, show_painted

PHOTOS = {
    name: np.random.default_rng(seed).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    for seed, name in enumerate(("a", "b", "c", "d"))
}


def sent(mask):
    "A mask as the browser sends it: RGBA, 0 and 255."
    png = cv2.imencode(".png", np.dstack([mask * np.uint8(255)] * 3))[1]
    return base64.b64encode(png.tobytes()).decode()


def stroke(*points, label="dent", radius=4, erase=False):
    return {"label": label, "radius": radius, "erase": erase, "points": [list(p) for p in points]}


@pytest.fixture
def painted():
    pytest.importorskip("anywidget")
    widget = painter(PHOTOS, ["dent", "leaf"])
    disc = draw_strokes([stroke((20, 10))], (40, 60))
    none = np.zeros((40, 60), bool)
    widget.drawn = {name: {"dent": sent(disc), "leaf": sent(none)} for name in ("a", "b", "c", "d")}
    return widget


def test_a_dot_is_the_disc_of_pixel_centres():
    y, x = np.indices((40, 60)) + 0.5
    disc = (x - 20.25) ** 2 + (y - 10) ** 2 <= 6.5**2
    np.testing.assert_array_equal(draw_strokes([stroke((20.25, 10), radius=6.5)], (40, 60)), disc)


def test_a_path_is_the_union_of_its_many_discs():
    mask = draw_strokes([stroke((8, 8), (40, 30), (50, 30))], (40, 60))
    steps = np.linspace((8, 8), (40, 30), 4000).tolist() + np.linspace((40, 30), (50, 30)).tolist()
    y, x = np.indices((40, 60)) + 0.5
    near = np.min([(x - a) ** 2 + (y - b) ** 2 for a, b in steps], axis=0)
    clear = np.abs(near - 16) > 0.01  # the discs stand a little apart
    np.testing.assert_array_equal(mask[clear], (near <= 16)[clear])


def test_the_eraser_takes_away_and_order_counts():
    line, bite = stroke((0, 20), (60, 20)), stroke((30, 20), radius=6, erase=True)
    mask = draw_strokes([line, bite], (40, 60))
    assert mask[20, 5] and not mask[20, 30]
    assert draw_strokes([bite, line], (40, 60))[20, 30]
    assert not draw_strokes([], (40, 60)).any()


def test_masks_come_back_through_the_trait(painted):
    masks = painted.masks()
    assert list(masks) == ["a", "b", "c", "d"] and masks["a"].shape == (2, 40, 60)
    np.testing.assert_array_equal(masks["b"][0], draw_strokes([stroke((20, 10))], (40, 60)))
    assert not masks["b"][1].any()


def test_what_is_saved_is_what_train_reads(painted, tmp_path):
    painted.save(tmp_path / "labels")
    assert check_labelled(tmp_path / "labels") == []
    found = read_labelled(tmp_path / "labels")
    assert found.layout == "masks" and found.classes == ("dent", "leaf")
    assert len(found.samples) == 4
    stored = cv2.imread(str(tmp_path / "labels" / "images" / "c.png"))[..., ::-1]
    np.testing.assert_array_equal(stored, PHOTOS["c"])
    painted.save(tmp_path / "parts", part="valid")
    assert (tmp_path / "parts" / "masks" / "valid" / "leaf" / "d.png").is_file()


def test_saving_overwrites_nothing_unasked_and_writes_all_or_nothing(painted, tmp_path):
    folder = tmp_path / "labels"
    mask = np.ones((40, 60), bool)
    save_labelled(folder, "c", PHOTOS["c"], {"dent": mask})
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    with pytest.raises(ValueError, match=r"c\.png: this mask is there already; pass replace=True"):
        painted.save(folder)
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before
    painted.save(folder, replace=True)
    assert (folder / "masks" / "dent" / "c.png").read_bytes() != before[folder / "masks/dent/c.png"]
    with pytest.raises(ValueError, match="another picture of this name is there"):
        save_labelled(folder, "a", PHOTOS["b"], {}, replace=True)


@pytest.mark.parametrize("name", ["", "..", ".hidden", "a/b", "a\\b", "a:b", "a\nb"])
def test_names_that_are_no_file_names(name, tmp_path):
    for words in ({"name": name, "masks": {}}, {"name": "a", "masks": {name: PHOTOS["a"] > 0}}):
        with pytest.raises(ValueError, match="cannot be the name of a file"):
            save_labelled(tmp_path / "x", picture=PHOTOS["a"], **words)
    assert not (tmp_path / "x").exists()


def test_masks_of_another_size_or_kind_are_refused(tmp_path):
    for mask in (np.zeros((40, 61), bool), np.zeros((40, 60), np.uint8)):
        with pytest.raises(ValueError, match=r"its picture needs bool \(40, 60\)"):
            save_labelled(tmp_path / "x", "a", PHOTOS["a"], {"dent": mask})
    with pytest.raises(ValueError, match="take train, valid, test, or none"):
        save_labelled(tmp_path / "x", "a", PHOTOS["a"], {}, part="dev")


def test_nonsense_from_the_browser_is_refused(painted):
    for text in ("", sent(np.zeros((4, 6), bool)), base64.b64encode(b"no png").decode()):
        painted.drawn = {"a": {"dent": text, "leaf": text}}
        with pytest.raises(ValueError, match="the browser sent .* paint it again"):
            painted.masks()


def test_a_painter_needs_pictures_and_classes():
    for pictures, classes in (({}, ["dent"]), (PHOTOS, [])):
        with pytest.raises(ValueError, match="one picture and one class at least"):
            painter(pictures, classes)


def test_without_anywidget_it_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    module._painter_class.cache_clear()
    with pytest.raises(ValueError, match=r'pip install "cloudlearn\[paint\]"'):
        painter(PHOTOS, ["dent"])


def test_the_twin_shows_every_labelled_picture():
    masks = {name: np.zeros((1, 40, 60), bool) for name in ("a", "c", "d")}
    masks["c"][0, 5:20, 5:20] = True
    figure = show_painted(PHOTOS, masks, ["dent"], columns=2)
    shown = [ax for ax in figure.axes if ax.images]
    assert [ax.get_title() for ax in shown] == ["a", "c", "d"]
    expected = overlay(PHOTOS["c"], masks["c"], ["dent"])
    np.testing.assert_array_equal(shown[1].images[0].get_array(), expected)


# ------------------------------------------------------------------------------ in a real browser

PAGE = """
<div id="place"></div>
<script type="module">
const code = new Blob([%(esm)s], {type: "text/javascript"});
const {default: widget} = await import(URL.createObjectURL(code));
window.state = %(state)s;
window.saved = 0;
const model = {get: name => window.state[name],
               set: (name, value) => { window.state[name] = value; },
               save_changes: () => { window.saved += 1; }};
widget.render({model, el: document.getElementById("place")});
window.ready = true;
</script>
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = shutil.which("chromium")
    if not chromium:
        pytest.skip("there is no chromium on this machine")
    pytest.importorskip("anywidget")
    widget = painter(PHOTOS, ["dent", "leaf"], radius=5)
    state = {
        name: getattr(widget, name)
        for name in ("pictures", "classes", "radius", "strokes", "drawn")
    }
    with sync_api.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1000, "height": 760})
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.faults = []
        page.on("pageerror", lambda error: page.faults.append(str(error)))
        page.set_content(PAGE % {"esm": json.dumps(module._ESM), "state": json.dumps(state)})
        page.wait_for_function("window.ready")
        page.wait_for_timeout(100)
        page.box = page.locator("canvas").bounding_box()
        yield page
        browser.close()


def drag(page, *points):
    "Paint with the mouse; points in pixels of the picture."
    zoom = page.box["width"] / 60
    places = [(page.box["x"] + x * zoom, page.box["y"] + y * zoom) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place)
    page.mouse.up()


def came_back(page, name, label):
    "The mask that Python makes of what the page sent, and the strokes behind it."
    state = page.evaluate("({drawn: window.state.drawn, strokes: window.state.strokes})")
    mask = module._mask_of(state["drawn"][name][label], (40, 60))
    return mask, [one for one in state["strokes"][name] if one["label"] == label]


def test_the_browser_paints_the_same_pixels(page):
    drag(page, (10, 10), (30, 25), (50, 25))
    mask, strokes = came_back(page, "a", "dent")
    assert strokes[0]["radius"] == 5 and not strokes[0]["erase"]
    np.testing.assert_allclose(strokes[0]["points"], [(10, 10), (30, 25), (50, 25)], atol=0.1)
    np.testing.assert_array_equal(mask, draw_strokes(strokes, (40, 60)))
    wanted = draw_strokes([stroke((10, 10), (30, 25), (50, 25), radius=5)], (40, 60))
    assert mask.sum() > 400 and (mask ^ wanted).sum() < 12  # the mouse stands on whole pixels


def test_the_browser_erases_undoes_and_turns(page):
    before = came_back(page, "a", "dent")[0]
    page.get_by_text("brush").click()
    drag(page, (30, 25), (34, 25))
    mask, strokes = came_back(page, "a", "dent")
    assert strokes[-1]["erase"] and not mask[25, 30]
    np.testing.assert_array_equal(mask, draw_strokes(strokes, (40, 60)))
    page.get_by_text("undo").click()
    np.testing.assert_array_equal(came_back(page, "a", "dent")[0], before)
    page.get_by_text("eraser").click()
    page.get_by_text("next").click()
    page.locator("select").select_option("leaf")
    page.locator("input").fill("9")
    page.wait_for_timeout(100)
    drag(page, (20, 20), (20, 21))
    mask, strokes = came_back(page, "b", "leaf")
    assert strokes[0]["radius"] == 9 and mask[12, 20] and not mask[8, 20]
    assert not came_back(page, "b", "dent")[0].any()
    np.testing.assert_array_equal(came_back(page, "a", "dent")[0], before)
    page.get_by_text("next").click()
    page.get_by_text("done").click()
    assert not came_back(page, "c", "leaf")[0].any()  # looked at, and empty
    assert page.evaluate("'d' in window.state.drawn") is False
    assert page.evaluate("window.saved") >= 5


def test_the_browser_asks_for_nothing_and_stumbles_over_nothing(page):
    asked = [url for url in page.asked if not url.startswith(("data:", "blob:", "about:"))]
    assert asked == [] and page.faults == []
