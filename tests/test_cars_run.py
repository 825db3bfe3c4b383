"The car pipeline: what it decides on which photos, what it writes, what it refuses."

import json
import os
import re

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn
from typer.testing import CliRunner

from cloudlearn import cli
from cloudlearn.cars.dilation import dilate_labels
from cloudlearn.cars.run import (
    CarSets,
    check_size,
    judge_cars,
    read_car_sets,
    show_arms,
    training_arms,
)
from cloudlearn.formats import LabelledPicture, write_masks
from cloudlearn.masks import dilate, resize_mask
from cloudlearn.samples import Samples
from cloudlearn.scenes.cars import DAMAGES, write_car_folder

SMALL = ["--scenes", "8", "--size", "32x48", "--epochs", "1"]


def call(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="cloudlearn")


def arrays_of(seed, n=8, shape=(16, 24), labelled=None):
    rng = np.random.default_rng(seed)
    masks = rng.random((n, 3, *shape)) < 0.2
    labelled = np.ones((n, 3), bool) if labelled is None else labelled
    return Samples(
        np.array([f"photo-{seed}-{i}" for i in range(n)]),
        rng.integers(0, 256, (n, *shape, 3), dtype=np.uint8),
        masks & labelled[:, :, None, None],
        labelled,
    )


def sets_of(**parts):
    names = ("train", "valid", "test")
    arrays = [parts.get(name, arrays_of(i)) for i, name in enumerate(names)]
    return CarSets("socar", DAMAGES, *arrays, [], ())


class Answers(nn.Module):
    "Logits known beforehand for known pictures: right for some classes, inverted for the others."

    def __init__(self, sets, right):
        super().__init__()
        self.right, self.known = right, [(a.pictures, a.masks) for a in sets]
        self.none = nn.Parameter(torch.zeros(1))

    def forward(self, pictures):
        out = []
        for picture in pictures.permute(0, 2, 3, 1).cpu().numpy():
            masks = self.masks_of(picture)
            said = [mask if good else ~mask for mask, good in zip(masks, self.right)]
            out.append(np.where(said, 4.0, -4.0))
        return torch.tensor(np.array(out), dtype=torch.float32)

    def masks_of(self, picture):
        for pictures, masks in self.known:
            for i in range(len(pictures)):
                if (pictures[i] == picture).all():
                    return masks[i]
        raise AssertionError("nobody knows this picture")


# ------------------------------------------------------------------------------- arms and decisions


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_only_the_thin_class_is_dilated_and_only_for_training(radius):
    sets = sets_of()
    before = sets.train.masks.copy()
    arms = training_arms(sets, radius)
    assert list(arms) == ["as drawn", f"dilated by {radius}"] and arms["as drawn"] is sets.train
    wide = arms[f"dilated by {radius}"]
    assert (wide.masks[:, :2] == before[:, :2]).all()
    assert (wide.masks[:, 2] == dilate(before[:, 2], radius)).all()
    assert (sets.train.masks == before).all(), "the photos that were read are left as they are"


def test_without_a_radius_or_without_spacing_there_is_one_network():
    sets = sets_of()
    assert list(training_arms(sets, 0)) == ["as drawn"]
    assert list(training_arms(sets._replace(classes=("dent", "scratch")), 2)) == ["as drawn"]
    with pytest.raises(ValueError):
        dilate_labels(sets.train, 2, ("spacing",), ("dent", "scratch", "rust"))


@pytest.mark.parametrize(
    "first, second", [((1, 0, 1), (0, 1, 0)), ((0, 0, 0), (1, 1, 1)), ((1, 1, 0), (0, 0, 1))]
)
def test_each_class_is_answered_by_the_network_that_validation_prefers(first, second):
    sets = sets_of()
    seen = [sets.valid, sets.test]
    networks = {"a": Answers(seen, first), "b": Answers(seen, second)}
    judgement = judge_cars(sets, networks)
    assert judgement.decisions["arm"].tolist() == ["a" if good else "b" for good in first]
    assert list(judgement.decisions["class"]) == list(DAMAGES)
    assert (judgement.answers["chosen"] == sets.test.masks).all()
    chosen = judgement.scores[judgement.scores["arm"] == "chosen"]
    assert chosen["dice"].tolist() == [1, 1, 1]
    assert len(judgement.scores) == 9
    assert len(judgement.pictures) == 3 * 3 * 8


def test_test_photos_have_no_say():
    sets = sets_of()
    lie = sets.test._replace(masks=~sets.test.masks)
    # b is right on the test photos alone
    networks = {
        "a": Answers([sets.valid, sets.test], (1, 1, 1)),
        "b": Answers([sets.valid, lie], (0, 0, 0)),
    }
    assert set(judge_cars(sets, networks).decisions["arm"]) == {"a"}


def test_a_class_that_nobody_looked_for_in_validation_takes_the_first_network():
    labelled = np.ones((8, 3), bool)
    labelled[:, 2] = False
    sets = sets_of(valid=arrays_of(1, labelled=labelled))
    seen = [sets.valid, sets.test]
    networks = {"a": Answers(seen, (1, 1, 1)), "b": Answers(seen, (0, 0, 0))}
    decisions = judge_cars(sets, networks).decisions.set_index("class")
    assert decisions.loc["spacing", "arm"] == "a"
    assert decisions.loc["spacing", "threshold"] == 0.5
    assert np.isnan(decisions.loc["spacing", "valid_dice"])


def test_scores_are_drawn_for_every_class_and_arm():
    import matplotlib.pyplot as plt

    sets = sets_of()
    ax = show_arms(judge_cars(sets, {"a": Answers([sets.valid, sets.test], (1, 0, 1))}).scores)
    wanted = [f"{name}, {arm}" for name in DAMAGES for arm in ("a", "chosen")]
    assert [label.get_text() for label in ax.get_yticklabels()] == wanted
    plt.close(ax.figure)


# -------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("seed", range(3))
def test_masks_as_png_and_coco_are_the_same_masks(tmp_path, seed):
    from pycocotools import mask as coco

    rng = np.random.default_rng(seed)
    samples, shapes = [], [(40, 60), (33, 47), (64, 20)]
    for i, shape in enumerate(shapes):
        picture = rng.integers(0, 255, (*shape, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        samples.append(LabelledPicture(f"car {i}", "test", tmp_path / f"{i}.png", {}))
    masks = rng.random((3, 3, 16, 24)) < 0.3
    masks[1, 2] = False
    data = json.loads(write_masks(tmp_path / "out", samples, masks, DAMAGES).read_text())
    assert [(row["height"], row["width"]) for row in data["images"]] == shapes
    assert [row["name"] for row in data["categories"]] == list(DAMAGES)
    assert len(data["annotations"]) == 8
    assert len(list((tmp_path / "out/masks").glob("*/*.png"))) == 9
    for row in data["annotations"]:
        i, c = row["image_id"] - 1, row["category_id"] - 1
        expected = resize_mask(masks[i, c], shapes[i])
        packed = coco.frPyObjects(row["segmentation"], *row["segmentation"]["size"])
        assert (coco.decode(packed) == expected).all()
        assert row["area"] == expected.sum()
        assert row["bbox"] == coco.toBbox(packed).tolist()
        with Image.open(tmp_path / "out/masks" / DAMAGES[c] / f"car {i}.png") as png:
            assert (np.asarray(png) == 255 * expected).all()


# ------------------------------------------------------------------------------------------ reading


def test_empty_photos_leave_training_alone(tmp_path):
    folder = write_car_folder(
        tmp_path / "cars", damage=(24, 6, 6), gaps=(6, 6, 6), seed=3, shape=(48, 64)
    )
    empty = sorted((folder / "dent/train/masks").iterdir())[:3]
    for path in empty:
        for name in ("dent", "scratch"):
            with Image.open(folder / name / "train/masks" / path.name) as mask:
                blank = Image.new("L", mask.size)
            blank.save(folder / name / "train/masks" / path.name)
    out, kept = read_car_sets(folder, (32, 48)), read_car_sets(folder, (32, 48), keep_empty=True)
    assert len(kept.train.names) == 30
    assert len(out.train.names) <= 27
    assert len(out.test.names) == len(kept.test.names) == 12
    assert any("left out of training" in note for note in out.notes)
    assert not any("left out of training" in note for note in kept.notes)
    assert out.train.masks.any(axis=(1, 2, 3)).all()


def test_few_test_photos_are_said_to_be_few(tmp_path):
    folder = write_car_folder(tmp_path / "cars", damage=(8, 3, 3), gaps=(4, 2, 2), shape=(48, 64))
    notes = read_car_sets(folder, (32, 48)).notes
    assert any(note.startswith("Only 2 test photos show spacing") for note in notes)


@pytest.mark.parametrize("size", [(32, 40), (100, 160), (8, 16)])
def test_sizes_that_do_not_divide(size):
    with pytest.raises(ValueError, match="divide by 16.*is near"):
        check_size(size)


# -------------------------------------------------------------------------------------- the command


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "cars"
    result = call("cars", "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    return out, result


def test_a_run_leaves_everything_behind(finished):
    out, result = finished
    scores, record = pd.read_csv(out / "scores.csv"), json.loads((out / "run.json").read_text())
    arms = ("as drawn", "dilated by 2", "chosen")
    assert list(scores["arm"]) == [arm for arm in arms for _ in DAMAGES]
    measures = {"dice", "low", "high", "iou", "recall", "precision", "tolerant_dice"}
    assert {"class"} | measures <= set(scores.columns)
    assert ((scores["low"] <= scores["dice"]) & (scores["dice"] <= scores["high"])).all()
    assert record["layout"] == "socar"
    assert record["settings"]["dilate"] == 2
    assert {"settings", "versions", "seed", "data", "seconds"} <= set(record)
    assert len(list((out / "masks").glob("*/*.png"))) == 3 * record["photos"]["test"]
    assert (out / "masks.json").is_file()
    assert all((out / f"network-{n}" / "segment-last.safetensors").is_file() for n in (0, 1))
    page = (out / "report.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") >= 4
    assert "Training labels that look alike" in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    for words in ("dilated by 2", "as drawn", "Before you believe it"):
        assert words in page
    assert result.stdout.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert not list(out.rglob("*.partial"))
    assert "Warning" not in result.stderr


def test_the_same_seed_gives_the_same_scores(finished, tmp_path):
    assert call("cars", "--out", tmp_path / "again", *SMALL).exit_code == 0
    for name in ("scores.csv", "pictures.csv", "masks.json"):
        assert (tmp_path / "again" / name).read_bytes() == (finished[0] / name).read_bytes(), name


def test_resume(finished):
    out, _ = finished
    before = (out / "scores.csv").read_bytes()
    assert call("cars", "--out", out, *SMALL, "--resume").exit_code == 0
    assert (out / "scores.csv").read_bytes() == before
    refused = call("cars", "--out", out, *SMALL, "--seed", 1, "--resume")
    assert refused.exit_code == 2
    assert "seed" in refused.stderr.splitlines()[-1]
    assert (out / "scores.csv").read_bytes() == before


@pytest.mark.parametrize(
    "model, loss",
    [("deeplabv3plus", "bce-dice"), ("unet-zero", "focal"), ("deeplabv3-zero", "tversky")],
)
def test_one_network_and_fewer_classes(tmp_path, model, loss):
    options = f"--dilate 0 --classes scratch,dent --model {model} --loss {loss}".split()
    assert call("cars", "--out", tmp_path / "o", *SMALL, *options).exit_code == 0
    scores = pd.read_csv(tmp_path / "o/scores.csv")
    assert set(scores["arm"]) == {"as drawn", "chosen"}
    assert set(scores["class"]) == {"dent", "scratch"}
    assert not (tmp_path / "o/network-1").exists()


def faulty(folder, kind):
    "Spoil one thing in a good SOCAR folder."
    mask = sorted((folder / "dent/train/masks").iterdir())[0]
    picture = next((folder / "dent/train/images").glob(f"{mask.stem}.*"))
    if kind == "no mask":
        mask.unlink()
    if kind == "no picture":
        picture.unlink()
    if kind == "grey":
        grey = np.arange(48 * 64, dtype=np.uint8).reshape(48, 64)
        Image.fromarray(grey).save(mask)
    if kind == "size":
        Image.new("L", (30, 30)).save(mask)
    if kind == "cut":
        picture.write_bytes(picture.read_bytes()[:200])
    if kind == "no class":
        os.rename(folder / "scratch", folder / "scratches")


@pytest.mark.parametrize(
    "kind, words",
    [
        ("no mask", "no mask"),
        ("no picture", "no picture"),
        ("grey", "grey values"),
        ("size", "30 x 30"),
        ("cut", "cannot be read"),
        ("no class", "no class folder scratch"),
    ],
)
def test_a_fault_is_one_sentence_and_nothing_is_written(tmp_path, kind, words):
    folder = write_car_folder(tmp_path / "cars", damage=(4, 2, 2), gaps=(4, 2, 2), shape=(48, 64))
    faulty(folder, kind)
    options = "--size 32x48 --epochs 1".split()
    result = call("cars", "--data", folder, "--out", tmp_path / "out", *options)
    last = result.stderr.strip().splitlines()[-1]
    assert result.exit_code == 2
    assert last.startswith("cloudlearn: ")
    assert words in last
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()
    listed = call("check", folder)
    assert listed.exit_code == 2 and words in listed.stderr and listed.stdout == ""


def test_check_lists_all_faults_at_once(tmp_path):
    folder = write_car_folder(tmp_path / "cars", damage=(4, 2, 2), gaps=(4, 2, 2), shape=(48, 64))
    assert call("check", folder).exit_code == 0 and "socar" in call("check", folder).stdout
    for kind in ("grey", "no class"):
        faulty(folder, kind)
    sorted((folder / "spacing/valid/masks").iterdir())[0].unlink()
    assert len(call("check", folder).stderr.splitlines()) == 3
    assert call("check", tmp_path / "nowhere").exit_code == 2


def test_check_takes_a_clouds_folder(tmp_path):
    from cloudlearn.scenes.clouds import write_cloud_folder

    folder = write_cloud_folder(tmp_path / "clouds", 60, 1, shape=(35, 52))
    result = call("check", folder)
    assert result.exit_code == 0 and "60 labelled pictures, 1 to submit" in result.stdout
    next((folder / "train_images").iterdir()).unlink()
    assert call("check", folder).exit_code == 2


@pytest.mark.parametrize(
    "words, quoted",
    [
        (["--classes", "dent,rust"], "dent,rust: choose from dent, scratch, spacing"),
        (["--model", "unet"], "unet-zero"),
        (["--loss", "bec"], "bce-dice"),
        (["--size", "100x160"], "96x160 is near"),
        (["--weights", "w.pth"], "there is no such file"),
    ],
)
def test_wrong_options(tmp_path, words, quoted):
    result = call("cars", *words, "--out", tmp_path / "out")
    assert result.exit_code == 2 and quoted in result.stderr and not (tmp_path / "out").exists()


def test_an_unknown_experiment_is_answered_with_the_list(tmp_path):
    result = call("experiment", "tea", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "choose one of" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.real
@pytest.mark.parametrize(
    "layout, classes", [("socar", {"dent", "scratch", "spacing"}), ("via", {"dent", "scratch"})]
)
def test_both_real_layouts_run(real_data, tmp_path, layout, classes):
    folder = real_data / "car_damage" / layout
    options = "--size 64x96 --epochs 1".split()
    result = call("cars", "--data", folder, "--out", tmp_path / "out", *options)
    assert result.exit_code == 0, result.stderr
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["layout"] == layout and set(record["classes"]) == classes
    if layout == "socar":
        assert any(note.startswith("Only 2 test photos show spacing") for note in record["notes"])
