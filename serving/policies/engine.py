"""What one worker holds: the versions that answer, the batchers and the instruments."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import secrets
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mario.policy.manifest import ActionSelection, Float32Array, Uint8Array
from mario.policy.policy import choose, sample_at, softmax
from serving.api.request_parsing import Ask
from serving.http.errors import Refusal
from serving.instruments import Instruments
from serving.policies.batcher import Answer, Batcher
from serving.policies.comparison import Comparer
from serving.policies.sources import PolicySource, Role
from serving.policies.versions import LoadedVersion, VersionFollower
from serving.sessions.session_store import Session
from serving.settings import ServingSettings

logger = logging.getLogger("mario.serving")

#: Observations that may wait for the shadow; beyond that it is too slow, and they are dropped.
_SHADOW_QUEUE = 64


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer to one request.

    Attributes:
        version: the version that answered all of it.
        actions: int64 (N,).
        probabilities: float32 (N, A).
        values: float32 (N,).
        mode: how the actions were chosen.
    """

    version: LoadedVersion
    actions: npt.NDArray[np.int64]
    probabilities: Float32Array
    values: Float32Array
    mode: ActionSelection


class Engine:
    """Everything behind the endpoints that decides."""

    def __init__(
        self,
        settings: ServingSettings,
        source: PolicySource,
        instruments: Instruments,
        comparer: Comparer,
    ) -> None:
        """Wire the parts together; nothing runs before :meth:`start`."""
        self.settings = settings
        self.instruments = instruments
        self.comparer = comparer
        self.compares = settings.shadow_share > 0 or settings.canary_share > 0
        self.champion = self._follower(source, "champion")
        self.champion_batcher = self._batcher("champion", self.champion.require)
        self.challenger = self._follower(source, "challenger")
        self.challenger_batcher = self._batcher("challenger", self.challenger.require)
        self._random = random.Random(secrets.randbits(64))
        self._shadows: set[asyncio.Future[Answer]] = set()
        instruments.read("queue_observations", self._queued_observations)

    def _follower(self, source: PolicySource, role: Role) -> VersionFollower:
        return VersionFollower(
            source,
            role,
            poll_seconds=self.settings.poll_seconds,
            threads=self.settings.threads,
            on_swap=self.instruments.on_swap,
        )

    def _batcher(self, role: Role, version: Callable[[], LoadedVersion]) -> Batcher:
        inference_seconds = self.instruments.get("inference_seconds", role)
        batch_observations = self.instruments.get("batch_observations", role)

        def on_batch(version: LoadedVersion, count: int, seconds: float) -> None:
            inference_seconds.observe(seconds)
            batch_observations.observe(count)
            if self.compares:
                self.comparer.took(version.ref, role, count, seconds)

        return Batcher(
            version,
            max_batch_observations=self.settings.max_batch_observations,
            max_queue_observations=self.settings.max_queue_observations,
            on_batch=on_batch,
            # The shadow must not hold up the loop that answers.
            inline_observations=self.settings.inline_observations if role == "champion" else 0,
            name=f"inference-{role}",
        )

    def start(self) -> None:
        """Load the versions, start the threads; call it in the event loop."""
        self.champion.start()
        self.champion_batcher.start()
        if self.compares:
            self.challenger.start()
            self.challenger_batcher.start()
            self.comparer.start()
        quiet_the_collector()

    def stop(self) -> None:
        """Answer what waits and stop the threads."""
        self.champion.stop()
        self.champion_batcher.stop()
        if self.compares:
            self.challenger.stop()
            self.challenger_batcher.stop()
            self.comparer.stop()

    @property
    def ready(self) -> bool:
        """Whether there is a version to answer with."""
        return self.champion.current is not None

    async def decide(self, ask: Ask) -> Decision:
        """Answer observations with one version, and let the challenger answer unseen.

        Raises:
            Refusal: 503, there is no version or the queue is full.
        """
        answer = await self.champion_batcher.submit(ask.observations)
        mode = ask.mode or answer.version.policy.selection
        probabilities = softmax(answer.logits)
        generator = np.random.default_rng(ask.seed) if mode == "sample" else None
        decision = Decision(
            answer.version,
            choose(probabilities, mode, generator),
            probabilities,
            answer.values,
            mode,
        )
        self.instruments.on_decisions(answer.version, ask.observations, decision.actions)
        self._maybe_shadow(ask.observations, decision)
        return decision

    def role_for_session(self) -> Role:
        """Draw which version a new session is answered by."""
        if self.settings.canary_share == 0 or self.challenger.current is None:
            return "champion"
        drawn = self._random.random() < self.settings.canary_share
        return "challenger" if drawn else "champion"

    async def decide_in_session(self, session: Session, observation: Uint8Array) -> Decision:
        """Answer one observation uint8 (4, 84, 84) of a session.

        Raises:
            Refusal: 503, there is no version or the queue is full.
        """
        champion, challenger = self.champion.current, self.challenger.current
        role: Role = "challenger" if session.role == "challenger" and challenger else "champion"
        batcher = self.challenger_batcher if role == "challenger" else self.champion_batcher
        answer = await batcher.submit(observation[None])
        mode = session.mode or answer.version.policy.selection
        probabilities = softmax(answer.logits)
        if mode == "sample":
            actions = sample_at(probabilities, np.array([session.generator.uniform()]))
        else:
            actions = choose(probabilities, "greedy", None)
        self.instruments.get("canary_decisions_total", role).inc()
        if champion is not None and challenger is not None and self.compares:
            self.comparer.decided(champion.ref, challenger.ref, role)
        decision = Decision(answer.version, actions, probabilities, answer.values, mode)
        if role == "champion":
            self.instruments.on_decisions(answer.version, observation[None], actions)
            self._maybe_shadow(observation[None], decision)
        return decision

    def _queued_observations(self) -> int:
        batchers = (self.champion_batcher, self.challenger_batcher)
        return sum(batcher.queued_observations for batcher in batchers)

    def _maybe_shadow(self, observations: Uint8Array, decision: Decision) -> None:
        share = self.settings.shadow_share
        challenger = self.challenger.current
        if share and challenger is not None and self._random.random() < share:
            self._shadow(observations, decision, challenger)

    def _shadow(
        self, observations: Uint8Array, decision: Decision, challenger: LoadedVersion
    ) -> None:
        champion = decision.version
        count = len(observations)
        total = self.instruments.get

        def drop() -> None:
            total("shadow_observations_total", "dropped").inc(count)
            self.comparer.dropped(champion.ref, challenger.ref, count)

        def compare(future: asyncio.Future[Answer]) -> None:
            self._shadows.discard(future)
            if future.cancelled() or future.exception() is not None:
                drop()
                return
            answer = future.result()
            # The same buttons, whatever their place in the list of actions; the most probable
            # action of both, so that the luck of a draw is not taken for a difference.
            ours = np.array(champion.policy.artefact.manifest.button_bytes)
            theirs = np.array(answer.version.policy.artefact.manifest.button_bytes)
            same = (
                ours[decision.probabilities.argmax(axis=1)] == theirs[answer.logits.argmax(axis=1)]
            )
            agreed = int(same.sum())
            total("shadow_observations_total", "agree").inc(agreed)
            total("shadow_observations_total", "differ").inc(count - agreed)
            self.comparer.shadow(champion.ref, answer.version.ref, count, agreed)

        if self.challenger_batcher.queued_observations + count > _SHADOW_QUEUE:
            drop()
            return
        try:
            future = self.challenger_batcher.submit(observations)
        except Refusal:
            drop()
            return
        self._shadows.add(future)
        future.add_done_callback(compare)


def quiet_the_collector() -> None:
    """Keep garbage collection from stopping requests.

    What is loaded by now stays for good: it is moved out of the collector's sight, and the
    youngest generation is looked at a hundred times less often. Requests leave no cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(70_000, 20, 100)
