"""The registry with MLflow on SQLite: complete versions only, aliases follow the ledger."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import pytest

from mario.errors import (
    ArtefactError,
    PromotionConflict,
    RegistryError,
    RegistryUnavailableError,
)
from mario.policy.artefact import Artefact, load_artefact
from mario.policy.onnx import OnnxPolicy
from mario.registry.registry import ModelRegistry
from mario.store.store import ExperimentStore
from mario.tracking.mlflow_client import prepare_tracking
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.store_rows import MODEL, new_run, verdict

RANDOM = "random:80:4"


@pytest.fixture(scope="module")
def empty_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new MLflow database; creating it takes seconds, copying it is instant."""
    path = tmp_path_factory.mktemp("mlflow") / "mlflow.db"
    prepare_tracking(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="module")
def artefacts(tmp_path_factory: pytest.TempPathFactory) -> tuple[Artefact, ...]:
    folder = tmp_path_factory.mktemp("artefacts")
    return tuple(write_test_artefact(folder / str(seed), seed=seed) for seed in range(3))


@pytest.fixture
def runs_dir(tmp_path: Path, empty_mlflow: Path) -> Path:
    folder = tmp_path / "runs"
    folder.mkdir()
    shutil.copy(empty_mlflow, folder / "mlflow.db")
    return folder


@pytest.fixture
def registry(runs_dir: Path) -> Iterator[ModelRegistry]:
    with ExperimentStore.open(f"sqlite:///{runs_dir}/mario.db") as store:
        yield ModelRegistry(f"sqlite:///{runs_dir}/mlflow.db", store, runs_dir / "artifacts")


def _judged(registry: ModelRegistry, number: int, champion: int | None) -> str:
    """Store a verdict that promotes version ``number`` over ``champion``; return its id."""
    versions = {row.version: row.digest for row in registry.store.versions.list(MODEL)}
    opponent = (None, RANDOM) if champion is None else (champion, versions[champion])
    return verdict(registry.store, (number, versions[number]), opponent)


def _promote(registry: ModelRegistry, number: int, champion: int | None) -> None:
    registry.promote(
        MODEL, number, verdict_id=_judged(registry, number, champion), promoted_by="test"
    )


def test_a_version_is_downloaded_as_registered(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...], tmp_path: Path
) -> None:
    run = registry.store.runs.start(new_run())
    row = registry.register(MODEL, artefacts[0].folder, run_id=run.id, tags={"why": "test"})
    assert (row.version, row.state, row.digest) == (1, "complete", artefacts[0].digest)
    assert registry.register(MODEL, artefacts[0].folder, run_id=run.id) == row
    resolved = registry.resolve(MODEL, 1)
    downloaded = registry.download(resolved, tmp_path / "policy")
    assert downloaded.digest == artefacts[0].digest
    assert downloaded.onnx == artefacts[0].onnx
    tags = registry.mlflow.client.get_model_version(MODEL, "1").tags
    assert tags["mario.digest"] == artefacts[0].digest
    assert tags["mario.onnx_sha256"] == artefacts[0].manifest.onnx_sha256
    assert (tags["mario.run_id"], tags["mario.state"], tags["why"]) == (run.id, "complete", "test")
    # The same weights from another run are another version.
    other = registry.store.runs.start(new_run())
    assert registry.register(MODEL, artefacts[0].folder, run_id=other.id).version == 2


def test_mlflow_itself_loads_the_version(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...]
) -> None:
    registry.register(MODEL, artefacts[0].folder)
    model = mlflow.pyfunc.load_model(registry.resolve(MODEL, 1).source)
    observations = random_observations(3)
    answer = model.predict(observations)
    logits, values = OnnxPolicy(artefacts[0]).infer(observations)
    np.testing.assert_allclose(answer["logits"], logits, atol=1e-5)
    np.testing.assert_allclose(answer["value"], values, atol=1e-5)
    signature = model.metadata.signature
    assert signature.inputs.inputs[0].shape == (-1, 4, 84, 84)
    with pytest.raises(Exception, match=r"shape|dimension"):
        model.predict(observations[:, :3])


def test_unresolvable_versions_are_refused(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...]
) -> None:
    for which, words in (
        ("champion", "no champion"),
        ("challenger", "no challenger"),
        (1, "not registered"),
        ("newest", "expected champion, challenger or a number"),
    ):
        with pytest.raises(RegistryError, match=words):
            registry.resolve(MODEL, which)
    registry.store.versions.begin(MODEL, "half", digest=artefacts[0].digest)
    (summary,) = registry.versions(MODEL)
    assert (summary.state, summary.version) == ("pending", None)


def test_promotion_moves_the_alias_and_rollback_moves_it_back(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...]
) -> None:
    for artefact in artefacts[:2]:
        registry.register(MODEL, artefact.folder)
    registry.set_challenger(MODEL, 1)
    assert registry.resolve(MODEL, "challenger").version == 1
    _promote(registry, 1, None)
    assert registry.mlflow.aliases(MODEL) == {"champion": 1}
    registry.set_challenger(MODEL, 2)
    verdict_id = _judged(registry, 2, 1)
    first = registry.promote(MODEL, 2, verdict_id=verdict_id, promoted_by="test")
    assert registry.promote(MODEL, 2, verdict_id=verdict_id, promoted_by="test") == first
    champion = registry.resolve(MODEL)
    assert (champion.version, champion.promotion) == (2, first)
    assert registry.mlflow.aliases(MODEL) == {"champion": 2}
    registry.rollback(MODEL, promoted_by="oncall")
    assert registry.mlflow.aliases(MODEL) == {"champion": 1}
    assert registry.resolve(MODEL).version == 1
    assert registry.reconcile(MODEL) == ()
    marks = {summary.version: summary.champion for summary in registry.versions(MODEL)}
    assert marks == {1: True, 2: False}


def test_the_second_promoter_gets_a_conflict(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...]
) -> None:
    for artefact in artefacts:
        registry.register(MODEL, artefact.folder)
    _promote(registry, 1, None)
    verdicts = {number: _judged(registry, number, 1) for number in (2, 3)}
    registry.promote(MODEL, 3, verdict_id=verdicts[3], promoted_by="a")
    with pytest.raises(PromotionConflict, match="v3 is champion now"):
        registry.promote(MODEL, 2, verdict_id=verdicts[2], promoted_by="b")
    assert registry.mlflow.aliases(MODEL)["champion"] == 3


# -- damage ---------------------------------------------------------------------------------


def _artifact_folder(registry: ModelRegistry, version: int) -> Path:
    return Path(registry.resolve(MODEL, version).source.removeprefix("file://"))


@pytest.mark.parametrize("damage", ["gone", "no onnx", "no manifest", "bit flipped", "swapped"])
def test_a_damaged_artefact_is_refused(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...], tmp_path: Path, damage: str
) -> None:
    registry.register(MODEL, artefacts[0].folder)
    folder = _artifact_folder(registry, 1)
    if damage == "gone":
        shutil.rmtree(folder)
    elif damage == "no onnx":
        (folder / "policy.onnx").unlink()
    elif damage == "no manifest":
        (folder / "policy.json").unlink()
    elif damage == "bit flipped":
        data = bytearray((folder / "policy.onnx").read_bytes())
        data[len(data) // 2] ^= 1
        (folder / "policy.onnx").write_bytes(data)
    else:  # another sound artefact in its place: only the registered digest gives it away
        for name in ("policy.onnx", "policy.json", "golden.npz"):
            source = artefacts[1].folder / name
            if source.exists():
                shutil.copy(source, folder / name)
    with pytest.raises(ArtefactError) as caught:
        registry.download(registry.resolve(MODEL, 1), tmp_path / "policy")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "policy").exists()
    assert list(tmp_path.glob(".policy*")) == []
    with pytest.raises(RegistryError, match="no sound artefact"):
        _promote(registry, 1, None)
    assert registry.store.ledger.champion(MODEL) is None


def test_a_stale_download_is_replaced(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...], tmp_path: Path
) -> None:
    registry.register(MODEL, artefacts[0].folder)
    target = tmp_path / "policy"
    shutil.copytree(artefacts[1].folder, target)
    registry.download(registry.resolve(MODEL, 1), target)
    assert load_artefact(target).digest == artefacts[0].digest
    (target / "policy.onnx").write_bytes(b"half")
    registry.download(registry.resolve(MODEL, 1), target)
    assert load_artefact(target).digest == artefacts[0].digest


def test_several_workers_download_into_one_folder(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...], tmp_path: Path
) -> None:
    registry.register(MODEL, artefacts[0].folder)
    resolved = registry.resolve(MODEL, 1)
    target = tmp_path / "policy"
    shutil.copytree(artefacts[1].folder, target)  # to be replaced by all of them at once
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda _: registry.download(resolved, target), range(6)))
    assert {artefact.digest for artefact in found} == {artefacts[0].digest}
    assert {artefact.folder for artefact in found} == {target}
    assert load_artefact(target).digest == artefacts[0].digest
    assert list(tmp_path.glob(".policy*")) == []


def test_the_training_archive_is_downloaded_on_request_only(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...], tmp_path: Path
) -> None:
    source = shutil.copytree(artefacts[0].folder, tmp_path / "source")
    (source / "model.zip").write_bytes(b"archive")
    registry.register(MODEL, source)
    resolved = registry.resolve(MODEL, 1)
    registry.download(resolved, tmp_path / "lean")
    assert not (tmp_path / "lean" / "model.zip").exists()
    registry.download(resolved, tmp_path / "full", with_archive=True)
    assert (tmp_path / "full" / "model.zip").read_bytes() == b"archive"


def test_a_broken_folder_is_not_registered(registry: ModelRegistry, tmp_path: Path) -> None:
    (tmp_path / "policy.onnx").write_bytes(b"")
    with pytest.raises(ArtefactError):
        registry.register(MODEL, tmp_path)
    assert registry.versions(MODEL) == ()


def test_an_unreachable_mlflow(registry: ModelRegistry) -> None:
    away = ModelRegistry("http://127.0.0.1:9", registry.store)
    # A flow run retries this error, while a refusal ends it at once.
    with pytest.raises(RegistryUnavailableError, match=r"127\.0\.0\.1:9") as caught:
        away.versions(MODEL)
    assert "\n" not in str(caught.value)
    for uri in ("./mlruns", "ftp://x", "sqlite://"):
        with pytest.raises(RegistryError, match="expected sqlite"):
            ModelRegistry(uri, registry.store).versions(MODEL)


# -- reconcile --------------------------------------------------------------------


def test_reconcile_follows_the_ledger(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...]
) -> None:
    for artefact in artefacts[:2]:
        registry.register(MODEL, artefact.folder)
    # Promotions killed between the ledger and the alias: the first, then the second.
    registry.store.ledger.promote(
        MODEL, 1, verdict_id=_judged(registry, 1, None), promoted_by="killed"
    )
    assert registry.mlflow.aliases(MODEL) == {}
    assert registry.resolve(MODEL).version == 1
    (done,) = registry.reconcile(MODEL)
    assert "from nothing to v1" in done.what
    registry.store.ledger.promote(
        MODEL, 2, verdict_id=_judged(registry, 2, 1), promoted_by="killed"
    )
    (done,) = registry.reconcile(MODEL)
    assert "from v1 to v2" in done.what
    assert registry.mlflow.aliases(MODEL) == {"champion": 2}
    assert registry.reconcile(MODEL) == ()


def test_reconcile_reverts_an_alias_moved_by_hand(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...]
) -> None:
    for artefact in artefacts[:2]:
        registry.register(MODEL, artefact.folder)
    registry.mlflow.client.set_registered_model_alias(MODEL, "champion", "2")
    (done,) = registry.reconcile(MODEL)
    assert "no ledger entry: removed" in done.what
    _promote(registry, 1, None)
    registry.mlflow.client.set_registered_model_alias(MODEL, "champion", "2")
    assert registry.resolve(MODEL).version == 1  # the ledger is the truth already
    (done,) = registry.reconcile(MODEL)
    assert "from v2 to v1" in done.what


def test_reconcile_reports_versions_from_elsewhere(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...]
) -> None:
    registry.register(MODEL, artefacts[0].folder)
    registry.mlflow.client.create_model_version(MODEL, registry.resolve(MODEL, 1).source)
    (notice,) = registry.reconcile(MODEL)
    assert not notice.done
    assert "v2 is in MLflow but not in the store" in notice.what
    with pytest.raises(RegistryError, match="not registered"):
        registry.resolve(MODEL, 2)
    assert [summary.state for summary in registry.versions(MODEL)] == ["complete", "unknown"]


_KILLED_REGISTRATION = """
import os, signal, sys
from pathlib import Path
import mario.registry.registry as module
from mario.registry.registry import ModelRegistry
from mario.store.store import ExperimentStore
from mario.store.versions import Versions
stage, runs, folder = sys.argv[1:]

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def die_after(function):
    def wrapper(*args, **kwargs):
        function(*args, **kwargs)
        die()
    return wrapper

from mlflow.tracking import MlflowClient
if stage == "announced":
    module.upload_version = die
elif stage == "run made":
    MlflowClient.log_artifacts = die
elif stage == "half uploaded":
    def half(self, run_id, local_dir, artifact_path=None):
        self.log_artifact(run_id, str(Path(local_dir) / "policy.json"), artifact_path)
        die()
    MlflowClient.log_artifacts = half
elif stage == "uploaded":
    MlflowClient.create_model_version = die
elif stage == "version made":
    MlflowClient.create_model_version = die_after(MlflowClient.create_model_version)
elif stage == "completed":
    Versions.complete = die_after(Versions.complete)
with ExperimentStore.open(f"sqlite:///{runs}/mario.db") as store:
    ModelRegistry(f"sqlite:///{runs}/mlflow.db", store, Path(runs) / "artifacts").register(
        "mario-1-1", folder, registration_key="the one"
    )
"""


def _kill_registration(stage: str, runs_dir: Path, folder: Path) -> None:
    process = subprocess.run(
        [sys.executable, "-c", _KILLED_REGISTRATION, stage, str(runs_dir), str(folder)],
        timeout=120,
        check=False,
    )
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    "stage",
    [
        pytest.param("announced", marks=pytest.mark.slow),
        "half uploaded",
        "version made",
        pytest.param("completed", marks=pytest.mark.slow),
    ],
)
def test_a_killed_registration_is_finished_by_the_next(
    registry: ModelRegistry, runs_dir: Path, artefacts: tuple[Artefact, ...], stage: str
) -> None:
    _kill_registration(stage, runs_dir, artefacts[0].folder)
    complete = registry.store.versions.list(MODEL, state="complete")
    assert len(complete) == (1 if stage == "completed" else 0)
    row = registry.register(MODEL, artefacts[0].folder, registration_key="the one")
    assert (row.version, row.state) == (1, "complete")
    assert len(registry.mlflow.client.search_model_versions(f"name='{MODEL}'")) == 1
    registry.require_artefact(registry.resolve(MODEL, 1))
    registry.reconcile(MODEL)
    assert registry.reconcile(MODEL) == ()


@pytest.mark.slow
@pytest.mark.parametrize(
    "stage", ["announced", "run made", "half uploaded", "uploaded", "version made", "completed"]
)
def test_a_killed_registration_is_repaired_by_reconcile(
    registry: ModelRegistry, runs_dir: Path, artefacts: tuple[Artefact, ...], stage: str
) -> None:
    _kill_registration(stage, runs_dir, artefacts[0].folder)
    repairs = registry.reconcile(MODEL)
    assert all(repair.done for repair in repairs)
    summaries = registry.versions(MODEL)
    states = [summary.state for summary in summaries]
    assert states == (["complete"] if stage in ("version made", "completed") else ["broken"])
    assert registry.reconcile(MODEL) == ()
    # A broken registration can be completed.
    row = registry.register(MODEL, artefacts[0].folder, registration_key="the one")
    assert (row.version, row.state) == (1, "complete")
    registry.require_artefact(registry.resolve(MODEL, 1))


def test_reconcile_keeps_a_running_registration(
    registry: ModelRegistry, artefacts: tuple[Artefact, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mario.store.versions.process_id", os.getppid)
    registry.store.versions.begin(MODEL, "under way", digest=artefacts[0].digest)
    (notice,) = registry.reconcile(MODEL)
    assert not notice.done
    assert "under way in process" in notice.what
    assert [summary.state for summary in registry.versions(MODEL)] == ["pending"]


_FIRST_USE = """
import sys
from mario.tracking.mlflow_client import prepare_tracking
print("go", flush=True)
prepare_tracking(sys.argv[1])
"""


@pytest.mark.slow
def test_a_kill_during_mlflows_setup_leaves_no_partial_database(tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    for wait_seconds in (1.0, 3.0, 5.0):
        process = subprocess.Popen(
            [sys.executable, "-c", _FIRST_USE, uri], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        process.stdout.readline()
        time.sleep(wait_seconds)
        process.kill()
        process.wait()
    prepare_tracking(uri)
    with ExperimentStore.open(f"sqlite:///{tmp_path}/mario.db") as store:
        assert ModelRegistry(uri, store).versions(MODEL) == ()
    assert [path.name for path in tmp_path.glob(".mlflow.db*.new*")] == []
