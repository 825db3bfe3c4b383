"The label's own view, k-means and deep k-means, and what is trained on the largest cluster."

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans

from cloudlearn.cars import clusters as module
from cloudlearn.cars.clusters import (
    cluster_arms,
    contact_sheet,
    crop_planes,
    deep_kmeans,
    encoder_features,
    label_crop,
    label_crops,
    label_line,
    label_measures,
    largest_cluster,
    lloyd_step,
    plain_kmeans,
    soft_kmeans_loss,
    spacing_arrays,
    style_scenes,
    styles_experiment,
)


def bar(angle, wide=5, long=60, side=96):
    "A straight label at an angle (degrees) through a square, dark above it and bright below."
    turn = np.deg2rad(angle)
    y, x = np.mgrid[:side, :side] - (side - 1) / 2
    along, beside = x * np.cos(turn) + y * np.sin(turn), y * np.cos(turn) - x * np.sin(turn)
    shade = np.clip(128 + 4 * beside, 0, 255)
    picture = np.repeat(shade[..., None], 3, 2).astype(np.uint8)
    return picture, (np.abs(beside) <= wide / 2) & (np.abs(along) <= long / 2)


@pytest.fixture(scope="module")
def scenes():
    return style_scenes(range(24), (96, 144), gap=0.05)


@settings(max_examples=25, deadline=None)
@given(st.integers(-80, 80), st.integers(3, 9))
def test_a_line_is_found_at_every_angle(angle, wide):
    line = label_line(bar(angle, wide)[1])
    assert np.rad2deg(np.arctan2(*line.direction[::-1])) == pytest.approx(angle, abs=1.5)
    assert line.centre == pytest.approx([47.5, 47.5], abs=0.5)
    assert line.width == pytest.approx(wide, abs=1.2)
    assert line.end - line.start == pytest.approx(60, abs=wide)
    assert line.direction[0] >= 0


def test_the_largest_piece_counts_and_diagonal_neighbours_belong_together():
    mask = np.zeros((40, 60), bool)
    mask[30:33, 5:55] = True
    mask[2:6, 2:6] = True  # a blot elsewhere
    assert label_line(mask).centre == pytest.approx([29.5, 31])
    steps = np.zeros((40, 60), bool)
    steps[np.arange(30), np.arange(30)] = True  # one line, only corners touch
    assert label_line(steps).end - label_line(steps).start == pytest.approx(29 * np.sqrt(2))


def test_a_single_pixel_has_a_line():
    mask = np.zeros((40, 60), bool)
    mask[7, 9] = True
    line = label_line(mask)
    assert (line.centre.tolist(), line.width, line.end - line.start) == ([9, 7], 1, 0)
    assert label_crop(np.zeros((40, 60, 3), np.uint8), mask, 0.1).shape == (24, 48, 4)


@settings(max_examples=20, deadline=None)
@given(st.integers(-80, 80), st.booleans())
def test_the_crop_does_not_depend_on_where_the_label_points(angle, over):
    picture, mask = bar(angle, 7)
    if over:
        picture, mask = picture[::-1], mask[::-1]
    picture, mask = np.ascontiguousarray(picture), np.ascontiguousarray(mask)
    crop = label_crop(picture, mask, 10 / 96, (21, 16)).astype(int)
    rows = np.arange(21) - 10  # one pixel a row: 10 up, 10 down
    # dark side up, whatever the angle
    assert np.abs(crop[:, 4:-4, 0] - (128 + 4 * rows)[:, None]).max() <= 8
    inside = crop[:, 4:-4, 3].mean(1)
    assert (inside[np.abs(rows) <= 2] > 200).all() and (inside[np.abs(rows) >= 5] < 55).all()


def test_a_bent_label_is_pulled_straight():
    y, x = np.mgrid[:96, :144]
    bow = 0.004 * (x - 72.0) ** 2 - 8
    mask = (np.abs(y - 48 - bow) <= 2) & (np.abs(x - 72) < 60)
    crop = label_crop(np.zeros((96, 144, 3), np.uint8), mask, 10 / 96, (21, 24))
    middles = (crop[..., 3] * np.arange(21.0)[:, None]).sum(0) / crop[..., 3].sum(0)
    assert np.abs(middles - 10).max() < 1


def test_all_crops_have_one_scale():
    thin, wide = bar(0, 3), bar(0, 9)
    crops = label_crops(np.stack([thin[0], wide[0]]), np.stack([thin[1], wide[1]]))
    areas = crops[..., 3].mean((1, 2))
    assert areas[1] / areas[0] == pytest.approx(3, rel=0.15)
    # reach 3 widths either way: a median label fills a sixth
    assert areas.mean() == pytest.approx(255 / 6, rel=0.15)
    assert label_crops(wide[0][None], wide[1][None], reach=0.1)[..., 3].mean() > areas[1]


FULL_THEN_EMPTY = np.stack([np.ones((9, 9), bool), np.zeros((9, 9), bool)])


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: label_line(np.zeros((9, 9), bool)), "leave empty masks out"),
        (lambda: label_line(np.zeros((9, 9))), "bool mask"),
        (
            lambda: label_crop(np.zeros((9, 9, 3), np.uint8), np.ones((9, 8), bool), 0.1),
            "as large as its label",
        ),
        (
            lambda: label_crops(np.zeros((2, 9, 9, 3), np.uint8), FULL_THEN_EMPTY),
            "1 of 2 labels are empty, the first is number 1",
        ),
        (lambda: plain_kmeans(np.zeros((3, 2)), 4), "ask for 1 to 3"),
        (lambda: plain_kmeans(np.zeros((3, 2)), 0), "ask for 1 to 3"),
        (lambda: deep_kmeans(np.zeros((3, 2, 4, 4), np.float32), 4, pretrain=1), "ask for 1 to 3"),
    ],
)
def test_bad_input_gets_a_sentence(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.integers(1, 5))
def test_one_step_is_scikit_learns(seed, clusters, dims):
    rng = np.random.default_rng(seed)
    points, start = rng.normal(size=(50, dims)), rng.normal(size=(50, dims))[:clusters]
    nearest, moved = lloyd_step(points, start)
    theirs = KMeans(clusters, init=start, n_init=1, max_iter=1).fit(points)
    filled = np.bincount(nearest, minlength=clusters) > 0
    if filled.all():
        assert moved == pytest.approx(theirs.cluster_centers_)
    assert (moved[~filled] == start[~filled]).all()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 6), st.floats(0, 50))
def test_the_soft_loss_lies_between_the_mean_and_the_nearest(seed, clusters, alpha):
    rng = np.random.default_rng(seed)
    points, centres = rng.normal(size=(30, 3)), rng.normal(size=(clusters, 3))
    distance = ((points[:, None] - centres) ** 2).sum(-1)
    pair = torch.from_numpy(points), torch.from_numpy(centres)
    loss = float(soft_kmeans_loss(*pair, alpha))
    assert distance.min(1).mean() - 1e-9 <= loss <= distance.mean() + 1e-9
    assert float(soft_kmeans_loss(*pair, 0)) == pytest.approx(distance.mean())
    weight = np.exp(-alpha * (distance - distance.min(1, keepdims=True)))
    assert loss == pytest.approx((distance * weight / weight.sum(1, keepdims=True)).sum(1).mean())


def groups(seed, each=12):
    "Three kinds of planes that nobody could mix up, with noise."
    rng = np.random.default_rng(seed)
    kinds = rng.normal(size=(3, 2, 6, 8))
    names = rng.permutation(np.repeat(np.arange(3), each))
    return (kinds[names] + 0.2 * rng.normal(size=(len(names), 2, 6, 8))).astype(np.float32), names


@pytest.mark.parametrize("seed", range(3))
def test_deep_kmeans_finds_what_is_plain_to_see(seed):
    planes, names = groups(seed)
    state = torch.random.get_rng_state()
    found = deep_kmeans(planes, 3, seed, pretrain=40, alphas=(1, 30, 1000))
    # the caller's random numbers are left alone
    assert torch.equal(state, torch.random.get_rng_state())
    for sorting in (found.clusters, found.before):
        # one cluster a kind, one kind a cluster
        assert len(set(zip(names.tolist(), sorting.tolist()))) == 3
    assert (found.clusters == lloyd_step(found.points, found.centres)[0]).all()
    assert (found.drawn.shape, found.log["alpha"].tolist()) == (planes.shape, [1, 30, 1000])


def test_deep_kmeans_is_the_same_twice_and_learns():
    planes, _ = groups(5)
    one, two, none = (
        deep_kmeans(planes, 3, 1, pretrain=20, alphas=(1, 1000), weight=weight)
        for weight in (1, 1, 0)
    )
    assert (one.points == two.points).all() and one.log.equals(two.log)
    assert (one.before == none.before).all()  # the same pretraining
    assert none.log["reconstruction"].iloc[-1] < none.log["reconstruction"].iloc[0]
    assert one.log["clustering"].iloc[-1] < 0.5 * none.log["clustering"].iloc[-1]  # the pull pulls


def test_planes_forget_paint_and_keep_the_label(scenes):
    crops = label_crops(scenes.pictures, scenes.masks)
    planes = crop_planes(crops)
    assert planes.dtype == np.float32 and planes.shape == (24, 2, 24, 48)
    assert planes[:, 0].std((1, 2)) == pytest.approx(np.ones(24), abs=1e-3)
    assert planes[:, 1] == pytest.approx(crops[..., 3] / 127.5 - 1, abs=1e-6)
    flat = crop_planes(np.zeros((1, 24, 48, 4), np.uint8))  # a black crop is no division by zero
    assert (flat[0, 0] == 0).all() and (flat[0, 1] == -1).all()


def test_three_measures_say_what_they_say():
    crops = np.full((3, 24, 48, 4), 200, np.uint8)
    crops[..., 3] = 0
    crops[:2, 11:13, :, :3] = 10  # a dark seam in the middle
    crops[2, 3:5, :, :3] = 10  # a dark seam far away
    crops[0, 10:14, :, 3] = crops[2, 10:14, :, 3] = 255
    crops[1, 4:20, :, 3] = 255
    width, darkness, distance = label_measures(crops).T
    assert width.argmax() == 1
    assert darkness.argmin() == 0
    assert darkness.argmax() == 2
    assert distance.argmax() == 2
    assert label_measures(crops).mean(0) == pytest.approx([0, 0, 0], abs=1e-6)


def test_the_largest_cluster_and_its_controls():
    clusters = np.array([1, 0, 1, 2, 0, 2, 3])
    styles = np.array(["careful", "thin", "wide", "careful", "careful", "thin", "thin"])
    assert largest_cluster(clusters).tolist() == [1, 4]  # three of two: the lowest number
    arms = cluster_arms(clusters, styles, seed=3)
    assert list(arms) == ["largest cluster", "random subset", "all", "careful"]
    assert [len(rows) for rows in arms.values()] == [2, 2, 7, 2]
    assert set(styles[arms["careful"]]) == {"careful"} and len(set(arms["random subset"])) == 2
    few = cluster_arms(np.zeros(7, int), styles)
    assert few["careful"].tolist() == [0, 3, 4] and few["random subset"].tolist() == list(range(7))


def test_spacing_arrays_hold_what_was_drawn_or_the_truth(scenes):
    drawn, exact = spacing_arrays(scenes), spacing_arrays(scenes, exact=True)
    assert (drawn.masks[:, 0] == scenes.masks).all() and (exact.masks[:, 0] == scenes.truth).all()
    assert (scenes.masks != scenes.truth).any()
    assert drawn.known.all()
    assert drawn.masks.shape == (24, 1, 96, 144)


def test_a_contact_sheet_has_a_row_per_cluster(scenes):
    clusters = np.array([0, 2, 2] * 8)
    ax = contact_sheet(scenes.pictures, scenes.masks, clusters, count=3)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["2 (16)", "0 (8)"]
    assert contact_sheet(scenes.pictures, scenes.masks, clusters, ax=ax) is ax
    plt.close("all")


def test_encoder_features_come_in_order_and_see_the_label(scenes):
    crops = label_crops(scenes.pictures[:3], scenes.masks[:3])
    features = encoder_features(crops)
    assert features.shape == (3, 1280)
    assert encoder_features(crops[[2, 0]]) == pytest.approx(features[[2, 0]], abs=1e-3)
    assert np.abs(encoder_features(crops * np.array([1, 1, 1, 0], np.uint8)) - features).max() > 0.1


def test_the_styles_experiment_is_tidy_and_the_same_twice(monkeypatch):
    # the network's features have a test of their own
    monkeypatch.setattr(module, "encoder_features", label_measures)
    one, two = (
        styles_experiment(seeds=(1,), pictures=12, clusters=3, gaps=(0.03,), pretrain=2)
        for _ in range(2)
    )
    assert one.equals(two) and len(one) == 6 and not one.duplicated(["seed", "arm"]).any()
    assert one["ari"].between(-0.5, 1).all()
    assert one["largest"].between(4, 12).all()
    assert one["careful"].between(0, 1).all()


def test_every_arm_takes_the_same_steps_and_meets_the_truth(monkeypatch):
    seen = []

    def learn(train, watch, test, epochs, seed):
        seen.append((len(train.names), len(set(train.names)), epochs, seed, len(watch.names)))
        return test.masks  # draws just what a careful hand drew

    monkeypatch.setattr(module, "_learn", learn)
    table = module.clusters_experiment(
        seeds=(2,), pictures=12, clusters=3, epochs=5, valid=2, test=4, pretrain=1
    )
    sizes = table.groupby("arm", sort=False)["labels"].first()
    assert [row[0] for row in seen] == [12] * 4 and [row[1] for row in seen] == sizes.tolist()
    assert {row[2:] for row in seen} == {(5, 2, 2)}
    # a careful hand is not the truth
    assert (table["dice_drawn"] == 1).all() and 0.6 < table["dice"].mean() < 1
    assert table.groupby("arm").size().tolist() == [4] * 4 and set(table["class"]) == {"spacing"}
