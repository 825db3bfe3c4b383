"""Shrinking and dilation: the three numbers against their definitions, widened labels, cuts, and the two experiments with pupils that we know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from cloudlearn.cars import dilation as module
from cloudlearn.cars.data import scene_arrays
from cloudlearn.cars.dilation import (
    CUTS,
    area_ratio,
    boundary_distance,
    choose_cut,
    dilate_labels,
    dilation_experiment,
    erode,
    inside_share,
    one_class,
    rim,
    shrink_experiment,
)
from cloudlearn.masks import dilate
from cloudlearn.samples import Samples
from cloudlearn.scores import dice

MASKS = any_array(bool, (7, 9), elements=st.booleans())


def boundary(mask):
    "By the definition: on, with a neighbour inside the picture that is off."
    height, width = mask.shape
    return [
        (y, x)
        for y, x in np.argwhere(mask).tolist()
        if any(
            0 <= v < height and 0 <= u < width and not mask[v, u]
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        )
    ]


def slow_distance(pred, true):
    here, there = boundary(pred), boundary(true)
    if not here or not there:
        return np.nan
    return np.mean(
        [
            (-1 if true[p] else 1) * min(np.hypot(p[0] - q[0], p[1] - q[1]) for q in there)
            for p in here
        ]
    )


# ------------------------------------------------------------------------------------------------ three numbers


@given(MASKS, MASKS)
def test_shares_count_pixels(pred, true):
    ratio, share = area_ratio(pred, true), inside_share(pred, true)
    both = sum(p and t for p, t in zip(pred.ravel(), true.ravel()))
    assert np.isnan(ratio) if not true.any() else ratio == pred.sum() / true.sum()
    assert np.isnan(share) if not pred.any() else share == both / pred.sum()


@given(MASKS)
def test_rim_is_the_definition(mask):
    assert sorted(map(tuple, np.argwhere(rim(mask)).tolist())) == boundary(mask)


@settings(max_examples=60)
@given(MASKS, MASKS)
def test_boundary_distance_is_the_definition(pred, true):
    np.testing.assert_allclose(boundary_distance(pred, true), slow_distance(pred, true), atol=1e-5)


def test_distance_counts_from_boundary_to_boundary():
    square = np.pad(np.ones((5, 5), bool), 4)
    for inside in (1, 2):
        assert boundary_distance(erode(square, inside), square) == -inside
    assert boundary_distance(square, square) == 0
    band = np.zeros((20, 12), bool)
    band[8:12] = True
    for radius in (1, 2, 4):
        assert boundary_distance(dilate(band, radius), band) == radius  # the frame is no boundary


def test_leading_axes_and_empty_masks():
    rng = np.random.default_rng(1)
    pred, true = rng.random((2, 3, 2, 8, 9)) > 0.6
    pred[0, 0], true[1, 1] = False, False
    for measure in (area_ratio, inside_share, boundary_distance):
        stack = measure(pred, true)
        assert stack.shape == (3, 2)
        np.testing.assert_array_equal(
            stack, [[measure(p, t) for p, t in zip(*row)] for row in zip(pred, true)]
        )
    assert (
        area_ratio(pred, true)[0, 0] == 0
        and np.isnan(inside_share(pred, true)[0, 0])
        and np.isnan(area_ratio(pred, true)[1, 1])
    )
    assert np.isnan(
        boundary_distance(np.ones((4, 4), bool), np.eye(4, dtype=bool))
    )  # a full picture has no boundary


@pytest.mark.parametrize("measure", [area_ratio, inside_share, boundary_distance])
@pytest.mark.parametrize(
    "pred, true",
    [
        (np.zeros((4, 4), bool), np.zeros((4, 5), bool)),
        (np.zeros((4, 4)), np.zeros((4, 4), bool)),
        (np.zeros((4, 4), bool), np.zeros((4, 4), np.uint8)),
        (np.zeros(4, bool), np.zeros(4, bool)),
    ],
)
def test_only_two_masks_of_one_shape(measure, pred, true):
    with pytest.raises(ValueError, match="two bool masks"):
        measure(pred, true)


# ------------------------------------------------------------------------------------------------ there and back


@settings(max_examples=40)
@given(MASKS, st.integers(0, 3))
def test_erosion_is_the_definition(mask, radius):
    slow = np.zeros_like(mask)
    for y, x in np.ndindex(mask.shape):
        rows, columns = np.indices(mask.shape)
        slow[y, x] = mask[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2].all()
    np.testing.assert_array_equal(erode(mask, radius), slow)


@settings(max_examples=60)
@given(MASKS, st.integers(0, 3))
def test_there_and_back_loses_nothing_and_adds_nothing_twice(mask, radius):
    closed = erode(dilate(mask, radius), radius)
    assert (closed | mask == closed).all()
    np.testing.assert_array_equal(erode(dilate(closed, radius), radius), closed)
    assert not (dilate(erode(mask, radius), radius) & ~mask).any()


# ------------------------------------------------------------------------------------------------ labels


def small(seed=0, n=4):
    rng = np.random.default_rng(seed)
    return Samples(
        np.array([f"p{i}" for i in range(n)]),
        rng.integers(0, 256, (n, 16, 18, 3), dtype=np.uint8),
        rng.random((n, 3, 16, 18)) > 0.97,
        np.arange(n * 3).reshape(n, 3) % 2 == 0,
    )


@pytest.mark.parametrize("radius", [0, 1, 3])
def test_only_the_named_class_is_widened(radius):
    drawn = small()
    before = drawn.masks.copy()
    wide = dilate_labels(drawn, radius)
    np.testing.assert_array_equal(drawn.masks, before)
    np.testing.assert_array_equal(wide.masks[:, :2], before[:, :2])
    np.testing.assert_array_equal(wide.masks[:, 2], dilate(before[:, 2], radius))
    both = dilate_labels(drawn, radius, ("dent", "scratch"))
    np.testing.assert_array_equal(both.masks[:, :2], dilate(before[:, :2], radius))
    np.testing.assert_array_equal(both.masks[:, 2], before[:, 2])
    assert wide.known is drawn.known and wide.names is drawn.names


def test_one_class_keeps_the_photos_that_were_looked_at():
    drawn = small(n=6)
    for c, name in enumerate(("dent", "scratch", "spacing")):
        alone, rows = one_class(drawn, name), np.flatnonzero(drawn.known[:, c])
        assert alone.known.shape == (len(rows), 1) and alone.known.all()
        np.testing.assert_array_equal(alone.masks[:, 0], drawn.masks[rows, c])
        np.testing.assert_array_equal(alone.pictures, drawn.pictures[rows])


def test_wrong_planes_are_refused():
    alone = one_class(small(), "spacing")
    with pytest.raises(ValueError, match="1 planes"):
        dilate_labels(alone, 1)
    with pytest.raises(ValueError, match="no plane for 'rust'"):
        dilate_labels(small(), 1, ("rust",))
    np.testing.assert_array_equal(
        dilate_labels(alone, 1, classes=("spacing",)).masks, dilate(alone.masks, 1)
    )


# ------------------------------------------------------------------------------------------------ cuts


@pytest.mark.parametrize(
    "after",
    [None, lambda mask: dilate(mask, 1), lambda mask: erode(mask, 1)],
    ids=["plain", "dilate", "erode"],
)
@pytest.mark.parametrize("seed", range(4))
def test_no_cut_is_better(seed, after):
    rng = np.random.default_rng(seed)
    true = dilate(rng.random((3, 20, 24)) > 0.99, 2)
    probs = (0.5 * rng.random(true.shape) + 0.4 * dilate(true, 1)).astype(np.float32)
    finish = after or (lambda mask: mask)
    worth = {cut: dice(finish(probs > cut), true).mean() for cut in CUTS}
    assert worth[choose_cut(probs, true, after)] == max(worth.values())


def test_a_pixel_at_the_cut_is_off():
    true = np.zeros((1, 2, 2), bool)
    true[0, 0, 0] = True
    probs = np.where(true, 0.3, 0.1).astype(np.float32)
    assert choose_cut(probs, true, cuts=(0.05, 0.1, 0.3)) == 0.1


def test_of_equals_the_nearest_to_a_half():
    true = np.zeros((1, 3, 3), bool)
    true[0, 1] = True
    assert choose_cut(np.where(true, 0.99, 0.0), true) == 0.5
    assert choose_cut(np.where(true, 0.3, 0.0), true) == 0.25
    with pytest.raises(ValueError, match="one shape"):
        choose_cut(np.zeros((2, 3, 3)), true)


def test_the_cut_is_chosen_after_what_is_done_to_the_masks():
    label = np.zeros((2, 1, 20, 24), bool)
    label[:, 0, 9:11, 6:18] = True
    arrays = small(n=2)._replace(masks=label, known=np.ones((2, 1), bool))
    probs = np.where(label[:, 0], 0.9, np.where(dilate(label[:, 0], 2), 0.4, 0.0)).astype(
        np.float32
    )
    plain, taken_back = (
        {name: (cut, masks) for name, cut, masks in module.both_cuts((probs, probs), arrays, after)}
        for after in (None, lambda mask: erode(mask, 2))
    )
    assert (
        0.4 <= plain["fitted"][0] < 0.9
        and taken_back["fitted"][0] < 0.4
        and plain["half"][0] == taken_back["half"][0] == 0.5
    )
    np.testing.assert_array_equal(taken_back["fitted"][1], label[:, 0])
    assert not taken_back["half"][1].any() and (plain["half"][1] == label[:, 0]).all()


# ------------------------------------------------------------------------------------------------ experiments, with pupils that we know

SHAPE, COUNTS = (64, 96), (3, 2, 3)


@pytest.fixture
def lessons(monkeypatch):
    "Every training is replaced by a perfect pupil, who has learned how far the labels were widened; what it was given is kept."
    given_, drawn, original = [], [], module.spacing_split

    def split(*args):
        drawn[:] = original(*args)
        return list(drawn)

    def learn(train, seen, seed, loss="bce", epochs=4, learning_rate=3e-3):
        radius = next(r for r in range(6) if (dilate(drawn[0].masks, r) == train.masks).all())
        given_.append(
            dict(seed=seed, loss=loss, epochs=epochs, learning_rate=learning_rate, radius=radius)
        )
        for arrays, kept in zip(seen, drawn[1:]):
            np.testing.assert_array_equal(
                arrays.masks, kept.masks
            )  # what is scored was never widened
        return [
            np.where(dilate(arrays.masks[:, 0], radius), 0.9, 0.1).astype(np.float32)
            for arrays in seen
        ]

    monkeypatch.setattr(module, "spacing_split", split)
    monkeypatch.setattr(module, "learn_thin", learn)
    return given_


def test_perfect_pupils_of_widened_labels(lessons):
    frame = dilation_experiment(
        seeds=(0, 1), radii=(1, 2), gaps=(0.03,), pictures=COUNTS, epochs=5, shape=SHAPE
    )
    assert [run["radius"] for run in lessons] == [0, 1, 2, 0, 0] * 2
    assert {run["epochs"] for run in lessons} == {5} and [run["seed"] for run in lessons] == [
        0
    ] * 5 + [1] * 5
    assert [run["loss"] for run in lessons[:5]] == ["bce"] * 4 + ["weighted-bce"] and lessons[3][
        "learning_rate"
    ] < lessons[4]["learning_rate"]
    assert not frame.duplicated(["seed", "arm", "gap", "radius", "picture", "cut"]).any()
    assert len(frame) == 2 * (4 + 2 * 3) * 2 * COUNTS[2]
    for seed in (0, 1):
        true = scene_arrays(
            range(10_000 * seed + 5, 10_000 * seed + 8), "gap", SHAPE, gap=0.03
        ).masks[:, 2]
        for radius in (1, 2):
            wide = dilate(true, radius)
            for arm, mask in (
                ("dilated labels", wide),
                ("dilated prediction", wide),
                ("eroded back", erode(wide, radius)),
            ):
                rows = frame[
                    (frame["seed"] == seed)
                    & (frame["arm"] == arm)
                    & (frame["radius"] == radius)
                    & (frame["cut"] == "half")
                ]
                assert rows["picture"].tolist() == [f"gap-{10_000 * seed + n}" for n in (5, 6, 7)]
                np.testing.assert_allclose(rows["dice"], dice(mask, true), atol=6e-5)
                np.testing.assert_allclose(rows["dilated_dice"], dice(mask, wide), atol=6e-5)
                np.testing.assert_allclose(rows["area_ratio"], area_ratio(mask, true), atol=6e-5)
    assert (frame.loc[frame["arm"] == "baseline", "dice"] == 1).all()


def test_controls_that_need_a_training_run_on_the_first_gap(lessons):
    frame = dilation_experiment(
        seeds=(0,), radii=(1,), gaps=(0.03, 0.08), pictures=COUNTS, shape=SHAPE
    )
    assert len(lessons) == 4 + 2
    assert set(frame.loc[frame["gap"] == 0.08, "arm"]) == {
        "blind",
        "baseline",
        "dilated labels",
        "dilated prediction",
        "eroded back",
    }


def test_splits_share_no_scene_and_gaps_share_them_all():
    train, valid, test = module.spacing_split(3, 0.03, COUNTS, SHAPE)
    names = [*train.names, *valid.names, *test.names]
    assert len(set(names)) == sum(COUNTS) and names[0] == "gap-30000"
    assert [arrays.masks.shape[1] for arrays in (train, valid, test)] == [1, 1, 1]
    other = module.spacing_split(3, 0.08, COUNTS, SHAPE)
    assert all((a.names == b.names).all() for a, b in zip((train, valid, test), other))
    assert other[0].masks.sum() > train.masks.sum()


def test_the_blind_map_never_looks(lessons):
    frame = dilation_experiment(seeds=(0,), radii=(1,), gaps=(0.08,), pictures=COUNTS, shape=SHAPE)
    train, valid, test = (
        scene_arrays(range(*ends), "gap", SHAPE, gap=0.08).masks[:, 2]
        for ends in ((0, 3), (3, 5), (5, 8))
    )
    mean, rows = train.mean(axis=0), frame[(frame["arm"] == "blind") & (frame["cut"] == "fitted")]
    threshold = choose_cut(np.broadcast_to(mean, valid.shape), valid)
    assert (rows["threshold"] == threshold).all()
    np.testing.assert_allclose(
        rows["dice"], [dice(mean > threshold, true) for true in test], atol=6e-5
    )


def test_shrinking_pupils(monkeypatch):
    def timid(train, seen, seed, loss, epochs):
        return [
            np.where(
                erode(arrays.masks[:, 0], 1), 0.9, np.where(arrays.masks[:, 0], 0.3, 0.0)
            ).astype(np.float32)
            for arrays in seen
        ]

    monkeypatch.setattr(module, "learn_thin", timid)
    frame = shrink_experiment(
        seeds=(0,), losses=("bce", "dice"), gaps=(0.03, 0.1), pictures=COUNTS, shape=SHAPE
    )
    assert len(frame) == 2 * 2 * 2 * COUNTS[2]
    half, fitted = (frame[frame["cut"] == name] for name in ("half", "fitted"))
    assert (
        (half["area_ratio"] < 1).all()
        and (half["inside_share"].dropna() == 1).all()
        and (half["boundary_distance"].dropna() < 0).all()
    )
    assert (
        (fitted["dice"] == 1).all()
        and (fitted["boundary_distance"] == 0).all()
        and fitted["threshold"].between(0.01, 0.3).all()
    )
    assert (half["threshold"] == 0.5).all()


@pytest.mark.parametrize(
    "loss, share", [("bce", 0.02), ("bce-dice", 0.02), ("dice", 0.5), ("weighted-bce", 0.5)]
)
def test_a_network_starts_with_the_best_constant_answer(loss, share):
    label = np.zeros((2, 1, 64, 96), bool)
    label.reshape(-1)[::50] = True
    start = module._start(small(n=2)._replace(masks=label), loss, seed=0)
    assert start[-1].segmentation_head[0].bias.sigmoid().item() == pytest.approx(share, rel=0.01)


def test_a_real_training_repeats_itself():
    train, valid, test = module.spacing_split(0, 0.1, (4, 2, 2), SHAPE)
    first, again = (module.learn_thin(train, (valid, test), seed=0, epochs=1) for _ in range(2))
    for one, two, arrays in zip(first, again, (valid, test)):
        assert (
            one.shape == arrays.masks[:, 0].shape
            and one.dtype == np.float32
            and 0 <= one.min() <= one.max() <= 1
        )
        np.testing.assert_array_equal(one, two)
