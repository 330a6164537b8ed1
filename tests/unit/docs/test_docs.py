"""The documentation names what exists: commands, links, files, modules; and guides stay short."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import pytest
import typer

from mario.cli.main import app
from tests.support.paths import ROOT

ROOT_PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")]
PAGES = [*filter(Path.exists, ROOT_PAGES), *sorted((ROOT / "docs").rglob("*.md"))]
GUIDES = sorted((ROOT / "docs/guides").glob("*.md"))
TOP_FOLDERS = (
    "benchmarks|configs|docker|docs|flows|k8s|mario|models|monitoring|scripts|serving|tests|.github"
)
COMMANDS = typer.main.get_command(app)
TARGETS = set(re.findall(r"^([a-z-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))


def code_lines(page: Path) -> Iterator[str]:
    """Lines of code blocks, continued lines joined, prompts and comments taken off."""
    fence = re.compile(r"^```[a-z]*\n(.*?)^```", re.MULTILINE | re.DOTALL)
    for block in fence.findall(page.read_text(encoding="utf-8")):
        for line in block.replace("\\\n", " ").splitlines():
            yield line.strip().removeprefix("$ ").split(" #")[0].strip()


def commands(program: str) -> list[tuple[str, str]]:
    return [
        (str(page.relative_to(ROOT)), line)
        for page in PAGES
        for line in code_lines(page)
        if line.startswith(f"{program} ") and "…" not in line and "[" not in line
    ]


@pytest.mark.parametrize(("page", "line"), commands("mario"))
def test_mario_commands_exist_with_their_options(page: str, line: str) -> None:
    words = shlex.split(
        line.split("|", maxsplit=1)[0].split("&&", maxsplit=1)[0].split(">", maxsplit=1)[0]
    )[1:]
    command = COMMANDS
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{page}: no command {words[0]!r} in `{line}`"
        command = command.commands[words.pop(0)]
    if command.name == "serve":
        return  # its options are the service's own; see the serving tests
    known = {name for parameter in command.params for name in parameter.opts}
    known |= {name for parameter in command.params for name in parameter.secondary_opts}
    for word in words:
        if word.startswith("-") and not word.lstrip("-").replace(".", "").isdigit():
            assert word.split("=")[0] in known | {"--help"}, f"{page}: {word} in `{line}`"


@pytest.mark.parametrize(("page", "line"), commands("make"))
def test_make_targets_exist(page: str, line: str) -> None:
    target = shlex.split(line)[1]
    assert target in TARGETS, f"{page}: no target {target!r}"


def test_there_is_something_to_test() -> None:
    assert len(commands("mario")) >= 10
    assert len(commands("make")) >= 2


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_every_top_level_command_is_in_the_readme_or_a_guide() -> None:
    text = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
    for name in COMMANDS.commands:  # type: ignore[attr-defined]
        assert f"mario {name}" in text, f"`mario {name}` is documented nowhere"


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def lines_about_the_tree(page: Path) -> Iterator[str]:
    """Lines of a page, without those that name a file as new (a recipe's own)."""
    for line in page.read_text(encoding="utf-8").splitlines():
        if "(new)" not in line:
            yield line


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_and_folders_exist(page: Path) -> None:
    path = re.compile(rf"(?<![\w./:@-])(?:{TOP_FOLDERS})/[\w./*-]*\w/?")
    made = re.findall(r"^# (\S+) \(new\)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    for line in lines_about_the_tree(page):
        for found in path.findall(line.replace("docker/.env", "")):  # which a person makes
            assert found in made or any(ROOT.glob(found.rstrip("/"))), (
                f"{name(page)}: no {found} in {line!r}"
            )


@pytest.fixture(scope="module")
def source() -> str:
    """All Python, YAML and JavaScript that says what a dotted word can be: a tag, an event."""
    files = subprocess.run(
        ["git", "ls-files", "mario", "flows", "serving", "*.yaml", "*.yml", "*.toml"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout.split()  # fmt: skip
    texts = (ROOT / file for file in files if file.endswith((".py", ".yaml", ".yml", ".toml")))
    return "\n".join(text.read_text(encoding="utf-8") for text in texts if text.exists())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_modules_and_their_names_exist(page: Path, source: str) -> None:
    dotted = re.compile(r"(?<![\w./])(?:mario|flows|serving)(?:\.[A-Za-z_]\w*)+(?![\w/])")
    for line in lines_about_the_tree(page):
        for found in dotted.findall(line):
            known = found in source if not is_in_a_package(found) else resolves(found)
            assert known, f"{name(page)}: no {found} in {line!r}"


def is_in_a_package(dotted: str) -> bool:
    """Whether the second word is a module of the tree (`mario.jobs.train`, not `mario.db`)."""
    package, word, *_ = dotted.split(".")
    return (ROOT / package / word).is_dir() or (ROOT / package / f"{word}.py").exists()


def resolves(dotted: str) -> bool:
    """Whether a name is a module, or what a module defines at its top."""
    *parents, last = dotted.split(".")
    if is_module(dotted):
        return True
    if is_module(".".join(parents)):
        return last in defined_in(".".join(parents))
    # A class's own name: `mario.client.client.MarioClient.predict`.
    module, outer = ".".join(parents[:-1]), parents[-1]
    return is_module(module) and outer in defined_in(module)


def is_module(dotted: str) -> bool:
    folder = ROOT.joinpath(*dotted.split("."))
    return folder.is_dir() or folder.with_suffix(".py").exists()


@lru_cache
def defined_in(module: str) -> frozenset[str]:
    """Names at the top of a module, which is read and not imported."""
    folder = ROOT.joinpath(*module.split("."))
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return frozenset(names)


def python_blocks() -> list[tuple[str, str]]:
    fence = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
    return [
        (name(page), block)
        for page in PAGES
        for block in fence.findall(page.read_text(encoding="utf-8"))
    ]


@pytest.mark.parametrize(("page", "block"), python_blocks())
def test_python_examples_parse_and_import_what_exists(page: str, block: str) -> None:
    own = re.match(r"# \S+ \(new\)", block)
    for node in ast.walk(ast.parse(block)):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        if node.module.split(".")[0] not in ("mario", "flows", "serving"):
            continue
        for imported in node.names:
            dotted = f"{node.module}.{imported.name}"
            assert own or resolves(dotted), f"{page}: no {dotted}"


@pytest.mark.parametrize("page", GUIDES, ids=name)
def test_guides_are_short_and_begin_with_what_a_person_types(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert len(text.split()) <= 1_200, f"{name(page)}: move what is deeper to docs/reference/"
    first = [line[:3] for line in text.splitlines()[:15]]
    assert "```" in first, f"{name(page)}: no command within the first 15 lines"


def test_every_rule_of_the_collapse_detector_has_its_row() -> None:
    code = (ROOT / "mario/training/collapse_detector.py").read_text(encoding="utf-8")
    rules = set(re.findall(r"\badd\(\s*\"(\w+)\"", code))
    page = (ROOT / "docs/reference/collapse-rules.md").read_text(encoding="utf-8")
    assert rules == set(re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE))


def test_every_decision_record_is_in_the_index_with_its_number() -> None:
    records = sorted((ROOT / "docs/adr").glob("[0-9]*.md"))
    index = (ROOT / "docs/adr/index.md").read_text(encoding="utf-8")
    for record in records:
        number = int(record.name[:4])
        assert record.read_text(encoding="utf-8").startswith(f"# {number}. ")
        assert f"| [{number}]({record.name}) |" in index
    listed = [int(number) for number in re.findall(r"^\| \[?(\d+)", index, re.MULTILINE)]
    assert listed == list(range(1, len(listed) + 1)), "a number that is left out is explained"


def test_pages_that_the_code_names_exist(source: str) -> None:
    for page, number in re.findall(r"docs/((?:adr/(\d{4})|[\w/-]+\.md))", source):
        pattern = f"adr/{number}-*.md" if number else page
        assert any((ROOT / "docs").glob(pattern)), f"no docs/{page}"


#: Examples that train, or that need a service.
_NOT_RUN = ("train(", "MarioClient(", "(new)")


@pytest.mark.parametrize(
    "block", [b for _, b in python_blocks() if not any(word in b for word in _NOT_RUN)]
)
def test_python_examples_run(block: str) -> None:
    exec(compile(block, "example", "exec"), {})


def test_collapse_example_prints_what_the_guide_says(capsys: pytest.CaptureFixture[str]) -> None:
    guide = (ROOT / "docs/guides/collapse.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"^```python\n(.*?)^```", guide, re.MULTILINE | re.DOTALL)
    exec(compile(block, "example", "exec"), {})
    assert f"prints `{capsys.readouterr().out.strip()}`" in guide


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_names_beside_a_file_are_defined_in_it(page: Path) -> None:
    """`play_units` (`mario/evaluation/protocol.py`): the file defines the name."""
    beside = re.compile(r"`(\w+)(?:\(\))?`\s+\(`([\w/]+)\.py`\)")
    for found, path in beside.findall(page.read_text(encoding="utf-8")):
        assert found in defined_in(path.replace("/", ".")), f"{name(page)}: no {found} in {path}.py"
