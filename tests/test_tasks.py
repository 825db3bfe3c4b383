"""Boxes, instances, polygons, IoU, NMS and average precision against references; the panels; the two networks; the experiment."""
import contextlib
import io
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
import torch
import torchvision.ops as ops
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy import ndimage

from cloudlearn.tasks import (KINDS, Answer, answer_scenes, average_precision, box_iou, box_masks, choose_cuts, class_masks, joined_answers, mask_boxes,
                              mask_iou, mask_polygons, mask_things, nms, panel_scene, pixel_answers, pixel_maps, polygons_mask, score_answers, show_boxes,
                              tasks_experiment, tiny_detector, tiny_segmenter, train_detector, train_segmenter, true_answer)

matplotlib.use("Agg")
MASKS = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: arrays(bool, shape))
FAST = settings(max_examples=60, deadline=None)


def random_boxes(rng, n, whole=False):
    corner, size = rng.uniform(0, 30, (n, 2)), rng.uniform(8, 20, (n, 2))
    if whole: corner, size = corner.round(), size.round()
    return np.hstack([corner, corner + size])


# ---------------------------------------------------------------------------------------------- panels

@pytest.mark.parametrize("seed", range(12))
def test_panels(seed):
    for touching in (False, True):
        scene = panel_scene(seed, touching)
        again, large = panel_scene(seed, touching), panel_scene(seed, touching, side=160)
        assert scene.picture.shape == (64, 64, 3) and scene.picture.dtype == np.uint8 and scene.things.dtype == bool
        assert (scene.picture == again.picture).all() and (scene.things == again.things).all()
        assert (scene.kinds == large.kinds).all() and large.things.shape == (len(scene.kinds), 160, 160)
        assert all(thing.sum() >= 20 for thing in scene.things)
        dents = scene.things[scene.kinds == 0]
        assert dents.sum(0).max(initial=0) <= 1                                 # dents never share a pixel
        assert (len(mask_things(dents.any(0))) < len(dents)) == touching
        scratches = scene.things[scene.kinds == 1]
        assert len(mask_things(scratches.any(0))) == len(scratches)
        for a, b in zip(mask_boxes(scene.things) * 2.5, mask_boxes(large.things)):
            assert np.abs(a - b).max() < 4                                      # the same places at another size


def test_panels_vary_and_refuse():
    scenes = [panel_scene(seed) for seed in range(60)]
    counts = np.array([np.bincount(scene.kinds, minlength=2) for scene in scenes])
    assert set(counts[:, 0]) == {0, 1, 2, 3} and set(counts[:, 1]) == {0, 1, 2}
    assert len({scene.picture.tobytes() for scene in scenes}) == 60
    with pytest.raises(ValueError, match="32 pixels or more, got 31"): panel_scene(0, side=31)


# ---------------------------------------------------------------------------------------------- conversions

@FAST
@given(st.integers(0, 2**32), st.integers(0, 5))
def test_boxes_of_masks(seed, n):
    rng = np.random.default_rng(seed)
    masks = rng.random((n, rng.integers(1, 20), rng.integers(1, 20))) < 0.1
    masks[:, rng.integers(masks.shape[1]), rng.integers(masks.shape[2])] = True
    boxes = mask_boxes(masks)
    assert boxes.shape == (n, 4)
    for mask, (x0, y0, x1, y1) in zip(masks, boxes.astype(int)):
        rows, columns = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert (boxes - [0, 0, 1, 1] == ops.masks_to_boxes(torch.from_numpy(masks)).numpy()).all()
    filled = box_masks(boxes, masks.shape[1:])
    assert (filled >= masks).all() and (mask_boxes(filled) == boxes).all()
    assert (filled.sum((1, 2)) == (boxes[:, 2:] - boxes[:, :2]).prod(1)).all()


def test_boxes_refuse():
    with pytest.raises(ValueError, match="mask 1 has no pixel"): mask_boxes(np.array([[[True]], [[False]]]))
    with pytest.raises(ValueError, match="height, width"): mask_boxes(np.ones((3, 3)))


def test_box_masks_by_centre():
    assert box_masks([[0.5, 0, 1.5, 1]], (1, 3)).tolist() == [[[True, False, False]]]      # a centre on the left edge is in, on the right edge out
    assert box_masks([[-5, -5, 99, 99]], (2, 3)).all() and box_masks(np.zeros((0, 4)), (2, 3)).shape == (0, 2, 3)


@FAST
@given(MASKS)
def test_things(mask):
    things = mask_things(mask)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert len(things) == count and things.shape[1:] == mask.shape
    assert (things.sum(0) == mask).all()
    assert {thing.tobytes() for thing in things} == {(labels == n).tobytes() for n in range(1, count + 1)}


@FAST
@given(MASKS)
def test_polygons(mask):
    polygons = mask_polygons(mask)
    assert (polygons_mask(polygons, mask.shape) == mask).all()
    area = 0
    for points in polygons:
        steps = np.roll(points, -1, axis=0) - points
        assert ((steps == 0).sum(1) == 1).all()                     # along the pixel edges, and no corner twice in a row
        turn = np.roll(steps, -1, axis=0)
        assert ((steps[:, 0] == 0) != (turn[:, 0] == 0)).all()      # corners only
        area += (points[:, 0] * np.roll(points[:, 1], -1) - points[:, 1] * np.roll(points[:, 0], -1)).sum() / 2
    assert abs(area) == mask.sum()                                  # outlines and holes turn in opposite senses


@pytest.mark.parametrize("seed", range(6))
def test_polygons_are_read_by_coco(seed):
    scene = panel_scene(seed, touching=True)
    for thing in scene.things:
        flat = [points.ravel().tolist() for points in mask_polygons(thing)]
        read = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *thing.shape)))
        assert mask_iou(thing[None], read[None].astype(bool))[0, 0] > 0.9


# ---------------------------------------------------------------------------------------------- overlap

@FAST
@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(0, 9))
def test_overlaps(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = random_boxes(rng, n, whole=True), random_boxes(rng, m, whole=True)
    ours = box_iou(a, b)
    assert ours.shape == (n, m)
    np.testing.assert_allclose(ours, ops.box_iou(torch.tensor(a), torch.tensor(b)).numpy(), atol=1e-12)
    np.testing.assert_allclose(mask_iou(box_masks(a, (60, 60)), box_masks(b, (60, 60))), ours, atol=1e-12)      # whole boxes are masks


def test_overlap_of_nothing():
    with pytest.raises(ValueError, match="box 1 is"): box_iou([[0, 0, 1, 1], [3, 0, 2, 1]], [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="box 0 is"): box_iou([[0, 0, 1, 1]], [[0, 0, 1, np.nan]])
    assert box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]).tolist() == [[0]]
    assert mask_iou(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), bool)).tolist() == [[0]]


@FAST
@given(st.integers(0, 2**32), st.integers(0, 40), st.floats(0.05, 0.95))
def test_nms(seed, n, limit):
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, n), rng.random(n).round(1)
    assert nms(boxes, scores, limit).tolist() == ops.nms(torch.tensor(boxes), torch.tensor(scores), limit).tolist()


def test_nms_keeps_at_the_limit():
    half = [[0, 0, 2, 1], [0, 0, 1, 1]]
    assert nms(half, [0.9, 0.8], 0.5).tolist() == [0, 1] and nms(half, [0.9, 0.8], 0.49).tolist() == [0]


# ---------------------------------------------------------------------------------------------- average precision

def coco_ap(found, true, iou):
    "pycocotools' AP of one class; each found and true entry is per picture: (boxes, scores) and boxes."
    def size(box): return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]
    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        marks = [{"image_id": n, "category_id": 1, "bbox": size(b), "area": float((b[2:] - b[:2]).prod()), "iscrowd": 0} for n, bs in enumerate(true) for b in bs]
        truth.dataset = {"images": [{"id": n} for n in range(len(true))], "categories": [{"id": 1}], "annotations": [m | {"id": n + 1} for n, m in enumerate(marks)]}
        truth.createIndex()
        answers = truth.loadRes([{"image_id": n, "category_id": 1, "bbox": size(b), "score": s} for n, (bs, ss) in enumerate(found) for b, s in zip(bs, ss)])
        judge = COCOeval(truth, answers, "bbox")
        judge.params.iouThrs = np.array([iou])
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][0, :, 0, 0, -1].mean()


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_cocos(seed, iou):
    rng = np.random.default_rng(seed)
    true = [random_boxes(rng, n) for n in rng.integers(0, 9, 5)] + [random_boxes(rng, 3)]
    found = [(np.vstack([*(t + rng.uniform(-3, 3, t.shape) for _ in range(2)), random_boxes(rng, 4)]), rng.random(2 * len(t) + 4).round(1)) for t in true]
    ours = average_precision([box_iou(b, t) for (b, _), t in zip(found, true)], [s for _, s in found], iou)
    assert ours == pytest.approx(coco_ap(found, true, iou), abs=1e-12)


def test_average_precision_counts_a_hundred():
    rng = np.random.default_rng(0)
    true, wrong = random_boxes(rng, 5), random_boxes(rng, 130) + 200
    for place, want in ((99, True), (100, False)):
        boxes = np.vstack([wrong[:place], true[:1], wrong[place:]])
        scores = np.linspace(1, 0.1, len(boxes))
        ours = average_precision([box_iou(boxes, true)], [scores])
        assert (ours > 0) == want and ours == pytest.approx(coco_ap([(boxes, scores)], [true], 0.5), abs=1e-12)


def test_average_precision_at_the_edges():
    assert average_precision([np.array([[0.5]])], [[0.3]]) == 1 and average_precision([np.array([[0.4999]])], [[0.3]]) == 0
    assert np.isnan(average_precision([np.zeros((2, 0))], [[0.1, 0.2]]))
    assert average_precision([np.zeros((0, 2)), np.zeros((1, 0))], [[], [0.5]]) == 0
    assert average_precision([np.array([[0.9, 0.6], [0.8, 0.1]])], [[0.9, 0.8]]) == pytest.approx(51 / 101)      # the first takes the thing, the second has none
    with pytest.raises(ValueError): average_precision([np.eye(2)], [])


# ---------------------------------------------------------------------------------------------- answers

def scenes_of(n, touching=False, first=0): return [panel_scene(first + seed, touching) for seed in range(n)]


def test_truth_scores_full_marks():
    truth = [true_answer(scene) for scene in scenes_of(12, touching=True)]
    for row, name in zip(score_answers(truth, truth, choose_cuts(truth, truth)), KINDS):
        assert row == {"class": name, "right": 1, "box_ap": 1, "dice": 1, "mask_ap": 1, "miscount": 0}


def test_components_of_perfect_masks():
    apart, touch = scenes_of(20), scenes_of(20, touching=True)
    for scenes, count in ((apart, True), (touch, False)):
        perfect = np.stack([class_masks(scene) for scene in scenes]).astype(np.float32)
        found, truth = pixel_answers(perfect), [true_answer(scene) for scene in scenes]
        dent, scratch = score_answers(found, truth, (0.5, 0.5))
        assert dent["dice"] == scratch["dice"] == scratch["mask_ap"] == 1
        assert (dent["mask_ap"] == 1) == (dent["box_ap"] == 1) == (dent["miscount"] == 0) == count
        assert all((answer.scores == 1).all() for answer in found)


def test_joined_masks_lie_in_box_and_class():
    scene = panel_scene(21, touching=True)
    maps = class_masks(scene)[None].astype(np.float32)
    truth = true_answer(scene)
    boxes = truth._replace(things=box_masks(truth.boxes, (64, 64)))
    joined = joined_answers([boxes], maps)[0]
    assert (joined.things <= boxes.things).all() and (joined.things >= scene.things).all()
    assert (joined.things == (boxes.things & class_masks(scene)[scene.kinds])).all()
    assert mask_iou(joined.things, scene.things).diagonal().min() > mask_iou(boxes.things, scene.things).diagonal().min()


def answer(kinds, scores):
    n = len(kinds)
    return Answer(np.array(kinds, int), np.array(scores, float), np.tile([0.0, 0, 2, 2], (n, 1)), np.ones((n, 2, 2), bool))


def test_cuts_and_decisions():
    truth = [answer([0], [1]), answer([0], [1]), answer([], [])]
    found = [answer([0, 0], [0.9, 0.32]), answer([0, 0], [0.6, 0.28]), answer([0, 1], [0.33, 0.52])]
    cuts = choose_cuts(found, truth)
    assert cuts.tolist() == [0.35, 0.55]                    # the lowest cut that counts right
    dent, scratch = score_answers(found, truth, cuts)
    assert dent["miscount"] == 0 and dent["right"] == 1 and dent["dice"] == 1
    assert scratch["right"] == 1 and np.isnan(scratch["dice"]) and np.isnan(scratch["box_ap"])
    loose = score_answers(found, truth, (0.33, 0.52))
    assert loose[0]["miscount"] == pytest.approx(1 / 3) and loose[0]["right"] == pytest.approx(2 / 3) and loose[1]["right"] == pytest.approx(2 / 3)
    assert score_answers(found, truth, (0.95, 0.95))[0]["dice"] == 0


# ---------------------------------------------------------------------------------------------- networks

def test_networks_start_from_their_seed():
    state = torch.random.get_rng_state()
    for make in (tiny_detector, tiny_segmenter):
        one, same, other = (make(seed).state_dict() for seed in (1, 1, 2))
        assert all(torch.equal(one[key], same[key]) for key in one) and not all(torch.equal(one[key], other[key]) for key in one)
    assert torch.equal(state, torch.random.get_rng_state())


def test_segmenter_takes_any_size():
    maps = pixel_maps(tiny_segmenter(), np.zeros((2, 32, 48, 3), np.uint8))
    assert maps.shape == (2, 2, 32, 48) and maps.min() > 0 and maps.max() < 0.5


def test_training_is_repeatable_and_learns():
    scenes = scenes_of(16, first=500)
    pictures, truth = np.stack([scene.picture for scene in scenes]), np.stack([class_masks(scene) for scene in scenes])
    maps = []
    for _ in range(2):
        network = tiny_segmenter()
        assert train_segmenter(network, scenes, steps=25) > 0
        maps.append(pixel_maps(network, pictures))
    assert (maps[0] == maps[1]).all()
    assert maps[0][:, 0][truth[:, 0]].mean() > 2 * maps[0][:, 0][~truth[:, 0]].mean()
    detector = tiny_detector()
    train_detector(detector, scenes, steps=6)
    found = answer_scenes(detector, tiny_segmenter(), scenes[:3])
    assert list(found) == ["boxes", "pixels", "both"]
    for answers in found.values():
        assert len(answers) == 3
        for one in answers: assert len(one.kinds) == len(one.scores) == len(one.boxes) == len(one.things)


def test_detector_takes_pictures_as_they_are():
    "FCOS would enlarge them; at 64 pixels it must not."
    assert tiny_detector().eval().transform([torch.zeros(3, 64, 64)])[0].tensors.shape == (1, 3, 64, 64)


def test_experiment():
    table = tasks_experiment(seeds=(4,), budgets=(0.05,), train=8, valid=4, test=8, groups=2)
    assert len(table) == 3 * 4 * 2 and set(table.arm) == {"boxes", "pixels", "both"} and set(table["class"]) == set(KINDS)
    assert not table.duplicated(["seed", "budget", "arm", "picture", "class"]).any()
    assert (table.groupby("panels").picture.unique().apply(sorted).to_dict()) == {"apart": [0, 2], "touching": [1, 3]}
    wide = table.pivot(index=["picture", "class"], columns="arm", values=["box_ap", "right", "miscount"])
    for measure in ("box_ap", "right", "miscount"): assert wide[measure].boxes.equals(wide[measure].both)      # the same boxes


# ---------------------------------------------------------------------------------------------- drawing, and a light import

def test_boxes_are_drawn():
    scene = panel_scene(21, touching=True)
    ax = show_boxes(scene.picture, mask_boxes(scene.things), scene.kinds, title="a panel")
    assert len(ax.patches) == len(scene.things) and ax.get_title() == "a panel"
    assert tuple(ax.patches[0].get_xy()) == tuple(mask_boxes(scene.things)[0, :2])


def test_import_is_light():
    code = "import sys, cloudlearn.tasks; print([m for m in ('torch', 'pandas', 'matplotlib', 'sklearn') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"
