"""Label files: every layout into the same arrays, faults in one sentence, unknown kept apart."""

import copy
import json
import random
import shutil

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays as any_array
from PIL import Image, ImageDraw
from pycocotools import mask as coco

from cloudlearn import formats
from cloudlearn.files import picture_shape
from cloudlearn.formats import (
    EDGE,
    check_cars,
    coco_counts,
    coco_decode,
    coco_encode,
    draw_label,
    find_layout,
    load_cars,
    polygon_points,
    read_cars,
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


def only_fault(place, *words):
    "The one fault of a folder; read_cars raises the same."
    faults = check_cars(place)
    assert len(faults) == 1, faults
    for word in words:
        assert word in faults[0], faults
    with pytest.raises(ValueError) as caught:
        read_cars(place)
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
    cars = read_cars(socar)
    assert (
        check_cars(socar) == []
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
    arrays = load_cars(cars.samples, (12, 18))
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
    one = load_cars(read_cars(socar).samples, (12, 18))
    other = load_cars(read_cars(socar, ("scratch", "dent")).samples, (12, 18), ("scratch", "dent"))
    rows = [name in other.names for name in one.names]
    np.testing.assert_array_equal(one.masks[rows][:, [1, 0]], other.masks)
    assert (
        read_cars(socar, ("spacing",)).classes == ("spacing",)
        and len(read_cars(socar, ("spacing",)).samples) == 3
    )


def test_one_photo_labelled_for_one_class_only(socar):
    for sub, suffix in (("images", "jpg"), ("masks", "png")):
        (socar / "scratch" / "train" / sub / f"train0.{suffix}").unlink()
    labels = {sample.name: set(sample.labels) for sample in read_cars(socar).samples}
    assert labels["train0"] == {"dent"} and labels["train1"] == {"dent", "scratch"}


def test_other_photo_of_the_same_name_is_another_sample(socar):
    photo(socar / "scratch" / "train" / "images" / "train0.jpg", 77)
    names = {sample.name: set(sample.labels) for sample in read_cars(socar).samples}
    assert (
        names["dent-train-images-train0.jpg"] == {"dent"}
        and names["scratch-train-images-train0.jpg"] == {"scratch"}
        and len(names) == 8
    )


def test_what_systems_leave_behind_does_not_count(socar):
    for name in (".DS_Store", "._train0.jpg", "Thumbs.db", "desktop.ini"):
        (socar / "dent" / "train" / "images" / name).write_bytes(b"x")
    (socar / "styles.csv").write_text("name,style\n")
    assert check_cars(socar) == []


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
    faults = check_cars(socar)
    assert len(faults) == 2 and all("no such folder" in fault for fault in faults)
    for sub in ("images", "masks"):
        (socar / "dent" / "valid" / sub).mkdir(parents=True)
    only_fault(socar, "dent/valid", "no pictures")


def test_all_faults_at_once(socar):
    shutil.rmtree(socar / "spacing")
    (socar / "dent/train/masks/train0.png").unlink()
    png(socar / "scratch/valid/masks/valid0.png", np.resize([0, 9, 255], SIZE))
    (socar / "dent/test/images/test0.jpg").write_bytes(b"")
    faults = check_cars(socar)
    assert len(faults) == 4
    for word in ("spacing", "train0.png", "valid0.png", "test0.jpg"):
        assert sum(word in fault for fault in faults) == 1, faults
    with pytest.raises(
        ValueError, match=r"\(3 more: `cloudlearn check .*` lists them all\.\)$"
    ) as caught:
        read_cars(socar)
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
    before = {sample.name for sample in read_cars(socar).samples}
    copy_pair(socar, source, target)
    assert len(check_cars(socar)) == 1 and "are the same photo" in check_cars(socar)[0]
    cars = read_cars(socar)
    assert {sample.name for sample in cars.samples} == (before | {"copy"}) - {gone}
    assert len(cars.notes) == 1 and f"{gone}.jpg is left out" in cars.notes[0]


def test_copies_within_a_part_are_no_leak(socar):
    copy_pair(socar, ("dent", "train", "train0"), ("dent", "train", "copy"))
    assert check_cars(socar) == [] and len(read_cars(socar).samples) == 8


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("layout", ["via", "coco"])
def test_copies_stay_on_one_side(folder, layout, seed):
    place = folder(via_entries(20) if layout == "via" else coco_file(20), 20)
    for row in (3, 8, 15):
        shutil.copy(place / "1.jpg", place / f"{row}.jpg")
    split = {sample.name: sample.split for sample in read_cars(place, seed=seed).samples}
    assert len({split[name] for name in ("1", "3", "8", "15")}) == 1 and set(split.values()) == set(
        CAR_SPLITS
    )


# ------------------------------------------------------------------------------------- VIA and COCO


def test_via_and_coco_give_the_same(folder):
    def arrays(content):
        return load_cars(sorted(read_cars(folder(content)).samples), (12, 18))

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
    sample = next(sample for sample in read_cars(folder(content)).samples if sample.name == "0")
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
    cars = read_cars(folder(project))
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
    faults = check_cars(folder(content))
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
    faults = check_cars(folder(content))
    assert any(all(word in fault for word in words) for fault in faults), faults


def test_photos_may_lie_in_images(folder):
    place = folder(coco_file(6))
    (place / "images").mkdir()
    for path in place.glob("*.jpg"):
        path.rename(place / "images" / path.name)
    assert check_cars(place) == [] and len(read_cars(place).samples) == 6
    photo(place / "images" / "more.png", 50)
    only_fault(place, "more.png", "has no labels")


def test_classes_wanted(folder):
    place = folder(via_entries(6))
    cars = read_cars(place, ("dent",))
    assert (
        cars.classes == ("dent",)
        and [list(sample.labels) for sample in cars.samples] == [["dent"]] * 6
    )
    assert read_cars(place).notes == (f"{place}: nobody looked for spacing, so it is not learned.",)
    with pytest.raises(ValueError, match="nobody looked for spacing; name classes"):
        read_cars(place, ("spacing",))


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
    assert words in check_cars(folder(content, 0) if "different" in words else folder(content))[0]


def test_which_layout(folder, tmp_path):
    place = folder(via_entries(6))
    (place / "run.json").write_text('{"seed": 3}')
    assert find_layout(place) == "via"
    (place / "coco.json").write_text("\ufeff" + json.dumps(coco_file(6)))
    with pytest.raises(ValueError, match="two label files, coco.json and labels.json"):
        find_layout(place)
    (place / "labels.json").unlink()
    assert find_layout(place) == "coco"
    (tmp_path / "none").mkdir()
    for wrong, words in (
        (tmp_path / "gone", "no such folder"),
        (tmp_path / "none", "no labels found"),
    ):
        assert [words in fault for fault in check_cars(wrong)] == [True]
        with pytest.raises(ValueError, match=words):
            find_layout(wrong)


# ------------------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("count", [3, 4, 7, 20, 41])
def test_split_by_seed(folder, count):
    place, seen = folder(via_entries(count), count), set()
    for seed in range(4):
        cars = read_cars(place, seed=seed)
        parts = [sum(sample.split == split for sample in cars.samples) for split in CAR_SPLITS]
        assert parts == [
            count - 2 * max(1, round(0.15 * count)),
            max(1, round(0.15 * count)),
            max(1, round(0.15 * count)),
        ]
        assert [sample.split for sample in read_cars(place, seed=seed).samples] == [
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
        faults = check_cars(place)
        for fault in faults:
            assert (
                isinstance(fault, str)
                and "\n" not in fault
                and fault[-1] in ".?"
                and len(fault) < 600
            ), fault
        if not faults:
            load_cars(read_cars(place).samples, (6, 9))


# ----------------------------------------------------------------------- generated and real folders


@pytest.mark.parametrize("style", ["careful", "mixed"])
def test_generated_folder(tmp_path, style):
    place = write_car_folder(
        tmp_path / "cars", damage=(4, 1, 1), gaps=(3, 1, 1), shape=(48, 72), style=style
    )
    assert check_cars(place) == []
    cars = read_cars(place)
    assert [sum(sample.split == split for sample in cars.samples) for split in CAR_SPLITS] == [
        7,
        2,
        2,
    ] and cars.classes == DAMAGES
    arrays = load_cars(cars.samples, (48, 72))
    assert (
        arrays.known.sum(0).tolist() == [6, 6, 5]
        and arrays.masks[arrays.known[:, 2], 2].any((1, 2)).all()
    )


def test_load_cars_refuses_nothing_and_names_pictures(socar):
    with pytest.raises(ValueError, match="no photos to load"):
        load_cars([], (12, 18))
    samples = read_cars(socar).samples
    samples[1].picture.unlink()
    with pytest.raises(ValueError, match="train0.jpg"):
        load_cars(samples, (12, 18))
    assert picture_shape(samples[0].picture) == SIZE


@pytest.mark.real
def test_real_socar(real_data):
    place = real_data / "car_damage" / "socar"
    assert [("25_12dc.jpg" in fault, "48_ca48.jpg" in fault) for fault in check_cars(place)] == [
        (True, True)
    ]  # one photo under two names
    cars = read_cars(place)
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
    arrays = load_cars([sample for sample in cars.samples if sample.split == "test"], (96, 144))
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
    cars = read_cars(real_data / "car_damage" / "via")
    assert (
        check_cars(cars.folder) == []
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
