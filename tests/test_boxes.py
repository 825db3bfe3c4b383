"""One language for answers, their scores, the two networks, and the experiment."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from cloudlearn.boxes import (
    Answer,
    answer_scenes,
    choose_cuts,
    class_masks,
    joined_answers,
    pixel_answers,
    pixel_maps,
    score_answers,
    tasks_experiment,
    tiny_detector,
    tiny_segmenter,
    train_detector,
    train_tiny_segmenter,
    true_answer,
)
from cloudlearn.tasks import PANEL_KINDS, box_masks, mask_iou, panel_scene

# ---------------------------------------------------------------------- answers


def scenes_of(n, touching=False, first=0):
    return [panel_scene(first + seed, touching) for seed in range(n)]


def test_truth_scores_full_marks():
    truth = [true_answer(scene) for scene in scenes_of(12, touching=True)]
    full = {"right": 1, "box_ap": 1, "dice": 1, "mask_ap": 1, "miscount": 0}
    for row, name in zip(score_answers(truth, truth, choose_cuts(truth, truth)), PANEL_KINDS):
        assert row == {"class": name} | full


def test_components_of_perfect_masks():
    apart, touch = scenes_of(20), scenes_of(20, touching=True)
    for scenes, count in ((apart, True), (touch, False)):
        perfect = np.stack([class_masks(scene) for scene in scenes]).astype(np.float32)
        found, truth = pixel_answers(perfect), [true_answer(scene) for scene in scenes]
        dent, scratch = score_answers(found, truth, (0.5, 0.5))
        assert dent["dice"] == scratch["dice"] == scratch["mask_ap"] == 1
        for measure, perfect_score in (("mask_ap", 1), ("box_ap", 1), ("miscount", 0)):
            assert (dent[measure] == perfect_score) == count
        assert all((answer.scores == 1).all() for answer in found)


def test_joined_masks_lie_in_box_and_class():
    scene = panel_scene(21, touching=True)
    maps = class_masks(scene)[None].astype(np.float32)
    truth = true_answer(scene)
    boxes = truth._replace(things=box_masks(truth.boxes, (64, 64)))
    joined = joined_answers([boxes], maps)[0]
    assert (joined.things <= boxes.things).all()
    assert (joined.things >= scene.things).all()
    assert (joined.things == (boxes.things & class_masks(scene)[scene.kinds])).all()
    better = mask_iou(joined.things, scene.things).diagonal()
    assert better.min() > mask_iou(boxes.things, scene.things).diagonal().min()


def answer(kinds, scores):
    n = len(kinds)
    return Answer(
        np.array(kinds, int),
        np.array(scores, float),
        np.tile([0.0, 0, 2, 2], (n, 1)),
        np.ones((n, 2, 2), bool),
    )


def test_cuts_and_decisions():
    truth = [answer([0], [1]), answer([0], [1]), answer([], [])]
    pairs = (([0, 0], [0.9, 0.32]), ([0, 0], [0.6, 0.28]), ([0, 1], [0.33, 0.52]))
    found = [answer(kinds, scores) for kinds, scores in pairs]
    cuts = choose_cuts(found, truth)
    assert cuts == pytest.approx([0.5, 0.55])  # of those that count right, the nearest to one half
    dent, scratch = score_answers(found, truth, cuts)
    assert dent["miscount"] == 0 and dent["right"] == 1 and dent["dice"] == 1
    assert scratch["right"] == 1
    assert np.isnan(scratch["dice"]) and np.isnan(scratch["box_ap"])
    loose = score_answers(found, truth, (0.33, 0.52))
    assert loose[0]["miscount"] == pytest.approx(1 / 3)
    assert loose[0]["right"] == loose[1]["right"] == pytest.approx(2 / 3)
    assert score_answers(found, truth, (0.95, 0.95))[0]["dice"] == 0


# ---------------------------------------------------------------------- networks


def test_networks_start_from_their_seed():
    state = torch.random.get_rng_state()
    for make in (tiny_detector, tiny_segmenter):
        one, same, other = (make(seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert not all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(state, torch.random.get_rng_state())


def test_segmenter_takes_any_size():
    maps = pixel_maps(tiny_segmenter(), np.zeros((2, 32, 48, 3), np.uint8))
    assert maps.shape == (2, 2, 32, 48) and maps.min() > 0 and maps.max() < 0.5


def test_training_is_repeatable_and_learns():
    scenes = scenes_of(16, first=500)
    pictures = np.stack([scene.picture for scene in scenes])
    truth = np.stack([class_masks(scene) for scene in scenes])
    maps = []
    for _ in range(2):
        network = tiny_segmenter()
        assert train_tiny_segmenter(network, scenes, steps=25) > 0
        maps.append(pixel_maps(network, pictures))
    assert (maps[0] == maps[1]).all()
    dent, there = maps[0][:, 0], truth[:, 0]
    assert dent[there].mean() > 2 * dent[~there].mean()
    detector = tiny_detector()
    train_detector(detector, scenes, steps=6)
    found = answer_scenes(detector, tiny_segmenter(), scenes[:3])
    assert list(found) == ["boxes", "pixels", "both"]
    for answers in found.values():
        assert len(answers) == 3
        for one in answers:
            assert len(one.kinds) == len(one.scores) == len(one.boxes) == len(one.things)


def test_detector_takes_pictures_as_they_are():
    "FCOS would enlarge them; at 64 pixels it must not."
    batch, _ = tiny_detector().eval().transform([torch.zeros(3, 64, 64)])
    assert batch.tensors.shape == (1, 3, 64, 64)


def test_experiment():
    table = tasks_experiment(seeds=(4,), budgets=(0.05,), train=8, valid=4, test=8, groups=2)
    assert len(table) == 3 * 4 * 2 and set(table["class"]) == set(PANEL_KINDS)
    assert set(table.arm) == {"boxes", "pixels", "both"}
    assert not table.duplicated(["seed", "budget", "arm", "picture", "class"]).any()
    groups = table.groupby("panels").picture.unique().apply(sorted).to_dict()
    assert groups == {"apart": [0, 2], "touching": [1, 3]}
    shared = ["box_ap", "right", "miscount"]  # boxes and both have the same boxes
    wide = table.pivot(index=["picture", "class"], columns="arm", values=shared)
    for measure in shared:
        assert wide[measure].boxes.equals(wide[measure].both)


def test_import_is_light():
    code = (
        "import sys, cloudlearn.boxes; "
        "print({'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
