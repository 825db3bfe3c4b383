"""Pictures on disk: the same as from their files, read again when anything changed, and bounded."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cloudlearn import cache, formats
from cloudlearn.cache import StoredTarget, cached, pack_masks, remembered, unpack_masks
from cloudlearn.clouds.run import read_clouds
from cloudlearn.formats import check_labelled, read_labelled
from cloudlearn.own import _seen, read_own
from cloudlearn.runs import TrainRun
from cloudlearn.samples import UNKNOWN, row_digest, row_digests
from cloudlearn.training import _fingerprint

SHAPES = [(12, 18)] * 6
RAGGED = [(12, 18), (5, 7), (30, 4), (9, 9), (1, 1), (16, 8)]


@pytest.fixture
def home(tmp_path, monkeypatch):
    "A cache of this test alone that keeps sets of any size; its disk keeps fine times."
    monkeypatch.setenv("CLOUDLEARN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("CLOUDLEARN_CACHE_GB", raising=False)
    monkeypatch.setattr(cache, "SMALLEST", 0)
    monkeypatch.setattr(cache, "TICK", 0.02)
    return tmp_path / "cache"


@pytest.fixture
def files(tmp_path):
    "Six files that stand for pictures."
    paths = [tmp_path / "data" / f"{row}.jpg" for row in range(6)]
    paths[0].parent.mkdir()
    for path in paths:
        path.write_bytes(b"abcdef")
    return paths


class Loader:
    "Made-up pictures and targets; counts what was asked for."

    def __init__(self, shapes, classes, *, marked=False, native=False):
        draw = np.random.default_rng(classes)
        self.asked = []
        self.rows = []
        self.options = {"shapes": shapes, "classes": classes, "marked": marked, "native": native}
        for height, width in shapes:
            picture = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            target = draw.random((classes, height, width)) < 0.4
            if marked:
                target = target.astype(np.uint8)
                target[draw.random(classes) < 0.4] = UNKNOWN
            if native:
                target = np.ascontiguousarray(np.moveaxis(target, 0, -1))
            self.rows.append((picture, target if classes else None))

    def __call__(self, row):
        self.asked.append(row)
        return self.rows[row]

    def cached(self, files, **more):
        self.asked.clear()
        made = more.pop("made", {"labels": "as drawn"})
        return cached(made, files, self, **(self.options | more))


@pytest.mark.parametrize("classes", [0, 1, 4, 8, 9, 17, 33, 64, 65])
def test_bits_are_the_masks(classes):
    masks = np.random.default_rng(classes).random((classes, 7, 5)) < 0.5
    bits = pack_masks(masks)
    assert (unpack_masks(bits, classes) == masks).all()
    assert bits.dtype.itemsize * 8 >= classes or bits.shape == (7, 5, classes)


@pytest.mark.parametrize("classes", [0, 1, 3, 9, 65])
@pytest.mark.parametrize("marked", [False, True])
def test_the_cache_gives_what_was_loaded(home, files, classes, marked):
    load = Loader(SHAPES, classes, marked=marked)
    for _ in range(2):
        found = load.cached(files)
        assert found.pictures.shape == (6, 12, 18, 3) and found.pictures.dtype == np.uint8
        for row, (picture, target) in enumerate(load.rows):
            assert (found.pictures[row] == picture).all()
            if classes:
                assert found.targets[row].dtype == target.dtype
                assert (found.targets[row] == target).all()
        order = [4, 0, 0]
        if classes:
            part = found.targets.only(order)
            assert (part[:] == np.stack([load.rows[row][1] for row in order])).all()
            assert list(row_digests(part)) == [row_digest(load.rows[row][1]) for row in order]
        assert list(row_digests(found.pictures)) == [row_digest(row[0]) for row in load.rows]
    assert load.asked == []  # the second time nothing was read


def test_pictures_of_every_size_are_cropped_from_disk(home, files):
    load = Loader(RAGGED, 3, marked=True, native=True)
    found = load.cached(files)
    for row, (picture, target) in enumerate(load.rows):
        assert (found.pictures[row] == picture).all() and not found.pictures[row].flags.owndata
        assert found.targets[row].shape == target.shape
        assert (found.targets[row][:] == target).all()
        assert (found.targets[row][1:5, 2:3] == target[1:5, 2:3]).all()


def test_whatever_changes_is_read_again(home, files):
    load = Loader(SHAPES, 2)
    load.cached(files)

    def asked(**more):
        load.cached(files, **more)
        return len(load.asked)

    assert asked() == 0
    before = files[2].stat()
    files[2].write_bytes(b"abcdeg")  # another content, the old size and date
    os.utime(files[2], ns=(before.st_atime_ns, before.st_mtime_ns))
    assert asked() == 6 and asked() == 0
    os.utime(files[2], ns=(0, 0))  # the date alone
    assert asked() == 6 and asked() == 0
    files[2].write_bytes(b"abcdefg")
    assert asked() == 6 and asked() == 0
    assert asked(made={"labels": "drawn anew"}) == 6
    load.options["shapes"] = [(18, 12)] * 6
    load.rows = Loader([(18, 12)] * 6, 2).rows
    assert asked(made={"size": [18, 12]}) == 6
    files[2].rename(files[2].with_name("other.jpg"))
    assert asked() == 0 and load.cached(files) is None  # the reader will say which is not there


def test_two_writes_within_a_tick_are_told_apart(home, files, monkeypatch):
    monkeypatch.setattr(cache, "TICK", 0.3)
    start = time.time()
    files[0].write_bytes(b"abcdef")
    Loader(SHAPES, 2).cached(files)
    assert time.time() - start >= 0.29  # the tick is over before anything is believed


@pytest.mark.parametrize("name", ["pictures", "bits", "known", "digests"])
@pytest.mark.parametrize("way", ["short", "gone", "other"])
def test_a_broken_set_is_filled_again(home, files, name, way):
    load = Loader(SHAPES, 2, marked=True)
    load.cached(files)
    (path,) = home.glob(f"*/{name}.npy")
    if way == "short":
        path.write_bytes(path.read_bytes()[:-1])
    elif way == "gone":
        path.unlink()
    else:
        np.save(path, np.zeros(3))
    found = load.cached(files)
    assert sorted(load.asked) == list(range(6))
    assert (found.targets[5] == load.rows[5][1]).all()
    load.cached(files)
    assert load.asked == []


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from cloudlearn import cache
cache.SMALLEST = 0
cache.TICK = 0.02
files = sorted(Path(sys.argv[1]).iterdir())
slow = len(sys.argv) > 2
def load(row):
    sys.stdout.write(f"{row}\\n")  # threads: number and break in one piece
    sys.stdout.flush()
    if slow and row == 5: time.sleep(60)
    time.sleep(0.02)
    return np.full((12, 18, 3), row, np.uint8), np.zeros((2, 12, 18), bool)
found = cache.cached({}, files, load, shapes=[(12, 18)] * 6, classes=2)
print("sum", int(found.pictures[:].sum()), flush=True)
"""


def started(files, *more):
    command = [sys.executable, "-c", KILLED, str(files[0].parent), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def test_killed_while_it_is_filled(home, files):
    child = started(files, "slow")
    while "5" not in child.stdout.readline():
        pass
    child.send_signal(signal.SIGKILL)
    child.wait()
    (left,) = [path for path in home.iterdir() if path.is_dir()]
    assert left.name.endswith(".tmp")
    both = [started(files), started(files)]  # two at once: one fills, one waits for it
    said = [child.communicate(timeout=60)[0].split() for child in both]
    assert sorted(len(words) for words in said) == [2, 8]
    assert said[0][-1] == said[1][-1] == str(sum(range(6)) * 12 * 18 * 3)
    assert [path.suffix for path in home.iterdir() if path.is_dir()] == [""]


def test_the_oldest_make_room_and_nothing_else_goes(home, files, monkeypatch, capsys):
    load = Loader(SHAPES, 2)
    need = cache._Plan(SHAPES, 2, False).size()
    home.mkdir()
    (home / "mine.txt").write_text("mine")
    (home / ("a" * 32)).mkdir()  # named like a set, and none
    (home / ("a" * 32) / "mine.txt").write_text("mine")
    for year, size in enumerate((1, 2)):
        load.cached(files, made={"set": size})
        (newest,) = [path for path in home.glob("*/set.json") if path.stat().st_mtime > 1e9]
        os.utime(newest, (year, year))
    load.cached(files, made={"set": 1})  # used again: now the other is the oldest
    monkeypatch.setenv("CLOUDLEARN_CACHE_GB", str(2.9 * need / 1e9))
    load.cached(files, made={"set": 3})
    assert load.asked
    load.cached(files, made={"set": 1})
    assert not load.asked
    load.cached(files, made={"set": 2})
    assert load.asked
    assert (home / "mine.txt").exists() and (home / ("a" * 32) / "mine.txt").exists()
    monkeypatch.setenv("CLOUDLEARN_CACHE_GB", str(0.5 * need / 1e9))
    assert load.cached(files, made={"set": 4}) is None
    assert "more than the cache may take" in capsys.readouterr().err
    monkeypatch.setenv("CLOUDLEARN_CACHE_GB", "0")
    assert load.cached(files) is None and capsys.readouterr().err == ""
    monkeypatch.setenv("CLOUDLEARN_CACHE_GB", "much")
    with pytest.raises(ValueError, match="CLOUDLEARN_CACHE_GB=much: a number of gigabytes"):
        load.cached(files)


def test_without_a_place_the_pictures_are_read_into_memory(
    home, files, tmp_path, monkeypatch, capsys
):
    load = Loader(SHAPES, 2)

    def refused(words, **more):
        assert load.cached(files, **more) is None and load.asked in ([], list(range(6)))
        said = capsys.readouterr().err
        assert words in said and said.endswith("the pictures are read into memory.\n")
        assert said.count("\n") == 1

    refused("lie in each other", apart=[tmp_path / "cache" / "run"])
    refused("lie in each other", apart=[tmp_path])
    monkeypatch.setenv("CLOUDLEARN_CACHE", str(files[0] / "cache"))  # a file is no folder
    refused("Not a directory")
    monkeypatch.setenv("CLOUDLEARN_CACHE", str(tmp_path / "cache"))
    with monkeypatch.context() as patched:
        patched.setattr(cache.os, "fsync", full)
        refused("No space left on device")
        patched.setattr(cache.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
        refused("is full")
    assert [path for path in home.iterdir() if path.is_dir()] == []
    assert load.cached(files) is not None


def full(number):
    raise OSError(28, "No space left on device")


def test_small_sets_are_no_business_of_the_cache(home, files, monkeypatch):
    monkeypatch.setattr(cache, "SMALLEST", 2**26)
    assert Loader(SHAPES, 2).cached(files) is None and not home.exists()


def test_the_place_is_the_users(monkeypatch, tmp_path):
    monkeypatch.delenv("CLOUDLEARN_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.cache_home() == tmp_path / "cloudlearn"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    assert cache.cache_home() == tmp_path / "me" / ".cache" / "cloudlearn"


def test_a_fault_of_the_data_stays_its_own(home, files):
    def broken(row):
        raise ValueError(f"{files[row]}: broken")

    with pytest.raises(ValueError, match="0.jpg: broken"):
        cached({}, files, broken, shapes=SHAPES, classes=1)
    assert [path for path in home.iterdir() if path.is_dir()] == []


def test_clouds_are_the_same_from_the_cache(home, cloud_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("cloudlearn.clouds.run.judging_faults", lambda *rest: [])
    size = (32, 48)
    direct = read_clouds(cloud_folder, size, 0.5)
    for _ in range(2):
        stored = read_clouds(cloud_folder, size, 0.5, out=tmp_path / "run")
        assert not isinstance(stored.samples.masks, np.ndarray)
        assert (stored.samples.pictures[:] == direct.samples.pictures).all()
        assert (stored.samples.masks[:] == direct.samples.masks).all()
    assert len(list(home.glob("*/set.json"))) == 2  # labelled and test pictures


def own_folder(place):
    draw = np.random.default_rng(0)
    for kind in ("images", "masks/moss", "masks/rust"):
        (place / kind).mkdir(parents=True)
    for row in range(14):
        shape = (40 + row, 60)
        picture = draw.integers(0, 256, (*shape, 3), dtype=np.uint8)
        Image.fromarray(picture).save(place / "images" / f"{row:02d}.png")
        for name in ("moss", "rust"):
            if name == "rust" and row % 3 == 0:
                continue  # nobody looked
            mask = np.zeros(shape, np.uint8)
            mask[row : row + 9, 5 : 30 + row] = 255
            Image.fromarray(mask).save(place / "masks" / name / f"{row:02d}.png")
    return place


@pytest.mark.parametrize("frame", ["whole", "native"])
def test_own_pictures_are_the_same_from_the_cache(home, tmp_path, monkeypatch, frame):
    data = own_folder(tmp_path / "own")
    run = TrainRun(data=data, out=tmp_path / "run", size=(32, 32), frame=frame)
    stored = read_own(data, run)
    monkeypatch.setattr(cache, "SMALLEST", 2**26)
    direct = read_own(data, run)
    assert len(list(home.glob("*/set.json"))) == 2
    assert _fingerprint(stored.train, stored.valid) == _fingerprint(direct.train, direct.valid)
    assert stored.train.pictures.shape == direct.train.pictures.shape
    for name in ("train", "valid"):
        ours, theirs = getattr(stored, name), getattr(direct, name)
        assert len(ours) == len(theirs)
        for row in range(len(ours.targets)):
            assert (ours.pictures[row] == theirs.pictures[row]).all()
            assert (ours.targets[row][:] == theirs.targets[row][:]).all()
    assert isinstance(stored.train.targets[0], StoredTarget) == (frame == "native")


def test_a_mask_that_was_drawn_anew_is_seen(home, tmp_path):
    data = own_folder(tmp_path / "own")
    run = TrainRun(data=data, out=tmp_path / "run", size=(32, 32))
    before = read_own(data, run)
    sample = before.parts["train"][1]
    mask = np.zeros(Image.open(sample.picture).size[::-1], np.uint8)
    mask[:20] = 255
    path = sample.labels["moss"]
    stat = path.stat()
    Image.fromarray(mask).save(path)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    after = _seen(before.parts["train"], run, before.classes, True)
    assert (after.targets[1][0, :12] == 1).all()
    assert _fingerprint(after) != _fingerprint(before.train)


MEMORY = """
import json, os, sys, threading, time
from pathlib import Path
import lightning.pytorch as lightning
import torch
from torch import nn
from cloudlearn import cache
from cloudlearn.clouds.run import read_clouds
from cloudlearn.clouds.segment import train_segmenter
from cloudlearn.samples import pick

cache.TICK = 0.02
whole = lightning.Trainer.__init__
few = dict(limit_train_batches=2, limit_val_batches=1)
lightning.Trainer.__init__ = lambda self, **options: whole(self, **options, **few)

class Tiny(nn.Conv2d):
    def forward(self, pictures):
        return super().forward(pictures.float())

def anonymous():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) / 1024

def watch():
    while True:
        peak[0] = max(peak[0], anonymous())
        time.sleep(0.005)

data, out = map(Path, sys.argv[1:])
Tiny(3, 4, 1)(torch.zeros(2, 3, 384, 576)).mean().backward()   # what torch takes for itself
before = anonymous()
peak = [0]
threading.Thread(target=watch, daemon=True).start()
found = read_clouds(data, (384, 576), 1 / 6, out=out)
parts = pick(found.samples, found.train), pick(found.samples, found.valid)
train_segmenter(Tiny(3, 4, 1), *parts, out, epochs=1, batch_size=2, progress=False)
arrays = found.samples.pictures.shape[0] * 384 * 576 * 7 / 2**20
print(json.dumps({"peak": peak[0] - before, "arrays": arrays}), flush=True)
os._exit(0)   # without the seconds that libraries take to end
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="Linux tells RssAnon")
def test_many_pictures_are_not_held_in_memory(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDLEARN_CACHE", str(tmp_path / "cache"))
    (tmp_path / "data" / "train_images").mkdir(parents=True)
    draw = np.random.default_rng(0)
    small = Image.fromarray(draw.integers(0, 256, (24, 36, 3), dtype=np.uint8))
    small.resize((576, 384)).save(tmp_path / "one.jpg")
    picture = (tmp_path / "one.jpg").read_bytes()
    lines = ["Image_Label,EncodedPixels"]
    for row in range(200):
        (tmp_path / "data" / "train_images" / f"{row:03d}.jpg").write_bytes(picture)
        for plane, name in enumerate(("Fish", "Flower", "Gravel", "Sugar")):
            runs = " ".join(f"{1400 * (300 + column) + 1} 900" for column in range(0, 1200, 7))
            lines.append(f"{row:03d}.jpg_{name}," + (runs if (row >> plane) & 1 else ""))
    (tmp_path / "data" / "train.csv").write_text("\n".join(lines) + "\n")
    command = [sys.executable, "-c", MEMORY, tmp_path / "data", tmp_path / "run"]
    said = subprocess.run(command, capture_output=True, text=True)
    assert said.returncode == 0, said.stderr
    found = json.loads(said.stdout)
    assert found["arrays"] > 290 and found["peak"] < 0.75 * found["arrays"], found


def test_what_was_seen_is_remembered_until_something_changes(home, files):
    asked = []

    def look(number):
        asked.append(number)
        return [files[number].read_bytes().decode(), number]

    def seen(said="as drawn", paths=files):
        asked.clear()
        time.sleep(0.05)  # a tick and more
        return remembered("words", [(said, [path]) for path in paths], look)

    first = seen()
    assert first == [["abcdef", number] for number in range(6)] and asked == list(range(6))
    assert seen() == first and asked == []
    files[2].write_bytes(b"changed")
    assert seen()[2] == ["changed", 2] and asked == [2]
    assert seen() == [*first[:2], ["changed", 2], *first[3:]] and asked == []
    seen("drawn anew")
    assert asked == list(range(6))
    (memory,) = home.glob("*.json")
    memory.write_text("{broken")
    seen("drawn anew")
    assert asked == list(range(6))


def test_another_version_of_this_package_reads_again(home, files, monkeypatch, tmp_path):
    load = Loader(SHAPES, 2)
    load.cached(files)
    load.cached(files)
    assert load.asked == []
    package = tmp_path / "package"
    package.mkdir()
    (package / "cache.py").write_text("another")
    monkeypatch.setattr(cache, "__file__", str(package / "cache.py"))
    load.cached(files)
    assert sorted(load.asked) == list(range(6))


def test_a_young_file_is_looked_at_again(home, files, monkeypatch):
    monkeypatch.setattr(cache, "TICK", 60)
    asked = []

    def look(number):
        asked.append(number)
        return number

    for _ in range(2):
        assert remembered("words", [(0, [path]) for path in files], look) == list(range(6))
    assert len(asked) == 12


@pytest.mark.parametrize("way", ["small", "off", "inside"])
def test_nothing_is_remembered_where_nothing_may_be_kept(home, files, monkeypatch, way):
    if way == "small":
        monkeypatch.setattr(cache, "SMALLEST", 1000)
    if way == "off":
        monkeypatch.setenv("CLOUDLEARN_CACHE_GB", "0")
    apart = [home.parent] if way == "inside" else []
    time.sleep(0.05)
    tasks = [(0, [path]) for path in files]
    assert remembered("words", tasks, lambda number: number, apart) == list(range(6))
    assert not home.exists()


def test_a_second_reading_opens_no_picture(home, tmp_path, monkeypatch):
    folder = tmp_path / "own"
    for place in ("images", "masks/leaf"):
        (folder / place).mkdir(parents=True)
    for row in range(8):
        picture = np.full((20, 30, 3), 9 * row, np.uint8)
        Image.fromarray(picture).save(folder / "images" / f"{row}.png")
        Image.fromarray(picture[..., 0] // 9 % 2 * 255).save(folder / "masks/leaf" / f"{row}.png")
    opened = []
    read = formats.read_picture
    monkeypatch.setattr(formats, "read_picture", lambda *a: opened.append(a[0].name) or read(*a))
    time.sleep(0.05)
    first = read_labelled(folder)
    assert len(opened) == 8
    again = read_labelled(folder)
    assert len(opened) == 8 and again == first
    (folder / "masks/leaf/3.png").write_bytes(b"no picture")
    time.sleep(0.05)
    (fault,) = check_labelled(folder)
    assert "3.png" in fault and opened[8:] == ["3.png"]
