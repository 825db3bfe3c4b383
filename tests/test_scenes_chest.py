"Chest scenes: one seed one chest, an exact truth inside the lungs, no shortcut, a whole folder."

import subprocess
import sys

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from cloudlearn.masks import resize_mask
from cloudlearn.scenes import chest as scenes_chest
from cloudlearn.scenes.chest import PNEUMONIA_KINDS, ChestScene, chest_scene, write_chest_folder

SMALL = (48, 48)


@pytest.fixture(scope="module")
def many() -> list[ChestScene]:
    return [chest_scene(seed, seed % 2 == 1, SMALL) for seed in range(500)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return write_chest_folder(home / "chest", (3, 5), (2, 4), seed=2, shape=SMALL)


@pytest.mark.parametrize("ill", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 17, 2**40])
@pytest.mark.parametrize("shape", [(32, 32), (61, 83), (128, 128)])
def test_a_scene_has_the_promised_parts(seed, ill, shape):
    scene = chest_scene(seed, ill, shape)
    assert scene.picture.shape == scene.truth.shape == shape
    assert scene.picture.dtype == np.uint8
    assert scene.truth.dtype == bool
    assert scene.ill is ill and scene.truth.any() == ill
    assert scene.picture.min() < 40 and scene.picture.max() > 200


def test_a_seed_gives_one_chest_and_another_seed_another():
    for seed in (0, 5, 9):
        one = chest_scene(seed, True, SMALL)
        again = chest_scene(seed, True, SMALL)
        other = chest_scene(seed + 1, True, SMALL)
        assert all(np.array_equal(a, b) for a, b in zip(one, again))
        assert (one.picture != other.picture).mean() > 0.5


def test_twins_differ_where_the_truth_is():
    for seed in range(20):
        ill, healthy = chest_scene(seed, True), chest_scene(seed, False)
        change = ill.picture.astype(float) - healthy.picture
        assert change[ill.truth].mean() > 2
        assert change[ill.truth].mean() > change[~ill.truth].mean() + 4
        away = ~cv2.dilate(ill.truth.astype(np.uint8), np.ones((25, 25))).astype(bool)
        if away.sum() > 500:
            assert np.corrcoef(ill.picture[away], healthy.picture[away])[0, 1] > 0.95


def test_truth_lies_in_lungs_and_every_kind_occurs(many):
    shares = np.array([scene.truth.mean() for scene in many if scene.ill])
    assert 0.005 < shares.min() and shares.max() < 0.6 and shares.max() > 5 * shares.min()
    rng = np.random.default_rng(0)
    kinds = [PNEUMONIA_KINDS[rng.choice(3, p=scenes_chest.SHARES)] for _ in range(100)]
    assert set(kinds) == set(PNEUMONIA_KINDS)
    chest = scenes_chest._draw_chest(np.random.default_rng(1))
    x, y = scenes_chest._grid((96, 96), chest)
    shadow, air = scenes_chest._shadow(chest, np.random.default_rng(1), x, y)
    for seed in range(20):
        share, truth = scenes_chest._opacity(np.random.default_rng(seed), chest, air, (x, y))
        assert truth.any()
        assert (air[truth] > 0.2 * chest.air).all()
        assert (share >= 0).all()
        assert share.max() < 2


def test_the_shape_changes_the_size_and_not_the_scene():
    for seed in (3, 4, 11):
        large, small = chest_scene(seed, True, (192, 192)), chest_scene(seed, True, (64, 64))
        shrunk = cv2.resize(large.picture, (64, 64), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(shrunk.ravel(), small.picture.ravel())[0, 1] > 0.95
        assert (resize_mask(large.truth, (64, 64)) != small.truth).mean() < 0.02


def test_the_histogram_has_nothing_to_tell(many):
    ill = np.array([scene.ill for scene in many])
    counts = [np.bincount(scene.picture.ravel() // 16, minlength=16) for scene in many]
    histograms = np.array(counts) / many[0].picture.size
    scaled = (histograms - histograms.mean(0)) / (histograms.std(0) + 1e-9)
    for features in (histograms, scaled):
        fresh = LogisticRegression(max_iter=2000)
        prob = cross_val_predict(fresh, features, ill, cv=5, method="predict_proba")
        assert abs(roc_auc_score(ill, prob[:, 1]) - 0.5) < 0.12
    means = np.array([scene.picture.mean() for scene in many])
    spreads = np.array([scene.picture.std() for scene in many])
    for values in (means, spreads):
        assert abs(values[ill].mean() - values[~ill].mean()) < 0.35 * values.std()


def test_the_picture_as_a_whole_does_tell(many):
    ill = np.array([scene.ill for scene in many])
    small = [cv2.resize(scene.picture, (12, 12), interpolation=cv2.INTER_AREA) for scene in many]
    coarse = np.array([picture.ravel() / 255 for picture in small])
    fresh = LogisticRegression(max_iter=2000)
    prob = cross_val_predict(fresh, coarse, ill, cv=5, method="predict_proba")
    assert 0.7 < roc_auc_score(ill, prob[:, 1]) < 0.95


@given(st.integers(0, 2**50), st.booleans())
@settings(max_examples=15, deadline=None)
def test_any_seed_is_a_scene(seed, ill):
    scene = chest_scene(seed, ill, (32, 40))
    assert scene.truth.any() == ill and np.isfinite(scene.picture).all()


@pytest.mark.parametrize(
    "seed, shape, words",
    [
        (-1, SMALL, "whole number from 0"),
        (1.5, SMALL, "whole number from 0"),
        (0, (31, 64), "from 32 pixels"),
        (0, (64,), "height, width"),
    ],
)
def test_wrong_input_is_answered_in_a_sentence(seed, shape, words):
    with pytest.raises(ValueError, match=words):
        chest_scene(seed, True, shape)


def test_a_folder_holds_what_was_asked_for_and_every_scene_once(folder):
    files = {
        f"{split}/{name}": sorted((folder / split / name).glob("*.jpg"))
        for split in ("train", "test")
        for name in ("NORMAL", "PNEUMONIA")
    }
    assert [len(paths) for paths in files.values()] == [3, 5, 2, 4]
    for key, paths in files.items():
        start = "person" if "PNEUMONIA" in key else "IM-"
        assert all(path.name.startswith(start) for path in paths)
    every = [path for paths in files.values() for path in paths]
    pictures = [cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in every]
    assert all(picture.shape == SMALL for picture in pictures)
    assert len({picture.tobytes() for picture in pictures}) == 14
    known = chest_scene(2 * 1_000_003 + 3, True, SMALL).picture  # the first ill one of seed 2
    path = folder / "train" / "PNEUMONIA" / f"person{2 * 1_000_003 + 4}_scene_1.jpg"
    found = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert np.abs(found.astype(int) - known).mean() < 4


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="at least one picture of each class"):
        write_chest_folder(tmp_path / "a", (0, 5), (2, 2))
    real = scenes_chest.chest_scene

    def broken(seed, *more):
        return 1 / 0 if seed == 5 else real(seed, *more)

    monkeypatch.setattr(scenes_chest, "chest_scene", broken)
    with pytest.raises(ZeroDivisionError):
        write_chest_folder(tmp_path / "b", (3, 5), (2, 2), shape=SMALL)
    assert not list(tmp_path.iterdir())
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="not empty"):
        write_chest_folder(tmp_path / "c", (1, 1), (1, 1), shape=SMALL)


def test_the_module_is_light():
    code = (
        "import sys, cloudlearn.scenes.chest; "
        "print(*sorted({'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == ""
