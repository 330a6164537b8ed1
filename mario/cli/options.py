"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path,
    typer.Option("--config", "-c", help="The experiment's YAML file, such as configs/demo.yaml."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a key of the file: --set algorithm.gamma=0.9"),
]
TaskOption = Annotated[
    str, typer.Option("--task", "-t", help='The task: a level ("1-1") or "all".')
]
OptionalTaskOption = Annotated[
    str | None,
    typer.Option("--task", "-t", help='The task: a level (default "1-1") or "all".'),
]
TaskConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="Take task, levels and gate from this experiment."),
]
ConsoleOption = Annotated[str, typer.Option(help="The console: native or nes-py.")]
PolicyArgument = Annotated[
    str,
    typer.Argument(
        help="The policy: champion, challenger, a version number, random, or an artefact folder."
    ),
]
