"""The competition's folder and its submissions, with bad input of every kind."""

import inspect
import io
import os
import re
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from tables import BLANK, HEAD, frame, rows

from cloudlearn import submissions
from cloudlearn.clouds.data import encode_masks, label_masks, score_submission
from cloudlearn.clouds.run import cross_fit, read_clouds
from cloudlearn.files import split_pictures
from cloudlearn.masks import rle_encode
from cloudlearn.scenes.clouds import CLOUD_CLASSES, RLE_SHAPE, write_cloud_folder
from cloudlearn.submissions import (
    SUBMISSION_HEADER,
    SUBMISSION_SHAPE,
    check_clouds,
    check_folder,
    check_submission,
    judging_faults,
    label_size,
    read_labels,
    read_rows,
    write_labels,
    write_submission,
)

SMALL = SUBMISSION_SHAPE[0] * SUBMISSION_SHAPE[1]

NAMES = ["a.jpg", "b.jpg"]


# ---------------------------------------------------------------------------------- rows and labels


def test_rows_by_hand(csv):
    path = csv(HEAD + "a_b.jpg_Fish,1 3 10 5\n\n a_b.jpg_Sugar , \n")
    assert read_rows(path) == [(2, "a_b.jpg", "Fish", "1 3 10 5"), (4, "a_b.jpg", "Sugar", "")]
    assert read_rows(str(path)) == read_rows(path)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: "\ufeff" + text,
        lambda text: text.replace("\n", "\r\n"),
        lambda text: "\ufeff" + text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n \n",
        lambda text: text.replace("a.jpg_Fish,5 4", '"a.jpg_Fish","5 4"'),
    ],
    ids=["BOM", "CRLF", "both", "no last line end", "blank lines", "quotes"],
)
def test_harmless_differences_are_accepted(csv, change):
    plain = HEAD + rows("a.jpg", "5 4") + rows("é b.jpg", "", "1 2")
    want = read_labels(csv(plain))
    assert read_labels(csv(change(plain))).equals(want)
    assert want.loc["a.jpg"].tolist() == ["5 4", "", "", ""]
    assert want.loc["é b.jpg", "Flower"] == "1 2"


def test_labels_keep_the_files_order_of_pictures_and_the_competitions_order_of_classes(csv):
    mixed = [
        "z.jpg_Sugar,4 1",
        "b.jpg_Flower,",
        "z.jpg_Fish,1 1",
        "b.jpg_Fish,9 9",
        "z.jpg_Gravel,3 1",
        "b.jpg_Sugar,",
        "z.jpg_Flower,2 1",
        "b.jpg_Gravel,",
    ]
    labels = read_labels(csv(HEAD + "\n".join(mixed)))
    assert list(labels.index) == ["z.jpg", "b.jpg"]
    assert list(labels.columns) == list(CLOUD_CLASSES)
    assert labels.index.name == "picture"
    assert labels.to_numpy().tolist() == [["1 1", "2 1", "3 1", "4 1"], ["9 9", "", "", ""]]


GOOD = HEAD + rows("a.jpg", "5 4") + rows("b.jpg")


@pytest.mark.parametrize(
    "content, words",
    [
        ("", ["no rows", "header"]),
        (HEAD, ["no rows"]),
        (
            GOOD.replace(",", ";"),
            ["line 1", "Image_Label;EncodedPixels", "must be Image_Label,EncodedPixels"],
        ),
        (GOOD.replace("EncodedPixels", "Pixels"), ["line 1", "must be"]),
        (GOOD.replace("Image_Label", ",Image_Label"), ["line 1", "must be"]),
        (
            GOOD.replace("b.jpg_Gravel", "b.jpg_Gravle"),
            ["line 8", "unknown class 'Gravle'", "Fish, Flower, Gravel, Sugar"],
        ),
        (GOOD.replace("b.jpg_Gravel", "b.jpg_gravel"), ["line 8", "unknown class"]),
        (GOOD + "a.jpg_Fish,\n", ["line 10", "a.jpg_Fish", "already in line 2", "remove"]),
        (GOOD.replace("b.jpg_Sugar,\n", ""), ["b.jpg", "no row for Sugar"]),
        (GOOD.replace("5 4", "5,4"), ["line 2", "3 cells"]),
        (GOOD.replace("a.jpg_Fish,5 4", "a.jpg_Fish"), ["line 2", "1 cells"]),
        (GOOD.replace("a.jpg_Fish,", '"a.jpg_Fish,'), ["no row for"]),
        (GOOD.replace("a.jpg_Fish", "Fish"), ["line 2", "PICTURE_CLASS"]),
        (GOOD.replace("a.jpg_Fish", "_Fish"), ["line 2", "PICTURE_CLASS"]),
        (GOOD.replace("a.jpg", "../a.jpg"), ["line 2", "bare file name"]),
        (GOOD.replace("a.jpg", ".."), ["line 2", "bare file name"]),
        (GOOD.replace("a.jpg", "a\x07.jpg"), ["line 2", "bare file name"]),
        (GOOD.replace("a.jpg", "a\0.jpg"), ["line 2", "not text"]),
        (GOOD.encode("utf-16"), ["line 1", "not text"]),
        (GOOD.replace("b.jpg", "é.jpg").encode("latin1"), ["line 6", "not text", "UTF-8"]),
        (b"PK\x03\x04\x14\0" + bytes(range(256)), ["line 1", "unpack"]),
        (bytes(1000), ["line 1", "not text"]),
        (GOOD.replace("\n", "\r"), ["line 1", "must be"]),
    ],
)
def test_faulty_labels_get_a_sentence(csv, content, words):
    path = csv(content)
    with pytest.raises(ValueError) as caught:
        read_labels(path)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    assert all(word in message for word in words), message


def test_no_such_file(tmp_path):
    for path in (tmp_path / "train.csv", tmp_path):
        with pytest.raises(ValueError, match="there is no such file; give the path"):
            read_labels(path)


@settings(max_examples=60)
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(lambda text: (HEAD + text).encode(errors="replace")),
        st.lists(
            st.tuples(
                st.sampled_from(
                    ["a.jpg_Fish", "a_Sugar", "Fish", "é_Flower", '"', "b.jpg_Gravel", "..", ""]
                ),
                st.text("0123456789 -.,²\u0663\"\0\ufeff", max_size=12),
            )
        ).map(lambda pairs: (HEAD + "\n".join(f"{key},{text}" for key, text in pairs)).encode()),
    )
)
def test_any_file_reads_or_raises_value_error(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "fuzz.csv"
    path.write_bytes(content)
    calls = [
        lambda: check_submission(path, NAMES),
        lambda: score_submission(path, path),
        lambda: label_size(read_labels(path)),
        lambda: label_masks(read_labels(path), (7, 9)),
    ]
    for call in calls:
        try:
            call()
        except ValueError as error:
            assert str(error).strip()


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from(
            [
                *rows("a.jpg", "1 2").split(),
                *rows("b.jpg", "", "3 1 9 2").splitlines(),
                "c.jpg_Fish,",
                "a.jpg_Fish,0 1",
                "a.jpg_Fish",
            ]
        ),
        max_size=10,
    )
)
def test_check_submission_passes_only_what_is_complete_and_in_order(tmp_path_factory, lines):
    path = tmp_path_factory.getbasetemp() / "fuzz_submission.csv"
    path.write_text(HEAD + "\n".join(lines))
    keys = [line.partition(",")[0] for line in lines]
    try:
        check_submission(path, NAMES)
    except ValueError as error:
        assert str(error).startswith(str(path))
    else:
        assert keys == [f"{picture}_{name}" for picture in NAMES for name in CLOUD_CLASSES]


# --------------------------------------------------------------------------------------- the folder


@pytest.fixture
def folder(tmp_path):
    "A folder of two training and two test pictures without content."
    for part, names in [("train_images", "ab"), ("test_images", "cd")]:
        (tmp_path / part).mkdir()
        for name in names:
            (tmp_path / part / f"{name}.jpg").touch()
    (tmp_path / "train.csv").write_text(HEAD + rows("b.jpg", "1 1") + rows("a.jpg"))
    (tmp_path / "sample_submission.csv").write_text(HEAD + rows("d.jpg", "1 1") + rows("c.jpg"))
    return tmp_path


def test_check_folder_gives_labels_and_the_order_of_the_sample(folder, cloud_folder):
    labels, test = check_folder(folder)
    assert list(labels.index) == ["b.jpg", "a.jpg"] and test == ["d.jpg", "c.jpg"]
    (folder / "sample_submission.csv").unlink()
    assert check_folder(folder)[1] == ["c.jpg", "d.jpg"]
    for path in (folder / "test_images").iterdir():
        path.unlink()
    (folder / "test_images").rmdir()
    assert check_folder(str(folder))[1] == []
    labels, test = check_folder(cloud_folder)
    assert len(labels) == 12 and len(test) == 5 and not set(test) & set(labels.index)


@pytest.mark.parametrize(
    "harm, words",
    [
        (lambda folder: (folder / "train.csv").unlink(), ["train.csv", "no such file"]),
        (
            lambda folder: (folder / "train_images" / "a.jpg").unlink(),
            ["train.csv", "a.jpg is not in train_images"],
        ),
        (
            lambda folder: (folder / "train_images").rename(folder / "images"),
            ["train_images", "no such folder"],
        ),
        (
            lambda folder: (folder / "test_images" / "c.jpg").unlink(),
            ["sample_submission.csv", "first c.jpg"],
        ),
        (
            lambda folder: (folder / "test_images" / "e.jpg").touch(),
            ["sample_submission.csv", "first e.jpg"],
        ),
        (
            lambda folder: (folder / "sample_submission.csv").write_text(HEAD),
            ["sample_submission.csv", "no rows"],
        ),
    ],
)
def test_check_folder_names_what_is_wrong(folder, harm, words):
    harm(folder)
    with pytest.raises(ValueError) as caught:
        check_folder(folder)
    assert str(caught.value).startswith(str(folder))
    assert all(word in str(caught.value) for word in words)


def test_a_missing_folder(tmp_path):
    with pytest.raises(
        ValueError, match="none: there is no such folder; give the one that holds train.csv"
    ):
        check_folder(tmp_path / "none")


@pytest.fixture(scope="module")
def readable(tmp_path_factory):
    "A folder that a run reads: 60 labelled pictures, six to submit."
    return write_cloud_folder(
        tmp_path_factory.mktemp("readable") / "clouds", 60, 6, shape=(70, 105)
    )


@pytest.fixture
def copied(readable, tmp_path):
    return Path(shutil.copytree(readable, tmp_path / "clouds"))


def spoil(folder, content, place="train_images", which=0):
    "Write something else into a picture; returns it."
    path = sorted((folder / place).iterdir())[which]
    path.write_bytes(content)
    return path


def encoded(form, **more):
    "A small picture in another form."
    file = io.BytesIO()
    mode = more.pop("mode", "RGB")
    Image.fromarray(np.zeros((70, 105), np.uint16)).save(
        file, form
    ) if mode == "I;16" else Image.new(mode, (105, 70)).save(file, form, **more)
    return file.getvalue()


def turned(way):
    exif = Image.Exif()
    exif[0x0112] = way
    return encoded("JPEG", exif=exif)


def relabel(folder, old, new):
    "Change the first place in train.csv where a pattern is found."
    text = (folder / "train.csv").read_text()
    assert re.search(old, text)
    (folder / "train.csv").write_text(re.sub(old, new, text, count=1))
    return folder / "train.csv"


PICTURES = {
    "empty": b"",
    "text": b"<html>404</html>",
    "truncated": encoded("JPEG")[:400],
    "GIF": encoded("GIF"),
    "TIFF": encoded("TIFF"),
    "BMP": encoded("BMP"),
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
    "16 bits": encoded("PNG", mode="I;16"),
    "one bit": encoded("PNG", mode="1"),
    "turned": turned(6),
    "mirrored": turned(2),
    "cut PNG": encoded("PNG")[:60],
}

LABELS = {
    "a run past the end": (r"(_Fish),.*", r"\1,2940000 2"),
    "an odd number": (r"(_Fish),.*", r"\1,1 2 3"),
    "runs that overlap": (r"(_Gravel),.*", r"\1,5 9 6 1"),
    "from nought": (r"(_Sugar),.*", r"\1,0 5"),
    "no number": (r"(_Fish),.*", r"\1,1 x"),
    "negative": (r"(_Fish),.*", r"\1,-3 5"),
    "a length of nought": (r"(_Fish),.*", r"\1,3 0"),
    "an unknown class": ("_Sugar", "_Suger"),
    "three cells": (r"(_Fish),.*", r"\1,1 2,3"),
    "a row too few": (r"\n\S+_Fish,.*", ""),
    "another picture": (r"\n\w+\.jpg_Fish", r"\nnone.jpg_Fish"),
}


@pytest.mark.parametrize("place", ["train_images", "test_images"])
@pytest.mark.parametrize("content", PICTURES.values(), ids=PICTURES)
def test_check_opens_every_picture_and_the_run_refuses_what_it_names(copied, place, content):
    path = spoil(copied, content, place, -1)
    assert [fault.split(": ")[0] for fault in check_clouds(copied)] == [str(path)]
    with pytest.raises(ValueError) as caught:
        read_clouds(copied, (35, 52), 1 / 6)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize("old, new", LABELS.values(), ids=LABELS)
def test_check_reads_every_row_and_the_run_refuses_what_it_names(copied, old, new):
    path = relabel(copied, old, new)
    faults = check_clouds(copied)
    assert faults, faults
    assert all(
        fault.startswith(str(path)) and ("; " in fault) and fault.endswith(".") for fault in faults
    ), faults
    with pytest.raises(ValueError) as caught:
        read_clouds(copied, (35, 52), 1 / 6)
    assert str(caught.value).startswith(faults[0])


def test_check_lists_all_faults_at_once(copied):
    wrong = [
        spoil(copied, content, place, which)
        for which, content in enumerate(list(PICTURES.values())[:5])
        for place in ("train_images", "test_images")
    ]
    first = (copied / "train.csv").read_text().splitlines()
    for number, text in ((2, ",0 5"), (30, ",1 2 3"), (61, ",x")):
        first[number - 1] = first[number - 1].split(",")[0] + text
    (copied / "train.csv").write_text("\n".join([*first, "gone.jpg_Fish,", "gone.jpg_Sugar,"]))
    (copied / "test_images" / "new.jpg").write_bytes(encoded("JPEG"))
    faults = "\n".join(check_clouds(copied))
    for word in (
        "line 2:",
        "line 30:",
        "line 61:",
        "gone.jpg has no row for Flower, Gravel",
        "gone.jpg is not in train_images",
        "first new.jpg",
    ):
        assert word in faults, word
    assert all(str(path) in faults for path in wrong) and faults.count("\n") == len(wrong) + 5
    with pytest.raises(ValueError, match=r"5 more: `cloudlearn check .*` lists them all"):
        check_folder(copied)


@pytest.mark.parametrize(
    "name", ["a,b.jpg", "a\nb.jpg", " lead.jpg", "\"quoted\".jpg", "esc\x1b.jpg"]
)
def test_test_pictures_whose_names_cannot_stand_in_a_csv(copied, name):
    (copied / "sample_submission.csv").unlink()
    (copied / "test_images" / name).write_bytes(encoded("JPEG"))
    (fault,) = check_clouds(copied)
    assert "cannot stand in a submission; rename the picture" in fault
    assert "\n" not in fault
    assert "\x1b" not in fault
    with pytest.raises(ValueError, match="rename the picture"):
        read_clouds(copied, (35, 52), 1 / 6)


# ------------------------------------------------------------------------------- what can be judged


@pytest.mark.parametrize("keep", [0, 1])
def test_a_class_in_no_or_one_picture_is_refused_while_reading(copied, keep):
    labels, seen = [], 0
    for line in (copied / "train.csv").read_text().splitlines():
        if "_Gravel," in line and not line.endswith(","):
            seen += 1
            if seen > keep:
                line = line.split(",")[0] + ","
        labels.append(line)
    (copied / "train.csv").write_text("\n".join(labels))
    faults = check_clouds(copied)
    assert faults
    assert all(
        f"train.csv: Gravel is in {keep} of 60 pictures and in none of the" in fault
        and "add pictures" in fault
        for fault in faults
    )
    with pytest.raises(ValueError, match="Gravel is in"):
        read_clouds(copied, (35, 52), 1 / 6)


@pytest.mark.parametrize("count", [1, 4, 8])
def test_too_few_pictures_to_judge_are_refused_while_reading(tmp_path, count):
    folder = write_cloud_folder(tmp_path / "clouds", count, 1, shape=(70, 105))
    assert check_clouds(folder)
    assert all(fault.startswith(f"{folder / 'train.csv'}: ") for fault in check_clouds(folder))
    with pytest.raises(ValueError, match="train.csv: "):
        read_clouds(folder, (35, 52), 1 / 6)


@pytest.mark.parametrize("seed", range(4))
def test_what_passes_can_be_judged_on_either_half(seed):
    "Either a sentence, or every class in training and in both halves that the ladder is scored on."
    rng = np.random.default_rng(seed)
    for count in (12, 24, 40, 90):
        labels = frame(
            *[
                ["1 2940000" if there else "" for there in rng.random(4) < rng.uniform(0.05, 0.6)]
                for _ in range(count)
            ]
        )
        faults = judging_faults(labels, "train.csv", 1 / 4, seed)
        present = (labels != "").to_numpy()
        if faults:
            continue
        train, valid = split_pictures(present, 1 / 4, seed)
        halves = cross_fit(present[valid], seed)
        assert present[train].any(axis=0).all()
        assert all(present[valid][fit].any(axis=0).all() for fit, _ in halves)


def test_judging_names_picture_and_class_of_a_run_that_does_not_decode():
    labels = frame(*[["1 2940000", "1 9 5 2", "", ""]] * 8)
    (fault,) = judging_faults(labels, "train.csv", 1 / 2)
    assert re.match(r"train\.csv: \d\.jpg_Flower: run 2 of 2, '5 2', starts before", fault), fault


# -------------------------------------------------------------------------------------- submissions


def test_written_and_read_back(tmp_path):
    for seed in range(3):
        masks = np.random.default_rng(seed).random((3, 4, *SUBMISSION_SHAPE)) < 0.001
        masks[1] = False
        names = ["c.jpg", "a.jpg", "b.jpg"]
        path = write_submission(tmp_path / "s.csv", names, (encode_masks(four) for four in masks))
        assert path == tmp_path / "s.csv"
        assert [item.name for item in tmp_path.iterdir()] == ["s.csv"]
        assert path.read_bytes().startswith(b"Image_Label,EncodedPixels\nc.jpg_Fish,")
        labels = read_labels(path)
        assert list(labels.index) == names
        assert (label_masks(labels, size=SUBMISSION_SHAPE) == masks).all()


def test_a_speckled_mask_is_no_obstacle(tmp_path):
    board = np.indices(SUBMISSION_SHAPE).sum(0) % 2 == 0
    path = write_submission(tmp_path / "s.csv", ["a.jpg"], [encode_masks(np.stack([board] * 4))])
    assert (
        read_labels(path).iloc[0].tolist() == [rle_encode(board)] * 4
    )  # longer than the csv module's limit of 131,072


def failing(count, error):
    for _ in range(count):
        yield BLANK
    raise error


FAULTS = {
    "too few": ([BLANK], "no run lengths came for b.jpg"),
    "none": ([], "no run lengths came for a.jpg"),
    "too many": ([BLANK] * 3, "more than 2 pictures"),
    "three classes": ([BLANK, BLANK[:3]], "3 texts came for b.jpg"),
    "five classes": ([BLANK, [*BLANK, ""]], "5 texts came for b.jpg"),
    "past the end": ([BLANK, ["", "", f"{SMALL} 2", ""]], "line 8: b.jpg_Gravel: run 1 of 1"),
    "start 0": ([["0 1", "", "", ""], BLANK], "line 2"),
    "odd count": ([["1", "", "", ""], BLANK], "no length"),
    "overlap": ([["1 5 3 2", "", "", ""], BLANK], "run 2 of 2"),
    "NaN": ([[float("nan"), "", "", ""], BLANK], "'nan'"),
    "a comma": ([["1 2,3 4", "", "", ""], BLANK], "3 cells"),
    "a smuggled row": (
        [["1 2\na.jpg_Fish,1 2", "", "", ""], BLANK],
        "a.jpg_Fish stands where a.jpg_Flower should",
    ),
}


@pytest.mark.parametrize(
    "earlier", [None, b"an earlier submission"], ids=["nothing there", "an earlier file"]
)
@pytest.mark.parametrize("texts, words", FAULTS.values(), ids=FAULTS)
def test_a_faulty_submission_is_never_there(tmp_path, texts, words, earlier):
    path = tmp_path / "final.csv"
    if earlier:
        path.write_bytes(earlier)
    with pytest.raises(ValueError) as caught:
        write_submission(path, NAMES, texts)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert words in message
    assert "partial" not in message
    assert message.lower().endswith("nothing was written.")
    assert [item.name for item in tmp_path.iterdir()] == (["final.csv"] if earlier else [])
    assert not earlier or path.read_bytes() == earlier


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("broken"),
        KeyboardInterrupt(),
        MemoryError(),
        ValueError("as it is"),
        StopAsyncIteration(),
    ],
)
def test_any_exception_leaves_nothing_and_passes_unchanged(tmp_path, error):
    for count in (0, 1, 2):
        with pytest.raises(type(error)) as caught:
            write_submission(tmp_path / "final.csv", NAMES, failing(count, error))
        assert caught.value is error and not list(tmp_path.iterdir())


def test_a_failing_move_leaves_nothing(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(OSError, match="disk full"):
        write_submission(tmp_path / "final.csv", NAMES, [BLANK] * 2)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "names, words",
    [
        ([], "no rows"),
        (["a.jpg", "a.jpg"], "a.jpg is asked for twice"),
        (["x/a.jpg"], "bare file name"),
        (["a,b.jpg"], "3 cells"),
        ([" a.jpg"], "stands where"),
        (["a.jpg\n"], "cells"),
    ],
)
def test_unusable_names_are_refused(tmp_path, names, words):
    with pytest.raises(ValueError, match=words):
        write_submission(tmp_path / "s.csv", names, [BLANK] * len(names))
    assert not list(tmp_path.iterdir())


def test_no_folder_to_write_to(tmp_path):
    with pytest.raises(ValueError, match="gone: there is no such folder; create it first"):
        write_submission(tmp_path / "gone" / "s.csv", NAMES, [BLANK] * 2)


def test_check_submission_by_hand(csv):
    good = rows("a.jpg", "1 1") + rows("b.jpg", "", f"{SMALL} 1")
    assert check_submission(csv(HEAD + good), iter(NAMES)) is None
    for content, names, words in [
        (rows("b.jpg") + rows("a.jpg"), NAMES, "line 2: b.jpg_Fish stands where a.jpg_Fish should"),
        (good, ["a.jpg"], "8 rows where 4"),
        (good, ["a.jpg", "b.jpg", "c.jpg"], "8 rows where 12"),
        (good.replace("a.jpg_Flower,\n", ""), NAMES, "line 3"),
        (rows("a.jpg") + rows("a.jpg"), NAMES, "line 6"),
        (good + rows("b.jpg"), NAMES, "12 rows where 8"),
        (good, ["a.jpg", "a.jpg"], "asked for twice"),
    ]:
        with pytest.raises(ValueError, match=words):
            check_submission(csv(HEAD + content), names)
    with pytest.raises(ValueError, match="ends after the last pixel, 6"):
        check_submission(csv(HEAD + rows("a.jpg", "5 3")), ["a.jpg"], (2, 3))


# ------------------------------------------------------------------- size, and labels written again


@pytest.mark.parametrize(
    "text, want",
    [
        ("", SUBMISSION_SHAPE),
        ("1 1", SUBMISSION_SHAPE),
        (f"{SMALL} 1", SUBMISSION_SHAPE),
        (f"1 {SMALL}", SUBMISSION_SHAPE),
        (f"{SMALL} 2", RLE_SHAPE),
        (f"{SMALL + 1} 1", RLE_SHAPE),
        (f"2 {SMALL}", RLE_SHAPE),
        ("1 1 2940000 1", RLE_SHAPE),
        ("2940000", SUBMISSION_SHAPE),
        ("² ²", SUBMISSION_SHAPE),
        ("x y", SUBMISSION_SHAPE),
        ("9" * 5000 + " 1", SUBMISSION_SHAPE),
    ],
)
def test_label_size_at_the_edges(text, want):
    assert label_size(frame([text, "", "", ""])) == want
    assert label_size(frame(BLANK, ["1 1", "", "", ""], ["", "", "", text])) == want


def test_labels_written_again_are_the_same_file(cloud_folder, tmp_path):
    for name in ("train.csv", "test_labels.csv"):
        labels = read_labels(cloud_folder / name)
        assert (
            write_labels(tmp_path / name, labels).read_bytes() == (cloud_folder / name).read_bytes()
        )
        assert (
            write_labels(tmp_path / name, labels[list(CLOUD_CLASSES[::-1])]).read_bytes()
            == (cloud_folder / name).read_bytes()
        )
    with pytest.raises(ValueError, match="nothing was written"):
        write_labels(tmp_path / "bad.csv", frame(["3 1 2 1", "", "", ""]))


def test_functions_say_what_they_do_and_constants_are_the_competitions():
    for name, function in inspect.getmembers(submissions, inspect.isfunction):
        assert function.__doc__, name
    assert SUBMISSION_HEADER == ["Image_Label", "EncodedPixels"]
    assert CLOUD_CLASSES == ("Fish", "Flower", "Gravel", "Sugar")
    assert (RLE_SHAPE, SUBMISSION_SHAPE) == ((1400, 2100), (350, 525))


# ------------------------------------------------------------------------------------ real pictures


@pytest.fixture(scope="session")
def real_labels(real_data):
    return check_folder(real_data / "clouds")


@pytest.mark.real
def test_real_folder(real_labels):
    labels, test = real_labels
    assert labels.shape == (1200, 4) and len(test) == 200 and not set(test) & set(labels.index)
    present = (labels != "").to_numpy()
    assert present.any(axis=1).all() and 0.44 < 1 - present.mean() < 0.49
    assert label_size(labels) == RLE_SHAPE


@pytest.mark.real
def test_real_folders_have_no_faults(real_data):
    assert check_clouds(real_data / "clouds") == []
    assert check_clouds(real_data / "clouds_more") == []


def test_a_file_of_commas_costs_little(tmp_path):
    for name, content, said in (
        ("one line", b"," * 60_000_000, "line 2: longer than 16 MB"),
        ("long lines", (b"," * 9_000_000 + b"\n") * 6, "line 2: 9000001 cells where two are"),
        ("short lines", b",\n" * 20_000_000, "line 1002: 1,000 lines before it are faulty"),
    ):
        path = tmp_path / f"{name}.csv"
        path.write_bytes(b"Image_Label,EncodedPixels\n" + content)
        tracemalloc.start()
        _, faults = submissions._scan_rows(path)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert any(said in fault for fault in faults) and len(faults) <= 1_001
        assert peak < 80_000_000


def test_folders_and_links_to_nowhere_among_the_pictures(copied):
    names = sorted(path.name for path in (copied / "train_images").iterdir())[:2]
    for name in names:
        (copied / "train_images" / name).unlink()
    (copied / "train_images" / names[0]).mkdir()
    (copied / "train_images" / names[1]).symlink_to("nowhere")
    first, second = check_clouds(copied)
    assert f"{names[0]}: cannot be read as a picture (it is a folder)" in first
    assert f"{names[1]}: there is no such picture" in second


RUNS = ["1 2 3", "-1 3", "0 3", "1 0", "183750 2", "1 5 3 3", "1 a"]


@pytest.mark.parametrize("text", RUNS)
def test_a_fault_in_run_lengths_names_line_and_mend(csv, text):
    path = csv(HEAD + rows("a.jpg", "1 5", text))
    for call in (
        lambda: submissions.check_runs(path, SUBMISSION_SHAPE),
        lambda: check_submission(path, ["a.jpg"]),
    ):
        with pytest.raises(
            ValueError, match="orrect the run lengths or empty the cell.$"
        ) as caught:
            call()
        assert f"{path}, line 3: a.jpg_Flower: run " in str(caught.value)
        assert "?;" not in str(caught.value)


def test_a_row_too_many_has_a_mend(csv):
    with pytest.raises(ValueError, match="8 rows where 4 are needed, four for each .*; write them"):
        check_submission(csv(HEAD + rows("a.jpg") + rows("b.jpg")), ["a.jpg"])
