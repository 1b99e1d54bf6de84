"""Figures of the tree: how long, how typed, how entangled its Python is. They are symptoms.

    python -m tools.tree_figures            the figures, and where each comes from
    python -m tools.tree_figures --check    the same; ends with 1 where a bound is broken

Files are read with ``ast`` and ``tokenize`` alone; nothing of the project is imported. A function
may be longer than ``FUNCTION_LINES`` where a comment says why: ``# long: REASON``, on the line
above its ``def`` (or its first decorator) or within its signature.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import statistics
import sys
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

FILE_LINES = 400
FUNCTION_P90 = 25
FUNCTION_LINES = 60
FMT_SKIPS = 40

CORE = ("flux_core",)
TYPED = ("flux_core", "nodes", "cli", "batch")

#: Where pixels become latents and tokens; nowhere else.
SIZES_FILE = "flux_core/sampling/latents.py"

#: Names of our own where the field has a word, and locals that do not say what they hold.
BANNED_NAME = re.compile(
    "ahead|beside|cards|contract|course|found|give|give_back|home|listen|made|moments|news|said|"
    "take|told|walk"
)
#: Words that no name has in it.
BANNED_WORD = re.compile("(^|_)(foresees?|lend|residency|rivals|settle|standins|compensate)(_|$)")

Function = ast.FunctionDef | ast.AsyncFunctionDef

TERM = r"(?:\.\.\.|[A-Za-z0-9_]{1,12}(?:\s?[-+*/x ]\s?[A-Za-z0-9_]{1,12}){0,3})"
SHAPE = re.compile(rf"\({TERM}(?:,\s*{TERM})*,?\)|\bscalar\b|\bany\s+shape\b")


@dataclass(frozen=True)
class Source:
    """One Python file."""

    path: str  # relative to the tree's root, with slashes
    text: str

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)

    @cached_property
    def comments(self) -> dict[int, str]:
        """Comments by line."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        return {t.start[0]: t.string for t in tokens if t.type == tokenize.COMMENT}

    @cached_property
    def functions(self) -> list[Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, Function)]

    def within(self, folders: tuple[str, ...]) -> bool:
        return self.path.split("/")[0] in folders

    def at(self, node: ast.AST, note: str = "") -> str:
        return f"{self.path}:{getattr(node, 'lineno', 1)} {note}".rstrip()


@dataclass(frozen=True)
class Figure:
    """One number, what it must not exceed, and where it comes from."""

    name: str
    value: int
    bound: int | None = None
    places: list[str] = field(default_factory=list)

    @property
    def broken(self) -> bool:
        return self.bound is not None and self.value > self.bound

    def __str__(self) -> str:
        bound = "" if self.bound is None else f" (at most {self.bound})"
        return f"{'BROKEN ' if self.broken else ''}{self.name}: {self.value}{bound}"


def read_tree(root: Path) -> list[Source]:
    """All Python files below a root, but those in hidden folders."""
    paths = (path.relative_to(root) for path in sorted(root.rglob("*.py")))
    kept = [path for path in paths if not any(part.startswith(".") for part in path.parts)]
    return [Source(p.as_posix(), (root / p).read_text(encoding="utf-8")) for p in kept]


def line_count(node: Function) -> int:
    """Lines from ``def`` to the last one, docstring and all."""
    return (node.end_lineno or node.lineno) - node.lineno + 1


def long_reason(source: Source, node: Function) -> str:
    """Why a function is long, from its ``# long:`` comment; empty without one."""
    first = min([node.lineno, *(d.lineno for d in node.decorator_list)]) - 1
    for line in range(first, node.body[0].lineno):
        reason = source.comments.get(line, "").removeprefix("#").strip()
        if reason.startswith("long:"):
            return reason.removeprefix("long:").strip()
    return ""


def long_files(sources: list[Source]) -> Figure:
    lengths = {s.path: len(s.text.splitlines()) for s in sources}
    places = [f"{path} ({n} lines)" for path, n in lengths.items() if n > FILE_LINES]
    return Figure(f"files over {FILE_LINES} lines", len(places), 0, places)


def function_p90(sources: list[Source]) -> Figure:
    lengths = [line_count(node) for source in sources for node in source.functions]
    p90 = statistics.quantiles(lengths, n=10)[-1] if len(lengths) > 1 else sum(lengths)
    return Figure("nine in ten functions have at most so many lines", round(p90), FUNCTION_P90)


def long_functions(sources: list[Source]) -> Figure:
    places = [
        source.at(node, f"{node.name} ({line_count(node)} lines)")
        for source in sources
        for node in source.functions
        if line_count(node) > FUNCTION_LINES and not long_reason(source, node)
    ]
    return Figure(f"functions over {FUNCTION_LINES} lines without reason", len(places), 0, places)


def untyped_in(source: Source) -> Iterator[str]:
    methods = {
        id(node)
        for owner in ast.walk(source.tree)
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
    }
    for node in source.functions:
        spec = node.args
        positional = spec.posonlyargs + spec.args
        static = any(
            isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list
        )
        if id(node) in methods and not static:
            positional = positional[1:]
        if any(ast.unparse(d) == "triton.jit" for d in node.decorator_list):
            continue  # Triton finds types where it launches
        rest = [arg for arg in (spec.vararg, spec.kwarg) if arg is not None]
        for arg in [*positional, *spec.kwonlyargs, *rest]:
            if arg.annotation is None:
                yield source.at(arg, f"{node.name}({arg.arg})")


def untyped_arguments(sources: list[Source]) -> Figure:
    places = [place for s in sources if s.within(TYPED) for place in untyped_in(s)]
    return Figure("arguments without a type in core, nodes, cli", len(places), 0, places)


def module_name(path: str) -> str:
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imported_by(source: Source, modules: set[str]) -> set[str]:
    """Modules of the tree that a file imports, wherever in it the import stands."""
    package = source.path.split("/")[:-1]
    imported: set[str] = set()
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                imported.add(whole if whole in modules else base)
    return imported & modules


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Sets of modules that reach each other, which is every circle of imports."""

    def reach(start: str) -> set[str]:
        seen: set[str] = set()
        todo = list(edges[start])
        while todo:
            name = todo.pop()
            if name not in seen:
                seen.add(name)
                todo += edges[name]
        return seen

    reached = {name: reach(name) for name in edges}
    together = {
        frozenset(m for m in reached[name] if name in reached[m])
        for name in edges
        if name in reached[name]
    }
    return sorted(sorted(names) for names in together)


def import_circles(sources: list[Source]) -> Figure:
    ours = [s for s in sources if s.within(("flux_core", "nodes"))]
    modules = {module_name(s.path) for s in ours}
    edges = {module_name(s.path): imported_by(s, modules) for s in ours}
    places = [" <-> ".join(names) for names in circles(edges)]
    return Figure("import circles in core and nodes", len(places), 0, places)


def module_level(source: Source) -> Iterator[ast.stmt]:
    """A module's statements, those under its ``if`` and ``try`` too."""
    todo: list[ast.stmt] = list(source.tree.body)
    while todo:
        node = todo.pop(0)
        yield node
        if isinstance(node, ast.If | ast.Try | ast.With):
            todo += [*node.body, *getattr(node, "orelse", [])]
            todo += [s for handler in getattr(node, "handlers", []) for s in handler.body]


def twice(sources: list[Source], kind: type | tuple[type, ...], what: str) -> Figure:
    places: dict[str, dict[str, str]] = {}
    for source in sources:
        if not source.within(CORE):
            continue
        nodes = ast.walk(source.tree) if kind is ast.ClassDef else module_level(source)
        for node in nodes:
            if isinstance(node, kind):
                name = getattr(node, "name", "")
                places.setdefault(name, {})[source.path] = source.at(node)
    repeated = [f"{name}: {', '.join(at.values())}" for name, at in places.items() if len(at) > 1]
    return Figure(f"{what} that stand twice in the core", len(repeated), 0, repeated)


def repeated_classes(sources: list[Source]) -> Figure:
    return twice(sources, ast.ClassDef, "class names")


def repeated_functions(sources: list[Source]) -> Figure:
    return twice(sources, (ast.FunctionDef, ast.AsyncFunctionDef), "module-level function names")


def fmt_skips(sources: list[Source]) -> Figure:
    places = [
        f"{source.path}:{line}"
        for source in sources
        for line, comment in source.comments.items()
        if re.search(r"#\s*fmt:\s*(skip|off)", comment)
    ]
    return Figure("comments that keep the formatter away", len(places), FMT_SKIPS, places)


def holds_tensor(annotation: ast.expr | None) -> bool:
    """Whether a type is a tensor or a row of them; tables by name and callables have no shape."""
    if annotation is None:
        return False
    if isinstance(annotation, ast.Constant) and isinstance(annotation.value, str):
        return holds_tensor(ast.parse(annotation.value, mode="eval").body)
    if isinstance(annotation, ast.Name | ast.Attribute):
        return ast.unparse(annotation).split(".")[-1] == "Tensor"
    if isinstance(annotation, ast.BinOp):
        return holds_tensor(annotation.left) or holds_tensor(annotation.right)
    if isinstance(annotation, ast.Tuple):
        return any(holds_tensor(part) for part in annotation.elts)
    if isinstance(annotation, ast.Subscript):
        owner = ast.unparse(annotation.value).split(".")[-1]
        tables = ("Callable", "dict", "Mapping", "MutableMapping")
        return owner not in tables and holds_tensor(annotation.slice)
    return False


def public_functions(body: list[ast.stmt]) -> Iterator[Function]:
    for node in body:
        if isinstance(node, Function) and not node.name.startswith("_"):
            yield node
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body)


def shapeless_docstrings(sources: list[Source]) -> Figure:
    places = []
    total = 0
    for source in sources:
        if not source.within(CORE):
            continue
        for node in public_functions(source.tree.body):
            spec = node.args
            arguments = [*spec.posonlyargs, *spec.args, *spec.kwonlyargs]
            if not any(holds_tensor(t) for t in [node.returns, *(a.annotation for a in arguments)]):
                continue
            total += 1
            if not SHAPE.search(ast.get_docstring(node) or ""):
                places.append(source.at(node, node.name))
    name = f"of {total} public tensor functions, docstrings without a shape"
    return Figure(name, len(places), 0, places)


def pixel_divisions(sources: list[Source]) -> Figure:
    places = [
        source.at(node, ast.unparse(node))
        for source in sources
        if source.within(TYPED) and source.path != SIZES_FILE
        for node in ast.walk(source.tree)
        if isinstance(node, ast.BinOp)
        and isinstance(node.op, ast.FloorDiv)
        and isinstance(node.right, ast.Constant)
        and node.right.value in (8, 16, 256)
    ]
    name = "pixels divided by 8, 16 or 256 beside latent_size() and image_tokens()"
    return Figure(name, len(places), 0, places)


def defined_names(source: Source) -> Iterator[tuple[ast.AST, str]]:
    """Identifiers that a file gives: of classes, functions, arguments, variables, attributes."""
    for node in ast.walk(source.tree):
        if isinstance(node, ast.ClassDef | Function):
            yield node, node.name
        elif isinstance(node, ast.arg):
            yield node, node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node, node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node, node.attr


def banned_names(sources: list[Source]) -> Figure:
    places: dict[tuple[str, str], str] = {}
    for source in sources:
        own = [(source.tree, Path(source.path).stem), *defined_names(source)]
        for node, name in own:
            plain = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().strip("_")
            if BANNED_NAME.fullmatch(plain) or BANNED_WORD.search(plain):
                places.setdefault((source.path, name), source.at(node, name))
    name = "names of our own where the field has a word"
    return Figure(name, len(places), 0, list(places.values()))


FIGURES: tuple[Callable[[list[Source]], Figure], ...] = (
    long_files,
    function_p90,
    long_functions,
    untyped_arguments,
    import_circles,
    repeated_classes,
    repeated_functions,
    fmt_skips,
    shapeless_docstrings,
    pixel_divisions,
    banned_names,
)


def tree_figures(root: Path) -> list[Figure]:
    """All figures of the tree below ``root``."""
    sources = read_tree(root)
    return [figure(sources) for figure in FIGURES]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Figures of the tree.")
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--check", action="store_true", help="end with 1 where a bound is broken")
    parser.add_argument("--short", action="store_true", help="figures without their places")
    options = parser.parse_args(arguments)
    figures = tree_figures(options.root)
    for figure in figures:
        print(figure)
        for place in [] if options.short else figure.places:
            print(f"    {place}")
    return int(options.check and any(figure.broken for figure in figures))


if __name__ == "__main__":
    sys.exit(main())
