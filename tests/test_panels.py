"""Rows of panels and legends: large enough, on one scale, with the words that were given."""

import matplotlib.pyplot as plt
import numpy as np
import pytest

from cloudlearn.panels import class_legend, show_panels


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_row_is_wide_and_has_its_titles():
    axes = show_panels([np.eye(4), np.zeros((4, 4, 3), np.uint8)], ["one", "two"])
    assert axes.shape == (1, 2)
    assert [ax.get_title() for ax in axes.flat] == ["one", "two"]
    assert axes[0, 0].figure.get_size_inches()[0] * 100 >= 900
    assert all(ax.images[0].get_interpolation() == "nearest" for ax in axes.flat)


def test_grey_maps_share_one_scale_and_colours_none():
    axes = show_panels([np.eye(3), 4 * np.eye(3) - 1, np.eye(3) > 0])
    assert {ax.images[0].get_clim() for ax in axes.flat} == {(-1, 3)}
    axes = show_panels([np.eye(3)], limits=(0, 10))
    assert axes[0, 0].images[0].get_clim() == (0, 10)


def test_more_than_a_row_leaves_the_last_panels_empty():
    axes = show_panels([np.eye(3)] * 5, columns=3)
    assert axes.shape == (2, 3)
    assert [len(ax.images) for ax in axes.flat] == [1, 1, 1, 1, 1, 0]


def test_zoom_shows_the_part_that_is_named():
    axes = show_panels([np.eye(30)], zoom=(10, 20, 5, 15))
    (inset,) = axes[0, 0].child_axes
    assert inset.get_xlim() == (4.5, 14.5) and inset.get_ylim() == (19.5, 9.5)


@pytest.mark.parametrize("of_figure", [True, False])
def test_the_legend_says_what_was_given(of_figure):
    figure, ax = plt.subplots(layout="constrained")
    place = figure if of_figure else ax
    class_legend(place, {"dent": "#D55E00", "gap": "blue"})
    legend = figure.legends[0] if of_figure else ax.get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["dent", "gap"]
    colours = [
        plt.matplotlib.colors.to_hex(patch.get_facecolor()) for patch in legend.get_patches()
    ]
    assert colours == ["#d55e00", "#0000ff"]


def test_nothing_to_draw_and_missing_titles_are_refused():
    with pytest.raises(ValueError, match="nothing to draw"):
        show_panels([])
    with pytest.raises(ValueError, match="2 pictures and 1 titles: give one for each"):
        show_panels([np.eye(2)] * 2, ["one"])
