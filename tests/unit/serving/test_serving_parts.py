"""Parts of serving without a server: window, sessions, comparison, batcher, live game."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from mario.errors import ArtefactError, RegistryError, ServingError, StoreError
from mario.policy.onnx import OnnxPolicy
from mario.store.records import ServingComparison
from serving.http.errors import HttpError
from serving.metrics import ObservationWindow, entropy_ratio
from serving.policies.batcher import Batcher
from serving.policies.sources import FolderSource, Role, VersionCard, VersionRef
from serving.policies.traffic_comparison import TrafficComparison
from serving.policies.version_follower import LoadedVersion, VersionFollower, load_version
from serving.sessions.live_game import LiveGame, open_live_console
from serving.sessions.session_table import SessionTable
from tests.support.onnx_networks import random_observations, write_test_artefact
from tests.support.paths import ROOT


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> LoadedVersion:
    artefact = write_test_artefact(tmp_path_factory.mktemp("p") / "v1")
    ref = VersionRef("mario-1-1", "1", artefact.digest)
    return LoadedVersion(ref, OnnxPolicy(artefact), VersionCard(), 0.0)


def test_entropy_ratio_against_known_values() -> None:
    assert entropy_ratio(np.zeros(10, np.int64), 7) == 0
    assert entropy_ratio(np.arange(7), 7) == pytest.approx(1)
    # Two actions at one half each: log 2 / log 4.
    assert entropy_ratio(np.array([0, 0, 3, 3]), 4) == pytest.approx(0.5)
    assert entropy_ratio(np.zeros(3, np.int64), 1) == 1


def test_the_window_detects_black_frames_and_restarts_with_a_version(
    version: LoadedVersion,
) -> None:
    window = ObservationWindow(100)
    assert window.summary() == {}
    for _ in range(40):
        window.add(version, np.zeros((1, 4, 84, 84), np.uint8), np.array([2]))
    summary = window.summary()
    assert summary["observation_black_ratio"] == 1
    assert summary["observation_frozen_ratio"] == 1
    assert summary["action_entropy_ratio"] == 0
    other = LoadedVersion(version.ref, version.policy, VersionCard(), 1.0)
    window.add(other, random_observations(1), np.array([1]))
    assert window.summary()["observation_black_ratio"] == 0


@pytest.mark.parametrize("name", ["right,A", "right\r\nX: y", "→"])
def test_names_that_do_not_fit_into_a_header_are_refused(name: str, tmp_path: Path) -> None:
    artefact = write_test_artefact(tmp_path / "v1", golden_count=0)
    manifest = json.loads((artefact.folder / "policy.json").read_text())
    manifest["actions"][1]["name"] = name
    (artefact.folder / "policy.json").write_text(json.dumps(manifest))
    source = FolderSource(artefact.folder)
    ref = source.resolve("champion")
    assert ref is not None
    with pytest.raises(ArtefactError, match="no comma"):
        load_version(source, ref, threads=1)


def test_folders_with_the_same_name_are_told_apart(tmp_path: Path) -> None:
    """Training writes each artefact into a folder named policy, in the folder of its run."""
    expected = {}
    roles: tuple[Role, Role] = ("champion", "challenger")
    for seed, role in enumerate(roles):
        artefact = write_test_artefact(tmp_path / "runs" / role / "policy", seed)
        (tmp_path / role).symlink_to(artefact.folder)
        expected[role] = artefact
    source = FolderSource(tmp_path)
    refs = {role: source.resolve(role) for role in roles}
    for role in roles:
        ref = refs[role]
        assert ref is not None
        assert ref.version == "policy"
        loaded = load_version(source, ref, threads=1)
        assert loaded.policy.artefact.digest == expected[role].digest == ref.digest
        assert loaded.policy.artefact.folder == expected[role].folder.resolve()
    with pytest.raises(ServingError, match="does not link to"):
        source.fetch(VersionRef("mario-folder", "policy", "0" * 64))


def test_sessions_continue_in_another_process_and_one_holds_them(tmp_path: Path) -> None:
    """Two tables on one file stand for two workers; a second process tries the locks."""
    table = SessionTable(tmp_path / "table", 4, 60)
    name = table.create("champion", "sample", seed=5)
    with table.use(name) as session:
        session.push(np.full((84, 84), 9, np.uint8))
        first = session.generator.uniform()
        code = (
            "from pathlib import Path\n"
            "from serving.sessions.session_table import SessionTable\n"
            f"table = SessionTable(Path({str(tmp_path / 'table')!r}), 4, 60)\n"
            "try:\n"
            f"    with table.use({name!r}) as session: print(session.frames)\n"
            "except Exception as error: print(error.status)\n"
        )
        root = ROOT
        command = [sys.executable, "-c", code]
        busy = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
        assert busy.stdout.strip() == "409", busy.stderr
    after = subprocess.run(command, capture_output=True, text=True, cwd=root, check=True)
    assert after.stdout.strip() == "1"
    with table.use(name) as session:
        assert session.generator.uniform() != first
        assert session.stack.observation().min() == 9
    with pytest.raises(ValueError, match="broadcast"), table.use(name) as session:
        session.push(np.zeros((1, 2), np.uint8).reshape(2, 1)[:, :0])
    with table.use(name) as session:  # the failed block was not saved
        assert session.frames == 1
    for _ in range(3):
        table.create("champion", None, None)
    with pytest.raises(HttpError, match="all 4 sessions"):
        table.create("champion", None, None)
    table.delete(name)
    table.create("champion", None, None)


def test_a_batch_uses_one_version_and_joins_waiting_requests(version: LoadedVersion) -> None:
    gate = threading.Event()
    sizes: list[int] = []

    def current() -> LoadedVersion:
        gate.wait(60)
        return version

    async def run() -> None:
        batcher = Batcher(
            current,
            max_batch_observations=8,
            max_queue_observations=12,
            on_batch=lambda _, count, seconds: sizes.append(count),
        )
        batcher.start()
        observations = random_observations(12)
        futures = [batcher.submit(observations[:1])]
        while batcher._jobs:
            await asyncio.sleep(0.001)
        futures += [batcher.submit(observations[i : i + 1]) for i in range(1, 12)]
        with pytest.raises(HttpError) as caught:
            batcher.submit(observations[:1])
        assert caught.value.retry_after_seconds == 1
        gate.set()
        answers = await asyncio.gather(*futures)
        expected = version.policy.infer(observations)[0]
        for answer, row in zip(answers, expected, strict=True):
            np.testing.assert_array_equal(answer.logits[0], row)
            assert answer.version is version
        assert batcher.queued_observations == 0
        batcher.stop()

    asyncio.run(run())
    assert sizes == [1, 8, 3]


@pytest.mark.parametrize("inline", [0, 4, 100])
def test_every_request_gets_its_own_rows_inline_or_not(version: LoadedVersion, inline: int) -> None:
    sizes: list[int] = []

    async def run() -> None:
        batcher = Batcher(
            lambda: version,
            max_batch_observations=8,
            max_queue_observations=100,
            on_batch=lambda _, count, seconds: sizes.append(count),
            inline_observations=inline,
        )
        batcher.start()
        observations = random_observations(30)
        expected = version.policy.infer(observations)[0]
        for width in (1, 3, 10):
            futures = [batcher.submit(observations[i : i + 2]) for i in range(0, 2 * width, 2)]
            for i, answer in enumerate(await asyncio.gather(*futures)):
                np.testing.assert_array_equal(answer.logits, expected[2 * i : 2 * i + 2])
        assert batcher.queued_observations == 0
        batcher.stop()

    asyncio.run(run())
    assert sum(sizes) == 2 * (1 + 3 + 10)
    if inline == 100:
        assert sizes == [2, 6, 20]


@pytest.mark.parametrize("inline", [0, 100])
def test_an_error_in_a_batch_reaches_its_requests_only(version: LoadedVersion, inline: int) -> None:
    broken = [True]

    def current() -> LoadedVersion:
        if broken[0]:
            raise HttpError(503, "no_version", "none")
        return version

    async def run() -> None:
        batcher = Batcher(
            current,
            max_batch_observations=8,
            max_queue_observations=12,
            on_batch=lambda *_: None,
            inline_observations=inline,
        )
        batcher.start()
        with pytest.raises(HttpError, match="none"):
            await batcher.submit(random_observations(1))
        broken[0] = False
        assert (await batcher.submit(random_observations(1))).version is version
        batcher.stop()

    asyncio.run(run())


class _Kept:
    """A sink in memory whose first ``failures`` writes fail."""

    def __init__(self, failures: int = 0) -> None:
        self.rows: list[ServingComparison] = []
        self.failures = failures

    def write(self, comparison: ServingComparison) -> None:
        if self.failures:
            self.failures -= 1
            raise StoreError("away")
        self.rows.append(comparison)


def _ref(number: int) -> VersionRef:
    return VersionRef("mario-1-1", str(number), f"{number:064x}")


def test_a_comparison_holds_the_times_of_its_own_two_versions() -> None:
    sink = _Kept()
    comparison = TrafficComparison(sink, 10)
    one, two, three = _ref(1), _ref(2), _ref(3)
    # One observation in an interval: both calls end before the comparison is recorded.
    comparison.add_inference(one, "champion", 1, 0.5)
    comparison.add_inference(two, "challenger", 1, 0.25)
    comparison.add(one, two, shadow_observations=1, agreed_observations=1)
    # The champion changes: the times of the former one do not count for the new one.
    comparison.add_inference(three, "champion", 2, 0.125)
    comparison.add_inference(two, "challenger", 2, 0.0625)
    comparison.add(three, two, shadow_observations=2, agreed_observations=0)
    comparison.add(three, two, dropped_observations=4)
    comparison.flush()
    first, second = sink.rows
    assert (first.champion_seconds, first.champion_observations) == (0.5, 1)
    assert first.shadow_observations == first.agreed_observations == 1
    assert (second.champion_version, second.challenger_version) == ("3", "2")
    assert (second.champion_seconds, second.champion_observations) == (0.125, 2)
    assert (second.shadow_observations, second.dropped_observations) == (2, 4)
    assert first.challenger_seconds + second.challenger_seconds == 0.3125
    # The champion alone is no comparison, and its time is not added to the next one.
    comparison.add_inference(three, "champion", 7, 7.0)
    comparison.flush()
    comparison.add_inference(three, "champion", 1, 1.0)
    comparison.add(three, two, challenger_decisions=1)
    comparison.flush()
    assert len(sink.rows) == 3
    assert (sink.rows[2].champion_seconds, sink.rows[2].challenger_decisions) == (1.0, 1)


def test_comparisons_are_kept_while_the_store_is_unreachable() -> None:
    sink = _Kept(failures=1)
    comparison = TrafficComparison(sink, 10)
    comparison.add(_ref(1), _ref(2), shadow_observations=5, agreed_observations=3)
    comparison.flush()
    assert sink.rows == []
    comparison.add(_ref(1), _ref(2), shadow_observations=1, agreed_observations=1)
    comparison.flush()
    assert [row.shadow_observations for row in sink.rows] == [5, 1]


def test_a_live_game_equals_the_episode_of_the_protocol() -> None:
    """The page shows what evaluation records: the same noise, the same observations."""
    from mario.config.game import GameConfig
    from mario.game.batch.contract import EpisodeSpec
    from mario.game.batch.oracle import ConsoleBatch

    buttons = 0b1000_0010
    batch = ConsoleBatch(1, GameConfig(console="nes-py"), (buttons,))
    expected = np.zeros((1, 4, 84, 84), np.uint8)
    batch.begin(0, EpisodeSpec("1-1", 7), expected)
    game = LiveGame(open_live_console("nes-py"))
    game.start("1-1", 7, sticky=True)
    np.testing.assert_array_equal(game.observation(), expected[0])
    for _ in range(12):
        batch.step(np.array([0]), expected)
        due = [game.play(buttons, 4) for _ in range(4)]
        assert due == [False, False, False, True]
        np.testing.assert_array_equal(game.observation(), expected[0])
    assert game.status()["x_px"] == int(batch.states()["x_px"][0])
    assert game.png().startswith(b"\x89PNG")
    batch.close()


class _Away:
    """A source whose registry is unreachable under an address with a password."""

    def resolve(self, role: Role) -> VersionRef | None:
        raise RegistryError(
            "cannot resolve at http://ann:pa55word@mlflow:5000/x (refused); start it"
        )

    def fetch(self, ref: VersionRef) -> Path:
        raise NotImplementedError

    def card(self, ref: VersionRef) -> VersionCard:
        raise NotImplementedError


def test_a_password_in_an_address_reaches_neither_log_nor_page(
    caplog: pytest.LogCaptureFixture,
) -> None:
    results: list[str] = []
    follower = VersionFollower(
        _Away(), "champion", poll_seconds=1, on_swap=lambda *said: results.append(said[1])
    )
    follower.poll()
    assert results == ["unreachable"]
    for text in (follower.last_error, caplog.text):
        assert text is not None
        assert "http://***@mlflow:5000/x (refused)" in text
        assert "pa55word" not in text
        assert "wario" not in text


@pytest.mark.parametrize("sticky", [True, False])
def test_sticky_frames_can_be_switched_off(sticky: bool) -> None:
    game = LiveGame(open_live_console("nes-py"))
    game.start("1-1", 7, sticky=sticky)
    held = 0
    for frame in range(200):
        wanted = 0b1000_0000 if frame % 2 else 0b0100_0000
        game.play(wanted, 4)
        held += game.buttons != wanted
    # A frame repeats the former buttons with probability 0.25: mean 50, deviation 6.
    assert 25 < held < 75 if sticky else held == 0
