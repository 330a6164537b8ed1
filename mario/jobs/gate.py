"""Gate: challenger and champion play the same confirmation units until the test decides."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice

from mario.config.evaluation import ENVIRONMENTS
from mario.config.game import ConsoleName
from mario.config.gate import GATE, TIMED_GUARDS, GateRule
from mario.config.identities import identity_of_test
from mario.config.levels import model_name, task_of_model
from mario.errors import EvaluationError
from mario.evaluation.alpha_budget import AlphaBudget, replay
from mario.evaluation.gate import SequentialGate, decide
from mario.evaluation.records import PairedUnit, pair_records
from mario.evaluation.seeds import SeedFamily, Unit, schedule
from mario.evaluation.verdict import Verdict
from mario.jobs.context import JobContext
from mario.jobs.engines.contract import EvaluationEngine
from mario.jobs.engines.local import LOCAL
from mario.jobs.evaluate import evaluate_stored, evaluation_key
from mario.jobs.network_measurements import NetworkMeasurements, measured_before
from mario.jobs.policies import LoadedPolicy, load_policy, random_policy
from mario.store.records import AlphaEntry, NewVerdict
from mario.store.store import ExperimentStore
from mario.store.vocabulary import AlphaKind

#: A round has at most this fraction (one in …) of the units played before, or what fills the games.
_PLAYED_AHEAD = 8

OnUnits = Callable[[int, int, float], None]


@dataclass(frozen=True)
class GateOutcome:
    """A stored verdict.

    Attributes:
        verdict_id: its id in the store.
        verdict: the verdict, with every number.
        pairs: the pairs in order of play; those after the stop are not counted.
        challenger: the version under test.
        champion: the policy that it was tested against.
    """

    verdict_id: str
    verdict: Verdict
    pairs: tuple[PairedUnit, ...]
    challenger: LoadedPolicy
    champion: LoadedPolicy


def load_challenger(reference: str, task: str, context: JobContext) -> LoadedPolicy:
    """Load the version under test.

    Its answers are not compared with the recorded ones here: a guard of the gate does that and
    puts the difference into the verdict.

    Raises:
        EvaluationError: it is not a registered version.
        RegistryError, ArtefactError: it cannot be loaded.
    """
    challenger = load_policy(reference, task, context, check_golden=False)
    if challenger.version is None:
        raise EvaluationError(
            f"got {reference} as challenger, which is no registered version; expected a version's "
            "number or `challenger`: a policy that is not registered can be neither promoted nor "
            "tested again, and its test would spend the task's α all the same; register it with "
            "`mario pipeline`, or play it with `mario evaluate`"
        )
    return challenger


def champion_for(challenger: LoadedPolicy, task: str, context: JobContext) -> LoadedPolicy:
    """Load the current champion of the ledger; without one, the random policy."""
    current = context.store.ledger.champion(model_name(task))
    if current is None:
        return random_policy(challenger.policy.actions, challenger.policy.frame_skip)
    return load_policy(str(current.version), task, context)


def judge(
    challenger: LoadedPolicy,
    champion: LoadedPolicy,
    rule: GateRule,
    task: str,
    levels: tuple[str, ...],
    store: ExperimentStore,
    *,
    environments: int = ENVIRONMENTS,
    console: ConsoleName = "native",
    engine: EvaluationEngine = LOCAL,
    on_units: OnUnits | None = None,
) -> GateOutcome:
    """Play confirmation units with both policies until the gate decides, and store the verdict.

    The seeds are derived from the test's identity (challenger, champion, levels, rule): the same
    test always plays the same units, and an interrupted one resumes with its stored episodes. It
    spends α from the task's budget once. Another champion, rule or set of levels is another test:
    it spends α again, and plays units on which nobody has seen the challenger (docs/adr/0005).

    Args:
        challenger: the version under test.
        champion: the policy that it must beat.
        rule: what must be shown; its alpha is the level of the whole stream of challengers.
        task: names the registered model.
        levels: the levels of the task.
        store: keeps episodes and verdict.
        environments: units that one process plays at once.
        console: the console.
        engine: where units are played; changes no number.
        on_units: called with (units counted, cap, p-value so far) after every round.

    Raises:
        EvaluationError: both are the same policy, or the rule's alpha is not the task's.
        StoreError: the store is unreachable.
    """
    if challenger.digest == champion.digest:
        raise EvaluationError(
            f"got {challenger.label} as challenger and as champion; expected two policies; a "
            "champion is not tested against itself"
        )
    model = model_name(task)
    SequentialGate(rule, levels)  # refuses an impossible rule before α is spent
    test_key = identity_of_test(challenger.digest, champion.digest, levels, rule)
    rule = rule.with_alpha(_spend_alpha(store, model, test_key, rule.alpha))
    played = play_gate(
        challenger,
        champion,
        rule,
        levels,
        store,
        test_key=test_key,
        environments=environments,
        console=console,
        engine=engine,
        on_units=on_units,
    )
    verdict = decide(
        played.pairs,
        rule,
        levels,
        networks=NetworkMeasurements.of(challenger, champion),
        # A second measurement would be a second chance to pass.
        measured=measured_before(store, model, challenger, champion, test_key),
    )
    stored = store.evaluations.record_verdict(
        NewVerdict(
            model=model,
            challenger_digest=challenger.digest,
            challenger_evaluation_id=played.challenger_evaluation_id,
            champion_digest=champion.digest,
            champion_evaluation_id=played.champion_evaluation_id,
            gate=GATE,
            decision=verdict.decision,
            detail=verdict.to_dict(),
            challenger_version=challenger.version,
            champion_version=champion.version,
        )
    )
    return GateOutcome(stored.id, verdict, played.pairs, challenger, champion)


@dataclass(frozen=True)
class PlayedGate:
    """The units that a test played.

    Attributes:
        pairs: the pairs, in order of play.
        challenger_evaluation_id: the challenger's evaluation in the store.
        champion_evaluation_id: the champion's evaluation in the store.
    """

    pairs: tuple[PairedUnit, ...]
    challenger_evaluation_id: str
    champion_evaluation_id: str


def play_gate(
    challenger: LoadedPolicy,
    champion: LoadedPolicy,
    rule: GateRule,
    levels: tuple[str, ...],
    store: ExperimentStore,
    *,
    test_key: str,
    environments: int = ENVIRONMENTS,
    console: ConsoleName = "native",
    engine: EvaluationEngine = LOCAL,
    on_units: OnUnits | None = None,
) -> PlayedGate:
    """Play the test's confirmation units until it has decided; stored episodes are reused."""
    gate = SequentialGate(rule, levels)
    blocks = schedule(levels, SeedFamily.CONFIRMATION, key=test_key, units=gate.cap)
    keys = [
        (loaded, evaluation_key(loaded, SeedFamily.CONFIRMATION, test_key, levels))
        for loaded in (challenger, champion)
    ]
    pairs: list[PairedUnit] = []
    evaluation_ids = ("", "")
    for units in _rounds(blocks, engine.at_once(environments)):
        sides = [
            evaluate_stored(
                loaded,
                units,
                key,
                store,
                environments=environments,
                console=console,
                planned_units=gate.cap,
                finish=False,
                engine=engine,
            )
            for loaded, key in keys
        ]
        evaluation_ids = (sides[0].evaluation_id, sides[1].evaluation_id)
        fresh = pair_records(sides[0].records, sides[1].records, units)
        pairs.extend(fresh)
        gate.feed(fresh)
        if on_units is not None:
            on_units(gate.state.units, gate.cap, math.exp(-gate.log_e_better_max))
        if gate.state.done:
            break
    for evaluation_id in evaluation_ids:
        store.evaluations.finish(evaluation_id)
    return PlayedGate(tuple(pairs), *evaluation_ids)


def repeat_verdict(
    verdict_id: str, context: JobContext, *, console: ConsoleName = "native"
) -> tuple[bool, Verdict]:
    """Replay the units of a stored verdict without the store's records, and decide again.

    This spends no α and stores nothing.

    Args:
        verdict_id: a stored verdict.
        context: store and registry.
        console: the console.

    Returns:
        Whether every number is the same, measured times aside, and the new verdict.

    Raises:
        EvaluationError: the challenger was no registered version.
        StoreError: there is no such verdict.
        RegistryError, ArtefactError: a policy cannot be loaded any more.
    """
    stored = context.store.evaluations.verdict(verdict_id)
    test_key = context.store.evaluations.test_key(stored)
    if stored.challenger_version is None:
        raise EvaluationError(
            f"got the verdict {verdict_id} on {stored.challenger_digest[:12]}, which was no "
            "registered version; expected one, whose artefact can be loaded again; register it and "
            "test it with `mario gate`"
        )
    before = Verdict.from_dict(dict(stored.detail))
    task = task_of_model(stored.model)
    # A guard checks the answers of the network, as in the first test.
    challenger = load_policy(str(stored.challenger_version), task, context, check_golden=False)
    champion = (
        random_policy(challenger.policy.actions, challenger.policy.frame_skip)
        if stored.champion_version is None
        else load_policy(str(stored.champion_version), task, context, check_golden=False)
    )
    with context.scratch() as scratch:
        played = play_gate(
            challenger,
            champion,
            before.rule,
            before.levels,
            scratch.store,
            test_key=test_key,
            console=console,
        )
    networks = NetworkMeasurements.of(challenger, champion)
    again = decide(played.pairs, before.rule, before.levels, networks=networks)
    return _without_times(again) == _without_times(before), again


def _without_times(verdict: Verdict) -> dict[str, object]:
    """The numbers of a verdict without measured times and units played in advance."""
    values = verdict.to_dict()
    values.pop("units_given")
    values["guards"] = [
        guard if guard["name"] not in TIMED_GUARDS else guard["passed"]
        for guard in (asdict(guard) for guard in verdict.guards)
    ]
    return values


def _spend_alpha(store: ExperimentStore, model: str, test_key: str, declared: float) -> float:
    """Spend the level of this test from the model's α budget, once for each test.

    The rule's alpha is the level of the whole stream of challengers
    (`mario.evaluation.alpha_budget`).
    """
    granted = store.ledger.grant_alpha(model, declared).amount
    if abs(granted - declared) > 1e-12:
        raise EvaluationError(
            f"got alpha={declared:g} in the rule; expected {granted:g}, the budget of {model}, "
            "which all its challengers share; set gate.alpha to that"
        )
    return store.ledger.spend_alpha(
        model, test_key, lambda entries: _budget(entries).next_alpha
    ).amount


def _budget(entries: Sequence[AlphaEntry]) -> AlphaBudget:
    """A model's α budget after the ledger's entries; the grant has the declared level."""
    grant, *later = entries
    return replay(grant.amount, (entry.kind == AlphaKind.EARN for entry in later))


def _rounds(blocks: Iterator[tuple[Unit, ...]], environments: int) -> Iterator[list[Unit]]:
    """Group blocks so that each round keeps about `environments` games busy.

    A round ends with its longest episode, while other games wait, and the store is read anew for
    each. A long test therefore has longer rounds: up to an eighth of the units played before, which
    is the most that can be wasted when it stops.
    """
    first = next(blocks, None)
    if first is None:
        return
    size = max(1, environments // len(first))
    group = [*first, *(unit for block in islice(blocks, size - 1) for unit in block)]
    played = 0
    while group:
        yield group
        played += len(group)
        blocks_now = max(size, played // (_PLAYED_AHEAD * len(first)))
        group = [unit for block in islice(blocks, blocks_now) for unit in block]


def verdict_lines(outcome: GateOutcome) -> list[str]:
    """Describe a verdict in a few lines."""
    verdict = outcome.verdict
    ours, theirs = verdict.challenger, verdict.champion
    return [
        f"{verdict.decision.upper()}: {outcome.challenger.label} against {outcome.champion.label} "
        f"over {verdict.units} units, p = {verdict.p_value:.2g} "
        f"(fixed-sample permutation p = {verdict.p_permutation:.2g})",
        f"furthest x {ours.mean_furthest_px:.0f} px against {theirs.mean_furthest_px:.0f} px "
        f"({ours.mean_furthest_px / max(theirs.mean_furthest_px, 1.0):.2f} times as far); cleared "
        f"{ours.clears} against {theirs.clears}; score {ours.mean_score:.3f} against "
        f"{theirs.mean_score:.3f}",
        *(f"- {reason}" for reason in verdict.reasons),
    ]
