"The report: what a reader sees, what a stranger's text may not do, what a fault may not leave."

import html
import io
import itertools
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from unittest.mock import patch

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cloudlearn import report
from cloudlearn.masks import COLOURS

CLASSES = ("Fish", "Flower", "Gravel", "Sugar")
EVIL = [
    '<img src="x" onerror="alert(1)">',
    "</title><script>alert(1)</script>",
    "\"'><svg onload=alert(1)>",
    "</style><b>&lt;",
    "<!--",
    "a & b < c",
]


class Reader(HTMLParser):
    "The tags of a page with their attributes, its texts, and the text of each table cell."

    def __init__(self, page):
        super().__init__()
        self.tags, self.texts, self.cells, self.inside = [], [], [], False
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.inside = tag in ("td", "th")
        if self.inside:
            self.cells.append("")

    def handle_endtag(self, tag):
        self.inside = False

    def handle_data(self, data):
        self.texts.append(data)
        if self.inside:
            self.cells[-1] += data

    def named(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def ladder(*scores):
    rows = [
        {"step": f"step {i}", "dice": score, "low": score - 0.03, "high": score + 0.02}
        for i, score in enumerate(scores)
    ]
    return pd.DataFrame(rows)


def png(width=3, height=2, **more):
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), "red").save(buffer, format="PNG", **more)
    return buffer.getvalue()


def page_of(tmp_path, title, sections):
    path = report.write_report(tmp_path / "report.html", title, sections)
    return Reader(path.read_text(encoding="utf-8"))


# -------------------------------------------------------------------------------------------- plots


@pytest.mark.parametrize(
    "scores",
    [
        (0.5,),
        (0.46, 0.12, 0.461, 0.46),
        (0.5, 0.5001, 0.5002, 0.5003, 0.5004, 0.5005),
        tuple(np.linspace(0.4, 0.6, 12)),
    ],
)
def test_ladder_shows_every_interval_and_no_labels_touch(scores):
    ax = report.show_ladder(ladder(*scores))
    ends = [segment[:, 0].tolist() for segment in ax.collections[0].get_segments()]
    assert ends == [pytest.approx([score - 0.03, score + 0.02]) for score in scores]
    assert ax.lines[0].get_xdata().tolist() == pytest.approx(list(scores))
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the first step stands on top"
    wanted = [f"{s:.3f}  ({s - 0.03:.3f} to {s + 0.02:.3f})" for s in scores]
    assert [text.get_text() for text in ax.texts] == wanted
    ax.figure.canvas.draw()
    boxes = [text.get_window_extent() for text in [*ax.texts, *ax.get_yticklabels(), ax.title]]
    assert not any(first.overlaps(second) for first, second in itertools.combinations(boxes, 2))
    assert max(box.x1 for box in boxes) <= ax.figure.bbox.x1, "the numbers end inside the figure"


def test_ladder_draws_into_given_axes_and_names_what_is_missing():
    _, ax = plt.subplots()
    assert report.show_ladder(ladder(0.5), ax, "mine") is ax and ax.get_title() == "mine"
    for bad in (ladder(0.5).drop(columns="low"), ladder(0.5).iloc[:0]):
        with pytest.raises(ValueError, match="low is missing|every row is missing"):
            report.show_ladder(bad)


def test_log_names_the_lowest_epoch_and_takes_a_log_without_validation():
    losses = {"train_loss": [3.0, 2.0, 1.0], "valid_loss": [2.0, 1.5, 1.75]}
    log = pd.DataFrame({"epoch": [1, 2, 3], **losses})
    ax = report.show_log(log)
    said = [text.get_text() for text in ax.get_legend().get_texts()]
    lowest = ["train loss, lowest 1.000 in epoch 3", "valid loss, lowest 1.500 in epoch 2"]
    assert said == lowest
    looks = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in ax.lines}
    assert len(looks) == 2
    assert len({line.get_linestyle() for line in ax.lines}) == 2, "colour is not the only key"
    for without in (log.drop(columns="valid_loss"), log.assign(valid_loss=np.nan)):
        assert len(report.show_log(without).lines) == 1
    assert report.show_log(log.iloc[:1]).lines[0].get_xdata().tolist() == [1]
    with pytest.raises(ValueError, match="columns epoch and train_loss"):
        report.show_log(log.drop(columns="epoch"))


def test_decisions_name_their_classes_and_read_no_formulas():
    picture, masks = np.zeros((20, 30, 3), np.uint8), np.zeros((4, 20, 30), bool)
    masks[[0, 3], 5:9, 5:9] = True
    steps = {"truth $x^$": masks, "final": np.zeros_like(masks)}
    axes = report.show_decisions(picture, steps, CLASSES, title="cost$_$.jpg")
    titles = ["cost$_$.jpg", "truth $x^$: Fish, Sugar", "final: nothing"]
    assert [ax.get_title() for ax in axes] == titles
    report.figure_png(axes[0].figure, 40)  # a formula would end here with an error
    shown = axes[1].images[0].get_array()
    assert (shown[:5] == 0).all() and (shown[6:8, 6:8] > 0).any()
    with pytest.raises(ValueError):
        report.show_decisions(picture, {"truth": masks}, CLASSES[:3])
    with pytest.raises(ValueError):
        report.show_decisions(picture, {"truth": masks}, CLASSES, axes[:1])


def test_figure_png_gives_a_png_and_closes_the_figure_even_after_a_fault():
    before = plt.get_fignums()
    figure = plt.figure(figsize=(2, 1))
    data = report.figure_png(figure, dpi=100)
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.format == "PNG" and picture.info["dpi"][0] == pytest.approx(100, abs=0.1)
    broken = plt.figure()
    with patch.object(broken, "savefig", side_effect=OSError("no space")), pytest.raises(OSError):
        report.figure_png(broken)
    assert plt.get_fignums() == before


# ------------------------------------------------------------------------------------------ colours


def test_deuteranopia_keeps_grey_and_joins_red_and_green():
    grey = np.arange(256, dtype=np.uint8)[:, None].repeat(3, axis=1)
    assert (report.simulate_deuteranopia(grey) == grey).all()
    red, green, blue = np.uint8([[200, 60, 40], [110, 120, 40], [40, 60, 200]])
    seen = [report.simulate_deuteranopia(colour) for colour in (red, green, blue)]
    assert report.colour_distance(*seen[:2]) < report.colour_distance(red, green) / 3
    assert report.colour_distance(seen[0], seen[2]) > 50
    pure = report.simulate_deuteranopia(np.uint8([[255, 0, 0], [0, 255, 0], [0, 0, 255]]))
    assert np.abs(pure.astype(int) - [[163, 144, 0], [239, 214, 58], [0, 61, 251]]).max() <= 1
    for bad in (grey / 255, grey[:, :2]):
        with pytest.raises(ValueError, match="uint8 colours"):
            report.simulate_deuteranopia(bad)


def test_simulation_keeps_the_shape_of_a_picture():
    picture = np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)
    seen = report.simulate_deuteranopia(picture)
    assert seen.shape == picture.shape
    assert (seen[2, 3] == report.simulate_deuteranopia(picture[2, 3])).all()


@pytest.mark.parametrize(
    "colour, lab",
    [
        ((255, 0, 0), (53.24, 80.09, 67.20)),
        ((0, 255, 0), (87.73, -86.18, 83.18)),
        ((0, 0, 255), (32.30, 79.19, -107.86)),
        ((255, 255, 255), (100, 0, 0)),
    ],
)
def test_lab_of_the_corners_of_srgb(colour, lab):
    assert report._lab(np.uint8(colour)) == pytest.approx(lab, abs=0.02)


def test_colour_distance_is_a_distance():
    colours = np.random.default_rng(1).integers(0, 256, (3, 50, 3), np.uint8)
    first, second, third = colours
    assert np.allclose(report.colour_distance(first, second), report.colour_distance(second, first))
    detour = report.colour_distance(first, second) + report.colour_distance(second, third)
    assert (report.colour_distance(first, third) <= detour + 1e-9).all()
    black, white = np.uint8([0, 0, 0]), np.uint8([255, 255, 255])
    assert report.colour_distance(black, white) == pytest.approx(100)


def test_class_colours_stay_apart_without_green_receptors():
    palette = {
        name: np.uint8([int(text[i : i + 2], 16) for i in (1, 3, 5)])
        for name, text in COLOURS.items()
    }
    for group in (CLASSES, ("dent", "scratch", "spacing")):
        for first, second in itertools.combinations(group, 2):
            pair = palette[first], palette[second]
            seen = [report.simulate_deuteranopia(colour) for colour in pair]
            assert report.colour_distance(*pair) > 40, (first, second)
            assert report.colour_distance(*seen) > 15, (first, second)


# -------------------------------------------------------------------------------------------- files


def test_a_report_that_cannot_be_made_leaves_the_old_one(tmp_path):
    path = report.write_report(tmp_path / "report.html", "first", [("One", "text", [])])
    old = path.read_bytes()
    for wrong in (["0.53"], [b"no png"], [3]):
        with pytest.raises((ValueError, OSError)):
            report.write_report(path, "second", [("One", "text", wrong)])
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["report.html"]


# --------------------------------------------------------------------------------------------- page


@pytest.mark.parametrize("evil", EVIL)
def test_a_strangers_text_is_shown_and_not_obeyed(tmp_path, evil):

    def page_with(text):
        table = pd.DataFrame({"class": ["Fish", text], text: [1.5, 2.5]})
        return page_of(tmp_path, text, [(text, text, [table, png()])])

    plain, hostile = page_with("harmless"), page_with(evil)
    # the text brought no tag of its own
    assert [tag for tag, _ in hostile.tags] == [tag for tag, _ in plain.tags]
    assert hostile.named("img")[0]["alt"] == evil
    assert hostile.cells == ["class", evil, "Fish", "1.5", evil, "2.5"]
    # title, heading twice, paragraph, cells
    assert sum(evil in text for text in hostile.texts) >= 5
    names = [name for _, attributes in hostile.tags for name in attributes]
    assert not [name for name in names if name.startswith("on")]


LETTERS = st.characters(blacklist_categories=("Cs", "Cc"))


@given(st.lists(st.text(LETTERS, min_size=1, max_size=12), min_size=1, max_size=4))
@settings(max_examples=40)
def test_every_cell_comes_back_as_it_was(words):
    assert Reader(report._table(pd.DataFrame({"word": words}))).cells == ["word", *words]


def test_the_page_needs_nothing_from_outside(tmp_path):
    first = ("Ladder", "text", [ladder(0.5), png(300, 200, dpi=(144, 144))])
    second = ("More", "text", [png()])
    path = report.write_report(tmp_path / "report.html", "run", [first, second])
    text = path.read_text(encoding="utf-8")
    page = Reader(text)
    assert [item["href"] for item in page.named("a")] == ["#part-1", "#part-2"]
    assert [item["id"] for item in page.named("section")] == ["part-1", "part-2"]
    images = page.named("img")
    assert [item["src"][:22] for item in images] == ["data:image/png;base64,"] * 2
    # 300 dots at 144 an inch are 200 at 96
    assert [item["width"] for item in images] == ["200", "3"]
    outside = r"https?://|//[a-z]|url\(|@import|<script|<link|<iframe"
    assert not re.search(outside, re.sub(r"base64,[^\"]+", "", text))
    policies = {item.get("http-equiv"): item.get("content") for item in page.named("meta")}
    policy = policies["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'")
    assert "img-src data:" in policy
    assert "script" not in policy


def test_pictures_come_back_byte_for_byte(tmp_path):
    import base64

    data = png(7, 5)
    source = page_of(tmp_path, "t", [("h", "p", [data])]).named("img")[0]["src"]
    assert base64.b64decode(source.split(",")[1]) == data


def test_the_same_run_gives_the_same_file(tmp_path):
    pages = []
    for name in "ab":
        figure = report.show_ladder(ladder(0.5, 0.6)).figure
        section = ("Ladder", "text", [ladder(0.5, 0.6), report.figure_png(figure, 50)])
        pages.append(report.write_report(tmp_path / name, "run", [section]).read_bytes())
    assert pages[0] == pages[1]


@pytest.mark.parametrize(
    "values, texts",
    [
        ([0.45, 0.4], ["0.45", "0.40"]),
        ([0.40304687500000014, 0.5], ["0.4030", "0.5000"]),
        ([np.float32(0.45), np.float32(0.8)], ["0.45", "0.80"]),
        ([110.3, 5.0], ["110.3", "5.0"]),
        ([3.0, 4.0], ["3", "4"]),
        ([0.31234, 0.0000312], ["0.3123", "3.1e-05"]),
        ([0.5, float("nan"), None], ["0.5", "–", "–"]),
        ([float("inf"), 0.25], ["inf", "0.25"]),
        ([30000, 7, True], ["30000", "7", "True"]),
        ([], []),
    ],
)
def test_numbers_have_the_decimals_they_need(values, texts):
    plain = [value.item() if isinstance(value, np.generic) else value for value in values]
    assert report._texts(plain) == texts


def test_long_texts_are_not_cut_and_settings_of_pandas_do_not_matter(tmp_path):
    frame = pd.DataFrame({"setting": ["data"], "value": ["folder/" * 40]})
    with pd.option_context("display.max_colwidth", 10, "display.precision", 1):
        page = page_of(tmp_path, "t", [("h", "p", [frame])])
    assert page.cells == ["setting", "value", "data", "folder/" * 40]


def test_two_columns_of_one_name_are_both_shown():
    page = Reader(report._table(pd.DataFrame([[1, 2]], columns=["a", "a"])))
    assert page.cells == ["a", "a", "1", "2"]


def test_importing_the_report_draws_nothing_in():
    code = (
        "import sys, cloudlearn.report; "
        "print(*sorted({'torch', 'matplotlib', 'pandas', 'sklearn'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (run.returncode, run.stdout.strip()) == (0, ""), run.stderr


def test_the_examples_are_evil():
    assert all(html.escape(text) != text for text in EVIL)
