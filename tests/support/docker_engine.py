"""A real Docker engine for tests: the one that runs, or one of their own on a stand-in base.

Where no engine answers and this is root with `dockerd` installed, one is started on a socket in a
temporary folder and stopped with SIGTERM. Where the pinned base image cannot be pulled, an image of
the same name is made from Debian's packages (mmdebstrap), and the output says so.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.paths import ROOT

BASE = "python:3.11-slim-bookworm"
#: What `.dockerignore` lets through, so that a build sees one moment of the working tree.
CONTEXT = (
    "pyproject.toml", "constraints.txt", "CMakeLists.txt", "README.md", "LICENSE", "prefect.yaml",
    ".dockerignore", "scripts", "mario", "flows", "serving", "configs", "docker", "monitoring",
)  # fmt: skip
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


@dataclass
class Engine:
    """A Docker engine that answers.

    Attributes:
        client: the docker program.
        environment: with which it reaches the engine.
        own: whether this test run started it.
    """

    client: str
    environment: dict[str, str] = field(default_factory=dict)
    own: bool = False

    def run(
        self, *arguments: str | Path, check: bool = True, timeout: float = 900
    ) -> subprocess.CompletedProcess[str]:
        """Run the client; on failure the exception's text is what it printed."""
        done = subprocess.run(
            [self.client, *map(str, arguments)],
            env={**os.environ, **self.environment},
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            shown = f"{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
            raise AssertionError(f"docker {arguments[0]} ended with {done.returncode}:\n{shown}")
        return done

    def base_image(self) -> str:
        """Return the name of the base image to build from: the pinned one, or the stand-in."""
        if self.run("pull", "--quiet", BASE, check=False, timeout=60).returncode == 0:
            return BASE
        stand_in = "mario-test-base:bookworm"
        if self.run("image", "inspect", stand_in, check=False).returncode:
            print(f"{BASE} cannot be pulled: the base is a stand-in made by mmdebstrap")
            _make_stand_in(self, stand_in)
        return stand_in

    def build(
        self, dockerfile: str, tag: str, context: Path, base: str, *arguments: str
    ) -> subprocess.CompletedProcess[str]:
        """Build an image of the project."""
        secret: tuple[str, ...] = ()
        if _CERTIFICATES.exists():
            secret = ("--secret", f"id=ca,src={_CERTIFICATES}")
        return self.run(
            "build", "--progress", "plain", "--file", str(context / "docker" / dockerfile),
            "--build-arg", f"BASE={base}", "--tag", tag, *secret, *arguments, str(context),
            timeout=1700,
        )  # fmt: skip


def build_context(folder: Path) -> Path:
    """Copy what a build needs, with the CPU wheel of torch where pip finds one."""
    for name in CONTEXT:
        source = ROOT / name
        if source.is_dir():
            ignore = shutil.ignore_patterns("__pycache__", "*.so", ".env")
            shutil.copytree(source, folder / name, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, folder / name)
    import torch

    if "+cpu" in torch.__version__:
        command = [sys.executable, "-m", "pip", "download", "-qq", "--no-deps", "--dest"]
        subprocess.run([*command, folder / "wheels", f"torch=={torch.__version__}"], check=False)
    return folder


def _make_stand_in(engine: Engine, tag: str) -> None:
    if shutil.which("mmdebstrap") is None or os.geteuid() != 0:
        pytest.skip(f"{BASE} cannot be pulled, and a stand-in needs root and mmdebstrap")
    packages = "python3,python3-dev,python3-venv,python3-pip,ca-certificates,passwd"
    with tempfile.TemporaryDirectory() as folder:
        archive = Path(folder) / "base.tar"
        subprocess.run(
            ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}",
             "--customize-hook=rm -f $1/usr/lib/python3.11/EXTERNALLY-MANAGED",
             "--customize-hook=ln -s /usr/bin/python3 $1/usr/local/bin/python",
             "--customize-hook=ln -s /usr/bin/pip3 $1/usr/local/bin/pip",
             "bookworm", archive],
            check=True, stdin=subprocess.DEVNULL, timeout=600,
        )  # fmt: skip
        engine.run("import", "--change", f"ENV PATH={_PATH}", archive, tag)


def _client() -> str | None:
    """Return a client that can build: with BuildKit inside (20.10) or with buildx."""
    for name in (shutil.which("docker"), "/usr/bin/docker"):
        if name is None or not Path(name).exists():
            continue
        version = subprocess.run([name, "--version"], capture_output=True, text=True, check=False)
        if "version 20." in version.stdout or "version 19." in version.stdout:
            return name
        builder = subprocess.run([name, "buildx", "version"], capture_output=True, check=False)
        if builder.returncode == 0:
            return name
    return None


@contextmanager
def engine() -> Iterator[Engine]:
    """Give an engine that answers while the block runs; skip the test where there can be none."""
    client = _client()
    if client is None:
        pytest.skip("no docker client that can build (apt-get install docker.io)")
    running = Engine(client, {"DOCKER_BUILDKIT": "1"})
    if running.run("version", check=False, timeout=20).returncode == 0:
        yield running
        return
    if os.geteuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("no Docker engine answers, and one cannot be started (needs root and dockerd)")
    with tempfile.TemporaryDirectory(prefix="mario-docker-", ignore_cleanup_errors=True) as folder:
        work = Path(folder)
        log = work / "dockerd.log"
        with log.open("wb") as output:
            daemon = subprocess.Popen(
                ["dockerd", "--data-root", work / "data", "--exec-root", work / "exec",
                 "--pidfile", work / "docker.pid", "-H", f"unix://{work}/docker.sock"],
                stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                start_new_session=True,
            )  # fmt: skip
        own = Engine(
            client, {"DOCKER_BUILDKIT": "1", "DOCKER_HOST": f"unix://{work}/docker.sock"}, own=True
        )
        try:
            deadline = time.monotonic() + 60
            while own.run("version", check=False, timeout=20).returncode:
                if daemon.poll() is not None or time.monotonic() > deadline:
                    pytest.skip(f"dockerd does not start here: {log.read_text()[-800:]}")
                time.sleep(0.3)
            yield own
        finally:
            _stop(own, daemon)
            # A container on the host's network leaves it, and the folder could not be removed.
            subprocess.run(
                ["umount", work / "exec/netns/default"], capture_output=True, check=False
            )


def _stop(own: Engine, daemon: subprocess.Popen[bytes]) -> None:
    """Remove what runs, then end the daemon with SIGTERM: killed, it would leave mounts behind."""
    if daemon.poll() is not None:
        return
    containers = own.run("ps", "--all", "--quiet", check=False).stdout.split()
    if containers:
        own.run("rm", "--force", "--volumes", *containers, check=False)
    own.run("network", "prune", "--force", check=False)
    daemon.terminate()
    daemon.wait(timeout=60)
    subprocess.run(["ip", "link", "delete", "docker0"], capture_output=True, check=False)


def container_state(engine: Engine, name: str, template: str) -> str:
    """Return one value of `docker inspect`."""
    return engine.run("inspect", "--format", template, name).stdout.strip()


def wait_until_healthy(engine: Engine, name: str, seconds: float) -> None:
    """Wait until a container's health check passes.

    Raises:
        AssertionError: it did not in time, or the container ended; with its log.
    """
    deadline = time.monotonic() + seconds
    state: Sequence[str] = ()
    while time.monotonic() < deadline:
        state = container_state(engine, name, "{{.State.Status}} {{.State.Health.Status}}").split()
        if state == ["running", "healthy"]:
            return
        if state[:1] == ["exited"]:
            break
        time.sleep(0.5)
    logs = engine.run("logs", "--tail", "60", name, check=False)
    raise AssertionError(f"{name} is {' '.join(state)}\n{logs.stdout}\n{logs.stderr}")
