"""README, docs/ and every folder's README: links lead somewhere, commands parse, options exist, pictures are there."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import fields
from pathlib import Path

import cv2
import pytest

from common.cli.arguments import parse_args, parse_mode
from common.cli.choices import load
from common.transforms.__main__ import _parser as transforms_parser
from config import COMMANDS, TrainConfig
from docs.reference import reference
from tests import PROJECT

PAGES = sorted({path for pattern in ("*.md", "*/*.md", "*/*/*.md") for path in PROJECT.glob(f"[!.]{pattern}")})
PUBLIC = [path for path in PAGES if path.parent == PROJECT / "docs"]
README_LINES = 250
OPTIONS = {name: load(path) for name, path in COMMANDS.items()}
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.M | re.S)
# Flags of benchmarks, shell scripts and other programs that the pages name alone.
FOREIGN = {"--help", "--config", "--dry-run", "--all", "--shm-size", "--max_restarts", "--name"}
FOREIGN |= {"--budgets", "--fuse", "--quick", "--seeds", "--sets", "--requeue"}


def ids(path: Path) -> str:
    return str(path.relative_to(PROJECT))


def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def prose(path: Path) -> str:
    """The page without its fenced blocks."""
    return FENCE.sub("", text_of(path))


def anchors(path: Path) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.*)", prose(path), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("\\", "") for heading in headings]
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in plain}


def links(path: Path) -> list[str]:
    return re.findall(r"\]\((?!https?:)([^)\s]+)\)", re.sub(r"`[^`\n]*`", "", prose(path)))


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_link_leads_to_a_file_and_to_a_heading_of_it(page: Path) -> None:
    for link in links(page):
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_readme_is_short_and_leads_to_every_page_of_docs() -> None:
    readme = PROJECT / "README.md"
    assert len(text_of(readme).splitlines()) <= README_LINES
    linked = {(PROJECT / link.partition("#")[0]).resolve() for link in links(readme)}
    assert set(PUBLIC) <= linked


def test_every_picture_is_shown_small_and_has_a_text() -> None:
    shown = {
        (page.parent / name).resolve(): text
        for page in (PROJECT / "README.md", *PUBLIC)
        for text, name in re.findall(r"!\[([^\]]*)\]\(([^)]+)\)", text_of(page))
    }
    assert set(shown) == set((PROJECT / "docs").glob("*.png"))
    assert len(re.findall(r"!\[", text_of(PROJECT / "README.md"))) == 3
    for path, text in shown.items():
        assert len(text) > 20, path
        assert path.stat().st_size < 300_000
        assert cv2.imread(str(path)).shape[1] >= 500


def test_the_reference_of_all_options_is_what_the_options_give() -> None:
    assert text_of(PROJECT / "docs" / "options.md") == reference(), "python docs/reference.py writes it anew"


def shown_commands(page: Path) -> Iterator[str]:
    """The lines of a page's blocks and the pieces of code in its prose, one command in each."""
    for language, block in FENCE.findall(text_of(page)):
        if language in ("bash", ""):
            yield from block.replace("\\\n", " ").splitlines()
    yield from re.findall(r"`([^`\n]+)`", prose(page))
    yield from re.findall(r"^    (.*)", prose(page), re.MULTILINE)


def words(typed: str, values: Mapping[str, str]) -> list[str]:
    """The arguments of a command as a shell would give them; what ``…`` or a variable alone stands for is left out.

    ``values``: of the variables of loops; any other is 1.
    """
    typed = re.split(r" #| [|;&>]+( |$)|\)$", typed)[0]
    typed = re.sub(r"(^| )\"?\$(\w+|@)\"?(?= |$)", " ", typed)
    typed = re.sub(r"\$\{?(\w+)\}?", lambda variable: values.get(variable[1], "1"), typed)
    return [word for word in shlex.split(typed) if word != "…"]


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_command_that_is_shown_parses(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    values = dict(re.findall(r"\bfor (\w+) in (\w+)", text_of(page)))
    for line in shown_commands(page):
        for script, typed in re.findall(r"(?:\bpython|\btorchrun\b.*?) ([a-z][\w/]*)\.py\b(.*)", line):
            if "/" in script:
                assert (PROJECT / f"{script}.py").is_file(), line
            elif "--help" not in typed and "=FILE" not in typed and typed.strip() not in ("…", "`"):
                parse = parse_mode if hasattr(OPTIONS[script], "modes") else parse_args
                parse(OPTIONS[script], words(typed, values))
        if found := re.match(r"python -m common\.transforms (\w+ [^|]*)$", line):
            transforms_parser().parse_args(words(found[1], values))
        if found := re.match(r"bash train\.sh\b(?: sweep\b ?(\S*))?(.*)", line):
            flags = words(found[2], values)
            assert not found[1] or found[1].isupper() or (PROJECT / found[1]).is_file(), line
            if flags[:1] == ["plan"]:
                parse_args(OPTIONS["plan"], flags[1:])
            elif not flags or flags[0] not in ("dashboard", "notebook", "--help"):
                parse_args(TrainConfig, [flag for flag in flags if flag != "--dry-run"])


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_flag_that_is_named_exists(page: Path) -> None:
    known = {script: {f"--{field.name}" for field in fields(options)} for script, options in OPTIONS.items()}
    every = set().union(*known.values()) | FOREIGN
    for piece in re.findall(r"`([^`\n]+)`", prose(page)):
        script = re.match(r"(?:python )?(\w+)\.py ", piece)
        if script and script[1] in known:
            assert set(re.findall(r"--\w+", piece)) <= known[script[1]] | {"--config", "--help"}, piece
        elif re.match(r"--\w", piece):
            flag = re.match(r"--[\w-]+", piece)[0]
            assert flag in every or any(name.startswith(flag) for name in every if "…" in piece or "..." in piece), (
                piece
            )


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_every_block_is_bash_or_python_by_its_syntax(page: Path) -> None:
    for language, block in FENCE.findall(text_of(page)):
        if language == "bash":
            checked = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True, check=False)
            assert (checked.returncode, checked.stderr) == (0, ""), block
        if language == "python":
            compile(block, str(page), "exec")


def test_every_function_on_the_way_from_a_file_to_a_logit_stands_where_the_table_says() -> None:
    text = (PROJECT / "docs/extending.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| (.+?) \|", text, flags=re.MULTILINE)
    for row in rows:
        for names, file in re.findall(r"((?:`[\w.]+`(?:, )?)+) in `([\w/]+\.py)`", row):
            tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
            known = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef | ast.FunctionDef)}
            assert {part for name in re.findall(r"`([\w.]+)`", names) for part in name.split(".")} <= known, row
    assert len(rows) >= 10
