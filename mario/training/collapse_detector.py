"""The collapse detector: it reads one sample per update and gives a state with reasons. Pure.

A sample describes one network update and the episodes before it, over *every* environment. Each
rule judges one signal: `ok`, `suspicious` or `bad`. A rule that is bad for as many updates as its
patience makes the state `collapsed` (or `diverged`, where numbers grew without bound): one bad
sample is chance, several in a row are not.

The thresholds were chosen on the tuning half of the traces of `benchmarks/collapse.py` and judged
on the other half; `docs/reference/collapse-rules.md` gives the purpose and the source of each rule.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from statistics import median
from typing import Any, Literal

from mario.config.run_states import HealthState

RuleVerdict = Literal["ok", "suspicious", "bad"]


@dataclass(frozen=True)
class HealthSample:
    """The signals of one update. None: the algorithm has no such signal, or not yet.

    Attributes:
        update: number of the update in the run, from 1.
        total_steps: agent steps of the run so far.
        progress: share of the run that is done, 0 … 1.
        mean_return: shaped return, mean over the last 100 episodes of all environments.
        mean_furthest_px: furthest x in px, likewise.
        recent_return: shaped return, mean over the last 20 episodes of all environments.
        recent_furthest_px: furthest x in px, likewise.
        environments_furthest_px: for each environment the mean furthest x of its last two
            episodes, NaN before its first.
        return_progress_correlation: Spearman correlation of return and furthest x over the last
            20 episodes, −1 … 1.
        episodes_finished: episodes that the environments finished in the run.
        episodes_seen: episodes that were recorded; fewer means that some environment is unseen.
        entropy_ratio: entropy of the action distribution over its maximum, 0 … 1.
        dominant_action_share: share of the most frequent action in the rollout, 0 … 1; of DQN among
            those that its network chose, None while over half of its actions are random.
        approx_kl: Kullback-Leibler divergence of the update (Schulman's k3 estimator), ≥ 0.
            None for updates of a single minibatch, which is measured before it changes anything.
        clip_fraction: share of samples whose probability ratio was clipped, 0 … 1; None likewise.
        explained_variance: of the returns by the value network, ≤ 1.
        value_loss: mean squared error of the value network (DQN: the temporal difference loss).
        gradient_norm: L2 norm before clipping, mean over the update.
        non_finite: whether a loss, gradient or weight was infinite or not a number.
        dormant_share: share of units that hardly ever fire (Sokar et al. 2023, τ = 0.025) in the
            layer that has most of them, 0 … 1.
        q_max: largest Q-value on recent observations (DQN).
        q_bound: largest return that is possible, from the rewards seen (DQN); None or 0 before
            the first.
        frozen_observation_share: share of observations whose four frames are equal, 0 … 1.
        seconds_since_update: how old the update before this one was, where it was older than
            `HealthRules.stale_seconds`; None while updates arrive (so that samples of two equal
            runs are equal).
    """

    update: int
    total_steps: int
    progress: float = 0.0
    mean_return: float | None = None
    mean_furthest_px: float | None = None
    recent_return: float | None = None
    recent_furthest_px: float | None = None
    environments_furthest_px: tuple[float, ...] = ()
    return_progress_correlation: float | None = None
    episodes_finished: int = 0
    episodes_seen: int = 0
    entropy_ratio: float | None = None
    dominant_action_share: float | None = None
    approx_kl: float | None = None
    clip_fraction: float | None = None
    explained_variance: float | None = None
    value_loss: float | None = None
    gradient_norm: float | None = None
    non_finite: bool = False
    dormant_share: float | None = None
    q_max: float | None = None
    q_bound: float | None = None
    frozen_observation_share: float | None = None
    seconds_since_update: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """All signals as JSON types (non-finite floats among them)."""
        values = asdict(self)
        values["environments_furthest_px"] = list(self.environments_furthest_px)
        return values

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> HealthSample:
        """Read what :meth:`to_dict` wrote; unknown keys are ignored."""
        known = {item.name for item in fields(cls)}
        taken = {name: value for name, value in values.items() if name in known}
        taken["environments_furthest_px"] = tuple(taken.get("environments_furthest_px", ()))
        return cls(**taken)


@dataclass(frozen=True)
class Health:
    """The detector's judgement after a sample.

    Attributes:
        state: the run's state.
        reasons: one phrase for each rule that is not `ok`, the gravest first.
        changed: whether the state differs from the one that was reported before.
        rules: names of the rules behind `reasons`.
    """

    state: HealthState
    reasons: tuple[str, ...] = ()
    changed: bool = False
    rules: tuple[str, ...] = ()


@dataclass(frozen=True)
class HealthRules:
    """Every threshold of the detector; `docs/reference/collapse-rules.md` gives each rule's source.

    Attributes:
        warmup_updates: updates before a rule that compares with the past applies.
        patience: updates in a row that a rule must be bad, unless another patience is listed.
        short_patience: for signals that no healthy run shows even twice.
        drop_share: bad when furthest x of the last 20 episodes is below this share of the best
            mean of 100.
        drop_warning_share: suspicious below this share.
        drop_patience: updates in a row.
        environment_drop_share: an environment is down below this share of the best mean.
        environments_down_share: bad when at least this share of the environments is down.
        entropy_low: suspicious below, of the maximum entropy.
        entropy_collapsed: bad below.
        dominant_share: bad when one action is chosen more often.
        kl_high: bad above.
        kl_factor: bad above this many times the running median, where that is above `kl_usual`.
        kl_usual: KL divergences below this are never too high.
        kl_dead: bad below, with a clip fraction of 0: the policy no longer changes. Only
            suspicious in the end of the run, where a learning rate schedule may end at 0.
        kl_dead_patience: updates in a row.
        schedule_end: share of the run from which on an unchanging policy is no surprise.
        clip_fraction_high: bad above.
        explained_variance_low: bad below: the value network is far worse than a constant.
        value_loss_factor: bad above this many times the running median.
        gradient_factor: bad above this many times the running median.
        dormant_share: bad above, in one layer.
        frozen_share: bad above.
        correlation_low: bad below: reward is paid for something else than progress.
        stale_seconds: warning when the last update is older.
    """

    warmup_updates: int = 10
    patience: int = 3
    short_patience: int = 2
    drop_share: float = 0.5
    drop_warning_share: float = 0.65
    drop_patience: int = 2
    environment_drop_share: float = 0.5
    environments_down_share: float = 0.75
    entropy_low: float = 0.10
    entropy_collapsed: float = 0.03
    dominant_share: float = 0.97
    kl_high: float = 0.2
    kl_factor: float = 30.0
    kl_usual: float = 0.03
    kl_dead: float = 1e-8
    kl_dead_patience: int = 10
    schedule_end: float = 0.95
    clip_fraction_high: float = 0.5
    explained_variance_low: float = -2.0
    value_loss_factor: float = 50.0
    gradient_factor: float = 100.0
    dormant_share: float = 0.95
    frozen_share: float = 0.9
    correlation_low: float = 0.0
    stale_seconds: float = 600.0


@dataclass
class _Memory:
    """The detector's state between samples; plain values, so that it can be saved."""

    samples: int = 0
    state: HealthState = HealthState.WARMING
    reported: HealthState = HealthState.WARMING
    restarted: bool = False
    best_furthest_px: float = 0.0
    best_return: float = -math.inf
    streaks: dict[str, int] = field(default_factory=dict)
    value_losses: list[float] = field(default_factory=list)
    gradient_norms: list[float] = field(default_factory=list)
    kl_divergences: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class _Finding:
    rule: str
    verdict: RuleVerdict
    reason: str
    patience: int
    outcome: HealthState = HealthState.COLLAPSED


_MEDIAN_WINDOW = 50
_MEDIAN_NEEDS = 5


class CollapseDetector:
    """Judges a run, sample by sample.

    `collapsed` and `diverged` are final until :meth:`restart`.
    """

    def __init__(self, rules: HealthRules | None = None) -> None:
        """Begin without a sample."""
        self.rules = rules or HealthRules()
        self._memory = _Memory()

    @property
    def state(self) -> HealthState:
        """The state after the last sample."""
        return self._memory.state

    def update(self, sample: HealthSample) -> Health:
        """Take the next sample.

        Args:
            sample: later than the one before.

        Returns:
            The state with its reasons.
        """
        memory = self._memory
        before, reported = memory.state, memory.reported
        memory.samples += 1
        findings = [finding for finding in self._judge(sample) if finding.verdict != "ok"]
        self._remember(sample)
        bad = {finding.rule for finding in findings if finding.verdict == "bad"}
        memory.streaks = {rule: memory.streaks.get(rule, 0) + 1 for rule in sorted(bad)}
        fatal = [f for f in findings if f.rule in bad and memory.streaks[f.rule] >= f.patience]
        if before.degenerated:
            state = before
        elif fatal:
            state = max((f.outcome for f in fatal), key=list(HealthState).index)
        elif findings:
            state = HealthState.WARNING
        else:
            warm = memory.samples >= self.rules.warmup_updates
            state = HealthState.HEALTHY if warm else HealthState.WARMING
        memory.state = memory.reported = state
        ordered = fatal + [finding for finding in findings if finding not in fatal]
        return Health(
            state,
            tuple(finding.reason for finding in ordered),
            state != reported,
            tuple(finding.rule for finding in ordered),
        )

    @property
    def reported_state(self) -> HealthState:
        """The state that was reported last; after a rollback still the collapse before it."""
        return self._memory.reported

    def restart(self) -> None:
        """Forget the samples before a rollback, but not the furthest x that was reached.

        The best return is forgotten: the policy that the run returns to may have had a lower one.
        The samples that follow must contain only episodes since the rollback. The next sample's
        `changed` compares with the last reported state, so that the recovery from a collapse is a
        change of state like any other.
        """
        kept = self._memory
        self._memory = _Memory(
            best_furthest_px=kept.best_furthest_px, reported=kept.reported, restarted=True
        )

    def to_dict(self) -> dict[str, Any]:
        """The detector's state, as JSON types."""
        values = asdict(self._memory)
        values["told"] = values.pop("reported")  # its name in checkpoints
        return values

    def restore(self, values: Mapping[str, Any]) -> None:
        """Restore what :meth:`to_dict` gave."""
        kept = dict(values)
        states = {"state": HealthState(kept["state"]), "reported": HealthState(kept.pop("told"))}
        self._memory = _Memory(**{**kept, **states, "streaks": dict(kept["streaks"])})

    def _judge(self, sample: HealthSample) -> list[_Finding]:
        rules, memory = self.rules, self._memory
        warm = memory.samples > rules.warmup_updates
        findings: list[_Finding] = []

        def add(rule: str, bad: bool, suspicious: bool, reason: str, *,
                patience: int | None = None,
                outcome: HealthState = HealthState.COLLAPSED) -> None:  # fmt: skip
            verdict: RuleVerdict = "bad" if bad else "suspicious" if suspicious else "ok"
            limit = rules.patience if patience is None else patience
            findings.append(_Finding(rule, verdict, reason, limit, outcome))

        if sample.non_finite:
            add("non_finite", True, False, "a loss, gradient or weight is not finite",
                patience=1, outcome=HealthState.DIVERGED)  # fmt: skip
        if sample.frozen_observation_share is not None:
            share = sample.frozen_observation_share
            add("frozen_observations", share > rules.frozen_share, False,
                f"{share:.0%} of the observations do not move",
                patience=rules.short_patience)  # fmt: skip
        if sample.episodes_seen < sample.episodes_finished:
            add("unseen_episodes", False, True,
                f"{sample.episodes_finished} episodes finished and {sample.episodes_seen} seen: "
                "some environment is not recorded")  # fmt: skip
        if (age := sample.seconds_since_update) is not None:
            add("stale", False, age > rules.stale_seconds, f"no update for {age:.0f} s")
        if (share_ := sample.dormant_share) is not None:
            add("dormant", share_ > rules.dormant_share, False,
                f"{share_:.0%} of a layer's units never fire",
                patience=rules.short_patience)  # fmt: skip
        self._judge_policy(sample, add)
        self._judge_values(sample, add, warm)
        if warm:
            self._judge_progress(sample, add)
        return findings

    def _judge_policy(self, sample: HealthSample, add: Any) -> None:
        rules = self.rules
        if (entropy := sample.entropy_ratio) is not None:
            add("entropy", entropy < rules.entropy_collapsed, entropy < rules.entropy_low,
                f"entropy {entropy:.1%} of its maximum")  # fmt: skip
        if (dominant := sample.dominant_action_share) is not None:
            add("dominant_action", dominant > rules.dominant_share, False,
                f"one action in {dominant:.0%} of the choices")  # fmt: skip
        if (kl := sample.approx_kl) is not None:
            usual = median(self._memory.kl_divergences or [kl])
            jump = len(self._memory.kl_divergences) >= _MEDIAN_NEEDS and (
                kl > max(rules.kl_usual, rules.kl_factor * usual)
            )
            add("kl_high", kl > rules.kl_high or jump, kl > rules.kl_high / 2,
                f"KL divergence {kl:.3g} in one update, usually {usual:.2g}",
                patience=rules.short_patience)  # fmt: skip
            dead = kl < rules.kl_dead and sample.clip_fraction == 0.0
            add("kl_dead", dead and sample.progress < rules.schedule_end, dead,
                f"KL divergence {kl:.1g}: the policy no longer changes",
                patience=rules.kl_dead_patience)  # fmt: skip
        if (clipped := sample.clip_fraction) is not None:
            add("clip_fraction", clipped > rules.clip_fraction_high, False,
                f"{clipped:.0%} of the samples clipped")  # fmt: skip
        correlation = sample.return_progress_correlation
        if correlation is not None:
            low = rules.correlation_low
            add("reward_against_progress", correlation < low, correlation < low + 0.25,
                f"return does not rise with furthest x (correlation {correlation:.2f})",
                patience=rules.short_patience)  # fmt: skip

    def _judge_values(self, sample: HealthSample, add: Any, warm: bool) -> None:
        rules, memory = self.rules, self._memory
        if (explained := sample.explained_variance) is not None:
            add("explained_variance", warm and explained < rules.explained_variance_low,
                warm and explained < rules.explained_variance_low / 2,
                f"value network explains {explained:.2f} of the variance")  # fmt: skip
        if (loss := sample.value_loss) is not None and len(memory.value_losses) >= _MEDIAN_NEEDS:
            usual = median(memory.value_losses)
            add("value_loss", loss > rules.value_loss_factor * usual > 0,
                loss > rules.value_loss_factor / 5 * usual > 0,
                f"value loss {loss:.3g}, {loss / max(usual, 1e-12):.0f} times the usual",
                patience=rules.short_patience, outcome=HealthState.DIVERGED)  # fmt: skip
        norms = memory.gradient_norms
        if (norm := sample.gradient_norm) is not None and len(norms) >= _MEDIAN_NEEDS:
            usual = median(norms)
            add("gradient", norm > rules.gradient_factor * usual > 0,
                norm > rules.gradient_factor / 5 * usual > 0,
                f"gradient norm {norm:.3g}, {norm / max(usual, 1e-12):.0f} times the usual",
                outcome=HealthState.DIVERGED)  # fmt: skip
        # Before a reward was seen, or an episode's end with its own, nothing bounds a return.
        if sample.q_max is not None and sample.q_bound and sample.episodes_finished:
            add("q_bound", sample.q_max > 2 * sample.q_bound, sample.q_max > sample.q_bound,
                f"Q-value {sample.q_max:.3g} above the possible return {sample.q_bound:.3g}",
                outcome=HealthState.DIVERGED)  # fmt: skip

    def _judge_progress(self, sample: HealthSample, add: Any) -> None:
        rules, memory = self.rules, self._memory
        best = memory.best_furthest_px
        if (mean := sample.recent_furthest_px) is not None and best > 0:
            add("furthest_x", mean < rules.drop_share * best,
                mean < rules.drop_warning_share * best,
                f"furthest x {mean:.0f} px after a best of {best:.0f} px",
                patience=rules.drop_patience)  # fmt: skip
        known = [x for x in sample.environments_furthest_px if not math.isnan(x)]
        if len(known) > 1 and best > 0:
            down = sum(x < rules.environment_drop_share * best for x in known)
            add("environments", down >= rules.environments_down_share * len(known), False,
                f"{down} of {len(known)} environments below "
                f"{rules.environment_drop_share:.0%} of the best mean, {best:.0f} px",
                patience=rules.drop_patience)  # fmt: skip
        if (value := sample.recent_return) is not None and memory.best_return > 0:
            # Shaped returns have no natural zero and may change with a schedule: never fatal.
            add("return", False, value < rules.drop_share * memory.best_return,
                f"return {value:.3g} after a best of {memory.best_return:.3g}")  # fmt: skip

    def _remember(self, sample: HealthSample) -> None:
        memory = self._memory
        # After a rollback the windows begin empty: the mean of a few lucky episodes is no measure.
        if sample.recent_furthest_px is not None or not memory.restarted:
            if sample.mean_furthest_px is not None:
                memory.best_furthest_px = max(memory.best_furthest_px, sample.mean_furthest_px)
            if (value := sample.mean_return) is not None and math.isfinite(value):
                memory.best_return = max(memory.best_return, value)
        for values, new in (
            (memory.value_losses, sample.value_loss),
            (memory.gradient_norms, sample.gradient_norm),
            (memory.kl_divergences, sample.approx_kl),
        ):
            if new is not None and math.isfinite(new):
                values.append(new)
                del values[:-_MEDIAN_WINDOW]


def spearman(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Rank correlation of two series of equal length; None where one of them is constant.

    Spearman 1904; ties take their mean rank.
    """
    import numpy as np
    from scipy.stats import rankdata

    if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
        return None
    ranks = np.corrcoef(rankdata(first), rankdata(second))
    return float(ranks[0, 1])
