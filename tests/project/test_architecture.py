"""The rules of the layout: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests import PROJECT

TOP = {  # the whole top level: what the user fixed, and a row for each command
    *("config", "rsna_dataset", "rsna_model", "rsna_network"),
    *("train", "preprocessing", "predict", "evaluate", "ensemble", "second_level", "sweep", "report", "export"),
    *("rsna_phantom", "plan"),
}
ORDER = (  # each imports from its own package and from those below it
    {"common"},
    {"rsna.kinds.table"},
    {"config"},
    {"rsna_dataset"},
    {"rsna_model", "rsna_network"},
    {"rsna.forms", "rsna.kinds", "rsna.phantom"},
    {"rsna.prepare", "rsna.training"},
    {"rsna.prediction"},
    {"rsna.judging"},
    TOP - {"config", "rsna_dataset", "rsna_model", "rsna_network"},
)
FILES = [*PROJECT.glob("*.py"), *PROJECT.glob("common/**/*.py"), *PROJECT.glob("rsna/**/*.py")]
MODULES = {".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__"): path for path in FILES}


def place(module: str) -> str:
    """The package of ORDER that a module belongs to, or the module itself where ORDER names it."""
    if any(module in names for names in ORDER):
        return module
    return ".".join(module.split(".")[: 2 if module.startswith("rsna.") else 1])


def imports(module: str) -> set[str]:
    """Modules of this project that ``module`` imports when it runs, wherever in its text."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    branches = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
    ]
    typing_only = {node for branch in branches for statement in branch.body for node in ast.walk(statement)}
    found: set[str] = set()
    for node in (node for node in ast.walk(tree) if node not in typing_only):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            found |= names or {node.module}
    return (found & MODULES.keys()) - {module}


GRAPH = {module: imports(module) for module in MODULES}


def test_the_top_level_holds_what_the_user_fixed_and_the_commands() -> None:
    assert {path.stem for path in PROJECT.glob("*.py")} == TOP


@pytest.mark.parametrize("command", sorted(ORDER[-1]))
def test_a_command_parses_its_options_and_calls_what_does_the_work(command: str) -> None:
    assert len(MODULES[command].read_text(encoding="utf-8").splitlines()) < 60


@pytest.mark.parametrize("module", [name for name in MODULES if name != "rsna"])
def test_imports_run_downwards_only(module: str) -> None:
    floor = {name: number for number, names in enumerate(ORDER) for name in names}
    here = place(module)
    above = {name for name in GRAPH[module] if place(name) != here and floor[place(name)] >= floor[here]}
    assert not above, f"{module} imports {above}"


def test_no_module_is_part_of_an_import_cycle_and_there_are_at_most_twelve_floors() -> None:
    floors: dict[str, int] = {}
    for module in TopologicalSorter(GRAPH).static_order():  # CycleError for a cycle
        floors[module] = 1 + max((floors[name] for name in GRAPH[module]), default=0)
    highest = max(floors, key=floors.__getitem__)
    assert floors[highest] <= 12, highest


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("common.callbacks.")])
def test_callbacks_name_the_network_for_types_only(module: str) -> None:
    assert not {name for name in GRAPH[module] if name.startswith("common.networks")}


def test_importing_every_module_in_a_fresh_process_writes_and_prints_nothing(tmp_path: Path) -> None:
    code = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "sys.dont_write_bytecode = True\n"
        f"[importlib.import_module(name) for name in {sorted(MODULES)!r}]\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


CODE = [
    path for folder in ("common", "rsna", "benchmarks", "examples") for path in sorted((PROJECT / folder).rglob("*.py"))
]


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(PROJECT)))
def test_a_folders_readme_names_every_module_in_it(path: Path) -> None:
    if path.name != "__init__.py":
        assert path.name in (path.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("folder", ["docs", "input", "notebooks", "output", "tests", "transforms"])
def test_the_other_folders_have_a_readme_too(folder: str) -> None:
    assert (PROJECT / folder / "README.md").is_file()


def test_all_progress_bars_are_made_by_the_console_which_knows_where_they_suit() -> None:
    calls = [
        (path.relative_to(PROJECT).as_posix(), ast.unparse(node.func))
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert {path for path, name in calls if name == "tqdm"} == {"common/cli/console.py"}
    assert len([path for path, name in calls if name in ("progress", "console.progress")]) >= 4
