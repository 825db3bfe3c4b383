"Class weights, honest probabilities, thresholds, the watch over epochs, and what steady means."

import itertools

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, log_loss, recall_score, roc_auc_score
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from cloudlearn.xray import imbalance
from cloudlearn.xray.imbalance import (
    MEASURES,
    XRAY_ARMS,
    BalancedSet,
    Watch,
    arm_loss,
    arm_scores,
    balanced_threshold,
    balanced_weights,
    calibration_error,
    epoch_curves,
    imbalance_experiment,
    judge,
    positive_weight,
    reliability,
    reweigh,
    scene_xrays,
    show_curve,
    show_reliability,
    small_network,
    steadiness,
    train_xray,
    xray_network,
)

PUBLIC = np.arange(4185) >= 1070
labels = st.integers(0, 2**32 - 1).map(
    lambda seed: np.random.default_rng(seed).permutation(np.arange(20) < 1 + seed % 19)
)


@pytest.fixture(scope="module")
def sets():
    return scene_xrays(0, 8, 20, (32, 32)), scene_xrays(100, 6, 12, (32, 32))


# ------------------------------------------------------------------------------------------ weights


def test_the_public_counts():
    assert balanced_weights(PUBLIC).round(3).tolist() == [1.956, 0.672]
    assert round(positive_weight(PUBLIC), 4) == 0.3435 == round(1070 / 3115, 4)


@given(labels)
def test_weights_are_scikit_learns_and_both_classes_count_the_same(ill):
    weights = balanced_weights(ill)
    theirs = compute_class_weight("balanced", classes=np.array([False, True]), y=ill)
    assert np.allclose(weights, theirs)
    assert np.isclose(weights[0] * (~ill).sum(), weights[1] * ill.sum())
    assert np.isclose(weights[ill.astype(int)].mean(), 1)
    assert np.isclose(positive_weight(ill), (~ill).sum() / ill.sum())


@pytest.mark.parametrize("ill", [np.ones(4, bool), np.zeros(4, bool), np.zeros(0, bool)])
def test_one_class_has_no_weights(ill):
    with pytest.raises(ValueError, match="both classes"):
        balanced_weights(ill)


@given(st.floats(0, 1), st.floats(0.01, 100))
@example(1.0, 1 / 3)  # was 1.0000000000000002
def test_weights_multiply_odds_and_can_be_undone(prob, weight):
    moved = reweigh(prob, weight)
    assert 0 <= moved <= 1 and np.isclose(reweigh(moved, 1 / weight), prob, atol=1e-9)
    if 0.001 < prob < 0.999:
        assert np.isclose(moved / (1 - moved), weight * prob / (1 - prob))


def test_the_share_becomes_one_half():
    assert np.isclose(reweigh(PUBLIC.mean(), positive_weight(PUBLIC)), 0.5)
    with pytest.raises(ValueError, match="above 0"):
        reweigh(0.5, 0)


@pytest.mark.parametrize("seed", range(4))
def test_arm_losses(seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(30, 1, generator=generator)
    target = (torch.rand(30, 1, generator=generator) < 0.7).float()
    bce = F.binary_cross_entropy_with_logits
    for arm in ("plain", "oversampled"):
        assert torch.isclose(arm_loss(arm, 0.3)(logits, target), bce(logits, target))
    weighted = bce(logits, target, pos_weight=torch.tensor(0.3))
    assert torch.isclose(arm_loss("weighted", 0.3)(logits, target), weighted)
    p = torch.where(target == 1, logits.sigmoid(), 1 - logits.sigmoid())
    focal = (-((1 - p) ** 2) * p.log()).mean()
    assert torch.isclose(arm_loss("focal", 0.3)(logits, target), focal, rtol=1e-4)
    with pytest.raises(ValueError, match="choose one of plain"):
        arm_loss("heavy", 1)


# --------------------------------------------------------------------------------------- yardsticks


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 0.8]))
@settings(max_examples=30)
def test_judge_against_scikit_learn(seed, cut):
    rng = np.random.default_rng(seed)
    true, prob = rng.permutation(np.arange(25) < 1 + seed % 24), rng.random(25)
    found, said = judge(true, prob, cut), prob >= cut
    assert np.isclose(found["loss"], log_loss(true, prob, labels=[False, True]))
    assert np.isclose(found["auc"], roc_auc_score(true, prob))
    assert np.isclose(found["recall_pneumonia"], recall_score(true, said))
    assert np.isclose(found["recall_normal"], recall_score(~true, ~said))
    assert np.isclose(found["balanced"], balanced_accuracy_score(true, said))
    assert np.isclose(found["accuracy"], (true == said).mean())


def test_a_probability_at_the_cut_is_pneumonia():
    found = judge(np.array([False, True]), np.array([0.5, 0.5]))
    assert (found["recall_normal"], found["recall_pneumonia"]) == (0, 1)
    for true in (np.ones(3, bool), np.zeros(3, bool)):
        with pytest.raises(ValueError, match="only one class"):
            judge(true, np.full(3, 0.5))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40)
def test_no_cut_beats_the_balanced_threshold(seed):
    rng = np.random.default_rng(seed)
    true, prob = rng.permutation(np.arange(20) < 1 + seed % 19), rng.integers(0, 8, 20) / 7
    mine = judge(true, prob, balanced_threshold(true, prob))["balanced"]
    every = []
    for cut in np.linspace(0, 1.01, 57):
        every.append(((prob >= cut)[true].mean() + (prob < cut)[~true].mean()) / 2)
    assert np.isclose(mine, max(every))


@given(st.integers(0, 2**32 - 1), st.sampled_from([1, 3, 10]))
@settings(max_examples=30)
def test_reliability_is_scikit_learns(seed, bins):
    rng = np.random.default_rng(seed)
    prob = np.r_[rng.random(60).round(1 + seed % 3), 1.0]
    true = rng.random(61) < prob
    table = reliability(true, prob, bins)
    observed, predicted = calibration_curve(true, prob, n_bins=bins)
    assert np.allclose(table["observed"], observed)
    assert np.allclose(table["predicted"], predicted)
    assert table["pictures"].sum() == 61
    apart = (np.abs(observed - predicted) * table["pictures"]).sum() / 61
    assert np.isclose(calibration_error(true, prob, bins), apart)


def test_certainty_has_a_bin_and_nonsense_has_none():
    assert reliability(np.array([True, False]), np.array([1.0, 0.0]))["observed"].tolist() == [0, 1]
    for prob in ([1.5, 0.2], [np.nan, 0.2], [0.1]):
        with pytest.raises(ValueError, match="from 0 to 1"):
            reliability(np.array([True, False]), np.array(prob))


# ----------------------------------------------------------------------------------------- training


def test_networks_start_at_one_half_and_the_same_for_every_arm():
    one, again, other = (xray_network("small", seed=seed) for seed in (0, 0, 1))
    pairs = zip(one.state_dict().values(), again.state_dict().values())
    assert all(torch.equal(a, b) for a, b in pairs)
    assert not torch.equal(one[1].weight, other[1].weight)
    pictures = torch.randint(0, 255, (3, 3, 48, 40), dtype=torch.uint8)
    with torch.inference_mode():
        assert (one.eval()(pictures).sigmoid() == 0.5).all()
    with pytest.raises(ValueError, match="efficientnet-lite0 and small"):
        xray_network("vgg")
    large = xray_network("efficientnet-lite0", "none").eval()
    with torch.inference_mode():
        assert large(torch.zeros(1, 3, 32, 32)).tolist() == [[0]]
    assert small_network(4)[1].weight.shape == (4, 3, 3, 3)


def test_balanced_drawing(sets):
    train = sets[0]
    drawn = BalancedSet(train.pictures, train.labels)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        items = [drawn[i % len(drawn)] for i in range(600)]
        torch.manual_seed(7)
        first = drawn[3][0]
        torch.manual_seed(7)
        assert torch.equal(first, drawn[20][0])  # the lot decides, not the index
    assert len(drawn) == 28 and abs(np.mean([target.item() for _, target in items]) - 0.5) < 0.07
    grey = {picture.numpy().tobytes(): bool(target) for picture, target in items}
    planes = [np.ascontiguousarray(p.transpose(2, 0, 1)) for p in train.pictures]
    known = {p.tobytes(): bool(flag) for p, flag in zip(planes, train.labels[:, 0])}
    assert grey == known


@pytest.mark.parametrize("arm", XRAY_ARMS)
def test_an_arm_is_trained_and_watched(sets, tmp_path, arm):
    network = xray_network("small")
    log = train_xray(network, *sets, tmp_path, arm=arm, epochs=2, progress=False)
    assert log["epoch"].tolist() == [1, 1, 2, 2] and log["cut"].tolist() == ["half", "share"] * 2
    assert log["threshold"].tolist() == [0.5, 20 / 28] * 2
    assert (tmp_path / f"{arm}-last.safetensors").exists()
    from cloudlearn.training import predict_pictures

    last = judge(sets[1].labels[:, 0], predict_pictures(network, sets[1].pictures)[:, 0])
    assert np.isclose(log["loss"].iloc[-1], last["loss"], rtol=1e-4)


def test_an_interrupted_arm_goes_on_with_its_curve(sets, tmp_path, monkeypatch):
    whole = train_xray(xray_network("small"), *sets, tmp_path / "whole", epochs=3, progress=False)
    count, call = [0], Watch.__call__

    def broken(self, *more):
        count[0] += 1
        if count[0] == 3:
            raise KeyboardInterrupt
        return call(self, *more)

    monkeypatch.setattr(Watch, "__call__", broken)
    with pytest.raises(KeyboardInterrupt):
        train_xray(xray_network("small"), *sets, tmp_path / "part", epochs=3, progress=False)
    monkeypatch.undo()
    asked = dict(epochs=3, progress=False, resume=True)
    resumed = train_xray(xray_network("small"), *sets, tmp_path / "part", **asked)
    pd.testing.assert_frame_equal(whole, resumed)


def test_a_repeated_epoch_stands_once(tmp_path):
    watch, rng = Watch(0.7, tmp_path / "watch.json"), np.random.default_rng(0)
    targets, probs = (np.arange(10) < 7)[:, None], rng.random((3, 10, 1))
    metrics = [watch(probs[i], targets) for i in (0, 1, 1, 2)]
    again = Watch(0.7, tmp_path / "watch.json", resume=True)
    assert again.rows == watch.rows and not Watch(0.7, tmp_path / "watch.json").rows
    kept = [metrics[i] for i in (0, 1, 3)]
    log = pd.DataFrame({"epoch": [1, 2, 3], "train_loss": 0.0, "metric": kept})
    table = again.table(log)
    assert table["epoch"].tolist() == [1, 1, 2, 2, 3, 3]
    assert table["loss"].tolist() == [-metrics[i] for i in (0, 0, 1, 1, 3, 3)]


# --------------------------------------------------------------------------------------- experiment


def test_an_arm_has_three_cuts_and_weights_can_be_undone():
    rng = np.random.default_rng(0)
    ill = np.arange(60) < 45
    probs = np.clip(0.5 * ill + 0.5 * rng.random((2, 60)), 0.01, 0.99)
    valid, test = (ill, probs[0]), (ill, probs[1])
    table = arm_scores(ill, valid, test, "weighted")
    assert table["cut"].tolist() == ["half", "share", "fitted", "half"]
    assert table["threshold"].tolist()[:2] == [0.5, 0.75]
    assert table["threshold"][2] == balanced_threshold(*valid)
    assert table["arm"].tolist() == ["weighted"] * 3 + ["weighted, undone"]
    assert table["auc"].nunique() == 1
    undone = judge(test[0], reweigh(test[1], 3))
    assert np.isclose(table["loss"][3], undone["loss"])
    assert len(arm_scores(ill, valid, test, "plain")) == 3


def test_a_small_experiment_is_tidy_and_repeats_itself():
    counts = dict(train=(6, 14), valid=(3, 6), test=(3, 6))
    small = dict(**counts, shape=(32, 32), epochs=2, arms=("plain", "weighted"))
    table = imbalance_experiment((0, 3), **small)
    assert len(table) == 2 * (1 + 2 * (4 + 3) + 1) and table["seed"].unique().tolist() == [0, 3]
    again = imbalance_experiment((3,), **small)
    pd.testing.assert_frame_equal(table[table["seed"] == 3].reset_index(drop=True), again)
    always = table[table["arm"] == "always pneumonia"]
    assert (always["recall_normal"] == 0).all() and (always["recall_pneumonia"] == 1).all()
    curves = epoch_curves(table)
    assert curves["arm"].unique().tolist() == ["plain", "plain, moved", "weighted"]
    assert len(curves) == 2 * 3 * 2
    assert set(curves["part"]) == {"valid"}


def test_steadiness_is_what_was_defined():
    rng = np.random.default_rng(0)
    rows = []
    for seed, arm, epoch in itertools.product(range(3), "ab", range(1, 6)):
        scores = dict(zip(MEASURES, rng.random(4)))
        rows.append(dict(seed=seed, arm=arm, epoch=epoch, **scores))
    table = pd.DataFrame(rows)
    found = steadiness(table.sample(frac=1, random_state=1))
    found = found.set_index(["between", "measure", "arm", "seed"])["spread"].sort_index()
    for arm, measure in itertools.product("ab", MEASURES):
        one = table[table["arm"] == arm]
        values = one.pivot(index="seed", columns="epoch", values=measure).to_numpy()
        over_epochs = np.abs(np.diff(values, axis=1)).mean(axis=1)
        over_seeds = np.abs(values - values.mean(axis=0)).mean(axis=1)
        assert np.allclose(found["epochs", measure, arm], over_epochs)
        assert np.allclose(found["seeds", measure, arm], over_seeds)


def test_plots_take_and_give_axes():
    import matplotlib.pyplot as plt

    ax = plt.subplots()[1]
    rows = []
    for seed, arm, epoch in itertools.product((0, 1), ("plain", "weighted", "focal"), (1, 2, 3)):
        rows.append(dict(seed=seed, arm=arm, epoch=epoch, accuracy=0.5 + 0.1 * seed))
    table = pd.DataFrame(rows)
    assert show_curve(table, "accuracy", ax=ax) is ax and len(ax.lines) == 2 * 3
    assert np.allclose(ax.lines[2].get_ydata(), 0.55) and ax.get_title() == "accuracy"
    other = show_reliability(np.array([True, False]), {"plain": np.array([0.9, 0.2])})
    assert np.allclose(other.lines[1].get_xydata(), [[0.2, 0], [0.9, 1]])
    plt.close("all")


def test_scenes_for_training():
    made = scene_xrays(5, 2, 3, (32, 48))
    assert made.pictures.shape == (5, 32, 48, 3)
    assert made.labels[:, 0].tolist() == [False] * 2 + [True] * 3
    assert made.names[0] == "scene-5"
    assert (made.pictures[..., 0] == made.pictures[..., 2]).all()
    first_ill = imbalance.chest_scene(7, True, (32, 48)).picture
    assert first_ill.tolist() == made.pictures[2, ..., 0].tolist()
