"""A run on anybody's labelled pictures: what it learns from, what it writes, what it refuses."""

import json
import re
from dataclasses import fields, replace
from unittest.mock import patch

import cv2
import numpy as np
import pandas as pd
import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as coco
from torch import nn
from typer.testing import CliRunner

from cloudlearn import cli, own
from cloudlearn.cars.segment import car_scores, picture_scores
from cloudlearn.encoders import ZERO
from cloudlearn.files import read_picture
from cloudlearn.formats import LabelledPicture, read_labelled
from cloudlearn.own import (
    TRAIN,
    CropSet,
    OwnSets,
    check_own,
    cut_own,
    grid_corners,
    judge_own,
    own_maps,
    own_scores,
    own_thresholds,
    own_view,
    read_own,
    read_whole,
    scaled,
    true_masks,
    worst_pictures,
)
from cloudlearn.prediction import load_run
from cloudlearn.runs import TrainRun, complete, execute, foreign_files
from cloudlearn.samples import UNKNOWN, Samples
from cloudlearn.scores import fit_thresholds, presence_confusion
from cloudlearn.tiles import predict
from cloudlearn.training import load_network_state

NAMES = ("leaf", "moss, wet")
SIZES = ((40, 52), (64, 64), (75, 90))


def scene(seed, shape):
    "A noisy picture with a leaf, and with moss in two of three."
    draw = np.random.default_rng(seed)
    masks = np.zeros((2, *shape), np.uint8)
    middle = [int(draw.integers(12, side - 12)) for side in shape[::-1]]
    cv2.circle(masks[0], middle, 9, 1, -1)
    if seed % 3:
        left, top = (int(draw.integers(0, side - 16)) for side in shape[::-1])
        masks[1, top : top + 12, left : left + 16] = 1
    picture = draw.normal(90, 10, (*shape, 3))
    for mask, colour in zip(masks, ((200, 120, 60), (60, 150, 200))):
        picture[mask > 0] = draw.normal(colour, 10, (int(mask.sum()), 3))
    return picture.clip(0, 255).astype(np.uint8), masks > 0


def write_folder(folder, count=16, sizes=SIZES, looked=lambda number, plane: True):
    "images/ and masks/CLASS/NAME.png; where nobody looked there is no PNG."
    for place in ("images", *(f"masks/{name}" for name in NAMES)):
        (folder / place).mkdir(parents=True)
    for number in range(count):
        picture, masks = scene(number, sizes[number % len(sizes)])
        Image.fromarray(picture).save(folder / "images" / f"p{number:02}.png")
        for plane, name in enumerate(NAMES):
            if looked(number, plane):
                png = Image.fromarray(masks[plane] * np.uint8(255))
                png.save(folder / "masks" / name / f"p{number:02}.png")
    return folder


def run_of(data, out, **more):
    "Small and quick."
    quick = dict(
        size=(64, 64),
        epochs=1,
        model="unet-zero",
        weights="none",
        progress=False,
        device="cpu",
        precision="32",
    )
    return TrainRun(data=data, out=out, **(quick | more))


def same_network(first, second):
    "Whether two runs ended with the same weights; the files hold the seconds of an epoch as well."
    name = "network-last.safetensors"
    one, two = (load_network_state(out / name)[0] for out in (first, second))
    return all(torch.equal(one[key], two[key]) for key in one.keys() | two.keys())


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    "Every third picture was not searched for moss."
    folder = tmp_path_factory.mktemp("own") / "data"
    return write_folder(folder, looked=lambda number, plane: not plane or number % 3 != 2)


@pytest.fixture(scope="module", params=["whole", "native"])
def done(request, data, tmp_path_factory):
    "A finished run of each frame."
    run = run_of(data, tmp_path_factory.mktemp("runs") / request.param, frame=request.param)
    run = replace(run, size=(32, 64)) if request.param == "native" else run
    return run, execute(TRAIN, run)


# ---------------------------------------------------------------------------------------- the files


def test_everything_is_written(done):
    run, table = done
    record = json.loads((run.out / "run.json").read_text())
    assert record["pipeline"] == "train" and record["frame"] == run.frame
    assert set(record["classes"]) == set(NAMES)
    assert {row["class"] for row in record["decisions"]} == set(NAMES)
    written = pd.read_csv(run.out / "scores.csv")
    pd.testing.assert_frame_equal(written, table, check_dtype=False)
    pictures = pd.read_csv(run.out / "pictures.csv")
    columns = "picture class present found dice iou recall precision"
    assert list(pictures.columns) == columns.split()
    test = [s for s in read_labelled(run.data).samples if s.split == "test"]
    assert record["pictures"]["test"] == len(test) == pictures["picture"].nunique()
    for name in NAMES:
        masks = {path.stem for path in (run.out / "masks" / name).iterdir()}
        assert masks == {sample.name for sample in test}
    for name in ("network-last.safetensors", "network-last.json", "network-log.csv"):
        assert (run.out / name).is_file()
    assert not list(run.out.rglob("*.tmp")) + list(run.out.glob("*.ckpt"))


def test_the_report_opens_with_the_worst(done):
    page = (done[0].out / "report.html").read_text()
    headings = re.findall(r"<h2>([^<]*)</h2>", page)
    assert headings[0] == "The worst pictures" and headings[1] == "Scores"
    assert {"Is it in the picture?", "Learning curves", "Picture by picture"} <= set(headings)
    assert "moss, wet" in page
    record = json.loads((done[0].out / "run.json").read_text())
    steps = sum(int(found) for found in re.findall(r"took only (\d+) steps", page))
    assert record["settings"]["epochs"] <= steps < 200


def test_the_masks_are_those_of_the_coco_file(done):
    run, _ = done
    found = json.loads((run.out / "masks.json").read_text())
    names = {row["id"]: row["name"] for row in found["categories"]}
    sized = {row["id"]: row for row in found["images"]}
    drawn = 0
    for row in found["annotations"]:
        image = sized[row["image_id"]]
        stem = image["file_name"].removesuffix(".png")
        path = run.out / "masks" / names[row["category_id"]] / f"{stem}.png"
        mask = np.asarray(Image.open(path))
        assert mask.shape == (image["height"], image["width"])
        packed = coco.frPyObjects(row["segmentation"], *row["segmentation"]["size"])
        assert (coco.decode(packed) * 255 == mask).all()
        assert row["bbox"] == coco.toBbox(packed).tolist() and row["area"] == coco.area(packed)
        drawn += 1
    full = [path for path in run.out.rglob("masks/*/*.png") if np.asarray(Image.open(path)).any()]
    assert drawn == len(full)


def test_opened_again_it_answers_as_it_did(done):
    run, _ = done
    loaded = load_run(run.out)
    answers = loaded.pipeline.answers(loaded.run, loaded.networks, loaded.decisions, False)
    assert set(answers.classes) == set(NAMES)
    for sample in read_labelled(run.data).samples:
        if sample.split != "test":
            continue
        picture = read_whole(sample.picture)
        for name, mask in zip(answers.classes, answers.masks(picture)):
            png = Image.open(run.out / "masks" / name / f"{sample.name}.png")
            assert ((np.asarray(png) > 0) == mask).all()
    probabilities = answers.probabilities(picture)
    assert probabilities.shape == (2, *picture.shape[:2]) and probabilities.dtype == np.float32
    flipped = loaded.pipeline.answers(loaded.run, loaded.networks, loaded.decisions, True)
    ahead, back = (flipped.probabilities(way) for way in (picture, picture[::-1]))
    assert abs(ahead - back[:, ::-1]).max() < 2e-2


def test_prediction_gives_the_masks_of_the_run(done, tmp_path):
    run, _ = done
    out = tmp_path / "predicted"
    words = ["predict", run.data / "images", "--run", run.out, "--out", out]
    found = call(*words)
    assert found.exit_code == 0, found.output
    for path in run.out.rglob("masks/*/*.png"):
        again = out / path.relative_to(run.out)
        assert (np.asarray(Image.open(again)) == np.asarray(Image.open(path))).all()
    assert len(list(out.rglob("masks/leaf/*.png"))) == 16


def test_scores_are_those_of_the_written_masks(done):
    run, table = done
    found = read_labelled(run.data)
    test = [sample for sample in found.samples if sample.split == "test"]
    rows = pd.read_csv(run.out / "pictures.csv").set_index(["picture", "class"])
    wanted = 0
    for sample in test:
        masks, known = true_masks(sample, found.classes)
        for name, true, looked in zip(found.classes, masks, known):
            assert ((sample.name, name) in rows.index) == looked
            if not looked:
                continue
            said = np.asarray(Image.open(run.out / "masks" / name / f"{sample.name}.png")) > 0
            both = 2 * (said & true).sum()
            dice = both / (said.sum() + true.sum()) if (said | true).any() else 1
            assert rows.loc[(sample.name, name), "dice"] == pytest.approx(dice)
            wanted += 1
    assert wanted == len(rows) == table["pictures"].sum()


# ----------------------------------------------------------------------- what it learns and answers


def test_it_learns_and_resumes_bit_for_bit(data, tmp_path):
    run = run_of(data, tmp_path / "a", frame="native", epochs=6, learning_rate=5e-3)
    table = execute(TRAIN, run)
    assert table.set_index("class").loc["leaf", "dice"] > 0.7
    taken = CropSet.__getitem__
    count = iter(range(10**6))

    def unplugged(self, index):
        if next(count) == 40:
            raise KeyboardInterrupt
        return taken(self, index)

    broken = replace(run, out=tmp_path / "b")
    with patch.object(CropSet, "__getitem__", unplugged), pytest.raises(KeyboardInterrupt):
        execute(TRAIN, broken)
    assert (broken.out / "network-resume.ckpt").exists()
    execute(TRAIN, replace(broken, resume=True))
    assert same_network(run.out, broken.out)
    for name in ("scores.csv", "pictures.csv", "masks.json"):
        assert (run.out / name).read_bytes() == (broken.out / name).read_bytes(), name
    with pytest.raises(ValueError, match="seed"):
        execute(TRAIN, replace(broken, resume=True, seed=1))


@pytest.mark.parametrize("frame", ["whole", "native"])
def test_what_nobody_looked_for_stays_unknown(data, tmp_path, frame):
    sets = read_own(data, run_of(data, tmp_path, frame=frame))
    moss = sets.classes.index("moss, wet")
    searched = [int(sample.name[1:]) % 3 != 2 for sample in sets.parts["train"]]
    rows = getattr(sets.train, "rows", range(len(searched)))
    assert sets.train.transform is not None and len(rows) == len(sets.train)
    for index, row in enumerate(rows):
        target = sets.train[index][1]
        expected = {0.0, 1.0} if searched[row] else {float(UNKNOWN)}
        assert set(target[moss].unique().tolist()) <= expected
        assert UNKNOWN not in target[1 - moss]
    still = own._seen(sets.parts["train"], run_of(data, tmp_path, frame=frame), sets.classes, False)
    targets = still.targets[:]
    unknown = (targets[:, moss] == UNKNOWN).all((1, 2))
    assert unknown.any() and not unknown.all()
    assert (unknown == (targets[:, moss] == UNKNOWN).any((1, 2))).all()


def test_a_class_that_nobody_tested_has_no_score(tmp_path):
    data = write_folder(tmp_path / "data", 12, looked=lambda number, plane: not plane or number < 2)
    sets = read_own(data, run_of(data, tmp_path / "run"))
    test = [s for s in sets.parts["test"] if "moss, wet" not in s.labels]
    sets = sets._replace(parts=sets.parts | {"test": test})
    network = own.own_network(run_of(data, tmp_path), 2)
    judged = judge_own(run_of(data, tmp_path), sets, network)
    row = judged.scores.set_index("class").loc["moss, wet"]
    assert row["pictures"] == 0 and np.isnan(row["dice"])
    assert (judged.confusion.set_index("class").loc["moss, wet"] == 0).all()
    assert own.report_own(
        run_of(data, tmp_path), sets, pd.DataFrame({"epoch": [1], "train_loss": [1.0]}), judged
    ).record["scores"]


def test_a_picture_larger_than_the_crops_has_no_seam(data, tmp_path):
    run = run_of(data, tmp_path, frame="native")
    assert own_view(replace(run, model="unet")).reach < own_view(run).reach  # it blends, see tiles
    network = own.place(own.own_network(run, 2), "cpu")
    draw = np.random.default_rng(0)
    picture = draw.integers(0, 256, (150, 1100, 3), dtype=np.uint8)
    maps = own_maps(network, picture, run)
    assert maps.shape == (2, 150, 1100)
    one = torch.from_numpy(predict(network, picture, 1120, view=own_view(run))).sigmoid().numpy()
    assert abs(maps - one).max() < 1e-5  # this network sees 94 pixels far, a tile 96
    small = own_maps(network, picture[:9, :7], run)
    assert small.shape == (2, 9, 7)
    reduced = own_maps(network, picture, replace(run, scale=0.5))
    assert reduced.shape == maps.shape


def test_a_whole_picture_is_answered_in_one_piece(data, tmp_path):
    run = run_of(data, tmp_path)
    network = own.place(own.own_network(run, 2), "cpu")
    picture = scene(3, (64, 64))[0]
    with torch.inference_mode():
        straight = network(torch.from_numpy(picture).permute(2, 0, 1)[None]).sigmoid()[0]
    assert abs(own_maps(network, picture, run) - straight.numpy()).max() < 1e-5
    assert own_maps(network, picture[:50, :20], run).shape == (2, 50, 20)


@settings(max_examples=40)
@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.tuples(st.integers(1, 40), st.integers(1, 40)),
    st.integers(0, 1000),
)
def test_a_crop_is_a_part_of_the_mirrored_picture(shape, size, seed):
    draw = np.random.default_rng(seed)
    picture = draw.integers(0, 256, (*shape, 3), dtype=np.uint8)
    target = draw.choice(np.array([0, 1, UNKNOWN], np.uint8), (*shape, 2))
    crops = CropSet([picture], [target], size)
    torch.manual_seed(seed)
    corners = [crops.corner(0) for _ in range(5)]
    for corner in corners:
        for at, side, crop in zip(corner, shape, size):
            assert 0 <= at <= side - crop if side >= crop else at == (side - crop) // 2
    torch.manual_seed(seed)
    found, mask = crops[0]
    top, left = corners[0]
    wide = [(60, 60), (60, 60), (0, 0)]
    for array, part in ((picture, found), (target, mask)):
        full = np.pad(array, wide, mode="reflect" if min(shape) > 1 else "symmetric")
        if min(shape) > 1:
            cut = full[60 + top :, 60 + left :][: size[0], : size[1]]
            assert (np.moveaxis(part.numpy(), 0, -1) == cut).all()
    assert found.dtype == torch.uint8 and mask.dtype == torch.float32


def test_crops_go_where_something_is_drawn():
    picture = np.zeros((300, 300, 3), np.uint8)
    target = np.zeros((300, 300, 1), np.uint8)
    target[200:204, 100:104] = 1
    crops = CropSet([picture], [target], (32, 32))
    torch.manual_seed(0)
    share = np.mean([bool(crops[0][1].any()) for _ in range(200)])
    assert 0.35 < share < 0.7
    assert len(crops) == 8 and len(CropSet([picture[:40, :40]], [target[:40, :40]], (32, 32))) == 2


@settings(max_examples=60)
@given(
    st.tuples(st.integers(1, 500), st.integers(1, 500)),
    st.tuples(st.integers(16, 128), st.integers(16, 128)),
)
def test_a_grid_covers_a_picture(shape, size):
    corners = grid_corners(shape, size, most=10**6)
    for axis in (0, 1):
        starts = sorted({corner[axis] for corner in corners})
        assert starts[0] <= 0 and starts[-1] + size[axis] >= shape[axis]
        assert all(after - before <= size[axis] for before, after in zip(starts, starts[1:]))
    assert grid_corners(shape, size) == corners or len(grid_corners(shape, size)) == 4


# ----------------------------------------------------------------------------- scores and decisions


@pytest.fixture
def square(tmp_path):
    "Eight pictures of one size, their masks, and maps that somebody might have predicted."
    folder = write_folder(
        tmp_path / "square", 8, [(40, 48)], looked=lambda number, plane: number + plane != 4
    )
    found = read_labelled(folder)
    masks, known = (np.stack(part) for part in zip(*(true_masks(s, NAMES) for s in found.samples)))
    draw = np.random.default_rng(1)
    maps = (0.35 * masks + draw.random(masks.shape) ** 2 * 0.6).astype(np.float32)
    return found.samples, masks, known, maps


class Known(nn.Module):
    "Stands for a network whose maps are given."


def answering(samples, maps):
    pictures = [read_whole(sample.picture) for sample in samples]

    def found(network, picture, run, flips=False):
        rows = [row for row, other in enumerate(pictures) if np.array_equal(other, picture)]
        return maps[rows[0]]

    return patch.object(own, "own_maps", found)


def test_thresholds_are_those_of_fit_thresholds(square, tmp_path):
    samples, masks, known, maps = square
    with answering(samples, maps):
        table = own_thresholds(run_of(None, tmp_path), Known(), samples, NAMES)
    fitted = fit_thresholds(maps, masks, known)
    assert (table["threshold"].to_numpy(np.float32) == fitted).all()
    said = cut_own(maps[0], table)
    assert (said == (maps[0] > fitted[:, None, None])).all()
    bare = [sample._replace(labels={"leaf": sample.labels.get("leaf", [])}) for sample in samples]
    with answering(samples, maps):
        table = own_thresholds(run_of(None, tmp_path), Known(), bare, NAMES).set_index("class")
    assert table.loc["moss, wet", "threshold"] == 0.5
    assert np.isnan(table.loc["moss, wet", "valid_dice"])


def test_scores_are_those_of_the_cars(square, tmp_path):
    samples, masks, known, maps = square
    sets = OwnSets("masks", NAMES, None, None, {"valid": samples, "test": samples}, ())
    run = run_of(None, tmp_path)
    with answering(samples, maps), patch.object(own, "place"):
        judged = judge_own(run, sets, Known())
    names = np.array([sample.name for sample in samples])
    arrays = Samples(
        names, np.zeros((8, 40, 48, 3), np.uint8), masks & known[..., None, None], known
    )
    said = maps > judged.decisions["threshold"].to_numpy(np.float32)[:, None, None]
    wanted = car_scores(said, arrays, NAMES)
    shared = [name for name in judged.scores if name in wanted]
    assert shared == list(judged.scores)
    pd.testing.assert_frame_equal(judged.scores, wanted[shared], check_dtype=False)
    rows = picture_scores(said, arrays, NAMES)
    columns = "picture class dice iou recall precision".split()
    pd.testing.assert_frame_equal(judged.pictures[columns], rows[columns], check_dtype=False)
    for plane, name in enumerate(NAMES):
        looked = known[:, plane]
        counts = presence_confusion(
            said[looked, plane : plane + 1].any((2, 3)),
            masks[looked, plane : plane + 1].any((2, 3)),
            [name],
        )
        row = judged.confusion.set_index("class").loc[name]
        assert row.tolist() == counts.loc[name].tolist()
    for sample, answers, planes in zip(samples, judged.answers, said):
        for runs, mask in zip(answers, planes):
            assert runs.sum() == mask.size and runs[1::2].sum() == mask.sum()


def test_the_worst_come_first():
    table = pd.DataFrame(
        {
            "picture": ["a", "a", "b", "b", "c"],
            "class": [*NAMES, *NAMES, "leaf"],
            "dice": [1, 0.5, 0.2, 0.3, 0.9],
        }
    )
    assert worst_pictures(table) == ["b", "a", "c"] and worst_pictures(table, 1) == ["b"]
    assert own_scores(
        table.assign(present=True, iou=1, pixels=1, pixels_found=1, pixels_right=1), ["leaf"]
    )["dice"].tolist() == [pytest.approx(0.7)]


def test_reading_keeps_the_scale(data):
    sample = next(s for s in read_labelled(data).samples if s.name == "p01")
    picture, target = own.load_own(sample, 0.5, NAMES)
    assert picture.shape == (32, 32, 3) and target.shape == (32, 32, 2)
    assert (picture == read_picture(sample.picture, (32, 32))).all()
    assert scaled((3, 2000), 0.1) == (1, 200)
    picture, target = own.load_own(LabelledPicture("x", "test", sample.picture, {}), 1.0, NAMES)
    assert picture.shape == (64, 64, 3) and (target == UNKNOWN).all()


# ----------------------------------------------------------------------------- networks, refusals


def test_every_architecture_can_be_named():
    choices = next(item for item in fields(TrainRun) if item.name == "model").metadata["choices"]
    assert set(choices) == {*smp.MODEL_ARCHITECTURES_MAPPING, *ZERO}


@pytest.mark.parametrize("model", [*smp.MODEL_ARCHITECTURES_MAPPING, "deeplabv3-zero"])
def test_every_architecture_is_built(tmp_path, model):
    run = complete(run_of(None, tmp_path, model=model, size=(128, 160)))
    check_own(run)
    network = own.own_network(run, 3).eval()
    with torch.inference_mode():
        logits = network(torch.zeros(1, 3, 128, 160, dtype=torch.uint8))
    assert logits.shape == (1, 3, 128, 160)
    again = own.own_network(run, 3).state_dict()
    assert all(torch.equal(again[name], tensor) for name, tensor in network.state_dict().items())


def test_a_network_of_the_library_trains(data, tmp_path):
    run = run_of(data, tmp_path / "run", model="fpn", encoder="resnet18")
    assert len(execute(TRAIN, run)) == 2
    state, settings_ = load_network_state(run.out / "network-last.safetensors")
    assert settings_["classes"] and any("encoder" in name for name in state)


@pytest.mark.parametrize(
    "wish, words",
    [
        (dict(size=(64, 100)), "--size 64x100 does not divide by 32"),
        (dict(scale=0.5), "--scale 0.5: it belongs to --frame native"),
        (dict(model="pan", encoder="resnet18"), "takes no pictures of 64x64"),
        (dict(model="dpt", encoder="resnet18"), "take tu-vit"),
        (dict(model="unet", encoder="resnet43"), "did you mean resnet34"),
        (dict(classes=("leaf", "bark")), "--classes leaf,bark: nobody looked for bark"),
        (dict(group="("), "not a regular expression"),
    ],
)
def test_refused_before_anything_is_trained(data, tmp_path, wish, words):
    run = run_of(data, tmp_path / "run", **wish)
    with pytest.raises(ValueError, match=re.escape(words)) as error:
        execute(TRAIN, run)
    assert "\n" not in str(error.value) and not run.out.exists()


def test_no_gpu_is_said(data, tmp_path):
    with patch.object(torch.accelerator, "is_available", return_value=False):
        with pytest.raises(ValueError, match="--device gpu: torch finds none"):
            check_own(run_of(data, tmp_path, device="gpu"))


def test_too_little_is_said(tmp_path):
    folder = write_folder(tmp_path / "few", 2)
    with pytest.raises(ValueError, match="three are needed"):
        execute(TRAIN, run_of(folder, tmp_path / "run"))
    empty = write_folder(tmp_path / "empty", 6)
    for path in empty.rglob("masks/*/*.png"):
        Image.fromarray(np.zeros_like(np.asarray(Image.open(path)))).save(path)
    with pytest.raises(ValueError, match="at least two are needed"):
        execute(TRAIN, run_of(empty, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_a_fault_of_the_data_harms_no_earlier_result(done):
    run, _ = done
    before = {path: path.read_bytes() for path in run.out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError):
        execute(TRAIN, replace(run, classes=("bark",)))
    assert before == {path: path.read_bytes() for path in run.out.rglob("*") if path.is_file()}


# -------------------------------------------------------------------------------------- the command


def call(*words):
    return CliRunner().invoke(cli.app, [str(word) for word in words], prog_name="cloudlearn")


def test_the_command(data, tmp_path):
    words = "--size 64x64 --epochs 1 --model unet-zero --weights none --classes leaf".split()
    found = call("train", data, "--out", tmp_path / "run", *words, "--frame", "native")
    assert found.exit_code == 0, found.output
    assert found.stdout.splitlines()[0].split()[:3] == ["class", "pictures", "present"]
    assert found.stdout.splitlines()[-1] == f"report: {tmp_path / 'run' / 'report.html'}"
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["classes"] == ["leaf"] and record["settings"]["classes"] == ["leaf"]
    config = ["--config", tmp_path / "run" / "run.json"]
    again = call("train", data, "--out", tmp_path / "two", *config, "--log", "tensorboard")
    assert again.exit_code == 0, again.output
    assert list((tmp_path / "two" / "network-tensorboard").glob("events.out.*"))
    assert foreign_files(tmp_path / "two") == []
    one, two = tmp_path / "run", tmp_path / "two"
    assert same_network(one, two)
    assert (one / "scores.csv").read_bytes() == (two / "scores.csv").read_bytes()


def test_the_command_needs_a_folder(tmp_path):
    missing = call("train")
    assert missing.exit_code == 2 and "DIR" in missing.stderr
    with pytest.raises(ValueError, match="needs the folder of your own labelled pictures"):
        execute(TRAIN, TrainRun(out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()
    nowhere = call("train", tmp_path / "nowhere", "--out", tmp_path / "run", "--weights", "none")
    assert nowhere.exit_code == 2 and "there is no such folder" in nowhere.stderr
    twice = call("train", tmp_path, "--classes", "leaf,,moss")
    assert twice.exit_code == 2 and "different names" in twice.stderr


def test_check_knows_any_folder(data):
    found = call("check", data)
    assert found.exit_code == 0, found.output
    classes = ", ".join(read_labelled(data).classes)
    assert found.stdout.splitlines()[-1] == (
        f"{data}: masks layout, 16 pictures, classes {classes}, no faults"
    )
