"Scenes: presence, labels, agreement, no shortcut, and a folder that is complete or not there."

from itertools import combinations

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import cross_val_predict

from cloudlearn.masks import resize_mask, rle_decode
from cloudlearn.scenes import clouds as scenes
from cloudlearn.scenes.clouds import (
    CLOUD_CLASSES,
    Scene,
    cloud_boxes,
    cloud_field,
    cloud_scene,
    write_cloud_folder,
)

SMALL = (64, 96)
LABELS = (1400, 2100)


@pytest.fixture(scope="module")
def many() -> list[Scene]:
    return [cloud_scene(seed, SMALL) for seed in range(300)]


@pytest.fixture(scope="module")
def labels() -> np.ndarray:
    "What cloud_scene labels in 400 scenes, on the layout grid, without pictures: (400, 4, H, W)."
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        boxes = scenes._draw(rng, *scenes._regions(rng, seed))
        painted = scenes._paint(boxes, scenes.LAYOUT)
        dark = scenes._dark(scenes._track(rng, boxes), scenes.LAYOUT)
        found.append(painted & ~dark)
    return np.stack(found)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    return write_cloud_folder(home / "clouds", train=5, test=3, seed=2, shape=(70, 105))


@pytest.mark.parametrize("seed", [0, 1, 17, 2**40])
@pytest.mark.parametrize("shape", [(64, 96), (97, 131), (350, 525)])
def test_a_scene_has_the_promised_parts(seed, shape):
    scene = cloud_scene(seed, shape)
    assert scene.picture.shape == (*shape, 3) and scene.picture.dtype == np.uint8
    for masks in (scene.masks, scene.truth):
        assert masks.shape == (4, *shape) and masks.dtype == bool
    assert scene.swath.shape == shape and scene.swath.dtype == bool
    assert scene.masks.any() and scene.truth.any()
    assert not (scene.masks & scene.swath).any() and not (scene.truth & scene.swath).any()
    assert not scene.picture[scene.swath].any()
    assert scene.truth.sum(0).max() == 1


def test_a_seed_gives_one_scene_and_another_seed_another():
    for seed in (0, 5, 9):
        one = cloud_scene(seed, SMALL)
        again = cloud_scene(seed, SMALL)
        other = cloud_scene(seed + 1, SMALL)
        assert all(np.array_equal(a, b) for a, b in zip(one, again))
        assert (one.picture != other.picture).mean() > 0.5


def test_the_shape_changes_the_size_and_not_the_scene():
    for seed in (3, 4, 11):
        large, small = cloud_scene(seed), cloud_scene(seed, (96, 144))
        shrunk = cv2.resize(large.picture, (144, 96), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(shrunk.ravel(), small.picture.ravel())[0, 1] > 0.8
        for name in ("masks", "truth"):
            one, other = resize_mask(getattr(large, name), (96, 144)), getattr(small, name)
            assert (one != other).mean() < 0.01


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: cloud_scene(-1), "whole number from 0"),
        (lambda: cloud_scene(0.5), "whole number from 0"),
        (lambda: cloud_scene(0, (31, 96)), "each from 32 pixels"),
        (lambda: cloud_scene(0, (64, 96, 3)), "each from 32 pixels"),
        (lambda: write_cloud_folder("never", 0, 1), "at least 1 training"),
        (lambda: write_cloud_folder("never", 1, -1), "at least 1 training"),
    ],
)
def test_bad_input_is_answered_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    slope=st.floats(0, 4),
    stretch=st.floats(0.5, 4),
    angle=st.floats(-3, 3),
)
def test_a_field_has_mean_0_and_no_wild_values(seed, slope, stretch, angle):
    rng, recipe = np.random.default_rng(seed), dict(slope=slope, stretch=stretch, angle=angle)
    field = cloud_field(rng, SMALL, 1 / 30, 1 / 4, **recipe)
    assert field.shape == SMALL and field.dtype == np.float32
    assert abs(field.mean()) < 0.05 and 0.3 < field.std() < 2 and np.abs(field).max() < 8


def test_a_field_is_the_sum_of_its_waves():
    for seed in range(4):
        size = scenes._strengths(1 / 6, 1, 2, stretch=1, angle=0)
        lots = np.random.default_rng(seed).standard_normal((*size.shape, 2), np.float32)
        waves = size * lots.view(np.complex64)[..., 0]
        y, x = np.arange(32)[:, None] / 32, np.arange(44) / 44
        total = np.zeros((32, 44))
        for (i, j), wave in np.ndenumerate(waves):
            phase = (i - len(size) // 2) * y + j * x
            total += (2 if j else 1) * (wave * np.exp(2j * np.pi * phase)).real
        expected = total / (2 * np.sqrt((size**2).sum()))
        field = cloud_field(np.random.default_rng(seed), (32, 44), 1 / 6)
        assert np.allclose(field, expected, atol=1e-4)


def test_stretch_makes_structures_long_along_the_angle():
    def long(seed, angle):
        rng = np.random.default_rng(seed)
        return cloud_field(rng, SMALL, 1 / 30, 1 / 4, stretch=3, angle=angle)

    for seed in range(4):
        across, down = long(seed, 0), long(seed, np.pi / 2)
        assert np.abs(np.diff(across, axis=1)).mean() < 0.7 * np.abs(np.diff(across, axis=0)).mean()
        assert np.abs(np.diff(down, axis=0)).mean() < 0.7 * np.abs(np.diff(down, axis=1)).mean()


def test_presence_is_the_competitions(labels):
    present = labels.any((2, 3))
    assert present.any(1).all()
    assert np.abs(present.mean(0) - (0.501, 0.426, 0.530, 0.676)).max() < 0.04
    assert 0.445 < 1 - present.mean() < 0.49


def test_presence_of_a_short_run_of_seeds_is_close_too():
    sets = np.stack([scenes._classes(seed) for seed in range(1000)])
    for start in range(0, 1000, 100):
        assert np.abs(sets[start : start + 100].mean(0) - sets.mean(0)).max() < 0.04


def test_a_present_mask_covers_about_a_quarter(labels):
    areas = labels.mean((2, 3))
    assert 0.22 < areas[areas > 0].mean() < 0.30


def test_the_scene_is_labelled_by_its_boxes(many):
    for seed in range(0, 300, 23):
        expected = np.zeros((4, *SMALL), bool)
        for box in cloud_boxes(seed):
            rows = slice(round(box.top * 64), round(box.bottom * 64))
            columns = slice(round(box.left * 96), round(box.right * 96))
            expected[box.label, rows, columns] = True
        assert np.array_equal(many[seed].masks, expected & ~many[seed].swath)


def test_annotators_agree_about_as_little_as_people_do():
    agreement, missed, misnamed = [], 0, 0
    for seed in range(250):
        boxes, truth = cloud_boxes(seed), scenes._classes(seed)
        marks = []
        for person in range(3):
            drawn = [box for box in boxes if box.annotator == person]
            marks.append(scenes._paint(drawn, scenes.LAYOUT))
        for one, other in combinations(marks, 2):
            both = [(a, b) for a, b in zip(one, other) if a.any() and b.any()]
            agreement += [(a & b).sum() / (a | b).sum() for a, b in both]
        present = np.any(marks, axis=0).any((1, 2))
        missed += (truth & ~present).sum()
        misnamed += (present & ~truth).sum()
    assert 0.36 < np.mean(agreement) < 0.45
    assert missed > 0 and misnamed > 0


def test_the_label_contains_most_of_the_truth_and_is_larger(many):
    both = sum((s.masks & s.truth).sum() for s in many)
    truth, label = sum(s.truth.sum() for s in many), sum(s.masks.sum() for s in many)
    assert both / truth > 0.75 and label > 1.3 * truth


def test_the_swath_is_as_wide_as_in_real_pictures(many):
    assert 0.08 < np.mean([s.swath.mean() for s in many]) < 0.13


def test_brightness_is_that_of_real_pictures():
    some = [cloud_scene(seed, (175, 262)) for seed in range(40)]
    visible = [cv2.cvtColor(s.picture, cv2.COLOR_RGB2GRAY)[~s.swath] for s in some]
    means = np.array([v.mean() for v in visible])
    assert 68 < means.mean() < 90 and 7 < means.std() < 22
    assert 45 < np.mean([v.std() for v in visible]) < 66


def test_exposure_follows_the_rank_and_not_the_amount():
    visible, cloud = np.ones(SMALL, bool), cloud_field(np.random.default_rng(1), SMALL, 1 / 30)
    one = scenes._expose(np.random.default_rng(4), cloud, visible)
    other = scenes._expose(np.random.default_rng(4), 5 * cloud + 3, visible)
    assert np.allclose(one, other, atol=0.02)
    assert (np.diff(one.ravel()[cloud.ravel().argsort()]) >= 0).all()
    curved = scenes._expose(np.random.default_rng(4), np.exp(cloud), visible)
    assert np.abs(one - curved).mean() < 0.02


def test_no_shortcut_through_the_colour_histogram(many):
    channels = [
        np.concatenate([np.histogram(s.picture[..., c], 16, (0, 256))[0] for c in range(3)])
        for s in many
    ]
    histograms = np.array(channels) / (SMALL[0] * SMALL[1])
    present = np.array([s.masks.any((1, 2)) for s in many])
    for c, name in enumerate(CLOUD_CLASSES):
        fresh, there = LogisticRegression(max_iter=1000), present[:, c]
        prob = cross_val_predict(fresh, histograms, there, cv=5, method="predict_proba")
        assert roc_auc_score(there, prob[:, 1]) < 0.65, name


def test_texture_tells_the_kinds_apart():
    "The same grain over the four layouts: size of pieces, share finer than five pixels."
    pieces, fine = {name: [] for name in CLOUD_CLASSES}, {name: [] for name in CLOUD_CLASSES}
    for name, recipe in scenes.RECIPES.items():
        for seed in range(10):
            rough = cloud_field(np.random.default_rng(seed), (96, 144), 1 / 60, 1 / 10, slope=1.6)
            layout = recipe(np.random.default_rng(seed + 50), (96, 144), 0.2, rough)
            rng = np.random.default_rng(seed + 90)
            grain = cloud_field(rng, (96, 144), 1 / 70, 1 / 16, slope=1.4)
            cloud = layout + 0.6 * grain > 0
            sizes = np.bincount(cv2.connectedComponents(cloud.astype(np.uint8))[1].ravel())[1:]
            pieces[name].append((sizes**2).sum() / sizes.sum())
            smooth = cv2.blur(cloud.astype(np.float32), (5, 5))
            fine[name].append(((cloud - smooth) ** 2).mean() / cloud.var())
    pieces = {name: np.mean(values) for name, values in pieces.items()}
    fine = {name: np.mean(values) for name, values in fine.items()}
    assert pieces["Sugar"] < pieces["Gravel"] < 0.5 * min(pieces["Fish"], pieces["Flower"])
    assert fine["Flower"] + 0.1 < fine["Fish"] < fine["Gravel"] - 0.1


def test_the_folder_has_the_competitions_layout(folder):
    wanted = "sample_submission.csv test_images test_labels.csv train.csv train_images".split()
    assert sorted(p.name for p in folder.iterdir()) == wanted
    tables = [
        ("train", "train_images", 5),
        ("test_labels", "test_images", 3),
        ("sample_submission", "test_images", 3),
    ]
    for table, pictures, n in tables:
        rows = pd.read_csv(folder / f"{table}.csv")
        names = sorted(p.name for p in (folder / pictures).iterdir())
        assert list(rows.columns) == ["Image_Label", "EncodedPixels"] and len(names) == n
        wanted = [f"{name}_{cloud}" for name in names for cloud in CLOUD_CLASSES]
        assert list(rows.Image_Label) == wanted
    assert (pd.read_csv(folder / "sample_submission.csv").EncodedPixels == "1 1").all()


def test_the_folder_holds_the_scenes(folder):
    expected = {}
    for i in range(5):
        scene = cloud_scene(2 * 1_000_003 + i, (70, 105))
        expected[scene.masks.tobytes()] = scene
    rows = pd.read_csv(folder / "train.csv")
    for name, part in rows.groupby(rows.Image_Label.str.rsplit("_", n=1).str[0]):
        full = np.stack([rle_decode(text, LABELS) for text in part.EncodedPixels])
        scene = expected.pop(resize_mask(full, (70, 105)).tobytes())
        assert np.array_equal(full, resize_mask(scene.masks, LABELS))
        picture = cv2.imread(str(folder / "train_images" / name))[..., ::-1]
        assert picture.shape == scene.picture.shape
        assert np.abs(picture.astype(int) - scene.picture).mean() < 15
        assert picture[..., 2].mean() > picture[..., 0].mean()
    assert not expected


def test_folders_repeat_and_seeds_differ(tmp_path):
    one, again, other = (
        write_cloud_folder(tmp_path / name, 2, 1, seed, shape=SMALL)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    names = [sorted(p.relative_to(f).as_posix() for p in f.rglob("*")) for f in (one, again, other)]
    assert names[0] == names[1] and names[0] != names[2]
    assert (one / "train.csv").read_bytes() == (again / "train.csv").read_bytes()


def test_names_never_repeat():
    names = {(seed + 1) * scenes.GOLDEN % 2**28 for seed in range(20_000)}
    assert len(names) == 20_000


def test_a_target_that_is_not_empty_is_refused_and_untouched(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty"):
        write_cloud_folder(tmp_path / "full", 1, 0, shape=SMALL)
    with pytest.raises(ValueError, match="is not empty"):
        write_cloud_folder(tmp_path / "full" / "mine.txt", 1, 0, shape=SMALL)
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "mine.txt"]
    (tmp_path / "empty").mkdir()
    assert (write_cloud_folder(tmp_path / "empty", 1, 0, shape=SMALL) / "train.csv").exists()
    assert len((tmp_path / "empty" / "test_labels.csv").read_text().splitlines()) == 1


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(seed, shape):
        if seed == 3:
            raise OSError("disk full")
        return scene_of(seed, shape)

    scene_of = scenes.cloud_scene
    monkeypatch.setattr(scenes, "cloud_scene", broken)
    with pytest.raises(OSError, match="disk full"):
        write_cloud_folder(tmp_path / "clouds", 5, 1, shape=SMALL)
    assert list(tmp_path.iterdir()) == []


def test_a_scene_with_one_sliver_of_a_label_comes_to_an_end():
    "Seed 2018: the only box covers less than a hundredth, so no swath leaves that much visible."
    scene = cloud_scene(2018, (96, 144))
    assert 0 < scene.masks.mean() < 0.01
