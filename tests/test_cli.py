"The command line: what it answers, what it leaves behind, and one small run up to its report."

import csv
import dataclasses
import inspect
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tables import SMALL_CLOUDS
from typer.testing import CliRunner

from cloudlearn import cli
from cloudlearn.masks import rle_encode
from cloudlearn.runs import CarRun, CloudRun, TrainRun, XrayRun, complete, plain_settings

CLASSES = ("Fish", "Flower", "Gravel", "Sugar")
HEADER = "Image_Label,EncodedPixels\n"


def call(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="cloudlearn")


def refused(*words, out=None):
    """The one sentence of a refused command: the last line on stderr.

    There is nothing on stdout, no traceback, and nothing is written.
    """
    result = call(*words, *(["--out", out] if out else []))
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    *before, last = result.stderr.strip().splitlines()
    assert last.startswith("cloudlearn: "), result.stderr
    assert all(re.fullmatch(r"cloudlearn: [\w -]+ \.\.\.", line) for line in before), result.stderr
    assert not (out and Path(out).exists()), "nothing is written where the input is at fault"
    return last.removeprefix("cloudlearn: ")


def python(code, **environment):
    words = [sys.executable, "-c", code]
    return subprocess.run(words, capture_output=True, text=True, env=os.environ | environment)


# -------------------------------------------------------------------------------------- the program


def test_the_program_is_installed_and_answers():
    program = Path(sys.executable).with_name("cloudlearn")
    run = subprocess.run([str(program), "--help"], capture_output=True, text=True)
    assert run.returncode == 0
    assert {"clouds", "score"} <= set(run.stdout.split())
    assert run.stderr == ""


def test_help_loads_no_heavy_library():
    heavy = "{'torch', 'torchvision', 'lightning', 'pandas', 'matplotlib', 'sklearn'}"
    calls = {
        "--help": 0,
        "clouds --help": 0,
        "score -h": 0,
        "predict --help": 0,
        "predict none.jpg --run none --out none": 2,
        "--version": 0,
        "clouds --size 5": 2,
        "clouds --recall 7": 2,
        "clouds --weights none.pth": 2,
    }
    run = python(f"""
import sys
from cloudlearn.cli import app
for words in {list(calls)}:
    sys.argv[1:] = words.split()
    try: app()
    except SystemExit as end: print(f"{{end.code}}: {{sorted({heavy} & set(sys.modules))}}")""")
    ends = [line for line in run.stdout.splitlines() if line[1:3] == ": "]
    assert ends == [f"{status}: []" for status in calls.values()], run.stdout + run.stderr


OPTIONS = "--data --out --size --epochs --encoder --weights --seed --resume --scenes".split()
CLOUD_WORDS = "--flips --recall --model unet-zero --loss focal-tversky 96x144 160x240".split()


@pytest.mark.parametrize(
    "words, expected",
    [
        (["clouds", "--help"], OPTIONS + CLOUD_WORDS),
        (["xray", "--help"], [*OPTIONS, "small", "--drop-shared", "not a diagnosis"]),
        (["train", "--help"], "DIR --frame whole|native --model upernet --device 256x256".split()),
        (["score", "--help"], ["SUBMISSION.csv", "TRUTH.csv", "masks/CLASS/NAME.png"]),
        (["predict", "--help"], ["SOURCE", "--run", "--out", "--write", "--flips"]),
        (["--version"], ["cloudlearn 0.1.0"]),
    ],
)
def test_help_names_everything(words, expected):
    result = call(*words)
    assert result.exit_code == 0 and all(text in result.stdout for text in expected), result.stdout


@pytest.mark.parametrize(
    "words, quoted",
    [
        (["--nope"], "--nope"),
        (["cluods"], "cluods"),
        (["clouds", "--nope"], "--nope"),
        (["clouds", "--epochs", "many"], "--epochs"),
        (["clouds", "--epochs", "0"], "--epochs"),
        (["clouds", "--seed", "-1"], "--seed"),
        (["clouds", "--scenes", "39"], "--scenes"),
        (["clouds", "--recall", "high"], "--recall"),
        (["clouds", "--loss", "bec"], "bce"),
        (["clouds", "--model", "deeplabv3"], "deeplabv3-zero"),
        (["clouds", "extra"], "extra"),
        (["xray", "--encoder", "resnet34"], "efficientnet-lite0"),
        (["xray", "--scenes", "39"], "--scenes"),
        (["xray", "--epochs", "0"], "--epochs"),
        (["xray", "--size", "64"], "height x width"),
        (["train"], "DIR"),
        (["train", "a", "b"], "b"),
        (["train", "a", "--frame", "half"], "whole, native"),
        (["train", "a", "--scale", "1.5"], "at most 1"),
        (["train", "a", "--batch-size", "1"], "2 at least"),
        (["score", "only-one.csv"], "TRUTH.csv"),
        (["predict", "--run", "a", "--out", "b"], "SOURCE"),
        (["predict", "a.jpg", "--out", "b"], "--run"),
        (["predict", "a.jpg", "--run", "b"], "--out"),
    ],
)
def test_wrong_use_is_status_2_and_quotes_the_word(words, quoted):
    result = call(*words)
    assert result.exit_code == 2
    assert quoted in result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout == ""


def test_main_needs_no_screen(monkeypatch):
    # as a notebook leaves it to its subprocesses
    monkeypatch.setenv("MPLBACKEND", "module://matplotlib_inline.backend_inline")
    with patch.object(cli, "app", return_value=0) as app:
        cli.main()
    assert app.called and os.environ["MPLBACKEND"] == "Agg"


@pytest.mark.parametrize("before, after", [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_told_otherwise(monkeypatch, before, after):
    "Set before anything loads torch, whose threads would otherwise spin while they wait."
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if before:
        monkeypatch.setenv("OMP_WAIT_POLICY", before)
    seen = []
    with patch.object(cli, "app", lambda **_: seen.append(os.environ["OMP_WAIT_POLICY"])):
        cli.main()
    assert seen == [after]


# ----------------------------------------------------------------------------- errors and sentences


@pytest.mark.parametrize(
    "error, words",
    [
        (
            ValueError("train.csv, line 3: twice;\n  remove one"),
            "train.csv, line 3: twice; remove one",
        ),
        (ValueError(), "ValueError"),
        (
            FileNotFoundError(2, "No such file or directory", "a.csv"),
            "a.csv: no such file or directory",
        ),
        (PermissionError(13, "Permission denied", "out"), "out: permission denied"),
        (OSError("disk full"), "disk full"),
    ],
)
def test_a_fault_of_the_input_is_one_sentence(error, words, capsys):
    with pytest.raises(cli.typer.Exit) as end, cli.sentences():
        raise error
    said = capsys.readouterr()
    assert end.value.exit_code == 2
    assert said.out == ""
    assert said.err.startswith(f"cloudlearn: {words}")
    assert said.err.count("\n") == 1


def test_a_fault_of_the_program_keeps_its_traceback(monkeypatch):
    for error in (ZeroDivisionError, KeyError, RuntimeError, AssertionError):
        with pytest.raises(error), cli.sentences():
            raise error("ours")
    monkeypatch.setenv("CLOUDLEARN_TRACEBACK", "1")
    with pytest.raises(ValueError), cli.sentences():
        raise ValueError("wanted")


def pipeline(answer):
    "A stand-in for the skeleton, so that nothing is trained."
    return patch.multiple(cli, execute=answer, pipeline_of=str)


def test_ctrl_c_says_how_to_go_on():
    def stopped(*_):
        raise KeyboardInterrupt

    with pipeline(stopped):
        result = call("clouds")
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    assert "Traceback" not in result.stderr


def test_every_option_reaches_its_field(tmp_path):
    weights, seen = tmp_path / "w.pth", []
    weights.touch()

    def taken(name, run):
        seen.append((name, run))
        return pd.DataFrame({"step": ["raw"], "dice": [0.53125]})

    with pipeline(taken):
        assert call("clouds").exit_code == 0
        places = ["--data", tmp_path, "--out", tmp_path / "o", "--weights", weights]
        numbers = "--size 64x96 --epochs 3 --seed 7 --recall 0.9 --scenes 50".split()
        names = "--encoder resnet34 --resume --flips --loss lovasz --model unet".split()
        result = call("clouds", *places, *numbers, *names)
        cars = "--dilate 0 --classes spacing,Dent --keep-empty --model unet-zero".split()
        assert call("cars", *cars).exit_code == 0
        assert call("xray", "--drop-shared", "--encoder", "small", "--size", "48x32").exit_code == 0
    default = CloudRun(size=(96, 144), epochs=5, batch_size=8)
    clouds = CloudRun(
        data=tmp_path,
        out=tmp_path / "o",
        size=(64, 96),
        epochs=3,
        batch_size=16,
        encoder="resnet34",
        weights=str(weights),
        seed=7,
        resume=True,
        flips=True,
        recall=0.9,
        scenes=50,
        loss="lovasz",
    )
    cars = CarRun(
        size=(96, 144),
        epochs=12,
        dilate=0,
        classes=("dent", "spacing"),
        keep_empty=True,
        model="unet-zero",
    )
    xray = XrayRun(size=(48, 32), epochs=6, encoder="small", drop_shared=True)
    assert seen == [("clouds", default), ("clouds", clouds), ("cars", cars), ("xray", xray)]
    assert "raw 0.5312" in result.stdout
    assert result.stdout.splitlines()[-1] == f"report: {tmp_path / 'o' / 'report.html'}"


@pytest.mark.parametrize(
    "name, settings",
    [("clouds", CloudRun), ("cars", CarRun), ("xray", XrayRun), ("train", TrainRun)],
)
def test_every_field_is_an_option_with_its_default_in_the_help(name, settings):
    said = " ".join(call(name, "--help").stdout.split())
    for item in dataclasses.fields(settings):
        if not item.metadata.get("shown", item.name not in ("progress", "batch_size")):
            continue
        if item.metadata.get("argument"):
            assert f"{item.metadata['metavar']} <path> {item.metadata['help']}" in said
            continue
        assert f"--{item.name.replace('_', '-')}" in said
        for kind in ("scenes", "data"):
            if kind in item.metadata:
                assert f"{cli._shown(item.metadata[kind])} for {kind}" in said


def test_every_option_of_train_reaches_its_field(tmp_path):
    seen = []
    with pipeline(lambda name, run: seen.append((name, run)) or pd.DataFrame({"class": []})):
        assert call("train", tmp_path).exit_code == 0
        names = "--frame native --scale 0.5 --size 64x96 --classes oak,Ash --model fpn".split()
        names += ["--encoder", "resnet18", "--weights", "none", "--group", "(.*)-", "--resume"]
        numbers = "--epochs 3 --batch-size 4 --learning-rate 0.01 --seed 7".split()
        places = ["--device", "cpu", "--precision", "bf16", "--loss", "dice", "--out", "o"]
        assert call("train", tmp_path, *names, *numbers, *places).exit_code == 0
    run = TrainRun(
        data=tmp_path,
        out=Path("o"),
        frame="native",
        scale=0.5,
        size=(64, 96),
        classes=("oak", "Ash"),
        model="fpn",
        encoder="resnet18",
        weights="none",
        group="(.*)-",
        resume=True,
        epochs=3,
        batch_size=4,
        learning_rate=0.01,
        seed=7,
        device="cpu",
        precision="bf16",
        loss="dice",
    )
    assert seen == [("train", TrainRun(data=tmp_path)), ("train", run)]


def test_settings_of_an_earlier_run_are_taken_up_and_what_is_typed_wins(tmp_path):
    before = complete(CloudRun(size=(64, 96), epochs=3, flips=True, seed=4, loss="focal"))
    (tmp_path / "run.json").write_text(json.dumps({"settings": plain_settings(before)}))
    seen = []
    typed = ["--seed", 9, "--out", tmp_path / "o"]
    with pipeline(lambda name, run: seen.append(run) or pd.DataFrame({"step": []})):
        assert call("clouds", "--config", tmp_path / "run.json", *typed).exit_code == 0
    assert seen == [dataclasses.replace(before, seed=9, out=tmp_path / "o")]
    (tmp_path / "bad.json").write_text("{")
    (tmp_path / "other.json").write_text(json.dumps({"settings": {"sise": 3}}))
    bad = refused("clouds", "--config", tmp_path / "bad.json", out=tmp_path / "x")
    assert "give the run.json of an earlier run" in bad
    other = refused("clouds", "--config", tmp_path / "other.json", out=tmp_path / "x")
    assert "no setting 'sise'" in other


# ------------------------------------------------------------------------------------------ options


@given(st.integers(32, 4096), st.integers(32, 4096))
def test_a_size_is_height_first(height, width):
    assert cli.parse_size(f"{height}x{width}") == (height, width)
    assert cli.parse_size(f" {height} X {width} ") == (height, width)


@pytest.mark.parametrize(
    "text",
    [
        "31x240",
        "160x31",
        "160x4097",
        "0x0",
        "160",
        "160x",
        "x240",
        "160*240",
        "-160x240",
        "160x240x3",
        "1.6e2x240",
        "",
        "٣٢x٣٢",
        "²x32",
    ],
)
def test_a_wrong_size_is_refused(text, tmp_path):
    assert refused("clouds", "--size", text, out=tmp_path / "out").startswith(f"--size {text}: ")


@pytest.mark.parametrize("value", ["0", "-0.1", "1.0001", "94", "nan", "inf"])
def test_a_wrong_recall_is_refused(value, tmp_path):
    assert "above 0 and at most 1" in refused("clouds", "--recall", value, out=tmp_path / "out")


@pytest.mark.parametrize("value", ["1e-6", "0.94", "1"])
def test_a_possible_recall_is_taken(value):
    assert complete(CloudRun(recall=float(value))).recall == float(value)


def test_missing_weights_are_refused_at_once(tmp_path):
    said = refused("clouds", "--weights", tmp_path / "lite.pth", out=tmp_path / "out")
    assert "lite.pth: there is no such file" in said and "imagenet, none" in said


def test_an_impossible_folder_for_results_is_refused_at_once(tmp_path):
    (tmp_path / "file").write_text("here")
    for out in (tmp_path / "file", tmp_path / "file" / "deeper"):
        result = call("clouds", "--out", out)
        assert result.exit_code == 2 and "not a folder that can be written to" in result.stderr
    assert (tmp_path / "file").read_text() == "here"


@pytest.mark.parametrize("command", ["clouds", "cars"])
def test_a_network_from_zero_takes_no_encoder(command, tmp_path):
    options = "--model unet-zero --encoder resnet34".split()
    assert "leave --encoder out" in refused(command, *options, out=tmp_path / "run")


def test_the_options_name_every_network_and_loss():
    from cloudlearn.encoders import ZERO
    from cloudlearn.losses import LOSSES

    for settings in (CloudRun, CarRun, TrainRun):
        named = {
            item.name: set(item.metadata["choices"])
            for item in dataclasses.fields(settings)
            if "choices" in item.metadata
        }
        assert named["loss"] == set(LOSSES) and set(ZERO) < named["model"]


def test_a_run_with_a_network_from_zero_and_another_loss(tmp_path):
    options = [*SMALL_CLOUDS, "--model", "deeplabv3-zero", "--loss", "focal"]
    assert call("clouds", "--out", tmp_path / "o", *options).exit_code == 0
    settings = json.loads((tmp_path / "o/run.json").read_text())["settings"]
    assert (settings["model"], settings["loss"]) == ("deeplabv3-zero", "focal")


def test_an_unknown_encoder_is_refused(tmp_path):
    assert "resnet43" in refused(
        "clouds", "--encoder", "resnet43", *SMALL_CLOUDS, out=tmp_path / "out"
    )


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    weights = tmp_path / "lite.pth"
    weights.write_bytes(b"no weights at all")
    assert "lite.pth" in refused(
        "clouds", "--weights", weights, *SMALL_CLOUDS, out=tmp_path / "out"
    )


# --------------------------------------------------------------------------------------------- data


@pytest.fixture
def kaggle(tmp_path):
    "A folder in the competition's layout with thirty small pictures and two to be submitted."
    folder, rng = tmp_path / "kaggle", np.random.default_rng(0)
    for place, count in (("train_images", 30), ("test_images", 2)):
        (folder / place).mkdir(parents=True)
        for i in range(count):
            picture = Image.fromarray(rng.integers(0, 256, (64, 96, 3), np.uint8))
            picture.save(folder / place / f"{place[:2]}{i:02d}.jpg")
    rows = []
    for i, (k, name) in itertools.product(range(30), enumerate(CLASSES)):
        rows.append(f"tr{i:02d}.jpg_{name},{'1 9000' if (i + k) % 5 else ''}\n")
    (folder / "train.csv").write_text(HEADER + "".join(rows))
    return folder


def spoil(folder, old, new, name="train.csv"):
    text = (folder / name).read_text()
    assert old in text
    (folder / name).write_text(text.replace(old, new, 1))


def test_a_good_folder_passes_the_check(kaggle, tmp_path):
    result = call("check", kaggle)
    assert result.exit_code == 0 and "30 labelled pictures, 2 to submit, no faults" in result.stdout


@pytest.mark.parametrize(
    "data, words",
    [
        ("none", "there is no such folder"),
        ("kaggle/train.csv", "there is no such folder"),
        ("kaggle/test_images", "train.csv: there is no such file"),
    ],
)
def test_a_missing_folder(kaggle, tmp_path, data, words):
    said = refused("clouds", "--data", tmp_path / data, out=tmp_path / "out")
    assert words in said and data in said


@pytest.mark.parametrize(
    "old, new, words",
    [
        (
            "Image_Label,EncodedPixels",
            "ImageId,Mask",
            ["train.csv, line 1", "ImageId,Mask", "must be Image_Label,EncodedPixels"],
        ),
        (
            "tr01.jpg_Sugar",
            "tr01.jpg_Suger",
            ["train.csv, line 9", "'Suger'", "Fish, Flower, Gravel, Sugar"],
        ),
        (
            "tr01.jpg_Flower",
            "tr01.jpg_Fish",
            ["train.csv, line 7", "tr01.jpg_Fish", "line 6", "remove one"],
        ),
        ("tr01.jpg_Fish", "tr99.jpg_Fish", ["train.csv", "tr99.jpg"]),
    ],
)
def test_a_fault_in_the_labels_names_file_line_and_mend(kaggle, tmp_path, old, new, words):
    spoil(kaggle, old, new)
    said = refused("clouds", "--data", kaggle, out=tmp_path / "out")
    assert all(word in said for word in words), said


def test_run_lengths_that_do_not_decode(kaggle, tmp_path):
    spoil(kaggle, "tr03.jpg_Fish,1 900", "tr03.jpg_Fish,1 900 5")
    said = refused("clouds", "--data", kaggle, "--size", "32x48", out=tmp_path / "out")
    assert "train.csv" in said and "tr03.jpg_Fish" in said and "run 2" in said


@pytest.mark.parametrize("name", ["train_images/tr05.jpg", "test_images/te01.jpg"])
def test_a_truncated_picture(kaggle, tmp_path, name):
    (kaggle / name).write_bytes((kaggle / name).read_bytes()[:700])
    said = refused("clouds", "--data", kaggle, "--size", "32x48", out=tmp_path / "out")
    assert name in said and "fetch" in said, said


def test_a_picture_that_is_not_there(kaggle, tmp_path):
    (kaggle / "train_images" / "tr05.jpg").unlink()
    assert "tr05.jpg" in refused("clouds", "--data", kaggle, out=tmp_path / "out")


# -------------------------------------------------------------------------------------------- score


def pixels(text):
    numbers, found = [int(number) for number in text.split()], set()
    for start, length in zip(numbers[::2], numbers[1::2]):
        found |= set(range(start - 1, start - 1 + length))
    return found


def shrunk(text):
    "Pixels of 1400x2100 at the centres of 350x525: every fourth row and column from the third."
    found = (divmod(pixel, 1400) for pixel in pixels(text))
    centres = [(column, row) for column, row in found if row % 4 == 2 and column % 4 == 2]
    return {column // 4 * 350 + row // 4 for column, row in centres}


def write(path, table):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.strip().split(","))
        for picture, texts in table.items():
            for name, text in zip(CLASSES, texts):
                writer.writerow((f"{picture}_{name}", text))
    return path


def boxes(rng, pictures, height, width):
    "Random boxes as run lengths, a third of them empty; the first reaches into the last column."

    def one(first):
        mask = np.zeros((height, width), bool)
        top = rng.integers(height // 2)
        left = width - width // 4 if first else rng.integers(width // 2)
        mask[top : top + height // 4, left : left + width // 4] = first or rng.random() < 0.67
        return rle_encode(mask)

    return {f"p{i}.jpg": [one(i == k == 0) for k in range(4)] for i in range(pictures)}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("large", [True, False])
def test_score_equals_a_loop_over_sets_of_pixels(tmp_path, seed, large):
    rng = np.random.default_rng(seed)
    said = boxes(rng, 3, 350, 525)
    true = boxes(rng, 3, 1400, 2100) if large else boxes(rng, 3, 350, 525)
    per_pair = {}
    for picture in said:
        for name, mine, theirs in zip(CLASSES, said[picture], true[picture]):
            a, b = pixels(mine), shrunk(theirs) if large else pixels(theirs)
            per_pair[picture, name] = 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0
    shuffled = dict(sorted(true.items(), key=lambda _: rng.random()))
    answer, truth = write(tmp_path / "said.csv", said), write(tmp_path / "true.csv", shuffled)
    lines = call("score", answer, truth).stdout.splitlines()
    whole = np.mean(list(per_pair.values()))
    assert lines[0] == "3 pictures" and lines[-1] == f"dice {whole:.4f}"
    grid = "1400x2100" if large else "350x525"
    assert lines[1].startswith(f"grid of true.csv: {grid}, ") and "--grid" in lines[1]
    assert len(lines) == 3 + len(CLASSES)
    for name, line in zip(CLASSES, lines[2:-1]):
        wanted = np.mean([per_pair[picture, name] for picture in said])
        assert line.split() == [name, f"{wanted:.4f}"]
    assert 0 < whole < 1


def test_the_last_line_of_score_can_be_cut_out(tmp_path):
    empty = {"a.jpg": [""] * 4}
    for truth, value in ((empty, "1.0000"), ({"a.jpg": ["183750 1", "", "", ""]}, "0.7500")):
        result = call("score", write(tmp_path / "s.csv", empty), write(tmp_path / "t.csv", truth))
        assert re.fullmatch(r"dice \d\.\d{4}", result.stdout.splitlines()[-1])
        assert result.stdout.endswith(f"dice {value}\n")
        assert result.stderr == ""


@pytest.mark.parametrize(
    "said, true, words",
    [
        ({"a.jpg": ["1 5", "", "", ""]}, {"b.jpg": [""] * 4}, ["s.csv", "b.jpg"]),
        ({"a.jpg": ["1 5 2 2", "", "", ""]}, {"a.jpg": [""] * 4}, ["s.csv", "a.jpg_Fish", "run 2"]),
        ({"a.jpg": ["183750 2", "", "", ""]}, {"a.jpg": [""] * 4}, ["s.csv", "a.jpg_Fish"]),
    ],
)
def test_score_refuses_what_it_cannot_compare(tmp_path, said, true, words):
    sentence = refused("score", write(tmp_path / "s.csv", said), write(tmp_path / "t.csv", true))
    assert all(word in sentence for word in words), sentence
    assert "none.csv" in refused("score", tmp_path / "s.csv", tmp_path / "none.csv")


# ------------------------------------------------------------------------------------ one small run


@pytest.fixture(scope="module")
def finished(cloud_command):
    "A small run on generated scenes: its folder and what it said."
    return cloud_command


def test_the_run_prints_its_ladder_and_says_where_the_report_is(finished):
    out, result = finished
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["step", "dice", "low", "high", "dice_present", "dice_empty"]
    assert [line.split()[0] for line in lines[1:-1]] == ["blank", "raw", "area", "recall"]
    assert lines[-1] == f"report: {out / 'report.html'}"
    assert "Traceback" not in result.stderr and "Warning" not in result.stderr


def test_the_ladder_has_its_columns_and_is_a_ladder(finished):
    text = (finished[0] / "ladder.csv").read_text()
    assert text.splitlines()[0] == "step,dice,low,high,dice_present,dice_empty"
    ladder = pd.read_csv(finished[0] / "ladder.csv", index_col="step")
    assert list(ladder.index) == ["blank", "raw", "area", "recall"]
    assert ((ladder["low"] <= ladder["dice"]) & (ladder["dice"] <= ladder["high"])).all()
    assert ladder.to_numpy().min() >= 0
    assert ladder.to_numpy().max() <= 1
    assert ladder.loc["blank", ["dice_present", "dice_empty"]].tolist() == [0, 1]
    empty = ladder.loc["blank", "dice"]  # the share of empty pairs
    both = empty * ladder["dice_empty"] + (1 - empty) * ladder["dice_present"]
    assert np.allclose(ladder["dice"], both)


def test_the_record_of_the_run(finished):
    record = json.loads((finished[0] / "run.json").read_text())
    assert {"settings", "versions", "seed", "data", "seconds"} <= set(record)
    assert record["settings"]["size"] == [32, 48]
    assert record["settings"]["epochs"] == 1
    assert record["settings"]["batch_size"] == 8
    assert record["seed"] == record["settings"]["seed"] == 0
    assert "40 generated scenes" in str(record["data"])
    assert record["versions"]["torch"]
    assert all(value >= 0 for value in record["seconds"].values())
    assert len(record["seconds"]) >= 4


def test_runs_are_collected_and_a_setting_that_an_earlier_version_did_not_record_stays_open(
    finished, tmp_path
):
    from cloudlearn.clouds.run import collect_runs

    record = json.loads((finished[0] / "run.json").read_text())
    del record["settings"]["batch_size"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    table = collect_runs([finished[0], tmp_path])
    assert table["batch_size"].dropna().tolist() == [8] * 4
    assert table["batch_size"].isna().tolist() == [False] * 4 + [True] * 4
    assert table["step"].tolist() == ["blank", "raw", "area", "recall"] * 2
    assert table["dice"][:4].tolist() == table["dice"][4:].tolist()


def test_the_report_and_the_weights_are_there(finished):
    out, _ = finished
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 4
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for name in ("raw", "recall", "efficientnet-lite0", "presence_threshold"):
        assert name in page
    for name in ("segment", "presence"):
        assert (out / f"{name}-last.safetensors").stat().st_size > 1e6
        assert json.loads((out / f"{name}-last.json").read_text())
    assert not list(out.rglob("*.partial")) and not list(out.glob("*.ckpt"))


@pytest.mark.parametrize("name", ["first_submission.csv", "final_submission.csv"])
def test_the_submissions_are_valid_for_the_test_pictures(finished, name):
    out, _ = finished
    sample = (out / "scenes" / "sample_submission.csv").read_text().splitlines()
    wanted = [line.split(",")[0] for line in sample[1:]]
    lines = (out / name).read_text().splitlines()
    assert lines[0] == HEADER.strip() and [line.split(",")[0] for line in lines[1:]] == wanted
    pictures = {path.name for path in (out / "scenes" / "test_images").iterdir()}
    assert {pair.rsplit("_", 1)[0] for pair in wanted} == pictures
    for line in lines[1:]:
        numbers = [int(number) for number in line.split(",")[1].split()]
        starts, ends = np.array(numbers[::2]), np.array(numbers[::2]) + numbers[1::2]
        assert len(numbers) % 2 == 0
        assert (starts[1:] >= ends[:-1]).all()
        assert not numbers or starts[0] >= 1 and ends[-1] - 1 <= 350 * 525


def test_the_final_submission_only_empties_pairs_of_the_first(finished):
    def masks_in(name):
        lines = (finished[0] / name).read_text().splitlines()[1:]
        return [line.split(",")[1] for line in lines]

    first, final = masks_in("first_submission.csv"), masks_in("final_submission.csv")
    assert all(after in ("", before) for before, after in zip(first, final, strict=True))


def test_score_agrees_with_what_the_run_recorded(finished):
    out, _ = finished
    scored = json.loads((out / "run.json").read_text())["scored"]
    for name in ("first_submission", "final_submission"):
        result = call("score", out / f"{name}.csv", out / "scenes" / "test_labels.csv")
        assert result.stdout.splitlines()[-1] == f"dice {scored[name]:.4f}"


def results(out):
    return {path.name: path.read_bytes() for path in out.glob("*.csv") if "log" not in path.name}


def test_resume_after_the_end_gives_the_same_results(finished):
    out, _ = finished
    before = results(out)
    assert call("clouds", "--out", out, *SMALL_CLOUDS, "--resume").exit_code == 0
    assert results(out) == before and {"ladder.csv", "first_submission.csv"} <= set(before)


@pytest.mark.parametrize("change", [["--epochs", "2"], ["--seed", "1"], ["--loss", "focal"]])
def test_resume_with_other_settings_is_refused_and_harms_nothing(finished, change):
    out, _ = finished
    before = results(out) | {"report.html": (out / "report.html").read_bytes()}
    result = call("clouds", "--out", out, *SMALL_CLOUDS, *change, "--resume")
    last = result.stderr.strip().splitlines()[-1]
    assert result.exit_code == 2
    assert last.startswith("cloudlearn: ")
    assert change[0].lstrip("-") in last
    assert "Traceback" not in result.stderr
    # a refused run leaves the finished one as it is
    assert results(out) | {"report.html": (out / "report.html").read_bytes()} == before


# -------------------------------------------------------------------------------------- experiments

EXPERIMENTS = [
    "active",
    "baseline",
    "border",
    "car_models",
    "cloud_models",
    "clusters",
    "dilation",
    "empty",
    "encoders",
    "imbalance",
    "losses",
    "overlap",
    "padding",
    "reach",
    "regime",
    "shift",
    "shrink",
    "skip",
    "styles",
    "targets",
    "tasks",
    "windows",
]


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_listed_experiment_is_a_function_of_seeds(name):
    parameters = inspect.signature(cli.find_experiment(name)).parameters
    assert next(iter(parameters)) == "seeds"
    for parameter in parameters.values():
        assert parameter.default is not inspect.Parameter.empty


def test_the_list_of_experiments_is_whole():
    words = f"no experiment 'tea'; choose one of {', '.join(EXPERIMENTS)}$"
    with pytest.raises(ValueError, match=words):
        cli.find_experiment("tea")


@pytest.mark.parametrize(
    "typed, said",
    [
        (["clouds", "--epochs", "x"], "'--epochs'"),
        (["clouds", "--nope"], "--nope"),
        (["nope"], "No such command 'nope'"),
        (["score"], "Missing argument"),
        (["clouds", "--data"], "'--data' requires an argument"),
    ],
)
def test_a_slip_in_typing_is_one_sentence(monkeypatch, capsys, typed, said):
    monkeypatch.setattr(sys, "argv", ["cloudlearn", *typed])
    monkeypatch.setattr(cli, "stop_on_sigterm", lambda: None)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and line.startswith("cloudlearn: ")
    assert said in line and line.endswith("--help` shows what there is.")


def test_the_command_ends_with_the_status_of_its_work(monkeypatch, capsys):
    monkeypatch.setattr(cli, "stop_on_sigterm", lambda: None)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(sys, "argv", ["cloudlearn", "--version"])
    cli.main()
    assert capsys.readouterr().out.startswith("cloudlearn ")
    monkeypatch.setattr(sys, "argv", ["cloudlearn", "check", "/nowhere/at/all"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2


def test_nothing_typed_shows_the_help(monkeypatch, capsys):
    monkeypatch.setattr(cli, "stop_on_sigterm", lambda: None)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(sys, "argv", ["cloudlearn"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and lines[0].startswith("Usage: ")
    assert any(line.strip().startswith("predict ") for line in lines)


# ---------------------------------------------------------------- grids, classes, signs, warnings


def test_the_grid_of_the_truth_can_be_said(tmp_path):
    "One pixel on either grid: the run of two pixels is one of the small grid, or none of them."
    answer = write(tmp_path / "s.csv", {"a.jpg": ["1 1", "", "", ""]})
    truth = write(tmp_path / "t.csv", {"a.jpg": ["1 2", "", "", ""]})
    guessed = call("score", answer, truth).stdout.splitlines()
    assert guessed[0] == "1 picture" and guessed[1].startswith("grid of t.csv: 350x525, by ")
    small = call("score", answer, truth, "--grid", "350x525").stdout.splitlines()
    assert small[1] == "grid of t.csv: 350x525, as said" and small[-1] == guessed[-1]
    large = call("score", answer, truth, "--grid", "1400x2100").stdout.splitlines()
    assert large[1] == "grid of t.csv: 1400x2100, as said" and large[-1] == "dice 0.7500"
    assert "choose 1400x2100 or 350x525" in refused("score", answer, truth, "--grid", "9x9")
    said = refused("score", tmp_path, tmp_path, "--grid", "350x525")
    assert "have a size of their own" in said


def test_a_fault_of_the_truth_names_its_line(tmp_path):
    answer = write(tmp_path / "s.csv", {"a.jpg": [""] * 4})
    truth = write(tmp_path / "t.csv", {"a.jpg": ["1 5", "1 2 3", "", ""]})
    assert "t.csv, line 3: a.jpg_Flower: run 2 of 2" in refused("score", answer, truth)


def test_check_takes_the_classes_that_its_sentence_asks_for(tmp_path, kaggle):
    from cloudlearn.scenes.cars import write_car_folder

    place = write_car_folder(tmp_path / "d", (1, 1, 1), (2, 2, 2), shape=(48, 64))
    for name in ("dent", "scratch"):
        (place / name).rename(tmp_path / name)
    assert "name only the classes that are there" in call("check", place).stderr
    found = call("check", place, "--classes", "spacing")
    assert found.exit_code == 0 and "6 photos, no faults" in found.stdout
    assert "leave the option out" in refused("check", kaggle, "--classes", "Fish")


def test_nothing_that_a_terminal_obeys_is_printed(tmp_path):
    home = tmp_path / "d\x1b[31m\n"
    (home / "images").mkdir(parents=True)
    (home / "masks" / "a").mkdir(parents=True)
    for row in range(4):
        blank = Image.new("L", (8, 8), 255)
        blank.save(home / "images" / f"{row}\x1b.png")
        blank.save(home / "masks" / "a" / f"{row}.png")
    for words in (
        ["check", home],
        ["check", home / "none"],
        ["score", home / "none", home],
        ["compare", home, home],
        ["train", home, "--out", tmp_path / "o"],
    ):
        result = call(*words)
        assert result.exit_code == 2 and "\x1b" not in result.output, words
        assert "\\x1b" in result.stderr, words


def test_the_command_shows_no_warnings_of_libraries_unless_asked(monkeypatch):
    import warnings

    monkeypatch.setattr(cli, "app", lambda **_: warnings.warn("of a library", stacklevel=1))
    for asked, seen in (([], 0), (["default"], 1)):
        monkeypatch.setattr(sys, "warnoptions", asked)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            cli.main()
        assert len(warned) == seen


@pytest.mark.parametrize("name", ["clouds", "cars", "xray"])
def test_a_size_that_cannot_fit_is_refused(monkeypatch, tmp_path, name):
    monkeypatch.setattr("cloudlearn.files.free_memory", lambda: 2 * 10**9)
    words = [name, "--scenes", "40", "--size", "4096x4096", "--weights", "none"]
    result = call(*words, "--out", tmp_path / "o")
    last = result.stderr.splitlines()[-1]
    assert result.exit_code == 2
    assert re.match(r"cloudlearn: --size 4096x4096: .* take about [0-9.]+ GB of memory", last), last
