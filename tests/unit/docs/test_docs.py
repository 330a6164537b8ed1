"""Commands, links and metric names in the documentation are ones that exist."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from mario.cli.main import app
from tests.support.paths import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
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
