"""The engine of a worker: champion and challenger, their batchers, shadow and canary traffic."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import secrets
from collections.abc import Callable

import numpy as np

from mario.game.console.contract import UInt8Array
from mario.policy.policy import choose, sample_at, softmax
from serving.http.errors import HttpError
from serving.lifecycle import Lifecycle
from serving.metrics import ServingMetrics
from serving.policies.batcher import Batcher, NetworkOutput
from serving.policies.prediction import PredictionInput, PredictionOutput
from serving.policies.sources import PolicySource, Role
from serving.policies.traffic_comparison import TrafficComparison
from serving.policies.version_follower import LoadedVersion, VersionFollower
from serving.sessions.session_table import Session
from serving.settings import ServingSettings

logger = logging.getLogger("mario.serving")

#: Observations that may wait for the shadow; if more would wait, they are dropped.
_SHADOW_QUEUE = 64


class Engine:
    """Chooses actions with the champion, and with the challenger where it is compared."""

    def __init__(
        self,
        settings: ServingSettings,
        source: PolicySource,
        metrics: ServingMetrics,
        comparison: TrafficComparison,
    ) -> None:
        """Connect the parts; nothing runs before :meth:`start`."""
        self.settings = settings
        self.metrics = metrics
        self.comparison = comparison
        self.comparing = settings.shadow_share > 0 or settings.canary_share > 0
        self.champion = self._follower(source, "champion")
        self.champion_batcher = self._batcher("champion", self.champion.require)
        self.challenger = self._follower(source, "challenger")
        self.challenger_batcher = self._batcher("challenger", self.challenger.require)
        self._parts: list[Lifecycle] = [self.champion, self.champion_batcher]
        if self.comparing:
            self._parts += [self.challenger, self.challenger_batcher, comparison]
        self._random = random.Random(secrets.randbits(64))
        self._shadows: set[asyncio.Future[NetworkOutput]] = set()
        metrics.set_reader("queue_observations", self._queued_observations)

    def _follower(self, source: PolicySource, role: Role) -> VersionFollower:
        return VersionFollower(
            source,
            role,
            poll_seconds=self.settings.poll_seconds,
            threads=self.settings.threads,
            on_swap=self.metrics.on_swap,
        )

    def _batcher(self, role: Role, version: Callable[[], LoadedVersion]) -> Batcher:
        inference_seconds = self.metrics.get("inference_seconds", role)
        batch_observations = self.metrics.get("batch_observations", role)

        def on_batch(version: LoadedVersion, count: int, seconds: float) -> None:
            inference_seconds.observe(seconds)
            batch_observations.observe(count)
            if self.comparing:
                self.comparison.add_inference(version.ref, role, count, seconds)

        return Batcher(
            version,
            max_batch_observations=self.settings.max_batch_observations,
            max_queue_observations=self.settings.max_queue_observations,
            on_batch=on_batch,
            # The shadow must not block the event loop.
            inline_observations=self.settings.inline_observations if role == "champion" else 0,
            name=f"inference-{role}",
        )

    def start(self) -> None:
        """Load the versions and start the threads; call it in the event loop."""
        for part in self._parts:
            part.start()
        tune_garbage_collection()

    def stop(self) -> None:
        """Answer the waiting requests and stop the threads."""
        for part in self._parts:
            part.stop()

    @property
    def ready(self) -> bool:
        """Whether a champion is loaded."""
        return self.champion.current is not None

    async def predict(self, inputs: PredictionInput) -> PredictionOutput:
        """Choose actions with the champion; the challenger may answer in the shadow too.

        Raises:
            HttpError: 503, no version is loaded or the queue is full.
        """
        answer = await self.champion_batcher.submit(inputs.observations)
        mode = inputs.mode or answer.version.policy.selection
        probabilities = softmax(answer.logits)
        generator = np.random.default_rng(inputs.seed) if mode == "sample" else None
        output = PredictionOutput(
            answer.version,
            choose(probabilities, mode, generator),
            probabilities,
            answer.values,
            mode,
        )
        self.metrics.record_predictions(answer.version, inputs.observations, output.actions)
        self._maybe_shadow(inputs.observations, output)
        return output

    def role_for_session(self) -> Role:
        """Draw the version that answers a new session."""
        if self.settings.canary_share == 0 or self.challenger.current is None:
            return "champion"
        drawn = self._random.random() < self.settings.canary_share
        return "challenger" if drawn else "champion"

    async def predict_in_session(
        self, session: Session, observation: UInt8Array
    ) -> PredictionOutput:
        """Choose the action for one observation uint8 (4, 84, 84) of a session.

        Raises:
            HttpError: 503, no version is loaded or the queue is full.
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
        self.metrics.get("canary_decisions_total", role).inc()
        if champion is not None and challenger is not None and self.comparing:
            self.comparison.add(champion.ref, challenger.ref, **{f"{role}_decisions": 1})
        output = PredictionOutput(answer.version, actions, probabilities, answer.values, mode)
        if role == "champion":
            self.metrics.record_predictions(answer.version, observation[None], actions)
            self._maybe_shadow(observation[None], output)
        return output

    def _queued_observations(self) -> int:
        batchers = (self.champion_batcher, self.challenger_batcher)
        return sum(batcher.queued_observations for batcher in batchers)

    def _maybe_shadow(self, observations: UInt8Array, output: PredictionOutput) -> None:
        share = self.settings.shadow_share
        challenger = self.challenger.current
        if share and challenger is not None and self._random.random() < share:
            self._shadow(observations, output, challenger)

    def _shadow(
        self, observations: UInt8Array, output: PredictionOutput, challenger: LoadedVersion
    ) -> None:
        champion = output.version
        count = len(observations)
        total = self.metrics.get

        def drop() -> None:
            total("shadow_observations_total", "dropped").inc(count)
            self.comparison.add(champion.ref, challenger.ref, dropped_observations=count)

        def compare(future: asyncio.Future[NetworkOutput]) -> None:
            self._shadows.discard(future)
            if future.cancelled() or future.exception() is not None:
                drop()
                return
            answer = future.result()
            # Compare buttons, as the versions may number actions differently, and the most probable
            # actions, as two samples may differ by chance.
            ours = np.array(champion.policy.artefact.manifest.button_bytes)
            theirs = np.array(answer.version.policy.artefact.manifest.button_bytes)
            same = ours[output.probabilities.argmax(axis=1)] == theirs[answer.logits.argmax(axis=1)]
            agreed = int(same.sum())
            total("shadow_observations_total", "agree").inc(agreed)
            total("shadow_observations_total", "differ").inc(count - agreed)
            self.comparison.add(
                champion.ref,
                answer.version.ref,
                shadow_observations=count,
                agreed_observations=agreed,
            )

        if self.challenger_batcher.queued_observations + count > _SHADOW_QUEUE:
            drop()
            return
        try:
            future = self.challenger_batcher.submit(observations)
        except HttpError:
            drop()
            return
        self._shadows.add(future)
        future.add_done_callback(compare)


def tune_garbage_collection() -> None:
    """Keep garbage collection from delaying requests.

    What is loaded by now lives as long as the process, so it is frozen; the youngest generation is
    collected a hundred times less often, because requests leave no reference cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(70_000, 20, 100)
