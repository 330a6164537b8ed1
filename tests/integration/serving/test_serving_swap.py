"""Hot swap under load: one version per answer, no failures, broken versions refused."""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from serving.launcher import free_port, running
from serving.settings import ServingSettings
from tests.support.onnx_networks import (
    nature_cnn_onnx,
    random_observations,
    write_test_artefact,
)
from tests.support.serving_load import run_load, wait_until


def _point(root: Path, target: Path, role: str = "champion") -> None:
    """Replace a link atomically, as a deployment does."""
    aside = root / f".{role}.new"
    aside.symlink_to(target)
    aside.replace(root / role)


def _break(folder: Path, how: str) -> None:
    if how == "truncated":
        data = (folder / "policy.onnx").read_bytes()
        (folder / "policy.onnx").write_bytes(data[: len(data) // 2])
    elif how == "half downloaded":
        (folder / "policy.onnx").unlink()
    elif how == "flipped bit":
        data = bytearray((folder / "policy.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "policy.onnx").write_bytes(bytes(data))
    elif how in ("wrong shape", "too few actions"):
        onnx = nature_cnn_onnx(height_px=80) if how == "wrong shape" else nature_cnn_onnx(4, seed=1)
        from mario.policy.artefact import sha256_hex

        (folder / "policy.onnx").write_bytes(onnx)
        document = json.loads((folder / "policy.json").read_text())
        document |= {"onnx_sha256": sha256_hex(onnx), "golden_sha256": None}
        (folder / "policy.json").write_text(json.dumps(document))
    elif how == "other answers":
        from mario.policy.artefact import sha256_hex

        onnx = nature_cnn_onnx(seed=77)
        (folder / "policy.onnx").write_bytes(onnx)
        document = json.loads((folder / "policy.json").read_text())
        document |= {"onnx_sha256": sha256_hex(onnx)}
        (folder / "policy.json").write_text(json.dumps(document))
    elif how == "no manifest":
        (folder / "policy.json").unlink()


_BREAKAGES = (
    "truncated",
    "half downloaded",
    "flipped bit",
    "wrong shape",
    "too few actions",
    "other answers",
    "no manifest",
)


@pytest.fixture(scope="module")
def versions(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Versions v1 and v2, which always choose action 1 and 2, and one broken in each way."""
    root = tmp_path_factory.mktemp("versions")
    for number in (1, 2):
        write_test_artefact(root / f"v{number}", seed=number, constant_action=number)
    for how in _BREAKAGES:
        folder = root / f"broken-{how.replace(' ', '-')}"
        shutil.copytree(root / "v2", folder)
        _break(folder, how)
    return root


@pytest.fixture
def served(versions: Path, tmp_path: Path) -> Iterator[tuple[str, Path]]:
    root = tmp_path / "served"
    root.mkdir()
    _point(root, versions / "v1")
    with running(ServingSettings(policy=root, port=0, poll_seconds=0.1, workers=2)) as url:
        # A worker that starts while the champion is broken has no former version.
        assert wait_until(lambda: _swaps(url, "swapped") == 2, 60)
        yield url, root


def _swaps(url: str, result: str) -> float:
    page = httpx.get(f"{url}/metrics").text
    wanted = f'mario_serving_swaps_total{{result="{result}",role="champion"}} '
    return sum(float(line.split()[-1]) for line in page.splitlines() if line.startswith(wanted))


def _all_answer(url: str, version: str) -> bool:
    """Whether all workers answer with a version: twenty new connections in a row."""
    return all(httpx.get(f"{url}/readyz").json()["version"] == version for _ in range(20))


def test_swap_and_roll_back_under_load(served: tuple[str, Path], versions: Path) -> None:
    url, root = served
    stop = threading.Event()
    load, threads = run_load(url, random_observations(4), {"v1": 1, "v2": 2}, clients=6, stop=stop)
    try:
        for version in ("v2", "v1", "v2"):
            _point(root, versions / version)
            assert wait_until(lambda v=version: _all_answer(url, v))
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=30)
    assert load.failures == []
    assert load.mixed == []
    assert min(load.answers.get("v1", 0), load.answers.get("v2", 0)) > 10
    assert _swaps(url, "swapped") == 2 * (1 + 3)


def test_every_broken_version_is_refused_and_the_old_one_stays(
    served: tuple[str, Path], versions: Path
) -> None:
    url, root = served
    refused = 0.0
    for how in _BREAKAGES:
        name = f"broken-{how.replace(' ', '-')}"
        _point(root, versions / name)
        kind = "unreachable" if how == "no manifest" else "refused"
        before = _swaps(url, kind) if how == "no manifest" else refused
        assert wait_until(lambda k=kind, b=before: _swaps(url, k) > b), how
        refused = _swaps(url, "refused")
        assert _all_answer(url, "v1")
        # Each worker polls by itself, and either may answer.
        assert wait_until(lambda: httpx.get(f"{url}/card").json()["last_error"]), how
    # Likewise a dangling link.
    _point(root, versions / "v99")
    time.sleep(0.5)
    assert _all_answer(url, "v1")
    _point(root, versions / "v2")
    assert wait_until(lambda: _all_answer(url, "v2"))


def test_a_version_that_becomes_complete_is_swapped_in(
    served: tuple[str, Path], versions: Path, tmp_path: Path
) -> None:
    url, root = served
    shutil.copytree(versions / "v2", tmp_path / "v3")
    data = (tmp_path / "v3/policy.onnx").read_bytes()
    (tmp_path / "v3/policy.onnx").write_bytes(data[:1000])
    _point(root, tmp_path / "v3")
    assert wait_until(lambda: _swaps(url, "refused") >= 2)
    assert _all_answer(url, "v1")
    (tmp_path / "v3/policy.onnx").write_bytes(data)
    assert wait_until(lambda: _all_answer(url, "v3"))


def test_a_service_without_a_champion_becomes_ready_when_there_is_one(
    versions: Path, tmp_path: Path
) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    log = tmp_path / "service.log"

    port, token = free_port(), "swap-token-0123456789"
    url = f"http://127.0.0.1:{port}"
    authorised = {"authorization": f"Bearer {token}"}
    said: dict[str, httpx.Response] = {}

    def promote_later() -> None:
        assert wait_until(lambda: log.exists() and "neither policy.json" in log.read_text(), 60)
        assert wait_until(lambda: _answers(url), 60)
        said["anybody"] = httpx.get(f"{url}/readyz")
        said["token"] = httpx.get(f"{url}/readyz", headers=authorised)
        body = random_observations(1).tobytes()
        headers = authorised | {"content-type": "application/octet-stream"}
        said["predict"] = httpx.post(f"{url}/predict/raw", content=body, headers=headers)
        _point(root, versions / "v1")

    promoter = threading.Thread(target=promote_later)
    promoter.start()
    settings = ServingSettings(policy=root, port=port, poll_seconds=0.1, tokens=token)
    with running(settings, log=log):
        assert httpx.get(f"{url}/readyz").json() == {"ready": True, "version": "v1"}
        page = httpx.get(f"{url}/metrics", headers=authorised).text
        assert 'mario_serving_swaps_total{result="unreachable",role="champion"}' in page
    promoter.join()
    for answer in said.values():
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
    # Only clients with a token see paths and hosts.
    assert str(root) in said["token"].json()["error"]
    assert str(root) not in said["anybody"].text
    assert "token" in said["anybody"].json()["error"]


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.slow
def test_a_swap_every_two_seconds_for_a_minute(served: tuple[str, Path], versions: Path) -> None:
    """Swap, rollback and broken version in turn under 16 clients; memory must stay flat."""
    url, root = served
    stop = threading.Event()
    load, threads = run_load(url, random_observations(4), {"v1": 1, "v2": 2}, clients=16, stop=stop)
    memory: list[float] = []
    swaps = 0
    broken = [f"broken-{how.replace(' ', '-')}" for how in _BREAKAGES]
    try:
        started = time.monotonic()
        while time.monotonic() - started < 60:
            turn = swaps % 3
            name = ("v2", "v1", broken[swaps % len(broken)])[turn]
            _point(root, versions / name)
            swaps += 1
            time.sleep(2)
            memory.append(_service_megabytes(url))
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=30)
    print(f"\n{swaps} swaps, answers {load.answers}, MB {[round(m) for m in memory]}")
    assert load.failures == []
    assert load.mixed == []
    assert min(load.answers["v1"], load.answers["v2"]) > 100
    assert swaps >= 25
    # A swap holds two versions in memory; after a third of the run memory must not grow.
    settled = sorted(memory[len(memory) // 3 : 2 * len(memory) // 3])
    late = sorted(memory[2 * len(memory) // 3 :])
    assert late[len(late) // 2] < settled[len(settled) // 2] * 1.05 + 5


def _service_megabytes(url: str) -> float:
    """Resident memory of the workers, in bytes."""
    port = int(url.rsplit(":", 1)[1])
    total = 0
    for process in psutil.Process(os.getpid()).children(recursive=True):
        try:
            if "bentoml" in " ".join(process.cmdline()) or "_bentoml" in " ".join(
                process.cmdline()
            ):
                total += process.memory_info().rss
        except psutil.Error:
            continue
    assert port
    return total / 1e6
