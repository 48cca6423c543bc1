"""When a checkpoint is saved, and what is said and recorded of it: all that the loop knows of checkpoints."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from dist_trainer.checkpoints.cadence import Save
from dist_trainer.checkpoints.position import Position
from dist_trainer.config.run import CheckpointConfig
from dist_trainer.errors import RunError
from dist_trainer.train.checkpoints.cost import SaveCost
from dist_trainer.train.checkpoints.pacing import Pacing
from dist_trainer.train.checkpoints.saving import Outcome, Saver

if TYPE_CHECKING:
    from dist_trainer.train.display import Display
    from dist_trainer.train.loop import Recorder


FAILING_LIMIT_S = 20.0


class Turns:
    """One rank's side; every method is called by all ranks. Those after steps and phases, and `stop`, raise RunError
    where a save has failed and the run file says to stop then.
    """

    def __init__(
        self,
        saver: Saver,
        config: CheckpointConfig,
        *,
        resumed_step: int,
        recorder: Recorder,
        display: Display,
        pacing: Pacing | None = None,
    ) -> None:
        self._saver = saver
        self._config = config
        self._recorder = recorder
        self._display = display
        self._pacing = pacing
        self._cost = SaveCost()
        self._waited_s = 0.0
        # Of the last save that was begun, or of the checkpoint that the run began from.
        self._saved_step = resumed_step
        self._last_s = time.monotonic()
        self._tell_pace()

    def before_update(self) -> None:
        """To be called before the optimizer changes anything."""
        self._waited_s = self._saver.before_update()

    def after_step(self, position: Position, step_s: float) -> None:
        """Begins a save if one is due, and tells how the one before has ended. `step_s`: how long the step took.
        Collective.
        """
        self._cost.after_step(step_s, waited_s=self._waited_s, is_saving=self._saver.is_begun)
        if self._pacing is not None:
            self._pacing.after_step(step_s)
        self._tell_if_ended()
        if not self._is_due(position):
            return
        if self._config.when_busy == "skip" and self._rank_zero_says(self._saver.is_busy):
            return
        self._save(position)

    def after_phase(self, position: Position) -> None:
        """Saves the end of a phase, if the run file says so, and waits until it is written. Collective."""
        self._finish_at_end()
        if self._config.at_end:
            self._save(position, at_end=True)
        self._cost.forget()
        self._tell_pace()

    def finish(self) -> None:
        """Waits until the save under way is written."""
        outcome = self._saver.finish()
        if outcome is not None:
            self._tell_with_cost(outcome)

    def stop(self, position: Position) -> None:
        """Of a run that was told to stop: saves where it stands, unless it saves nothing at all, and waits until that
        is written. Collective.
        """
        self._finish_at_end()
        if self._config.saves_at_all:
            self._save(position, at_end=True)

    def _finish_at_end(self) -> None:
        """Of a phase, where all is waited for: what a save costs within a phase is not to be seen."""
        outcome = self._saver.finish()
        if outcome is not None:
            self._tell(outcome, cost_s=None)

    def finish_what_was_begun(self) -> None:
        """Of a run that fails: other ranks go on writing, unless they are gone. Says nothing, and waits no longer than
        `FAILING_LIMIT_S`.
        """
        self._saver.finish(limit_s=FAILING_LIMIT_S)

    def _save(self, position: Position, *, at_end: bool = False) -> None:
        if position.step == self._saved_step:
            return
        self.finish()
        self._saved_step = position.step
        self._last_s = time.monotonic()
        if at_end:
            self._tell(self._saver.save(position), cost_s=None)
        elif not self._config.background:
            self._tell_with_cost(self._saver.save(position))
        else:
            self._saver.begin(position)

    def _is_due(self, position: Position) -> bool:
        """By the number of steps or by time; rank 0's clock decides for all ranks. Collective."""
        config = self._config
        if config.every_steps and position.step % config.every_steps == 0:
            return True
        passed_s = time.monotonic() - self._last_s
        if config.every == "auto":
            paced = self._pacing is not None and passed_s >= self._pacing.period_s
            return self._rank_zero_says(paced and not self._saver.is_busy)
        if not config.every_minutes:
            return False
        return self._rank_zero_says(passed_s >= 60 * config.every_minutes)

    def _rank_zero_says(self, answer: bool) -> bool:
        flag = torch.tensor([int(answer)], device=self._saver.device)
        dist.broadcast(flag, src=0)
        return bool(flag.item())

    def _tell_if_ended(self) -> None:
        if self._saver.has_ended:
            self.finish()

    def _tell_with_cost(self, outcome: Outcome) -> None:
        """Of a save within a phase."""
        self._tell(outcome, cost_s=self._cost.of_save(outcome.held_s))
        self._tell_pace()

    def _tell(self, outcome: Outcome, *, cost_s: float | None) -> None:
        if outcome.folder is not None:
            cost = {} if cost_s is None else {"cost_s": round(cost_s, 3)}
            self._recorder.event(
                "checkpoint",
                str(outcome.folder),
                step=outcome.step,
                seconds=round(outcome.seconds, 3),
                held_s=round(outcome.held_s, 3),
                num_bytes=outcome.num_bytes,
                **cost,
            )
            if self._pacing is not None and cost_s is not None:
                self._pacing.saved(Save(cost_s, outcome.seconds))
            if outcome.not_deleted is not None:
                self._notice(f"an older checkpoint could not be deleted: {outcome.not_deleted}", outcome.step)
            return
        # The next turn tries again, even if it comes at the same step, at the end of a phase.
        self._saved_step = -1
        problem = f"the checkpoint of step {outcome.step} was not saved: {outcome.problem}"
        if self._config.on_failure == "stop":
            raise RunError(
                problem,
                key="checkpoints.on_failure",
                found="stop",
                hint="make room for it, then resume the run; with continue it would have gone on without",
            )
        self._notice(problem, outcome.step)

    def _tell_pace(self) -> None:
        line = None if self._pacing is None else self._pacing.news()
        if line is not None:
            self._recorder.event("cadence", line)
            self._display.note(line)

    def _notice(self, text: str, step: int) -> None:
        self._recorder.event("notice", text, step=step)
        self._display.note(f"notice     {text}")
