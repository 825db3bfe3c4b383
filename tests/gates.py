"""The rules of the house, as functions of a notebook and the course; each returns its complaints.

A complaint names the notebook, the cell and the mend. `tests/test_house.py` runs every gate over
every notebook; `tests/test_gates.py` shows for every gate a notebook that it refuses.
"""

import ast
import base64
import configparser
import filecmp
import io
import json
import os
import re
import subprocess
import sys
import tokenize
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import nbformat
from execnb.nbio import nb2str
from nbdev.clean import clean_nb

NOTEBOOK_BYTES = 700_000
FETCHERS = {"weights", "worldview"}  # modules whose functions fetch what is asked for by name
TOUR = "00_tour"  # shows everything before it is explained, so it may import from any lesson


# ----------------------------------------------------------------------------- notebooks and course


@dataclass
class Cell:
    index: int
    kind: str  # "code", "markdown" or "raw"
    source: str
    outputs: list

    @property
    def code(self):
        "The source without nbdev's directives; shell and magic lines become `pass`, so it parses."
        lines = ("" if line.startswith("#|") else line for line in self.source.splitlines())
        return "\n".join(re.sub(r"^(\s*)[%!].*", r"\1pass", line) for line in lines)

    @cached_property
    def tree(self):
        "The parsed source, always the same object, so that its nodes keep their identity."
        try:
            return ast.parse(self.code)
        except SyntaxError:
            return ast.parse("")

    @property
    def directives(self):
        return {match[1] for match in re.finditer(r"^#\|\s*(\w+)", self.source, re.M)}

    @property
    def exported(self):
        return bool(self.directives & {"export", "exports", "exporti"})

    @property
    def only_imports(self):
        body = self.tree.body
        return bool(body) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in body)

    @property
    def texts(self):
        "The outputs as text; pictures are left out."
        for output in self.outputs:
            if output.output_type == "stream":
                yield output.text
            elif output.output_type == "error":
                yield "\n".join(output.traceback)
            else:
                yield from (
                    str(data)
                    for mime, data in output.data.items()
                    if not re.match(r"image/(png|jpe?g)", mime)
                )


class Notebook:
    def __init__(self, path):
        self.path = Path(path)
        self.text = self.path.read_text(encoding="utf-8")
        self.raw = json.loads(self.text)

    def __repr__(self):
        return self.name

    @property
    def name(self):
        return self.path.stem

    @property
    def label(self):
        return (
            self.path.name
            if self.path.parent.name == "nbs"
            else f"{self.path.parent.name}/{self.path.name}"
        )

    @property
    def place(self):
        "Its place in the order of reading: by file name; what has no number comes before all."
        return self.name if self.name[:1].isdigit() else ""

    @cached_property
    def cells(self):
        nodes = nbformat.reads(self.text, as_version=4).cells
        return [
            Cell(i, node.cell_type, node.source, node.get("outputs", []))
            for i, node in enumerate(nodes)
        ]

    @property
    def code(self):
        return [cell for cell in self.cells if cell.kind == "code"]

    @property
    def markdown(self):
        return [cell for cell in self.cells if cell.kind == "markdown"]

    @property
    def module(self):
        "What `#| default_exp` names, or None where the notebook exports nothing."
        for cell in self.code:
            if match := re.search(r"^#\|\s*default_exp\s+(\S+)", cell.source, re.M):
                return match[1]

    def say(self, cell, problem, mend):
        where = f" cell {cell.index}" if cell else ""
        return f"{self.label}{where}: {problem}; {mend}"


class Course:
    def __init__(self, root):
        self.root = Path(root)
        self.nbs = self.root / "nbs"

    @cached_property
    def lessons(self):
        return [Notebook(path) for path in sorted(self.nbs.glob("[0-9][0-9]_*.ipynb"))]

    @cached_property
    def solutions(self):
        return [Notebook(path) for path in sorted(self.nbs.glob("solutions/*.ipynb"))]

    @cached_property
    def index(self):
        return Notebook(self.nbs / "index.ipynb")

    @cached_property
    def workshop(self):
        return [Notebook(path) for path in sorted(self.nbs.glob("workshop/*.ipynb"))]

    @cached_property
    def kept_metadata(self):
        "The keys of a cell's metadata that nbdev_clean leaves alone."
        settings = configparser.ConfigParser()
        settings.read(self.root / "settings.ini")
        return settings.get("DEFAULT", "allowed_cell_metadata_keys", fallback="").split()

    @property
    def notebooks(self):
        return [self.index, *self.lessons, *self.workshop, *self.solutions]

    @cached_property
    def modules(self):
        """The place of the notebook that exports each module.

        The workshop stands beside the order, so anyone may use it.
        """
        return {
            notebook.module: notebook.place
            for notebook in [*self.lessons, *self.workshop]
            if notebook.module
        }


def called(node):
    "The dotted name of what a call calls, as far as it is written out: `torch.manual_seed`."
    parts, target = [], node.func
    while isinstance(target, ast.Attribute):
        parts.append(target.attr)
        target = target.value
    return (
        ".".join(reversed(parts + [target.id]))
        if isinstance(target, ast.Name)
        else ".".join(reversed(parts))
    )


def asserts(tree):
    "Whether a piece of code claims anything: by an assert, or a call such as `test_eq`."
    return any(
        isinstance(node, ast.Assert)
        or isinstance(node, ast.Call)
        and called(node).split(".")[-1].startswith("test_")
        for node in ast.walk(tree)
    )


def imported(tree):
    "Every module that a piece of code imports, as (node, dotted name)."
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from ((node, f"{base}.{alias.name}") for alias in node.names)


# ------------------------------------------------------------------------------ anatomy of a lesson


def opening(lesson, course):
    "default_exp, title and promise, what it gives and needs, exported and own imports."
    found, cells = [], list(lesson.cells)

    def expect(test, problem, mend):
        cell = cells.pop(0) if cells else None
        if cell is None or not test(cell):
            found.append(lesson.say(cell, problem, mend))

    if lesson.module:
        expect(
            lambda cell: (
                cell.kind == "code" and re.fullmatch(r"#\|\s*default_exp \S+", cell.source.strip())
            ),
            "is not the `#| default_exp` cell alone",
            "open the notebook with that one line",
        )
    expect(
        lambda cell: (
            cell.kind == "markdown" and re.fullmatch(r"# \S.*\n\n> \S.*", cell.source.strip())
        ),
        "is not `# Title`, a blank line and `> one-line promise`",
        "write the title cell in this form",
    )
    wanted = [r"\bable to\b", r"\bneeds?\b", r"\b(minute|second)s?\b"]
    if lesson.module:
        wanted.append(rf"`cloudlearn\.{re.escape(lesson.module)}`")
    expect(
        lambda cell: (
            cell.kind == "markdown" and all(re.search(pattern, cell.source) for pattern in wanted)
        ),
        "does not say what you will be able to do, what it needs, the minutes it takes "
        "and what it exports",
        "write: You will be able to ..., It needs ..., minutes on two cores, "
        f"It exports `cloudlearn.{lesson.module or '...'}`",
    )
    if lesson.module:
        expect(
            lambda cell: cell.kind == "code" and cell.exported and cell.only_imports,
            "is not the cell of exported imports",
            "put `#| export` and imports here, nothing else",
        )
    expect(
        lambda cell: cell.kind == "code" and not cell.directives and cell.only_imports,
        "is not the cell of the lesson's own imports",
        "put matplotlib, fastcore.test and the like here, without a directive",
    )
    return found


def section(lesson, heading):
    "The cells from a `## heading` up to the next one, the heading's cell included."
    inside, cells = False, []
    for cell in lesson.cells:
        if cell.kind == "markdown" and (match := re.search(r"^## +(.+)$", cell.source, re.M)):
            inside = match[1].strip() == heading
        if inside:
            cells.append(cell)
    return cells


def summary(lesson, course):
    "A lesson ends with what it has shown, in bullets."
    cells = section(lesson, "Summary")
    text = "\n".join(cell.source for cell in cells if cell.kind == "markdown")
    if re.search(r"^[-*] \S", text, re.M):
        return []
    return [lesson.say(None, "has no `## Summary` with bullets", "add one before the exercises")]


def next_link(lesson, course):
    "The last cell leads to the next lesson, the last lesson back to the index."
    last = lesson.cells[-1] if lesson.cells else None
    following = [other.path.name for other in course.lessons if other.place > lesson.place]
    target = following[0] if following else "index.ipynb"
    match = (
        re.search(r"^Next: \[[^]]+\]\(([^)]+)\)", last.source, re.M)
        if last and last.kind == "markdown"
        else None
    )
    if match and match[1] == target:
        return []
    return [
        lesson.say(
            last,
            "the last cell does not lead on",
            f"end with a markdown cell `Next: [what it asks]({target})`",
        )
    ]


class Exercise(NamedTuple):
    heading: Cell
    number: int
    code: list  # the code cells under the heading


def exercises_of(notebook):
    "Exercises by their headings `### Exercise N: ...`."
    found = []
    for cell in notebook.cells:
        match = (
            re.search(r"^#{2,3} Exercise (\d+)\b", cell.source, re.M)
            if cell.kind == "markdown"
            else None
        )
        if match:
            found.append(Exercise(cell, int(match[1]), []))
        elif found and cell.kind == "markdown" and re.match(r"#{1,2} ", cell.source):
            break
        elif found and cell.kind == "code":
            found[-1].code.append(cell)
    return found


def stub_name(cell):
    "The function or class that an exercise leaves open, or None."
    body = cell.tree.body
    if (
        body
        and isinstance(body[-1], (ast.FunctionDef, ast.ClassDef))
        and 'NotImplementedError("your turn")' in cell.source
    ):
        return body[-1].name


def check_function(cell):
    "The node of the `def check_...` in a cell, or None."
    for node in cell.tree.body:
        if isinstance(node, ast.FunctionDef) and node.name.startswith("check_"):
            return node


def tries(cell, check, stub):
    """Whether a cell runs `attempt(check_x, x, hint="...")`.

    Under nbdev_test that raises where an answer is given and wrong.
    """
    for node in cell.tree.body:
        call = node.value if isinstance(node, ast.Expr) else None
        if not isinstance(call, ast.Call) or called(call) != "attempt":
            continue
        names = [item.id for item in call.args if isinstance(item, ast.Name)]
        hints = [item.value for item in call.keywords if item.arg == "hint"]
        if names == [check, stub] and hints and ast.unparse(hints[0]).strip("'\""):
            return True
    return False


def says(cell, word):
    "Whether the first thing that a cell has printed begins with a word."
    return next(cell.texts, "").startswith(word)


def exercises(lesson, course):
    "Exercises in order, each a stub that is left open and a check that fails on it."
    listed = exercises_of(lesson)
    numbers = [item.number for item in listed]
    found = [fault for item in listed for fault in exercise_faults(lesson, item)]
    if not section(lesson, "Exercises"):
        found.append(
            lesson.say(None, "has no `## Exercises`", "add the heading above the first exercise")
        )
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        problem = f"has the exercises {numbers}"
        found.append(lesson.say(None, problem, "head them `### Exercise 1: ...` and so on"))
    return found


def exercise_faults(lesson, item):
    "What is wrong with one exercise."
    if len(item.code) < 2:
        return [
            lesson.say(
                item.heading,
                "the exercise lacks its stub or its check",
                "add a code cell with the stub and one with the check",
            )
        ]
    stub, check = stub_name(item.code[0]), check_function(item.code[1])
    if stub is None:
        return [
            lesson.say(
                item.code[0],
                "is not a stub",
                'end the cell with a function that does `raise NotImplementedError("your turn")`',
            )
        ]
    found, node = [], item.code[0].tree.body[-1]
    if not ast.get_docstring(node):
        found.append(
            lesson.say(
                item.code[0],
                f"the stub {stub} has no docstring",
                "say in one line what it shall return",
            )
        )
    if check is None:
        return found + [
            lesson.say(item.code[1], "has no `def check_...`", f"define check_{stub}({stub}) here")
        ]
    if not asserts(check):
        found.append(lesson.say(item.code[1], f"{check.name} asserts nothing", "check some inputs"))
    if not tries(item.code[1], check.name, stub):
        found.append(
            lesson.say(
                item.code[1],
                f"does not try {stub}, with a hint",
                f'follow the check with `attempt({check.name}, {stub}, hint="...")`',
            )
        )
    elif not says(item.code[1], "not yet: "):
        found.append(
            lesson.say(item.code[1], "does not say `not yet` of the stub", "run the notebook again")
        )
    return found


def solved(lesson, course):
    "nbs/solutions has the same notebook, with the same checks, and runs them on solutions."
    solution = next((other for other in course.solutions if other.name == lesson.name), None)
    if solution is None:
        return [lesson.say(None, "has no solutions", f"write nbs/solutions/{lesson.path.name}")]
    found, answers = [], {item.number: item for item in exercises_of(solution)}
    if solution.module:
        found.append(
            solution.say(None, "exports a module", "take `#| default_exp` out of the solutions")
        )
    back = "../" + lesson.path.relative_to(course.nbs).as_posix()
    if f"({back})" not in "".join(cell.source for cell in solution.cells[:3]):
        found.append(
            solution.say(None, "does not link back", f"link to {back} in the opening cell")
        )
    for item in exercises_of(lesson):
        found += answer_faults(solution, item, answers.get(item.number))
    return found


def answer_faults(solution, item, answer):
    "What is wrong with the solution of one exercise."
    if answer is None:
        return [
            solution.say(
                None,
                f"does not solve exercise {item.number}",
                f"add `### Exercise {item.number}: ...` with its solution",
            )
        ]
    stub = stub_name(item.code[0]) if item.code else None
    check = check_function(item.code[1]) if len(item.code) > 1 else None
    if stub is None or check is None:
        return []  # the lesson's own gate complains
    want = ast.get_source_segment(item.code[1].code, check)
    for cell in answer.code:
        node = check_function(cell)
        if node is None:
            continue
        if ast.get_source_segment(cell.code, node) != want:
            return [
                solution.say(
                    cell,
                    f"{node.name} is not the lesson's check, character for character",
                    "copy it from the lesson",
                )
            ]
        if not tries(cell, check.name, stub):
            return [
                solution.say(
                    cell,
                    f"does not try {stub}, with a hint",
                    f'add the line `attempt({check.name}, {stub}, hint="...")`, as in the lesson',
                )
            ]
        if not says(cell, "solved"):
            return [solution.say(cell, f"does not say that {stub} is solved", "run it again")]
        if not any(
            getattr(step, "name", None) == stub for other in answer.code for step in other.tree.body
        ):
            return [
                solution.say(
                    answer.heading,
                    f"does not define {stub}",
                    "write the solution in a cell before the check",
                )
            ]
        return []
    return [
        solution.say(
            answer.heading,
            f"exercise {item.number} lacks its check",
            f"copy {check.name} from the lesson and run it",
        )
    ]


# -------------------------------------------------------------------------------------------- style


def imports_alone(notebook, course):
    "A cell that imports does nothing else."
    return [
        notebook.say(
            cell, "imports and does something else as well", "give the imports a cell of their own"
        )
        for cell in notebook.code
        if not cell.only_imports
        and any(isinstance(node, (ast.Import, ast.ImportFrom)) for node in cell.tree.body)
    ]


def import_order(notebook, course):
    """A notebook imports only what an earlier one exports; its solutions also its own module.

    The tour may import from every lesson.
    """
    if notebook.path.parent.name == "workshop" or notebook.name in {
        other.name for other in course.workshop
    }:
        return []  # `no_circle` watches over the workshop
    found, limit = [], notebook.place + "\0" * (notebook.path.parent.name == "solutions")
    if notebook.name == TOUR:
        limit = "~"  # behind every number
    for cell in notebook.code:
        for _, name in imported(cell.tree):
            if name.startswith("."):
                found.append(
                    notebook.say(
                        cell,
                        f"imports {name} relatively",
                        "write `from cloudlearn...`; nbdev makes it relative",
                    )
                )
            elif name.split(".")[0] == "cloudlearn":
                found += [
                    notebook.say(cell, *fault)
                    for fault in order_faults(name.split(".")[1:], limit, course.modules)
                ]
    return found


def order_faults(parts, limit, modules):
    "Why a notebook below `limit` may not import cloudlearn.`parts`: at most one (problem, mend)."
    owners = [
        module for n in range(len(parts), 0, -1) if (module := ".".join(parts[:n])) in modules
    ]
    if not owners and parts:
        yield (
            f"imports cloudlearn.{'.'.join(parts)}, which no notebook exports",
            "import from the module of a notebook",
        )
    elif owners and modules[owners[0]] >= limit:
        yield (
            f"imports cloudlearn.{owners[0]}, which {modules[owners[0]]} exports",
            "import only from earlier notebooks, or move the code",
        )


def global_settings(notebook, course):
    "No notebook changes settings, seeds or threads for those that share its process."
    banned = {
        "plt.style.use",
        "plt.rc",
        "matplotlib.rc",
        "random.seed",
        "np.random.seed",
        "numpy.random.seed",
        "L.seed_everything",
        "seed_everything",
        "lightning.seed_everything",
        "torch.set_num_threads",
        "cv2.setNumThreads",
        "torch.set_default_dtype",
    }
    found = []
    for cell in notebook.code:
        forked = {
            id(inner)
            for node in ast.walk(cell.tree)
            if isinstance(node, ast.With)
            and any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
            for inner in ast.walk(node)
        }
        for node in run_at_once(cell):
            if isinstance(node, ast.Call) and (
                called(node) in banned
                or called(node) == "torch.manual_seed"
                and id(node) not in forked
            ):
                found.append(
                    notebook.say(
                        cell,
                        f"calls {called(node)} for the whole process",
                        "use a generator of your own, or torch.random.fork_rng around it",
                    )
                )
            targets = node.targets if isinstance(node, ast.Assign) else []
            for text in (
                ast.unparse(target) for target in targets if isinstance(target, ast.Subscript)
            ):
                if "rcParams" in text or text.startswith("os.environ"):
                    found.append(
                        notebook.say(
                            cell, f"sets {text} for the whole process", "pass it where it is needed"
                        )
                    )
    return found


def run_at_once(cell):
    "What a cell does when the notebook runs: of an exported cell, all that is in no function."
    nodes = [cell.tree]
    while nodes:
        node = nodes.pop()
        yield node
        if not (cell.exported and isinstance(node, (ast.FunctionDef, ast.Lambda))):
            nodes += ast.iter_child_nodes(node)


# ------------------------------------------------------------------------------------ exported code


def definitions(notebook, kinds):
    "Top-level functions or classes of exported cells, as (cell, node)."
    return [
        (cell, node)
        for cell in notebook.code
        if cell.exported
        for node in cell.tree.body
        if isinstance(node, kinds)
    ]


def documented(lesson, course):
    """Exported functions and classes carry a docstring and annotations.

    Every parameter and the return carry a comment.
    """
    found = []
    for cell, node in definitions(lesson, ast.FunctionDef):
        if not node.name.startswith("_"):
            found += [
                lesson.say(cell, f"{node.name} {problem}", mend)
                for problem, mend in signature_faults(cell, node)
            ]
    for cell, node in definitions(lesson, ast.ClassDef):
        if not node.name.startswith("_"):
            found += [
                lesson.say(cell, f"{node.name} {problem}", mend)
                for problem, mend in class_faults(cell, node)
            ]
    return found


def comments_of(cell):
    "The line numbers of a cell that carry a comment."
    tokens = tokenize.generate_tokens(io.StringIO(cell.code).readline)
    return {token.start[0] for token in tokens if token.type == tokenize.COMMENT}


def signature_faults(cell, node, method=False):
    "What a function's signature lacks, as (problem, mend)."
    commented, arguments = comments_of(cell), node.args
    if not method and not one_line(ast.get_docstring(node)):
        yield (
            "has no docstring, or one whose first line is no sentence",
            "say in one line what it does",
        )
    every = [
        *arguments.posonlyargs,
        *arguments.args,
        arguments.vararg,
        *arguments.kwonlyargs,
        arguments.kwarg,
    ]
    every = [
        item for item in every if item is not None and not (method and item.arg in ("self", "cls"))
    ]
    helped = {
        item.arg
        for item in every
        if item.annotation is not None and "help=" in ast.unparse(item.annotation)
    }
    ends = {item.arg: line_end(item, arguments) for item in every}
    for item in every:
        alone = sum(other.lineno == item.lineno for other in every) == 1 and not (
            node.returns and node.returns.lineno == item.lineno
        )
        if item.annotation is None and item.arg != "ax":  # matplotlib stays out of the imports
            yield f"does not annotate `{item.arg}`", "add its type"
        if item.arg not in helped and not (
            alone and commented & set(range(item.lineno, ends[item.arg] + 1))
        ):
            yield (
                f"does not describe `{item.arg}`",
                "give it a line of its own with a comment: shape, unit, range",
            )
    command = any(
        "command" in ast.unparse(decorator) or "callback" in ast.unparse(decorator)
        for decorator in node.decorator_list
    )
    if method or command:
        return
    if node.returns is None and "ax" not in {item.arg for item in every}:
        yield "does not annotate what it returns", "add `-> type`"
    elif (
        node.returns is not None
        and ast.unparse(node.returns) != "None"
        and node.returns.end_lineno not in commented
    ):
        yield "does not describe what it returns", "add a comment behind `-> type:`"


def line_end(item, arguments):
    "The last line of a parameter, its default value included."
    positional = [*arguments.posonlyargs, *arguments.args]
    pairs = [
        *zip(reversed(positional), reversed(arguments.defaults)),
        *zip(arguments.kwonlyargs, arguments.kw_defaults),
    ]
    default = next((value for other, value in pairs if other is item and value is not None), item)
    return max(item.end_lineno, default.end_lineno)


def one_line(docstring):
    "Whether a docstring opens with one line that ends."
    return (
        bool(docstring)
        and docstring.splitlines()[0].rstrip().endswith((".", "?", "!", ":", ";", ")"))
        and (len(docstring.splitlines()) == 1 or not docstring.splitlines()[1].strip())
    )


def class_faults(cell, node):
    "What a class lacks: its docstring, the description of its fields and of what makes it."
    if not one_line(ast.get_docstring(node)):
        yield (
            "has no docstring, or one whose first line is no sentence",
            "say in one line what it is",
        )
    commented = comments_of(cell)
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name == "__init__":
            yield from signature_faults(cell, item, method=True)
        elif isinstance(item, ast.AnnAssign) and not commented & set(
            range(item.lineno, item.end_lineno + 1)
        ):
            yield (
                f"does not describe the field `{ast.unparse(item.target)}`",
                "add a comment: shape, unit, range",
            )


# ----------------------------------------------------------------------------------- every notebook


def absolute_paths(notebook, course):
    "No path of anybody's machine, in sources or outputs."
    pattern = re.compile(
        r"(?<![\w.~/-])/(?:home|root|work|tmp|Users|private|mnt|var)/[\w.-]+|\b[CD]:\\\\?[A-Za-z]\w+|file://"
    )
    found = []
    for cell in notebook.cells:
        for place, text in [("source", cell.source), *(("output", text) for text in cell.texts)]:
            if match := pattern.search(text):
                found.append(
                    notebook.say(
                        cell,
                        f"its {place} names {match[0]}",
                        "use a temporary or relative folder and do not print it",
                    )
                )
    return found


def no_network(notebook, course):
    "No code cell reaches for the network; addresses may stand in prose, comments and docstrings."
    modules = {
        "urllib",
        "requests",
        "httpx",
        "aiohttp",
        "ftplib",
        "wget",
        "gdown",
        "kagglehub",
        "socket",
        "http",
    }
    calls = {
        "torch.hub.load",
        "load_state_dict_from_url",
        "hf_hub_download",
        "snapshot_download",
        "load_dataset",
        "urlopen",
        "urlretrieve",
    }
    found = []
    for cell in notebook.code:
        if cell.exported and notebook.module in FETCHERS:
            continue
        reached = [name for _, name in imported(cell.tree) if name.split(".")[0] in modules]
        docstrings = {
            id(node.body[0].value)
            for node in ast.walk(cell.tree)
            if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
            and node.body
            and isinstance(node.body[0], ast.Expr)
        }
        for node in ast.walk(cell.tree):
            if isinstance(node, ast.Call):
                reached += [
                    name for name in [called(node)] if name in calls or name.split(".")[-1] in calls
                ]
                reached += [
                    "download=True"
                    for word in node.keywords
                    if word.arg == "download" and getattr(word.value, "value", None) is True
                ]
            elif (
                isinstance(node, ast.Constant)
                and isinstance(node.value, str)
                and id(node) not in docstrings
            ):
                reached += re.findall(r"https?://\S+", node.value)[:1]
        reached += re.findall(r"^\s*[!%](?:pip|wget|curl|git|kaggle|conda)\b.*", cell.source, re.M)
        found += [
            notebook.say(
                cell,
                f"reaches for the network: {what}",
                "use what an installed package ships, or generate it",
            )
            for what in reached
        ]
    return found


def no_shell(notebook, course):
    "No shell commands: nbdev_test runs without the environment's programs on the search path."
    return [
        notebook.say(
            cell,
            f"runs a shell command: {line.strip()}",
            "call the function behind it, or sys.executable",
        )
        for cell in notebook.code
        for line in cell.source.splitlines()
        if re.match(r"\s*(!|%%?(bash|sh|system|sx)\b)", line)
    ]


def executed(notebook, course):
    "Committed as run: values are shown, nothing ended in an error or a warning."
    found = []
    for cell in notebook.code:
        if any(output.output_type == "error" for output in cell.outputs):
            found.append(
                notebook.say(
                    cell,
                    "ended in an error",
                    "mend it, or show the error with test_fail, and run the notebook again",
                )
            )
        if any(
            output.output_type == "stream" and output.name == "stderr" and "Warning" in output.text
            for output in cell.outputs
        ):
            found.append(
                notebook.say(cell, "shows a warning", "mend its cause and run the notebook again")
            )
        if yields_value(cell) and not cell.outputs:
            found.append(
                notebook.say(
                    cell,
                    "ends in a value but holds no output",
                    "run the notebook from top to bottom and save it",
                )
            )
    return found


def yields_value(cell):
    "Whether running the cell surely shows something: it prints, or ends in a value, not None."
    body = cell.tree.body
    if (
        not body
        or not isinstance(body[-1], ast.Expr)
        or cell.source.rstrip().endswith(";")
        or "eval" in cell.directives
    ):
        return False
    value = body[-1].value
    if isinstance(value, ast.Call):
        return called(value) in {
            "print",
            "len",
            "sum",
            "max",
            "min",
            "round",
            "sorted",
            "list",
            "dict",
            "tuple",
            "repr",
            "str",
            "abs",
            "pd.DataFrame",
        }
    if isinstance(value, ast.Constant):
        return value.value is not None and len(body) > 1
    return not isinstance(value, (ast.Await, ast.Yield, ast.IfExp, ast.BoolOp))


def size(notebook, course):
    "A notebook loads at once: 700 KB at most."
    length = len(notebook.text.encode("utf-8"))
    return (
        []
        if length <= NOTEBOOK_BYTES
        else [
            notebook.say(
                None,
                f"has {length / 1000:,.0f} KB",
                "draw smaller figures: 300 KB is the aim, 700 KB the limit",
            )
        ]
    )


def well_formed(notebook, course):
    "Format 4.5, valid, every cell with an id of its own; every code cell parses."
    found, raw = [], notebook.raw
    if (raw["nbformat"], raw["nbformat_minor"]) != (4, 5):
        found.append(
            notebook.say(
                None, f"is in format {raw['nbformat']}.{raw['nbformat_minor']}", "save it in 4.5"
            )
        )
    ids = [cell.get("id") for cell in raw["cells"]]
    twice = sorted({str(one) for one in ids if ids.count(one) > 1 or one is None})
    if twice:
        found.append(
            notebook.say(
                None,
                f"has cell ids missing or given twice: {twice}",
                "give every cell an id of its own: exports depend on them",
            )
        )
    try:
        nbformat.validate(json.loads(notebook.text))
    except nbformat.ValidationError as error:
        found.append(
            notebook.say(
                None, f"is no valid notebook ({error.message[:80]})", "save it from Jupyter again"
            )
        )
    for cell in notebook.code:
        try:
            ast.parse(cell.code)
        except SyntaxError as error:
            found.append(notebook.say(cell, f"does not parse ({error.msg})", "mend the syntax"))
    return found


def clean(notebook, course):
    "nbdev_clean would change nothing."
    tidy = json.loads(notebook.text)
    clean_nb(tidy, allowed_cell_metadata_keys=course.kept_metadata)
    return (
        []
        if nb2str(tidy) == notebook.text
        else [notebook.say(None, "is not clean", "run nbdev_clean")]
    )


def folded(notebook, course):
    "`default_exp` and imports open folded in JupyterLab: the first screen is for the subject."
    found = []
    for cell, raw in zip(notebook.cells, notebook.raw["cells"]):
        first = cell.kind == "code" and (cell.only_imports or "default_exp" in cell.directives)
        hidden = raw["metadata"].get("jupyter", {}).get("source_hidden", False)
        if first and not hidden:
            mend = 'give its metadata `"jupyter": {"source_hidden": true}`'
            found.append(notebook.say(cell, "imports or names the module, unfolded", mend))
    return found


def links(notebook, course):
    "Relative links lead to files that are there."
    found = []
    for cell in notebook.markdown:
        for target in re.findall(r"\]\(([^)\s]+)\)", cell.source):
            target = target.split("#")[0]
            if (
                target
                and not re.match(r"[a-z][a-z0-9+.-]*:", target)
                and not (notebook.path.parent / target).exists()
            ):
                found.append(
                    notebook.say(cell, f"links to {target}, which is not there", "correct the link")
                )
    return found


SHOWN = re.compile(r"0|13")  # the lessons that are held to the size of pictures and predictions


def large_pictures(lesson, course):
    "Pictures are 900 pixels wide or more, and nothing in them is written smaller than 9 points."
    found = []
    for cell in lesson.code if SHOWN.match(lesson.name) else []:
        for output in cell.outputs:
            picture = output.get("data", {}).get("image/png")
            if picture and (width := png_width(picture)) < 900:
                found.append(
                    lesson.say(cell, f"shows a picture {width} pixels wide", "make it 10 inches")
                )
        sizes = re.findall(r"(?:fontsize|labelsize|title_fontsize)=([\d.]+)", cell.source)
        if any(float(size) < 9 for size in sizes):
            found.append(lesson.say(cell, "writes smaller than 9 points", "write larger"))
    return found


def png_width(text):
    "The width of a PNG in base64, in pixels."
    return int.from_bytes(base64.b64decode(text[:64])[16:20], "big")


def predictions(lesson, course):
    "A lesson asks its reader to predict, five times at least."
    count = sum(len(re.findall(r"\*\*Predict", cell.source)) for cell in lesson.markdown)
    if not SHOWN.match(lesson.name) or count >= 5:
        return []
    return [lesson.say(None, f"asks for {count} predictions", "begin five questions **Predict:**")]


WORKSHOP_GATES = [documented]
LESSON_GATES = [
    opening,
    summary,
    next_link,
    exercises,
    solved,
    documented,
    large_pictures,
    predictions,
]
EVERY_GATE = [
    imports_alone,
    import_order,
    global_settings,
    folded,
    absolute_paths,
    no_network,
    no_shell,
    executed,
    size,
    well_formed,
    clean,
    links,
]


# ----------------------------------------------------------------------------- the house as a whole


def course_map(course):
    "The index lists every lesson in a table row, with the question that it answers."
    text = "\n".join(cell.source for cell in course.index.markdown)
    rows = {
        match[1]: match[2]
        for match in re.finditer(r"^\|[^|\n]*\]\(([^)]+\.ipynb)\)[^|\n]*\|(.*)\|\s*$", text, re.M)
    }
    return [
        f"index.ipynb: the course map has no row with a question for {lesson.path.name}; add one"
        for lesson in course.lessons
        if "?" not in rows.get(lesson.path.name, "")
    ]


def modules_once(course):
    "No module is exported by two notebooks."
    names = [notebook.module for notebook in [*course.lessons, *course.workshop] if notebook.module]
    return [
        f"nbs: two notebooks export cloudlearn.{name}; give one of them another name"
        for name in sorted(set(names))
        if names.count(name) > 1
    ]


# Where a term of the field is explained; no lesson before may use it in its prose.
TERMS = {
    "01": ("RLE",),
    "02": ("Dice", "IoU", "interval", "bootstrap"),
    "03": ("NMS", "average precision"),
    "04": (
        "convolution",
        "ReLU",
        "pooling",
        "stride",
        "padding",
        "channel",
        "logit",
        "sigmoid",
        "softmax",
        "cross-entropy",
        "gradient",
        "learning rate",
        "epoch",
        "batch",
        "BatchNorm",
        "optimiser",
        "AdamW",
        "overfitting",
        "augmentation",
        "seed",
        "arm",
    ),
    "05": ("feature map", "receptive field"),
    "06": ("skip connection", "encoder", "decoder"),
    "07": ("backbone", "pretrained", "atrous", "ASPP", "output stride", "residual"),
    "09": ("fine-tuning", "depthwise"),
}


def prose(cell):
    "The words of a markdown cell, without the addresses of links and what stands in code."
    text = re.sub(r"`[^`]*`", " ", cell.source)
    return re.sub(r"\]\([^)]*\)", "]", text)


def terms_in_order(course):
    "Every term is explained before it is used; the index and the tour may use all of them."
    found = []
    for lesson in course.lessons:
        if lesson.name.startswith("00"):
            continue
        later = [(term, home) for home, terms in TERMS.items() for term in terms]
        later = [(term, home) for term, home in later if lesson.place < home]
        for cell in lesson.markdown:
            for term, home in later:
                if re.search(rf"\b{term}s?\b", prose(cell), re.I):
                    problem = f'says "{term}", which lesson {home} explains'
                    found.append(lesson.say(cell, problem, "say it in other words, or later"))
    return found


WINGS = ("clouds", "cars", "xray")
ROOFS = ("cli", "prediction")  # what may know all wings


def needs_of(course):
    "What each module imports of the others, wherever in its cells the import stands."
    modules = {
        notebook.module: [
            name for cell in notebook.code if cell.exported for _, name in imported(cell.tree)
        ]
        for notebook in [*course.lessons, *course.workshop]
        if notebook.module
    }
    return {
        module: {
            other
            for other in modules
            for name in names
            if f"{name}.".startswith(f"cloudlearn.{other}.")
        }
        for module, names in modules.items()
    }


def no_circle(course):
    "No module imports, over any number of others, itself."
    needs = needs_of(course)
    reached = {module: set(others) for module, others in needs.items()}
    for middle in reached:
        for module in reached:
            if middle in reached[module]:
                reached[module] |= reached[middle]
    return [
        f"cloudlearn.{module} needs itself over {', '.join(sorted(needs[module]))}; break it"
        for module in reached
        if module in reached[module]
    ]


def wings_apart(course):
    "Clouds, cars and X-rays stand side by side: none needs another, and only the roof knows them."
    found = []
    for module, others in needs_of(course).items():
        wing = module.split(".")[0]
        for other in sorted(others):
            there = other.split(".")[0]
            if there in WINGS and wing != there and module not in ROOFS:
                mend = "move what both need to a lesson below or to the workshop"
                found.append(f"cloudlearn.{module} imports cloudlearn.{other}; {mend}")
    return found


def export_drift(course, scratch):
    "cloudlearn/ is exactly what the notebooks export: a fresh export gives the same files."
    (scratch / "nbs" / "workshop").mkdir(parents=True)
    for path in [
        course.root / "settings.ini",
        *(notebook.path for notebook in [*course.lessons, *course.workshop]),
    ]:
        (scratch / path.relative_to(course.root)).write_bytes(path.read_bytes())
    environment = {name: value for name, value in os.environ.items() if name != "IN_TEST"}
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            "from nbdev.doclinks import nbdev_export; nbdev_export.__wrapped__()",
        ],
        cwd=scratch,
        env=environment,
        capture_output=True,
        text=True,
    )
    if run.returncode:
        return [f"nbdev_export failed; mend what it says: {run.stderr.strip().splitlines()[-1]}"]
    fresh, kept = (
        sorted(
            path.relative_to(root / "cloudlearn") for path in (root / "cloudlearn").rglob("*.py")
        )
        for root in (scratch, course.root)
    )
    found = [
        f"cloudlearn/{path} comes from no notebook; delete it" for path in kept if path not in fresh
    ]
    found += [
        f"cloudlearn/{path} is missing; run nbdev_export" for path in fresh if path not in kept
    ]
    found += [
        f"cloudlearn/{path} is not what its notebook exports; "
        "run nbdev_export and edit only the notebook"
        for path in fresh
        if path in kept
        and not filecmp.cmp(
            scratch / "cloudlearn" / path, course.root / "cloudlearn" / path, shallow=False
        )
    ]
    return found


def heavy_imports(module):
    "Which slow libraries come along when `module` is imported in a fresh interpreter."
    heavy = {"torch", "torchvision", "lightning", "pandas", "matplotlib", "sklearn", "seaborn"}
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if run.returncode:
        return [f"import {module} fails; mend: {run.stderr.strip().splitlines()[-1]}"]
    return [
        f"import {module} brings {name} along; import it inside the functions that need it"
        for name in run.stdout.split()
    ]
