"""What a student is told: not yet with a hint, or solved, and never a traceback."""

import pytest
from fastcore.test import test_eq as equal

from cloudlearn.exercises import attempt


def check_double(double):
    assert double(0) == 0
    if double(2) == 2:
        raise AssertionError("that is the number itself")
    equal(double(3), 6)


def told(answer, capsys):
    attempt(check_double, answer, hint="twice as much")
    return capsys.readouterr().out


def broken(number):
    return number + missing  # noqa: F821


def not_begun(number):
    raise NotImplementedError("your turn")


def misread(number):
    return {"double": 2 * number}[number]


@pytest.mark.parametrize(
    "answer, said",
    [
        (not_begun, "not yet: twice as much\n"),
        (lambda number: 2 * number, "solved\n"),
        (lambda number: number, "not yet: that is the number itself\n"),
        (lambda number: 3 * number, "not yet: twice as much\n"),
        (
            broken,
            "not yet: twice as much (it stopped with NameError: name 'missing' is not defined, "
            "in the line `return number + missing  # noqa: F821`)\n",
        ),
        (
            misread,
            "not yet: twice as much (it stopped with KeyError: 0, "
            'in the line `return {"double": 2 * number}[number]`)\n',
        ),
    ],
)
def test_what_a_student_is_told(answer, said, capsys, monkeypatch):
    monkeypatch.delenv("IN_TEST", raising=False)
    assert told(answer, capsys) == said


def test_a_wrong_solution_fails_the_tests_of_the_course(capsys, monkeypatch):
    monkeypatch.setenv("IN_TEST", "1")
    assert told(not_begun, capsys).startswith("not yet")
    assert told(lambda number: 2 * number, capsys) == "solved\n"
    with pytest.raises(AssertionError):
        told(lambda number: 3 * number, capsys)
    with pytest.raises(NameError):
        told(broken, capsys)
