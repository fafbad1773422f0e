"""The ladder: a module of lm imports only from floors below its own."""

import ast
import graphlib
import itertools
from pathlib import Path

import lm

# The map of the house. Files of one package, and those of lm itself that share a floor,
# may import each other. A new package takes its place here.
FLOORS = (
    ("types", "tree", "metrics", "config", "cli", "atomic", "memory", "xla_flags"),
    ("text", "sharding", "rendezvous", "distributed"),
    ("data", "nn"),
    ("models", "vectors", "vector_scores"),
    ("tasks", "adapt"),
    ("train",),
    (
        *("evaluate", "generate", "predict", "embed", "decoding", "completion"),
        *("scorecard", "page"),
    ),
    ("serve",),
)

# Where each of these may be imported.
HOMES = {
    "tensorflow": {"lm.data"},
    "tensorflow_datasets": {"lm.data"},
    "clu": {"lm.train.report"},
    "orbax": {"lm.train.checkpoint"},
    "optax": {"lm.train"},
    "flax": {
        *("lm.sharding", "lm.nn", "lm.models", "lm.tasks", "lm.adapt"),
        *("lm.train.state", "lm.train.step", "lm.train.loop", "lm.train.workdir"),
        "lm.train.evaluation",
        *("lm.decoding", "lm.completion"),
    },
    "flax.nnx": set(),
    "torch": set(),
    "transformers": set(),
    **dict.fromkeys(("configs", "experiments", "tools", "tests"), set()),
}

# They take seconds to load, so no module of ours loads them before it needs them.
SLOW = ("tensorflow", "tensorflow_datasets", "clu")

# What holds a public table, and so more than a docstring.
TABLES = {"lm.models", "lm.tasks"}

ROOT = Path(lm.__file__).parent


def name_of(path):
    return ".".join(path.relative_to(ROOT.parent).with_suffix("").parts)


TREES = {
    name_of(path).removesuffix(".__init__"): ast.parse(path.read_text())
    for path in ROOT.rglob("*.py")
}
PACKAGES = {name_of(path.parent) for path in ROOT.rglob("__init__.py")}


def nodes(node, enters):
    yield node
    for child in filter(enters, ast.iter_child_nodes(node)):
        yield from nodes(child, enters)


def imported(tree, enters=lambda _: True):
    """Yields the full name of all that is imported, in functions too."""
    for node in nodes(tree, enters):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            where = "." * node.level + (node.module or "")
            yield from (f"{where}.{alias.name}" for alias in node.names)


def is_of(name, package):
    return f"{name}.".startswith(f"{package}.")


def module_of(name):
    """Returns the module that a name is, or is in."""
    return name if name in TREES else name.rpartition(".")[0]


GRAPH = {
    module: {module_of(name) for name in imported(tree) if is_of(name, "lm")}
    for module, tree in TREES.items()
    if module != "lm"
}


def floor_of(module):
    part = module.split(".")[1]
    return next(floor for floor, parts in enumerate(FLOORS) if part in parts)


def package_of(module):
    top = ".".join(module.split(".")[:2])
    return top if top in PACKAGES else "lm"


def test_every_module_has_one_floor():
    places = list(itertools.chain(*FLOORS))
    assert len(places) == len(set(places))
    assert {module.split(".")[1] for module in GRAPH} <= set(places)


def test_imports_only_go_down():
    for module, others in GRAPH.items():
        for other in others:
            is_near = package_of(module) == package_of(other)
            lowest = floor_of(module) - (not is_near)
            assert floor_of(other) <= lowest, f"{module} imports {other}"


def test_no_imports_are_circular():
    graphlib.TopologicalSorter(GRAPH).prepare()


def test_libraries_are_imported_only_at_home():
    for module, tree in TREES.items():
        for name in imported(tree):
            assert not name.startswith("."), f"{module} has a relative import"
            for library, homes in HOMES.items():
                if is_of(name, library):
                    is_home = any(is_of(module, home) for home in homes)
                    assert is_home, f"{module} imports {name}"


def test_slow_libraries_are_imported_only_in_functions():
    def is_no_function(node):
        return not isinstance(node, ast.FunctionDef)

    for module, tree in TREES.items():
        for name in imported(tree, is_no_function):
            is_slow = any(is_of(name, library) for library in SLOW)
            assert not is_slow, f"{module} imports {name}"


def test_text_and_data_need_no_jax():
    reached = {module for module in GRAPH if module.split(".")[1] in ("text", "data")}
    while more := set().union(*(GRAPH[module] for module in reached)) - reached:
        reached |= more
    for module in reached:
        for name in imported(TREES[module]):
            assert not is_of(name, "jax"), f"{module} imports {name}"


def test_packages_hold_a_docstring_and_nothing_else():
    for package in PACKAGES:
        tree = TREES[package]
        assert ast.get_docstring(tree), package
        assert len(tree.body) == 1 or package in TABLES, package
