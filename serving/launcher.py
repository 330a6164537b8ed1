"""Start the service as a process: in the foreground, or while a `with` block runs."""

from __future__ import annotations

import argparse
import ctypes
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mario.config.addresses import Addresses, absolute_url
from mario.errors import ServingError
from serving.settings import PREFIX, ServingSettings, family_of

SERVICE = "serving.service:service"
ROOT = Path(__file__).resolve().parents[1]
_STOP_SECONDS = 15.0
_PR_SET_PDEATHSIG = 1  # prctl(2)
# Loaded here, as nothing may be imported between fork and exec.
_libc = ctypes.CDLL(None)


def serve(settings: ServingSettings) -> int:
    """Run the service in the foreground until Ctrl-C or SIGTERM.

    Args:
        settings: the settings; port 0 uses a free port.

    Returns:
        The exit code of the service, 0 after a clean stop.

    Raises:
        ServingError: the port or the metrics port is taken.
    """
    settings = _resolve(settings)
    process = _start(settings, {})
    print(f"serving on {_url(settings)}/ (Ctrl-C to stop)", flush=True)
    # The service has its own process group, so that Ctrl-C reaches it only through this handler.
    # The handler must not wait: it interrupts the wait below.
    stop_requests: list[float] = []

    def request_stop(*_: object) -> None:
        stop_requests.append(time.monotonic())
        process.send_signal(signal.SIGTERM)

    numbers = (signal.SIGINT, signal.SIGTERM)
    previous = {number: signal.signal(number, request_stop) for number in numbers}
    try:
        code = _wait(process, stop_requests)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
    return 0 if code in (0, -signal.SIGTERM, -signal.SIGINT) else code


def main(arguments: list[str]) -> int:
    """Run ``mario serve``; options override ``MARIO_SERVING_*`` variables.

    Returns:
        The exit code.

    Raises:
        ServingError: a setting is not allowed.
    """
    parser = argparse.ArgumentParser(
        prog="mario serve",
        description="Serve the champion over HTTP. Every setting is also an environment variable "
        f"{PREFIX}<NAME>; docs/reference/http-api.md lists them all.",
        add_help=False,
    )
    parser.add_argument("--help-service", action="help", help="show this and stop")
    for option, text in _OPTIONS.items():
        parser.add_argument(f"--{option}", help=text)
    values = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value}
    return serve(ServingSettings.from_env(**values))


_OPTIONS = {
    "policy": "policy artefact to serve, or a folder with links champion and challenger "
    "(without it: the registry)",
    "task": "task whose champion to serve (1-1)",
    "host": "address to listen on (127.0.0.1); any but loopback requires tokens",
    "port": "port to listen on (3000); 0 uses a free one",
    "metrics-port": "port for /metrics without a token (0: none)",
    "workers": "worker processes (1)",
    "tokens-file": "file with one bearer token a line",
    "database-url": "database with the promotion ledger",
    "tracking-uri": "MLflow tracking URI",
    "shadow-share": "share of requests that the challenger answers in the shadow, 0 to 1",
    "canary-share": "share of sessions that the challenger answers, 0 to 1",
}


@contextmanager
def running(
    settings: ServingSettings,
    *,
    ready_seconds: float = 60,
    log: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[str]:
    """Run the service in another process while the block runs.

    Args:
        settings: the settings; port 0 uses a free port.
        ready_seconds: longest time until the service is ready.
        log: file for its output; None uses a temporary one.
        environment: further environment variables.

    Yields:
        The URL of the service, without a slash at the end.

    Raises:
        ServingError: it exits, or is not ready in time; the message shows its last output.
    """
    settings = _resolve(settings)
    with tempfile.TemporaryDirectory(prefix="mario-serving-") as folder:
        path = log or Path(folder) / "service.log"
        with path.open("wb") as output:
            process = _start(settings, environment or {}, output)
            try:
                _wait_ready(process, settings, path, ready_seconds)
                yield _url(settings)
            finally:
                _stop(process)


def free_port(host: str = "127.0.0.1") -> int:
    """Find a port that is free now."""
    with socket.socket(family_of(host)) as probe:
        probe.bind((host, 0))
        port: int = probe.getsockname()[1]
        return port


def _resolve(settings: ServingSettings) -> ServingSettings:
    places: dict[str, Any] = {
        name: Path(getattr(settings, name)).absolute()
        for name in ("policy", "cache", "tokens_file", "session_file")
        if getattr(settings, name) is not None
    }
    for name in ("database_url", "tracking_uri"):
        if getattr(settings, name) is not None:
            places[name] = absolute_url(getattr(settings, name))
    settings = settings.model_copy(update=places)
    if settings.metrics_port:
        # The workers share this port, so the system would let another service of this user share
        # it too; scrapes would then alternate between the two.
        _require_free(settings.host, settings.metrics_port, "metrics port: ")
    if settings.port:
        _require_free(settings.host, settings.port)
        return settings
    while (port := free_port(settings.host)) == settings.metrics_port:
        pass
    return settings.model_copy(update={"port": port})


def _require_free(host: str, port: int, what: str = "") -> None:
    with socket.socket(family_of(host)) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise ServingError(
                f"{what}got {host}:{port}, which cannot be listened on "
                f"({error.strerror}); expected a free port; choose another one"
            ) from error


def _url(settings: ServingSettings) -> str:
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    return f"http://{host}:{settings.port}"


def _start(
    settings: ServingSettings, environment: dict[str, str], output: Any = None
) -> subprocess.Popen[bytes]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    # The service runs in another folder, so make relative paths absolute.
    clean["MARIO_RUNS_DIR"] = str(Addresses.from_environment().runs_dir.absolute())
    for name in ("MARIO_DATABASE_URL", "MLFLOW_TRACKING_URI"):
        if name in clean:
            clean[name] = absolute_url(clean[name])
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "bentoml", "serve", SERVICE, "--working-dir", str(ROOT)),
            *("--host", settings.host, "--port", str(settings.port)),
        ],
        env=clean | {"BENTOML_DO_NOT_TRACK": "True"} | settings.to_env() | environment,
        cwd=ROOT,
        stdout=output,
        stderr=output,
        start_new_session=True,
        # One system call of a library that is already loaded, which is safe with threads.
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,  # noqa: PLW1509
    )


def _end_with_parent() -> None:
    """In the child: receive SIGTERM when the parent exits, even by SIGKILL."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _wait_ready(
    process: subprocess.Popen[bytes], settings: ServingSettings, log: Path, seconds: float
) -> None:
    deadline = time.monotonic() + seconds
    answer = "no answer"
    while time.monotonic() < deadline and process.poll() is None:
        try:
            connection = http.client.HTTPConnection(settings.host, settings.port, timeout=2)
            connection.request("GET", "/readyz")
            response = connection.getresponse()
            answer = f"{response.status} {response.read().decode(errors='replace')[:300]}"
            connection.close()
            if response.status == 200:
                return
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(0.1)
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
    code = process.poll()
    state = f"answered {answer}" if code is None else f"exited with code {code}"
    raise ServingError(
        f"the service {state} and was not ready within {seconds:g} s; its last output: {tail}"
    )


def _wait(process: subprocess.Popen[bytes], stop_requests: list[float]) -> int:
    """Wait for the service to exit; kill it if it does not after a stop was requested."""
    while True:
        try:
            return process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            if stop_requests and time.monotonic() - stop_requests[0] > _STOP_SECONDS:
                os.killpg(process.pid, signal.SIGKILL)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stop the service and its workers; kill them if they do not stop in time."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        _wait(process, [time.monotonic()])
