"Decisions: curves and thresholds against brute force, and the area search against two plain loops."

import warnings

import cv2
import matplotlib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import precision_recall_curve

from cloudlearn.decisions import (
    best_threshold_area,
    decide,
    dice_cut,
    pr_curve,
    precision_threshold,
    recall_threshold,
    search_threshold_area,
    show_pr_curve,
    threshold_area_dice,
)

matplotlib.use("Agg")
EIGHTHS = st.sampled_from(np.linspace(0, 1, 9, dtype=np.float32))
PRESENCE = st.integers(1, 40).flatmap(
    lambda n: st.tuples(hnp.arrays(bool, n), hnp.arrays(np.float32, n, elements=EIGHTHS))
)


def recall_at(true, prob, threshold):
    return (true & (prob >= threshold)).sum() / true.sum()


def precision_at(true, prob, threshold):
    return (true & (prob >= threshold)).sum() / (prob >= threshold).sum()


@given(PRESENCE)
@settings(max_examples=200, deadline=None)
def test_curve_equals_scikit_learn(pair):
    true, prob = pair
    assume(true.any())
    for ours, theirs in zip(pr_curve(true, prob), precision_recall_curve(true, prob), strict=True):
        assert np.array_equal(ours, theirs)


@given(PRESENCE, st.sampled_from([0.01, 0.3, 0.5, 0.94, 0.99, 1.0]))
@settings(max_examples=150, deadline=None)
def test_recall_threshold_is_the_largest_that_keeps_the_recall(pair, target):
    true, prob = pair
    assume(true.any())
    got = recall_threshold(true, prob, target)
    assert recall_at(true, prob, got) >= target
    # every place where the answer could change: each probability and a step above it
    candidates = np.r_[prob, np.nextafter(prob, np.float32(2)), 0, 1, 2]
    assert got == max(c for c in candidates if recall_at(true, prob, c) >= target)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dtype", (np.float32, np.float64))
def test_recall_threshold_on_larger_sets_uses_every_picture(seed, dtype):
    rng = np.random.default_rng(seed)
    true, prob = rng.random(203) < 0.5, rng.random(203).astype(dtype)  # 203: no whole batches
    for target in (0.5, 0.9, 0.94):
        got = recall_threshold(true, prob, target)
        assert got == max(c for c in prob if recall_at(true, prob, c) >= target)
    # the last picture decides: it is the weakest of those that must stay
    true[-1], prob[-1] = True, prob.min() / 2
    assert recall_threshold(true, prob, 1.0) == prob[-1]


def test_recall_threshold_at_exact_fractions():
    prob = np.arange(50, 0, -1) / 50
    for k in range(1, 51):
        assert recall_threshold(np.ones(50, bool), prob, k / 50) == prob[k - 1]


@given(PRESENCE, st.sampled_from([0.2, 0.5, 0.75, 0.9, 1.0]))
@settings(max_examples=150, deadline=None)
def test_precision_threshold_holds_from_there_on(pair, target):
    true, prob = pair
    assume(true.any())
    values = np.unique(prob)
    reached = [precision_at(true, prob, v) >= target for v in values]
    holds = [v for i, v in enumerate(values) if all(reached[i:])]
    if holds:
        assert precision_threshold(true, prob, target) == min(holds)
    else:
        best = max(precision_at(true, prob, v) for v in values)
        with pytest.raises(ValueError, match=f"best single value, {best:.3f}"):
            precision_threshold(true, prob, target)


def test_precision_threshold_is_not_taken_in_by_a_lucky_step():
    true = np.array([1, 0, 1, 1, 0, 0], bool)
    prob = np.array([0.9, 0.8, 0.7, 0.55, 0.3, 0.1])
    assert precision_at(true, prob, 0.55) == 0.75 and precision_threshold(true, prob, 0.75) == 0.9


@pytest.mark.parametrize("rule", (pr_curve, recall_threshold, precision_threshold))
def test_bad_presence_is_refused_in_words(rule):
    true, prob = np.array([True, False, True]), np.array([0.2, 0.5, 0.9])
    with pytest.raises(ValueError, match="none of the 3 pictures"):
        rule(true & False, prob)
    with pytest.raises(ValueError, match="none of the 0 pictures"):
        rule(true[:0], prob[:0])
    with pytest.raises(ValueError, match="nan at position 1"):
        rule(true, np.array([0.2, np.nan, 0.9]))
    with pytest.raises(ValueError, match="one length"):
        rule(true, prob[:2])
    with pytest.raises(ValueError, match="one class"):
        rule(np.c_[true, true], np.c_[prob, prob])
    with pytest.raises(ValueError, match="True and False"):
        rule(np.array([0, 2, 1]), prob)


@pytest.mark.parametrize("rule", (recall_threshold, precision_threshold))
@pytest.mark.parametrize("target", (0, -0.1, 1.01, 94, float("nan")))
def test_impossible_targets_are_refused(rule, target):
    with pytest.raises(ValueError, match="at most 1"):
        rule(np.array([True, False]), np.array([0.9, 0.1]), target)


def test_dice_cut():
    assert dice_cut(1) == 0.5 and dice_cut(0) == 1 and dice_cut(0.5) == pytest.approx(2 / 3)
    for wrong in (-0.1, 1.1, 55, float("nan")):
        with pytest.raises(ValueError, match="between 0 and 1"):
            dice_cut(wrong)


@pytest.mark.parametrize("expected", (0.3, 0.55, 0.8))
def test_dice_cut_is_the_best_cut_for_calibrated_probabilities(expected):
    prob = np.linspace(0, 1, 1001)
    # the expectation, without sampling
    earned = [np.where(prob > cut, prob * expected, 1 - prob).mean() for cut in prob]
    assert prob[np.argmax(earned)] == pytest.approx(dice_cut(expected), abs=2e-3)


def slow_dice(prob, true, threshold, area):
    "One cell of the table by plain means: flood the components, keep the larger, count."
    on, keep = np.asarray(prob, np.float32) > np.float32(threshold), np.zeros(prob.shape, bool)
    todo = {tuple(i) for i in np.argwhere(on)}
    while todo:
        edge = [todo.pop()]
        part = list(edge)
        while edge:
            r, c = edge.pop()
            near = {(r + i, c + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & todo
            todo -= near
            edge += near
            part += near
        if len(part) > area:
            keep[tuple(zip(*part))] = True
    total = keep.sum() + true.sum()
    return 2 * (keep & true).sum() / total if total else 1.0


SIX = st.sampled_from(np.float32([0, 0.1, 0.3, 0.5, 0.7, 1]))
MAPS = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9).flatmap(
    lambda shape: st.tuples(hnp.arrays(np.float32, shape, elements=SIX), hnp.arrays(bool, shape))
)
GRID = np.array([0.7, 0, 0.3, 0.5, 1, 0.05]), np.array([3, 0, 1, 2, 40])


@given(MAPS)
@settings(max_examples=120, deadline=None)
def test_area_search_equals_the_plain_loops(pair):
    prob, true = pair
    wanted = [[slow_dice(prob, true, t, a) for a in GRID[1]] for t in GRID[0]]
    assert np.array_equal(threshold_area_dice(prob, true, *GRID), wanted)


@given(MAPS)
@settings(max_examples=60, deadline=None)
def test_area_search_and_decide_are_one_rule(pair):
    prob, true = pair
    table = threshold_area_dice(prob, true, *GRID)
    for i, t in enumerate(GRID[0]):
        for j, a in enumerate(GRID[1]):
            mask = decide(prob, t, a)
            total = mask.sum() + true.sum()
            assert table[i, j] == (2 * (mask & true).sum() / total if total else 1)


@pytest.mark.parametrize("blur", (0.8, 3, 15))
def test_area_search_on_a_large_map(blur):
    rng = np.random.default_rng(0)
    smooth = cv2.GaussianBlur(rng.random((175, 263), dtype=np.float32), (0, 0), blur)
    prob = cv2.normalize(smooth, None, 0, 1, cv2.NORM_MINMAX)
    true = cv2.GaussianBlur(rng.random((175, 263)), (0, 0), 20) > 0.5
    thresholds, areas = np.linspace(0.1, 0.9, 7), [0, 10, 300, 5000]
    table = threshold_area_dice(prob, true, thresholds, areas)
    for i, t in enumerate(thresholds):
        for j, a in enumerate(areas):
            mask = decide(prob, t, a)
            assert table[i, j] == 2 * (mask & true).sum() / (mask.sum() + true.sum())


def test_a_component_of_exactly_the_minimum_goes_and_corners_touch():
    prob = np.zeros((4, 6), np.float32)
    prob[0, 0] = prob[1, 1] = prob[2, 2] = 0.9  # one component of three, over corners
    # the end of a row and the start of the next do not touch, (1, 0) touches (0, 0)
    prob[0, 5] = prob[1, 0] = 0.9
    assert decide(prob, 0.5, 0).sum() == 5
    assert decide(prob, 0.5, 1).sum() == 4
    assert decide(prob, 0.5, 3).sum() == 4
    assert not decide(prob, 0.5, 4).any()
    true = prob > 0.5
    assert threshold_area_dice(prob, true, [0.5], [0, 1, 3, 4]).tolist() == [[1, 8 / 9, 8 / 9, 0]]


def test_both_empty_scores_one_and_a_stray_pixel_zero():
    prob, nothing = np.zeros((5, 5), np.float32), np.zeros((5, 5), bool)
    prob[2, 2] = 0.6
    assert threshold_area_dice(prob, nothing, [0.5, 0.7], [0, 1]).tolist() == [[0, 1], [1, 1]]
    assert threshold_area_dice(prob, ~nothing, [0.7], [0]).tolist() == [[0]]


def test_thresholds_compare_in_float32_and_strictly():
    prob = np.full((2, 2), 0.3, np.float32)
    assert (prob > np.float64(0.3)).all()  # the trap: float32 0.3 is above float64 0.3
    for threshold in (0.3, np.float64(0.3), np.float32(0.3)):
        assert not decide(prob, threshold).any()
    assert not decide(prob.astype(float), 0.3).any() and not decide(np.full((2, 2), 0.3), 0.3).any()
    table = threshold_area_dice(prob, np.ones((2, 2), bool), np.array([0.3, 0.29]), [0])
    assert table.tolist() == [[0], [1]]


@pytest.mark.parametrize("seed", range(3))
def test_search_is_the_mean_over_all_maps_and_streams(seed):
    rng = np.random.default_rng(seed)
    probs, truths = rng.random((7, 12, 15)), rng.random((7, 12, 15)) < 0.3
    truths[-1] = False  # the last map counts like the others
    table = search_threshold_area(probs, truths, *GRID)
    each = [threshold_area_dice(p, t, *GRID) for p, t in zip(probs, truths)]
    np.testing.assert_allclose(table, np.mean(each, axis=0), rtol=0, atol=1e-15)
    assert np.array_equal(table, search_threshold_area((p for p in probs), iter(truths), *GRID))
    assert not np.allclose(table, search_threshold_area(probs[:-1], truths[:-1], *GRID))


def test_search_takes_maps_of_several_sizes_one_at_a_time():
    alive = []

    def maps():
        for side in (4, 9, 6):
            alive.append(side)
            yield np.full((side, side), 0.6, np.float32)

    truths = (np.ones((side, side), bool) for side in (4, 9, 6))
    table = search_threshold_area(maps(), truths, [0.5], [0, 20, 50])
    assert alive == [4, 9, 6] and table.tolist() == [[1, 2 / 3, 1 / 3]]


def test_search_refuses_in_words():
    prob, true = np.zeros((3, 4, 5), np.float32), np.zeros((3, 4, 5), bool)
    with pytest.raises(ValueError, match="truths ended first"):
        search_threshold_area(prob, true[:2], *GRID)
    with pytest.raises(ValueError, match="after 2 maps: probs ended first"):
        search_threshold_area(prob[:2], true, *GRID)
    with pytest.raises(ValueError, match="probs is empty"):
        search_threshold_area([], [], *GRID)
    with pytest.raises(ValueError, match="height, width"):
        search_threshold_area(prob[0], true[0], *GRID)
    with pytest.raises(ValueError, match="height, width"):
        threshold_area_dice(prob[0], true[0].T, *GRID)
    with pytest.raises(ValueError, match="nan"):
        threshold_area_dice(prob[0] * np.nan, true[0], *GRID)
    with pytest.raises(ValueError, match="True and False"):
        threshold_area_dice(prob[0], prob[0], *GRID)
    with pytest.raises(ValueError, match="two lists"):
        threshold_area_dice(prob[0], true[0], 0.5, [0])
    with pytest.raises(ValueError, match="two lists"):
        threshold_area_dice(prob[0], true[0], [], [0])
    with pytest.raises(ValueError, match="nan"):
        decide(prob * np.nan, 0.5)


def test_best_cell():
    table = np.array([[0.1, 0.7, 0.2], [0.3, 0.7, 0.6]])
    assert best_threshold_area(table, np.float32([0.25, 0.5]), [0, 100, 200]) == (0.5, 100)
    found = best_threshold_area(table.T, np.float32([0.1, 0.7, 0.9]), [0, 100])
    assert found == (np.float32(0.7), 0)
    assert [type(v) for v in best_threshold_area(table, [0.25, 0.5], [0, 100, 200])] == [float, int]
    with pytest.raises(ValueError, match="2 thresholds and 2 areas"):
        best_threshold_area(table, [0.25, 0.5], [0, 100])
    with pytest.raises(ValueError, match="must hold a number"):
        best_threshold_area(table * np.nan, [0.25, 0.5], [0, 100, 200])


def test_decide_keeps_leading_axes_and_its_input():
    probs = np.random.default_rng(0).random((2, 4, 20, 30)).astype(np.float32)
    before = probs.copy()
    masks = decide(probs, 0.7, 5)
    assert masks.shape == probs.shape and masks.dtype == bool and np.array_equal(probs, before)
    assert all(np.array_equal(masks[i], decide(probs[i], 0.7, 5)) for i in np.ndindex(2, 4))
    assert not (masks & (probs <= np.float32(0.7))).any()


def test_pr_picture_marks_the_chosen_thresholds():
    rng = np.random.default_rng(0)
    true = rng.random(80) < 0.5
    prob = np.clip(0.3 * true + 0.7 * rng.random(80), 0, 1)
    ax = show_pr_curve(true, prob, {"recall": 0.3, "cut": 0.6}, "Gravel")
    marked = [line.get_xydata()[0] for line in ax.lines if line.get_marker() in ("o", "s")]
    wanted = [(recall_at(true, prob, t), precision_at(true, prob, t)) for t in (0.3, 0.6)]
    np.testing.assert_allclose(marked, wanted)
    assert ax.get_title() == "Gravel"
    assert ax.get_xlabel() == "recall"
    assert ax.get_ylabel() == "precision"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert show_pr_curve(true, prob, 0.5, ax=ax) is ax
        assert show_pr_curve(true, prob, 2.0, ax=ax) is ax
    matplotlib.pyplot.close("all")
