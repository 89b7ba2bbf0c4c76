"""What `import lance_rerank` offers, and what it costs."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import lance_rerank

HEAVY = ("torch", "lancedb", "lance", "pandas", "pyarrow", "numpy", "transformers", "sentence_transformers", "pylate")
every_name = pytest.mark.parametrize("name", lance_rerank.__all__)


@every_name
def test_each_name_can_be_imported_from_where_it_lives(name):
    value = getattr(lance_rerank, name)
    home = importlib.import_module(lance_rerank._HOME_OF[name])
    assert value is getattr(home, name)
    assert name in home.__all__ if hasattr(home, "__all__") else value.__module__ == home.__name__


@every_name
def test_each_name_says_what_it_is(name):
    documentation = getattr(lance_rerank, name).__doc__
    assert documentation
    first = documentation.strip().splitlines()[0]
    assert first.endswith(".") or len(first) > 60, f"the first sentence of {name}: {first!r}"
    assert not documentation.startswith(f"{name}("), "a dataclass without a docstring gets its signature as one"


def test_names_and_homes_are_the_same_list():
    homes = [name for names in lance_rerank._HOMES.values() for name in names]
    assert sorted(homes) == sorted(lance_rerank.__all__)
    assert len(set(homes)) == len(homes)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(lance_rerank.__file__).read_text("utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.asname or alias.name for node in block.body for alias in node.names}
    assert seen == set(lance_rerank.__all__)


def test_dir_lists_them():
    assert set(lance_rerank.__all__) <= set(dir(lance_rerank))


def test_a_star_import_brings_them_all():
    names = {}
    exec("from lance_rerank import *", names)
    assert set(lance_rerank.__all__) <= set(names)


def test_an_unknown_name_is_the_usual_error():
    with pytest.raises(AttributeError, match=r"module 'lance_rerank' has no attribute 'rerank_everything'"):
        _ = lance_rerank.rerank_everything
    with pytest.raises(ImportError, match="rerank_everything"):
        exec("from lance_rerank import rerank_everything")


def test_the_version_is_that_of_the_distribution():
    from importlib.metadata import version

    assert lance_rerank.__version__ == version("lance-rerank")


def loaded_after(statement: str) -> set[str]:
    """The heavy modules that a fresh interpreter has loaded after a statement."""
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY!r} if name in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_the_package_loads_nothing_heavy():
    assert loaded_after("import lance_rerank; dir(lance_rerank); lance_rerank.__version__") == set()


def test_errors_load_nothing_heavy():
    assert loaded_after("import lance_rerank.errors, lance_rerank.extras") == set()
