"""Shrinking and dilation: the three numbers, widened labels, cuts, and pupils that we know."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array

from cloudlearn.cars import dilation as module
from cloudlearn.cars.data import scene_arrays
from cloudlearn.cars.dilation import (
    area_ratio,
    dilate_labels,
    dilation_experiment,
    erode,
    inside_share,
    one_class,
    shrink_experiment,
)
from cloudlearn.masks import dilate
from cloudlearn.samples import Samples
from cloudlearn.scores import boundary_distance, dice, fit_thresholds

MASKS = any_array(bool, (7, 9), elements=st.booleans())


# ------------------------------------------------------------------------------------ three numbers


@given(MASKS, MASKS)
def test_shares_count_pixels(pred, true):
    ratio, share = area_ratio(pred, true), inside_share(pred, true)
    both = sum(p and t for p, t in zip(pred.ravel(), true.ravel()))
    assert np.isnan(ratio) if not true.any() else ratio == pred.sum() / true.sum()
    assert np.isnan(share) if not pred.any() else share == both / pred.sum()


def test_leading_axes_and_empty_masks():
    rng = np.random.default_rng(1)
    pred, true = rng.random((2, 3, 2, 8, 9)) > 0.6
    pred[0, 0], true[1, 1] = False, False
    for measure in (area_ratio, inside_share, boundary_distance):
        stack = measure(pred, true)
        assert stack.shape == (3, 2)
        one_by_one = [[measure(p, t) for p, t in zip(*row)] for row in zip(pred, true)]
        np.testing.assert_array_equal(stack, one_by_one)
    assert area_ratio(pred, true)[0, 0] == 0
    assert np.isnan(inside_share(pred, true)[0, 0])
    assert np.isnan(area_ratio(pred, true)[1, 1])
    # a full picture has no boundary
    assert np.isnan(boundary_distance(np.ones((4, 4), bool), np.eye(4, dtype=bool)))


@pytest.mark.parametrize("measure", [area_ratio, inside_share, boundary_distance])
@pytest.mark.parametrize(
    "pred, true",
    [
        (np.zeros((4, 4), bool), np.zeros((4, 5), bool)),
        (np.zeros((4, 4)), np.zeros((4, 4), bool)),
        (np.zeros(4, bool), np.zeros(4, bool)),
    ],
)
def test_only_two_masks_of_one_shape(measure, pred, true):
    with pytest.raises(ValueError, match="set a threshold first|must have one shape"):
        measure(pred, true)


# ----------------------------------------------------------------------------------- there and back


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


# ------------------------------------------------------------------------------------------- labels


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
    widened = dilate_labels(alone, 1, classes=("spacing",))
    np.testing.assert_array_equal(widened.masks, dilate(alone.masks, 1))


# --------------------------------------------------------------------------------------------- cuts


def test_the_cut_is_chosen_after_what_is_done_to_the_masks():
    label = np.zeros((2, 1, 20, 24), bool)
    label[:, 0, 9:11, 6:18] = True
    arrays = small(n=2)._replace(masks=label, known=np.ones((2, 1), bool))
    around = np.where(dilate(label[:, 0], 2), 0.4, 0.0)
    probs = np.where(label[:, 0], 0.9, around).astype(np.float32)

    def cuts_after(after):
        found = module.both_cuts((probs, probs), arrays, after)
        return {name: (cut, masks) for name, cut, masks in found}

    plain, taken_back = cuts_after(None), cuts_after(lambda mask: erode(mask, 2))
    assert 0.4 <= plain["fitted"][0] < 0.9
    assert taken_back["fitted"][0] < 0.4
    assert plain["half"][0] == taken_back["half"][0] == 0.5
    np.testing.assert_array_equal(taken_back["fitted"][1], label[:, 0])
    assert not taken_back["half"][1].any() and (plain["half"][1] == label[:, 0]).all()


# ------------------------------------------------------------ experiments, with pupils that we know

SHAPE, COUNTS = (64, 96), (3, 2, 3)


@pytest.fixture
def lessons(monkeypatch):
    "For every training a perfect pupil who widens as its labels were; what it was given is kept."
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
            # what is scored was never widened
            np.testing.assert_array_equal(arrays.masks, kept.masks)
        wide = [dilate(arrays.masks[:, 0], radius) for arrays in seen]
        return [np.where(mask, 0.9, 0.1).astype(np.float32) for mask in wide]

    monkeypatch.setattr(module, "spacing_split", split)
    monkeypatch.setattr(module, "learn_thin", learn)
    return given_


def test_perfect_pupils_of_widened_labels(lessons):
    frame = dilation_experiment(
        seeds=(0, 1), radii=(1, 2), gaps=(0.03,), pictures=COUNTS, epochs=5, shape=SHAPE
    )
    assert [run["radius"] for run in lessons] == [0, 1, 2, 0, 0] * 2
    assert {run["epochs"] for run in lessons} == {5}
    assert [run["seed"] for run in lessons] == [0] * 5 + [1] * 5
    assert [run["loss"] for run in lessons[:5]] == ["bce"] * 4 + ["weighted-bce"]
    assert lessons[3]["learning_rate"] < lessons[4]["learning_rate"]
    assert not frame.duplicated(["seed", "arm", "gap", "radius", "picture", "cut"]).any()
    assert len(frame) == 2 * (4 + 2 * 3) * 2 * COUNTS[2]
    for seed in (0, 1):
        numbers = range(10_000 * seed + 5, 10_000 * seed + 8)
        true = scene_arrays(numbers, "gap", SHAPE, gap=0.03).masks[:, 2]
        for radius in (1, 2):
            wide = dilate(true, radius)
            wanted = {
                "dilated labels": wide,
                "dilated prediction": wide,
                "eroded back": erode(wide, radius),
            }
            for arm, mask in wanted.items():
                here = (frame["seed"] == seed) & (frame["arm"] == arm)
                here &= (frame["radius"] == radius) & (frame["cut"] == "half")
                rows = frame[here]
                assert rows["picture"].tolist() == [f"gap-{number}" for number in numbers]
                np.testing.assert_allclose(rows["dice"], dice(mask, true), atol=6e-5)
                np.testing.assert_allclose(rows["dilated_dice"], dice(mask, wide), atol=6e-5)
                np.testing.assert_allclose(rows["area_ratio"], area_ratio(mask, true), atol=6e-5)
    assert (frame.loc[frame["arm"] == "baseline", "dice"] == 1).all()


def test_controls_that_need_a_training_run_on_the_first_gap(lessons):
    frame = dilation_experiment(
        seeds=(0,), radii=(1,), gaps=(0.03, 0.08), pictures=COUNTS, shape=SHAPE
    )
    assert len(lessons) == 4 + 2
    everywhere = {"blind", "baseline", "dilated labels", "dilated prediction", "eroded back"}
    assert set(frame.loc[frame["gap"] == 0.08, "arm"]) == everywhere


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
    blind = np.broadcast_to(mean, valid.shape)
    (threshold,) = fit_thresholds(blind[:, None], valid[:, None])
    np.testing.assert_allclose(rows["threshold"], threshold, atol=6e-5)
    wanted = [dice(mean > threshold, true) for true in test]
    np.testing.assert_allclose(rows["dice"], wanted, atol=6e-5)


def test_shrinking_pupils(monkeypatch):
    def timid(train, seen, seed, loss, epochs):
        probs = []
        for arrays in seen:
            label = arrays.masks[:, 0]
            rest = np.where(label, 0.3, 0.0)
            probs.append(np.where(erode(label, 1), 0.9, rest).astype(np.float32))
        return probs

    monkeypatch.setattr(module, "learn_thin", timid)
    frame = shrink_experiment(
        seeds=(0,), losses=("bce", "dice"), gaps=(0.03, 0.1), pictures=COUNTS, shape=SHAPE
    )
    assert len(frame) == 2 * 2 * 2 * COUNTS[2]
    half, fitted = (frame[frame["cut"] == name] for name in ("half", "fitted"))
    assert (half["area_ratio"] < 1).all()
    assert (half["inside_share"].dropna() == 1).all()
    assert (half["boundary_distance"].dropna() < 0).all()
    assert (fitted["dice"] == 1).all()
    assert (fitted["boundary_distance"] == 0).all()
    assert fitted["threshold"].between(0.01, 0.3).all()
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
        assert one.shape == arrays.masks[:, 0].shape
        assert one.dtype == np.float32
        assert 0 <= one.min() <= one.max() <= 1
        np.testing.assert_array_equal(one, two)
