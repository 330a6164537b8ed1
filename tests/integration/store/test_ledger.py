"""The promotion ledger and the alpha account, with concurrent threads and processes."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import sqlalchemy as sa

from mario.errors import PromotionConflict, RegistryError
from mario.store import tables
from mario.store.engine import StoreConstraintError, writing
from mario.store.records import Promotion
from mario.store.store import ExperimentStore
from tests.support.store_rows import MODEL, registered, verdict

DIGESTS = {number: f"{number:064x}" for number in range(1, 10)}
RANDOM = "random:80:4"


def _first(store: ExperimentStore) -> Promotion:
    registered(store, 1, DIGESTS[1])
    verdict_id = verdict(store, (1, DIGESTS[1]), (None, RANDOM))
    return store.ledger.promote(MODEL, 1, verdict_id=verdict_id, promoted_by="test")


def _wealth(store: ExperimentStore) -> float:
    return store.ledger.alpha_entries(MODEL)[-1].wealth_after


def _challenger(store: ExperimentStore, number: int, champion: int = 1) -> str:
    registered(store, number, DIGESTS[number])
    return verdict(store, (number, DIGESTS[number]), (champion, DIGESTS[champion]))


def test_the_chain_of_champions(store: ExperimentStore) -> None:
    assert store.ledger.champion(MODEL) is None
    first = _first(store)
    assert (first.sequence, first.reason, first.previous_version) == (1, "first", None)
    verdict_id = _challenger(store, 2)
    second = store.ledger.promote(
        MODEL, 2, verdict_id=verdict_id, promoted_by="ci@host", note="better on 1-1"
    )
    assert (second.sequence, second.reason, second.previous_version) == (2, "gate", 1)
    assert (second.verdict_id, second.promoted_by, second.note) == (
        verdict_id,
        "ci@host",
        "better on 1-1",
    )
    assert store.ledger.history(MODEL) == (first, second)
    assert store.ledger.champion(MODEL) == second
    assert store.ledger.models() == (MODEL,)


def test_two_verdicts_against_one_champion_promote_one(store: ExperimentStore) -> None:
    _first(store)
    verdicts = {number: _challenger(store, number) for number in (2, 3)}
    store.ledger.promote(MODEL, 2, verdict_id=verdicts[2], promoted_by="a")
    with pytest.raises(PromotionConflict, match="v2 is champion now"):
        store.ledger.promote(MODEL, 3, verdict_id=verdicts[3], promoted_by="b")
    with pytest.raises(PromotionConflict):
        store.ledger.promote(MODEL, 2, verdict_id=verdicts[2], promoted_by="a")
    assert [row.version for row in store.ledger.history(MODEL)] == [1, 2]


def test_invalid_promotions_are_refused(store: ExperimentStore) -> None:
    registered(store, 1, DIGESTS[1])
    with pytest.raises(RegistryError, match="not registered"):
        store.ledger.promote(MODEL, 7, verdict_id=None, promoted_by="test")
    store.versions.begin(MODEL, "half", digest=DIGESTS[8])
    first = verdict(store, (1, DIGESTS[1]), (None, RANDOM))
    registered(store, 2, DIGESTS[2])
    with pytest.raises(RegistryError, match="gate this version"):
        store.ledger.promote(MODEL, 2, verdict_id=first, promoted_by="test")
    no = verdict(store, (2, DIGESTS[2]), (None, RANDOM), decision="reject")
    with pytest.raises(RegistryError, match="says reject"):
        store.ledger.promote(MODEL, 2, verdict_id=no, promoted_by="test")
    with pytest.raises(RegistryError, match="expected a stored one"):
        store.ledger.promote(MODEL, 1, verdict_id="nothing", promoted_by="test")
    store.ledger.promote(MODEL, 1, verdict_id=first, promoted_by="test")
    with pytest.raises(RegistryError, match="no verdict"):
        store.ledger.promote(MODEL, 2, verdict_id=None, promoted_by="test")
    assert len(store.ledger.history(MODEL)) == 1


def test_the_database_enforces_one_chain(store: ExperimentStore) -> None:
    """Plain SQL cannot insert a second champion, a gap or a false verdict."""
    _first(store)
    good = _challenger(store, 2)
    bad = verdict(store, (2, DIGESTS[2]), (1, DIGESTS[1]), decision="inconclusive")
    row = {
        "model": MODEL, "sequence": 2, "version": 2, "digest": DIGESTS[2], "previous_sequence": 1,
        "previous_version": 1, "reason": "gate", "verdict_id": good,
        "verdict_decision": "promote", "promoted_by": "test",
        "promoted_at": store.ledger.history(MODEL)[0].promoted_at,
    }  # fmt: skip
    for change in (
        {"sequence": 1, "previous_sequence": None, "previous_version": None, "reason": "first"},
        {"sequence": 3},
        {"sequence": 3, "previous_sequence": 2},
        {"previous_version": 2},
        {"reason": "gate", "verdict_id": None, "verdict_decision": None},
        {"verdict_id": bad},
        {"verdict_id": bad, "verdict_decision": "inconclusive"},
        {"version": 9},
        {"digest": DIGESTS[1]},
        {"version": 1, "digest": DIGESTS[1]},
        {"reason": "whim"},
    ):
        with pytest.raises(StoreConstraintError), writing(store.engine) as connection:
            connection.execute(sa.insert(tables.PromotionRow).values(**(row | change)))
    with writing(store.engine) as connection:
        connection.execute(sa.insert(tables.PromotionRow).values(**row))


def test_two_threads_promote_at_once(database_url: str) -> None:
    with ExperimentStore.open(database_url) as store:
        _first(store)
        champion = 1
        for numbers in ((2, 3), (4, 5), (6, 7)):
            verdicts = {number: _challenger(store, number, champion) for number in numbers}
            barrier = Barrier(2)

            def promote(number: int, ids: dict[int, str], together: Barrier) -> Promotion | str:
                with ExperimentStore(database_url) as own:
                    together.wait(60)
                    try:
                        return own.ledger.promote(
                            MODEL, number, verdict_id=ids[number], promoted_by=f"p{number}"
                        )
                    except PromotionConflict as error:
                        return str(error)

            with ThreadPoolExecutor(2) as pool:
                results = list(pool.map(promote, numbers, [verdicts] * 2, [barrier] * 2))
            (winner,) = [result for result in results if isinstance(result, Promotion)]
            (loser,) = [result for result in results if isinstance(result, str)]
            assert f"v{winner.version} is champion now" in loser
            champion = winner.version
        history = store.ledger.history(MODEL)
        assert [row.sequence for row in history] == [1, 2, 3, 4]
        assert history[-1].version == champion


_PROMOTER = """
import sys, time
from mario.errors import PromotionConflict
from mario.store.store import ExperimentStore
url, number, verdict_id = sys.argv[1], int(sys.argv[2]), sys.argv[3]
with ExperimentStore.open(url) as store:
    store.ledger.champion("mario-1-1")
    print("ready", flush=True)
    at = float(sys.stdin.readline())
    time.sleep(max(0.0, at - time.time()))
    try:
        store.ledger.promote("mario-1-1", number, verdict_id=verdict_id, promoted_by="process")
        print("won")
    except PromotionConflict as error:
        print("lost:", error)
"""


def test_two_processes_promote_at_once(database_url: str) -> None:
    import time

    with ExperimentStore.open(database_url) as store:
        _first(store)
        verdicts = {number: _challenger(store, number) for number in (2, 3)}
        processes = [
            subprocess.Popen(
                [sys.executable, "-c", _PROMOTER, database_url, str(number), verdict_id],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for number, verdict_id in verdicts.items()
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        at = f"{time.time() + 0.2}\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(at)
            process.stdin.flush()
        outputs = sorted(process.communicate(timeout=240)[0].strip() for process in processes)
        assert outputs[0].startswith("lost:")
        assert outputs[1] == "won"
        champion = store.ledger.champion(MODEL)
        assert champion is not None
        assert f"v{champion.version} is champion now" in outputs[0]
        assert len(store.ledger.history(MODEL)) == 2


def test_rollback_is_a_promotion_of_a_former_champion(store: ExperimentStore) -> None:
    with pytest.raises(RegistryError, match="has no champion"):
        store.ledger.rollback(MODEL, promoted_by="test")
    _first(store)
    with pytest.raises(RegistryError, match="no champion before it"):
        store.ledger.rollback(MODEL, promoted_by="test")
    for number, champion in ((2, 1), (3, 2)):
        store.ledger.promote(
            MODEL, number, verdict_id=_challenger(store, number, champion), promoted_by="test"
        )
    back = store.ledger.rollback(MODEL, promoted_by="oncall", note="p99 doubled")
    assert (back.version, back.previous_version, back.reason) == (2, 3, "rollback")
    assert back.verdict_id is None
    # Not to version 3, which was rolled back, but to the one before.
    assert store.ledger.rollback(MODEL, promoted_by="oncall").version == 1
    with pytest.raises(RegistryError, match="no champion before it"):
        store.ledger.rollback(MODEL, promoted_by="oncall")
    assert store.ledger.rollback(MODEL, 3, promoted_by="oncall").version == 3
    with pytest.raises(RegistryError, match="expected a former champion"):
        store.ledger.rollback(MODEL, 3, promoted_by="oncall")
    registered(store, 4, DIGESTS[4])
    with pytest.raises(RegistryError, match="expected a former champion"):
        store.ledger.rollback(MODEL, 4, promoted_by="oncall")
    with pytest.raises(PromotionConflict, match="v3 is champion now"):
        store.ledger.rollback(MODEL, 1, promoted_by="oncall", expected_champion=2)
    assert [row.version for row in store.ledger.history(MODEL)] == [1, 2, 3, 2, 1, 3]


def test_alpha_is_paid_once_and_never_overdrawn(store: ExperimentStore) -> None:
    assert store.ledger.alpha_entries(MODEL) == ()
    with pytest.raises(RegistryError, match="wealth 0"):
        store.ledger.spend_alpha(MODEL, DIGESTS[1], 0.01)
    store.ledger.grant_alpha(MODEL, 0.05)
    assert store.ledger.grant_alpha(MODEL, 0.9).amount == 0.05
    paid = store.ledger.spend_alpha(MODEL, DIGESTS[1], 0.02)
    assert store.ledger.spend_alpha(MODEL, DIGESTS[1], 0.01) == paid
    with pytest.raises(RegistryError, match="at most"):
        store.ledger.spend_alpha(MODEL, DIGESTS[2], 0.04)
    assert _wealth(store) == pytest.approx(0.03)


def test_a_promotion_refills_the_account_and_a_verdict_alone_does_not(
    store: ExperimentStore,
) -> None:
    for number in (1, 2):
        registered(store, number, DIGESTS[number])
    store.ledger.grant_alpha(MODEL, 0.05)
    store.ledger.spend_alpha(MODEL, DIGESTS[1], 0.02)
    won = verdict(store, (1, DIGESTS[1]), (None, RANDOM))
    # Two verdicts `promote` without a promotion: the stream of tests continues.
    store.ledger.spend_alpha(MODEL, DIGESTS[2], 0.01)
    verdict(store, (2, DIGESTS[2]), (None, RANDOM))
    assert _wealth(store) == pytest.approx(0.02)
    row = store.ledger.promote(MODEL, 1, verdict_id=won, promoted_by="test")
    assert row.alpha_wealth_before == pytest.approx(0.02)
    assert row.alpha_wealth_after == pytest.approx(0.05)
    with pytest.raises(PromotionConflict):
        store.ledger.promote(MODEL, 1, verdict_id=won, promoted_by="test")
    kinds = [entry.kind for entry in store.ledger.alpha_entries(MODEL)]
    assert kinds == ["grant", "spend", "spend", "earn"]  # the refused one paid nothing
    assert _wealth(store) == pytest.approx(0.05)


def test_concurrent_payments_never_overdraw_the_account(database_url: str) -> None:
    with ExperimentStore.open(database_url) as store:
        store.ledger.grant_alpha(MODEL, 0.05)

        def spend(number: int) -> bool:
            with ExperimentStore(database_url) as own:
                try:
                    own.ledger.spend_alpha(MODEL, DIGESTS[number], 0.02)
                except RegistryError:
                    return False
                return True

        with ThreadPoolExecutor(6) as pool:
            paid = list(pool.map(spend, range(1, 7)))
        assert sum(paid) == 2
        assert _wealth(store) == pytest.approx(0.01)
