"""The policy artefact is written completely or not at all, and refused when broken."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from mario.errors import ArtefactError
from mario.game.smb.actions import Action
from mario.policy import artefact as artefact_module
from mario.policy.artefact import Golden, load_artefact, sha256_hex, write_artefact
from mario.policy.manifest import ObservationStatistics, observation_features
from tests.support.onnx_networks import (
    SIMPLE_ACTIONS,
    nature_cnn_onnx,
    random_observations,
    write_test_artefact,
)


@pytest.fixture(scope="module")
def network() -> bytes:
    return nature_cnn_onnx()


def _write(folder: Path, network: bytes, **changes: object) -> artefact_module.Artefact:
    arguments: dict[str, object] = {
        "onnx": network,
        "actions": SIMPLE_ACTIONS,
        "action_selection": "sample",
        "frame_skip": 4,
        "training_config_hash": "abc",
        "git_commit": "0" * 40,
    }
    return write_artefact(folder, **(arguments | changes))  # type: ignore[arg-type]


def test_round_trip_keeps_everything(tmp_path: Path, network: bytes) -> None:
    statistics = ObservationStatistics.of(random_observations(3))
    golden = Golden(random_observations(2), np.ones((2, 7), np.float32), np.ones(2, np.float32))
    written = _write(
        tmp_path / "a",
        network,
        golden=golden,
        training_statistics=statistics,
        model_zip=b"zip",
        task="1-1",
        training_steps=1000,
    )
    loaded = load_artefact(tmp_path / "a")
    assert loaded.manifest == written.manifest
    assert loaded.manifest.action_selection == "sample"
    assert loaded.manifest.action_names[2] == "right+A"
    assert loaded.manifest.button_bytes[2] == 0b1000_0001
    assert loaded.manifest.training_statistics == statistics
    assert loaded.onnx == network
    assert loaded.manifest.onnx_sha256 == sha256_hex(network)
    assert loaded.golden is not None
    np.testing.assert_array_equal(loaded.golden.observations, golden.observations)
    assert loaded.digest == written.digest == sha256_hex((tmp_path / "a/policy.json").read_bytes())
    assert (tmp_path / "a/model.zip").read_bytes() == b"zip"


def test_the_folder_is_complete_or_absent(
    tmp_path: Path, network: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(source: object, target: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(ArtefactError, match="No space"):
        _write(tmp_path / "a", network)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_overwrite_keeps_the_old_folder(
    tmp_path: Path, network: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _write(tmp_path / "a", network)
    real_replace, calls = os.replace, []

    def second_fails(source: object, target: object) -> None:
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        real_replace(source, target)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(ArtefactError, match="Input/output"):
        _write(tmp_path / "a", network, frame_skip=2, overwrite=True)
    monkeypatch.undo()
    assert load_artefact(tmp_path / "a").digest == before.digest
    after = _write(tmp_path / "a", network, frame_skip=2, overwrite=True)
    assert load_artefact(tmp_path / "a").manifest.frame_skip == 2
    assert after.digest != before.digest
    with pytest.raises(ArtefactError, match="exists already"):
        _write(tmp_path / "a", network)


@pytest.mark.parametrize(
    "changes",
    [
        {"actions": ()},
        {"actions": (SIMPLE_ACTIONS[0], SIMPLE_ACTIONS[0])},
        {"action_selection": "best"},
        {"frame_skip": 0},
        {"git_commit": ""},
        {"onnx": Path("/nowhere/policy.onnx")},
        {"golden": Golden(random_observations(2), np.ones((2, 6), "f"), np.ones(2, "f"))},
        {"golden": Golden(random_observations(1), np.full((1, 7), np.nan, "f"), np.ones(1, "f"))},
    ],
)
def test_parts_that_do_not_fit_are_refused(
    tmp_path: Path, network: bytes, changes: dict[str, object]
) -> None:
    with pytest.raises(ArtefactError):
        _write(tmp_path / "a", network, **changes)
    assert not (tmp_path / "a").exists()


def test_button_bytes_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match="255"):
        Action(name="x", buttons=256)


def _flip_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _edit(key: str, value: object) -> object:
    def change(path: Path) -> None:
        document = json.loads(path.read_text())
        document[key] = value
        path.write_text(json.dumps(document))

    return change


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("policy.onnx", _flip_byte),
        ("policy.onnx", _truncate),
        ("policy.onnx", Path.unlink),
        ("golden.npz", _flip_byte),
        ("golden.npz", Path.unlink),
        ("policy.json", Path.unlink),
        ("policy.json", _truncate),
        ("policy.json", _edit("schema_version", 2)),
        ("policy.json", _edit("unknown", 1)),
        ("policy.json", _edit("onnx_sha256", "0" * 64)),
        ("policy.json", lambda path: path.write_bytes(b" " * (2 << 20))),
        ("policy.json", lambda path: path.write_text('{"frame_skip": NaN}')),
    ],
)
def test_damage_is_refused_with_the_file_named(tmp_path: Path, name: str, damage: object) -> None:
    write_test_artefact(tmp_path / "a")
    damage(tmp_path / "a" / name)  # type: ignore[operator]
    with pytest.raises(ArtefactError, match=name.replace(".", r"\.")):
        load_artefact(tmp_path / "a")


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="no such folder"):
        load_artefact(tmp_path / "a")


def test_a_pickle_inside_golden_is_not_opened(tmp_path: Path) -> None:
    write_test_artefact(tmp_path / "a")
    touched = tmp_path / "touched"

    class Bomb:
        def __reduce__(self) -> object:
            return (Path.touch, (touched,))

    np.savez(tmp_path / "a/golden.npz", observations=np.array([Bomb()], dtype=object))
    document = json.loads((tmp_path / "a/policy.json").read_text())
    document["golden_sha256"] = sha256_hex((tmp_path / "a/golden.npz").read_bytes())
    (tmp_path / "a/policy.json").write_text(json.dumps(document))
    with pytest.raises(ArtefactError, match="unreadable archive"):
        load_artefact(tmp_path / "a")
    assert not touched.exists()


def test_features_against_a_plain_computation() -> None:
    observations = random_observations(3)
    observations[1] = 0
    observations[2, :] = observations[2, 0]
    features = observation_features(observations)
    for i, observation in enumerate(observations):
        newest = [float(v) for v in observation[-1].ravel()]
        mean = sum(newest) / len(newest)
        variance = sum((v - mean) ** 2 for v in newest) / len(newest)
        assert features.brightness[i] == pytest.approx(mean)
        assert features.contrast[i] == pytest.approx(variance**0.5)
    assert features.black.tolist() == [False, True, False]
    assert features.frozen.tolist() == [False, True, True]
