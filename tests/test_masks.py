"""Masks: run lengths, resizing, dilation, components, polygons and drawing, by brute force."""

import subprocess
import sys
import tracemalloc
from fractions import Fraction

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from matplotlib.path import Path as Outline
from pycocotools import mask as coco

from cloudlearn import masks
from cloudlearn.masks import (
    COLOURS,
    MAX_PIXELS,
    dilate,
    overlay,
    polygon_mask,
    remove_small,
    resize_mask,
    rle_decode,
    rle_decode_small,
    rle_encode,
    rle_runs,
    show,
)

# pycocotools under numpy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=24))
STACKS = arrays(bool, array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=8))
SIZES = st.tuples(st.integers(1, 30), st.integers(1, 30))
# an L, for which order and origin show
LETTER = np.array([[0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 1, 1, 1]]) == 1


def box(x0, y0, x1, y1, shape):
    mask = np.zeros(shape, bool)
    mask[y0:y1, x0:x1] = True
    return mask


# -------------------------------------------------------------------------------------- run lengths


def test_order_and_origin_are_the_competitions():
    assert rle_encode(LETTER) == "5 4 12 1 16 1"
    assert (rle_decode("5 4 12 1 16 1", (4, 4)) == LETTER).all()
    assert rle_encode(box(0, 0, 1, 1, (3, 5))) == "1 1"
    assert rle_encode(box(4, 2, 5, 3, (3, 5))) == "15 1"
    assert rle_encode(box(1, 0, 2, 1, (3, 5))) == "4 1"  # the next column starts after three rows


def test_published_example():
    on = 1 + np.flatnonzero(rle_decode("1 3 10 5", (4, 5)).T)
    assert on.tolist() == [1, 2, 3, 10, 11, 12, 13, 14]


@given(MASKS)
def test_there_and_back(mask):
    text = rle_encode(mask)
    assert (rle_decode(text, mask.shape) == mask).all()
    assert rle_encode(rle_decode(text, mask.shape)) == text
    assert rle_encode(np.asfortranarray(mask)) == text
    assert rle_encode(np.repeat(mask, 2, axis=1)[:, ::2]) == text  # strided memory
    assert rle_encode(mask.astype(np.uint8) * 255) == rle_encode(mask.astype(np.int64)) == text


@given(MASKS)
def test_runs_are_the_maximal_ones(mask):
    starts, lengths = rle_runs(rle_encode(mask), mask.size)
    assert starts.dtype == lengths.dtype == np.int64
    assert lengths.sum() == mask.sum()
    assert (starts[1:] > (starts + lengths)[:-1]).all()  # a gap between all runs


@given(MASKS)
def test_equal_to_pycocotools(mask):
    starts, lengths = rle_runs(rle_encode(mask), mask.size)
    counts = np.diff(np.c_[starts, starts + lengths].ravel(), prepend=0, append=mask.size).tolist()
    assert sum(counts) == mask.size  # pycocotools reads beyond a short list
    counts = counts if counts[-1] else counts[:-1]
    packed = coco.frPyObjects({"size": mask.shape, "counts": counts}, *mask.shape)
    assert packed == coco.encode(np.asfortranarray(mask, dtype=np.uint8))
    assert (coco.decode(packed) == rle_decode(rle_encode(mask), mask.shape)).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (3, 5)])
def test_extremes(shape):
    assert rle_encode(np.zeros(shape, bool)) == ""
    assert rle_encode(np.ones(shape, bool)) == f"1 {shape[0] * shape[1]}"
    last = np.zeros(shape, bool)
    last[-1, -1] = True
    assert (rle_decode(rle_encode(last), shape) == last).all()


@pytest.mark.parametrize(
    "empty", ["", "  ", "\n", None, float("nan"), np.nan, np.float32("nan"), pd.NA]
)
def test_empty_means_no_pixel(empty):
    assert not rle_decode(empty, (3, 4)).any()
    assert not rle_decode_small(empty, (4, 4), (2, 2)).any()
    assert [len(part) for part in rle_runs(empty, 12)] == [0, 0]


@pytest.mark.parametrize("text", ["5 4 12 1 16 1", " 5 4  12 1\t16 1 \n", "5 2 7 2 12 1 16 1"])
def test_blanks_and_touching_runs_are_fine(text):
    assert (rle_decode(text, (4, 4)) == LETTER).all()


@pytest.mark.parametrize(
    "text, quoted, reason",
    [
        ("5", "run 1 of 1, '5'", "no length"),
        ("5 4 12", "run 2 of 2, '12'", "no length"),
        ("5 0", "'5 0'", "length below 1"),
        ("5 4 10 -2", "run 2 of 2, '10 -2'", "length below 1"),
        ("0 3", "'0 3'", "before pixel 1"),
        ("-1 3", "'-1 3'", "before pixel 1"),
        ("5 4 7 2", "run 2 of 2, '7 2'", "runs rise"),
        ("5 4 5 4", "run 2 of 2, '5 4'", "runs rise"),
        ("9 2 3 1", "run 2 of 2, '3 1'", "runs rise"),
        ("1 17", "'1 17'", "last pixel, 16"),
        ("16 2", "'16 2'", "last pixel, 16"),
        ("17 1", "'17 1'", "last pixel, 16"),
        ("1 2 5 99999999999999999999", "run 2 of 2", "last pixel, 16"),
        ("9223372036854775807 9223372036854775807", "run 1 of 1", "last pixel, 16"),
        ("5 four", "'5 four'", "whole numbers"),
        ("1 2 5.0 4", "run 2 of 2, '5.0 4'", "whole numbers"),
        ("1 2 5,4", "run 2 of 2, '5,4'", "whole numbers"),
        ("1 2 1_0 4", "'1_0 4'", "whole numbers"),
        ("١ ٢", "run 1 of 1", "whole numbers"),
        ("5-3", "'5-3'", "whole numbers"),
        ("nan", "'nan'", "whole numbers"),
    ],
)
def test_malformed_text_is_refused_and_quoted(text, quoted, reason):
    readers = [
        lambda: rle_runs(text, 16),
        lambda: rle_decode(text, (4, 4)),
        lambda: rle_decode_small(text, (4, 4), (2, 2)),
    ]
    for read in readers:
        with pytest.raises(ValueError) as caught:
            read()
        assert quoted in str(caught.value) and reason in str(caught.value)


def test_last_pixel_is_allowed_and_the_next_is_not():
    assert rle_decode("16 1", (4, 4))[3, 3]
    assert rle_decode("1 16", (4, 4)).all()
    with pytest.raises(ValueError, match="last pixel, 15"):
        rle_decode("1 16", (3, 5))


@pytest.mark.parametrize("value", [5, 1.5, b"1 2", ["1 2"]])
def test_other_types_are_refused(value):
    with pytest.raises(ValueError, match="is a string"):
        rle_runs(value, 16)


@pytest.mark.parametrize("shape", [(2**14, 2**14 + 1), (0, 5), (5, -1), (5,), (5, 5, 3), (2.5, 4)])
def test_impossible_sizes_are_refused(shape):
    readers = [
        lambda: rle_decode("1 1", shape),
        lambda: rle_decode_small("1 1", (4, 4), shape),
        lambda: resize_mask(LETTER, shape),
        lambda: polygon_mask([[0, 0], [1, 0], [1, 1]], shape),
    ]
    for read in readers:
        with pytest.raises(ValueError, match="height, width|limit"):
            read()


@pytest.mark.parametrize("size", [0, -3, MAX_PIXELS + 1])
def test_runs_check_the_size(size):
    with pytest.raises(ValueError, match="outside 1 to"):
        rle_runs("1 1", size)


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (np.full((3, 3), 0.5), "set a threshold"),
        (np.array([[0, 1], [2, 0]]), "class map"),
        (np.ones(4, bool), "axes"),
        (np.ones((2, 2, 2), bool), "axes"),
    ],
)
def test_what_is_no_mask_is_not_encoded(wrong, reason):
    with pytest.raises(ValueError, match=reason):
        rle_encode(wrong)


# ------------------------------------------------------------------------------------- another size


def centre(new, old_side, new_side):
    "The old pixel under a new pixel's centre, in exact fractions."
    return int((new + Fraction(1, 2)) * old_side / new_side)


@given(MASKS, SIZES)
def test_resize_copies_the_pixel_under_the_centre(mask, shape):
    rows = [centre(new, mask.shape[0], shape[0]) for new in range(shape[0])]
    columns = [centre(new, mask.shape[1], shape[1]) for new in range(shape[1])]
    assert (resize_mask(mask, shape) == mask[np.ix_(rows, columns)]).all()


@given(STACKS, SIZES)
def test_resize_keeps_leading_axes(stack, shape):
    small = resize_mask(stack, shape)
    assert small.shape == (*stack.shape[:-2], *shape) and small.dtype == bool
    flat = stack.reshape(-1, *stack.shape[-2:])
    assert (small.reshape(-1, *shape) == [resize_mask(one, shape) for one in flat]).all()
    assert (resize_mask(stack, stack.shape[-2:]) == stack).all()


@pytest.mark.parametrize(
    "old, new",
    [
        ((1400, 2100), (350, 525)),
        ((1400, 2100), (160, 240)),
        ((1400, 2100), (384, 576)),
        ((350, 525), (160, 240)),
        ((35, 52), (140, 208)),
    ],
)
def test_equal_to_torch_nearest_exact(old, new):
    torch = pytest.importorskip("torch")
    mask = np.random.default_rng(0).random(old) < 0.5
    plane = torch.from_numpy(mask)[None, None].float()
    theirs = torch.nn.functional.interpolate(plane, size=new, mode="nearest-exact")
    assert (resize_mask(mask, new) == theirs[0, 0].numpy().astype(bool)).all()


def test_parts_from_torch_only_where_a_centre_lies_on_a_border():
    torch = pytest.importorskip("torch")
    for old, new in np.random.default_rng(0).integers(1, 300, size=(300, 2)):
        ruler = torch.arange(old, dtype=torch.float32)[None, None]
        theirs = torch.nn.functional.interpolate(ruler, size=int(new), mode="nearest-exact")
        on_a_border = (2 * np.arange(new) + 1) * old % (2 * new) == 0
        differs = theirs[0, 0].numpy().astype(int) != masks._centres(old, new)
        assert not (differs & ~on_a_border).any()


@given(MASKS, SIZES)
def test_small_decode_equals_the_long_way(mask, small):
    text = rle_encode(mask)
    long_way = resize_mask(rle_decode(text, mask.shape), small)
    assert (rle_decode_small(text, mask.shape, small) == long_way).all()


@pytest.mark.parametrize(
    "small",
    [(350, 525), (160, 240), (333, 517), (1, 1), (1399, 2099), (1400, 2100), (1400, 7), (3, 2100)],
)
def test_small_decode_at_full_size(small):
    mask = box(300, 200, 1100, 900, (1400, 2100)) ^ box(900, 500, 1600, 1250, (1400, 2100))
    mask[:, ::13] = False
    assert (rle_decode_small(rle_encode(mask), mask.shape, small) == resize_mask(mask, small)).all()


def test_small_decode_never_builds_the_full_mask():
    text = rle_encode(box(300, 200, 1100, 900, (1400, 2100)))
    rle_decode_small(text, (1400, 2100), (160, 240))
    tracemalloc.start()
    rle_decode_small(text, (1400, 2100), (160, 240))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1400 * 2100 / 4


# ----------------------------------------------------------------------------------------- dilation


def near(mask, radius):
    "Dilation by its definition: all squared distances, in whole numbers."
    step = np.argwhere(np.ones_like(mask))[:, None] - np.argwhere(mask)
    return ((step**2).sum(-1) <= radius**2).any(1).reshape(mask.shape)


@given(arrays(bool, (13, 17), elements=st.sampled_from([False] * 30 + [True])), st.integers(0, 25))
def test_dilate_equals_its_definition(mask, radius):
    assert (dilate(mask, radius) == near(mask, radius)).all()


@pytest.mark.parametrize("radius", [17, 18, 19, 20, 21, 22, 33])
@pytest.mark.parametrize("seed", range(3))
def test_both_roads_meet(radius, seed):
    mask = np.random.default_rng(seed).random((60, 50)) < 0.002
    mask[30, 25] = True
    assert (dilate(mask, radius) == near(mask, radius)).all()


@given(STACKS, st.integers(0, 3))
def test_dilate_every_mask_of_a_stack(stack, radius):
    wide = dilate(stack, radius)
    assert wide.shape == stack.shape and wide.dtype == bool
    flat, shape = stack.reshape(-1, *stack.shape[-2:]), stack.shape[-2:]
    assert (wide.reshape(-1, *shape) == [dilate(one, radius) for one in flat]).all()
    assert (dilate(stack, 0) == stack).all() and (wide >= stack).all()


@given(MASKS, MASKS, st.integers(0, 4))
def test_dilation_of_a_union_is_the_union_of_dilations(one, other, radius):
    height, width = np.minimum(one.shape, other.shape)
    one, other = one[:height, :width], other[:height, :width]
    assert (dilate(one | other, radius) == dilate(one, radius) | dilate(other, radius)).all()


def test_dilate_moves_with_the_mask_and_leaves_its_input():
    mask = np.zeros((40, 40), bool)
    mask[10, 12] = True
    kept = mask.copy()
    moved = np.roll(mask, (9, 7), axis=(0, 1))
    assert (np.roll(dilate(mask, 6), (9, 7), axis=(0, 1)) == dilate(moved, 6)).all()
    assert (mask == kept).all()
    assert dilate(mask, 6).sum() == 113  # the pixels of a disk of radius 6


@pytest.mark.parametrize("radius", [60, 150, 333, 499, 500])
def test_a_long_radius_is_exact(radius):
    mask = np.zeros((4, radius + 3), bool)
    mask[0, 0] = True
    assert (dilate(mask, radius) == near(mask, radius)).all()
    assert (dilate(mask.T, radius) == near(mask, radius).T).all()


def test_dilate_nothing_and_everything():
    empty, full = np.zeros((5, 6), bool), np.ones((5, 6), bool)
    for radius in (0, 1, 19, 20, 500):
        assert not dilate(empty, radius).any() and dilate(full, radius).all()


@pytest.mark.parametrize("radius", [-1, 1.5, 501, float("nan"), float("inf")])
def test_bad_radius(radius):
    with pytest.raises(ValueError):
        dilate(LETTER, radius)


# --------------------------------------------------------------------------------------- components


def components(mask):
    "All 8-neighbour components as sets of pixels, by flood fill."
    left, found = set(map(tuple, np.argwhere(mask))), []
    while left:
        part, edge = set(), {left.pop()}
        while edge:
            part |= edge
            edge = {(r + i, c + j) for r, c in edge for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= edge
        found.append(part)
    return found


@given(MASKS, st.integers(0, 30))
def test_remove_small_equals_flood_fill(mask, area):
    expected = np.zeros_like(mask)
    for part in components(mask):
        if len(part) > area:
            expected[tuple(np.array(list(part)).T)] = True
    assert (remove_small(mask, area) == expected).all()


def test_exactly_the_area_goes_and_corners_hang_together():
    chain = np.eye(4, dtype=bool)
    assert (remove_small(chain, 3) == chain).all()
    assert not remove_small(chain, 4).any()
    assert (remove_small(chain[::-1], 3) == chain[::-1]).all()


@given(STACKS, st.integers(0, 5))
def test_remove_small_every_mask_of_a_stack(stack, area):
    kept = remove_small(stack, area)
    assert kept.shape == stack.shape
    assert (kept <= stack).all()
    assert (remove_small(kept, area) == kept).all()
    flat, shape = stack.reshape(-1, *stack.shape[-2:]), stack.shape[-2:]
    assert (kept.reshape(-1, *shape) == [remove_small(one, area) for one in flat]).all()
    assert (remove_small(stack, 0) == stack).all()


def test_background_never_comes_on():
    speck = box(3, 3, 5, 5, (50, 60))
    assert not remove_small(speck, 4).any()
    assert (remove_small(speck, 3) == speck).all()
    assert remove_small(np.ones((5, 5), bool), 24).all()
    assert not remove_small(np.zeros((5, 5), bool), 0).any()


@pytest.mark.parametrize("area", [-1, float("nan")])
def test_bad_area(area):
    with pytest.raises(ValueError, match="from 0"):
        remove_small(LETTER, area)


# ----------------------------------------------------------------------------------------- polygons


def star(seed, corners=9, middle=(40.0, 30.0)):
    "A polygon that does not cross itself: corners at rising angles around a middle."
    rng = np.random.default_rng(seed)
    angle = 2 * np.pi * rng.uniform(1, 3, corners).cumsum()
    angle = angle / angle[-1] * 2 * np.pi
    reach = rng.uniform(6, 28, (corners, 1))
    return np.stack([np.cos(angle), np.sin(angle)], axis=1) * reach + middle


@given(st.integers(-5, 20), st.integers(-5, 20), st.integers(1, 20), st.integers(1, 20))
def test_a_rectangle_has_its_area(x, y, width, height):
    corners = [[x, y], [x + width, y], [x + width, y + height], [x, y + height]]
    expected = box(max(x, 0), max(y, 0), max(x + width, 0), max(y + height, 0), (15, 12))
    assert (polygon_mask(corners, (15, 12)) == expected).all()


def test_a_centre_on_the_edge_belongs_to_the_shape_below_and_right_of_it():
    corners = np.array([[0.5, 0.5], [3.5, 0.5], [3.5, 2.5], [0.5, 2.5]])
    assert (polygon_mask(corners, (5, 6)) == box(0, 0, 3, 2, (5, 6))).all()
    assert (polygon_mask(corners + [1, 2], (5, 6)) == box(1, 2, 4, 4, (5, 6))).all()


@pytest.mark.parametrize("seed", range(20))
def test_centres_inside_are_on(seed):
    corners = star(seed)
    rows, columns = np.indices((60, 80))
    centres = np.c_[columns.ravel(), rows.ravel()] + 0.5
    inside = Outline(corners).contains_points(centres).reshape(60, 80)
    assert (polygon_mask(corners, (60, 80)) == inside).all()


@pytest.mark.parametrize("seed", range(20))
def test_start_and_direction_do_not_matter(seed):
    corners = star(seed)
    mask = polygon_mask(corners, (60, 80))
    assert (polygon_mask(np.roll(corners, seed % 9, axis=0), (60, 80)) == mask).all()
    assert (polygon_mask(corners[::-1], (60, 80)) == mask).all()


def test_ties_do_not_depend_on_direction():
    # edges pass exactly through centres
    for corners in np.random.default_rng(0).integers(0, 60, (300, 3, 2)) + 0.5:
        assert (polygon_mask(corners, (60, 60)) == polygon_mask(corners[::-1], (60, 60))).all()


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_two_halves_share_no_pixel_and_lose_none(seed, whole):
    corners = star(seed)
    if whole:
        corners = corners.round() + 0.5  # with corners on pixel centres every tie is met
    one = polygon_mask(corners[:5], (60, 80)).astype(int)
    other = polygon_mask(corners[[4, 5, 6, 7, 8, 0]], (60, 80)).astype(int)
    assert ((one + other) % 2 == polygon_mask(corners, (60, 80))).all()


@pytest.mark.parametrize("seed", range(10))
def test_outside_is_cut_off(seed):
    corners = star(seed)
    whole, part = polygon_mask(corners, (60, 80)), polygon_mask(corners - [20, 15], (30, 35))
    assert (part == whole[15:45, 20:55]).all()


def edge_distance(corners, shape):
    "How far every pixel's centre is from the nearest edge."
    centre = np.stack(np.indices(shape)[::-1], axis=-1)[..., None, :] + 0.5
    edge = np.roll(corners, -1, axis=0) - corners
    along = np.clip(((centre - corners) * edge).sum(-1) / (edge**2).sum(-1), 0, 1)
    return np.linalg.norm(corners + along[..., None] * edge - centre, axis=-1).min(-1)


@pytest.mark.parametrize("seed", range(20))
def test_equal_to_pycocotools_but_for_centres_on_the_edge(seed):
    corners = star(seed)
    theirs = coco.decode(coco.frPyObjects([corners.ravel().tolist()], 60, 80))[..., 0] == 1
    differs = theirs != polygon_mask(corners, (60, 80))
    assert (edge_distance(corners, (60, 80))[differs] < 0.25).all()


def test_crossing_twice_is_outside():
    bow = polygon_mask([[0, 0], [8, 8], [8, 0], [0, 8]], (8, 8))
    assert bow[4, 1] and bow[4, 6] and not bow[1, 4] and not bow[6, 4]
    twice = [[0, 0], [6, 0], [6, 6], [0, 6]] * 2
    assert not polygon_mask(twice, (8, 8)).any()


@pytest.mark.parametrize(
    "corners, reason",
    [
        ([[0, 0], [1, 1]], "three or more"),
        ([], "three or more"),
        ([0, 1, 2, 3, 4, 5], "three or more"),
        ([[0, 0, 1]] * 3, "three or more"),
        ([[0, 0], [1, np.nan], [2, 2]], "finite"),
        ([[0, 0], [1, np.inf], [2, 2]], "finite"),
        ([[0, 0], [1e300, 1], [2, 2]], "finite"),
    ],
)
def test_bad_polygons(corners, reason):
    with pytest.raises(ValueError, match=reason):
        polygon_mask(corners, (8, 8))


# ------------------------------------------------------------------------------------------ drawing

GREY = np.full((60, 90, 3), 128, np.uint8)
LEFT, RIGHT = box(10, 10, 55, 50, (60, 90)), box(35, 10, 80, 50, (60, 90))


def colour(name):
    return [int(COLOURS[name][i : i + 2], 16) for i in (1, 3, 5)]


def test_overlay_mixes_inside_and_leaves_the_rest():
    picture = np.random.default_rng(0).integers(0, 256, GREY.shape, dtype=np.uint8)
    kept = picture.copy()
    drawn = overlay(picture, np.stack([LEFT, RIGHT]), ["Fish", COLOURS["Sugar"]], alpha=0.25)
    assert drawn.dtype == np.uint8 and (picture == kept).all()
    assert (drawn[~(LEFT | RIGHT)] == picture[~(LEFT | RIGHT)]).all()
    mixed = 0.75 * picture[30, 20] + 0.25 * np.array(colour("Fish"))
    assert np.abs(drawn[30, 20] - mixed).max() <= 0.5
    both = (np.array(colour("Fish")) + colour("Sugar")) / 2
    assert np.abs(drawn[30, 45] - (0.75 * picture[30, 45] + 0.25 * both)).max() <= 0.5


def test_outlines_stay_visible_where_classes_overlap():
    drawn = overlay(GREY, np.stack([LEFT, RIGHT]), ["Fish", "Sugar"])
    assert (drawn[30, 54] == colour("Fish")).all()  # the rim of the left box, inside the right one
    assert (drawn[30, 35] == colour("Sugar")).all()
    shared = {tuple(pixel) for pixel in drawn[10, 36:54].tolist()}
    assert shared == {tuple(colour("Fish")), tuple(colour("Sugar"))}  # dashes of both, nothing else


def test_identical_masks_show_all_colours():
    drawn = overlay(GREY, np.stack([LEFT] * 3), ["Fish", "Flower", "Gravel"])
    shown = {tuple(pixel) for pixel in drawn[10, 10:55].tolist()}
    assert shown == {tuple(colour(name)) for name in ("Fish", "Flower", "Gravel")}


def test_outline_closes_at_the_picture_edge_and_alpha_zero_draws_it_alone():
    drawn = overlay(GREY, np.ones((1, 60, 90), bool), ["Fish"], alpha=0)
    assert (drawn[0] == colour("Fish")).all() and (drawn[:, -1] == colour("Fish")).all()
    assert (drawn[1:-1, 1:-1] == 128).all()


def test_no_masks_no_change():
    assert (overlay(GREY, np.zeros((0, 60, 90), bool), []) == GREY).all()
    assert (overlay(GREY, np.zeros((2, 60, 90), bool), ["Fish", "Sugar"]) == GREY).all()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((GREY, LEFT[None], ["Whale"]), "neither"),
        ((GREY, LEFT[None], ["#12345"]), "neither"),
        ((GREY, LEFT[None], []), "C colours"),
        ((GREY / 255, LEFT[None], ["Fish"]), "uint8"),
        ((GREY[:50], LEFT[None], ["Fish"]), "uint8"),
        ((GREY, LEFT, ["Fish"]), "axes"),
    ],
)
def test_bad_drawings(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        overlay(*arguments)


def test_show_names_the_classes_that_are_there():
    three = np.stack([LEFT, np.zeros_like(LEFT), RIGHT])
    ax = show(GREY, three, ["Fish", "Flower", "seam"], title="three")
    assert ax.get_title() == "three" and len(ax.images) == 1
    assert [entry.get_text() for entry in ax.get_legend().get_texts()] == ["Fish", "seam"]
    assert show(GREY, ax=ax) is ax


def test_show_without_names_or_masks():
    assert show(GREY).get_legend() is None
    assert show(GREY, np.zeros((1, 60, 90), bool)).get_legend() is None
    many = show(GREY, np.stack([LEFT] * 9)).get_legend().get_texts()
    assert [entry.get_text() for entry in many] == [f"mask {i}" for i in range(9)]
    with pytest.raises(ValueError, match="one name per mask"):
        show(GREY, LEFT[None], ["Fish", "Sugar"])


def test_one_colour_per_class():
    assert list(COLOURS) == ["Fish", "Flower", "Gravel", "Sugar", "dent", "scratch", "spacing"]
    assert len(set(COLOURS.values())) == len(COLOURS)
    assert all(masks._rgb(name).tolist() == colour(name) for name in COLOURS)


# ------------------------------------------------------------------------------------------- import


def test_import_is_light():
    code = (
        "import sys, cloudlearn.masks; "
        "print({'torch', 'matplotlib', 'pandas', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


@pytest.mark.parametrize(
    "shape", [(None, 3), ("a", 3), None, 7, (float("nan"), 3), (float("inf"), 3), "34"]
)
def test_no_shape_is_a_sentence(shape):
    with pytest.raises(ValueError, match="two whole numbers from 1; got"):
        rle_decode("1 1", shape)
