"""The rules of code style that a program can check, with one test for each rule.

Each test lists everything that breaks its rule, with file and line. Ruff checks further rules (see
pyproject.toml).
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import TypeGuard

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("discovery", "mcp_server")
FOLDERS = (*PACKAGES, "tests", "benchmarks", "training")

MAX_FUNCTION_LINES = 40
MAX_TEST_FUNCTION_LINES = 50  # a test tells one story
MAX_LINE_WIDTH = 100
MAX_MODULES_IN_FOLDER = 13
MAX_TUPLE_ASSIGNMENTS = 2  # for each 1,000 lines
MAX_POSITIONAL_ARGUMENTS = 7
MAX_POSITIONAL_FIELDS = 4
WORKING_STATES = {"Descent", "Mending"}  # searches, whose later fields are filled as they go
VARIADIC_FUNCTIONS = {"format_row", "scout"}
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "types", "manager", "managers"}
PRAGMA = re.compile(r"  # (?:type: ignore|noqa)\b.*")
DOCSTRING_SECTIONS = ("Args:", "Attributes:", "Raises:")
SECTION_ENTRY = re.compile(r" +[`*\w.]+(?:, [`*\w.]+)*: (?P<word>[A-Z][^\s.,;:]*)")
NAME = re.compile(r".+[A-Z0-9_(\[|^·²]|[B-Z]$")  # TransformerLens, SAE, W_O, T
PROPER_NOUNS = {"True", "False", "None", "Holm", "Holm's", "Hugging", "Jaccard", "Python"}
MACHINE_PATH = re.compile(r"""["'\s=(](/home/|/root/|/Users/|/work/|/opt/|[A-Z]:\\)""")


def python_files(folders: tuple[str, ...] = FOLDERS) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]


def location(path: Path, line: int) -> str:
    return f"{path.relative_to(ROOT).as_posix()}:{line}"


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    return tuple(ast.walk(parse(path)))


def find_nodes(
    breaks_rule: Callable[[ast.AST], bool], folders: tuple[str, ...] = FOLDERS
) -> list[str]:
    """List the places of the syntax nodes that break a rule."""
    return [
        location(path, node.lineno)
        for path in python_files(folders)
        for node in nodes_of(path)
        if breaks_rule(node)
    ]


def report(rule: str, offenders: list[str]) -> str:
    return "\n  ".join([f"{rule} ({len(offenders)} places):", *offenders])


def test_a_function_is_short() -> None:
    offenders = []
    for path in python_files():
        for node in nodes_of(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = count_body_lines(node)
                if length > max_function_lines(path):
                    offenders.append(f"{location(path, node.lineno)} {node.name}: {length} lines")
    rule = f"A function has a body of at most {MAX_FUNCTION_LINES} lines, without its docstring"
    rule += f" ({MAX_TEST_FUNCTION_LINES} in tests)"
    assert not offenders, report(rule, offenders)


def max_function_lines(path: Path) -> int:
    is_test = path.is_relative_to(ROOT / "tests")
    return MAX_TEST_FUNCTION_LINES if is_test else MAX_FUNCTION_LINES


def count_body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body[1:] if ast.get_docstring(function) is not None else function.body
    return (function.end_lineno or 0) - body[0].lineno + 1 if body else 0


def test_a_line_is_not_wide() -> None:
    """Ruff's E501 checks this too, but it also accepts a wide line that ends in a URL.

    A pragma (`# type: ignore`, `# noqa`) must stand on the line that it is about, so it and its
    reason do not count.
    """
    offenders = [
        f"{location(path, number)}: {len(line)} columns"
        for path in python_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if len(PRAGMA.sub("", line)) > MAX_LINE_WIDTH
    ]
    assert not offenders, report(f"A line has at most {MAX_LINE_WIDTH} columns", offenders)


def test_a_folder_is_small() -> None:
    """What every folder may have, an `__init__.py` or a `conftest.py`, does not count."""
    names = ("__init__.py", "conftest.py")
    sizes = Counter(path.parent for path in python_files() if path.name not in names)
    offenders = [
        f"{folder.relative_to(ROOT).as_posix()}: {count} modules"
        for folder, count in sizes.items()
        if count > MAX_MODULES_IN_FOLDER
    ]
    rule = f"A folder has at most {MAX_MODULES_IN_FOLDER} modules"
    assert not offenders, report(rule, offenders)


def test_a_class_name_occurs_once() -> None:
    places = defaultdict(list)
    for path in python_files():
        for node in nodes_of(path):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(location(path, node.lineno))
    offenders = [f"{name}: {', '.join(at)}" for name, at in places.items() if len(at) > 1]
    assert not offenders, report("A class name occurs once", offenders)


def test_values_with_many_fields_are_made_by_keyword() -> None:
    """Of a dataclass with more fields, at most the first few may be given by position."""
    offenders = [
        f"{location(path, node.lineno)} {node.name}: {count_positional_fields(node)} fields"
        for path in python_files(PACKAGES)
        for node in nodes_of(path)
        if isinstance(node, ast.ClassDef)
        and node.name not in WORKING_STATES
        and count_positional_fields(node) > MAX_POSITIONAL_FIELDS
    ]
    rule = f"A dataclass takes at most {MAX_POSITIONAL_FIELDS} fields by position"
    assert not offenders, report(rule, offenders)


def count_positional_fields(node: ast.ClassDef) -> int:
    decorators = [ast.unparse(decorator) for decorator in node.decorator_list]
    if not any("dataclass" in text and "kw_only=True" not in text for text in decorators):
        return 0
    count = 0
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign):
            continue
        annotation = ast.unparse(statement.annotation)
        if annotation == "KW_ONLY":
            break
        value = ast.unparse(statement.value) if statement.value else ""
        count += "ClassVar" not in annotation and not re.search(r"init=False|kw_only=True", value)
    return count


def test_unrelated_values_are_assigned_one_by_one() -> None:
    """`a, b = 1, 2` is hard to read. Unpacking a result and exchanging two values are fine."""
    offenders = find_nodes(assigns_unrelated_values)
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in python_files())
    rule = f"At most {MAX_TUPLE_ASSIGNMENTS} tuple assignments for each 1,000 lines"
    allowed = MAX_TUPLE_ASSIGNMENTS * lines / 1000
    assert len(offenders) <= allowed, report(f"{rule}, here {allowed:.0f}", offenders)


def assigns_unrelated_values(node: ast.AST) -> bool:
    if not isinstance(node, ast.Assign) or not isinstance(node.value, ast.Tuple):
        return False
    sources = sorted(map(ast.unparse, node.value.elts))
    tuples = [target for target in node.targets if isinstance(target, ast.Tuple)]
    return any(sorted(map(ast.unparse, target.elts)) != sources for target in tuples)


def test_conditional_expressions_are_not_nested() -> None:
    offenders = find_nodes(nests_conditional_expressions)
    assert not offenders, report("A conditional expression holds no other one", offenders)


def nests_conditional_expressions(node: ast.AST) -> bool:
    return isinstance(node, ast.IfExp) and any(
        isinstance(inner, ast.IfExp) for inner in ast.walk(node) if inner is not node
    )


def test_many_arguments_are_given_by_keyword() -> None:
    """The cells of a table's row and the words of a command line have no names of their own."""
    offenders = find_nodes(
        lambda node: (
            isinstance(node, ast.Call)
            and len(node.args) > MAX_POSITIONAL_ARGUMENTS
            and ast.unparse(node.func) not in VARIADIC_FUNCTIONS
        )
    )
    rule = f"A call has at most {MAX_POSITIONAL_ARGUMENTS} positional arguments"
    assert not offenders, report(rule, offenders)


def test_there_is_no_path_of_one_machine() -> None:
    offenders = [
        f"{location(path, number)}: {match[1]}"
        for path in python_files()
        if path != Path(__file__).resolve()
        for number, line in enumerate(path.read_text(encoding="utf-8").split("\n"), start=1)
        for match in MACHINE_PATH.finditer(f"\n{line}")
    ]
    assert not offenders, report("The code names no path of a machine", offenders)


def test_nothing_is_printed() -> None:
    """Stdout belongs to the MCP channel. Ruff's T20 finds calls, but not `print` as a value."""
    offenders = find_nodes(
        lambda node: isinstance(node, ast.Name) and node.id == "print", folders=PACKAGES
    )
    assert not offenders, report("The packages do not use print", offenders)


def test_a_public_module_has_a_docstring() -> None:
    offenders = [
        location(path, 1)
        for path in python_files(PACKAGES)
        if not re.match(r"_(?!_)", path.stem) and not ast.get_docstring(parse(path))
    ]
    assert not offenders, report("A public module has a docstring", offenders)


def test_an_entry_of_a_docstring_begins_in_lower_case() -> None:
    offenders = [
        location(path, line)
        for path in python_files()
        for line, word in list_entry_words(path)
        if not NAME.match(word) and word not in PROPER_NOUNS
    ]
    rule = f"An entry of {', '.join(DOCSTRING_SECTIONS)} begins in lower case, names apart"
    assert not offenders, report(rule, offenders)


def list_entry_words(path: Path) -> Iterator[tuple[int, str]]:
    """List the capitalised first words of the entries in the docstrings of a module."""
    lines = path.read_text(encoding="utf-8").split("\n")
    for docstring in filter(is_docstring, nodes_of(path)):
        section: int | None = None
        for number in range(docstring.lineno, (docstring.end_lineno or 0) + 1):
            line = lines[number - 1]
            indentation = len(line) - len(line.lstrip())
            if line.strip() in DOCSTRING_SECTIONS:
                section = indentation
            elif line.strip() and section is not None and indentation <= section:
                section = None
            elif section is not None and indentation == section + 4:
                entry = SECTION_ENTRY.match(line)
                yield from [(number, entry["word"])] if entry else []


def is_docstring(node: ast.AST) -> TypeGuard[ast.Expr]:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def test_a_package_has_an_init_file() -> None:
    """A folder without one would be a namespace package, which the wheel would leave out."""
    folders = {path.parent for path in python_files(PACKAGES)}
    offenders = [
        folder.relative_to(ROOT).as_posix()
        for folder in sorted(folders)
        if not (folder / "__init__.py").is_file()
    ]
    assert not offenders, report("A folder with modules has an __init__.py", offenders)


def test_the_name_of_a_module_says_what_it_holds() -> None:
    offenders = [
        location(path, 1)
        for path in python_files(PACKAGES)
        if FORBIDDEN_NAMES & {part.removesuffix(".py") for part in path.relative_to(ROOT).parts}
    ]
    rule = f"No module or package is named {', '.join(sorted(FORBIDDEN_NAMES))}"
    assert not offenders, report(rule, offenders)
