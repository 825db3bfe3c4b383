"Prediction: equal to what the run wrote, kept through every interruption, refused in a sentence."

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco_masks
from tables import call, refused

from cloudlearn import prediction
from cloudlearn.files import list_pictures, read_picture
from cloudlearn.formats import read_labelled, read_mask
from cloudlearn.masks import resize_mask, rle_decode
from cloudlearn.prediction import (
    JOURNAL,
    class_scores,
    find_sources,
    load_run,
    mask_scores,
    predict_files,
    read_journal,
)
from cloudlearn.runs import CarRun, XrayRun, execute, open_run
from cloudlearn.submissions import read_labels
from cloudlearn.training import OneByOne, predict_pictures


@pytest.fixture(scope="module")
def clouds(cloud_run):
    "A small run of the clouds; read only."
    return cloud_run


@pytest.fixture(scope="module")
def cars(tmp_path_factory):
    "A small run of the cars; read only."
    out = tmp_path_factory.mktemp("runs") / "cars"
    run = CarRun(out=out, scenes=4, size=(32, 48), epochs=1, progress=False)
    execute(prediction.pipeline_of("cars"), run)
    return out


@pytest.fixture
def photos(tmp_path):
    "Six pictures of six sizes."
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(6):
        size = (40 + 7 * number, 60 - 5 * number, 3)
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / f"p{number}.png")
    return folder


def results(out):
    "All files for the user by their path, with their bytes."
    files = [path for path in Path(out).rglob("*") if path.is_file()]
    kept = [path for path in files if path.name != "manifest.jsonl" and path.name[0] != "."]
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in kept}


def opens(out):
    "Whether the folder can be claimed again: nothing foreign, nothing changed in it."
    with open_run(out):
        return True


# -------------------------------------------------------------------------- as the run itself did


def test_clouds_answer_as_the_final_submission(clouds, tmp_path):
    test = clouds / "scenes" / "test_images"
    done = predict_files([test], clouds, tmp_path / "out", progress=False)
    ours = read_labels(tmp_path / "out" / "final_submission.csv")
    theirs = read_labels(clouds / "final_submission.csv")
    assert sorted(theirs.index) == list(ours.index) == list_pictures(test)
    pd.testing.assert_frame_equal(ours, theirs.loc[ours.index])
    assert done.pictures == len(theirs) and done.before == 0 and not done.unreadable
    assert done.shown == {name: int((theirs[name] != "").sum()) for name in theirs}
    for entry in read_journal(tmp_path / "out"):
        shape = entry["height"], entry["width"]
        for name, found in entry["classes"].items():
            mask = read_mask(tmp_path / "out" / "masks" / name / f"{entry['name']}.png", shape)
            grid = rle_decode(theirs.loc[entry["picture"], name], (350, 525))
            np.testing.assert_array_equal(mask, resize_mask(grid, shape))
            np.testing.assert_array_equal(mask, rle_decode(found["runs"], shape))


def test_one_picture_alone_is_answered_as_among_others(clouds, tmp_path):
    test = clouds / "scenes" / "test_images"
    name = list_pictures(test)[2]
    predict_files([test / name], clouds, tmp_path / "out", progress=False)
    ours = read_labels(tmp_path / "out" / "final_submission.csv")
    theirs = read_labels(clouds / "final_submission.csv")
    pd.testing.assert_frame_equal(ours, theirs.loc[[name]])


def test_company_changes_no_digit(clouds):
    "What `OneByOne` is for: a batch adds in another order, and a run writes what it says alone."
    pictures = np.random.default_rng(2).integers(0, 256, (5, 32, 48, 3), np.uint8)
    for network in load_run(clouds).networks:
        alone = np.concatenate([predict_pictures(network, picture[None]) for picture in pictures])
        together = predict_pictures(OneByOne(network), pictures)
        np.testing.assert_array_equal(alone, together)
        np.testing.assert_allclose(predict_pictures(network, pictures), alone, atol=1e-4)


def test_cars_answer_as_the_masks_of_the_run(cars, tmp_path):
    tested = [sample for sample in read_labelled(cars / "scenes").samples if sample.split == "test"]
    assert tested
    home = tmp_path / "photos"
    home.mkdir()
    for sample in tested:
        shutil.copy(sample.picture, home / f"{sample.name}{sample.picture.suffix}")
    done = predict_files([home], cars, tmp_path / "out", progress=False)
    assert done.pictures == len(tested)
    masks = sorted((cars / "masks").rglob("*.png"))
    assert len(masks) == 3 * len(tested)
    for path in masks:
        ours = tmp_path / "out" / path.relative_to(cars)
        with Image.open(ours) as mine, Image.open(path) as theirs:
            np.testing.assert_array_equal(np.asarray(mine), np.asarray(theirs))
            assert set(np.unique(mine)) <= {0, 255}
    assert len(list((tmp_path / "out" / "masks").rglob("*.png"))) == len(masks)
    assert not (tmp_path / "out" / "masks.csv").exists()


@pytest.mark.parametrize("flips", [False, True])
def test_arrays_are_answered_as_files_are(cars, photos, tmp_path, flips):
    predict_files([photos], cars, tmp_path / "out", flips=flips, progress=False)
    loaded = load_run(cars)
    paths = [photos / name for name in list_pictures(photos)]
    pictures = [np.asarray(Image.open(path)) for path in paths]
    answers = loaded.answers(flips)
    for path, picture, masks in zip(paths, pictures, loaded.predict(pictures, flips)):
        assert masks.dtype == bool and masks.shape == (3, *picture.shape[:2])
        probs = answers.probabilities(picture)
        assert probs.dtype == np.float32 and probs.shape == masks.shape
        assert 0 <= probs.min() and probs.max() <= 1
        for name, mask in zip(answers.classes, masks):
            found = read_mask(
                tmp_path / "out" / "masks" / name / path.with_suffix(".png").name, picture.shape[:2]
            )
            np.testing.assert_array_equal(found, mask)


def test_flips_change_the_maps_of_clouds(clouds):
    picture = np.random.default_rng(1).integers(0, 256, (50, 70, 3), np.uint8)
    loaded = load_run(clouds)
    plain, turned = (loaded.answers(flips).probabilities(picture) for flips in (False, True))
    assert abs(plain - turned).max() > 1e-3
    flipped = loaded.answers(True).probabilities(picture[:, ::-1])
    np.testing.assert_allclose(flipped[..., ::-1], turned, atol=1e-4)


# ------------------------------------------------------------------------------- what is written


def test_coco_and_table_say_what_the_masks_say(cars, photos, tmp_path):
    out = tmp_path / "out"
    predict_files([photos], cars, out, write="csv, coco,png", progress=False)
    coco = json.loads((out / "masks.json").read_text())
    names = {row["id"]: row["name"] for row in coco["categories"]}
    images = {row["id"]: row for row in coco["images"]}
    assert list(names.values()) == ["dent", "scratch", "spacing"]
    assert [row["file_name"] for row in images.values()] == list_pictures(photos)
    seen = set()
    for row in coco["annotations"]:
        image = images[row["image_id"]]
        shape = image["height"], image["width"]
        packed = coco_masks.frPyObjects(row["segmentation"], *shape)
        mask = coco_masks.decode(packed).astype(bool)
        path = out / "masks" / names[row["category_id"]] / image["file_name"]
        np.testing.assert_array_equal(mask, read_mask(path, shape))
        assert row["area"] == mask.sum() and row["bbox"] == coco_masks.toBbox(packed).tolist()
        seen.add((image["file_name"], names[row["category_id"]]))
    assert seen, "the network found something somewhere"
    with open(out / "masks.csv", newline="") as file:
        head, *rows = csv.reader(file)
    assert head == ["picture", "class", "pixels", "share", "run lengths"]
    assert len(rows) == 3 * 6
    for picture, name, pixels, share, runs in rows:
        mask = read_mask(
            out / "masks" / name / picture, np.asarray(Image.open(photos / picture)).shape[:2]
        )
        np.testing.assert_array_equal(rle_decode(runs, mask.shape), mask)
        assert int(pixels) == mask.sum() and float(share) == pytest.approx(mask.mean(), abs=1e-6)
        assert ((picture, name) in seen) == mask.any()


@pytest.mark.parametrize(
    "write, files",
    [
        ("png", {"masks"}),
        ("coco", {"masks.json"}),
        ("csv", {"final_submission.csv"}),
        (None, {"masks", "masks.json", "final_submission.csv"}),
    ],
)
def test_only_what_was_asked_for_is_written(clouds, photos, tmp_path, write, files):
    predict_files([photos], clouds, tmp_path / "out", write=write, progress=False)
    found = {path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."}
    assert found == files | {JOURNAL, "manifest.jsonl"}


def test_sources_are_files_folders_and_patterns(photos, tmp_path):
    whole = [path.name for path in find_sources([photos])]
    assert whole == [f"p{number}.png" for number in range(6)]
    assert find_sources([photos / "p1.png", f"{photos}/p[12].png"]) == [
        photos / "p1.png",
        photos / "p2.png",
    ]
    (photos / "deeper").mkdir()
    shutil.copy(photos / "p1.png", photos / "deeper" / "q.png")
    assert [path.name for path in find_sources([photos])] == whole
    assert find_sources([f"{photos}/**/q.png"]) == [photos / "deeper" / "q.png"]


# ------------------------------------------------------------------------------ started once more


CHILD = """
import sys
from cloudlearn.prediction import predict_files
predict_files([sys.argv[1]], sys.argv[2], sys.argv[3], progress=False)
"""


def test_killed_and_started_again_it_ends_with_the_same_files(cars, photos, tmp_path):
    for number in range(18):
        shutil.copy(photos / f"p{number % 6}.png", photos / f"more{number}.png")
    words = [sys.executable, "-c", CHILD, str(photos), str(cars), str(tmp_path / "killed")]
    process = subprocess.Popen(words)
    while process.poll() is None and len(list(read_journal(tmp_path / "killed"))) < 3:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it was quicker than the signal"
    found = list(read_journal(tmp_path / "killed"))
    times = {
        path: path.stat().st_mtime_ns
        for entry in found
        for path in (tmp_path / "killed" / "masks").glob(f"*/{entry['name']}.png")
    }
    again = predict_files([photos], cars, tmp_path / "killed", progress=False)
    whole = predict_files([photos], cars, tmp_path / "whole", progress=False)
    assert 3 <= len(found) == again.before < again.pictures == whole.pictures == 24
    assert all(path.stat().st_mtime_ns == then for path, then in times.items()), "done twice"
    assert results(tmp_path / "killed") == results(tmp_path / "whole")
    assert not list((tmp_path / "killed").rglob("*.tmp")) and opens(tmp_path / "killed")


def test_a_torn_last_line_is_ignored(cars, photos, tmp_path):
    out = tmp_path / "out"
    predict_files([photos], cars, out, progress=False)
    before = results(out)
    for torn in (b'{"name": "p9", "sha', b"\x00\x00", b'{"name": "p9"}'):
        with open(out / JOURNAL, "ab") as file:
            file.write(torn)
        prediction._mend_journal(out)
        assert results(out) == before and opens(out)
    with open(out / JOURNAL, "ab") as file:
        file.write(torn)
    assert predict_files([photos], cars, out, progress=False).before == 6
    assert results(out) == before and opens(out)


class Watched:
    "Counts the pictures that are really answered for."

    def __init__(self, monkeypatch):
        self.seen = 0
        answer = prediction._answer

        def counted(*words, **more):
            self.seen += 1
            return answer(*words, **more)

        monkeypatch.setattr(prediction, "_answer", counted)

    def __call__(self, *words, **more):
        self.seen = 0
        predict_files(*words, **more, progress=False)
        return self.seen


def test_only_what_is_new_or_changed_is_done_again(cars, photos, tmp_path, monkeypatch):
    work, out = Watched(monkeypatch), tmp_path / "out"
    run = tmp_path / "run"
    shutil.copytree(cars, run)
    assert work([photos / "p0.png"], run, out) == 1
    assert work([photos], run, out) == 5
    Image.fromarray(np.full((30, 30, 3), 90, np.uint8)).save(photos / "p3.png")
    next((out / "masks" / "dent").glob("p1.png")).unlink()
    assert work([photos], run, out) == 2
    assert work([photos], run, out, flips=True) == 6
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps(record | {"trained": "anew"}))
    assert work([photos], run, out, flips=True) == 6
    shutil.move(run, tmp_path / "moved")
    shutil.move(photos, tmp_path / "photos too")
    assert work([tmp_path / "photos too"], tmp_path / "moved", out, flips=True) == 0
    assert len(list(read_journal(out))) == 6 and opens(out)


def test_an_interrupted_command_keeps_what_is_done(cars, photos, tmp_path, monkeypatch):
    answer, out = prediction._answer, tmp_path / "out"
    calls = []

    def stopped(*words, **more):
        calls.append(words)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return answer(*words, **more)

    monkeypatch.setattr(prediction, "_answer", stopped)
    result = call("predict", photos, "--run", cars, "--out", out)
    assert result.exit_code == 130
    assert result.stderr.splitlines()[-1].endswith("The same command goes on where it was.")
    assert opens(out) and len(list(read_journal(out))) == 3
    result = call("predict", photos, "--run", cars, "--out", out)
    assert result.exit_code == 0 and "6 pictures, 3 of them done before" in result.stdout
    assert result.stdout.splitlines()[-1] == f"results: {out}"
    assert "pictures/s" in result.stderr and "3/3" in result.stderr, "the bar is of today's work"


# ----------------------------------------------------------------------------------- what is wrong


def test_an_unreadable_picture_stops_nothing(cars, photos, tmp_path):
    (photos / "zebra\x1b[31m.jpg").write_bytes(b"no picture")
    (photos / "folder.png").mkdir()
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (9, 9)).save(photos / "turned.jpg", exif=turned)
    out = tmp_path / "out"
    result = call("predict", photos, "--run", cars, "--out", out)
    assert result.exit_code == 0, result.output
    assert "6 pictures, 0 of them done before" in result.stdout
    lines = (out / "unreadable.txt").read_text().splitlines()
    assert len(lines) == 3
    for line, word in zip(lines, ("folder.png", "save it upright", "zebra\\x1b[31m.jpg")):
        assert word in line and line in result.stderr
    assert "\x1b" not in "".join(lines) and len(list((out / "masks" / "dent").iterdir())) == 6
    for path in (photos / "zebra\x1b[31m.jpg", photos / "turned.jpg"):
        path.unlink()
    (photos / "folder.png").rmdir()
    (photos / "p0.png").write_bytes(b"broken since")
    result = call("predict", photos, "--run", cars, "--out", out)
    assert "5 pictures, 5 of them done before" in result.stdout and result.exit_code == 0
    assert not (out / "masks" / "dent" / "p0.png").exists()
    assert "p0.png" not in (out / "masks.json").read_text()
    (photos / "p0.png").unlink()
    assert call("predict", photos, "--run", cars, "--out", out).exit_code == 0
    assert not (out / "unreadable.txt").exists() and opens(out)


def test_no_picture_at_all_is_status_2(cars, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"")
    result = call("predict", tmp_path / "photos", "--run", cars, "--out", tmp_path / "out")
    assert result.exit_code == 2 and "a.png" in result.stderr
    assert "a.png" in (tmp_path / "out" / "unreadable.txt").read_text()
    assert opens(tmp_path / "out")


def test_two_pictures_of_one_name_are_refused(cars, photos, tmp_path):
    shutil.copy(photos / "p1.png", photos / "p1.jpg")
    out = tmp_path / "out"
    said = refused("predict", photos, "--run", cars, "--out", out)
    assert "p1.jpg" in said and "p1.png" in said and not out.exists()
    (photos / "p1.jpg").unlink()
    predict_files([photos], cars, out, progress=False)
    before = results(out)
    shutil.copytree(photos, tmp_path / "others")
    Image.new("RGB", (9, 9)).save(tmp_path / "others" / "p0.png")
    said = refused("predict", tmp_path / "others", "--run", cars, "--out", out)
    assert str(photos / "p0.png") in said and "others" in said and results(out) == before


def test_what_cannot_work_is_refused_before_the_first_picture(cars, clouds, photos, tmp_path):
    out = tmp_path / "out"
    words = ("predict", photos, "--run", cars, "--out", out)
    assert "choose from png, coco, csv" in refused(*words, "--write", "gif")
    assert "give the folder of a finished run" in refused(
        "predict", photos, "--run", photos, "--out", out
    )
    (tmp_path / "broken").mkdir()
    for text in ("{", "[]", "{}"):
        (tmp_path / "broken" / "run.json").write_text(text)
        said = refused("predict", photos, "--run", tmp_path / "broken", "--out", out)
        assert "run.json: it names no pipeline" in said
    assert "no such file or folder" in refused(
        "predict", tmp_path / "none", "--run", cars, "--out", out
    )
    (tmp_path / "empty").mkdir()
    assert "no picture in this folder" in refused(
        "predict", tmp_path / "empty", "--run", cars, "--out", out
    )
    shutil.copy(photos / "p0.png", tmp_path / "empty" / "a,b.png")
    assert "leave csv out" in refused("predict", tmp_path / "empty", "--run", clouds, "--out", out)
    for place, word in ((photos / "out", "lies in"), (tmp_path, "holds"), (photos, "is")):
        assert f"it {word} " in refused("predict", photos, "--run", cars, "--out", place)
    assert "it lies in" in refused("predict", photos, "--run", cars, "--out", cars / "new")
    assert not out.exists() and not (photos / "out").exists()


def test_a_folder_of_somebody_else_is_refused(cars, clouds, photos, tmp_path):
    out = tmp_path / "out"
    predict_files([photos], cars, out, progress=False)
    before = results(out)
    words = ("predict", photos, "--out", out, "--run")
    assert "begun with --write png,coco" in refused(*words, cars, "--write", "png")
    assert "holds answers of" in refused(*words, clouds, "--write", "png,coco")
    (out / "letter.txt").write_text("Dear all")
    assert "letter.txt was not written by a run" in refused(*words, cars)
    (out / "letter.txt").unlink()
    with open_run(out):
        assert "another run is writing there" in refused(*words, cars)
    assert results(out) == before
    copied = tmp_path / "another run"
    shutil.copytree(clouds, copied)
    before = results(copied)
    assert "what another command wrote" in refused(
        "predict", photos, "--run", cars, "--out", copied
    )
    assert results(copied) == before


def test_x_rays_are_refused(photos, tmp_path):
    "Before any network is loaded: a record is enough."
    run = tmp_path / "xray"
    run.mkdir()
    (run / "run.json").write_text(json.dumps({"pipeline": "xray", "settings": {}}))
    said = refused("predict", photos, "--run", run, "--out", tmp_path / "out")
    assert "draws no masks" in said and not (tmp_path / "out").exists()
    loaded = prediction.LoadedRun(prediction.pipeline_of("xray"), XrayRun(out=run), None, None, {})
    with pytest.raises(ValueError, match="draws no masks"):
        loaded.predict([])


@pytest.mark.parametrize(
    "picture, said",
    [
        (np.zeros((8, 8, 3)), "float64"),
        (np.zeros((8, 8), np.uint8), r"uint8 \(8, 8\)"),
        (np.zeros((0, 8, 3), np.uint8), r"\(0, 8, 3\)"),
        ("a.jpg", "got str"),
    ],
)
def test_an_array_that_is_no_picture_is_refused(cars, picture, said):
    with pytest.raises(ValueError, match=said):
        load_run(cars).predict([picture])


# ------------------------------------------------------------------------------------------- score


def save_mask(path, mask):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(mask, np.uint8) * 255).save(path)


@pytest.fixture
def pair(tmp_path):
    "Two folders of masks with scores that can be counted on fingers."
    rng = np.random.default_rng(3)
    said, drawn = tmp_path / "said", tmp_path / "drawn"
    table = {}
    for name in ("dent", "scratch"):
        for picture in "abcd":
            both = rng.random((2, 6, 9)) < 0.4
            both[0] &= picture != "d"
            both[1] &= picture not in "cd"
            save_mask(said / "masks" / name / f"{picture}.png", both[0])
            save_mask(drawn / name / f"{picture}.png", both[1])
            shared, union = (both[0] & both[1]).sum(), (both[0] | both[1]).sum()
            table[name, picture] = (
                (2 * shared / both.sum(), shared / union) if union else (1.0, 1.0)
            )
    return said, drawn, table


def test_score_of_folders_by_hand(pair):
    said, drawn, table = pair
    result = call("score", said, drawn)
    assert result.exit_code == 0, result.output
    head, *rows, last = result.stdout.splitlines()
    assert head.split() == "class pictures present dice low high iou".split()
    for name, row in zip(("dent", "scratch"), rows, strict=True):
        both = np.array([table[name, picture] for picture in "abcd"])
        cells = row.split()
        assert cells[:3] == [name, "4", "2"]
        assert float(cells[3]) == pytest.approx(both[:, 0].mean(), abs=1e-4)
        assert float(cells[6]) == pytest.approx(both[:, 1].mean(), abs=1e-4)
        assert float(cells[4]) <= float(cells[3]) <= float(cells[5])
    whole = np.mean([dice for dice, _ in table.values()])
    assert last == f"dice {whole:.4f}"


def test_a_folder_scores_1_against_itself(pair):
    pairs, notes = mask_scores(pair[0], pair[0])
    assert (class_scores(pairs)[["dice", "low", "high", "iou"]] == 1).all(axis=None) and not notes


def test_what_nobody_labelled_is_left_out(pair):
    said, drawn, table = pair
    shutil.rmtree(drawn / "dent")
    (drawn / "scratch" / "a.png").unlink()
    lines = call("score", said, drawn).stdout.splitlines()
    assert lines[0] == "left out: dent, for which there are no labels."
    assert lines[1].startswith("left out: 1 of 4 pictures, which are not labelled for scratch")
    whole = np.mean([table["scratch", picture][0] for picture in "bcd"])
    assert lines[-1] == f"dice {whole:.4f}"


def test_score_refuses_folders_that_do_not_fit(pair, tmp_path):
    said, drawn, _ = pair
    assert "two folders" in refused("score", said, drawn / "dent" / "a.png")
    assert "two folders" in refused("score", drawn / "dent" / "a.png", said)
    assert "no such folder" in refused("score", said, tmp_path / "none")
    (tmp_path / "empty").mkdir()
    assert "no masks in it" in refused("score", tmp_path / "empty", drawn)
    (said / "masks" / "dent" / "b.png").unlink()
    sentence = refused("score", said, drawn)
    assert "dent" in sentence and "first b" in sentence
    shutil.rmtree(said / "masks" / "dent")
    assert "the class dent" in refused("score", said, drawn)
    shutil.rmtree(drawn / "dent")
    save_mask(drawn / "scratch" / "a.png", np.ones((5, 9)))
    sentence = refused("score", said, drawn)
    assert "9 x 6" in sentence and "9 x 5" in sentence
    Image.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9)).save(drawn / "scratch" / "a.png")
    assert "grey values" in refused("score", said, drawn)


def test_answers_are_scored_with_the_labels_of_the_run(cars, tmp_path):
    "Predict, then score: what the run says of its test photos comes out of the two commands."
    tested = [sample for sample in read_labelled(cars / "scenes").samples if sample.split == "test"]
    for sample in tested:
        shape = np.asarray(Image.open(sample.picture)).shape[:2]
        for name, path in sample.labels.items():
            save_mask(tmp_path / "drawn" / name / f"{sample.name}.png", read_mask(path, shape))
    pairs, notes = mask_scores(cars, tmp_path / "drawn")
    table = class_scores(pairs).set_index("class")
    assert set(table.index) <= {"dent", "scratch", "spacing"}
    for name, row in table.iterrows():
        labelled = [sample for sample in tested if name in sample.labels]
        assert row["pictures"] == len(labelled)


def test_a_jpeg_is_read_as_the_run_reads_it(clouds, tmp_path):
    "A large JPEG is decoded small, as in training, and its masks have the size of the file."
    path = tmp_path / "wide.jpg"
    noise = np.random.default_rng(5).integers(0, 256, (40, 60, 3), np.uint8)
    Image.fromarray(noise).resize((600, 400)).save(path)
    predict_files([path], clouds, tmp_path / "out", progress=False)
    answers = load_run(clouds).answers()
    wanted = resize_mask(answers.decide(read_picture(path, answers.size)), (400, 600))
    for name, mask in zip(answers.classes, wanted):
        np.testing.assert_array_equal(
            read_mask(tmp_path / "out" / "masks" / name / "wide.png", (400, 600)), mask
        )
