"The losses experiment: who is trained on what, and what is scored."

import numpy as np
import pytest

from cloudlearn.cars import rescue
from cloudlearn.cars.dilation import spacing_split
from cloudlearn.masks import dilate

SHAPE = (32, 48)
SMALL = dict(
    losses=("bce", "dice"), gaps=(0.05,), shown=(2, 4), pictures=(4, 2, 3), epochs=1, shape=SHAPE
)


@pytest.fixture
def lessons(monkeypatch):
    "For every training a pupil who answers with the true masks; what it was given is kept."
    given = []

    def learn(train, seen, seed, loss, epochs):
        given.append((loss, train))
        return [part.masks[:, 0].astype(np.float32) * 0.9 for part in seen]

    monkeypatch.setattr(rescue, "learn_thin", learn)
    return given


@pytest.mark.parametrize("shown", [1, 2, 4])
def test_the_class_gets_rarer_and_the_photos_stay_as_many(shown):
    train = spacing_split(3, 0.1, (4, 1, 1), SHAPE)[0]
    mixed = rescue.mix_empty(train, shown, first=77)
    assert len(mixed.names) == len(set(mixed.names)) == 4 and mixed.known.all()
    np.testing.assert_array_equal(mixed.masks[:shown], train.masks[:shown])
    np.testing.assert_array_equal(mixed.pictures[:shown], train.pictures[:shown])
    assert not mixed.masks[shown:].any()
    if shown < 4:
        assert mixed.names[shown] == "damage-77"


@pytest.mark.parametrize("shown", [0, 5, -1])
def test_more_photos_than_there_are(shown):
    train = spacing_split(3, 0.1, (4, 1, 1), SHAPE)[0]
    with pytest.raises(ValueError, match="from 1 to 4"):
        rescue.mix_empty(train, shown, 0)


def test_every_arm_in_every_regime_on_the_same_test_photos(lessons):
    table = rescue.losses_experiment(seeds=(0, 1), **SMALL)
    assert set(table["arm"]) == {"blind", "bce", "dice", "bce, wider by 2", "dice, wider by 2"}
    counts = table.groupby(["seed", "shown", "arm", "cut"]).size()
    assert len(counts) == 2 * 2 * 5 * 2 and (counts == 3).all()
    assert len(lessons) == 2 * 2 * 4
    assert (table[table["arm"] != "blind"]["dice"] == 1).all()
    assert (table[table["arm"] == "blind"]["dice"] < 1).all()


def test_labels_are_wider_in_training_alone(lessons):
    rescue.losses_experiment(seeds=(0,), **SMALL)
    drawn = {loss: train for loss, train in lessons[:2]}
    for loss, train in lessons[2:4]:
        np.testing.assert_array_equal(train.masks[:, 0], dilate(drawn[loss].masks[:, 0], 2))
        np.testing.assert_array_equal(train.pictures, drawn[loss].pictures)
    # two photos of four show a gap first, then four of four
    assert lessons[0][1].masks.mean() < lessons[4][1].masks.mean()
