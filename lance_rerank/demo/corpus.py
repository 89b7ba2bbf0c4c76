"""A corpus every machine already has: docstrings of Python's standard library and of installed packages.

Source files are parsed, never imported: importing some modules opens a browser or prints a poem. Only the compiled
modules named here, which have no source to parse, are imported and asked for their docstrings.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from types import ModuleType

from lance_rerank.demo.questions import answer_names
from lance_rerank.errors import DatasetError
from lance_rerank.types import Document

_MIN_WORDS = 7
_MAX_WORDS = 120
_MAX_SIGNATURE = 100
_MAX_INSTALLED_BYTES = 100_000
_PER_INSTALLED_FILE = 3


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_SKIPPED_FOLDERS = _words("""
    __pycache__ dist-packages encodings ensurepip idlelib lib2to3 pydoc_data site-packages test testing tests turtledemo
""")

# Modules that later Pythons removed, so that corpora differ less between versions; two whose hundreds of look-alike
# methods would crowd out the rest; and the other platform's copy of `os.path`.
_SKIPPED_MODULES = _words("""
    aifc asynchat asyncore cgi cgitb chunk crypt distutils imghdr imp mailcap msilib nntplib pipes smtpd sndhdr sunau
    telnetlib tkinter turtle uu xdrlib
""") | {"posixpath" if os.name == "nt" else "ntpath"}

# Packages that offer the standard library again: their docstrings would be right answers that nobody judged.
_LOOKALIKES = sys.stdlib_module_names | _words("""
    anyio attr attrs backports cloudpickle dill exceptiongroup future importlib_metadata importlib_resources
    more_itertools multiprocess orjson pathlib2 pkg_resources regex setuptools simplejson six sniffio tomli toolz trio
    typing_extensions ujson zipp
""")

_COMPILED = _words("""
    array atexit binascii builtins bz2 cmath codecs collections contextvars csv faulthandler fcntl functools gc grp
    hashlib hmac io itertools locale lzma marshal math mmap os pickle pwd random re resource secrets select _signal
    _socket sqlite3 struct sys termios threading time _tracemalloc unicodedata weakref zlib
""")

# Names the documentation uses where the source has others and no import statement tells so.
_DOCUMENTED_AS = {
    "posixpath": "os.path",
    "ntpath": "os.path",
    "genericpath": "os.path",
    "_collections_abc": "collections.abc",
    "_pydecimal": "decimal",
    "_signal": "signal",
    "_socket": "socket",
    "_tracemalloc": "tracemalloc",
    "concurrent.futures.process.ProcessPoolExecutor": "concurrent.futures.ProcessPoolExecutor",
    "concurrent.futures.thread.ThreadPoolExecutor": "concurrent.futures.ThreadPoolExecutor",
    "getpass.unix_getpass": "getpass.getpass",
    "multiprocessing.context.BaseContext": "multiprocessing",
    "pathlib._abc.PathBase": "pathlib.Path",
    "pathlib._abc.PurePathBase": "pathlib.PurePath",
    "random.Random": "random",
}


@dataclass(frozen=True, slots=True)
class _Definition:
    """Something with a docstring; its name inside the module is empty for the module itself."""

    name: str
    signature: str
    docstring: str


@dataclass(frozen=True, slots=True)
class _Module:
    """What a source file defines, exports, and imports by name (None stands for every name)."""

    name: str
    definitions: tuple[_Definition, ...]
    exported: frozenset[str] | None
    imports: tuple[tuple[str, frozenset[str] | None], ...]

    def exports(self, name: str) -> bool:
        return self.exported is None or name in self.exported


_Homes = Mapping[str, list[tuple[_Module, frozenset[str] | None]]]


def build_corpus(minimum: int = 2000, maximum: int = 3000) -> list[Document]:
    """Return between ``minimum`` and ``maximum`` documents, sorted by name, the same ones in every process.

    The right answers of the questions are all among them, as far as this Python has them. Their siblings, the other
    functions of the same module and methods of the same class, come first where not everything fits: they are what a
    weak search mistakes for an answer. About a fourth are distractors from installed packages; where few are
    installed, more of the standard library takes their place.

    Raises
    ------
    DatasetError
        If this Python and its packages have fewer than ``minimum`` documents.
    """
    target = (minimum + maximum) // 2
    wanted = answer_names()
    parents = {_parent(name) for name in wanted}
    standard = sorted(
        standard_library_documents(),
        key=lambda document: (_parent(document.doc_id) not in parents, _draw(document.doc_id)),
    )
    answers = [document for document in standard if document.doc_id in wanted]
    texts = {document.text for document in answers}
    others = list(_unlike(texts, (document for document in standard if document.doc_id not in wanted)))
    distractors = list(islice(_unlike(texts, _installed_documents()), target // 4))
    corpus = [*answers, *others][: target - len(distractors)] + distractors
    if len(corpus) < minimum:
        raise DatasetError(
            f"expected at least {minimum} docstrings in the source files of this Python, found {len(corpus)}; "
            "use a Python whose standard library is installed as source files"
        )
    return sorted(corpus, key=lambda document: document.doc_id)


def standard_library_documents() -> Iterator[Document]:
    """Yield a document for each public module, class, function and method with a docstring; each name comes once."""
    seen: set[str] = set()
    for name, definition in chain(_standard_definitions(), _compiled_definitions()):
        if name not in seen and _is_public(name) and _is_long_enough(definition.docstring):
            seen.add(name)
            yield _document(name, definition)


def _installed_documents() -> Iterator[Document]:
    """Yield documents of a few definitions a file, over all installed packages in an order drawn by name."""
    paths = sysconfig.get_paths()
    roots = (Path(root) for root in sorted({paths["purelib"], paths["platlib"]}))
    found = ((name, path) for root in roots for name, path in _source_files(root, _LOOKALIKES) if _is_public(name))
    for name, path in sorted(found, key=lambda item: _draw(item[0])):
        if module := _read_module(name, path, _MAX_INSTALLED_BYTES):
            qualified = {f"{name}.{definition.name}".rstrip("."): definition for definition in module.definitions}
            chosen = sorted(filter(_is_public, qualified), key=_draw)[:_PER_INSTALLED_FILE]
            yield from (_document(each, qualified[each]) for each in chosen)


def _standard_definitions() -> Iterator[tuple[str, _Definition]]:
    root = Path(sysconfig.get_paths()["stdlib"])
    files = sorted(_source_files(root, _SKIPPED_MODULES))
    modules = [module for name, path in files if (module := _read_module(name, path))]
    homes = _homes(modules)
    for module in modules:
        for definition in module.definitions:
            yield _documented_name(module, definition.name, homes), definition


def _compiled_definitions() -> Iterator[tuple[str, _Definition]]:
    for module_name in sorted(_COMPILED):
        try:
            module = importlib.import_module(module_name)
        except ImportError:
            continue  # some exist on one platform only, some are left out of small builds
        for name, value in _compiled_members(module):
            parameters = getattr(value, "__text_signature__", None) if inspect.isroutine(value) else None
            signature = _signature(name.rpartition(".")[2], parameters[1:-1]) if parameters else ""
            qualified = name if module_name == "builtins" else _renamed(f"{module_name}.{name}")
            yield qualified, _Definition(name, signature, inspect.getdoc(value) or "")


def _compiled_members(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield functions, and classes with their members, except functions written in Python: these have source."""
    for name in getattr(module, "__all__", dir(module)):
        value: object = getattr(module, name, None)
        if name.endswith("hook"):
            continue  # programs put their own in place of `sys.excepthook` and its like
        if inspect.isclass(value) and value.__name__ == name:  # not `socket.SocketType`, which is `socket.socket`
            yield name, value
            yield from ((f"{name}.{key}", each) for key, each in sorted(vars(value).items()) if _is_compiled(each))
        elif not inspect.isclass(value) and _is_compiled(value):
            yield name, value


def _is_compiled(value: object) -> bool:
    return inspect.isdatadescriptor(value) or (inspect.isroutine(value) and not inspect.isfunction(value))


def _source_files(root: Path, skipped: frozenset[str]) -> Iterator[tuple[str, Path]]:
    """Yield the dotted name and the path of each module below ``root`` whose top-level name is not skipped."""
    for folder, subfolders, files in os.walk(root):
        package = Path(folder).relative_to(root).parts
        subfolders[:] = [name for name in subfolders if name.isidentifier() and name not in _SKIPPED_FOLDERS]
        for file in files:
            stem, extension = os.path.splitext(file)
            parts = package if stem == "__init__" else (*package, stem)
            if extension == ".py" and stem.isidentifier() and parts and parts[0] not in skipped:
                yield ".".join(parts), Path(folder, file)


def _read_module(name: str, path: Path, max_bytes: int = 1_000_000) -> _Module | None:
    """Return what a source file defines, or None if it is larger or this Python cannot read it."""
    try:
        source = path.read_bytes()
        if len(source) > max_bytes:
            return None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return None
    statements = list(_statements(tree.body))
    package = name if path.stem == "__init__" else name.rpartition(".")[0]
    own = _Definition("", "", ast.get_docstring(tree) or "")
    definitions = [own, *_definitions(statements, "")]
    return _Module(
        name,
        tuple(definition for definition in definitions if _is_long_enough(definition.docstring)),
        _exported(statements),
        tuple(_imports(statements, package)),
    )


def _statements(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    """Yield statements in order, among them those that ``if`` and ``try`` make depend on the platform."""
    for node in nodes:
        if isinstance(node, (ast.If, ast.Try, ast.ExceptHandler)):
            yield from _statements(ast.iter_child_nodes(node))
        else:
            yield node


def _definitions(statements: Iterable[ast.AST], prefix: str) -> Iterator[_Definition]:
    for node in statements:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)) and _is_public(node.name):
            name = prefix + node.name
            if docstring := ast.get_docstring(node):
                signature = "" if isinstance(node, ast.ClassDef) else _signature(node.name, ast.unparse(node.args))
                yield _Definition(name, signature, docstring)
            if isinstance(node, ast.ClassDef):
                yield from _definitions(_statements(node.body), name + ".")


def _exported(statements: Iterable[ast.AST]) -> frozenset[str] | None:
    """Return the names in ``__all__``, or None where it is absent or computed."""
    names: set[str] = set()
    for node in statements:
        if isinstance(node, (ast.Assign, ast.AugAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                try:
                    names.update(ast.literal_eval(node.value))
                except (ValueError, TypeError):
                    return None
    return frozenset(names) or None


def _imports(statements: Iterable[ast.AST], package: str) -> Iterator[tuple[str, frozenset[str] | None]]:
    for node in statements:
        if isinstance(node, ast.ImportFrom):
            base = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
            names = frozenset(alias.name for alias in node.names)
            yield ".".join([*base, *filter(None, [node.module])]), None if "*" in names else names


def _homes(modules: Iterable[_Module]) -> _Homes:
    """Return, for each module, the public modules that offer its names as their own.

    These are the package a module lies in, and for private modules everyone who imports from them.
    """
    homes: dict[str, list[tuple[_Module, frozenset[str] | None]]] = defaultdict(list)
    for module in modules:
        for source, names in module.imports if _is_public(module.name) else ():
            if source.startswith(module.name + ".") or not _is_public(source):
                homes[source].append((module, names))
    return homes


def _documented_name(module: _Module, local: str, homes: _Homes) -> str:
    """Return the name that users import: ``json.JSONEncoder``, where the source is ``json/encoder.py``."""
    top = local.partition(".")[0]
    for home, names in homes.get(module.name, []) if top else []:
        if home.exports(top) and (module.exports(top) if names is None else top in names):
            return f"{home.name}.{local}"
    return _renamed(f"{module.name}.{local}".rstrip("."))


def _renamed(name: str) -> str:
    for source, documented in _DOCUMENTED_AS.items():
        if name == source or name.startswith(source + "."):
            return documented + name.removeprefix(source)
    return name


def _signature(name: str, parameters: str) -> str:
    """Return a call as users write it, without the receiver and without more than a line of parameters."""
    written = re.sub(r"^\$?(self|cls|module|type)\b(, /)?(, )?", "", parameters)
    return f"{name}({written if len(written) <= _MAX_SIGNATURE else '...'})"


def _document(name: str, definition: _Definition) -> Document:
    words = list(islice(re.finditer(r"\S+", definition.docstring), _MAX_WORDS))
    text = f"{definition.signature}\n\n{definition.docstring[: words[-1].end()]}".strip()
    # Docstrings about Unicode can hold lone surrogates, which neither tokenizers nor Arrow accept.
    return Document(name, text.encode(errors="replace").decode(), name)


def _is_long_enough(docstring: str) -> bool:
    return len(docstring.split(maxsplit=_MIN_WORDS)) >= _MIN_WORDS


def _is_public(name: str) -> bool:
    return not any(part.startswith("_") for part in name.split("."))


def _unlike(texts: set[str], documents: Iterable[Document]) -> Iterator[Document]:
    """Yield the documents whose text is not in ``texts``, and add it there."""
    for document in documents:
        if document.text not in texts:
            texts.add(document.text)
            yield document


def _parent(name: str) -> str:
    return name.rpartition(".")[0]


def _draw(name: str) -> bytes:
    """Return a key that orders names as a shuffle would, and always in the same way."""
    return hashlib.sha256(name.encode()).digest()
