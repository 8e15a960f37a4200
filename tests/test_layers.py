"""The import graph is the dataflow: what the source may import and call, read from its syntax trees."""

from __future__ import annotations

import ast
import functools
import graphlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"
LAYERS = (
    "errors",
    "config",
    "tasks",
    "runs",
    "memory",
    "models",
    "rollout",
    "evaluation",
    "algorithms",
    "training",
    "tools",
    "report",
    "suite",
    "cli",
    "__main__",
)
"""Lowest first. A module imports from its own layer and from those below it."""

HEAVY_AND_OPTIONAL = ("flash_attn", "gguf", "torchao", "trackio", "vllm", "wandb")
"""Each is imported in one file at most, so that the rest works without it."""

UNSAFE_MODULES = {"cloudpickle", "dill", "joblib", "marshal", "pickle", "shelve"}


def module_name(path: Path) -> str:
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@functools.cache
def trees() -> dict[str, ast.Module]:
    return {module_name(path): ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}


def is_package(module: str) -> bool:
    return (SOURCE / Path(*module.split(".")) / "__init__.py").exists()


def imported(module: str, tree: ast.AST) -> Iterator[str]:
    """Full names of all that the tree imports, also inside functions: `from a.b import c` gives `a.b.c`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module.split(".")
            base = base[: len(base) - node.level + is_package(module)] if node.level else []
            yield from (".".join([*base, *filter(None, [node.module]), alias.name]) for alias in node.names)
        elif isinstance(node, ast.Call) and called(node) in {"import_module", "__import__"} and node.args:
            name = node.args[0]
            if isinstance(name, ast.Constant):
                yield str(name.value)


def called(node: ast.Call) -> str | None:
    """Last name of what is called: `load` for `torch.load(...)`."""
    if isinstance(node.func, ast.Attribute):
        return node.func.attr
    return node.func.id if isinstance(node.func, ast.Name) else None


def breaks_order(module: str, name: str) -> bool:
    """Whether `module` may not import `name`. The face of nsr, `nsr` itself, stands above all layers."""
    if not name.startswith("nsr.") or module == "nsr" or name == "nsr.__version__":
        return False
    layer = name.split(".")[1]
    return layer not in LAYERS or LAYERS.index(layer) > LAYERS.index(module.split(".")[1])


def unsafe(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        if isinstance(node.func, ast.Name) and node.func.id in {"eval", "exec", "compile"}:
            yield node.func.id
        if ast.unparse(node.func) == "torch.load" and keywords.get("weights_only") != "True":
            yield "torch.load without weights_only=True"
        for keyword in ("allow_pickle", "shell", "trust_remote_code"):
            if keywords.get(keyword, "False") != "False":
                yield f"{keyword}={keywords[keyword]}"


def test_every_module_belongs_to_a_layer() -> None:
    modules = [module for module in trees() if module != "nsr"]
    assert modules
    assert [module for module in modules if module.split(".")[1] not in LAYERS] == []


def test_no_module_imports_a_layer_above_its_own() -> None:
    found = [(module, name) for module, tree in trees().items() for name in imported(module, tree)]
    assert [(module, name) for module, name in found if breaks_order(module, name)] == []


def test_no_modules_import_each_other() -> None:
    modules = trees()

    def home(name: str) -> str:
        while name not in modules:
            name = name.rpartition(".")[0]
        return name

    graph = {
        module: {home(name) for name in imported(module, tree) if name.startswith("nsr.")} - {"nsr", module}
        for module, tree in modules.items()
        if module != "nsr"
    }
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, which names the modules


@pytest.mark.parametrize("package", ["config", "tasks", "report"])
def test_packages_that_need_no_torch_import_none(package: str) -> None:
    found = {
        (module, name)
        for module, tree in trees().items()
        for name in imported(module, tree)
        if f"{module}.".startswith(f"nsr.{package}.") and name.split(".")[0] in {"torch", "transformers"}
    }
    assert found == set()


def test_task_runs_without_torch() -> None:
    modules = [module for module in trees() if f"{module}.".startswith("nsr.tasks.")]
    code = f"import sys, {', '.join(modules)}; print([m for m in ('torch', 'transformers') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_config_needs_the_standard_library_alone() -> None:
    found = {
        name.split(".")[0]
        for module, tree in trees().items()
        for name in imported(module, tree)
        if f"{module}.".startswith("nsr.config.")
    }
    assert found - sys.stdlib_module_names == {"nsr"}


@pytest.mark.parametrize("library", HEAVY_AND_OPTIONAL)
def test_a_heavy_optional_library_is_imported_in_one_file(library: str) -> None:
    files = {m for m, tree in trees().items() if library in {name.split(".")[0] for name in imported(m, tree)}}
    assert len(files) <= 1, files


def test_the_source_runs_no_text_and_loads_no_code() -> None:
    found = {(module, what) for module, tree in trees().items() for what in unsafe(tree)}
    found |= {
        (module, name)
        for module, tree in trees().items()
        for name in imported(module, tree)
        if name.split(".")[0] in UNSAFE_MODULES or name == "torch.load"
    }
    assert found == set()


def test_imports_are_read_wherever_they_stand() -> None:
    text = """
from nsr.cli import main
if TYPE_CHECKING:
    import nsr.suite as s
def later():
    from ...algorithms import surrogates
    importlib.import_module("vllm")
"""
    names = {"nsr.cli.main", "nsr.suite", "nsr.algorithms.surrogates", "vllm"}
    assert set(imported("nsr.rollout.native.engine", ast.parse(text))) == names
    assert {name for name in names if breaks_order("nsr.rollout.native.engine", name)} == names - {"vllm"}


def test_the_order_is_told_from_its_opposite() -> None:
    assert not breaks_order("nsr.training.loop", "nsr.rollout.rollout.rollout")
    assert not breaks_order("nsr.training.loop", "nsr.algorithms.surrogates")
    assert not breaks_order("nsr.runs.environment", "nsr.__version__")
    assert breaks_order("nsr.rollout.rollout", "nsr.training.loop.train")
    assert breaks_order("nsr.rollout.rollout", "nsr.grade")


def test_unsafe_calls_are_seen() -> None:
    text = """
eval(text)
exec(text)
torch.load(path)
torch.load(path, weights_only=False)
torch.load(path, weights_only=True)
np.load(path, allow_pickle=True)
model.eval()
re.compile(text)
"""
    unpickled = "torch.load without weights_only=True"
    assert sorted(unsafe(ast.parse(text))) == ["allow_pickle=True", "eval", "exec", unpickled, unpickled]
