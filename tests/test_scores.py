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

from cloudlearn.scores import bootstrap_interval, dice, dice_summary, iou, presence_confusion

SHAPES = hnp.array_shapes(min_dims=2, max_dims=4, min_side=1, max_side=6)
PAIRS = SHAPES.flatmap(lambda shape: st.tuples(hnp.arrays(bool, shape), hnp.arrays(bool, shape)))


def reference(pred, true, empty=1.0):
    "Dice and IoU of one pair, from sets of pixels."
    p, t = ({tuple(i) for i in np.argwhere(m)} for m in (pred, true))
    return (
        (2 * len(p & t) / (len(p) + len(t)), len(p & t) / len(p | t)) if p | t else (empty, empty)
    )


@given(PAIRS)
@settings(max_examples=150, deadline=None)
def test_dice_and_iou_equal_set_arithmetic(pair):
    pred, true = pair
    wanted = np.array([reference(pred[i], true[i]) for i in np.ndindex(pred.shape[:-2])]).reshape(
        *pred.shape[:-2], 2
    )
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
    counts = smp.metrics.get_stats(
        torch.tensor(pred).long(), torch.tensor(true).long(), mode="multilabel"
    )
    assert dice(pred, true).mean() == pytest.approx(
        smp.metrics.f1_score(*counts, reduction="macro-imagewise", zero_division=1).item(), abs=1e-6
    )
    assert iou(pred, true).mean() == pytest.approx(
        smp.metrics.iou_score(*counts, reduction="macro-imagewise", zero_division=1).item(),
        abs=1e-6,
    )


@pytest.mark.parametrize("score", (dice, iou))
def test_the_empty_pair_follows_the_named_policy(score):
    empty, one = np.zeros((3, 4), bool), np.zeros((3, 4), bool)
    one[2, 3] = True
    assert (
        score(empty, empty) == 1
        and score(empty, empty, empty=1) == 1
        and score(empty, empty, empty=0) == 0
    )
    assert np.isnan(score(empty, empty, empty=float("nan")))
    for policy in (1, 0, float("nan")):  # the policy speaks of nothing but the empty pair
        assert (
            score(one, empty, empty=policy) == 0
            and score(empty, one, empty=policy) == 0
            and score(one, one, empty=policy) == 1
        )
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
    assert (
        list(table.columns)
        == ["true_positive", "false_positive", "false_negative", "true_negative"]
        and list(table.index) == names
    )
    for c, name in enumerate(names):
        wanted = [
            sum((p, t) == cell for p, t in zip(pred[:, c], true[:, c]))
            for cell in ((True, True), (True, False), (False, True), (False, False))
        ]
        assert table.loc[name].tolist() == wanted


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
    wanted, got = (
        np.quantile(means, [0.05, 0.95]),
        bootstrap_interval(values, draws=4000, seed=5, level=0.9),
    )
    np.testing.assert_allclose(got, wanted, atol=0.1 * (wanted[1] - wanted[0]))
    assert (
        bootstrap_interval(values, seed=3)
        == bootstrap_interval(values, seed=3)
        != bootstrap_interval(values, seed=4)
    )


def test_bootstrap_draws_whole_pictures():
    "With the same score in all four classes, four columns tell no more than one."
    one = np.random.default_rng(2).random((60, 1))
    assert bootstrap_interval(np.repeat(one, 4, axis=1)) == pytest.approx(
        bootstrap_interval(one), abs=1e-12
    )
    low, high = bootstrap_interval(np.repeat(one, 4, axis=1))
    flat = bootstrap_interval(np.repeat(one, 4))
    assert high - low > 1.6 * (flat[1] - flat[0])


def test_bootstrap_holds_the_true_mean_as_often_as_it_says():
    tests = [
        np.random.default_rng(seed).normal(size=(80, 1))
        + 0.5 * np.random.default_rng(seed + 999).normal(size=(80, 4))
        for seed in range(300)
    ]
    ends = np.array(
        [bootstrap_interval(values, draws=400, seed=seed) for seed, values in enumerate(tests)]
    )
    assert 0.90 <= ((ends[:, 0] <= 0) & (ends[:, 1] >= 0)).mean() <= 0.98


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
    assert got["dice"] == pytest.approx(
        got["dice_present"] * present.mean() + got["dice_empty"] * (~present).mean()
    )
    assert got["dice_present"] == pytest.approx(per_pair[present].mean())
    assert (got["low"], got["high"]) == bootstrap_interval(per_pair, seed=seed)
    assert all(type(value) is float for value in got.values())


def test_summary_of_one_kind_of_pair_and_bad_input():
    ones = np.ones((5, 4))
    assert np.isnan(dice_summary(ones, ones > 2)["dice_present"]) and np.isnan(
        dice_summary(ones, ones > 0)["dice_empty"]
    )
    with pytest.raises(ValueError, match="pictures, classes"):
        dice_summary(ones, np.ones((4, 5), bool))
    with pytest.raises(ValueError, match="float64 values"):
        dice_summary(ones, ones)
    with pytest.raises(ValueError, match="empty=1"):
        dice_summary(ones * np.nan, ones > 0)
    assert isinstance(pd.DataFrame([dice_summary(ones, ones > 0)]), pd.DataFrame)


@pytest.mark.parametrize("module", ("scores", "decisions"))
def test_import_is_light(module):
    code = f"import sys, cloudlearn.{module}; print([m for m in ('torch', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
