"""Every gate can close: a toy lesson passes them all, and a gate refuses each small fault."""

import base64
import io
import runpy
import shutil
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

import gates

ROOT = Path(__file__).resolve().parents[1]

DOUBLE = '''#| export
def double(number: int,   # any whole number
           ) -> int:      # twice as much
    "Twice `number`."
    return 2 * math.floor(number)'''


def stub(number):
    return (
        f'def answer{number}(value):\n    "The value itself."\n'
        '    raise NotImplementedError("your turn")'
    )


def check(number):
    return (
        f"def check_answer{number}(answer{number}):\n    assert answer{number}(1) == 1\n"
        f"    test_eq(answer{number}({number}), {number})"
    )


def lesson_cells():
    "A lesson that keeps every rule, as (kind, source, output text or None)."
    cells = [
        ("code", "#| default_exp toy", None),
        ("markdown", "# Toy\n\n> Numbers, twice as large.", None),
        (
            "markdown",
            "You will be able to double a number.\n\n"
            "It needs no other notebook; two minutes on two cores.\n\n"
            "It exports `cloudlearn.toy`.",
            None,
        ),
        ("code", "#| export\nimport math", None),
        ("code", "from fastcore.test import test_eq, test_fail", None),
        (
            "markdown",
            "Which is larger, a number or its double? "
            + "**Predict:** think before you run the next cell. " * 5,
            None,
        ),
        ("code", DOUBLE, None),
        ("code", "test_eq(double(2), 4)\ndouble(2) + 0", "4"),
        *[
            (
                "code",
                f"# the double of {number}, and one more\ndouble({number}) + 1",
                str(2 * number + 1),
            )
            for number in range(10)
        ],
        ("markdown", "## Summary\n\n- one\n- two\n- three", None),
        ("markdown", "## Exercises", None),
    ]
    for number in (1, 2, 3):
        cells += [
            ("markdown", f"### Exercise {number}: give it back", None),
            ("code", stub(number), None),
            (
                "code",
                f"{check(number)}\n\n"
                f'attempt(check_answer{number}, answer{number}, hint="the same")',
                "not yet: the same",
            ),
        ]
    return cells + [("markdown", "Next: [what comes then?](02_next.ipynb)", None)]


def solution_cells():
    "The solutions of the toy lesson."
    cells = [
        ("markdown", "# Solutions\n\nTo [the lesson](../01_toy.ipynb).", None),
        ("code", "from fastcore.test import test_eq", None),
    ]
    for number in (1, 2, 3):
        cells += [
            ("markdown", f"### Exercise {number}: give it back", None),
            ("code", f"def answer{number}(value): return value", None),
            (
                "code",
                f"{check(number)}\n\n"
                f'attempt(check_answer{number}, answer{number}, hint="the same")',
                "solved",
            ),
        ]
    return cells


FOLDED = ("#| default_exp toy", "#| export\nimport math")
IMPORTS = "from fastcore.test import test_eq"


def write(path, cells):
    "Store cells as a clean notebook with ids that follow from their places."
    nodes = []
    for place, (kind, source, shown) in enumerate(cells):
        node = new_code_cell(source) if kind == "code" else new_markdown_cell(source)
        node.id = f"cell{place:03d}"
        if source in FOLDED or source.startswith(IMPORTS):
            node.metadata["jupyter"] = {"source_hidden": True}
        if isinstance(shown, str):
            node.outputs = [new_output("execute_result", {"text/plain": shown})]
        elif shown is not None:
            node.outputs = [shown]
        nodes.append(node)
    notebook = new_notebook(
        cells=nodes,
        metadata={
            "kernelspec": {"display_name": "python3", "language": "python", "name": "python3"}
        },
    )
    notebook.nbformat_minor = 5
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8")


def course_with(root, lesson=None, solution=None):
    "A course of the toy lesson, its successor, its solutions and an index."
    nbs = root / "nbs"
    (root / "settings.ini").write_text("[DEFAULT]\nallowed_cell_metadata_keys = jupyter\n")
    write(nbs / "01_toy.ipynb", lesson or lesson_cells())
    write(
        nbs / "02_next.ipynb",
        [("code", "#| default_exp next", None), ("code", "#| export\nANSWER = 42", None)],
    )
    write(nbs / "solutions" / "01_toy.ipynb", solution or solution_cells())
    rows = "| [Toy](01_toy.ipynb) | What is twice two? |\n| [Next](02_next.ipynb) | And then? |"
    write(
        nbs / "index.ipynb",
        [("markdown", f"# Index\n\n| notebook | question |\n|---|---|\n{rows}", None)],
    )
    return gates.Course(root)


def swap(old, new):
    "A fault: one text in place of another, wherever it stands."

    def fault(cells):
        changed = [(kind, source.replace(old, new), shown) for kind, source, shown in cells]
        assert changed != cells, f"the toy lesson has no {old!r}"
        return changed

    return fault


def printed(old, new):
    "A fault: what a cell has shown is another text."
    return lambda cells: [
        (kind, source, new if shown == old else shown) for kind, source, shown in cells
    ]


def add(source, shown=None, kind="code"):
    "A fault: one more cell in the middle."
    return lambda cells: [*cells[:8], (kind, source, shown), *cells[8:]]


def drop(text):
    "A fault: the cells with this text are missing."
    return lambda cells: [cell for cell in cells if text not in cell[1]]


ERROR = new_output("error", ename="ValueError", evalue="no", traceback=["ValueError: no"])
WARNING = new_output("stream", name="stderr", text="DeprecationWarning: soon gone")

_file = io.BytesIO()
Image.new("L", (899, 2)).save(_file, "PNG")
NARROW = new_output("display_data", {"image/png": base64.b64encode(_file.getvalue()).decode()})

FAULTS = [
    (
        gates.opening,
        swap("#| default_exp toy", "#| default_exp toy\nx = 1"),
        "cell 0: is not the `#| default_exp`",
    ),
    (gates.opening, swap("> Numbers", "Numbers"), "cell 1: is not `# Title`"),
    (gates.opening, swap("You will be able to", "We"), "cell 2: does not say"),
    (gates.opening, swap("`cloudlearn.toy`", "`cloudlearn.other`"), "cell 2: does not say"),
    (
        gates.opening,
        swap("import math", "import math\nx = 1"),
        "cell 3: is not the cell of exported imports",
    ),
    (
        gates.opening,
        swap("from fastcore.test", "#| hide\nfrom fastcore.test"),
        "cell 4: is not the cell of the lesson's own imports",
    ),
    (gates.summary, swap("- one\n- two\n- three", "One, two, three."), "with bullets"),
    (gates.summary, swap("## Summary", "## End"), "no `## Summary` with bullets"),
    (gates.next_link, swap("02_next.ipynb", "03_far.ipynb"), "does not lead on"),
    (gates.next_link, drop("Next:"), "does not lead on"),
    (gates.exercises, swap("Exercise 3", "Exercise 4"), "exercises [1, 2, 4]"),
    (gates.exercises, drop("def answer2"), "lacks its stub or its check"),
    (
        gates.exercises,
        swap('raise NotImplementedError("your turn")', "return value"),
        "is not a stub",
    ),
    (gates.exercises, swap('"The value itself."\n    ', ""), "no docstring"),
    (
        gates.exercises,
        swap("    assert answer2(1) == 1\n    test_eq(answer2(2), 2)", "    answer2(1)"),
        "asserts nothing",
    ),
    (
        gates.exercises,
        swap("attempt(check_answer2, answer2", "attempt(check_answer2, answer1"),
        "does not try answer2",
    ),
    (gates.exercises, swap('answer2, hint="the same"', 'answer2, hint=""'), "with a hint"),
    (gates.exercises, printed("not yet: the same", "solved"), "does not say `not yet`"),
    (gates.exercises, swap("def check_answer2", "def verify_answer2"), "has no `def check_...`"),
    (gates.exercises, swap("## Exercises", "Some questions"), "no `## Exercises`"),
    (gates.solved, swap("answer2(1) == 1", "answer2(1) == 1.0"), "character for character"),
    (gates.predictions, swap("**Predict:**", "Well,"), "asks for 0 predictions"),
    (gates.large_pictures, add("plot(fontsize=8.5)"), "smaller than 9 points"),
    (gates.large_pictures, add("draw()", NARROW), "shows a picture 899 pixels wide"),
    (gates.documented, swap('    "Twice `number`."\n', ""), "double has no docstring"),
    (gates.documented, swap("number: int,   #", "number,   #"), "does not annotate `number`"),
    (gates.documented, swap("# any whole number", ""), "does not describe `number`"),
    (
        gates.documented,
        swap(") -> int:      # twice as much", "):"),
        "does not annotate what it returns",
    ),
    (gates.documented, swap("      # twice as much", ""), "does not describe what it returns"),
    (
        gates.documented,
        swap("number: int,   # any", "number: int, other: int = 1,   # any"),
        "does not describe `other`",
    ),
    (gates.documented, add("#| export\nclass Pair:\n    first: int"), "Pair has no docstring"),
    (
        gates.documented,
        add('#| export\nclass Pair:\n    "Two numbers."\n    first: int'),
        "does not describe the field `first`",
    ),
    (
        gates.documented,
        add('#| export\nclass Pair:\n    "Two numbers."\n    def __init__(self, first): pass'),
        "does not annotate `first`",
    ),
    (gates.imports_alone, add("import os\nos.sep", "'/'"), "does something else as well"),
    (
        gates.import_order,
        add("from cloudlearn.next import ANSWER"),
        "imports cloudlearn.next, which 02_next exports",
    ),
    (
        gates.import_order,
        add("import cloudlearn.toy"),
        "imports cloudlearn.toy, which 01_toy exports",
    ),
    (
        gates.import_order,
        add("def later():\n    from cloudlearn import next"),
        "imports cloudlearn.next",
    ),
    (gates.import_order, add("from cloudlearn.absent import x"), "which no notebook exports"),
    (gates.import_order, add("from .next import ANSWER"), "relatively"),
    (gates.global_settings, add("np.random.seed(0)"), "calls np.random.seed"),
    (gates.global_settings, add("torch.manual_seed(0)"), "calls torch.manual_seed"),
    (
        gates.global_settings,
        add("#| export\ntorch.set_num_threads(1)"),
        "calls torch.set_num_threads",
    ),
    (gates.global_settings, add('plt.rcParams["font.size"] = 20'), "rcParams"),
    (gates.global_settings, add('os.environ["HOME"] = "here"'), "os.environ"),
    (gates.folded, add("import os"), "unfolded"),
    (gates.absolute_paths, add('open("/home/me/x.png")'), "its source names /home/me"),
    (
        gates.absolute_paths,
        add("where + ''", "'/tmp/tmpab12/x.png'"),
        "its output names /tmp/tmpab12",
    ),
    (gates.absolute_paths, add(r'folder = "C:\Users\me"'), r"names C:\Users"),
    (gates.absolute_paths, add("See /Users/me/notes.", kind="markdown"), "names /Users/me"),
    (gates.no_network, add("import requests"), "requests"),
    (gates.no_network, add("from urllib.request import urlopen"), "urllib.request"),
    (
        gates.no_network,
        add('table = pd.read_csv("https://example.org/a.csv")'),
        "https://example.org",
    ),
    (gates.no_network, add("model = torch.hub.load('a', 'b')"), "torch.hub.load"),
    (gates.no_network, add("!pip install something"), "!pip install"),
    (gates.no_network, add("data = VOCSegmentation('.', download=True)"), "download=True"),
    (gates.no_shell, add("!cloudlearn clouds"), "runs a shell command: !cloudlearn"),
    (gates.no_shell, add("%%bash\nls"), "runs a shell command: %%bash"),
    (gates.executed, add("1 + 1"), "holds no output"),
    (gates.executed, add("print('yes')"), "holds no output"),
    (gates.executed, add("double('x')", ERROR), "ended in an error"),
    (gates.executed, add("double(1)", WARNING), "shows a warning"),
    (gates.size, add("1 + 1", "2" * 700_000), "KB"),
    (gates.well_formed, add("def broken(:"), "does not parse"),
    (
        gates.links,
        add("See [there](99_absent.ipynb).", kind="markdown"),
        "links to 99_absent.ipynb",
    ),
]


@pytest.mark.parametrize(
    "gate", gates.LESSON_GATES + gates.EVERY_GATE, ids=lambda gate: gate.__name__
)
def test_good_lesson_passes(gate, tmp_path):
    course = course_with(tmp_path)
    assert gate(course.lessons[0], course) == []


@pytest.mark.parametrize("gate", gates.EVERY_GATE, ids=lambda gate: gate.__name__)
def test_good_solutions_pass(gate, tmp_path):
    course = course_with(tmp_path)
    assert gate(course.solutions[0], course) == []


@pytest.mark.parametrize(
    "gate, fault, expected",
    FAULTS,
    ids=[f"{gate.__name__}-{place}" for place, (gate, _, _) in enumerate(FAULTS)],
)
def test_fault_is_refused(gate, fault, expected, tmp_path):
    course = course_with(tmp_path, fault(lesson_cells()))
    complaints = gate(course.lessons[0], course)
    assert any(expected in complaint for complaint in complaints), complaints
    assert all("01_toy.ipynb" in complaint and "; " in complaint for complaint in complaints), (
        "a complaint names notebook and mend"
    )


def test_every_gate_has_a_fault():
    shown = {gate for gate, _, _ in FAULTS} | {gates.clean}  # clean: below
    assert shown == {*gates.LESSON_GATES, *gates.EVERY_GATE}


@pytest.mark.parametrize(
    "fault, expected",
    [
        (swap("(../01_toy.ipynb)", "(there)"), "does not link back"),
        (drop("xercise 2"), "does not solve exercise 2"),
        (drop("def check_answer2"), "lacks its check"),
        (drop("def answer2"), "does not define answer2"),
        (
            swap("attempt(check_answer2, answer2", "attempt(check_answer2, answer1"),
            "not try answer2",
        ),
        (printed("solved", "not yet: the same"), "does not say that answer1 is solved"),
        (swap("from fastcore.test import test_eq", "#| default_exp answers"), "exports a module"),
    ],
)
def test_solution_fault_is_refused(fault, expected, tmp_path):
    course = course_with(tmp_path, solution=fault(solution_cells()))
    assert any(expected in complaint for complaint in gates.solved(course.lessons[0], course))


def test_missing_solutions_are_refused(tmp_path):
    course = course_with(tmp_path)
    (tmp_path / "nbs" / "solutions" / "01_toy.ipynb").unlink()
    assert "has no solutions" in gates.solved(course.lessons[0], course)[0]


@pytest.mark.filterwarnings("ignore::nbformat.warnings.DuplicateCellId")
@pytest.mark.parametrize(
    "gate, old, new, expected",
    [
        (gates.clean, '"execution_count": null', '"execution_count": 7', "run nbdev_clean"),
        (gates.well_formed, '"nbformat_minor": 5', '"nbformat_minor": 4', "format 4.4"),
        (gates.well_formed, '"id": "cell001"', '"id": "cell002"', "given twice"),
    ],
)
def test_stored_fault_is_refused(gate, old, new, expected, tmp_path):
    course_with(tmp_path)
    path = tmp_path / "nbs" / "01_toy.ipynb"
    path.write_text(path.read_text().replace(old, new))
    course = gates.Course(tmp_path)
    assert any(expected in complaint for complaint in gate(course.lessons[0], course))


def test_what_the_gates_let_through(tmp_path):
    """Rules with an exception: seeds inside fork_rng or inside exported functions.

    Also addresses in docstrings, axes, fields only, and the last Next.
    """
    cells = [
        *lesson_cells()[:-1],
        ("code", "with torch.random.fork_rng():\n    torch.manual_seed(0)", None),
        ("code", "#| export\ndef _draw(seed):\n    torch.manual_seed(seed)", None),
        (
            "code",
            "#| export\ndef show(number: int,   # any\n"
            '         ax=None,   # axes; None makes one\n         ):\n    "Draw."',
            None,
        ),
        (
            "code",
            '#| export\nclass Pair(NamedTuple):\n    "Two numbers."\n    first: int   # any',
            None,
        ),
        ("code", 'def cite():\n    "After https://example.org/paper."', None),
        ("markdown", "Next: [the index](index.ipynb)", None),
    ]
    course = course_with(tmp_path, cells)
    (tmp_path / "nbs" / "02_next.ipynb").unlink()
    for gate in (gates.global_settings, gates.no_network, gates.next_link, gates.documented):
        assert gate(course.lessons[0], course) == []


def test_only_the_tour_imports_what_comes_later(tmp_path):
    cells = add("from cloudlearn.next import ANSWER")(lesson_cells())
    course = course_with(tmp_path, cells)
    assert "02_next exports" in gates.import_order(course.lessons[0], course)[0]
    write(tmp_path / "nbs" / f"{gates.TOUR}.ipynb", cells)
    course = gates.Course(tmp_path)
    assert course.lessons[0].name == gates.TOUR
    assert gates.import_order(course.lessons[0], course) == []
    write(course.lessons[0].path, add("from cloudlearn.absent import x")(lesson_cells()))
    tour = gates.Course(tmp_path).lessons[0]
    assert "which no notebook exports" in gates.import_order(tour, course)[0]


def test_course_gates_refuse(tmp_path):
    course = course_with(tmp_path)
    assert gates.course_map(course) == gates.modules_once(course) == []
    write(tmp_path / "nbs" / "03_more.ipynb", [("code", "#| default_exp toy", None)])
    course = gates.Course(tmp_path)
    assert "no row with a question for 03_more.ipynb" in gates.course_map(course)[0]
    assert "two notebooks export cloudlearn.toy" in gates.modules_once(course)[0]


def test_a_term_before_its_lesson_is_refused(tmp_path):
    fine = add("`IoU` in code, [a link](https://dice.example) and diced words", kind="markdown")
    course = course_with(tmp_path, fine(lesson_cells()))
    assert gates.terms_in_order(course) == []
    soon = add("Here the Dice coefficients and two decoders come.", kind="markdown")
    course = course_with(tmp_path, soon(lesson_cells()))
    found = gates.terms_in_order(course)
    assert [complaint.split('"')[1] for complaint in found] == ["Dice", "decoder"]
    (tmp_path / "nbs" / "01_toy.ipynb").rename(tmp_path / "nbs" / "02_toy.ipynb")
    found = gates.terms_in_order(gates.Course(tmp_path))
    assert [complaint.split('"')[1] for complaint in found] == ["decoder"]


def test_export_drift_is_refused(tmp_path):
    course = course_with(tmp_path)
    shutil.copy(ROOT / "settings.ini", tmp_path)
    (tmp_path / "cloudlearn").mkdir()
    found = gates.export_drift(course, tmp_path / "first")
    assert any("toy.py is missing" in complaint for complaint in found)
    shutil.copytree(tmp_path / "first" / "cloudlearn", tmp_path / "cloudlearn", dirs_exist_ok=True)
    assert gates.export_drift(course, tmp_path / "second") == []
    with open(tmp_path / "cloudlearn" / "toy.py", "a") as file:
        file.write("# edited by hand\n")
    (tmp_path / "cloudlearn" / "stray.py").touch()
    found = gates.export_drift(course, tmp_path / "third")
    assert [complaint.split(" ")[0] for complaint in found] == [
        "cloudlearn/stray.py",
        "cloudlearn/toy.py",
    ]


def test_readme_drift_is_refused(tmp_path, capsys):
    course_with(tmp_path)
    (tmp_path / ".ci").mkdir()
    path = shutil.copy(ROOT / ".ci" / "readme", tmp_path / ".ci")
    readme = runpy.run_path(str(path))["main"]
    assert readme(["--check"]) == 1
    assert readme([]) == readme(["--check"]) == 0
    assert "](nbs/01_toy.ipynb)" in (tmp_path / "README.md").read_text()
    write(
        tmp_path / "nbs" / "index.ipynb",
        [("markdown", "# Another\n\n![run](images/absent.png)", None)],
    )
    capsys.readouterr()
    assert readme(["--check"]) == 1
    said = capsys.readouterr().out
    assert "nbs/images/absent.png, which is not there" in said and "run `python .ci/readme`" in said


def test_readme_keeps_text_and_drops_the_rest(tmp_path):
    (tmp_path / ".ci").mkdir()
    path = shutil.copy(ROOT / ".ci" / "readme", tmp_path / ".ci")
    picture = new_output("display_data", {"image/png": "aGVsbG8=", "text/plain": "<Figure>"})
    write(
        tmp_path / "nbs" / "index.ipynb",
        [
            (
                "markdown",
                "[a](01_toy.ipynb) [b](../LICENSE) [c](https://example.org) [d](#words)",
                None,
            ),
            ("code", "#| hide\nhidden = 1", None),
            ("code", "#| eval: false\n1 + 1", "2"),
            ("code", "draw()", picture),
            ("code", "warn()", WARNING),
        ],
    )
    text = runpy.run_path(str(path))["render"]()
    assert "[a](nbs/01_toy.ipynb) [b](LICENSE) [c](https://example.org) [d](#words)" in text
    assert "```python\n1 + 1\n```\n\n    2\n" in text and "draw()" in text
    assert not any(word in text for word in ("hidden", "#|", "Figure", "aGVsbG8", "Deprecation"))


def test_a_circle_is_refused(tmp_path):
    course_with(tmp_path)
    write(
        tmp_path / "nbs" / "workshop" / "back.ipynb",
        [
            ("code", "#| default_exp back", None),
            ("code", "#| export\nfrom cloudlearn.next import ANSWER", None),
        ],
    )
    assert gates.no_circle(gates.Course(tmp_path)) == []
    write(
        tmp_path / "nbs" / "02_next.ipynb",
        [
            ("code", "#| default_exp next", None),
            ("code", "#| export\nfrom cloudlearn import back", None),
        ],
    )
    found = gates.no_circle(gates.Course(tmp_path))
    assert len(found) == 2 and all("needs itself" in fault for fault in found)


def test_a_wing_that_needs_another_is_refused(tmp_path):
    course_with(tmp_path)

    def workshop(name, module, source):
        cells = [("code", f"#| default_exp {module}", None), ("code", f"#| export\n{source}", None)]
        write(tmp_path / "nbs" / "workshop" / f"{name}.ipynb", cells)
        return gates.wings_apart(gates.Course(tmp_path))

    assert workshop("cars", "cars.run", "from cloudlearn.next import ANSWER") == []
    assert workshop("cli", "cli", "def cars():\n    from cloudlearn.cars import run") == []
    found = workshop("clouds", "clouds.run", "from cloudlearn.cars.run import ANSWER")
    assert [complaint.split(";")[0] for complaint in found] == [
        "cloudlearn.clouds.run imports cloudlearn.cars.run"
    ]
    found = workshop("report", "report", "import cloudlearn.cars.run")
    assert any("cloudlearn.report imports" in complaint for complaint in found)


def test_heavy_import_is_refused():
    assert "brings pandas along" in gates.heavy_imports("pandas")[0]
    assert gates.heavy_imports("numpy") == []
    assert "fails" in gates.heavy_imports("no_such_module")[0]
