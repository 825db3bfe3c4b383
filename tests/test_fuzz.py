"""The fuzz command in small, and what must stay within a bound of memory whatever a file holds."""

import json
import os
import subprocess
import sys
from pathlib import Path

import fuzz
import pytest

# libraries are loaded once; every file is read in a process of its own, a copy of the first
CODE = """
import json, os, sys
from pathlib import Path
import fuzz
for reader, home, file in json.load(sys.stdin):
    child = os.fork()
    if child == 0:
        fuzz.run_case(reader, Path(home), fuzz.READERS[reader].seeds[0])   # loads what it needs
        before = fuzz._peak()
        outcome = fuzz.run_case(reader, Path(home), Path(file).read_bytes(), seconds=None)
        more = round(fuzz._peak() - before)
        print(json.dumps([outcome.accepted, outcome.failures, more]), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("reader", fuzz.READERS)
def test_what_is_not_spoilt_is_read(reader, tmp_path):
    fuzz._ready(tmp_path)
    for content in fuzz.READERS[reader].seeds:
        assert fuzz.run_case(reader, tmp_path, content) == (True, [])


def test_spoilt_files_are_read_or_refused_in_words():
    rows = fuzz.fuzz(660, seed=1, seconds=None)
    assert [text for row in rows for text in row.failures] == []
    assert sum(row.accepted for row in rows) > 50 and all(row.refused for row in rows), rows


def test_a_case_follows_from_its_number():
    for reader in fuzz.READERS:
        assert fuzz.spoilt(reader, 3, 8) == fuzz.spoilt(reader, 3, 8)
    assert len({fuzz.spoilt("coco", 3, case) for case in range(20)}) > 15


@pytest.mark.parametrize(
    "fault, words",
    [
        (lambda home, content: 1 / 0, "ZeroDivisionError"),
        (lambda home, content: print("x"), "printed"),
        (lambda home, content: fuzz.warnings.warn("x"), "warning: x"),
        (lambda home, content: b"\xff".decode(), "UnicodeDecodeError"),
    ],
)
def test_what_must_not_be_is_reported(monkeypatch, tmp_path, fault, words):
    monkeypatch.setitem(fuzz.READERS, "bad", fuzz.Reader([b""], fuzz.spoil_bytes, fault))
    assert words in fuzz.run_case("bad", tmp_path, b"").failures[0]


def _many_corners(count):
    data = fuzz._coco()
    data["annotations"][0]["segmentation"] = [fuzz.CORNERS * (count // 4)]
    return json.dumps(data).encode()


def _png(*chunks):
    from test_files import END, PNG

    return PNG + b"".join(chunks) + END


def _references():
    "A YAML file of twenty lines, each of which names the line before four times."
    lines = ["a: &a0 [x, x, x, x]"]
    for row in range(1, 20):
        lines.append(f"b{row}: &a{row} [{', '.join([f'*a{row - 1}'] * 4)}]")
    return "\n".join([*lines, "names: *a19\n"]).encode()


def _bombs():
    "Reader, content, and the megabytes that reading it may take."
    from test_files import BOMB, HEAD, HUGE, ROWS, chunk

    head, rows = chunk(b"IHDR", HEAD), chunk(b"IDAT", ROWS)
    return {
        "deep JSON": ("coco", b'{"images": ' + b"[" * 100_000, 30),
        "deep closed JSON": ("via", b"[" * 100_000 + b"]" * 100_000, 30),
        "deep YAML": ("yaml", b"names: " + b"[" * 100_000, 90),
        "YAML of references": ("yaml", _references(), 30),
        "a polygon of many corners": ("coco", _many_corners(4_000), 60),
        "a text bomb": ("picture", _png(head, BOMB, rows), 30),
        "a huge picture": ("picture", _png(chunk(b"IHDR", HUGE), rows), 30),
        "a line of commas": ("train", b"Image_Label,EncodedPixels\n" + b"," * 2**25, 120),
    }


def test_memory_is_bounded(tmp_path):
    fuzz._ready(tmp_path)
    bombs = _bombs()
    jobs = []
    for number, (reader, content, _) in enumerate(bombs.values()):
        (tmp_path / str(number)).write_bytes(content)
        jobs.append([reader, str(tmp_path), str(tmp_path / str(number))])
    run = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(jobs),
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])},
    )
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    for (name, (_, _, megabytes)), (accepted, failures, more) in zip(
        bombs.items(), lines, strict=True
    ):
        print(f"{name}: {more} MB")
        assert failures == [] and more < megabytes, (name, failures, more, run.stderr)
        assert accepted == ("polygon" in name), name
