"""Reading pictures without trusting them, and writing files whole or not at all."""

import errno
import json
import os
import signal
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from unittest.mock import patch

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cloudlearn import files
from cloudlearn.files import (
    MANIFEST,
    MANIFEST_HEAD,
    PICTURE_PIXELS,
    PictureError,
    check_room,
    find_manifest,
    free_memory,
    list_pictures,
    load_pictures,
    open_picture,
    picture_faults,
    picture_shape,
    printable,
    read_grey,
    read_manifest,
    read_picture,
    split_pictures,
    whole_file,
    whole_folder,
    write_file,
)
from cloudlearn.scenes.clouds import write_cloud_folder


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    "A small folder of pictures; read only."
    return write_cloud_folder(tmp_path_factory.mktemp("scenes") / "clouds", 12, 5, shape=(70, 105))


@pytest.fixture
def smooth():
    "A picture with soft structure, (420, 630, 3) uint8."
    noise = np.random.default_rng(0).integers(0, 256, (420, 630, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 6), None, 0, 255, cv2.NORM_MINMAX)


def jpeg(picture, path, quality=95):
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality]
    path.write_bytes(cv2.imencode(".jpg", picture[..., ::-1], settings)[1].tobytes())
    return path


# ----------------------------------------------------------------------------------------- pictures


def ordinary(path, shape):
    "Decode everything, then average down."
    whole = np.asarray(Image.open(path).convert("RGB"))
    return cv2.resize(whole, shape[::-1], interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize(
    "shape, limit",
    [
        ((420, 630), 0),
        ((300, 450), 0),
        ((211, 316), 0),
        ((210, 315), 0.7),
        ((105, 158), 0),
        ((48, 72), 2),
        ((52, 78), 2),
        ((7, 9), 1),
    ],
)
def test_reduced_decoding_stays_close_to_full_decoding(tmp_path, smooth, shape, limit):
    path = jpeg(smooth, tmp_path / "a.jpg")
    picture = read_picture(path, shape)
    assert picture.shape == (*shape, 3) and picture.dtype == np.uint8
    assert np.abs(picture.astype(int) - ordinary(path, shape)).mean() <= limit


def test_reduced_decoding_is_used_and_no_smaller_than_exact_or_twice(tmp_path, smooth, monkeypatch):
    path, decoded = jpeg(smooth[:400, :600], tmp_path / "a.jpg"), []

    def resize(pixels, size, interpolation):
        decoded.append(pixels.shape[:2])
        return np.zeros((*size[::-1], 3), np.uint8)

    monkeypatch.setattr(files.cv2, "resize", resize)
    wanted = [
        ((50, 75), (50, 75)),
        ((51, 76), (200, 300)),
        ((100, 150), (100, 150)),
        ((99, 149), (200, 300)),
        ((200, 300), (200, 300)),
        ((201, 300), (400, 600)),
        ((400, 600), (400, 600)),
        ((800, 1200), (400, 600)),
    ]
    for shape, _ in wanted:
        read_picture(path, shape)
    assert decoded == [size for _, size in wanted]


def test_colours_and_modes(tmp_path):
    colour = np.full((16, 24, 3), (200, 60, 20), np.uint8)
    picture = Image.fromarray(colour)
    modes = {
        "rgb.jpg": "RGB",
        "rgb.png": "RGB",
        "alpha.png": "RGBA",
        "grey.png": "L",
        "palette.png": "P",
        "print.jpg": "CMYK",
    }
    for name, mode in modes.items():
        picture.convert(mode).save(tmp_path / name)
        got = read_picture(tmp_path / name, (8, 12))
        assert got.shape == (8, 12, 3)
        if mode != "L":
            assert np.abs(got.astype(int) - colour[:8, :12]).max() <= 30, name  # red stays red
    (tmp_path / "rgb.png").rename(tmp_path / "wrong.jpg")
    # the content counts, not the name
    assert read_picture(tmp_path / "wrong.jpg", (8, 12))[0, 0].tolist() == [200, 60, 20]


@pytest.mark.parametrize(
    "suffix, keep",
    [(suffix, keep) for suffix in (".jpg", ".png") for keep in (0, 1, 20, 200, 0.5, 0.9, -40)]
    + [(".jpg", -1), (".jpg", -2)],
)
def test_truncated_pictures_are_refused(tmp_path, smooth, suffix, keep):
    whole = cv2.imencode(suffix, smooth)[1].tobytes()
    path = tmp_path / f"cut{suffix}"
    path.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError) as caught:
        read_picture(path, (35, 52))
    assert str(caught.value).startswith(f"{path}: cannot be read as a picture")
    assert str(caught.value).endswith("fetch the file again.")


def test_unsuitable_pictures_are_refused(tmp_path, smooth, monkeypatch):
    Image.fromarray(smooth).save(tmp_path / "gif.png", format="GIF")
    cv2.imwrite(str(tmp_path / "deep.png"), np.zeros((8, 12), np.uint16))
    Image.fromarray(smooth[..., 0]).convert("1").save(tmp_path / "bits.png")
    (tmp_path / "page.jpg").write_text("<html>")
    (tmp_path / "folder.jpg").mkdir()
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(smooth).save(tmp_path / f"turn{orientation}.jpg", exif=exif)
    cases = {
        "none.jpg": "no such picture",
        "gif.png": "cannot be read",
        "deep.png": "mode I;16",
        "bits.png": "mode 1",
        "page.jpg": "cannot be read",
        "folder.jpg": "cannot be read",
    }
    cases |= {f"turn{k}.jpg": f"EXIF orientation {k}" for k in range(2, 9)}
    for name, words in cases.items():
        with pytest.raises(ValueError, match=words) as caught:
            read_picture(tmp_path / name, (8, 12))
        assert str(caught.value).startswith(str(tmp_path / name))
        assert str(caught.value).endswith(".")
    assert read_picture(tmp_path / "turn1.jpg", (42, 63)).shape == (42, 63, 3)
    assert PICTURE_PIXELS >= 1400 * 2100
    monkeypatch.setattr(files, "PICTURE_PIXELS", smooth.shape[0] * smooth.shape[1] - 1)
    with pytest.raises(ValueError, match="630 x 420 pixels, above the limit"):
        read_picture(tmp_path / "turn1.jpg", (42, 63))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1), suffix=st.sampled_from([".jpg", ".png"]), early=st.booleans()
)
def test_damaged_pictures_read_or_raise_value_error(tmp_path_factory, seed, suffix, early):
    rng, path = np.random.default_rng(seed), tmp_path_factory.getbasetemp() / "damaged"
    noise = np.random.default_rng(1).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    base = cv2.GaussianBlur(noise, (0, 0), 2)
    damaged = bytearray(cv2.imencode(suffix, base)[1].tobytes())
    reach = min(len(damaged), 200) if early else len(damaged)
    for _ in range(rng.integers(1, 6)):
        damaged[rng.integers(reach)] = rng.integers(256)
    path.write_bytes(damaged)
    try:
        assert read_picture(path, (20, 30)).shape == (20, 30, 3)
    except ValueError as error:
        assert str(error).startswith(str(path))


def test_load_pictures_keeps_the_order_with_any_number_of_threads(scenes):
    names = list_pictures(scenes / "train_images")[::-1]
    want = np.stack([read_picture(scenes / "train_images" / name, (20, 30)) for name in names])
    for workers in (None, 1, 5):
        found = load_pictures(scenes / "train_images", iter(names), (20, 30), workers)
        assert (found == want).all()
    assert load_pictures(scenes, [], (20, 30)).shape == (0, 20, 30, 3)
    with pytest.raises(ValueError, match=r"gone\.jpg: there is no such picture"):
        load_pictures(scenes / "train_images", [*names, "gone.jpg"], (20, 30))


def test_list_pictures(tmp_path):
    for name in ["b.jpg", "a.JPEG", "c.png", "._b.jpg", ".hidden.png", "notes.txt", "jpg"]:
        (tmp_path / name).touch()
    assert list_pictures(tmp_path) == ["a.JPEG", "b.jpg", "c.png"]
    for path in (tmp_path / "none", tmp_path / "b.jpg"):
        with pytest.raises(ValueError, match="there is no such folder"):
            list_pictures(path)


def chunk(kind, data):
    "One chunk of a PNG file."
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


PNG = b"\x89PNG\r\n\x1a\n"
HEAD = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 0)
ROWS = zlib.compress((b"\0" + bytes(8)) * 8)
END = chunk(b"IEND", b"")
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(hi) show\n"
BOMB = chunk(b"zTXt", b"k\0\0" + zlib.compress(bytes(80_000_000)))
HUGE = struct.pack(">IIBBBBB", 13_300, 13_300, 8, 0, 0, 0, 0)
HOSTILE = {
    "EPS by content": EPS,
    "a short IHDR": PNG + chunk(b"IHDR", HEAD[:5]) + END,
    "a zTXt bomb": PNG + chunk(b"IHDR", HEAD) + BOMB + chunk(b"IDAT", ROWS) + END,
    "GIF by content": b"GIF89a" + bytes(20),
    "TIFF by content": b"II*\0" + bytes(40),
    "13300 x 13300": PNG + chunk(b"IHDR", HUGE) + END,
}


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("read", [read_picture, read_grey], ids=lambda read: read.__name__)
def test_hostile_pictures_are_one_sentence(tmp_path, content, read):
    path = tmp_path / "lung.png"
    path.write_bytes(content)
    ghostscript = patch("subprocess.check_call", side_effect=AssertionError("Ghostscript"))
    with ghostscript, pytest.raises(PictureError) as caught:
        read(path, (32, 32))
    assert str(caught.value).startswith(f"{path}: ") and len(str(caught.value).splitlines()) == 1
    assert picture_faults([path]) == [str(caught.value)] or "EPS" not in str(caught.value)


def test_a_huge_picture_costs_no_memory(tmp_path):
    "A PNG of half a megabyte that unfolds to 531 MB, read in a process that may not have as much."
    head = struct.pack(">IIBBBBB", 13_300, 13_300, 8, 2, 0, 0, 0)
    rows = zlib.compress(bytes(13_300 * 3 + 1) * 13_300, 1)
    big = PNG + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + END
    (tmp_path / "big.png").write_bytes(big)
    code = """
import resource, sys
from cloudlearn.files import read_grey
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try: read_grey(sys.argv[1], (64, 64))
except ValueError as error: print(error)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"""
    words = [sys.executable, "-c", code, str(tmp_path / "big.png")]
    run = subprocess.run(words, capture_output=True, text=True)
    said, more = run.stdout.splitlines()
    assert "above the limit" in said and int(more) < 50_000, run.stdout + run.stderr


def test_grey_is_grey_and_as_large_as_wanted(tmp_path, smooth):
    path = jpeg(smooth, tmp_path / "a.jpg")
    full = np.asarray(Image.open(path).convert("L"))
    assert np.abs(read_grey(path, full.shape).astype(int) - full).mean() < 1
    small = read_grey(path, (42, 63)).astype(int)
    assert small.shape == (42, 63)
    assert np.abs(small - cv2.resize(full, (63, 42), interpolation=cv2.INTER_AREA)).mean() < 4
    assert picture_shape(path) == (420, 630)


def test_a_fault_of_the_caller_is_not_laid_to_the_picture(tmp_path, smooth):
    with pytest.raises(MemoryError), open_picture(jpeg(smooth, tmp_path / "a.jpg")):
        raise MemoryError


# ------------------------------------------------------------------------------ whole or not at all


@pytest.mark.parametrize("content", ["step,dice\nÅ 구름,0.5\n", b"\x89PNG\r\n\x00", ""])
def test_what_is_written_is_there_exactly_and_folders_are_made(tmp_path, content):
    path = write_file(tmp_path / "a" / "b" / "file", content)
    assert path.read_bytes() == (content if isinstance(content, bytes) else content.encode("utf-8"))
    assert [other.name for other in path.parent.iterdir()] == ["file"]


@pytest.mark.parametrize("where", ["write_bytes", "replace"])
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt, MemoryError])
def test_a_fault_in_the_middle_leaves_the_old_file(tmp_path, where, error):
    path = write_file(tmp_path / "ladder.csv", "old")

    def half(self, content):
        with open(self, "wb") as file:
            file.write(content[:2])
        raise error("stopped")

    if where == "write_bytes":
        target = patch.object(Path, "write_bytes", half)
    else:
        target = patch("os.replace", side_effect=error("stopped"))
    with target, pytest.raises(error):
        write_file(path, "new and longer")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["ladder.csv"]


@pytest.mark.parametrize(
    "number, kind",
    [(errno.ENOSPC, OSError), (errno.EACCES, PermissionError), (errno.EFBIG, OSError)],
)
def test_an_error_of_the_system_names_the_file_that_was_meant(tmp_path, number, kind):
    with pytest.raises(kind) as caught, whole_file(tmp_path / "net.bin"):
        raise OSError(number, os.strerror(number))
    assert caught.value.filename == str(tmp_path / "net.bin") and caught.value.errno == number
    with pytest.raises(OSError) as caught, whole_folder(tmp_path / "scenes"):
        raise OSError(number, os.strerror(number))
    assert caught.value.filename == str(tmp_path / "scenes") and os.listdir(tmp_path) == []
    with pytest.raises(OSError) as caught, whole_file(tmp_path / "net.bin"):
        (tmp_path / "other" / "gone").read_text()
    # another file's error keeps its name
    assert caught.value.filename == str(tmp_path / "other" / "gone")


# ------------------------------------------------------------------------------------- the manifest


def begun(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST).write_text(MANIFEST_HEAD)
    return folder


def test_what_lies_below_a_manifest_is_noted_with_its_digest(tmp_path):
    run = begun(tmp_path / "run")
    write_file(run / "pictures" / "a.png", b"one")
    write_file(run / "pictures" / "a.png", b"two")
    with whole_folder(run / "scenes") as work:
        (work / "train").mkdir()
        (work / "train" / "구름 1.jpg").write_bytes(b"one")
    one, two = (files.hashlib.sha256(text).hexdigest() for text in (b"one", b"two"))
    noted = {name: seen for name, seen in read_manifest(run).items() if None not in seen}
    assert noted == {"pictures/a.png": {one, two}, "scenes/train/구름 1.jpg": {one}}
    write_file(tmp_path / "outside.txt", "not noted")
    assert "outside.txt" not in (run / MANIFEST).read_text()
    assert find_manifest(tmp_path / "outside.txt") is None


def test_a_line_cut_off_spoils_no_other_and_no_line_leads_outside(tmp_path):
    run = begun(tmp_path / "run")
    write_file(run / "a", "a")
    with open(run / MANIFEST, "a") as file:
        file.write('\n{"file": "hal')
    write_file(run / "b", "b")
    for name in ("../../etc/passwd", "/etc/passwd", "x/../../y"):
        with open(run / MANIFEST, "a") as file:
            file.write("\n" + json.dumps({"file": name, "sha256": None}))
    assert {name for name in read_manifest(run) if not name.endswith(".tmp")} == {"a", "b"}


def test_a_manifest_of_somebody_else_is_none(tmp_path):
    (tmp_path / MANIFEST).write_text('{"mine": 1}\n{"file": "a", "sha256": null}')
    write_file(tmp_path / "a", "a")
    assert read_manifest(tmp_path) == {} and (tmp_path / MANIFEST).read_text().count("\n") == 1


def test_a_file_is_noted_before_it_takes_its_place(tmp_path):
    "Killed between the two, the file is neither lost nor taken for somebody else's."
    run = begun(tmp_path / "run")
    code = f"""
import os, signal
from cloudlearn import files
files.os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
files.write_file({str(run / 'net.bin')!r}, "whole")"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    left = [path.name for path in run.iterdir() if path.name != MANIFEST]
    assert len(left) == 1
    assert left[0].startswith("net.bin.")
    assert left[0].endswith(".tmp")
    assert read_manifest(run)[left[0]] == {None}
    assert len(read_manifest(run)["net.bin"]) == 1


# ------------------------------------------------------------------------------------ real pictures


@pytest.mark.real
def test_real_pictures(real_data):
    folder = real_data / "clouds" / "train_images"
    names = list_pictures(folder)[::100]
    pictures = load_pictures(folder, names, (160, 240))
    assert pictures.shape == (12, 160, 240, 3) and 40 < pictures.mean() < 160
    for name, picture in zip(names, pictures):
        assert np.abs(picture.astype(int) - ordinary(folder / name, (160, 240))).mean() < 1.5


# ---------------------------------------------------------------------------------------- the split


def worst_gap(presence, second):
    return np.abs(presence[second].mean(0) - np.delete(presence, second, axis=0).mean(0)).max()


def drawn(count, seed=0):
    return np.random.default_rng(seed).random((count, 4)) < (0.5, 0.43, 0.53, 0.68)


@settings(max_examples=60)
@given(st.integers(2, 120), st.floats(0.01, 0.99), st.integers(0, 5), st.integers(0, 3))
def test_every_picture_is_in_one_part(count, share, seed, kind):
    every = np.arange(count)[:, None] >> np.arange(4) & 1 == 1
    none, all_four = np.zeros((count, 4), bool), np.ones((count, 4), bool)
    presence = (drawn(count, seed), none, all_four, every)[kind]
    size = int(round(share * count))
    if not 0 < size < count:
        with pytest.raises(ValueError, match="one part would be empty"):
            split_pictures(presence, share, seed)
        return
    first, second = split_pictures(presence, share, seed)
    assert sorted([*first, *second]) == list(range(count)) and len(second) == size
    assert (np.diff(first) > 0).all() and (np.diff(second) > 0).all()


def test_the_split_depends_on_the_seed_alone():
    presence = drawn(200)
    parts = [split_pictures(presence, 0.2, seed)[1].tolist() for seed in range(5)]
    numbers = presence.astype(int)
    assert parts == [split_pictures(numbers, 0.2, seed)[1].tolist() for seed in range(5)]
    assert len(set(map(tuple, parts))) == 5


@pytest.mark.parametrize(
    "count, share, limit", [(1200, 1 / 6, 0.012), (320, 0.25, 0.04), (100, 0.5, 0.081)]
)
def test_combinations_stay_in_proportion(count, share, limit):
    for seed in range(8):
        presence, rng = drawn(count, seed), np.random.default_rng(seed)
        second = split_pictures(presence, share, seed)[1]
        plain = np.mean(
            [worst_gap(presence, rng.permutation(count)[: len(second)]) for _ in range(20)]
        )
        assert worst_gap(presence, second) < limit and worst_gap(presence, second) < plain
        code = presence @ [1, 2, 4, 8]
        for value in np.unique(code):
            assert abs((code[second] == value).sum() - share * (code == value).sum()) < 2.01


def test_a_small_part_is_still_stratified_by_the_commonest_combinations():
    gaps = {"split": [], "plain": []}
    for seed in range(60):
        presence, rng = drawn(40, seed), np.random.default_rng(seed)
        gaps["split"].append(worst_gap(presence, split_pictures(presence, 0.2, seed)[1]))
        gaps["plain"].append(worst_gap(presence, rng.permutation(40)[:8]))
    assert np.mean(gaps["split"]) < 0.92 * np.mean(gaps["plain"])


@pytest.mark.parametrize("seed", range(4))
def test_groups_stay_together_and_in_proportion(seed):
    rng = np.random.default_rng(seed)
    groups = [f"car {n}" for n in range(60) for _ in range(rng.integers(1, 4))]
    number = np.array([int(name.split()[1]) for name in groups])
    presence = (number[:, None] % [2, 3]) == 0
    shuffled = rng.permutation(len(groups))
    presence, names = presence[shuffled], [groups[row] for row in shuffled]
    first, second = split_pictures(presence, 0.2, seed, groups=names)
    assert sorted([*first, *second]) == list(range(len(names)))
    parts = [{names[row] for row in part} for part in (first, second)]
    assert not parts[0] & parts[1] and len(parts[1]) == 12
    even = [sum(int(name.split()[1]) % 2 == 0 for name in part) for part in parts]
    assert even == [24, 6]


def test_without_copies_groups_change_nothing():
    presence = drawn(50)
    plain = split_pictures(presence, 0.3, 2)
    grouped = split_pictures(presence, 0.3, 2, groups=[f"{n}.jpg" for n in range(50)])
    np.testing.assert_array_equal(plain[1], grouped[1])


# ------------------------------------------------------------------------------- names and memory


def test_a_name_is_shown_without_what_a_terminal_obeys(tmp_path):
    assert printable("a\nb\x1b[31m\udcff 구름") == "a\\nb\\x1b[31m\\udcff 구름"
    odd = tmp_path / "p\n\x1b[31m.png"
    odd.write_bytes(b"no picture")
    for path in (odd, tmp_path / "none\x1b.png"):
        (fault,) = picture_faults([path])
        assert fault.isprintable() and "\\x1b" in fault


def test_a_folder_among_the_pictures_says_so(tmp_path):
    (tmp_path / "s.jpg").mkdir()
    (fault,) = picture_faults([tmp_path / "s.jpg"])
    assert fault.endswith("s.jpg: cannot be read as a picture (it is a folder); take it away.")


def test_one_picture_is_one_picture():
    with pytest.raises(ValueError, match="^1 picture cannot be split at a share of 0.167: "):
        split_pictures(np.ones((1, 1), bool), 1 / 6)


def system(root, available, group="", **texts):
    "What Linux says of memory, in a folder; in bytes."
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable: {available // 1024} kB\n")
    (root / "proc/self/cgroup").write_text(group)
    for name, text in texts.items():
        path = root / "sys/fs/cgroup" / name.replace("__", "/").replace("_dot_", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))
    return root


def test_free_memory_is_the_least_of_machine_and_container(tmp_path):
    assert free_memory(tmp_path) is None
    assert free_memory(system(tmp_path / "a", 8 * 2**30)) == 8 * 2**30
    second = dict(x__memory_dot_max=2**30, x__memory_dot_current=2**29)
    second["x__memory_dot_stat"] = f"anon 1\nfile {2**28}\n"
    assert free_memory(system(tmp_path / "b", 2**33, "0::/x\n", **second)) == 3 * 2**28
    second["x__memory_dot_max"] = "max"
    assert free_memory(system(tmp_path / "c", 2**33, "0::/x\n", **second)) == 2**33
    first = dict(memory__memory_dot_limit_in_bytes=2**30, memory__memory_dot_usage_in_bytes=2**28)
    first["memory__memory_dot_stat"] = "total_cache 0\n"
    assert free_memory(system(tmp_path / "d", 2**33, "4:memory:/y\n3:cpu:/\n", **first)) == (
        3 * 2**28
    )


def test_what_cannot_fit_is_refused_before_it_is_read(monkeypatch):
    monkeypatch.setattr(files, "free_memory", lambda: 10**9)
    check_room(10**9, (32, 48), "9 pictures take")
    words = (
        "--size 4096x4096: 100 pictures take about 5.0 GB of memory, and 1.0 GB are free; take a"
    )
    with pytest.raises(ValueError, match=words):
        load_pictures("nowhere", ["a.jpg"] * 100, (4096, 4096))
    monkeypatch.setattr(files, "free_memory", lambda: None)
    check_room(10**15, (32, 48), "9 pictures take")
