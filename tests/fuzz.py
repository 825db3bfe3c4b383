"""Spoilt files for every reader: each is read, or refused in words; `python tests/fuzz.py --help`.

A case follows from its reader, the seed and its number alone, so that it can be repeated:
`python tests/fuzz.py --reader coco --seed 0 --case 4711`. What may be raised, reader by reader:

    rle, counts           ValueError
    submission, train     ValueError
    via, coco, labelme,   nothing by `check_labelled`, whose faults are sentences of one line;
    yolo, yaml            a folder without faults is read and drawn
    picture, mask         PictureError, or ValueError where a whole picture is no mask
"""

import argparse
import copy
import io
import json
import random
import resource
import string
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

from cloudlearn.files import open_picture, picture_shape, read_grey, read_picture
from cloudlearn.formats import (
    check_labelled,
    coco_counts,
    coco_decode,
    load_labelled,
    read_labelled,
    read_mask,
)
from cloudlearn.masks import rle_decode, rle_decode_small
from cloudlearn.scenes.clouds import CLOUD_CLASSES
from cloudlearn.submissions import check_folder, check_submission, read_labels

SIZE = (12, 18)  # of every photo
PHOTOS = 4
MEGABYTES = 400  # that a case may add to the memory of the process
SECONDS = 20  # of the processor, for one case
LONGEST = 900  # letters of a sentence
# of Pillow, about files that the readers refuse in words; the command shows no library's warnings
PILLOW = ("Image size", "Corrupt EXIF", "Truncated File", "Metadata Warning", "Palette images")


# ----------------------------------------------------------------------------- how files are spoilt


TOKENS = [
    b"",
    b"-1",
    b"0",
    b"99999999999999999999",
    b"1" + b"0" * 400,
    b"1e400",
    b"-1e308",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
    b'"',
    b"'",
    b",",
    b"\n",
    b"\r",
    b"\0",
    b"\x1b[31m",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b"../../x",
    b"{",
    b"}",
    b"[",
    b"]",
    b": ",
    b"&a *a",
    b"!!python/object",
    "구름".encode(),
    "\u202e".encode(),
]
JUNK = [
    None,
    True,
    -1,
    2.5,
    1e308,
    float("nan"),
    float("inf"),
    10**30,
    10**400,
    "",
    "a",
    "../x",
    "\0",
    "\ud800",
    "a\n\x1b[31mb",
    "x" * 300,
    [],
    {},
    [[]],
    [1, 2, 3],
    [None] * 6,
    {"a": {"b": []}},
]


def spoil_bytes(content: bytes, rng: random.Random) -> bytes:
    "Flip, cut, double, repeat and insert, a few times."
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        start = rng.randrange(len(content) + 1)
        end = min(len(content), start + rng.choice((1, 2, 4, 16, 64)))
        what = rng.randrange(7)
        if what == 0 and start < len(content):
            content[start] ^= 1 << rng.randrange(8)
        elif what == 1:
            content[start:end] = b""
        elif what == 2:
            content[end:end] = content[start:end] * rng.choice((1, 1, 2, 300))
        elif what == 3:
            content[start:] = b""
        elif what == 4:
            content[start:start] = rng.choice(TOKENS)
        elif what == 5:
            content[start:end] = rng.choice(TOKENS)
        elif what == 6 and start < len(content):
            content[start] = rng.randrange(256)
    if rng.random() < 0.003:
        deep = rng.choice((b"[", b'{"a":', b"- ", b"{"))
        content[start:start] = deep * rng.choice((500, 5_000, 100_000))
    return bytes(content)


def _places(value: object, path: tuple = ()) -> Iterator[tuple]:
    "The path of every node of a JSON value."
    pairs = value.items() if isinstance(value, dict) else enumerate(value)
    for key, inner in pairs:
        yield (*path, key)
        if isinstance(inner, dict | list):
            yield from _places(inner, (*path, key))


def spoil_json(content: bytes, rng: random.Random) -> bytes:
    "Put, take away, double or nest a node, and now and then spoil the bytes as well."
    data = json.loads(content)
    for _ in range(rng.choice((1, 1, 2, 3))):
        places = list(_places(data))
        if not places:
            break
        *path, last = rng.choice(places)
        inner = data
        for key in path:
            inner = inner[key]
        what = rng.randrange(5)
        if what == 0:
            del inner[last]
        elif what == 1:
            inner[last] = [copy.deepcopy(inner[last])] * rng.choice((1, 2, 40))
        elif what == 2 and isinstance(inner, list):
            inner.append(copy.deepcopy(inner[last]))
        else:
            inner[last] = copy.deepcopy(rng.choice(JUNK))
    text = json.dumps(data).encode()
    return spoil_bytes(text, rng) if rng.random() < 0.2 else text


# ------------------------------------------------------------------------------------- what is read


def _pixels(row: int) -> np.ndarray:
    return np.random.default_rng(row).integers(0, 256, (*SIZE, 3), np.uint8)


def _encoded(row: int, kind: str, **more: object) -> bytes:
    content = io.BytesIO()
    Image.fromarray(_pixels(row)).save(content, kind, **more)
    return content.getvalue()


CORNERS = [2, 2, 12, 2, 12, 9, 2, 9]


def _coco() -> dict:
    images = [
        dict(id=row, file_name=f"{row}.png", height=SIZE[0], width=SIZE[1]) for row in range(PHOTOS)
    ]
    shapes = [[CORNERS], {"size": list(SIZE), "counts": [30, 20, 166]}]
    annotations = [
        dict(id=row, image_id=row, category_id=1 + row % 2, segmentation=shapes[row % 2])
        for row in range(PHOTOS)
    ]
    categories = [dict(id=1, name="a"), dict(id=2, name="b", supercategory="c")]
    return dict(images=images, annotations=annotations, categories=categories)


def _via() -> dict:
    region = {
        "shape_attributes": {
            "name": "polygon",
            "all_points_x": CORNERS[::2],
            "all_points_y": CORNERS[1::2],
        },
        "region_attributes": {"name": "a"},
    }
    return {
        f"{row}.png": {"filename": f"{row}.png", "size": 9, "regions": [region]}
        for row in range(PHOTOS)
    }


def _labelme() -> dict:
    points = np.array(CORNERS).reshape(-1, 2).tolist()
    shapes = [
        dict(label="a", points=points, shape_type="polygon"),
        dict(label="b", points=[[1, 1], [9, 9]], shape_type="rectangle"),
    ]
    return dict(shapes=shapes, imagePath="0.png", imageHeight=SIZE[0], imageWidth=SIZE[1])


YOLO_LINES = b"0 0.1 0.1 0.7 0.1 0.7 0.8\n1 0.2 0.2 0.9 0.2 0.9 0.9 0.2 0.9\n"
YOLO_NAMES = b"path: .\ntrain: images\nnames:\n  0: a\n  1: b\n"


def _submission() -> bytes:
    texts = ["1 5 20 3", "", "183750 1", "400 100 600 100"]
    pairs = [(n, *pair) for n in range(3) for pair in zip(CLOUD_CLASSES, texts)]
    rows = [f"{n}.png_{name},{text}\n" for n, name, text in pairs]
    return "".join(["Image_Label,EncodedPixels\n", *rows]).encode()


def _ready(home: Path) -> None:
    "The folders of all readers; a case overwrites one file."
    for name in ("coco", "via", "labelme", "yolo/images", "train/train_images"):
        (home / name).mkdir(parents=True)
        for row in range(PHOTOS):
            (home / name / f"{row}.png").write_bytes(_encoded(row, "PNG"))
    for row in range(PHOTOS):
        data = _labelme() | {"imagePath": f"{row}.png"}
        (home / "labelme" / f"{row}.json").write_text(json.dumps(data))
    (home / "yolo" / "labels").mkdir()
    for row in range(PHOTOS):
        (home / "yolo" / "labels" / f"{row}.txt").write_bytes(YOLO_LINES)
    (home / "yolo" / "data.yaml").write_bytes(YOLO_NAMES)


def _labelled(folder: Path, path: Path, content: bytes) -> None:
    "Check a folder with one spoilt file, and read it where there is no fault."
    before = path.read_bytes() if path.exists() else None
    path.write_bytes(content)
    try:
        faults = check_labelled(folder)
        for fault in faults:
            one_line = fault.isprintable() and fault[-1] in ".?" and len(fault) < LONGEST
            assert one_line, f"no sentence: {fault!r:.200}"
        if faults:
            raise ValueError(faults[0])
        found = read_labelled(folder)
        load_labelled(found.samples, (6, 9), found.classes)
        assert all(note.isprintable() for note in found.notes), found.notes
    finally:
        if before is not None:
            path.write_bytes(before)


def _rle(home: Path, content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    try:
        mask = rle_decode(text, SIZE)
    finally:
        rle_decode_small(text, (1400, 2100), (35, 52))
    assert mask.shape == SIZE


def _counts(home: Path, content: bytes) -> None:
    text = content.decode("utf-8", "replace")
    counts = text
    try:
        counts = json.loads(text)
    except (ValueError, RecursionError):
        pass
    assert coco_decode(coco_counts(counts, SIZE), SIZE).shape == SIZE


def _sent(home: Path, content: bytes) -> None:
    path = home / "submission.csv"
    path.write_bytes(content)
    read_labels(path)
    check_submission(path, [f"{row}.png" for row in range(3)])


def _train(home: Path, content: bytes) -> None:
    (home / "train" / "train.csv").write_bytes(content)
    check_folder(home / "train")


def _picture(home: Path, content: bytes) -> None:
    path = home / "picture.png"
    path.write_bytes(content)
    with open_picture(path) as picture:
        assert picture.size
    assert len(picture_shape(path)) == 2
    assert read_picture(path, (6, 9)).shape == (6, 9, 3)
    assert read_grey(path, (6, 9)).shape == (6, 9)


def _mask(home: Path, content: bytes) -> None:
    path = home / "mask.png"
    path.write_bytes(content)
    assert read_mask(path, SIZE).shape == SIZE


class Reader(NamedTuple):
    "One reader and what it is given."

    seeds: list[bytes]  # valid contents
    spoil: Callable  # (content, rng) -> content
    read: Callable  # (home, content): ends well, or raises ValueError


def _dumped(data: object) -> bytes:
    return json.dumps(data).encode()


_SQUARE = np.pad(np.full((4, 6), 255, np.uint8), ((4, 4), (6, 6)))


def _masks() -> list[bytes]:
    "Masks in grey, of one bit, and with a palette."
    found = []
    grey = Image.fromarray(_SQUARE)
    palette = Image.fromarray(_SQUARE // 255, "P")
    palette.putpalette([0, 0, 0, 200, 30, 30])
    for picture in (grey, grey.convert("1"), palette, grey.convert("RGB")):
        content = io.BytesIO()
        picture.save(content, "PNG")
        found.append(content.getvalue())
    return found


READERS = {
    "rle": Reader([b"1 5 20 3 50 100", b"3 1", b""], spoil_bytes, _rle),
    "counts": Reader([b"[30, 20, 166]", b"n0d0V5", b"[216]"], spoil_bytes, _counts),
    "submission": Reader([_submission()], spoil_bytes, _sent),
    "train": Reader([_submission()], spoil_bytes, _train),
    "via": Reader(
        [_dumped(_via()), _dumped({"_via_img_metadata": _via()})],
        spoil_json,
        lambda home, content: _labelled(home / "via", home / "via" / "l.json", content),
    ),
    "coco": Reader(
        [_dumped(_coco())],
        spoil_json,
        lambda home, content: _labelled(home / "coco", home / "coco" / "l.json", content),
    ),
    "labelme": Reader(
        [_dumped(_labelme())],
        spoil_json,
        lambda home, content: _labelled(home / "labelme", home / "labelme" / "0.json", content),
    ),
    "yolo": Reader(
        [YOLO_LINES],
        spoil_bytes,
        lambda home, content: _labelled(home / "yolo", home / "yolo" / "labels/0.txt", content),
    ),
    "yaml": Reader(
        [YOLO_NAMES, b"names: [a, b]\n"],
        spoil_bytes,
        lambda home, content: _labelled(home / "yolo", home / "yolo" / "data.yaml", content),
    ),
    "picture": Reader(
        [
            _encoded(0, "PNG"),
            _encoded(1, "JPEG"),
            _encoded(2, "JPEG", exif=bytes(Image.Exif()) or b"Exif\0\0MM\0*\0\0\0\x08\0\0"),
            _encoded(3, "JPEG", progressive=True),
        ],
        spoil_bytes,
        _picture,
    ),
    "mask": Reader(_masks(), spoil_bytes, _mask),
}


# --------------------------------------------------------------------------------------- the cases


def spoilt(reader: str, seed: int, case: int) -> bytes:
    "The content of one case."
    rng = random.Random(f"{reader} {seed} {case}")
    return READERS[reader].spoil(rng.choice(READERS[reader].seeds), rng)


def _peak() -> float:
    "The most memory that this process had, in megabytes."
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class Outcome(NamedTuple):
    "What became of one case."

    accepted: bool
    failures: list[str]  # what must not be


def run_case(reader: str, home: Path, content: bytes, seconds: float | None = SECONDS) -> Outcome:
    "Read one content; anything but success and ValueError is a failure."
    accepted, failures = True, []
    printed = io.StringIO()
    peak, start = _peak(), time.process_time()
    with (
        warnings.catch_warnings(record=True) as warned,
        redirect_stdout(printed),
        redirect_stderr(printed),
    ):
        warnings.simplefilter("always", append=True)
        try:
            READERS[reader].read(home, content)
        except UnicodeError as error:  # a ValueError, but none in words
            failures.append(f"{type(error).__name__}: {error}")
        except ValueError as error:
            accepted = False
            if not str(error).strip():
                failures.append("a ValueError without words")
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failures.append(f"{type(error).__name__}: {str(error)[:200]}")
    texts = [str(warning.message) for warning in warned]
    failures += [f"warning: {text[:200]}" for text in texts if not text.startswith(PILLOW)]
    if printed.getvalue():
        failures.append(f"printed: {printed.getvalue()[:200]!r}")
    if _peak() - peak > MEGABYTES:
        failures.append(f"memory: {_peak() - peak:.0f} MB more")
    spent = time.process_time() - start
    if seconds is not None and spent > seconds:
        failures.append(f"time: {spent:.0f} s of the processor")
    return Outcome(accepted, failures)


class Row(NamedTuple):
    "What became of the cases of one reader."

    reader: str
    cases: int
    accepted: int
    refused: int
    failures: list[str]  # each begins with how to repeat it


def fuzz(
    cases: int,  # of all readers together
    seed: int = 0,
    seconds: float | None = SECONDS,  # for one case; None: no bound
    said: Callable = lambda row: None,  # called after every reader
) -> list[Row]:
    "Spoil and read; the same cases for the same seed."
    rows = []
    each = -(-cases // len(READERS))
    for reader in READERS:
        accepted, failures = 0, []
        with TemporaryDirectory() as home:
            _ready(Path(home))
            for case in range(each):
                outcome = run_case(reader, Path(home), spoilt(reader, seed, case), seconds)
                accepted += outcome.accepted and not outcome.failures
                failures += [
                    f"--reader {reader} --seed {seed} --case {case}: {text}"
                    for text in outcome.failures
                ]
        bad = len({text.split(": ")[0] for text in failures})
        rows.append(Row(reader, each, accepted, each - accepted - bad, failures))
        said(rows[-1])
    return rows


def _show(row: Row) -> None:
    counts = f"{row.cases:>8} {row.accepted:>9} {row.refused:>8} {len(row.failures):>9}"
    print(f"{row.reader:12}{counts}", flush=True)


def main() -> int:
    "The command."
    words = argparse.ArgumentParser(description="Spoilt files for every reader of cloudlearn.")
    words.add_argument("--cases", type=int, default=2_000, help="of all readers together")
    words.add_argument("--seed", type=int, default=0)
    words.add_argument("--reader", choices=READERS, help="with --case: repeat one case")
    words.add_argument("--case", type=int)
    asked = words.parse_args()
    if asked.reader and asked.case is not None:
        content = spoilt(asked.reader, asked.seed, asked.case)
        shown = "".join(c if c in string.printable else "?" for c in content.decode("latin-1"))
        print(f"{len(content)} bytes: {shown[:2_000]}")
        with TemporaryDirectory() as home:
            _ready(Path(home))
            outcome = run_case(asked.reader, Path(home), content)
        print("accepted" if outcome.accepted else "refused", *outcome.failures, sep="\n")
        return int(bool(outcome.failures))
    print(f"{'reader':12}{'cases':>8}{'accepted':>10}{'refused':>9}{'failures':>10}")
    rows = fuzz(asked.cases, asked.seed, said=_show)
    failures = [text for row in rows for text in row.failures]
    print(*failures[:200], sep="\n")
    return int(bool(failures))


if __name__ == "__main__":
    sys.exit(main())
