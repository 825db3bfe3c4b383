"""Label files: every layout into the same arrays, faults in one sentence, unknown kept apart."""

import copy
import json
import random
import re
import shutil
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array
from matplotlib.path import Path as MplPath
from PIL import Image, ImageDraw
from pycocotools import mask as coco
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

from cloudlearn import formats
from cloudlearn.files import picture_shape
from cloudlearn.formats import (
    EDGE,
    check_labelled,
    coco_counts,
    coco_decode,
    coco_encode,
    draw_label,
    find_layout,
    load_labelled,
    polygon_points,
    read_labelled,
    read_mask,
)
from cloudlearn.masks import polygon_mask, resize_mask
from cloudlearn.scenes.cars import CAR_SPLITS, DAMAGES, write_car_folder
from cloudlearn.scores import dice, iou

SIZE = (24, 36)
SQUARE = [[4, 14, 14, 4], [3, 3, 13, 13]]


# ------------------------------------------------------------------------------------ small folders


def photo(path, number, size=SIZE):
    "A photo that no other number has."
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(number).integers(0, 255, (*size, 3), np.uint8)).save(path)
    return path


def png(path, values):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values, np.uint8)).save(path)
    return path


def block(row=4, column=6, size=SIZE):
    values = np.zeros(size, np.uint8)
    values[row : row + 8, column : column + 10] = 255
    return values


@pytest.fixture
def socar(tmp_path):
    "Two photos for dent and scratch in training, one in each other part; one each for spacing."
    for number, (split, count) in enumerate(zip(CAR_SPLITS, (2, 1, 1))):
        for row in range(count):
            for plane, name in enumerate(("dent", "scratch")):
                photo(
                    tmp_path / "d" / name / split / "images" / f"{split}{row}.jpg",
                    10 * number + row,
                )
                png(
                    tmp_path / "d" / name / split / "masks" / f"{split}{row}.png",
                    block(4 + row, 6 + 4 * plane),
                )
        photo(tmp_path / "d" / "spacing" / split / "images" / f"gap-{split}.jpg", 100 + number)
        png(tmp_path / "d" / "spacing" / split / "masks" / f"gap-{split}.png", block(1, 2))
    return tmp_path / "d"


def region(name, xs, ys, shape="polygon"):
    return {
        "shape_attributes": {"name": shape, "all_points_x": xs, "all_points_y": ys},
        "region_attributes": {"name": name},
    }


def via_entries(count):
    return {
        f"{row}.jpg": {
            "filename": f"{row}.jpg",
            "size": 9,
            "regions": [region(("dent", "scratch")[row % 2], *SQUARE)],
            "file_attributes": {},
        }
        for row in range(count)
    }


def coco_file(count):
    return {
        "images": [
            {"id": 7 * row, "file_name": f"{row}.jpg", "height": SIZE[0], "width": SIZE[1]}
            for row in range(count)
        ],
        "categories": [
            {"id": 1, "name": "dent"},
            {"id": 5, "name": "Scratch"},
            {"id": 0, "name": "damage"},
        ],
        "annotations": [
            {
                "id": row,
                "image_id": 7 * row,
                "category_id": 1 + 4 * (row % 2),
                "segmentation": [np.array(SQUARE).T.ravel().tolist()],
            }
            for row in range(count)
        ],
    }


@pytest.fixture
def folder(tmp_path):
    "Write a folder with a JSON file and photos 0.jpg, 1.jpg, ..."

    def write(content, count=6, name="labels.json"):
        place = tmp_path / "json"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        for row in range(count):
            photo(place / f"{row}.jpg", row)
        (place / name).write_text(content if isinstance(content, str) else json.dumps(content))
        return place

    return write


def only_fault(place, *words, classes=DAMAGES):
    "The one fault of a folder; read_labelled raises the same."
    faults = check_labelled(place, classes)
    assert len(faults) == 1, faults
    for word in words:
        assert word in faults[0], faults
    with pytest.raises(ValueError) as caught:
        read_labelled(place, classes)
    assert str(caught.value) == faults[0]
    return faults[0]


# ----------------------------------------------------------------------------------- masks in files


@pytest.mark.parametrize("top", [1, 128, 255])
def test_two_values_are_a_mask(tmp_path, top):
    values = block() // 255 * np.uint8(top)
    np.testing.assert_array_equal(read_mask(png(tmp_path / "m.png", values), SIZE), block() > 0)
    np.testing.assert_array_equal(
        read_mask(png(tmp_path / "m.png", np.dstack([values] * 3)), SIZE), block() > 0
    )
    Image.fromarray(block() > 0).save(tmp_path / "one.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "one.png", SIZE), block() > 0)
    assert (
        read_mask(png(tmp_path / "m.png", np.full(SIZE, top)), SIZE).all()
        and not read_mask(png(tmp_path / "m.png", np.zeros(SIZE)), SIZE).any()
    )


def test_a_palette_counts_by_its_colours(tmp_path):
    picture = Image.fromarray((block() > 0).astype(np.uint8)).convert("P")
    for palette, want in (
        ([0] * 3 + [90] * 3, block() > 0),
        ([255] * 3 + [0] * 3, block() == 0),
    ):  # the second: index 0 is white, index 1 is black
        picture.putpalette(palette + [9] * 762)
        picture.save(tmp_path / "m.png")
        np.testing.assert_array_equal(read_mask(tmp_path / "m.png", SIZE), want)


def test_what_is_no_mask(tmp_path):
    for values, shape, words in [
        (block(), (36, 24), "the mask is 36 x 24 (width x height), its picture 24 x 36"),
        (np.resize([0, 1, 255], SIZE), SIZE, "3 grey values (0, 1, 255"),
        (np.dstack([block()] * 4), SIZE, "mode RGBA"),
        (np.resize([3, 7], SIZE), SIZE, "2 grey values (3, 7"),
    ]:
        with pytest.raises(ValueError) as caught:
            read_mask(png(tmp_path / "m.png", values), shape)
        assert words in str(caught.value) and "m.png" in str(caught.value)
    photo(tmp_path / "p.jpg", 1).rename(tmp_path / "m.png")
    for content in (None, b"", b"\x89PNG\r\n\x1a\n", b"text"):
        if content is not None:
            (tmp_path / "m.png").write_bytes(content)
        with pytest.raises(ValueError, match="m.png"):
            read_mask(tmp_path / "m.png", SIZE)


def test_a_cut_mask_is_named(tmp_path):
    path = png(tmp_path / "m.png", np.random.default_rng(0).integers(0, 2, (200, 200)) * 255)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="m.png: cannot be read"):
        read_mask(path, (200, 200))


# ----------------------------------------------------------------------------------------- polygons


def test_corners_at_and_beyond_the_frame():
    for shift in (0, 0.5, EDGE):
        polygon_points([0 - shift, 36 + shift, 5], [0 - shift, 3, 24 + shift], SIZE)
    for xs, ys in (
        ([-EDGE - 0.01, 5, 6], [1, 2, 9]),
        ([1, 36 + EDGE + 0.01, 6], [1, 2, 9]),
        ([1, 5, 6], [1, 2, -1.01]),
        ([1, 5, 6], [1, 2, 25.01]),
        ([1, 5, float("inf")], [1, 2, 3]),
        ([1, 5, 10**400], [1, 2, 3]),
        ([1, 5, -(10**30)], [1, 2, 3]),
    ):
        with pytest.raises(ValueError, match="lies outside the picture of 36 x 24"):
            polygon_points(xs, ys, SIZE)


@pytest.mark.parametrize(
    "xs, ys, words",
    [
        ([1, 2], [1, 2], "this one has 2"),
        ([], [], "this one has 0"),
        ([1, 5, 1, 5], [2, 3, 2, 3], "this one has 2"),
        ([1, 2, 3], [1, 2], "3 x for 2 y"),
        (None, None, "two lists"),
        ([1, 2, "3"], [1, 2, 3], "two lists"),
        ([1, 2, None], [1, 2, 3], "two lists"),
        ([1, 2, True], [1, 2, 3], "two lists"),
        ({"0": 1}, [1], "two lists"),
        ([1, 2, float("nan")], [1, 2, 3], "corner 3 is not a number"),
        ([1, 2, 3], [float("nan"), 2, 3], "corner 1 is not a number"),
    ],
)
def test_what_is_no_polygon(xs, ys, words):
    with pytest.raises(ValueError, match=words):
        polygon_points(xs, ys, SIZE)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.floats(0, 36), st.floats(0, 24)), min_size=3, max_size=9, unique=True))
def test_good_corners_pass_unchanged(corners):
    xs, ys = map(list, zip(*corners))
    if len({(x + 0.0, y + 0.0) for x, y in corners}) < 3:
        return
    np.testing.assert_array_equal(polygon_points(xs, ys, SIZE), np.array(corners))


# ------------------------------------------------------------------------------- COCO's run lengths


@settings(max_examples=50)
@given(any_array(bool, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_run_lengths_equal_pycocotools(mask):
    library = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    counts = coco_encode(mask)["counts"]
    np.testing.assert_array_equal(coco_counts(library, mask.shape), counts)
    np.testing.assert_array_equal(coco_decode(coco_counts(counts, mask.shape), mask.shape), mask)
    assert coco.frPyObjects(coco_encode(mask), *mask.shape)["counts"].decode() == library
    assert sum(counts[1::2]) == mask.sum() and sum(counts) == mask.size and 0 not in counts[1:]


@pytest.mark.parametrize("seed", range(3))
def test_long_runs_equal_pycocotools(seed):
    rng, shape = np.random.default_rng(seed), (700, 900)
    mask = np.zeros(shape, bool)
    for _ in range(4):
        top, left = rng.integers(0, 600, 2)
        mask[top : top + rng.integers(1, 300), left : left + rng.integers(1, 300)] ^= True
    library = coco.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()
    np.testing.assert_array_equal(coco_decode(coco_counts(library, shape), shape), mask)


@settings(max_examples=50)
@given(
    st.one_of(
        st.text(max_size=30),
        st.text(alphabet=[chr(code) for code in range(48, 112)], max_size=30),
        st.lists(st.one_of(st.integers(-9, 40), st.booleans(), st.floats(), st.none()), max_size=8),
    )
)
def test_any_counts_add_up_or_are_refused(counts):
    try:
        good = coco_counts(counts, (4, 5))
    except ValueError as error:
        assert str(error) and "\n" not in str(error)
    else:
        assert good.sum() == 20 and (good >= 0).all() and coco_decode(good, (4, 5)).shape == (4, 5)


def test_counts_that_do_not_add_up():
    for counts in (
        [19],
        [21],
        [10, 9],
        [0, 21],
        [-1, 21],
        [5, -1, 16],
        [2**70],
        [10.0, 10.0],
        "",
        None,
        20,
        b"d0",
        "d" * 4000,
    ):
        with pytest.raises(ValueError):
            coco_counts(counts, (4, 5))
    assert coco_counts([20], (4, 5)).tolist() == [20] and coco_counts(
        [5, 0, 15], (4, 5)
    ).tolist() == [5, 0, 15]


# -------------------------------------------------------------------------------------------- SOCAR


def test_socar_is_read(socar):
    cars = read_labelled(socar, DAMAGES)
    assert (
        check_labelled(socar, DAMAGES) == []
        and find_layout(socar) == "socar" == cars.layout
        and cars.classes == DAMAGES
        and cars.notes == ()
    )
    assert [(sample.name, sample.split, tuple(sample.labels)) for sample in cars.samples] == [
        ("gap-train", "train", ("spacing",)),
        ("train0", "train", ("dent", "scratch")),
        ("train1", "train", ("dent", "scratch")),
        ("gap-valid", "valid", ("spacing",)),
        ("valid0", "valid", ("dent", "scratch")),
        ("gap-test", "test", ("spacing",)),
        ("test0", "test", ("dent", "scratch")),
    ]
    arrays = load_labelled(cars.samples, (12, 18), DAMAGES)
    assert arrays.known.tolist() == [
        [False, False, True] if "gap" in name else [True, True, False] for name in arrays.names
    ]
    np.testing.assert_array_equal(
        arrays.masks[2, :2], resize_mask(np.stack([block(5, 6), block(5, 10)]) > 0, (12, 18))
    )
    assert (
        not arrays.masks[~arrays.known].any()
        and not (arrays.pictures[1] == arrays.pictures[2]).all()
    )


def test_order_of_classes(socar):
    one = load_labelled(read_labelled(socar, DAMAGES).samples, (12, 18), DAMAGES)
    other = load_labelled(
        read_labelled(socar, ("scratch", "dent")).samples, (12, 18), ("scratch", "dent")
    )
    rows = [name in other.names for name in one.names]
    np.testing.assert_array_equal(one.masks[rows][:, [1, 0]], other.masks)
    assert (
        read_labelled(socar, ("spacing",)).classes == ("spacing",)
        and len(read_labelled(socar, ("spacing",)).samples) == 3
    )


def test_one_photo_labelled_for_one_class_only(socar):
    for sub, suffix in (("images", "jpg"), ("masks", "png")):
        (socar / "scratch" / "train" / sub / f"train0.{suffix}").unlink()
    labels = {sample.name: set(sample.labels) for sample in read_labelled(socar, DAMAGES).samples}
    assert labels["train0"] == {"dent"} and labels["train1"] == {"dent", "scratch"}


def test_other_photo_of_the_same_name_is_another_sample(socar):
    photo(socar / "scratch" / "train" / "images" / "train0.jpg", 77)
    names = {sample.name: set(sample.labels) for sample in read_labelled(socar, DAMAGES).samples}
    assert (
        names["dent-train-images-train0.jpg"] == {"dent"}
        and names["scratch-train-images-train0.jpg"] == {"scratch"}
        and len(names) == 8
    )


def test_what_systems_leave_behind_does_not_count(socar):
    for name in (".DS_Store", "._train0.jpg", "Thumbs.db", "desktop.ini"):
        (socar / "dent" / "train" / "images" / name).write_bytes(b"x")
    (socar / "styles.csv").write_text("name,style\n")
    assert check_labelled(socar, DAMAGES) == []


@pytest.mark.parametrize(
    "spoil, words",
    [
        (
            lambda d: png(d / "dent/train/masks/train0.png", block(size=(36, 24))),
            ["dent/train/masks/train0.png", "24 x 36", "36 x 24"],
        ),
        (
            lambda d: png(d / "dent/train/masks/train0.png", np.resize([0, 9, 255], SIZE)),
            ["dent/train/masks/train0.png", "3 grey values"],
        ),
        (
            lambda d: (d / "dent/train/masks/train0.png").unlink(),
            ["dent/train/images/train0.jpg", "there is no mask"],
        ),
        (
            lambda d: (d / "dent/train/images/train0.jpg").unlink(),
            ["dent/train/masks/train0.png", "there is no picture"],
        ),
        (lambda d: shutil.rmtree(d / "spacing"), ["no class folder spacing"]),
        (
            lambda d: shutil.copy(
                d / "dent/train/images/train0.jpg", d / "dent/train/images/train0.png"
            ),
            ["the same stem"],
        ),
        (
            lambda d: (d / "dent/train/images/new.webp").write_bytes(b"x"),
            ["new.webp", "save it as one"],
        ),
        (lambda d: photo(d / "dent/train/masks/train9.jpg", 5), ["train9.jpg", ".png"]),
        (
            lambda d: (d / "dent/train/masks/train0.png").write_bytes(b"\x89PNG"),
            ["dent/train/masks/train0.png", "cannot be read"],
        ),
    ],
)
def test_one_fault_one_sentence(socar, spoil, words):
    spoil(socar)
    only_fault(socar, *words)


def test_unreadable_pictures(socar):
    content = (socar / "spacing/test/images/gap-test.jpg").read_bytes()
    for broken in (b"", b"no picture", content[:60], content[: len(content) // 2]):
        (socar / "spacing/test/images/gap-test.jpg").write_bytes(broken)
        only_fault(socar, "gap-test.jpg", "cannot be read as a picture")


def test_empty_and_missing_parts(socar):
    shutil.rmtree(socar / "dent" / "valid")
    faults = check_labelled(socar, DAMAGES)
    assert len(faults) == 2 and all("no such folder" in fault for fault in faults)
    for sub in ("images", "masks"):
        (socar / "dent" / "valid" / sub).mkdir(parents=True)
    only_fault(socar, "dent/valid", "no pictures")


def test_all_faults_at_once(socar):
    shutil.rmtree(socar / "spacing")
    (socar / "dent/train/masks/train0.png").unlink()
    png(socar / "scratch/valid/masks/valid0.png", np.resize([0, 9, 255], SIZE))
    (socar / "dent/test/images/test0.jpg").write_bytes(b"")
    faults = check_labelled(socar, DAMAGES)
    assert len(faults) == 4
    for word in ("spacing", "train0.png", "valid0.png", "test0.jpg"):
        assert sum(word in fault for fault in faults) == 1, faults
    with pytest.raises(
        ValueError, match=r"\(3 more: `cloudlearn check .*` lists them all\.\)$"
    ) as caught:
        read_labelled(socar, DAMAGES)
    assert str(caught.value).startswith(faults[0])


# ----------------------------------------------------------------------------- the same photo twice


def copy_pair(socar, source, target):
    for sub, suffix in (("images", "jpg"), ("masks", "png")):
        shutil.copy(
            socar.joinpath(*source[:2], sub, f"{source[2]}.{suffix}"),
            socar.joinpath(*target[:2], sub, f"{target[2]}.{suffix}"),
        )


@pytest.mark.parametrize(
    "source, target",
    [
        (("dent", "train", "train0"), ("dent", "test", "train0")),
        (("dent", "valid", "valid0"), ("dent", "test", "valid0")),
        (("dent", "train", "train0"), ("scratch", "valid", "train0")),
        (("dent", "train", "train0"), ("spacing", "test", "train0")),
    ],
)
def test_same_photo_same_name_in_two_parts_stops(socar, source, target):
    copy_pair(socar, source, target)
    only_fault(
        socar,
        "are the same photo",
        f"{target[2]}.jpg",
        f"once in {source[1]} and once in {target[1]}",
    )


@pytest.mark.parametrize(
    "source, target, gone",
    [
        (("dent", "train", "train0"), ("dent", "test", "copy"), "train0"),
        (("dent", "test", "test0"), ("dent", "train", "copy"), "copy"),
        (("dent", "valid", "valid0"), ("dent", "test", "copy"), "valid0"),
        (("dent", "train", "train1"), ("scratch", "valid", "copy"), "train1"),
    ],
)
def test_same_photo_other_name_is_left_out_of_training(socar, source, target, gone):
    before = {sample.name for sample in read_labelled(socar, DAMAGES).samples}
    copy_pair(socar, source, target)
    assert (
        len(check_labelled(socar, DAMAGES)) == 1
        and "are the same photo" in check_labelled(socar, DAMAGES)[0]
    )
    cars = read_labelled(socar, DAMAGES)
    assert {sample.name for sample in cars.samples} == (before | {"copy"}) - {gone}
    assert len(cars.notes) == 1 and f"{gone}.jpg is left out" in cars.notes[0]


def test_copies_within_a_part_are_no_leak(socar):
    copy_pair(socar, ("dent", "train", "train0"), ("dent", "train", "copy"))
    assert check_labelled(socar, DAMAGES) == [] and len(read_labelled(socar, DAMAGES).samples) == 8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", ["via", "coco"])
def test_copies_stay_on_one_side(folder, layout, seed):
    place = folder(via_entries(20) if layout == "via" else coco_file(20), 20)
    for row in (3, 8, 15):
        shutil.copy(place / "1.jpg", place / f"{row}.jpg")
    split = {
        sample.name: sample.split for sample in read_labelled(place, DAMAGES, seed=seed).samples
    }
    assert len({split[name] for name in ("1", "3", "8", "15")}) == 1 and set(split.values()) == set(
        CAR_SPLITS
    )


# ------------------------------------------------------------------------------------- VIA and COCO


def test_via_and_coco_give_the_same(folder):
    def arrays(content):
        return load_labelled(
            sorted(read_labelled(folder(content), DAMAGES).samples), (12, 18), DAMAGES
        )

    via, polygons = arrays(via_entries(6)), arrays(coco_file(6))
    lists, texts, want = coco_file(6), coco_file(6), polygon_mask(np.array(SQUARE).T, SIZE)
    for row in lists["annotations"]:
        row["segmentation"] = coco_encode(want)
    for row in texts["annotations"]:
        row["segmentation"] = {
            "size": list(SIZE),
            "counts": coco.encode(np.asfortranarray(want, np.uint8))["counts"].decode(),
        }
    for other in (polygons, arrays(lists), arrays(texts)):
        for one, two in zip(via, other):
            np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(
        via.masks[1], [want[1::2, 1::2] * 0, want[1::2, 1::2], want[1::2, 1::2] * 0]
    )
    assert via.known.tolist() == [[True, True, False]] * 6


def test_shapes_of_one_class_are_one_mask(folder):
    content = via_entries(6)
    content["0.jpg"]["regions"] = [
        region("dent", [0, 9, 9, 0], [0, 0, 9, 9]),
        region("dent", [5, 30, 30, 5], [5, 5, 20, 20]),
        region("scratch", *SQUARE),
    ]
    sample = next(
        sample for sample in read_labelled(folder(content), DAMAGES).samples if sample.name == "0"
    )
    want = np.zeros(SIZE, bool)
    want[:9, :9] = want[5:20, 5:30] = True
    np.testing.assert_array_equal(draw_label(sample.labels["dent"], SIZE), want)
    assert len(sample.labels["scratch"]) == 1


def test_via_project_and_old_regions(folder):
    project = {
        "_via_settings": {},
        "_via_img_metadata": via_entries(6),
        "_via_attributes": {
            "region": {"name": {"type": "radio", "options": {"dent": "", "Spacing": ""}}},
            "file": {},
        },
    }
    project["_via_img_metadata"]["2.jpg"]["regions"] = {"0": region("dent", *SQUARE)}
    project["_via_img_metadata"]["3.jpg"]["regions"] = []
    cars = read_labelled(folder(project), DAMAGES)
    assert (
        cars.layout == "via"
        and cars.classes == DAMAGES
        and [sorted(sample.labels) for sample in cars.samples] == [sorted(DAMAGES)] * 6
    )
    assert cars.notes == (
        f"{cars.folder / 'labels.json'}: 1 of 6 photos have nothing drawn and count as undamaged.",
    )
    assert {sample.name: len(sample.labels["dent"]) for sample in cars.samples} == {
        "0": 1,
        "1": 0,
        "2": 1,
        "3": 0,
        "4": 1,
        "5": 0,
    }


@pytest.mark.parametrize(
    "words, name",
    [
        ({"type": "DENT "}, "dent"),
        ({"damage": {"dent": False, "spacing": True}}, "spacing"),
        ({"note": "deep", "name": "scratch"}, "scratch"),
    ],
)
def test_where_a_class_may_stand(words, name):
    assert formats._class_in(words, DAMAGES) == name


@pytest.mark.parametrize(
    "words",
    [
        {},
        {"name": "dint"},
        {"name": ""},
        {"a": "dent", "b": "scratch"},
        {"name": None},
        None,
        "dent",
        {"damage": {"dent": True, "scratch": True}},
    ],
)
def test_a_region_must_name_one_class(words):
    with pytest.raises(ValueError, match="name (none|more than one) of dent, scratch, spacing"):
        formats._class_in(words, DAMAGES)


@pytest.mark.parametrize("shape", ["circle", "ellipse", "rect", "point", "polyline", None])
def test_every_other_via_shape_is_named(folder, shape):
    content = via_entries(6)
    content["4.jpg"]["regions"].append(
        {
            "shape_attributes": {"name": shape, "cx": 3, "cy": 4, "r": 2},
            "region_attributes": {"name": "dent"},
        }
    )
    only_fault(folder(content), f"labels.json, 4.jpg, region 2: is drawn as {shape}")


@pytest.mark.parametrize(
    "change, words",
    [
        (
            lambda d: d["0.jpg"].update(filename="../0.jpg"),
            ["'../0.jpg' does not stay in the folder"],
        ),
        (lambda d: d["0.jpg"].update(filename="/etc/passwd"), ["does not stay in the folder"]),
        (lambda d: d["0.jpg"].update(filename=None), ["does not stay in the folder"]),
        (lambda d: d["0.jpg"].update(filename="a.jpg"), ["a.jpg is not there"]),
        (lambda d: d["0.jpg"].update(filename="x" * 5000), ["is not there"]),
        (lambda d: d["0.jpg"].update(regions=4), ["labels.json, 0.jpg, has no list of regions"]),
        (lambda d: d["0.jpg"].update(regions=[4]), ["region 1: has no shape"]),
        (lambda d: d.update(again=dict(d["1.jpg"])), ["1.jpg: stands in the file twice"]),
        (lambda d: d.update(odd=3), ["odd"]),
        (lambda d: d.pop("0.jpg"), ["0.jpg", "has no labels in labels.json"]),
    ],
)
def test_via_faults(folder, change, words):
    content = via_entries(6)
    change(content)
    faults = check_labelled(folder(content), DAMAGES)
    assert any(all(word in fault for word in words) for fault in faults), faults


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d["annotations"][2].update(image_id=99), ["annotation 3", "image_id 99"]),
        (lambda d: d["annotations"][2].pop("image_id"), ["annotation 3", "image_id None"]),
        (
            lambda d: d["annotations"][2].update(category_id=77),
            ["annotation 3 (2.jpg)", "'77' is none of"],
        ),
        (lambda d: d["annotations"][2].update(category_id=0), ["'damage' is none of"]),
        (
            lambda d: d["annotations"][2].update(segmentation=[]),
            ["annotation 3 (2.jpg)", "a box is not a mask"],
        ),
        (lambda d: d["annotations"][2].update(segmentation=[[1, 2, 3]]), ["even length"]),
        (lambda d: d["annotations"][2].update(segmentation=[[1, 2, 3, 4]]), ["this one has 2"]),
        (
            lambda d: d["annotations"][2].update(segmentation=[[1, 2, 3, 4, 99, 5]]),
            ["corner 3 at x 99, y 5"],
        ),
        (
            lambda d: d["annotations"][2].update(segmentation={"size": [36, 24], "counts": [864]}),
            ["for the size [36, 24]"],
        ),
        (
            lambda d: d["annotations"][2].update(segmentation={"counts": [864]}),
            ["for the size None"],
        ),
        (
            lambda d: d["annotations"][2].update(segmentation={"size": [24, 36], "counts": [800]}),
            ["add up to 800 pixels, the picture has 864"],
        ),
        (
            lambda d: d["annotations"][2].update(segmentation={"size": [24, 36], "counts": "abc"}),
            ["annotation 3 (2.jpg)"],
        ),
        (lambda d: d["annotations"].append("x"), ["annotation 7", "not an object"]),
        (
            lambda d: d["images"][1].update(height=36, width=24),
            ["labels.json, 1.jpg", "[36, 24]", "[24, 36]"],
        ),
        (lambda d: d["images"][1].update(id=0), ["1.jpg", "stand twice"]),
        (lambda d: d["images"][1].update(file_name="../1.jpg"), ["does not stay"]),
        (lambda d: d["images"].append(5), ["'None' does not stay"]),
    ],
)
def test_coco_faults(folder, change, words):
    content = coco_file(6)
    change(content)
    faults = check_labelled(folder(content), DAMAGES)
    assert any(all(word in fault for word in words) for fault in faults), faults


def test_photos_may_lie_in_images(folder):
    place = folder(coco_file(6))
    (place / "images").mkdir()
    for path in place.glob("*.jpg"):
        path.rename(place / "images" / path.name)
    assert check_labelled(place, DAMAGES) == [] and len(read_labelled(place, DAMAGES).samples) == 6
    photo(place / "images" / "more.png", 50)
    only_fault(place, "more.png", "has no labels")


def test_classes_wanted(folder):
    place = folder(via_entries(6))
    cars = read_labelled(place, ("dent",))
    assert (
        cars.classes == ("dent",)
        and [list(sample.labels) for sample in cars.samples] == [["dent"]] * 6
    )
    assert read_labelled(place, DAMAGES).notes == (
        f"{place}: nobody looked for spacing, so it is not learned.",
    )
    with pytest.raises(ValueError, match="nobody looked for spacing; name classes"):
        read_labelled(place, ("spacing",))


@pytest.mark.parametrize(
    "content, words",
    [
        ("{", "not valid JSON"),
        ("[1, 2]", "no labels found"),
        ("{}", "no labels found"),
        ("[" * 100_000, "not valid JSON"),
        ('{"a": ' + "9" * 5000 + "}", "not valid JSON"),
        (json.dumps({"images": [], "annotations": [], "categories": []}), "0 different photos"),
        (json.dumps({"_via_img_metadata": []}), "0 different photos"),
    ],
)
def test_files_that_are_no_labels(folder, content, words):
    assert (
        words
        in check_labelled(folder(content, 0) if "different" in words else folder(content), DAMAGES)[
            0
        ]
    )


def test_which_layout(folder, tmp_path):
    place = folder(via_entries(6))
    (place / "run.json").write_text('{"seed": 3}')
    assert find_layout(place, DAMAGES) == "via"
    (place / "coco.json").write_text("\ufeff" + json.dumps(coco_file(6)))
    with pytest.raises(ValueError, match="two label files, coco.json and labels.json"):
        find_layout(place, DAMAGES)
    (place / "labels.json").unlink()
    assert find_layout(place, DAMAGES) == "coco"
    (tmp_path / "none").mkdir()
    for wrong, words in (
        (tmp_path / "gone", "no such folder"),
        (tmp_path / "none", "no labels found"),
    ):
        assert [words in fault for fault in check_labelled(wrong, DAMAGES)] == [True]
        with pytest.raises(ValueError, match=words):
            find_layout(wrong, DAMAGES)


# ------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("count", [3, 4, 7, 20, 41])
def test_split_by_seed(folder, count):
    place, seen = folder(via_entries(count), count), set()
    for seed in range(4):
        cars = read_labelled(place, DAMAGES, seed=seed)
        parts = [sum(sample.split == split for sample in cars.samples) for split in CAR_SPLITS]
        assert parts == [
            count - 2 * max(1, round(0.15 * count)),
            max(1, round(0.15 * count)),
            max(1, round(0.15 * count)),
        ]
        assert [sample.split for sample in read_labelled(place, DAMAGES, seed=seed).samples] == [
            sample.split for sample in cars.samples
        ]
        seen.add(tuple(sample.split for sample in cars.samples))
    assert len(seen) > 1


def test_two_photos_are_too_few(folder):
    only_fault(folder(via_entries(2), 2), "2 different photos cannot be split")


# -------------------------------------------------------------------------- whatever is in the file

JUNK = [
    None,
    True,
    0,
    -1,
    2.5,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "dent",
    "../x",
    "\0",
    [],
    {},
    [[]],
    [1, 2],
    {"name": "dent"},
]


def nodes(value, path=()):
    yield path
    for key, inner in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from nodes(inner, (*path, key))


@pytest.mark.parametrize("layout", ["via", "coco"])
@pytest.mark.parametrize("seed", range(3))
def test_damaged_files_give_sentences(folder, layout, seed):
    rng, content = random.Random(seed), via_entries(4) if layout == "via" else coco_file(4)
    place = folder(content, 4)
    for _ in range(40):
        spoilt = copy.deepcopy(content)
        *path, last = rng.choice([path for path in nodes(content) if path])
        target = spoilt
        for key in path:
            target = target[key]
        target[last] = rng.choice(JUNK)
        (place / "labels.json").write_text(json.dumps(spoilt))
        faults = check_labelled(place, DAMAGES)
        for fault in faults:
            assert (
                isinstance(fault, str)
                and "\n" not in fault
                and fault[-1] in ".?"
                and len(fault) < 600
            ), fault
        if not faults:
            load_labelled(read_labelled(place, DAMAGES).samples, (6, 9), DAMAGES)


# ---------------------------------------------------------------- folders of any classes: the basis


LEAF = [[0.11, 0.83, 0.64], [0.07, 0.31, 0.92]]  # shares of width and height
SIDES = np.array(SIZE[::-1], float)


def inside(corners, size=SIZE):
    "Which pixel centres lie in a polygon, by matplotlib."
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    centres = np.stack([columns.ravel(), rows.ravel()], axis=1)
    return MplPath(corners).contains_points(centres).reshape(size)


def masks_of(place, **wanted):
    "Arrays at the photos' own size and what was read, sorted by name."
    read = read_labelled(place, **wanted)
    samples = sorted(read.samples, key=lambda sample: sample.name)
    return load_labelled(samples, SIZE, read.classes), read


@pytest.fixture
def pictures(tmp_path):
    "A folder with images/0.png, 1.png, ..."

    def write(count=6, place="d", sub="images", start=0):
        for row in range(start, start + count):
            photo(tmp_path / place / sub / f"{row}.png", row)
        return tmp_path / place

    return write


def test_classes_come_from_coco(folder):
    content = coco_file(6)
    content["categories"] = [
        {"id": 5, "name": "Tree", "supercategory": "damage"},
        {"id": 0, "name": "damage", "supercategory": "none"},
        {"id": 1, "name": "house", "supercategory": "damage"},
        {"id": 9, "name": "never"},
    ]
    arrays, read = masks_of(folder(content))
    assert read.classes == ("house", "Tree", "never") and arrays.known.all()
    assert "damage only groups others" in read.notes[0]
    (packed,) = coco.frPyObjects([np.array(SQUARE).T.ravel().tolist()], *SIZE)
    other = coco.decode(packed).astype(bool)
    for row in range(6):
        assert arrays.masks[row].any(axis=(1, 2)).tolist() == [row % 2 == 0, row % 2 == 1, False]
        assert iou(arrays.masks[row, row % 2], other) > 0.8  # that one paints the outline, too
    assert check_labelled(read.folder) == []


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "a\nb", None, 4, "x" * 61, "a\\b"])
def test_a_class_must_be_able_to_name_a_folder(folder, name):
    content = coco_file(6)
    content["categories"][0]["name"] = name
    faults = check_labelled(folder(content))
    assert any("category 1: " in fault and "cannot be the name" in fault for fault in faults)
    assert all("\n" not in fault for fault in faults)


def test_coco_may_lie_in_annotations(folder):
    place = folder(coco_file(6))
    (place / "annotations").mkdir()
    (place / "labels.json").rename(place / "annotations" / "instances_default.json")
    (place / "images").mkdir()
    for path in place.glob("*.jpg"):
        path.rename(place / "images" / path.name)
    assert find_layout(place) == "coco" and check_labelled(place) == []
    assert read_labelled(place).classes == ("damage", "dent", "Scratch")
    png(place / "masks" / "dent" / "0.png", block())
    note = f"{place}: instances_default.json is read, masks/ is not."
    assert find_layout(place) == "masks"
    only_fault(place, "1 different labelled photos cannot be split", classes=None)
    shutil.copy(place / "annotations" / "instances_default.json", place)
    assert find_layout(place) == "coco" and note in read_labelled(place).notes


def test_coco_files_in_parts(tmp_path):
    for number, (part, count) in enumerate((("train", 4), ("valid", 2), ("test", 1))):
        for row in range(count):
            photo(tmp_path / part / f"{row}.jpg", 10 * number + row)
        path = tmp_path / part / "_annotations.coco.json"
        path.write_text(json.dumps(coco_file(count)))
    assert find_layout(tmp_path) == "coco" and check_labelled(tmp_path) == []
    read = read_labelled(tmp_path)
    assert read.classes == ("damage", "dent", "Scratch")
    assert [sample.split for sample in read.samples] == [*["train"] * 4, *["valid"] * 2, "test"]
    assert all(
        len(sample.labels["dent"]) != len(sample.labels["Scratch"]) for sample in read.samples
    )
    photo(tmp_path / "test" / "more.jpg", 99)
    only_fault(tmp_path, "more.jpg: has no labels in _annotations.coco.json", classes=None)
    shutil.copy(path, tmp_path / "test" / "again.json")
    only_fault(tmp_path, "two label files, _annotations.coco.json and again.json", classes=None)


def test_coco_finds_the_classes_that_were_asked_for_as_before(folder):
    place = folder(coco_file(6))
    one, other = read_labelled(place, DAMAGES), read_labelled(place)
    assert one.classes == ("dent", "scratch") and [sample.split for sample in one.samples] == [
        sample.split for sample in other.samples
    ]


def test_classes_come_from_via(folder):
    content = via_entries(6)
    content["1.jpg"]["regions"][0]["region_attributes"] = {"name": "Scratch ", "note": "deep"}
    assert read_labelled(folder(content)).classes == ("dent", "Scratch")
    project = {
        "_via_img_metadata": via_entries(6),
        "_via_attributes": {
            "region": {"name": {"options": {"hole": "", "scratch": "", "dent": ""}}}
        },
    }
    read = read_labelled(folder(project))
    assert read.classes == ("hole", "scratch", "dent")
    assert set(read.samples[0].labels) == set(read.classes)
    content = via_entries(6)
    for entry in content.values():
        words = entry["regions"][0]["region_attributes"]
        words["kind"] = {words.pop("name"): True, "rust": False}
    assert read_labelled(folder(content)).classes == ("dent", "scratch")


def test_via_must_say_which_attribute_is_the_class(folder):
    content = via_entries(6)
    for entry in content.values():
        entry["regions"][0]["region_attributes"] = {"what": "dent", "where": "door"}
    only_fault(folder(content), "attributes what, where", "`class`", classes=None)
    for entry in content.values():
        entry["regions"] = []
    only_fault(folder(content), "no region names a class", classes=None)


def test_class_folders_of_any_name(socar):
    (socar / "spacing").rename(socar / "cracked glass")
    (socar / "dent").rename(socar / "a dent")
    read = read_labelled(socar)
    assert (read.layout, read.classes) == ("socar", ("a dent", "cracked glass", "scratch"))
    assert check_labelled(socar) == []
    shutil.rmtree(socar / "a dent")
    shutil.rmtree(socar / "scratch")
    assert read_labelled(socar).classes == ("cracked glass",)


# ------------------------------------------------------------------------------- folders of masks


def index_folder(place, count=6, top=3, sub="masks"):
    "Index masks of the values 0 to top, drawn anew; returns them by stem."
    values = {}
    for row in range(count):
        rng = np.random.default_rng(row)
        values[str(row)] = rng.integers(0, top + 1, SIZE)
        png(place / sub / f"{row}.png", values[str(row)])
    return values


def with_palette(path):
    "The same PNG with a palette in which colours say nothing about numbers."
    picture = Image.open(path).convert("L")
    picture.putpalette(np.random.default_rng(0).integers(0, 255, 768).astype(np.uint8).tobytes())
    picture.save(path)


@pytest.mark.parametrize("palette", [False, True])
@pytest.mark.parametrize("named", [False, True])
def test_index_masks(pictures, palette, named):
    place = pictures()
    values = index_folder(place)
    if palette:
        for path in (place / "masks").iterdir():
            with_palette(path)
    if named:
        (place / "classes.txt").write_text("\ufeffroof\r\nwall of brick\r\ndoor\r\nwindow\r\n\r\n")
    arrays, read = masks_of(place)
    names = (
        ("roof", "wall of brick", "door", "window") if named else ("class 1", "class 2", "class 3")
    )
    assert (read.layout, read.classes, read.notes) == ("masks", names, ())
    assert check_labelled(place) == [] and arrays.known.all()
    for row, name in enumerate(arrays.names):
        for plane in range(len(names)):
            np.testing.assert_array_equal(arrays.masks[row, plane], values[name] == plane + 1)


def test_index_masks_with_unknown_pixels(pictures):
    place = pictures()
    values = index_folder(place)
    values["2"][3:9] = 255
    png(place / "masks" / "2.png", values["2"])
    png(place / "masks" / "5.png", np.full(SIZE, 255))
    arrays, read = masks_of(place)
    assert arrays.known.all(axis=1).tolist() == [True] * 5 + [False]
    assert not arrays.known[5].any() and not arrays.masks[5].any()
    assert not arrays.masks[2, :, 3:9].any() and arrays.masks[2, :, 9:].any()
    assert any("1 of 6 masks have unknown pixels (255)" in note for note in read.notes)
    assert any("nobody looked at 1 of 6 photos" in note for note in read.notes)
    assert next(sample.split for sample in read.samples if sample.name == "5") == "train"


def test_wanted_classes_of_index_masks(pictures):
    place = pictures()
    values = index_folder(place)
    (place / "classes.txt").write_text("Roof\nwall\ndoor\n")
    arrays, read = masks_of(place, classes=("door", "roof", "tower"))
    assert read.classes == ("door", "roof")
    assert read.notes == (f"{place}: nobody looked for tower, so it is not learned.",)
    for row, name in enumerate(arrays.names):
        np.testing.assert_array_equal(arrays.masks[row, 0], values[name] == 3)
        np.testing.assert_array_equal(arrays.masks[row, 1], values[name] == 1)


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda d: (d / "masks" / "3.png").unlink(), ["3.png: there is no mask 3.png in"]),
        (lambda d: (d / "images" / "3.png").unlink(), ["there is no picture 3 in"]),
        (lambda d: png(d / "masks" / "3.png", np.zeros((9, 9))), ["the mask is 9 x 9"]),
        (lambda d: png(d / "masks" / "3.png", np.zeros((*SIZE, 3))), ["mode RGB", "8-bit grey"]),
        (lambda d: (d / "masks" / "3.png").write_bytes(b"PNG"), ["3.png: cannot be read"]),
        (lambda d: (d / "masks" / "3.txt").write_text(""), ["3.txt: not one of .png"]),
        (lambda d: (d / "masks" / "x.png").mkdir(), ["x"]),
        (lambda d: (d / "classes.txt").write_text("a\nb\n"), ["value 3 is beyond the 2 lines"]),
        (lambda d: (d / "classes.txt").write_text("a\n\nb\n"), ["classes.txt, line 2: ''"]),
        (lambda d: (d / "classes.txt").write_text("a\nA\n"), ["line 2: 'A' stands there twice"]),
        (lambda d: (d / "classes.txt").write_text("\n"), ["names no class"]),
        (lambda d: (d / "classes.txt").write_text("background\na\n"), ["line 1", "value 0"]),
        (lambda d: (d / "classes.txt").write_bytes(b"\xff\xfe\xfa"), ["is not UTF-8"]),
        (
            lambda d: (d / "classes.txt").write_text("\n".join(map(str, range(255)))),
            ["line 255", "254 classes"],
        ),
        (lambda d: (d / "labels").mkdir(), ["two kinds of labels, masks/ and labels/"]),
        (lambda d: photo(d / "train" / "images" / "z.png", 99), ["masks: there is no such folder"]),
    ],
)
def test_faults_of_index_masks(pictures, spoil, words):
    place = pictures()
    index_folder(place)
    spoil(place)
    faults = check_labelled(place)
    assert any(all(word in fault for word in words) for fault in faults), faults
    assert all("\n" not in fault and fault[-1] in ".?" for fault in faults), faults
    with pytest.raises(ValueError):
        read_labelled(place)


def test_masks_of_two_values_are_told_what_to_do(pictures):
    place = pictures()
    for row in range(6):
        png(place / "masks" / f"{row}.png", block())
    only_fault(place, "hold no values but 0, 255", "masks/CLASS/", classes=None)


def test_class_folders_of_masks(pictures):
    place = pictures()
    rng, want = np.random.default_rng(3), {}
    for name in ("wall", "roof"):
        for row in range(6):
            want[name, row] = rng.random(SIZE) > 0.6
            if (name, row) not in (("roof", 1), ("roof", 4), ("wall", 4)):
                png(place / "masks" / name / f"{row}.png", 255 * want[name, row])
    arrays, read = masks_of(place)
    assert (read.layout, read.classes) == ("masks", ("roof", "wall")) and check_labelled(
        place
    ) == []
    assert arrays.known.tolist() == [
        [True, True],
        [False, True],
        *[[True, True]] * 2,
        [False, False],
        [True, True],
    ]
    for row in range(6):
        for plane, name in enumerate(("roof", "wall")):
            on = want[name, row] & arrays.known[row, plane]
            np.testing.assert_array_equal(arrays.masks[row, plane], on)
    assert read.notes == (
        f"{place}: nobody looked at 1 of 6 photos; what they show stays unknown.",
    )
    (place / "classes.txt").write_text("wall\nroof\n")
    assert read_labelled(place).classes == ("wall", "roof")
    png(place / "masks" / "Wall" / "0.png", block())
    only_fault(place, "the classes 'wall' and 'Wall' differ only in case", classes=None)
    shutil.rmtree(place / "masks" / "Wall")
    png(place / "masks" / "roof" / "77.png", block())
    only_fault(place, "77.png: there is no picture 77", classes=None)
    png(place / "masks" / "78.png", block())
    only_fault(place, "78.png: lies beside the folder roof", classes=None)


@pytest.mark.parametrize("across", [False, True])
@pytest.mark.parametrize("valid", ["valid", "val"])
def test_parts_of_mask_folders(pictures, tmp_path, across, valid):
    for number, (part, count) in enumerate((("train", 4), (valid, 2), ("test", 1))):
        sub, labels = (
            (f"images/{part}", f"masks/{part}") if across else (f"{part}/images", f"{part}/masks")
        )
        pictures(count, sub=sub, start=10 * number)
        for row in range(10 * number, 10 * number + count):
            png(tmp_path / "d" / labels / f"{row}.png", block() // 255)
    read = read_labelled(tmp_path / "d", group="(.)")
    assert check_labelled(read.folder) == [] and read.classes == ("class 1",)
    assert [sample.split for sample in read.samples] == [*["train"] * 4, *["valid"] * 2, "test"]
    assert [sample.name for sample in read.samples] == ["0", "1", "2", "3", "10", "11", "20"]
    assert read.notes == (
        f"{read.folder}: has parts of its own, which are kept; '(.)' is not used.",
    )
    photo(tmp_path / "d" / "images" / "loose.png", 80)
    only_fault(tmp_path / "d", "loose.png: lies in no part", classes=None)
    (tmp_path / "d" / "images" / "loose.png").unlink()
    shutil.copy(read.samples[0].picture, read.samples[4].picture)
    assert "are the same photo" in check_labelled(read.folder)[0]


def test_a_missing_part_is_split_off_from_training(pictures, tmp_path):
    for number, (part, count) in enumerate((("train", 8), ("val", 2))):
        pictures(count, sub=f"{part}/images", start=10 * number)
        for row in range(10 * number, 10 * number + count):
            png(tmp_path / "d" / part / "masks" / f"{row}.png", block() // 255)
    read = read_labelled(tmp_path / "d")
    assert Counter(sample.split for sample in read.samples) == {"train": 7, "valid": 2, "test": 1}
    assert read.notes == (f"{read.folder}: there is no part test; photos of train take its place.",)
    assert {sample.name for sample in read.samples if sample.split == "valid"} == {"10", "11"}
    (tmp_path / "d" / "train").rename(tmp_path / "d" / "test")
    only_fault(tmp_path / "d", "there are no photos in a part train", classes=None)


# ------------------------------------------------------------------------------------------- YOLO


def yolo_line(number, corners=LEAF):
    return " ".join(map(str, [number, *np.array(corners).T.ravel().tolist()]))


def yolo_folder(place, count=6):
    (place / "labels").mkdir(parents=True, exist_ok=True)
    (place / "data.yaml").write_text("train: ../x\nnc: 3\nnames: [leaf, no, 7]\n")
    for row in range(count):
        (place / "labels" / f"{row}.txt").write_text(yolo_line(row % 2) + "\n\n")
    return place


def test_yolo(pictures):
    place = yolo_folder(pictures())
    (place / "labels" / "4.txt").write_text("")
    (place / "labels" / "5.txt").unlink()
    two = [[0.5, 1, 1, 0.5], [0.5, 0.5, 1, 1]]
    (place / "labels" / "0.txt").write_text(f"{yolo_line(0)}\r\n{yolo_line(0, two)}\r\n")
    arrays, read = masks_of(place)
    assert (read.layout, read.classes) == ("yolo", ("leaf", "no", "7")) and check_labelled(
        place
    ) == []
    assert arrays.known.tolist() == [[True] * 3] * 5 + [[False] * 3]
    leaf, second = inside(np.array(LEAF).T * SIDES), inside(np.array(two).T * SIDES)
    none = np.zeros(SIZE, bool)
    for row, want in enumerate(([leaf | second, none], [none, leaf], [leaf, none], [none, leaf])):
        np.testing.assert_array_equal(arrays.masks[row, :2], want)
    assert not arrays.masks[4:].any()
    assert read.notes == (
        f"{place}: nobody looked at 1 of 6 photos; what they show stays unknown.",
    )


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8, unique=True))
@settings(max_examples=40, deadline=None)
def test_yolo_polygons_are_filled_as_matplotlib_fills_them(corners):
    names = formats._Names(None, {0: "leaf"})
    words = yolo_line(0, np.array(corners).T).split()
    _, points = formats._yolo_line(words, SIZE, names)
    np.testing.assert_allclose(points, np.array(corners) * SIDES)


@pytest.mark.parametrize(
    "text, names",
    [
        ("names:\n  0: leaf\n  2: bark\n  1: root\n", ("leaf", "root", "bark")),
        ("names:\n- leaf\n- 'no'\n- on\n", ("leaf", "no", "on")),
    ],
)
def test_names_of_yolo_classes(pictures, text, names):
    place = yolo_folder(pictures())
    (place / "data.yaml").write_text(text)
    assert read_labelled(place).classes == names
    (place / "data.yaml").unlink()
    (place / "classes.txt").write_text("one\ntwo\n")
    assert read_labelled(place).classes == ("one", "two")
    (place / "classes.txt").rename(place / "labels" / "classes.txt")
    assert read_labelled(place).classes == ("one", "two") and check_labelled(place) == []


@pytest.mark.parametrize(
    "line, words",
    [
        ("0 0.5 0.5 0.2 0.2", "four numbers are a box"),
        ("0 0.5 0.5 0.2 0.2 0.1 0.9 0.4", "even length"),
        ("0 0.5 0.5 0.2 0.2", "3.txt, line 2"),
        ("3 0 0 1 0 1 1", "the class '3' is none of the 3 in data.yaml"),
        ("-1 0 0 1 0 1 1", "'-1' is none"),
        ("leaf 0 0 1 0 1 1", "'leaf' is none"),
        ("0 0 0 1 0 x 1", "'x'; write x y"),
        ("0 0 0 36 0 36 24", "36 is no share of the picture"),
        ("0 0 0 1.2 0 1 1", "corner 2 at x 43"),
        ("0 0 0 nan 0 1 1", "corner 2 is not a number"),
        ("0 0 0 inf 0 1 1", "inf is no share"),
        ("0 0 0 0 0 1 1", "this one has 2"),
        ("0", "this one has 0"),
        ("9" * 5000, "is none of"),
    ],
)
def test_faults_of_yolo_lines(pictures, line, words):
    place = yolo_folder(pictures())
    (place / "labels" / "3.txt").write_text(f"{yolo_line(1)}\n{line}\n")
    fault = only_fault(place, words, "3.txt, line 2", classes=None)
    assert len(fault) < 400 and fault[-1] in ".?"


# each line holds the line before nine times: 9 ** 30 texts, if anybody spelled them out
LAUGHTER = "a0: &a0 [x]\n" + "".join(
    f"a{row}: &a{row} [{', '.join([f'*a{row - 1}'] * 9)}]\n" for row in range(1, 30)
)
LAUGHTER += "names: *a29\n"


@pytest.mark.parametrize(
    "spoil, words",
    [
        (lambda d: (d / "labels" / "z.txt").write_text(""), "z.txt: there is no picture z"),
        (lambda d: (d / "labels" / "3.txt").write_bytes(b"\xff\xfe0"), "3.txt: is not UTF-8"),
        (lambda d: (d / "data.yaml").unlink(), "the classes have no names"),
        (lambda d: (d / "data.yaml").write_text("nc: 3"), "has no `names`"),
        (lambda d: (d / "data.yaml").write_text("names: [a, A]"), "twice"),
        (lambda d: (d / "data.yaml").write_text("names: {a: 0}"), "'a' is not the number"),
        (
            lambda d: (d / "data.yaml").write_text("names: [a, [b]]"),
            "names, 1: what is no text cannot",
        ),
        (lambda d: (d / "data.yaml").write_text("names: [a, ../b]"), "cannot be the name"),
        (lambda d: (d / "data.yaml").write_text("names: ["), "not valid YAML"),
        (lambda d: (d / "data.yaml").write_text(LAUGHTER), "names, 0: what is no text cannot"),
        (lambda d: (d / "data.yaml").write_text("[" * 20000), "not valid YAML"),
        (lambda d: (d / "data.yaml").write_text("#" * 2**19), "longer than"),
        (
            lambda d: (d / "data.yaml").write_text("names: !!python/object/apply:os.getcwd []"),
            "data.yaml",
        ),
        (lambda d: (d / "images" / "3.png").write_bytes(b""), "3.png: cannot be read"),
        (lambda d: (d / "images" / "3.tif").write_bytes(b""), "3.tif: not one of .jpg"),
        (lambda d: shutil.rmtree(d / "images"), "images: there is no such folder"),
    ],
)
def test_faults_of_yolo_folders(pictures, spoil, words):
    place = yolo_folder(pictures())
    spoil(place)
    faults = check_labelled(place)
    assert any(words in fault for fault in faults), faults
    assert all("\n" not in fault and fault[-1] in ".?" for fault in faults), faults


def test_nobody_looked_at_any_yolo_photo(pictures):
    place = yolo_folder(pictures())
    for path in (place / "labels").iterdir():
        path.unlink()
    only_fault(place, "nobody looked for leaf, no, 7; label some photos", classes=None)


# ---------------------------------------------------------------------------------------- labelme


def labelme_shape(label, points, kind="polygon"):
    return {"label": label, "points": points, "group_id": None, "shape_type": kind, "flags": {}}


def labelme_folder(place, count=6):
    "One JSON beside each photo, as labelme writes it."
    corners = (np.array(LEAF).T * SIDES).tolist()
    for row in range(count):
        data = {
            "version": "5.4.1",
            "flags": {},
            "shapes": [labelme_shape(("leaf", "bark")[row % 2], corners)],
            "imagePath": f"{row}.png",
            "imageData": "x" * 1000,
            "imageHeight": SIZE[0],
            "imageWidth": SIZE[1],
        }
        (place / f"{row}.json").write_text(json.dumps(data))
    return place


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize("sub", [".", "images"])
def test_labelme(pictures, sub):
    place = pictures(7, sub=sub)
    labelme_folder(place / sub)
    edit(place / sub / "2.json", lambda d: d.update(shapes=[]))
    box = labelme_shape("door", [[30, 20], [4, 2]], "rectangle")
    edit(place / sub / "3.json", lambda d: d["shapes"].append(box))
    arrays, read = masks_of(place)
    assert (read.layout, read.classes) == ("labelme", ("bark", "door", "leaf"))
    assert check_labelled(place) == [] and arrays.known.all()
    assert list(arrays.names) == list("012345")
    assert read.notes == (
        f"{place}: 1 of 6 photos have nothing drawn and count as empty.",
        f"{place}: 1 of 7 photos have no JSON file and are left out (6.png).",
    )
    leaf, none, door = inside(np.array(LEAF).T * SIDES), np.zeros(SIZE, bool), np.zeros(SIZE, bool)
    door[2:20, 4:30] = True
    want = [[none, none, leaf], [leaf, none, none], [none] * 3, [leaf, door, none]]
    np.testing.assert_array_equal(arrays.masks[:4], want)


def test_labelme_in_parts(pictures, tmp_path):
    for number, (part, count) in enumerate((("train", 4), ("val", 1), ("test", 1))):
        place = pictures(count, sub=part, start=0)
        for row in range(count):
            photo(place / part / f"{row}.png", 10 * number + row)
        labelme_folder(place / part, count)
    read = read_labelled(tmp_path / "d")
    assert [sample.split for sample in read.samples] == [*["train"] * 4, "valid", "test"]
    assert check_labelled(read.folder) == [] and len({sample.name for sample in read.samples}) == 6


def test_labelme_with_classes_that_were_asked_for(pictures):
    place = labelme_folder(pictures(sub="."))
    assert read_labelled(place, ("leaf", "Bark")).classes == ("leaf", "Bark")
    faults = check_labelled(place, ("leaf",))
    assert len(faults) == 3 and "its label 'bark' is none of leaf, dent" in faults[0]


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda d: d["shapes"][0].update(shape_type="circle"), "shape 1: is drawn as circle"),
        (lambda d: d["shapes"][0].update(shape_type="linestrip"), "is drawn as linestrip"),
        (lambda d: d["shapes"][0].update(shape_type="point"), "is drawn as point"),
        (lambda d: d["shapes"][0].update(shape_type=[4]), "is drawn as [4]"),
        (lambda d: d["shapes"][0].update(points=[[1, 2], [3, 4]]), "this one has 2"),
        (lambda d: d["shapes"][0].update(points=[[1, 2, 3]] * 4), "not pairs"),
        (lambda d: d["shapes"][0].update(points=4), "not pairs"),
        (lambda d: d["shapes"][0].update(points=[["1", 2]] * 4), "not two lists of numbers"),
        (lambda d: d["shapes"][0].update(points=[[1, 2], [3, 4], [99, 5]]), "corner 3 at x 99"),
        (lambda d: d["shapes"][0].update(label="../x"), "cannot be the name of a class"),
        (lambda d: d["shapes"][0].update(label=None), "cannot be the name of a class"),
        (lambda d: d["shapes"].append("x"), "shape 2: is not an object"),
        (lambda d: d.update(shapes=4), "has no list of shapes"),
        (lambda d: d.update(imagePath="../3.png"), "does not stay in the folder"),
        (lambda d: d.update(imagePath=None), "does not stay in the folder"),
        (lambda d: d.update(imagePath="gone.png"), "gone.png is not there"),
        (lambda d: d.update(imagePath="2.png"), "2.png has two JSON files"),
        (lambda d: d.update(imageHeight=36, imageWidth=24), "resized after it was annotated"),
    ],
)
def test_faults_of_labelme(pictures, change, words):
    place = labelme_folder(pictures(sub="."))
    edit(place / "3.json", change)
    fault = only_fault(place, words, f"{place / '3.json'}", classes=None)
    assert fault[-1] in ".?" and len(fault) < 400


def test_broken_labelme_files(pictures):
    place = labelme_folder(pictures(7, sub="."), 7)
    (place / "3.json").write_text("[" * 100_000)
    (place / "4.json").write_text("{")
    (place / "5.json").unlink()
    (place / "5.json").mkdir()
    faults = check_labelled(place)
    assert [f"{row}.json: not valid JSON" in fault for row, fault in zip("345", faults)] == [
        True
    ] * 3
    edit(place / "2.json", lambda d: d.pop("shapes"))  # somebody else's file
    assert len(check_labelled(place)) == 3


# ----------------------------------------------------------------------------- things stay together


@pytest.mark.parametrize("group", ["^[a-z]+", "^([a-z]+)_[0-9]", "(?:_)?([a-z]+)"])
def test_photos_of_one_thing_stay_together(tmp_path, group):
    stems = [f"{thing}_{row}" for thing in ("oak", "elm", "fir", "ash", "yew") for row in range(4)]
    for number, stem in enumerate(stems):
        photo(tmp_path / "images" / f"{stem}.png", number)
        png(tmp_path / "masks" / f"{stem}.png", block() // 255)
    shutil.copy(tmp_path / "images" / "oak_1.png", tmp_path / "images" / "fir_2.png")
    seen = set()
    for seed in range(6):
        read = read_labelled(tmp_path, seed=seed, group=group)
        parts = {}
        for sample in read.samples:
            parts.setdefault(sample.name[:3], set()).add(sample.split)
        assert all(len(found) == 1 for found in parts.values())
        assert parts["oak"] == parts["fir"] and set().union(*parts.values()) == set(CAR_SPLITS)
        seen.add(tuple(sample.split for sample in read.samples))
    assert len(seen) > 1
    alone = read_labelled(tmp_path, seed=0)
    assert any(
        len({sample.split for sample in alone.samples if sample.name.startswith(tree)}) > 1
        for tree in ("oak", "elm", "fir", "ash", "yew")
    )


def test_patterns_that_cannot_be_used(pictures):
    place = pictures()
    index_folder(place)
    for pattern, words in (
        ("(", "'(' is not a regular expression"),
        ("tree", "'tree' finds nothing in any file name (0.png, ...)"),
        ("png", "1 different things cannot be split into train, valid and test; three are needed"),
    ):
        with pytest.raises(ValueError, match=re.escape(words)):
            read_labelled(place, group=pattern)
    note = "'^[0-3]' finds nothing in 2 of 6 file names; each of these photos counts as a thing"
    assert any(note in line for line in read_labelled(place, group="^[0-3]").notes)


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
@settings(max_examples=60, deadline=None)
def test_rows_that_share_a_key_share_a_number(pairs):
    number = formats._together(*zip(*pairs))
    rows = len(pairs)
    graph = coo_matrix(
        [[one[0] == two[0] or one[1] == two[1] for one in pairs] for two in pairs], (rows, rows)
    )
    _, other = connected_components(graph)
    assert [(number == place).tolist() for place in number] == [
        (other == place).tolist() for place in other
    ]


def test_many_classes_can_be_split(pictures):
    place = yolo_folder(pictures(9), 9)
    (place / "classes.txt").write_text("\n".join(f"kind {row}" for row in range(90)))
    (place / "data.yaml").unlink()
    read = read_labelled(place)
    assert len(read.classes) == 90 and len({sample.split for sample in read.samples}) == 3


def test_every_photo_has_its_own_name(tmp_path):
    photos = [tmp_path / name for name in ("sub/a.jpg", "x/a.jpg", "sub-a.jpg.png")]
    names = formats._names(tmp_path, [formats._Photo(None, path, {}) for path in photos])
    assert len(set(names)) == 3


def test_layouts_of_any_classes(pictures, tmp_path):
    place = pictures()
    with pytest.raises(ValueError, match="no labels found; it should hold images/ and masks/"):
        find_layout(place)
    labelme_folder(place / "images")
    assert find_layout(place) == "labelme"
    index_folder(place)
    assert find_layout(place) == "masks"
    shutil.copy(place / "images" / "0.json", place)
    only_fault(place, "two kinds of labels, masks/ and labelme's JSON files", classes=None)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("layout", ["labelme", "yolo"])
def test_damaged_labels_of_any_classes_give_sentences(pictures, layout, seed):
    rng, place = random.Random(seed), pictures(4, sub="images" if layout == "yolo" else ".")
    (yolo_folder if layout == "yolo" else labelme_folder)(place, 4)
    path = place / ("labels/1.txt" if layout == "yolo" else "1.json")
    text = path.read_text()
    for _ in range(40):
        spoilt = list(text)
        for _ in range(rng.randint(1, 4)):
            spoilt[rng.randrange(len(spoilt))] = rng.choice('0123456789.-"[]{},:ex \n\0\u00e9')
        path.write_text("".join(spoilt))
        for fault in check_labelled(place):
            assert "\n" not in fault and fault[-1] in ".?" and len(fault) < 700, fault


# ----------------------------------------------------------------------- generated and real folders


@pytest.mark.parametrize("style", ["careful", "mixed"])
def test_generated_folder(tmp_path, style):
    place = write_car_folder(
        tmp_path / "cars", damage=(4, 1, 1), gaps=(3, 1, 1), shape=(48, 72), style=style
    )
    assert check_labelled(place, DAMAGES) == []
    cars = read_labelled(place, DAMAGES)
    assert [sum(sample.split == split for sample in cars.samples) for split in CAR_SPLITS] == [
        7,
        2,
        2,
    ] and cars.classes == DAMAGES
    arrays = load_labelled(cars.samples, (48, 72), DAMAGES)
    assert (
        arrays.known.sum(0).tolist() == [6, 6, 5]
        and arrays.masks[arrays.known[:, 2], 2].any((1, 2)).all()
    )


def test_load_labelled_refuses_nothing_and_names_pictures(socar):
    with pytest.raises(ValueError, match="no photos to load"):
        load_labelled([], (12, 18), DAMAGES)
    samples = read_labelled(socar, DAMAGES).samples
    samples[1].picture.unlink()
    with pytest.raises(ValueError, match="train0.jpg"):
        load_labelled(samples, (12, 18), DAMAGES)
    assert picture_shape(samples[0].picture) == SIZE


@pytest.mark.real
def test_real_socar(real_data):
    place = real_data / "car_damage" / "socar"
    assert [
        ("25_12dc.jpg" in fault, "48_ca48.jpg" in fault) for fault in check_labelled(place, DAMAGES)
    ] == [(True, True)]  # one photo under two names
    cars = read_labelled(place, DAMAGES)
    assert (
        cars.classes == DAMAGES
        and len(cars.notes) == 1
        and "25_12dc.jpg is left out" in cars.notes[0]
    )
    assert [sum(sample.split == split for sample in cars.samples) for split in CAR_SPLITS] == [
        76,
        17,
        17,
    ]
    arrays = load_labelled(
        [sample for sample in cars.samples if sample.split == "test"], (96, 144), DAMAGES
    )
    assert (
        arrays.known.sum(0).tolist() == [15, 15, 2]
        and (arrays.masks.any(axis=(2, 3)) & arrays.known).any(axis=1).all()
        and len(arrays.names) == 17
    )
    samples = [
        read_mask(place / name / part / "masks" / f"{stem}.png", (640, 640))
        for name in ("dent", "scratch")
        for part, stem in (("train", "25_12dc"), ("test", "48_ca48"))
    ]
    assert (
        round(float(dice(*samples[:2])), 2) == 0.51
        and samples[2].sum() == 16377
        and not samples[3].any()
    )


@pytest.mark.real
def test_real_via_agrees_with_real_socar(real_data):
    cars = read_labelled(real_data / "car_damage" / "via", DAMAGES)
    assert (
        check_labelled(cars.folder, DAMAGES) == []
        and cars.classes == ("dent", "scratch")
        and len(cars.samples) == 102
    )
    copies = {
        sample.name: sample.split
        for sample in cars.samples
        if sample.name in ("25_12dc", "48_ca48")
    }
    assert len(copies) == 2 and len(set(copies.values())) == 1
    overlaps, on_the_frame = [], 0
    for sample in cars.samples:
        shape = picture_shape(sample.picture)
        for name, parts in sample.labels.items():
            painted = read_mask(
                next(
                    (real_data / "car_damage" / "socar" / name).glob(f"*/masks/{sample.name}.png")
                ),
                shape,
            )
            filled, canvas = draw_label(parts, shape), Image.new("L", shape[::-1])
            for part in parts:
                ImageDraw.Draw(canvas).polygon([tuple(corner) for corner in part.tolist()], fill=1)
            np.testing.assert_array_equal(
                np.asarray(canvas) > 0, painted
            )  # that library paints the outline, too
            on_the_frame += sum(
                bool(((part <= 0) | (part >= np.array(shape[::-1]))).any()) for part in parts
            )
            if painted.any():
                overlaps.append(float(iou(filled, painted)))
    assert len(overlaps) == 123 and round(float(np.mean(overlaps)), 2) == 0.96 and on_the_frame == 3


# ---------------------------------------------------------------------- an independent program


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    "Pictures with shapes of two classes, as the package supervision writes them: COCO and YOLO."
    import supervision as sv

    home = tmp_path_factory.mktemp("supervision")
    draw = np.random.default_rng(0)
    paths, found = [], {}
    for number in range(8):
        height, width = (int(draw.integers(40, 90)) for _ in range(2))
        path = home / f"{number}.png"
        Image.fromarray(draw.integers(0, 256, (height, width, 3), np.uint8)).save(path)
        shapes = np.zeros((2, height, width), np.uint8)
        for plane in shapes:
            middle = [int(draw.integers(10, side - 10)) for side in (width, height)]
            axes = [int(draw.integers(6, 10)) for _ in range(2)]
            cv2.ellipse(plane, middle, axes, int(draw.integers(180)), 0, 360, 1, -1)
        paths.append(str(path))
        shapes = shapes.astype(bool)
        found[paths[-1]] = sv.Detections(
            xyxy=sv.mask_to_xyxy(shapes), mask=shapes, class_id=np.arange(2)
        )
    dataset = sv.DetectionDataset(classes=["leaf", "moss"], images=paths, annotations=found)
    for name in ("coco", "yolo"):
        (home / name).mkdir()
    dataset.as_coco(str(home / "coco"), str(home / "coco" / "labels.json"))
    yolo = home / "yolo"
    dataset.as_yolo(str(yolo / "images"), str(yolo / "labels"), str(yolo / "data.yaml"))
    return home


def theirs(home, layout):
    "The masks of a folder as supervision reads them: name of a picture -> (2, H, W) bool."
    import supervision as sv

    place = home / layout
    if layout == "coco":
        read = sv.DetectionDataset.from_coco(str(place), str(place / "labels.json"), True)
    else:
        words = (place / "images", place / "labels", place / "data.yaml")
        read = sv.DetectionDataset.from_yolo(*map(str, words), force_masks=True)
    planes = {}
    for path, _, shapes in read:
        of = [shapes.mask[shapes.class_id == number] for number in range(2)]
        planes[Path(path).stem] = np.stack([masks.any(0) for masks in of])
    return planes


@pytest.mark.parametrize("layout", ["coco", "yolo"])
def test_supervision_reads_the_same_masks(written, layout):
    "But for the rim: a corner is the middle of a pixel for it, and the edge of one for us."
    read = read_labelled(written / layout)
    assert (read.layout, read.classes) == (layout, ("leaf", "moss"))
    want = theirs(written, layout)
    assert {sample.name for sample in read.samples} == set(want) and len(want) == 8
    for sample in read.samples:
        for plane, name in enumerate(read.classes):
            shape = want[sample.name].shape[1:]
            ours = draw_label(sample.labels.get(name, ()), shape)
            other = want[sample.name][plane]
            assert ours.any() == other.any()
            square = np.ones((3, 3), np.uint8)
            inner = cv2.erode(other.astype(np.uint8), square, borderValue=0) > 0
            outer = cv2.dilate(other.astype(np.uint8), square) > 0
            assert not (inner & ~ours).any() and not (ours & ~outer).any()


# ------------------------------------------------------------ what is no picture, no label, no name


def test_folders_and_links_to_nowhere_hide_no_other_fault(folder):
    place = folder(coco_file(6))
    edit_json(place / "labels.json", lambda data: data["annotations"][0].update(image_id=99))
    (place / "s.jpg").mkdir()
    (place / "k.jpg").symlink_to("nowhere")
    (place / "z.json").mkdir()
    (place / "a.json").symlink_to("nowhere")
    faults = check_labelled(place)
    for words in ("image_id 99 belongs", "s.jpg: is not a file", "k.jpg: is not a file"):
        assert sum(words in fault for fault in faults) == 1, faults
    assert len(faults) == 3
    edit_json(place / "labels.json", lambda data: data["annotations"][0].update(image_id=0))
    (place / "s.jpg").rmdir()
    (place / "k.jpg").unlink()
    notes = read_labelled(place).notes
    assert [name in note for name, note in zip(("a.json", "z.json"), notes)] == [True, True]
    assert all(note.startswith("passed over: ") for note in notes)
    (place / "labels.json").unlink()
    assert len(check_labelled(place)) == 2  # both files that may have been meant


def edit_json(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def test_folders_among_labelme_pictures(pictures):
    place = labelme_folder(pictures(sub="."))
    (place / "s.jpg").mkdir()
    only_fault(place, "s.jpg: is not a file; take it away.", classes=None)


@pytest.mark.parametrize(
    "colours, words",
    [
        ([0] * 9, "its palette shows them all as black"),
        ([0, 0, 0, 255, 0, 0, 76, 76, 76], "holds 3 colours of one brightness, or none"),
        ([0, 0, 0, 255, 0, 0, 255, 255, 255], None),
        ([0, 0, 0, 200, 0, 0], None),
    ],
)
@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_colours_that_a_mask_merges_are_noted(pictures, colours, words, mode):
    place = pictures()
    count = len(colours) // 3
    for row in range(6):
        png(place / "masks" / "a" / f"{row}.png", block())
    values = np.tile(np.arange(SIZE[1]) * count // SIZE[1], (SIZE[0], 1)).astype(np.uint8)
    picture = Image.fromarray(values, "P")
    picture.putpalette(colours)
    picture.convert(mode).save(place / "masks" / "a" / "3.png")
    if words is None and count == 3:
        only_fault(place, "3 grey values", classes=None)
        return
    notes = read_labelled(place).notes
    if words is None or mode == "RGB" and not any(colours):
        assert notes == ()
    else:
        assert len(notes) == 1 and words in notes[0] and "3.png" in notes[0], notes


def test_a_polygon_that_is_a_line_is_noted(folder):
    data = coco_file(6)
    data["annotations"][2]["segmentation"] = [[4, 4, 14, 4, 9, 4]]
    data["annotations"][3]["segmentation"] = [[4, 4, 9, 9, 4, 9, 9, 4]]  # a bow-tie has an area
    notes = read_labelled(folder(data), DAMAGES).notes
    assert sum("2.jpg: a polygon of dent is a line and covers nothing" in n for n in notes) == 1
    assert not any("3.jpg" in note for note in notes)


def test_names_with_signs_for_the_terminal_are_spelt_out(folder):
    place = folder(coco_file(6))
    photo(place / "e\n\x1b[31m.png", 9)
    only_fault(place, "e\\n\\x1b[31m.png: has no labels")
    with pytest.raises(ValueError) as caught:
        read_labelled(place)
    assert str(caught.value).isprintable()
    (fault,) = check_labelled(place / "no\x1b")
    assert fault.isprintable()
