"The X-ray pipeline: which files it takes, whom it keeps apart, what it writes, what it refuses."

import json
import os
import struct
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from typer.testing import CliRunner

from cloudlearn import cli
from cloudlearn.runs import XrayRun, execute
from cloudlearn.scenes.chest import write_chest_folder
from cloudlearn.xray.imbalance import judge, reweigh
from cloudlearn.xray.run import (
    NOTICE,
    XRAY,
    XrayFile,
    check_chest,
    judge_xray_arms,
    keep_share,
    load_chest,
    person_of,
    read_chest,
    read_xray_sets,
    real_imbalance,
    show_examples,
    split_off,
)

SMALL = dict(size=(32, 32), encoder="small", progress=False)


def run_xray(**settings):
    return execute(XRAY, XrayRun(**settings))


@pytest.fixture
def folder(tmp_path):
    return write_chest_folder(tmp_path / "chest", (6, 12), (3, 5), shape=(32, 32))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "xray"
    return out, run_xray(out=out, epochs=2, scenes=40, **SMALL)


# -------------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(
    "name, person",
    [
        ("person1_virus_6.jpeg", "person1"),
        ("person10_bacteria_43.jpg", "person10"),
        ("PERSON1_x.png", "person1"),
        ("IM-0115-0001.jpeg", "im-0115"),
        ("NORMAL2-IM-0003-0001-0002.jpg", "normal2-im-0003"),
        ("scan 7.png", "scan 7"),
        ("person.png", "person"),
    ],
)
def test_who_is_shown(name, person):
    assert person_of(name) == person


def counts_of(files):
    "Normal and ill pictures to train on, then normal and ill ones to test on."
    places = [("train", False), ("train", True), ("test", False), ("test", True)]
    return [sum((file.split, file.ill) == place for file in files) for place in places]


def test_a_folder_is_read_with_classes_and_splits(folder):
    (folder / "train" / "NORMAL" / ".hidden.jpg").write_text("")
    (folder / "train" / "NORMAL" / "readme.txt").write_text("")
    (folder / "val").mkdir()
    files = read_chest(folder).files
    assert counts_of(files) == [6, 12, 3, 5]
    loaded = load_chest(files, (24, 40))
    assert loaded.pictures.shape == (26, 24, 40, 3)
    assert loaded.labels[:, 0].tolist() == [f.ill for f in files]
    assert loaded.names[0] == files[0].path.name


def empty(folder):
    for path in (folder / "test" / "NORMAL").iterdir():
        path.unlink()


def lacking(folder):
    (folder / "train" / "PNEUMONIA").rename(folder / "elsewhere")


@pytest.mark.parametrize(
    "harm, words",
    [
        (empty, r"test.NORMAL: the folder holds no pictures"),
        (
            lacking,
            r"train.PNEUMONIA: there is no such folder; "
            r"a classifier needs pictures of both classes",
        ),
    ],
)
def test_folders_without_pictures_are_named(folder, harm, words):
    harm(folder)
    with pytest.raises(ValueError, match=words):
        read_chest(folder)


def test_a_folder_that_is_not_there(tmp_path):
    words = "nowhere: there is no such folder; give one that holds train and test"
    with pytest.raises(ValueError, match=words):
        read_chest(tmp_path / "nowhere")


def test_nobody_is_on_both_sides(folder):
    tested = next((folder / "test" / "PNEUMONIA").iterdir())
    person = tested.name.split("_")[0]
    copy = folder / "train" / "PNEUMONIA" / f"{person}_virus_99.jpg"
    copy.write_bytes(tested.read_bytes())
    words = f"{copy.name}: {person} is also in test .{tested.name}.; .*--drop-shared"
    with pytest.raises(ValueError, match=words):
        read_chest(folder)
    chest = read_chest(folder, drop_shared=True)
    assert copy not in {file.path for file in chest.files}
    assert len(chest.files) == 26
    assert chest.notes[0].endswith(f"in test: {copy.name}.")
    for path in (folder / "train" / "PNEUMONIA").iterdir():
        if path != copy:
            path.unlink()
    with pytest.raises(ValueError, match="train.PNEUMONIA: 0 people, not counting those in test"):
        read_chest(folder, drop_shared=True)


@pytest.mark.parametrize("content", [b"", b"not a picture", "cut", "deep"])
def test_a_picture_that_cannot_be_read_is_named(folder, content):
    path = folder / "train" / "NORMAL" / "IM-9999-0001.png"
    if content == "deep":
        Image.fromarray(np.full((32, 32), 40_000, np.uint16)).save(path)
    elif content == "cut":
        whole = next((folder / "train" / "NORMAL").iterdir()).read_bytes()
        path.write_bytes(whole[:600])
    else:
        path.write_bytes(content)
    files = [XrayFile(path, "train", False, "im-9999")]
    words = "cannot be read .*fetch the file again|a picture of mode I;16; save it as 8-bit"
    with pytest.raises(ValueError, match=rf"IM-9999-0001.png: ({words})"):
        load_chest(files, (32, 32))


def test_colour_pictures_are_read_as_grey(tmp_path):
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(np.full((64, 64), 90, np.uint8)).save(tmp_path / "b.png")
    files = [XrayFile(tmp_path / name, "train", False, name) for name in ("a.png", "b.png")]
    both = load_chest(files, (32, 32))
    assert (both.pictures == 90).all()


@pytest.mark.parametrize("seed", range(4))
def test_whole_people_are_split_off(seed):
    rng = np.random.default_rng(seed)
    files = []
    for p in range(80):
        for i in range(rng.integers(1, 5)):
            path = Path(f"person{p}_x_{i}.jpg")
            files.append(XrayFile(path, "train", p >= 20, f"person{p}"))
    rest, aside = split_off(files, 0.2, seed)
    assert sorted(rest + aside) == sorted(files)
    assert not {f.person for f in rest} & {f.person for f in aside}
    for ill in (False, True):
        people = [len({f.person for f in part if f.ill == ill}) for part in (aside, files)]
        assert people[0] == round(0.2 * people[1])
    assert split_off(files, 0.2, seed) == (rest, aside) != split_off(files, 0.2, seed + 1)
    with pytest.raises(ValueError, match="1 people in train/NORMAL"):
        split_off([f for f in files if f.ill or f.person == "person0"], 0.2)


def test_fewer_pictures_keep_the_proportion():
    files = [XrayFile(Path(f"{i}.jpg"), "train", i >= 25, str(i)) for i in range(100)]
    kept = keep_share(files, 40, 1)
    assert len(kept) == 40
    assert sum(f.ill for f in kept) == 30
    assert len(set(kept)) == 40
    assert keep_share(files, 100) == files
    assert kept == sorted(kept, key=files.index) and kept != keep_share(files, 40, 2)


# ------------------------------------------------------------------------------------------ the run


def test_the_sets_know_what_to_say_first(folder):
    sets = read_xray_sets(folder, (32, 32))
    assert sets.notes[0] == NOTICE and "no score here says anything about a patient" in NOTICE
    assert any("3 normal pictures to test on" in note for note in sets.notes)
    assert any("62.5% of the test pictures" in note for note in sets.notes)
    assert len(sets.train.names) + len(sets.valid.names) == 18 and len(sets.test.names) == 8


def test_a_run_writes_everything_and_says_that_it_is_a_lesson(done):
    out, scores = done
    written = {path.name for path in out.iterdir() if not path.name.startswith(".")}
    tables = {"scores.csv", "curves.csv", "predictions.csv"}
    record = {"manifest.jsonl", "run.json", "report.html"}
    assert written == {"scenes", "networks", "pictures"} | tables | record
    networks = {path.stem for path in (out / "networks").glob("*.safetensors")}
    assert networks == {"plain-best", "plain-last", "weighted-best", "weighted-last"}
    page, record = (out / "report.html").read_text(), json.loads((out / "run.json").read_text())
    assert NOTICE in page
    assert record["notice"] == NOTICE
    assert record["settings"]["seed"] == 0
    assert "torch" in record["versions"]
    assert page.index("Before you believe it") < page.index("always pneumonia")
    assert "http" not in page.replace("http-equiv", "")
    pd.testing.assert_frame_equal(pd.read_csv(out / "scores.csv"), scores, check_exact=False)


def test_scores_follow_from_the_predictions(done):
    out, scores = done
    seen = pd.read_csv(out / "predictions.csv")
    true = seen["pneumonia"].to_numpy(bool)
    counts = json.loads((out / "run.json").read_text())["normal_and_pneumonia"]
    assert [len(seen) - true.sum(), true.sum()] == counts["test"]
    for row in scores.itertuples():
        if row.arm == "always pneumonia":
            prob = np.ones(len(true))
        else:
            prob = seen["prob_" + row.arm.split(",")[0]].to_numpy()
        if "undone" in row.arm:
            prob = reweigh(prob, counts["train"][1] / counts["train"][0])
        found = judge(true, prob, row.threshold)
        for name in ("recall_normal", "recall_pneumonia"):
            assert abs(getattr(row, name) - found[name]) <= 1.01 / 8  # rounding may tip one picture
        assert row.accuracy_low <= row.accuracy <= row.accuracy_high
        assert row.recall_normal_low <= row.recall_normal <= row.recall_normal_high
        assert abs(row.auc - found["auc"]) < 0.03


def test_thresholds_come_from_validation_alone(done, monkeypatch):
    out, scores = done
    sets = read_xray_sets(out / "scenes", (32, 32))
    from cloudlearn.training import load_network_state, predict_pictures
    from cloudlearn.xray.imbalance import balanced_threshold, xray_network

    networks = {}
    for arm in ("plain", "weighted"):
        network = networks[arm] = xray_network("small")
        state, _ = load_network_state(out / "networks" / f"{arm}-last.safetensors")
        network.load_state_dict(state)
        fitted = scores[(scores["arm"] == arm) & (scores["cut"] == "fitted")]["threshold"].item()
        probs = predict_pictures(network, sets.valid.pictures, 64)[:, 0]
        assert np.isclose(fitted, balanced_threshold(sets.valid.labels[:, 0], probs))
    lie = sets._replace(test=sets.test._replace(labels=~sets.test.labels))
    told, true = judge_xray_arms(lie, networks)[0], judge_xray_arms(sets, networks)[0]
    assert told["threshold"].tolist() == true["threshold"].tolist()


def test_the_hardest_pictures_come_first(done):
    import matplotlib.pyplot as plt

    out, _ = done
    sets, seen = read_xray_sets(out / "scenes", (32, 32)), pd.read_csv(out / "predictions.csv")
    assert sets.test.names.tolist() == seen["picture"].tolist()
    figure = show_examples(sets, seen, count=3)
    titles = [ax.get_title() for ax in figure.axes]
    normal = seen[seen["pneumonia"] == 0]["prob_weighted"]
    ill = seen[seen["pneumonia"] == 1]["prob_weighted"]
    assert titles[0] == f"normal: {normal.max():.2f}" and titles[3] == f"pneumonia: {ill.min():.2f}"
    plt.close(figure)


def test_a_run_is_repeatable_and_goes_on(done, tmp_path):
    out, scores = done
    resumed = run_xray(out=out, epochs=2, scenes=40, resume=True, **SMALL)
    pd.testing.assert_frame_equal(resumed, scores)
    with pytest.raises(ValueError, match="epochs"):
        run_xray(out=out, epochs=3, scenes=40, resume=True, **SMALL)


def test_a_run_on_a_folder(folder, tmp_path):
    scores = run_xray(data=folder, out=tmp_path / "out", epochs=1, **SMALL)
    assert len(scores) == 8 and not (tmp_path / "out" / "scenes").exists()
    _, probs = real_imbalance(folder, (0,), size=(32, 32), pictures=8, epochs=1, arms=("plain",))
    assert len(probs) == 8


def test_wrong_wishes_are_answered_before_anything_is_written(tmp_path):
    wishes = [
        ({"encoder": "resnet34"}, "efficientnet-lite0, small"),
        ({"scenes": 39}, "40 at least"),
        ({"data": tmp_path / "no"}, "no such folder"),
    ]
    for wish, words in wishes:
        with pytest.raises(ValueError, match=words):
            run_xray(out=tmp_path / "out", **wish)
        assert not (tmp_path / "out").exists()
    (tmp_path / "out" / "scenes").mkdir(parents=True)
    (tmp_path / "out" / "scenes" / "mine.jpg").touch()
    with pytest.raises(ValueError, match="scenes.mine.jpg was not written by a run"):
        run_xray(out=tmp_path / "out", size=(32, 32), scenes=40)


# -------------------------------------------------------------------------------------- the command


def command(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words])


def test_check_knows_the_layout_and_lists_every_fault(folder):
    good = command("check", folder)
    assert good.exit_code == 0
    assert "X-rays, 18 pictures to train on, 8 to test, no faults" in good.stdout
    broken = [next((folder / "train" / name).iterdir()) for name in ("NORMAL", "PNEUMONIA")]
    for path in broken:
        path.write_bytes(path.read_bytes()[:500])
    bad = command("check", folder)
    lines = bad.stderr.strip().splitlines()
    assert bad.exit_code == 2
    assert bad.stdout == ""
    assert len(lines) == 2
    for path, line in zip(broken, lines):
        assert path.name in line and line.startswith("cloudlearn: ")
    for path in broken:
        path.unlink()
    (folder / "test" / "NORMAL").rename(folder / "test" / "HEALTHY")
    bad = command("check", folder)
    assert bad.exit_code == 2 and bad.stderr.count("\n") == 1 and "both classes" in bad.stderr


def test_check_lists_faults_of_form_and_of_pictures_together(folder):
    pictures = (
        sorted((folder / "train" / "NORMAL").iterdir()),
        sorted((folder / "test" / "PNEUMONIA").iterdir()),
    )
    turned = Image.Exif()
    turned[0x0112] = 3
    pictures[0][0].write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n")
    Image.new("L", (32, 32)).save(pictures[0][1], "GIF")
    Image.new("L", (32, 32)).save(pictures[0][2], "TIFF")
    Image.new("L", (32, 32)).save(pictures[1][0], "JPEG", exif=turned)
    pictures[1][1].write_bytes(b"")
    shared = folder / "train" / "PNEUMONIA" / f"{pictures[1][2].name.split('_')[0]}_virus_99.jpg"
    shared.write_bytes(pictures[1][2].read_bytes())
    for path in (folder / "test" / "NORMAL").iterdir():
        path.unlink()
    lines = command("check", folder).stderr.strip().splitlines()
    assert len(lines) == 7
    assert all(line.startswith("cloudlearn: ") and line.endswith(".") for line in lines)
    for path in (*pictures[0][:3], *pictures[1][:2], shared, folder / "test" / "NORMAL"):
        assert sum(f"{path}: " in line for line in lines) == 1, path


@pytest.mark.parametrize("left", [0, 1])
def test_a_class_with_one_person_is_refused_while_reading(folder, left):
    for path in sorted((folder / "train" / "NORMAL").iterdir())[max(left, 1) :]:
        path.unlink()
    if not left:
        next((folder / "train" / "NORMAL").iterdir()).unlink()
    words = "1 people, not counting those in test; at least two" if left else "holds no pictures"
    listed = command("check", folder)
    assert listed.exit_code == 2 and words in listed.stderr
    with pytest.raises(ValueError, match=f"train.NORMAL: .*{words}"):
        read_chest(folder)


def test_a_bomb_costs_no_memory(folder):
    "Half a megabyte that would unfold to 177 MB, six times over."
    row = zlib.compress(bytes(13_301) * 13_300, 1)

    def chunk(kind, data):
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 13_300, 13_300, 8, 0, 0, 0, 0))
    bomb = b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", row) + chunk(b"IEND", b"")
    places = sorted((folder / "train" / "PNEUMONIA").iterdir())[:6]
    for path in places:
        path.write_bytes(bomb)
    tracemalloc.start()
    with pytest.warns(Image.DecompressionBombWarning):
        found = check_chest(folder)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 6
    assert all("13300 x 13300 pixels, above the limit" in fault for fault in found)
    assert peak < 50e6


def test_a_fault_of_the_folder_leaves_nothing_behind(folder, tmp_path):
    path = next((folder / "test" / "PNEUMONIA").iterdir())
    path.write_bytes(path.read_bytes()[:500])
    result = command("xray", "--data", folder, "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert path.name in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------ real pictures


@pytest.mark.real
def test_the_public_set():
    home = os.environ.get("CLOUDLEARN_DATA")
    if not home:
        pytest.skip("CLOUDLEARN_DATA does not name a folder with chest_xray")
    files = read_chest(Path(home) / "chest_xray").files
    assert counts_of(files) == [1070, 3115, 272, 502]
    some = load_chest(files[::500], (96, 96))
    assert some.pictures.std() > 30
