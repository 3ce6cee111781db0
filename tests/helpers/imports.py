"""Every import of tvf/, read from its source, and a picture of them.

`python -m helpers.imports > docs/rooms.svg` (with PYTHONPATH=tests) draws the rooms.
"""

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "tvf"
GROUND_ROOM = "ground"
GROUND = (
    "errors",
    "files",
    "findings",
    "gpus",
    "hub",
    "lease",
    "memory",
    "metrics",
    "owners",
    "progress",
)
# From the lowest room up: a room imports from those before it. The ground is modules, not a folder.
ROOMS: tuple[str, ...] = (
    GROUND_ROOM,
    "mirror",
    "store",
    "models",
    "data",
    "frontier",
    "distributed",
    "training",
    "config",
    "records",
    "job",
    "report",
    "advise",
    "sweep",
    "inference",
    "cli",
)


@dataclass(frozen=True)
class Import:
    """One imported name: `from module import name`, or `import module` (name None)."""

    importer: str  # a module, such as tvf.store.disk
    module: str
    name: str | None
    line: int

    @property
    def of_tvf(self) -> bool:
        return self.module.split(".")[0] == "tvf"

    def __str__(self) -> str:
        what = f"from {self.module} import {self.name}" if self.name else f"import {self.module}"
        return f"{self.importer}:{self.line}: {what}"


def read_modules(package: Path = PACKAGE) -> dict[str, ast.Module]:
    """Parse every module below `package`, by its dotted name."""
    modules = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        modules[name] = ast.parse(path.read_text(), str(path))
    return modules


def read_imports(modules: Mapping[str, ast.Module]) -> list[Import]:
    """List every import: at the top, in functions, and under TYPE_CHECKING."""
    return [found for name, tree in modules.items() for found in _imports_of(name, tree)]


def room_of(module: str) -> str:
    """The room of a module of tvf; the package itself and __main__ are rooms of their own."""
    _, _, inside = module.partition(".")
    top = inside.partition(".")[0]
    return GROUND_ROOM if top in GROUND else top or "tvf"


def imported_modules(modules: Iterable[str], imports: Iterable[Import]) -> dict[str, set[str]]:
    """Map each module of tvf to those that it imports.

    `from tvf.store import Store` is an import of tvf.store, `from tvf.store import disk` one of
    tvf.store.disk. A door and its room's own modules count like any others.
    """
    names, graph = set(modules), defaultdict[str, set[str]](set)
    for found in imports:
        submodule = f"{found.module}.{found.name}"
        target = submodule if submodule in names else found.module
        if target in names and target != found.importer:
            graph[found.importer].add(target)
    return dict(graph)


def find_circle(graph: Mapping[str, set[str]]) -> list[str]:
    """Return a path that ends where it starts, or an empty list."""
    done: set[str] = set()

    def visit(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node not in done:
            for target in sorted(graph.get(node, ())):
                if circle := visit(target, [*path, node]):
                    return circle
            done.add(node)
        return []

    for start in sorted(graph):
        if circle := visit(start, []):
            return circle
    return []


def exported_names(door: ast.Module) -> list[str]:
    """The `__all__` of a door, in its order."""
    for node in door.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    raise AssertionError("the door has no __all__")


def bound_names(door: ast.Module) -> set[str]:
    """The public names that a door imports or defines, TYPE_CHECKING ones included."""
    bound: set[str] = set()
    for node in ast.walk(door):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tvf."):
            bound |= {alias.asname or alias.name for alias in node.names}
    for node in door.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in bound if not name.startswith("_")}


def room_edges(imports: Iterable[Import]) -> set[tuple[str, str]]:
    """The pairs (importing room, imported room), of different rooms."""
    edges = {(room_of(found.importer), room_of(found.module)) for found in imports if found.of_tvf}
    return {(a, b) for a, b in edges if a != b and a in ROOMS and b in ROOMS}


def draw_rooms(edges: Iterable[tuple[str, str]]) -> str:
    """Draw the rooms as an SVG, the highest on top, with an arrow for each (importer, imported).

    All rooms import from the ground; those arrows are left out.
    """
    row, left, box, width = 56, 300, 160, 760
    order = list(reversed(ROOMS[1:]))
    top = {room: 24 + row * place for place, room in enumerate(order)}
    ground = 24 + row * len(order)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {ground + 58}" '
        'font-family="sans-serif" font-size="15">',
        f'<rect width="{width}" height="{ground + 58}" fill="#fff"/>',
    ]
    inner = [edge for edge in edges if GROUND_ROOM not in edge]
    for importer, imported in sorted(inner, key=lambda edge: (order.index(edge[0]), edge[1])):
        span = order.index(imported) - order.index(importer)
        lines.append(_arrow(top[importer], top[imported], span, left, box))
    lines += [_room(left, top[room], box, f"{room}/") for room in order]
    lines.append(_room(60, ground, width - 120, f"every room: {', '.join(GROUND)}"))
    return "\n".join([*lines, "</svg>"]) + "\n"


def _room(x: float, y: float, width: float, label: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{width}" height="34" rx="6" fill="#eef3fa" stroke="#345"/>'
        f'<text x="{x + width / 2}" y="{y + 22}" text-anchor="middle" fill="#123">{label}</text>'
    )


def _arrow(start: int, end: int, span: int, left: int, box: int) -> str:
    """Draw an arrow: straight to the next room, else a curve that is wider the further it goes."""
    if span == 1:
        x, y = left + box / 2, end
        path, angle = f"M{x},{start + 34} L{x},{y - 7}", 90
    else:
        side = 1 if span % 2 == 0 else -1  # right or left
        x, y = left + box * (side == 1), end + 6 + 2 * min(span, 6)
        y_from, bend, tip = start + 30 - 2 * min(span, 6), side * (40 + 19 * span), x + side * 7
        path = f"M{x},{y_from} C{x + bend},{y_from} {x + bend},{y} {tip},{y}"
        angle = 180 if side == 1 else 0
    colour = f"hsl({span * 29 % 360} 45% 45%)"
    return (
        f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3"/>'
        f'<path d="M0,0 L-8,-4 L-8,4 Z" fill="{colour}" '
        f'transform="translate({x} {y}) rotate({angle})"/>'
    )


def _imports_of(importer: str, tree: ast.Module) -> Iterator[Import]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(importer, alias.name, None, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{importer}:{node.lineno}: write tvf.… for a relative import"
            for alias in node.names:
                yield Import(importer, node.module or "", alias.name, node.lineno)


if __name__ == "__main__":
    print(draw_rooms(room_edges(read_imports(read_modules()))), end="")
