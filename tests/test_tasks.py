"""Boxes, instances, polygons, IoU, NMS and average precision against references; the panels."""

import contextlib
import io
import subprocess
import sys

import matplotlib
import matplotlib.pyplot as plt
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

from cloudlearn.tasks import (
    average_precision,
    box_iou,
    box_masks,
    draw_boxes,
    mask_boxes,
    mask_iou,
    mask_polygons,
    mask_things,
    nms,
    panel_scene,
    polygons_mask,
    precision_recall,
)

matplotlib.use("Agg")
SHAPES = st.tuples(st.integers(1, 14), st.integers(1, 14))
MASKS = SHAPES.flatmap(lambda shape: arrays(bool, shape))
FAST = settings(max_examples=60, deadline=None)


def random_boxes(rng, n, whole=False):
    corner, size = rng.uniform(0, 30, (n, 2)), rng.uniform(8, 20, (n, 2))
    if whole:
        corner, size = corner.round(), size.round()
    return np.hstack([corner, corner + size])


# ---------------------------------------------------------------------- panels


@pytest.mark.parametrize("seed", range(12))
def test_panels(seed):
    for touching in (False, True):
        scene = panel_scene(seed, touching)
        again, large = panel_scene(seed, touching), panel_scene(seed, touching, side=160)
        assert scene.picture.shape == (64, 64, 3) and scene.picture.dtype == np.uint8
        assert scene.things.dtype == bool
        assert (scene.picture == again.picture).all()
        assert (scene.things == again.things).all()
        assert (scene.kinds == large.kinds).all()
        assert large.things.shape == (len(scene.kinds), 160, 160)
        assert all(thing.sum() >= 20 for thing in scene.things)
        dents = scene.things[scene.kinds == 0]
        assert dents.sum(0).max(initial=0) <= 1  # dents never share a pixel
        assert (len(mask_things(dents.any(0))) < len(dents)) == touching
        scratches = scene.things[scene.kinds == 1]
        assert len(mask_things(scratches.any(0))) == len(scratches)
        for a, b in zip(mask_boxes(scene.things) * 2.5, mask_boxes(large.things)):
            assert np.abs(a - b).max() < 4  # the same places at another size


def test_panels_vary_and_refuse():
    scenes = [panel_scene(seed) for seed in range(60)]
    counts = np.array([np.bincount(scene.kinds, minlength=2) for scene in scenes])
    assert set(counts[:, 0]) == {0, 1, 2, 3} and set(counts[:, 1]) == {0, 1, 2}
    assert len({scene.picture.tobytes() for scene in scenes}) == 60
    with pytest.raises(ValueError, match="32 pixels or more, got 31"):
        panel_scene(0, side=31)


# ---------------------------------------------------------------------- conversions


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
    with pytest.raises(ValueError, match="mask 1 has no pixel"):
        mask_boxes(np.array([[[True]], [[False]]]))
    with pytest.raises(ValueError, match="height, width"):
        mask_boxes(np.ones((3, 3)))


def test_box_masks_by_centre():
    # a centre on the left edge is in, one on the right edge is out
    assert box_masks([[0.5, 0, 1.5, 1]], (1, 3)).tolist() == [[[True, False, False]]]
    assert box_masks([[-5, -5, 99, 99]], (2, 3)).all()
    assert box_masks(np.zeros((0, 4)), (2, 3)).shape == (0, 2, 3)


@FAST
@given(MASKS)
def test_things(mask):
    things = mask_things(mask)
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    assert len(things) == count and things.shape[1:] == mask.shape
    assert (things.sum(0) == mask).all()
    theirs = {(labels == n).tobytes() for n in range(1, count + 1)}
    assert {thing.tobytes() for thing in things} == theirs


@FAST
@given(MASKS)
def test_polygons(mask):
    polygons = mask_polygons(mask)
    assert (polygons_mask(polygons, mask.shape) == mask).all()
    area = 0
    for points in polygons:
        steps = np.roll(points, -1, axis=0) - points
        # along the pixel edges, and no corner twice in a row
        assert ((steps == 0).sum(1) == 1).all()
        turn = np.roll(steps, -1, axis=0)
        assert ((steps[:, 0] == 0) != (turn[:, 0] == 0)).all()  # corners only
        (x, y), (next_x, next_y) = points.T, np.roll(points, -1, axis=0).T
        area += (x * next_y - y * next_x).sum() / 2
    assert abs(area) == mask.sum()  # outlines and holes turn in opposite senses


@pytest.mark.parametrize("seed", range(6))
def test_polygons_are_read_by_coco(seed):
    scene = panel_scene(seed, touching=True)
    for thing in scene.things:
        flat = [points.ravel().tolist() for points in mask_polygons(thing)]
        read = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(flat, *thing.shape)))
        assert mask_iou(thing[None], read[None].astype(bool))[0, 0] > 0.9


# ---------------------------------------------------------------------- overlap


@FAST
@given(st.integers(0, 2**32), st.integers(0, 9), st.integers(0, 9))
def test_overlaps(seed, n, m):
    rng = np.random.default_rng(seed)
    a, b = random_boxes(rng, n, whole=True), random_boxes(rng, m, whole=True)
    ours = box_iou(a, b)
    assert ours.shape == (n, m)
    theirs = ops.box_iou(torch.tensor(a), torch.tensor(b)).numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-12)
    filled = mask_iou(box_masks(a, (60, 60)), box_masks(b, (60, 60)))  # whole boxes are masks
    np.testing.assert_allclose(filled, ours, atol=1e-12)


def test_overlap_of_nothing():
    with pytest.raises(ValueError, match="box 1 is"):
        box_iou([[0, 0, 1, 1], [3, 0, 2, 1]], [[0, 0, 1, 1]])
    with pytest.raises(ValueError, match="box 0 is"):
        box_iou([[0, 0, 1, 1]], [[0, 0, 1, np.nan]])
    assert box_iou([[1, 1, 1, 1]], [[1, 1, 1, 1]]).tolist() == [[0]]
    assert mask_iou(np.zeros((1, 2, 2), bool), np.zeros((1, 2, 2), bool)).tolist() == [[0]]


@FAST
@given(st.integers(0, 2**32), st.integers(0, 40), st.floats(0.05, 0.95))
def test_nms(seed, n, limit):
    rng = np.random.default_rng(seed)
    boxes, scores = random_boxes(rng, n), rng.random(n).round(1)
    theirs = ops.nms(torch.tensor(boxes), torch.tensor(scores), limit)
    assert nms(boxes, scores, limit).tolist() == theirs.tolist()


def test_nms_keeps_at_the_limit():
    half = [[0, 0, 2, 1], [0, 0, 1, 1]]
    assert nms(half, [0.9, 0.8], 0.5).tolist() == [0, 1]
    assert nms(half, [0.9, 0.8], 0.49).tolist() == [0]


# ---------------------------------------------------------------------- average precision


def coco_ap(found, true, iou):
    "pycocotools' AP of one class; per picture, found is (boxes, scores) and true is boxes."

    def size(box):
        return [*box[:2].tolist(), *(box[2:] - box[:2]).tolist()]

    truth = COCO()
    with contextlib.redirect_stdout(io.StringIO()):
        marks = []
        for n, boxes in enumerate(true):
            for box in boxes:
                mark = {"image_id": n, "category_id": 1, "iscrowd": 0, "bbox": size(box)}
                marks.append(mark | {"area": float((box[2:] - box[:2]).prod())})
        truth.dataset = {
            "images": [{"id": n} for n in range(len(true))],
            "categories": [{"id": 1}],
            "annotations": [mark | {"id": n} for n, mark in enumerate(marks, 1)],
        }
        truth.createIndex()
        said = []
        for n, (boxes, scores) in enumerate(found):
            for box, score in zip(boxes, scores):
                said.append({"image_id": n, "category_id": 1, "bbox": size(box), "score": score})
        judge = COCOeval(truth, truth.loadRes(said), "bbox")
        judge.params.iouThrs = np.array([iou])
        judge.evaluate()
        judge.accumulate()
    return judge.eval["precision"][0, :, 0, 0, -1].mean()


@pytest.mark.parametrize("iou", [0.5, 0.75])
@pytest.mark.parametrize("seed", range(8))
def test_average_precision_is_cocos(seed, iou):
    rng = np.random.default_rng(seed)
    true = [random_boxes(rng, n) for n in rng.integers(0, 9, 5)] + [random_boxes(rng, 3)]
    found = []
    for t in true:
        near = [t + rng.uniform(-3, 3, t.shape) for _ in range(2)]
        boxes = np.vstack([*near, random_boxes(rng, 4)])
        found.append((boxes, rng.random(len(boxes)).round(1)))
    ious = [box_iou(boxes, t) for (boxes, _), t in zip(found, true)]
    ours = average_precision(ious, [scores for _, scores in found], iou)
    assert ours == pytest.approx(coco_ap(found, true, iou), abs=1e-12)


def test_average_precision_counts_a_hundred():
    rng = np.random.default_rng(0)
    true, wrong = random_boxes(rng, 5), random_boxes(rng, 130) + 200
    for place, want in ((99, True), (100, False)):
        boxes = np.vstack([wrong[:place], true[:1], wrong[place:]])
        scores = np.linspace(1, 0.1, len(boxes))
        ours = average_precision([box_iou(boxes, true)], [scores])
        assert (ours > 0) == want
        assert ours == pytest.approx(coco_ap([(boxes, scores)], [true], 0.5), abs=1e-12)


def test_precision_and_recall_by_hand():
    first = np.array([[0.9, 0], [0.6, 0]])  # the second finds a thing that is found already
    second = np.array([[0.4], [0.7]])
    precision, recall = precision_recall([first, second], [[0.9, 0.5], [0.8, 0.7]])
    assert precision == pytest.approx([1, 1 / 2, 2 / 3, 2 / 4])
    assert recall == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    precision, recall = precision_recall([np.zeros((1, 0))], [[0.5]])
    assert precision.tolist() == [0] and np.isnan(recall).all()


def test_average_precision_at_the_edges():
    assert average_precision([np.array([[0.5]])], [[0.3]]) == 1
    assert average_precision([np.array([[0.4999]])], [[0.3]]) == 0
    assert np.isnan(average_precision([np.zeros((2, 0))], [[0.1, 0.2]]))
    assert average_precision([np.zeros((0, 2)), np.zeros((1, 0))], [[], [0.5]]) == 0
    # the first takes the thing, the second has none
    taken = [np.array([[0.9, 0.6], [0.8, 0.1]])]
    assert average_precision(taken, [[0.9, 0.8]]) == pytest.approx(51 / 101)
    with pytest.raises(ValueError):
        average_precision([np.eye(2)], [])


# ---------------------------------------------------------------------- drawing, and a light import


def test_boxes_are_drawn():
    figure, ax = plt.subplots()
    ax.imshow(np.zeros((20, 30)))
    draw_boxes(ax, [[0, 0, 2, 3], [10, 12, 30, 20]], ["red", "blue"], texts=["top", "low"])
    first, second = ax.patches
    # pixel (0, 0) has its centre at (0, 0), so its left edge is drawn at -0.5
    assert (first.get_xy(), first.get_width(), first.get_height()) == ((-0.5, -0.5), 2, 3)
    assert second.get_edgecolor() == (0, 0, 1, 1)
    assert [text.get_text() for text in ax.texts] == ["top", "low"]
    # a text at the upper edge stands inside the picture
    assert [text.get_va() for text in ax.texts] == ["top", "bottom"]
    plt.close(figure)


def test_import_is_light():
    code = (
        "import sys, cloudlearn.tasks; "
        "print({'torch', 'pandas', 'matplotlib', 'sklearn'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
