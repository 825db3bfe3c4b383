"Scores: Dice, IoU, the empty rule, presence, and intervals over pictures."

import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloudlearn.masks import dilate
from cloudlearn.scores import (
    THRESHOLDS,
    best_threshold,
    bootstrap_interval,
    boundary_distance,
    dice,
    dice_summary,
    fit_thresholds,
    iou,
    presence_confusion,
    rim,
    step_gains,
    surface_distance,
    tolerant_dice,
)

SHAPES = hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6)
MASKS = hnp.arrays(bool, (7, 9))
PAIRS_2D = hnp.arrays(bool, st.tuples(st.just(2), st.integers(1, 9), st.integers(1, 9)))
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


def reference(pred, true, empty=1.0):
    "Dice and IoU of one pair, from sets of pixels."
    p, t = ({tuple(i) for i in np.argwhere(m)} for m in (pred, true))
    if not p | t:
        return empty, empty
    return 2 * len(p & t) / (len(p) + len(t)), len(p & t) / len(p | t)


@given(PAIRS)
@settings(max_examples=150, deadline=None)
def test_dice_and_iou_equal_set_arithmetic(pair):
    pred, true = pair
    each = [reference(pred[i], true[i]) for i in np.ndindex(pred.shape[:-2])]
    wanted = np.array(each).reshape(*pred.shape[:-2], 2)
    np.testing.assert_allclose(dice(pred, true), wanted[..., 0], rtol=0, atol=1e-15)
    np.testing.assert_allclose(iou(pred, true), wanted[..., 1], rtol=0, atol=1e-15)
    assert np.shape(dice(pred, true)) == pred.shape[:-2]


@given(PAIRS)
@settings(max_examples=100, deadline=None)
def test_dice_is_symmetric_bounded_and_a_function_of_iou(pair):
    pred, true = pair
    d, j = dice(pred, true), iou(pred, true)
    assert np.array_equal(d, dice(true, pred)) and np.all((0 <= j) & (j <= d) & (d <= 1))
    np.testing.assert_allclose(d, 2 * j / (1 + j), atol=1e-15)
    assert np.all(dice(true, true) == 1)


@pytest.mark.parametrize("seed", range(6))
def test_mean_dice_is_the_score_of_smp(seed):
    rng = np.random.default_rng(seed)
    pred, true = rng.random((2, 7, 4, 11, 13)) < rng.choice([0, 0.05, 0.6], (2, 7, 4, 1, 1))
    pred[0], true[0] = False, False
    pair = torch.tensor(pred).long(), torch.tensor(true).long()
    counts = smp.metrics.get_stats(*pair, mode="multilabel")
    rule = dict(reduction="macro-imagewise", zero_division=1)
    f1, jaccard = smp.metrics.f1_score(*counts, **rule), smp.metrics.iou_score(*counts, **rule)
    assert dice(pred, true).mean() == pytest.approx(f1.item(), abs=1e-6)
    assert iou(pred, true).mean() == pytest.approx(jaccard.item(), abs=1e-6)


@pytest.mark.parametrize("score", (dice, iou))
def test_the_empty_pair_follows_the_named_policy(score):
    empty, one = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    one[2, 3] = True
    assert score(empty, empty) == 1
    assert score(empty, empty, empty=1) == 1
    assert score(empty, empty, empty=0) == 0
    assert np.isnan(score(empty, empty, empty=float("nan")))
    for policy in (1, 0, float("nan")):  # the policy speaks of nothing but the empty pair
        assert score(one, empty, empty=policy) == 0
        assert score(empty, one, empty=policy) == 0
        assert score(one, one, empty=policy) == 1
    with pytest.raises(ValueError, match="three policies"):
        score(empty, empty, empty=0.5)


@pytest.mark.parametrize("score", (dice, iou))
def test_bad_masks_are_refused_in_words(score):
    mask = np.zeros((4, 5), bool)
    with pytest.raises(ValueError, match="pred holds float64 values.*threshold"):
        score(mask * 0.5, mask)
    with pytest.raises(ValueError, match="true holds float32 values"):
        score(mask, mask.astype(np.float32))
    with pytest.raises(ValueError, match=r"\(4, 5\).*\(5, 4\)"):
        score(mask, mask.T)
    with pytest.raises(ValueError, match="height, width"):
        score(mask[0], mask[0])
    with pytest.raises(ValueError, match="one class at a time"):
        score(np.arange(20).reshape(4, 5), mask)


def test_integer_masks_of_0_1_and_0_255_count_as_bool():
    rng = np.random.default_rng(0)
    pred, true = rng.random((2, 3, 9, 9)) < 0.4
    assert np.array_equal(dice(pred * np.uint8(255), true.astype(int)), dice(pred, true))


def test_dice_does_not_change_its_input_and_takes_views():
    pred, true = np.random.default_rng(0).random((2, 20, 30)) < 0.5
    before = pred.copy()
    assert dice(pred.T, true.T) == dice(pred, true) == dice(pred[::-1], true[::-1])
    assert np.array_equal(pred, before)
    assert dice(np.zeros((0, 4, 3, 3), bool), np.zeros((0, 4, 3, 3), bool)).shape == (0, 4)


@pytest.mark.parametrize("seed", range(3))
def test_blank_scores_the_share_of_empty_pairs(seed):
    rng = np.random.default_rng(seed)
    true = rng.random((50, 4, 6, 6)) < 0.3 * (rng.random((50, 4, 1, 1)) < 0.5)
    present = true.any((-2, -1))
    assert dice(np.zeros_like(true), true).mean() == (~present).mean()
    whole, share = np.ones_like(true) & present[..., None, None], true.mean((-2, -1))
    np.testing.assert_allclose(dice(whole, true), np.where(present, 2 * share / (1 + share), 1))


@pytest.mark.parametrize("seed", range(3))
def test_presence_confusion_counts_every_picture_once(seed):
    rng, names = np.random.default_rng(seed), ["Fish", "Flower", "Gravel"]
    pred, true = rng.random((2, 80, 3)) < 0.4
    table = presence_confusion(pred, true, names)
    cells = {
        "true_positive": (True, True),
        "false_positive": (True, False),
        "false_negative": (False, True),
        "true_negative": (False, False),
    }
    assert list(table.columns) == list(cells)
    assert list(table.index) == names
    for c, name in enumerate(names):
        pairs = list(zip(pred[:, c].tolist(), true[:, c].tolist()))
        assert table.loc[name].tolist() == [pairs.count(cell) for cell in cells.values()]


def test_presence_confusion_refuses_in_words():
    yes = np.ones((5, 2), bool)
    with pytest.raises(ValueError, match="True or False"):
        presence_confusion(yes * 0.7, yes, ["a", "b"])
    with pytest.raises(ValueError, match="a column for each of a"):
        presence_confusion(yes, yes, ["a"])
    with pytest.raises(ValueError, match="must both be"):
        presence_confusion(yes[:4], yes, ["a", "b"])


@pytest.mark.parametrize("shape", [(40,), (40, 4), (40, 2, 3)])
def test_bootstrap_equals_the_plain_loop(shape):
    values = np.random.default_rng(1).random(shape)
    rng = np.random.default_rng(5)
    means = [values[rng.integers(40, size=40)].mean() for _ in range(4000)]
    wanted = np.quantile(means, [0.05, 0.95])
    got = bootstrap_interval(values, draws=4000, seed=5, level=0.9)
    np.testing.assert_allclose(got, wanted, atol=0.1 * (wanted[1] - wanted[0]))
    three, again, four = (bootstrap_interval(values, seed=seed) for seed in (3, 3, 4))
    assert three == again != four


def test_bootstrap_draws_whole_pictures():
    "With the same score in all four classes, four columns tell no more than one."
    one = np.random.default_rng(2).random((60, 1))
    low, high = bootstrap_interval(np.repeat(one, 4, axis=1))
    assert (low, high) == pytest.approx(bootstrap_interval(one), abs=1e-12)
    flat = bootstrap_interval(np.repeat(one, 4))
    assert high - low > 1.6 * (flat[1] - flat[0])


def test_bootstrap_holds_the_true_mean_as_often_as_it_says():
    held = []
    for seed in range(300):
        of_pictures = np.random.default_rng(seed).normal(size=(80, 1))
        of_pairs = 0.5 * np.random.default_rng(seed + 999).normal(size=(80, 4))
        low, high = bootstrap_interval(of_pictures + of_pairs, draws=400, seed=seed)
        held.append(low <= 0 <= high)
    assert 0.90 <= np.mean(held) <= 0.98


def test_bootstrap_leaves_nan_out_pair_by_pair():
    values = np.random.default_rng(3).random((50, 4))
    holes = np.where(np.random.default_rng(4).random((50, 4)) < 0.4, np.nan, values)
    low, high = bootstrap_interval(holes)
    assert low < np.nanmean(holes) < high
    rng = np.random.default_rng(0)
    means = [np.nanmean(holes[rng.integers(50, size=50)]) for _ in range(3000)]
    np.testing.assert_allclose((low, high), np.quantile(means, [0.025, 0.975]), atol=0.012)
    mostly = np.full((3, 1), np.nan)
    mostly[0] = 0.4  # draws without any value are passed over
    assert bootstrap_interval(mostly) == pytest.approx((0.4, 0.4))


def test_bootstrap_refuses_in_words():
    for nothing in (np.full((4, 2), np.nan), np.zeros((0, 4)), np.array(0.5)):
        with pytest.raises(ValueError, match="no value to average"):
            bootstrap_interval(nothing)
    for wrong in (dict(level=95), dict(level=0), dict(draws=0)):
        with pytest.raises(ValueError, match="between 0 and 1"):
            bootstrap_interval(np.ones(3), **wrong)


def test_bootstrap_is_quick():
    values = np.random.default_rng(0).random((1000, 4))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        bootstrap_interval(values)
        seconds.append(time.process_time() - start)
    assert min(seconds) < 0.3


@pytest.mark.parametrize("seed", range(3))
def test_summary_takes_the_mean_apart(seed):
    rng = np.random.default_rng(seed)
    per_pair, present = rng.random((30, 4)), rng.random((30, 4)) < 0.6
    got = dice_summary(per_pair, present, seed=seed)
    assert list(got) == ["dice", "low", "high", "dice_present", "dice_empty"]
    both = got["dice_present"] * present.mean() + got["dice_empty"] * (~present).mean()
    assert got["dice"] == pytest.approx(both)
    assert got["dice_present"] == pytest.approx(per_pair[present].mean())
    assert (got["low"], got["high"]) == bootstrap_interval(per_pair, seed=seed)
    assert all(type(value) is float for value in got.values())


def test_summary_of_one_kind_of_pair_and_bad_input():
    ones = np.ones((5, 4))
    assert np.isnan(dice_summary(ones, ones > 2)["dice_present"])
    assert np.isnan(dice_summary(ones, ones > 0)["dice_empty"])
    with pytest.raises(ValueError, match="pictures, classes"):
        dice_summary(ones, np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="float64 values"):
        dice_summary(ones, ones)
    with pytest.raises(ValueError, match="empty=1"):
        dice_summary(ones * np.nan, ones > 0)
    assert isinstance(pd.DataFrame([dice_summary(ones, ones > 0)]), pd.DataFrame)


@pytest.mark.parametrize("module", ("scores", "decisions"))
def test_import_is_light(module):
    code = (
        f"import sys, cloudlearn.{module}; "
        "print({'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"


# ------------------------------------------------------------------------------------------ borders


def boundary(mask):
    "By the definition: on, with a neighbour inside the picture that is off."
    height, width = mask.shape

    def touches_off(y, x):
        near = ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))
        return any(0 <= v < height and 0 <= u < width and not mask[v, u] for v, u in near)

    return [(y, x) for y, x in np.argwhere(mask).tolist() if touches_off(y, x)]


def slow_distance(pred, true):
    here, there = boundary(pred), boundary(true)
    if not here or not there:
        return np.nan
    distances = []
    for p in here:
        nearest = min(np.hypot(p[0] - q[0], p[1] - q[1]) for q in there)
        distances.append(-nearest if true[p] else nearest)
    return np.mean(distances)


def near(mask, tolerance):
    "Every pair of pixels, measured."
    spots = np.stack(np.indices(mask.shape), -1)[..., None, :] - np.argwhere(mask)
    return (np.hypot(*np.moveaxis(spots, -1, 0)) <= tolerance).any(-1)


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
        assert boundary_distance(~dilate(~square, inside), square) == -inside
    assert boundary_distance(square, square) == 0
    band = np.zeros((20, 12), bool)
    band[8:12] = True
    for radius in (1, 2, 4):
        assert boundary_distance(dilate(band, radius), band) == radius  # the frame is no boundary


@settings(max_examples=60)
@given(MASKS, MASKS)
def test_surface_distance_is_the_definition(pred, true):
    here, there = boundary(pred), boundary(true)
    found = surface_distance(pred, true)
    assert found == pytest.approx(surface_distance(true, pred), nan_ok=True)
    if not here and not there:
        assert np.isnan(found)
    elif not here or not there:
        assert found == np.hypot(7, 9)
    else:
        out = np.mean([min(np.hypot(y - v, x - u) for v, u in there) for y, x in here])
        back = np.mean([min(np.hypot(y - v, x - u) for v, u in here) for y, x in there])
        assert found == pytest.approx((out + back) / 2, abs=1e-5)


def test_surface_distance_of_half_planes():
    column = np.mgrid[:12, :20][1]
    assert [surface_distance(column < 8, column < 8 + k) for k in range(5)] == [0, 1, 2, 3, 4]


@given(pair=PAIRS_2D, tolerance=st.integers(0, 4))
@settings(max_examples=150, deadline=None)
def test_tolerant_dice_is_its_definition(pair, tolerance):
    pred, true = pair
    right = (pred & near(true, tolerance)).sum() + (true & near(pred, tolerance)).sum()
    whole = pred.sum() + true.sum()
    assert tolerant_dice(pred, true, tolerance) == pytest.approx(right / whole if whole else 1)


@given(pair=PAIRS_2D)
@settings(max_examples=60, deadline=None)
def test_tolerance_forgives_and_never_punishes(pair):
    scores = [tolerant_dice(*pair, t) for t in range(4)]
    assert scores[0] == dice(*pair) and scores == sorted(scores)
    assert tolerant_dice(*pair, 2) == tolerant_dice(*pair[::-1], 2)


def test_tolerant_dice_keeps_leading_axes_and_refuses_probabilities():
    masks = np.random.default_rng(0).random((2, 3, 5, 6)) < 0.3
    scores = tolerant_dice(masks, masks[:, ::-1], 1)
    assert scores.shape == (2, 3) and scores[1, 0] == tolerant_dice(masks[1, 0], masks[1, 2], 1)
    with pytest.raises(ValueError, match="set a threshold first"):
        tolerant_dice(masks.astype(float), masks)


# --------------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize("seed", range(3))
def test_thresholds_are_the_best_on_pictures_that_were_looked_at(seed):
    rng = np.random.default_rng(seed)
    truths, known = rng.random((9, 3, 6, 7)) > 0.7, rng.random((9, 3)) > 0.3
    probs = rng.random(truths.shape, dtype=np.float32)
    chosen = fit_thresholds(probs, truths, known)
    for c, rows in enumerate(known.T):
        means = [dice(probs[rows, c] > t, truths[rows, c]).mean() for t in THRESHOLDS]
        assert chosen[c] == THRESHOLDS[int(np.argmax(means))]
    other = np.where(known[:, :, None, None], probs, 1 - probs)
    assert (fit_thresholds(other, truths, known) == chosen).all()
    known[:, 2] = False
    assert fit_thresholds(probs, truths, known)[2] == 0.5


def erode(mask):
    return ~dilate(~mask, 1)


@pytest.mark.parametrize(
    "after", [None, lambda mask: dilate(mask, 1), erode], ids=["plain", "dilate", "erode"]
)
@pytest.mark.parametrize("seed", range(4))
def test_no_threshold_is_better(seed, after):
    rng = np.random.default_rng(seed)
    true = dilate(rng.random((3, 20, 24)) > 0.99, 2)
    probs = (0.5 * rng.random(true.shape) + 0.4 * dilate(true, 1)).astype(np.float32)
    finish = after or (lambda mask: mask)
    worth = {cut: dice(finish(probs > cut), true).mean() for cut in THRESHOLDS}
    (chosen,) = fit_thresholds(probs[:, None], true[:, None], after=after)
    assert worth[chosen] == max(worth.values())


def test_a_pixel_at_the_threshold_is_off():
    true = np.zeros((1, 1, 2, 2), bool)
    true[0, 0, 0, 0] = True
    probs = np.where(true, 0.3, 0.1).astype(np.float32)
    grid = np.float32([0.05, 0.1, 0.3])
    assert fit_thresholds(probs, true, thresholds=grid) == grid[1]


def test_of_equals_the_nearest_to_a_half():
    true = np.zeros((1, 1, 3, 3), bool)
    true[0, 0, 1] = True
    assert fit_thresholds(np.where(true, 0.99, 0.0), true) == 0.5
    assert fit_thresholds(np.where(true, 0.3, 0.0), true) == 0.25
    assert best_threshold([1, 2, 2, 2, 1], [0.1, 0.3, 0.45, 0.55, 0.9]) == 0.45
    assert best_threshold([3, 2, 2], [0.1, 0.3, 0.45]) == 0.1
    with pytest.raises(ValueError, match="one shape"):
        fit_thresholds(np.zeros((2, 1, 3, 3)), true)
    with pytest.raises(ValueError, match="a number for each of 2 thresholds"):
        best_threshold([1, np.nan], [0.1, 0.2])


def test_the_grid_ascends_in_float32_and_holds_one_half():
    assert THRESHOLDS.dtype == np.float32 and (np.diff(THRESHOLDS) > 0).all()
    assert THRESHOLDS[11] == 0.5 and THRESHOLDS[0] == np.float32(0.01)


# -------------------------------------------------------------------------------------------- gains


@given(st.integers(0, 10_000), st.integers(1, 30), st.integers(1, 5))
@settings(max_examples=20)
def test_gains_are_paired_differences(seed, pictures, classes):
    rng = np.random.default_rng(seed)
    steps = {name: rng.random((pictures, classes)) for name in "abc"}
    gains = step_gains(steps, seed=3)
    assert gains[["step", "against"]].values.tolist() == [["b", "a"], ["c", "b"]]
    for row, (old, new) in zip(gains.itertuples(), [("a", "b"), ("b", "c")]):
        assert row.gain == pytest.approx(steps[new].mean() - steps[old].mean())
        assert (row.low, row.high) == bootstrap_interval(steps[new] - steps[old], seed=3)
        assert row.low - 1e-12 <= row.gain <= row.high + 1e-12


def test_a_steady_gain_has_no_width_though_the_scores_vary():
    before = np.random.default_rng(0).random((40, 4))
    gains = step_gains({"before": before, "after": before + 0.1})
    assert gains.loc[0, ["gain", "low", "high"]].tolist() == pytest.approx([0.1] * 3)
    assert np.ptp(bootstrap_interval(before)) > 0.05


def test_gains_of_other_pictures_are_refused():
    with pytest.raises(ValueError, match=r"same pictures.*raw \(3, 4\), area \(2, 4\)"):
        step_gains({"raw": np.zeros((3, 4)), "area": np.zeros((2, 4))})
    alone = step_gains({"raw": np.zeros((3, 4))})
    assert alone.columns.tolist() == ["step", "against", "gain", "low", "high"]
