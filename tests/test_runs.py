"""A run's folder: nothing of the user's is lost in it, nothing false is called a success."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy
import pytest
from tables import SMALL_CLOUDS
from typer.testing import CliRunner

from cloudlearn import cli
from cloudlearn.files import MANIFEST, read_manifest, whole_folder, write_file
from cloudlearn.runs import (
    TrainRun,
    clear_run,
    compare_runs,
    complete,
    foreign_files,
    open_run,
    plain_settings,
    run_from_settings,
    versions,
)
from cloudlearn.scenes.cars import write_car_folder
from cloudlearn.scenes.chest import write_chest_folder
from cloudlearn.scenes.clouds import write_cloud_folder

SMALL = {
    "clouds": SMALL_CLOUDS,
    "cars": ["--scenes", "8", "--size", "32x48", "--epochs", "1", "--dilate", "0"],
    "xray": ["--scenes", "40", "--size", "32x32", "--epochs", "1", "--encoder", "small"],
}


def call(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="cloudlearn")


def command(*words, **options):
    "The program in a process of its own, on one thread."
    return subprocess.Popen(
        [str(Path(sys.executable).with_name("cloudlearn")), *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        **options,
    )


def content(folder):
    "Everything in a folder, byte for byte; what a file manager would not show is left out."
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and not path.name.startswith(".")
    }


def write(out, *names, fresh=True):
    "A very short run."
    with open_run(out):
        if fresh:
            clear_run(out)
        for name in names:
            write_file(out / name, name)


def refused(result, out):
    "The one sentence of a refused command."
    last = result.stderr.strip().splitlines()[-1]
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert last.startswith(f"cloudlearn: --out {out}: "), last
    return last


# ------------------------------------------------------------------------------- whose folder it is


MINE = "pictures.csv masks.json truth.csv run.json report.html scores.csv".split()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "A folder for each wing, in which its owner keeps files named like the results of a run."
    home = tmp_path_factory.mktemp("data")
    folders = {
        "clouds": write_cloud_folder(home / "clouds", 60, 2, shape=(35, 52)),
        "cars": write_car_folder(home / "cars", (8, 4, 4), (8, 4, 4), shape=(48, 64)),
        "xray": write_chest_folder(home / "xray", (8, 16), (4, 8), shape=(32, 32)),
    }
    for folder in folders.values():
        for name in ("masks/dent/mine.png", *MINE):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_text(f"my own {name}")
    return folders


@pytest.mark.parametrize("wing", SMALL)
@pytest.mark.parametrize("place, how", [("", "is"), ("runs/today", "lies in"), ("..", "holds")])
def test_results_never_go_into_the_data(data, wing, place, how):
    before, out = content(data[wing].parent), data[wing] / place
    for more in ([], ["--resume"]):
        said = refused(call(wing, "--data", data[wing], "--out", out, *SMALL[wing], *more), out)
        assert f"it {how} {data[wing]}, which this run reads" in said
    assert content(data[wing].parent) == before and not (data[wing] / "runs").exists()


def test_a_link_to_the_data_is_the_data(data, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(data["cars"])
    said = refused(call("cars", "--data", data["cars"], "--out", link), link)
    assert "which this run reads" in said


def test_weights_that_a_fresh_start_would_delete(tmp_path):
    out = tmp_path / "run"
    weights = write_file(out / "segment-last.safetensors", "weights")
    said = refused(call("clouds", "--out", out, "--weights", weights), out)
    assert "it holds" in said and weights.read_text() == "weights"


@pytest.mark.parametrize("wing", SMALL)
@pytest.mark.parametrize(
    "name",
    ["truth.csv", "run.json", "report.html", "masks/dent/mine.png", "scenes/train.csv", MANIFEST],
)
def test_a_folder_with_a_file_of_somebody_else_is_refused(data, tmp_path, wing, name):
    mine, out = tmp_path / "out" / name, tmp_path / "out"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("my own")
    for words in (["--data", data[wing]], [], ["--resume"]):
        said = refused(call(wing, *words, "--out", out, *SMALL[wing]), out)
        assert f"{name} was not written by a run" in said and "choose another folder" in said
    assert content(out) == {name: b"my own"}


def test_what_systems_leave_behind_is_nobodys(tmp_path):
    for name in (".DS_Store", "Thumbs.db", ".ipynb_checkpoints/report.html"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    write(tmp_path, "ladder.csv")
    write(tmp_path, "ladder.csv")
    assert (tmp_path / ".DS_Store").exists() and (tmp_path / "Thumbs.db").exists()


def test_a_fresh_start_deletes_exactly_what_the_last_run_wrote(tmp_path):
    out = tmp_path / "run"
    write(out, "ladder.csv", "pictures/a.png", "masks/dent/구름 1.png")
    with open_run(out), whole_folder(out / "scenes") as work:
        (work / "a.jpg").touch()
    write(out, "report.html")
    assert set(content(out)) == {"report.html", MANIFEST}
    assert {path.name for path in out.iterdir() if path.is_dir()} == set()
    write(out, "ladder.csv", fresh=False)
    # resumed: what was there stays
    assert set(content(out)) == {"report.html", "ladder.csv", MANIFEST}


@pytest.mark.parametrize(
    "change",
    [
        lambda path: path.write_text("with my remarks"),
        lambda path: (path.unlink(), path.symlink_to("/etc/hosts")),
    ],
)
def test_a_result_that_somebody_changed_is_somebodys(tmp_path, change):
    write(tmp_path / "run", "ladder.csv")
    change(tmp_path / "run" / "ladder.csv")
    before = content(tmp_path / "run")
    with pytest.raises(ValueError, match="ladder.csv was (changed after|not written by) a run"):
        write(tmp_path / "run", "other.csv")
    assert content(tmp_path / "run") == before


def test_a_file_beside_the_results_is_somebodys(tmp_path):
    write(tmp_path / "run", "ladder.csv")
    for name in ("notes.txt", "more.txt"):
        (tmp_path / "run" / name).write_text("mine")
    words = r"run: more.txt was not written by a run \(and 1 more\); choose another folder"
    with pytest.raises(ValueError, match=words):
        write(tmp_path / "run", "x")
    assert (tmp_path / "run" / "ladder.csv").exists() and len(foreign_files(tmp_path / "run")) == 2


def test_a_manifest_made_up_by_somebody_deletes_nothing_outside(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    out = tmp_path / "run"
    write(out, "a")
    with open(out / MANIFEST, "a") as file:
        for name in ("../precious.txt", "..", ".", "mine", "mine/work.txt"):
            file.write(f'\n{{"file": "{name}", "sha256": null}}')
    write(out, "b")
    assert (tmp_path / "precious.txt").read_text() == "mine"
    assert set(content(out)) == {"b", MANIFEST}
    (out / "mine").mkdir()
    (out / "mine" / "work.txt").write_text("a week of work")
    with open(out / MANIFEST, "a") as file:
        file.write('\n{"file": ".", "sha256": null}\n{"file": "mine", "sha256": null}')
    with pytest.raises(ValueError, match="mine/work.txt was not written by a run"):
        write(out, "c")
    assert (out / "mine" / "work.txt").read_text() == "a week of work"


def test_a_run_that_fails_before_it_writes_leaves_no_trace(tmp_path):
    for out in (tmp_path / "deep" / "er" / "run", tmp_path):
        with pytest.raises(ZeroDivisionError), open_run(out):
            1 / 0
        assert content(tmp_path) == {} and not (tmp_path / "deep").exists()


def test_an_experiment_overwrites_its_own_record_alone(tmp_path):
    from cloudlearn.evidence import run_experiment

    (tmp_path / "styles.csv").write_text("mine")
    words = "styles.csv: this file.* is no record of the experiment styles"
    with pytest.raises(ValueError, match=words):
        run_experiment("styles", len, 1, tmp_path)
    (tmp_path / "styles.json").write_text('{"experiment": "losses"}')
    with pytest.raises(ValueError, match="is no record"):
        run_experiment("styles", len, 1, tmp_path)
    assert (tmp_path / "styles.csv").read_text() == "mine"


# -------------------------------------------------------------------------------- one run at a time


def test_the_second_of_two_runs_is_refused(tmp_path):
    out = tmp_path / "run"
    with open_run(out):
        with pytest.raises(ValueError, match="another run is writing there"), open_run(out):
            raise AssertionError
        said = refused(call("clouds", "--out", out, *SMALL["clouds"]), out)
        assert "another run is writing there; wait for it, or choose another folder" in said
        run = command("clouds", "--out", out, *SMALL["clouds"])
        assert "another run is writing there" in run.communicate(timeout=120)[1]
        assert run.returncode == 2
        write_file(out / "a", "a")
    write(out, "b")  # the lock is gone with the run


def test_a_killed_run_leaves_no_lock_and_its_leftovers_are_swept_away(tmp_path):
    out = tmp_path / "run"
    code = f"""
import os, signal
from pathlib import Path
from cloudlearn.files import whole_file, whole_folder, write_file
from cloudlearn.runs import open_run
out = Path({str(out)!r})
with open_run(out):
    write_file(out / "ladder.csv", "whole")
    with whole_folder(out / "scenes") as work, whole_file(out / "net.bin") as part:
        (work / "train").mkdir()
        (work / "train" / "a.jpg").write_text("half")
        part.write_text("half")
        os.kill(os.getpid(), signal.SIGKILL)"""
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    left = {re.sub(r"\.\d+\.tmp", ".tmp", name) for name in content(out)}
    assert left == {"ladder.csv", "net.bin.tmp", "scenes.tmp/train/a.jpg", MANIFEST}
    (out / "notes.1234.tmp").write_text("mine")
    with pytest.raises(ValueError, match="notes.1234.tmp was not written by a run"):
        write(out, "b")
    (out / "notes.1234.tmp").unlink()
    write(out, "b", fresh=False)
    assert set(content(out)) == {"ladder.csv", "b", MANIFEST} and not list(out.glob("scenes*"))


# ------------------------------------------------------------------------------ stopped is not done


def wait_for(run, path):
    "Wait until a run has written a file, or has ended."
    until = time.monotonic() + 240
    while not path.exists() and run.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    assert path.exists(), run.communicate()[1]


def test_sigterm_in_training_is_a_sentence_and_status_143_and_the_run_goes_on_bit_for_bit(
    cloud_run, tmp_path
):
    stopped = tmp_path / "stopped"
    run = command("clouds", "--out", stopped, *SMALL["clouds"])
    wait_for(run, stopped / "presence-resume.ckpt")  # the U-Net is trained, the classifier half
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=120)
    assert run.returncode == 143, said
    assert said[0] == "", said
    assert "--resume" in said[1].splitlines()[-1], said
    assert "Traceback" not in said[1], said
    assert not (stopped / "report.html").exists()
    assert (stopped / "presence-resume.ckpt").exists()
    assert call("clouds", "--out", stopped, *SMALL["clouds"], "--resume").exit_code == 0
    for name in ("ladder.csv", "first_submission.csv", "final_submission.csv", "pairs.csv"):
        assert (stopped / name).read_bytes() == (cloud_run / name).read_bytes(), name


def test_sigterm_at_any_other_moment(tmp_path):
    run = command("cars", "--out", tmp_path / "run", *SMALL["cars"])
    wait_for(run, tmp_path / "run" / MANIFEST)
    run.send_signal(signal.SIGTERM)
    said = run.communicate(timeout=120)[1]
    assert run.returncode == 143, said
    assert "--resume" in said.splitlines()[-1], said
    assert "Traceback" not in said, said


def test_fit_without_the_command_ends_with_status_143_too(tmp_path):
    code = f"""
import os, signal, numpy as np, torch
from cloudlearn.training import PictureSet, fit
class Ends(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Conv2d(3, 1, 1)
    def forward(self, pictures):
        os.kill(os.getpid(), signal.SIGTERM)
        return self.layer(pictures.float())
data = PictureSet(np.zeros((4, 8, 8, 3), np.uint8), np.zeros((4, 1, 8, 8), bool))
fit(Ends(), data, None, {str(tmp_path)!r}, epochs=3, progress=False)
print("done")"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 143 and run.stdout == "", run.stderr


# -------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def disk(tmp_path):
    "Makes a disk of its own of so many kilobytes; skipped where nobody may mount one."
    mounted = []

    def make(kilobytes):
        place = tmp_path / f"disk{len(mounted)}"
        place.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(place)]
        made = subprocess.run(words, capture_output=True)
        if made.returncode:
            pytest.skip("a disk of a few kilobytes cannot be mounted here")
        mounted.append(place)
        return place

    yield make
    for place in mounted:
        subprocess.run(["umount", str(place)])


def said_where(status, said, out):
    "The file in `out` of which a command says that there is no space left."
    last = said.strip().splitlines()[-1]
    words = rf"cloudlearn: {re.escape(str(out))}/(\S+): no space left on device; check .*"
    found = re.fullmatch(words, last)
    assert status == 2 and found and "Traceback" not in said, said
    assert not list(out.rglob("*.tmp")), "nothing half-written stays"
    return found[1]


@pytest.mark.parametrize(
    "kilobytes, where",
    [(120, "scenes"), (6_000, "segment-best.safetensors"), (60_000, "segment-resume.ckpt")],
)
def test_a_disk_that_fills_up_while_a_run_trains(disk, kilobytes, where):
    out = disk(kilobytes) / "run"
    result = call("clouds", "--out", out, *SMALL["clouds"])
    assert said_where(result.exit_code, result.stderr, out) == where


@pytest.mark.parametrize(
    "spare, where", [(8, "first_submission.csv"), (320, r"pictures/\w+.png|report.html")]
)
def test_a_disk_that_fills_up_after_training(cloud_run, disk, spare, where):
    "A trained run, copied to a disk with little space and without its results, is resumed."
    late = set()
    for name in ("*.csv", "report.html", "pictures/*", "model/*"):
        late |= set(cloud_run.glob(name))
    whole = [path for path in cloud_run.rglob("*") if path.is_file()]
    kept = [path for path in whole if path not in late]
    written_first = [path for path in late if path.parent.name == "model"]
    needed = sum(-(-path.stat().st_size // 4096) * 4 for path in [*kept, *written_first])
    place = disk(needed + spare)
    for path in kept:
        (place / "run" / path.relative_to(cloud_run)).parent.mkdir(parents=True, exist_ok=True)
        (place / "run" / path.relative_to(cloud_run)).write_bytes(path.read_bytes())
    words = ["clouds", "--out", place / "run", *SMALL["clouds"], "--resume"]
    result = call(*words)
    assert re.fullmatch(where, said_where(result.exit_code, result.stderr, place / "run"))
    if spare > 8:
        return
    subprocess.run(["mount", "-o", "remount,size=500m", str(place)], check=True)
    assert call(*words).exit_code == 0
    after, whole = content(place / "run"), content(cloud_run)
    assert set(whole) - set(after) <= {"segment-log.csv", "presence-log.csv"}
    for name in ("first_submission.csv", "final_submission.csv", "ladder.csv"):
        assert after[name] == whole[name]


def test_the_previous_file_stays_whole(disk):
    place = disk(400)
    write(place, "ladder.csv")
    with pytest.raises(OSError) as caught, open_run(place):
        write_file(place / "ladder.csv", bytes(1_000_000))
    assert caught.value.filename == str(place / "ladder.csv")
    assert (place / "ladder.csv").read_text() == "ladder.csv"
    assert foreign_files(place) == [] and set(read_manifest(place)) >= {"ladder.csv"}


# --------------------------------------------------------------------------------- what a run notes


def test_versions_name_what_matters_and_survive_what_is_missing():
    found = versions()
    assert list(found)[0] == "python"
    assert found["numpy"] == numpy.__version__
    assert found["cloudlearn"] == "0.1.0"
    models = {"torch", "segmentation-models-pytorch", "timm", "lightning"}
    assert models | {"scikit-learn", "opencv-python-headless"} < set(found)
    assert versions(("no-such-package",))["no-such-package"] == "not installed"


# -------------------------------------------------------------------------------- runs side by side


def left_by_a_run(folder, pipeline="clouds", table="ladder.csv", **settings):
    "A folder as a finished run leaves it, with one score."
    folder.mkdir(parents=True)
    record = {"pipeline": pipeline, "settings": {"seed": 0, "epochs": 5} | settings}
    (folder / "run.json").write_text(json.dumps(record))
    names = "step" if pipeline == "clouds" else "arm,class"
    row = "raw" if pipeline == "clouds" else "as drawn,dent"
    dice = 0.5 + 0.01 * settings.get("epochs", 5)
    (folder / table).write_text(f"{names},dice,low,high\n{row},{dice},{dice - 0.1},{dice + 0.1}\n")
    return folder


def test_runs_side_by_side(tmp_path):
    folders = [left_by_a_run(tmp_path / str(epochs), epochs=epochs) for epochs in (2, 5, 9)]
    table = compare_runs(folders)
    assert table.index.tolist() == ["epochs", "raw"]  # the seed is the same in all
    assert table.columns.tolist() == list(map(str, folders))
    assert table.loc["epochs"].tolist() == ["2", "5", "9"]
    assert table.loc["raw"].tolist() == [
        "0.520 (0.420 to 0.620)",
        "0.550 (0.450 to 0.650)",
        "0.590 (0.490 to 0.690)",
    ]
    cars = [left_by_a_run(tmp_path / f"car {n}", "cars", "scores.csv", epochs=n) for n in (1, 2)]
    assert compare_runs(cars).index.tolist() == ["epochs", "as drawn, dent"]


def test_runs_that_cannot_stand_side_by_side(tmp_path):
    clouds, cars = (
        left_by_a_run(tmp_path / "a"),
        left_by_a_run(tmp_path / "b", "cars", "scores.csv"),
    )
    with pytest.raises(ValueError, match="two runs at least"):
        compare_runs([clouds])
    with pytest.raises(ValueError, match="b is a run of cars, .*a one of clouds: compare runs of"):
        compare_runs([clouds, cars])
    with pytest.raises(ValueError, match="there is no such file; give the folder of a finished"):
        compare_runs([clouds, tmp_path / "nowhere"])


# ------------------------------------------------------------------------------ settings of `train`


def test_settings_of_train_survive_a_file(tmp_path):
    run = TrainRun(data=tmp_path, classes=("a", "b"), frame="native", scale=0.5, size=(64, 32))
    told = json.loads(json.dumps(plain_settings(complete(run))))
    assert run_from_settings(TrainRun, told) == run
    assert {"out", "resume", "progress"}.isdisjoint(told)


@pytest.mark.parametrize(
    "wish, words",
    [
        (dict(scale=0.0), "--scale 0.0: above 0 and at most 1"),
        (dict(frame="half"), "--frame half: choose from whole, native"),
        (dict(batch_size=1), "--batch-size 1: 2 at least"),
        (dict(learning_rate=0.0), "--learning-rate 0.0: above 0"),
        (dict(device="tpu"), "choose from auto, cpu, gpu"),
    ],
)
def test_settings_of_train_have_limits(wish, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        complete(TrainRun(**wish))
