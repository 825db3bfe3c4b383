"Car scenes: exact truth, five hands, seams that are no damage, no shortcut, a whole folder."

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
from cloudlearn.scenes import cars as scenes_cars
from cloudlearn.scenes.cars import (
    CAR_KINDS,
    DAMAGES,
    STYLES,
    CarScene,
    Dent,
    Gape,
    Line,
    Scratch,
    Seam,
    car_scene,
    write_car_folder,
)

SMALL = (64, 96)


@pytest.fixture(scope="module")
def many() -> dict[str, list[CarScene]]:
    return {
        "damage": [car_scene(seed, "damage", SMALL) for seed in range(300)],
        "gap": [car_scene(seed, "gap", SMALL) for seed in range(60)],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_car_folder(
        tmp_path_factory.mktemp("home") / "cars",
        damage=(4, 2, 1),
        gaps=(3, 1, 2),
        seed=2,
        shape=SMALL,
        style="mixed",
    )


def dice(one, other):
    return 2 * (one & other).sum() / (one.sum() + other.sum())


@pytest.mark.parametrize("kind", CAR_KINDS)
@pytest.mark.parametrize("seed", [0, 1, 17, 2**40])
@pytest.mark.parametrize("shape", [(32, 32), (97, 131), (192, 288)])
def test_a_scene_has_the_promised_parts(seed, kind, shape):
    scene = car_scene(seed, kind, shape)
    assert scene.picture.shape == (*shape, 3) and scene.picture.dtype == np.uint8
    for masks in (scene.masks, scene.truth):
        assert masks.shape == (3, *shape) and masks.dtype == bool
    wanted = [True, True, False] if kind == "damage" else [False, False, True]
    assert scene.labelled.tolist() == wanted
    assert not scene.masks[~scene.labelled].any() and scene.style == "careful"


def test_a_seed_gives_one_scene_and_another_seed_or_kind_another():
    for seed in (0, 5, 9):
        one, again = car_scene(seed, "gap", SMALL), car_scene(seed, "gap", SMALL)
        assert all(np.array_equal(a, b) for a, b in zip(one, again))
        for other in (car_scene(seed + 1, "gap", SMALL), car_scene(seed, "damage", SMALL)):
            assert (one.picture != other.picture).mean() > 0.5


@pytest.mark.parametrize("kind", CAR_KINDS)
def test_the_shape_changes_the_size_and_not_the_scene(kind):
    for seed in (3, 4, 11):
        large, small = car_scene(seed, kind), car_scene(seed, kind, (96, 144))
        shrunk = cv2.resize(large.picture, (144, 96), interpolation=cv2.INTER_AREA)
        assert np.corrcoef(shrunk.ravel(), small.picture.ravel())[0, 1] > 0.9
        for name in ("masks", "truth"):
            one, other = resize_mask(getattr(large, name), (96, 144)), getattr(small, name)
            assert (one != other).mean() < 0.02
            assert np.array_equal(one.any((1, 2)), other.any((1, 2)))


def test_the_style_changes_the_label_and_nothing_else():
    for seed in (0, 1, 2):
        hands = [car_scene(seed, "gap", style=style) for style in STYLES]
        for hand in hands:
            assert np.array_equal(hand.picture, hands[0].picture)
            assert np.array_equal(hand.truth, hands[0].truth)
        assert len({hand.masks.tobytes() for hand in hands}) == len(STYLES)


def test_the_gap_changes_the_opening_and_not_the_car():
    for seed in range(4):
        narrow, wide = car_scene(seed, "gap", gap=0.02), car_scene(seed, "gap", gap=0.06)
        assert wide.truth[2].sum() > 2 * narrow.truth[2].sum()
        assert not (narrow.truth[2] & ~wide.truth[2]).mean() > 0.001
        assert np.array_equal(narrow.truth[:2], wide.truth[:2])
        assert (np.abs(narrow.picture.astype(int) - wide.picture) > 40).any(-1).mean() < 0.12


def test_the_five_hands_differ_as_described():
    drawn = {
        style: [car_scene(seed, "gap", (192, 288), style=style) for seed in range(10)]
        for style in STYLES
    }
    area, score = {}, {}
    for style, found in drawn.items():
        area[style] = np.mean([s.masks[2].sum() / s.truth[2].sum() for s in found])
        score[style] = np.mean([dice(s.masks[2], s.truth[2]) for s in found])
    assert 0.85 < area["careful"] < 1.1 and score["careful"] > 0.9
    assert area["thin"] < 0.6
    assert area["wide"] > 2.5
    assert 0.5 < area["one side"] < 0.9
    assert 0.85 < area["shifted"] < 1.15
    assert score["shifted"] < 0.3
    assert all(0.3 < score[style] < 0.75 for style in ("thin", "wide", "one side"))
    for scene in drawn["wide"]:
        assert (scene.truth[2] & ~scene.masks[2]).sum() < 0.1 * scene.truth[2].sum()
    for scene in drawn["thin"]:
        assert (scene.masks[2] & ~scene.truth[2]).sum() < 0.2 * scene.masks[2].sum()


def test_mixed_styles_are_two_fifths_careful_and_known():
    styles = [car_scene(seed, "gap", (32, 48), style="mixed").style for seed in range(100)]
    assert len(STYLES) == 5
    for style in STYLES:
        wanted = (40,) if style == "careful" else (10, 20)
        assert round(styles.count(style), -1) in wanted
    for seed in range(5):
        mixed = car_scene(seed, "gap", SMALL, style="mixed")
        assert np.array_equal(mixed.masks, car_scene(seed, "gap", SMALL, style=mixed.style).masks)


def test_presence_and_areas_are_those_of_photos(many):
    areas = np.array([scene.masks.mean((1, 2)) for scene in many["damage"]])
    present = areas[:, :2] > 0
    assert np.abs(present.mean(0) - 0.62).max() < 0.03
    assert abs((~present.any(1)).mean() - 0.1) < 0.02
    assert 0.06 < areas[present[:, 0], 0].mean() < 0.10
    assert 0.035 < areas[present[:, 1], 1].mean() < 0.07
    gaps = np.array([scene.truth[2].mean() for scene in many["gap"]])
    assert 0.006 < gaps.mean() < 0.014 and gaps.min() > 0.003


def test_a_damage_is_labelled_where_it_is(many):
    for scene in many["damage"]:
        assert not scene.truth[2].any()
        for mask, truth in zip(scene.masks[:2], scene.truth):
            assert mask.any() == truth.any()
    dents = [s for s in many["damage"] if s.truth[0].any()]
    assert np.mean([dice(s.masks[0], s.truth[0]) for s in dents]) > 0.8
    scratches = [(s.masks[1], s.truth[1]) for s in many["damage"] if s.truth[1].any()]
    covered = np.mean([(mask & truth).sum() / truth.sum() for mask, truth in scratches])
    right = np.mean([(mask & truth).sum() / mask.sum() for mask, truth in scratches])
    assert covered > 0.85 and 0.2 < right < 0.8


def test_gap_pictures_hold_damage_that_nobody_labelled(many):
    truth = np.array([scene.truth.any((1, 2)) for scene in many["gap"]])
    assert truth[:, 2].all()
    assert (0.1 < truth[:, :2].mean(0)).all()
    assert (truth[:, :2].mean(0) < 0.5).all()


@pytest.mark.parametrize("kind", CAR_KINDS)
def test_every_picture_has_a_seam_and_a_seam_alone_is_no_damage(kind):
    for seed in range(60):
        car, _ = scenes_cars._draw_car(seed, kind)
        grid = scenes_cars._grid(SMALL)
        seams = scenes_cars._joints(car.seams, None, *grid, gap=0.02)[0] < scenes_cars.SEAM
        gaping = scenes_cars._joints(car.seams, car.gape, *grid, gap=0.02)[1]
        assert seams.sum() > 40 and gaping.sum() < 0.9 * seams.sum()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), gap=st.floats(0.01, 0.2))
def test_a_seam_opens_inside_its_stretch_only(seed, gap):
    rng = np.random.default_rng(seed)
    seam = Seam(Line(0.7, 0.5, 0), 0.006, 0)
    gape = Gape(*np.sort(rng.uniform((-0.6, 0.1), (-0.1, 0.6))), 1, rng.choice([-1, 1]))
    along = np.linspace(-1, 1, 801)
    wide = scenes_cars._opening(seam, gape, along, gap)
    assert np.allclose(wide[(along <= gape.start) | (along >= gape.end)], 0.006)
    assert 0.006 - 1e-9 <= wide.min() and 0.9 * gap < wide.max() <= gap + 1e-9


def test_a_gaping_seam_moves_on_one_side_only():
    seam, grid = Seam(Line(0.75, 0.5, 0), 0.006, 0), scenes_cars._grid((192, 288))
    for side in (1, -1):
        gaping = scenes_cars._joints([seam], Gape(-0.4, 0.4, side, 1), *grid, gap=0.05)[1]
        rows = grid[1][gaping.any(1), 0] - 0.5
        assert side * rows.mean() > 0.01 and (side * rows > -0.004).all()


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_point_of_a_line_lies_on_it(seed):
    rng = np.random.default_rng(seed)
    line = scenes_cars._line(rng, *rng.uniform(0, 1, 2), rng.uniform(-2, 2))
    at = np.linspace(-0.7, 0.7, 30)
    along, beside = scenes_cars._along(line, *scenes_cars._point(line, at))
    assert np.allclose(along, at, atol=1e-6) and np.allclose(beside, 0, atol=1e-6)
    to = scenes_cars._along(line, *scenes_cars._point(line, at, 0.05))[1]
    assert ((0 < to) & (to <= 0.05 + 1e-6)).all()


def test_a_dent_has_the_area_of_its_ellipse_and_pushes_inward():
    grid = scenes_cars._grid((192, 288))
    for angle, long, wide in ((0, 0.3, 0.2), (0.7, 0.25, 0.1), (-1.2, 0.2, 0.2)):
        dent = Dent(Line(0.75, 0.5, angle), long, wide, -1.0, ())
        height, dented = scenes_cars._bowls([dent], *grid)
        assert abs(dented.mean() - np.pi * long * wide / 1.5) < 1e-3
        assert not height[~dented].any()
        assert (height[dented] <= 0).all()
        assert abs(height.min() + 0.6 * wide) < 1e-3


def test_an_outline_is_where_the_radius_is_1():
    for seed in range(10):
        dent = scenes_cars._draw_dent(np.random.default_rng(seed), [])
        turns = np.linspace(0, 6, 40)
        for scale in (0.5, 1.0, 1.3):
            x, y = scenes_cars._outline(dent, turns, scale).astype(np.float32).T
            assert np.allclose(scenes_cars._radius(dent, x[None], y[None])[0], scale, atol=0.01)


def test_a_stroke_covers_its_length_times_its_width():
    for angle in (0, 0.5, 1.4):
        stroke = Scratch(Line(0.75, 0.5, angle), np.array([[-0.3, 0.3, 0.05, 0.02, 1, 20]]), 1.0)
        cover, passed = scenes_cars._strokes(stroke, *scenes_cars._grid((384, 576)), 1 / 384)
        assert abs(passed.mean() * 1.5 - (0.6 - 0.04) * 0.04) < 2e-3
        assert cover.max() <= 1 and cover.min() >= 0 and cover[~passed].max() <= 0.55
    hair = Scratch(Line(0.75, 0.5, 0.3), np.array([[-0.3, 0.3, 0, 0.0005, 1, 20]]), 1.0)
    assert scenes_cars._strokes(hair, *scenes_cars._grid(SMALL), 1 / 64)[1].sum() >= 0.5 * 64


def test_damage_is_seen_in_the_picture():
    "Without its dents the same car looks different there, and nowhere else before exposure."
    for seed in range(12):
        car, _ = scenes_cars._draw_car(seed, "damage")
        if not car.dents:
            continue
        x, y = scenes_cars._grid(SMALL)
        outside = scenes_cars._joints(car.seams, None, x, y, gap=0.02)[0]
        metal = []
        for dents in (car.dents, []):
            rng = np.random.default_rng(seed)
            height, dented = scenes_cars._relief(car._replace(dents=dents), rng, outside, (x, y))
            metal.append(scenes_cars._shine(car, rng, height, x)[0])
            if dents:
                inside = cv2.dilate(dented.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        change = np.abs(metal[0] - metal[1]).max(-1)
        assert change[~inside].max() < 1e-3 and change[inside].mean() > 0.03 * metal[1].mean()


def test_no_shortcut_through_the_colour_histogram(many):
    channels = [
        np.concatenate([np.histogram(s.picture[..., c], 16, (0, 256))[0] for c in range(3)])
        for s in many["damage"]
    ]
    histograms = np.array(channels) / (SMALL[0] * SMALL[1])
    present = np.array([s.masks.any((1, 2)) for s in many["damage"]])
    for c, name in enumerate(DAMAGES[:2]):
        fresh, there = LogisticRegression(max_iter=1000), present[:, c]
        prob = cross_val_predict(fresh, histograms, there, cv=5, method="predict_proba")
        assert roc_auc_score(there, prob[:, 1]) < 0.65, name


def test_a_part_out_of_sight_changes_nothing():
    "Ground that begins below the picture: no lot after it depends on whether it is drawn."
    unseen = scenes_cars.Part("ground", Line(0.75, 1.1, 0), 0)
    for kind in CAR_KINDS:
        pictures = []
        for line in (unseen.line, unseen.line._replace(y=1.5)):
            car, rng = scenes_cars._draw_car(4, kind)
            longer = car._replace(parts=[unseen._replace(line=line), *car.parts])
            pictures.append(scenes_cars._photograph(longer, rng, SMALL, 0.02))
        assert all(np.array_equal(one, other) for one, other in zip(*pictures))


def test_photos_are_neither_black_nor_white(many):
    for kind in CAR_KINDS:
        means = np.array([s.picture.mean() for s in many[kind]])
        assert means.min() > 25
        assert means.max() < 215
        assert 85 < means.mean() < 130
        assert 10 < means.std() < 40
        assert np.median([s.picture.std() for s in many[kind]]) > 25


@pytest.mark.parametrize(
    "call, words",
    [
        (lambda: car_scene(-1), "whole number from 0"),
        (lambda: car_scene(0.5), "whole number from 0"),
        (lambda: car_scene(0, "hail"), "one of damage, gap"),
        (lambda: car_scene(0, "gap", (31, 96)), "each from 32 pixels"),
        (lambda: car_scene(0, "gap", (64, 96, 3)), "each from 32 pixels"),
        (lambda: car_scene(0, "gap", gap=0.009), "0.01 to 0.2"),
        (lambda: car_scene(0, "gap", gap=float("nan")), "0.01 to 0.2"),
        (lambda: car_scene(0, "gap", style="neat"), "shifted or mixed"),
        (lambda: write_car_folder("never", damage=(1, 0, 1)), "from 1 for each kind"),
        (lambda: write_car_folder("never", gaps=(1, 1)), "from 1 for each kind"),
        (lambda: write_car_folder("never", style="neat"), "shifted or mixed"),
    ],
)
def test_bad_input_is_answered_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_the_folder_has_socars_layout(folder):
    assert sorted(p.name for p in folder.iterdir()) == ["dent", "scratch", "spacing", "styles.csv"]
    for name, counts in (("dent", (4, 2, 1)), ("scratch", (4, 2, 1)), ("spacing", (3, 1, 2))):
        for split, count in zip(("train", "valid", "test"), counts):
            home = folder / name / split
            images = {p.stem for p in (home / "images").iterdir()}
            masks = {p.stem for p in (home / "masks").iterdir()}
            assert images == masks and len(images) == count
    photos = {}
    for name in DAMAGES:
        home = folder / name
        found = home.rglob("*.jpg")
        photos[name] = {p.relative_to(home).as_posix(): p.read_bytes() for p in found}
    assert photos["dent"] == photos["scratch"]
    dents, gaps = ({path.rsplit("/")[-1] for path in photos[name]} for name in ("dent", "spacing"))
    assert not dents & gaps
    assert len({data for part in photos.values() for data in part.values()}) == 7 + 6


def test_the_folder_holds_the_scenes_as_drawn(folder):
    first = 2 * 1_000_003
    expected = set()
    for i in range(13):
        kind = "damage" if i < 7 else "gap"
        scene = car_scene(first + i, kind, SMALL, style="mixed")
        expected.add((kind, scene.masks.tobytes()))

    def read(path):
        mask = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        assert mask.shape == SMALL and set(np.unique(mask)) <= {0, 255}
        return mask > 0

    nothing, found = np.zeros(SMALL, bool), set()
    for path in folder.glob("dent/*/masks/*"):
        other = folder / "scratch" / path.relative_to(folder / "dent")
        found.add(("damage", np.stack([read(path), read(other), nothing]).tobytes()))
    for path in folder.glob("spacing/*/masks/*"):
        found.add(("gap", np.stack([nothing, nothing, read(path)]).tobytes()))
    assert found == expected


def test_the_folder_tells_who_drew_which_gap(folder):
    head, *rows = (folder / "styles.csv").read_text().splitlines()
    names = {p.stem for p in (folder / "spacing").rglob("*.jpg")}
    assert head == "name,style"
    assert {row.split(",")[0] for row in rows} == names
    assert {row.split(",")[1] for row in rows} <= set(STYLES)
    some = range(2_000_006, 2_000_030)
    seeds = {f"{(seed + 1) * scenes_cars.GOLDEN % 2**28:07x}": seed for seed in some}
    for row in rows:
        name, style = row.split(",")
        assert car_scene(seeds[name], "gap", (32, 48), style="mixed").style == style


def test_folders_repeat_and_seeds_differ(tmp_path):
    few = {"damage": (1, 1, 1), "gaps": (1, 1, 1), "shape": (32, 48)}
    one, again, other = (
        write_car_folder(tmp_path / name, seed=seed, **few)
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    files = [
        {p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()}
        for f in (one, again, other)
    ]
    assert files[0] == files[1] and files[0].keys() != files[2].keys()


def test_a_target_that_is_not_empty_is_refused_and_untouched(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="is not empty"):
        write_car_folder(tmp_path / "full", shape=SMALL)
    with pytest.raises(ValueError, match="is not empty"):
        write_car_folder(tmp_path / "full" / "mine.txt", shape=SMALL)
    assert [p.name for p in tmp_path.rglob("*")] == ["full", "mine.txt"]


def test_a_failure_leaves_nothing_behind(tmp_path, monkeypatch):
    def broken(seed, *args, **settings):
        if seed == 5:
            raise OSError("disk full")
        return scene_of(seed, *args, **settings)

    scene_of = scenes_cars.car_scene
    monkeypatch.setattr(scenes_cars, "car_scene", broken)
    with pytest.raises(OSError, match="disk full"):
        write_car_folder(tmp_path / "cars", (2, 1, 1), (2, 1, 1), shape=(32, 48))
    assert list(tmp_path.iterdir()) == []


def test_importing_does_not_load_torch():
    code = (
        "import sys, cloudlearn.scenes.cars; "
        "sys.exit(bool({'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
