"""The rules of the layout: who may import whom, and that importing does nothing."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
ENTRY_SCRIPTS = {
    "train",
    "predict",
    "evaluate",
    "ensemble",
    "preprocessing",
    "report",
    "rsna_phantom",
    "sweep",
    "export",
    "second_level",
}
MODULES = sorted(
    ".".join(path.relative_to(PROJECT).with_suffix("").parts).removesuffix(".__init__")
    for path in [*PROJECT.glob("*.py"), *PROJECT.glob("common/**/*.py")]
)
RSNA_LAYERS = (  # each imports from those before it only
    {"rsna_dataset", "rsna_phantom"},
    {"rsna_features"},
    {"rsna_data", "rsna_model", "rsna_network", "rsna_evaluation", "rsna_preprocessing", "rsna_checks"},
    {"rsna_lineage", "rsna_survey"},
    {"rsna_sequence"},
    {"rsna_whole_series"},
    {"rsna_prediction", "rsna_submission"},
    {"rsna_pictures", "rsna_provenance"},
    {"rsna_report"},
    {"rsna_experiment", "rsna_sweep", "rsna_export", "rsna_crossvalidation", "rsna_ensemble"},
    {"rsna_fold_models", "rsna_second_level"},
    {"rsna_study_models"},
    {"rsna_studies"},
)
FIRST_PARTY = {name.split(".")[0] for name in MODULES}


def imports(module: str) -> set[str]:
    """Modules of this project that ``module`` imports when it runs, wherever in its text."""
    path = PROJECT / Path(*module.split("."))
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        node
        for branch in ast.walk(tree)
        if isinstance(branch, ast.If) and "TYPE_CHECKING" in ast.unparse(branch.test)
        for statement in branch.body
        for node in ast.walk(statement)
    }
    found = set()
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return {name for name in found if name in MODULES}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("common")])
def test_common_imports_nothing_of_the_layers_above(module: str) -> None:
    above = {name for name in imports(module) if not name.startswith("common")}
    assert not above, f"{module} imports {above}"


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("rsna_")])
def test_rsna_modules_import_each_other_downwards_only(module: str) -> None:
    layer = {name: number for number, names in enumerate(RSNA_LAYERS) for name in names}
    assert module in layer, f"{module} stands in no layer of RSNA_LAYERS"
    above = {name for name in imports(module) if name.startswith("rsna_") and layer[name] >= layer[module]}
    assert not above, f"{module} imports {above}"


@pytest.mark.parametrize("module", MODULES)
def test_no_module_imports_an_entry_script(module: str) -> None:
    assert not imports(module) & ENTRY_SCRIPTS


def test_config_knows_only_how_options_are_declared() -> None:
    assert imports("config") <= {"common", "common.arguments", "common.errors"}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("common.callbacks.")])
def test_callbacks_name_the_network_for_types_only(module: str) -> None:
    assert not {name for name in imports(module) if name.startswith("common.networks")}


def test_no_module_is_part_of_an_import_cycle() -> None:
    graph = {module: imports(module) - {module} for module in MODULES}
    finished: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, f"import cycle: {' -> '.join([*path, module])}"
        if module not in finished:
            for other in graph[module]:
                visit(other, (*path, module))
            finished.add(module)

    for module in MODULES:
        visit(module, ())


def test_importing_every_module_in_a_fresh_process_writes_and_prints_nothing(tmp_path: Path) -> None:
    code = (
        "import importlib, sys\n"
        f"sys.path.insert(0, {str(PROJECT)!r})\n"
        "sys.dont_write_bytecode = True\n"
        f"[importlib.import_module(name) for name in {MODULES!r}]\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []


CODE = [path for folder in ("common", "benchmarks") for path in sorted((PROJECT / folder).rglob("*.py"))]


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
        for path in [*PROJECT.glob("*.py"), *(PROJECT / "common").rglob("*.py")]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
    ]
    assert {path for path, name in calls if name == "tqdm"} == {"common/console.py"}
    assert len([path for path, name in calls if name in ("progress", "console.progress")]) >= 4
