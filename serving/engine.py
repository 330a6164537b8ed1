"""What one worker holds: the versions that answer, the batchers and the instruments."""

from __future__ import annotations

import gc
import logging
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from mario.policy.manifest import ActionSelection, Float32Array
from mario.policy.policy import choose, softmax
from serving.batcher import Batcher
from serving.instruments import Instruments
from serving.parse import Ask
from serving.settings import ServingSettings
from serving.sources import PolicySource
from serving.versions import LoadedVersion, VersionFollower

logger = logging.getLogger("mario.serving")


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
        self, settings: ServingSettings, source: PolicySource, instruments: Instruments
    ) -> None:
        """Wire the parts together; nothing runs before :meth:`start`."""
        self.settings = settings
        self.instruments = instruments
        self.champion = VersionFollower(
            source,
            "champion",
            poll_seconds=settings.poll_seconds,
            threads=settings.threads,
            on_swap=instruments.on_swap,
        )
        inference_seconds = instruments.get("inference_seconds", "champion")
        batch_observations = instruments.get("batch_observations", "champion")

        def on_batch(count: int, seconds: float) -> None:
            inference_seconds.observe(seconds)
            batch_observations.observe(count)

        self.batcher = Batcher(
            self.champion.require,
            max_batch_observations=settings.max_batch_observations,
            max_queue_observations=settings.max_queue_observations,
            on_batch=on_batch,
        )

    def start(self) -> None:
        """Load the champion, start the threads; call it in the event loop."""
        self.champion.start()
        self.batcher.start()
        quiet_the_collector()

    def stop(self) -> None:
        """Answer what waits and stop the threads."""
        self.champion.stop()
        self.batcher.stop()

    @property
    def ready(self) -> bool:
        """Whether there is a version to answer with."""
        return self.champion.current is not None

    async def decide(self, ask: Ask) -> Decision:
        """Answer observations with one version.

        Raises:
            Refusal: 503, there is no version or the queue is full.
        """
        answer = await self.batcher.submit(ask.observations)
        version = answer.version
        mode = ask.mode or version.policy.selection
        probabilities = softmax(answer.logits)
        generator = np.random.default_rng(ask.seed) if mode == "sample" else None
        actions = choose(probabilities, mode, generator)
        self.instruments.on_decisions(version, ask.observations, actions)
        return Decision(version, actions, probabilities, answer.values, mode)


def quiet_the_collector() -> None:
    """Keep garbage collection from stopping requests.

    What is loaded by now stays for good: it is moved out of the collector's sight, and the
    youngest generation is looked at a hundred times less often. Requests leave no cycles behind.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(70_000, 20, 100)
