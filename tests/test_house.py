"""Every rule of the house, over every notebook. The rules themselves stand in `tests/gates.py`."""

import subprocess
import sys
from pathlib import Path

import pytest

import gates

ROOT = Path(__file__).resolve().parents[1]
COURSE = gates.Course(ROOT)


def insist(complaints):
    "Fail with the complaints alone; the gate's own frames help nobody."
    if complaints:
        pytest.fail("\n".join(complaints), pytrace=False)


def test_there_are_lessons():
    assert len(COURSE.lessons) >= 10


@pytest.mark.parametrize("gate", gates.LESSON_GATES, ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("lesson", COURSE.lessons, ids=lambda lesson: lesson.name)
def test_lesson(lesson, gate):
    insist(gate(lesson, COURSE))


@pytest.mark.parametrize("gate", gates.WORKSHOP_GATES, ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("notebook", COURSE.workshop, ids=lambda notebook: notebook.name)
def test_workshop(notebook, gate):
    insist(gate(notebook, COURSE))


@pytest.mark.parametrize("gate", [gates.exercises, gates.solved], ids=lambda gate: gate.__name__)
@pytest.mark.parametrize(
    "notebook",
    [other for other in COURSE.workshop if gates.section(other, "Exercises")],
    ids=lambda notebook: notebook.name,
)
def test_exercises_of_the_workshop(notebook, gate):
    insist(gate(notebook, COURSE))


@pytest.mark.parametrize("gate", gates.EVERY_GATE, ids=lambda gate: gate.__name__)
@pytest.mark.parametrize("notebook", COURSE.notebooks, ids=lambda notebook: notebook.label)
def test_notebook(notebook, gate):
    if notebook.name == "index" and gate is gates.import_order:
        pytest.skip("the index stands outside the order")
    insist(gate(notebook, COURSE))


def test_course_map():
    insist(gates.course_map(COURSE))


def test_terms_in_order():
    insist(gates.terms_in_order(COURSE))


def test_no_circle():
    insist(gates.no_circle(COURSE))


def test_wings_apart():
    insist(gates.wings_apart(COURSE))


def test_modules_once():
    insist(gates.modules_once(COURSE))


def test_export_in_step(tmp_path):
    insist(gates.export_drift(COURSE, tmp_path / "fresh"))


def test_readme_in_step():
    run = subprocess.run(
        [sys.executable, str(ROOT / ".ci" / "readme"), "--check"], capture_output=True, text=True
    )
    insist([run.stdout + run.stderr] if run.returncode else [])


@pytest.mark.parametrize(
    "module", ["masks", "files", "runs", "scenes.clouds", "scores", "decisions"]
)
def test_light_imports(module):
    insist(gates.heavy_imports(f"cloudlearn.{module}"))
