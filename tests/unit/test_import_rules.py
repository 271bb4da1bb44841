"""The rules of the layout: who imports whom, names, lengths, and what stays out of the front process."""

from __future__ import annotations

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "src" / "safelight"
MODULES = sorted(PACKAGE.rglob("*.py"))
HEAVY = {"torch", "diffusers", "transformers", "accelerate"}
MAX_LINES = 350
FORBIDDEN_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}

ALLOWED = {
    "errors": set(),
    "params": {"errors"},
    "config": {"errors", "model_list", "setting_values"},
    "model_list": {"errors"},
    "setting_values": {"errors", "faults", "params"},
    "faults": set(),
    "metadata": {"params"},
    "jobs": {"errors", "params", "protocol"},
    "logs": set(),
    "tracing": set(),
    "otlp": {"tracing"},
    "frames": set(),
    "protocol": {"errors", "frames", "params"},
    "tensor_header": set(),
    "safetensors_header": {"errors", "tensor_header"},
    "gguf_header": {"errors", "tensor_header"},
    "model_card": {"errors", "params"},
    "terminal": set(),
    "status_text": {"terminal"},
    "client": {"errors", "params", "jobs"},
}
"""What each module that both processes share may know of the others."""


def _name(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").rstrip(".")


def _imports(path: Path, *, inside_functions: bool = True) -> Iterator[str]:
    """Full names of all modules that are imported, at import time or, if asked, also later."""
    tree = ast.parse(path.read_text())
    later = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        if not inside_functions and id(node) in later:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _own(path: Path) -> set[str]:
    """Modules of this package that are imported, without the prefix."""
    known = {_name(module) for module in MODULES}
    names = {name.removeprefix("safelight.") for name in _imports(path) if name.startswith("safelight.")}
    return {name for name in names if name in known}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_only_the_engine_imports_torch(path: Path) -> None:
    inside_functions = not _name(path).startswith("commands.")
    roots = {name.split(".")[0] for name in _imports(path, inside_functions=inside_functions)}
    assert _name(path).startswith("engine") or not roots & HEAVY


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_server_and_engine_do_not_know_each_other(path: Path) -> None:
    own = _own(path)
    if _name(path).startswith("server"):
        assert not {name for name in own if name.startswith("engine")}
    if _name(path).startswith("engine"):
        assert not {name for name in own if name.startswith("server")}


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_ray_is_imported_where_its_name_stands_and_those_only_for_who_asks(path: Path) -> None:
    is_ours = path.stem.startswith("ray_")
    assert is_ours or "ray" not in {name.split(".")[0] for name in _imports(path)}
    assert is_ours or not {name for name in _imports(path, inside_functions=False) if ".ray_" in name}


@pytest.mark.parametrize("path", sorted(PACKAGE.glob("checkpoint/*.py")), ids=_name)
def test_a_checkpoint_knows_nothing_of_the_processes_that_read_it(path: Path) -> None:
    known = {
        "checkpoint",
        "config",
        "errors",
        "gguf_header",
        "hub",
        "model_card",
        "safetensors_header",
        "tensor_header",
    }
    assert {name.split(".")[0] for name in _own(path)} <= known


@pytest.mark.parametrize("name", ALLOWED)
def test_the_shared_modules_import_only_what_lies_below_them(name: str) -> None:
    assert _own(PACKAGE / f"{name}.py") <= ALLOWED[name]


def test_every_shared_module_has_its_rule() -> None:
    entry_points = {"__init__", "__main__", "cli"}
    assert {path.stem for path in PACKAGE.glob("*.py")} - entry_points == set(ALLOWED)


def test_nothing_below_the_command_line_imports_it() -> None:
    for path in MODULES:
        is_above = _name(path) == "cli" or _name(path).startswith("commands.")
        imported = {name for name in _own(path) if name.startswith("commands") and not is_above}
        assert not imported and ("cli" not in _own(path) or _name(path) == "__main__"), path


def test_imports_have_no_cycle() -> None:
    waiting = {_name(path): _own(path) - {_name(path)} for path in MODULES if path.stem != "__init__"}
    waiting = {name: {needed for needed in own if needed in waiting} for name, own in waiting.items()}
    while waiting:
        ready = {name for name, own in waiting.items() if not own}
        assert ready, f"a cycle within {sorted(waiting)}"
        waiting = {name: own - ready for name, own in waiting.items() if name not in ready}


@pytest.mark.parametrize("module", ["safelight.server.serve", "safelight.cli", "safelight.protocol"])
def test_importing_it_leaves_torch_and_the_bars_out(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=60)
    roots = {name.split(".")[0] for name in loaded.stdout.split()}
    assert "safelight" in roots
    assert not roots & (HEAVY | {"rich", "numpy", "PIL", "ray"})


@pytest.mark.parametrize("path", MODULES, ids=_name)
def test_a_module_has_a_docstring_a_good_name_and_a_bearable_length(path: Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text))
    assert path.stem not in FORBIDDEN_NAMES
    assert len(text.splitlines()) <= MAX_LINES


def test_there_is_one_manager() -> None:
    managers = [
        node.name
        for path in MODULES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Manager")
    ]
    assert managers == ["ModelManager"]


def test_no_pickle_and_no_shared_queue_between_the_processes() -> None:
    for path in MODULES:
        roots = {name.split(".")[0] for name in _imports(path)}
        assert not roots & {"pickle", "multiprocessing", "marshal", "shelve"}, path


def test_the_console_script_resolves() -> None:
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="safelight")
    assert script.value == "safelight.cli:main"
    assert callable(script.load())
