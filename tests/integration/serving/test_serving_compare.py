"""Shadow and canary from folders and from the ledger: counted, stored, never returned."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from mario.registry.registry import ModelRegistry
from mario.store.store import ExperimentStore
from serving.launcher import running
from serving.policies.registry_source import clear_rate
from serving.settings import ServingSettings
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.serving_load import wait_until
from tests.support.serving_registry import following
from tests.support.store_rows import verdict

BYTES = {"content-type": "application/octet-stream"}


def _value(url: str, name: str, label: str) -> float:
    lines = httpx.get(f"{url}/metrics").text.splitlines()
    return sum(float(x.split()[-1]) for x in lines if x.startswith(f"{name}{{") and label in x)


def test_shadow_answers_are_counted_and_never_returned(tmp_path: Path) -> None:
    for role, action in (("champion", 1), ("challenger", 2)):
        write_test_artefact(tmp_path / f"v{action}", seed=action, constant_action=action)
        (tmp_path / role).symlink_to(tmp_path / f"v{action}")
    settings = ServingSettings(policy=tmp_path, port=0, shadow_share=1.0, canary_share=0.5)
    with running(settings) as url, httpx.Client(base_url=url, timeout=30) as client:
        # The challenger is loaded beside the champion, after which the service is ready.
        assert wait_until(lambda: client.get("/card").json()["challenger"] == "v2")
        for _ in range(20):
            answer = client.post(
                "/predict/raw", content=random_observations(2).tobytes(), headers=BYTES
            ).json()
            assert answer["version"] == "v1"
            assert {p["action"] for p in answer["predictions"]} == {1}
        counted = lambda: _value(url, "mario_serving_shadow_observations_total", "")  # noqa: E731
        assert wait_until(lambda: counted() == 40)
        assert _value(url, "mario_serving_shadow_observations_total", "differ") == 40
        # One role answers a whole session.
        frame = random_observations(1)[0, 0].tobytes()
        seen = []
        for _ in range(30):
            session = client.post("/sessions").json()["session"]
            path = f"/sessions/{session}/act"
            actions = {
                client.post(path, content=frame, headers=BYTES).json()["action"] for _ in range(3)
            }
            assert len(actions) == 1
            seen.append(actions.pop())
            client.delete(f"/sessions/{session}")
        assert set(seen) == {1, 2}
        assert _value(url, "mario_serving_canary_decisions_total", "challenger") == 3 * seen.count(
            2
        )
        # Requests of sessions are compared too if the champion answers them.
        assert wait_until(lambda: counted() == 40 + 3 * seen.count(1))
        # Without a challenger, the champion continues its sessions.
        (tmp_path / "challenger").unlink()
        assert wait_until(lambda: client.get("/card").json()["challenger"] is None)
        session = client.post("/sessions").json()["session"]
        answer = client.post(f"/sessions/{session}/act", content=frame, headers=BYTES).json()
        assert answer["action"] == 1


@pytest.fixture
def registry(tmp_path: Path) -> ModelRegistry:
    store = ExperimentStore.open(f"sqlite:///{tmp_path / 'mario.db'}")
    return ModelRegistry(f"sqlite:///{tmp_path / 'mlflow.db'}", store, tmp_path / "artifacts")


def test_the_service_follows_the_ledger(registry: ModelRegistry, tmp_path: Path) -> None:
    """The service waits for a champion, swaps, rolls back, and stores the shadow's counts."""
    numbers = []
    for action in (1, 2):
        folder = write_test_artefact(
            tmp_path / f"v{action}", seed=action, constant_action=action
        ).folder
        numbers.append(registry.register("mario-1-1", folder).version)
    first, second = numbers
    assert first is not None
    assert second is not None
    registry.promote("mario-1-1", first, verdict_id=None, promoted_by="test")
    first_digest = registry.resolve("mario-1-1", first).digest
    registry.set_challenger("mario-1-1", second)
    settings = following(
        registry,
        tmp_path / "cache",
        shadow_share=1.0,
        canary_share=0.5,
        comparison_flush_seconds=0.5,
    )
    with running(settings, ready_seconds=120) as url, httpx.Client(base_url=url) as client:

        def ask() -> dict[str, object]:
            return dict(
                client.post(
                    "/predict/raw", content=random_observations(1).tobytes(), headers=BYTES
                ).json()
            )

        assert ask()["version"] == str(first)
        card = client.get("/card").json()
        assert card["reason"].startswith("first champion")
        assert card["promoted_at"]
        assert wait_until(lambda: client.get("/card").json()["challenger"] == str(second))
        for _ in range(10):
            ask()
        frame = random_observations(1)[0, 0].tobytes()
        took = {1: 0, 2: 0}
        for _ in range(16):
            session = client.post("/sessions").json()["session"]
            answer = client.post(f"/sessions/{session}/act", content=frame, headers=BYTES).json()
            assert answer["version"] == str((None, first, second)[answer["action"]])
            took[answer["action"]] += 1
        digest = registry.resolve("mario-1-1", second).digest

        def stored(name: str) -> float:
            rows = registry.store.serving.list("mario-1-1", digest)
            return sum(getattr(row, name) for row in rows)

        # At least: an earlier request may have been in the shadow too.
        assert wait_until(lambda: stored("shadow_observations") >= 10 + took[1])
        assert wait_until(lambda: stored("challenger_decisions") == took[2])
        assert wait_until(lambda: stored("champion_decisions") == took[1])
        assert stored("agreed_observations") == stored("dropped_observations") == 0
        for role in ("champion", "challenger"):
            assert stored(f"{role}_observations") > 0
            # One observation takes between a microsecond and a second: the unit is seconds.
            assert 1e-6 < stored(f"{role}_seconds") / stored(f"{role}_observations") < 1
        won = verdict(registry.store, (second, digest), (first, first_digest))
        registry.promote("mario-1-1", second, verdict_id=won, promoted_by="test")
        assert wait_until(lambda: ask()["version"] == str(second))
        registry.rollback("mario-1-1", promoted_by="test", note="worse in the evening")
        assert wait_until(lambda: ask()["version"] == str(first))
        assert "worse in the evening" in client.get("/card").json()["reason"]
    registry.store.close()


def test_clear_rate_against_known_values() -> None:
    # Wilson's interval for 8 of 10 (Brown, Cai and DasGupta 2001 give the formula).
    rate = clear_rate("1-1", 8, 10)
    assert rate["rate"] == 0.8
    assert rate["low"] == pytest.approx(0.4902, abs=1e-4)
    assert rate["high"] == pytest.approx(0.9433, abs=1e-4)
    assert clear_rate("1-1", 0, 10)["low"] == 0
    assert clear_rate("1-1", 10, 10)["high"] == pytest.approx(1)
