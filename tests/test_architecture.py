"""The shape of the house: what may import what, and what stands at the top of the repository."""

from __future__ import annotations

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "lance_rerank"

# A module imports only from rows above its own or from its own folder.
LAYERS = (
    ("errors", "extras", "fingerprint", "types"),
    ("arrow", "lance", "models", "stages", "wire"),
    ("encoder", "multivector", "lexical", "datasets"),
    ("columns",),
    ("rerankers",),
    ("search",),
    ("evaluation", "mining", "feedback"),
    ("training", "reindex"),
    ("jobs", "inspector", "demo", "testing"),
    ("cli",),
)
LAYER_OF = {room: row for row, rooms in enumerate(LAYERS) for room in rooms}
# Neighbours that may look at each other, one way: a missing extra is an error; LanceDB's hooks hand on Arrow tables.
BESIDE = {
    ("extras", "errors"),
    ("fingerprint", "errors"),
    ("fingerprint", "types"),
    ("lance", "arrow"),
    ("types", "errors"),
}
FACADE_FROM = LAYER_OF["jobs"]  # from here on, modules may use the package as its users do

TOP_LEVEL = {
    "pyproject.toml",
    "lance_rerank",
    "tests",
    "examples",
    "README.md",
    "Makefile",
    "LICENSE",
    ".ci",
    ".gitignore",
}

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}
MODULES = {name.removesuffix(".__init__"): ast.parse(path.read_text("utf-8")) for name, path in FILES.items()}
every_module = pytest.mark.parametrize("name", MODULES)


def room_of(module: str) -> str:
    """`lance_rerank.search.hybrid` lives in `search`, `lance_rerank.arrow` in `arrow`, the facade in ``""``."""
    return module.partition(".")[2].partition(".")[0]


def imports_of(name: str) -> Iterator[str]:
    """Every module of this package that a module imports, at its top or inside a function."""
    tree = MODULES[name]
    exempt = set()
    if name == "lance_rerank":  # what it imports for type checkers alone
        for node in tree.body:
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                exempt |= set(ast.walk(node))
    for node in ast.walk(tree):
        if node in exempt:
            continue
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name} imports relatively; imports are written out in full"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
            targets = [module if module in MODULES else str(node.module) for module in modules]
        else:
            continue
        yield from (target for target in targets if target.split(".")[0] == "lance_rerank")


def test_every_room_has_its_place():
    rooms = {room_of(name) for name in MODULES} - {""}
    assert rooms <= set(LAYER_OF), "give a new room a row in LAYERS, and in the design"


@every_module
def test_imports_come_from_layers_below_or_from_the_same_folder(name):
    room = room_of(name)
    for target in imports_of(name):
        assert target in MODULES, f"{name} imports {target}, which is not there"
        below = room_of(target)
        if not room:
            assert not below, "the facade imports nothing before it is used"
        elif not below:
            assert LAYER_OF[room] >= FACADE_FROM, f"{name} imports the facade, {target}"
        elif below != room and (room, below) not in BESIDE:
            assert LAYER_OF[below] < LAYER_OF[room], f"{name} ({room}) imports {target} ({below})"


def test_no_module_imports_itself_through_others():
    graph = {name: set(imports_of(name)) - {name} for name in MODULES}
    done: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        for target in sorted(graph[name]):
            visit(target, (*path, name))
        done.add(name)

    for name in graph:
        visit(name, ())


def test_the_checker_sees_imports_inside_functions():
    """Else the tests above would pass on whatever is hidden there."""
    inside = [
        node
        for tree in MODULES.values()
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Import | ast.ImportFrom)
    ]
    assert inside
    assert "lance_rerank.arrow" in set(imports_of("lance_rerank.lance.hybrid"))


@every_module
def test_only_the_room_lance_touches_lancedbs_private_names(name):
    if room_of(name) == "lance":
        return
    tree = MODULES[name]
    foreign = set()  # what the module imported from LanceDB, by the name it uses
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("lancedb", "lance"):
            names = [*str(node.module).split("."), *(alias.name for alias in node.names)]
            assert not any(part.startswith("_") for part in names), f"{name} imports {node.module}: {names}"
            foreign |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            foreign |= {alias.asname or alias.name for alias in node.names if alias.name.split(".")[0] == "lancedb"}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _is_private(node.attr) and isinstance(node.value, ast.Name):
            assert node.value.id not in foreign, f"{name}:{node.lineno} touches {node.value.id}.{node.attr}"
        if isinstance(node, ast.Attribute) and node.attr in BUILDER_STATE:
            raise AssertionError(f"{name}:{node.lineno} touches {node.attr}, which is a LanceDB builder's")


# attributes of LanceDB's builders and tables that a subclass or a caller is tempted to read
BUILDER_STATE = {
    "_norm",
    "_vector_query",
    "_fts_query",
    "_with_row_id",
    "_caller_requested_row_id",
    "_pk_fusion",
    "_inner",
}


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


@every_module
def test_only_the_command_line_prints(name):
    if room_of(name) == "cli":
        return
    calls = [node for node in ast.walk(MODULES[name]) if isinstance(node, ast.Call)]
    prints = [call.lineno for call in calls if isinstance(call.func, ast.Name) and call.func.id == "print"]
    assert not prints, f"{name} prints in lines {prints}: return a value, or log it"


def test_nothing_else_stands_at_the_top():
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("no git here")
    assert {path.split("/")[0] for path in listed.stdout.splitlines()} <= TOP_LEVEL


def test_no_test_folder_is_a_package():
    """Tests are imported by path, so that a folder may have the name of the room it tests."""
    assert not list((ROOT / "tests").rglob("__init__.py"))
