"""The loop: it stops where the held data say so, restores the best, and continues exactly where it was ended."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from rebasin_cli.errors import OutputError
from rebasin_cli.matching.learning.journal import Journal
from rebasin_cli.matching.learning.loop import Course, Progress, last_tenth
from rebasin_cli.matching.result import CurvePoint
from tests.matching.learning.free import Free, batch, loop


def by_sign(x: Tensor) -> Tensor:
    """Classes that a linear layer can tell apart."""
    return (x[:, 0] > 0).long() + (x[:, 1] > 1).long()


HELD = [batch(number, by_sign) for number in range(4)]
REST = [batch(number, by_sign) for number in range(4, 12)]
FEW = [batch(12, by_sign, 5)]


def test_it_goes_on_while_the_held_loss_falls_and_says_that_more_steps_pay() -> None:
    run = loop(Free(0.02), HELD, REST, Course(steps=60, patience=30, seed=0))
    run.run()
    end = run.end()
    assert (end.stopped, end.steps) == ("bound", 60)
    assert end.best_loss < 0.8 * end.first_loss
    assert [point.step for point in end.curve] == [0, 10, 20, 30, 40, 50, 60]
    assert end.last_tenth > 0
    assert end.still_improving


def test_without_improvement_it_ends_after_its_patience_and_restores_the_best() -> None:
    """Five samples are soon learned by heart."""
    seen: list[dict[str, Tensor]] = []
    moving = Free(0.5)
    run = loop(
        moving,
        HELD,
        FEW,
        Course(steps=500, patience=40, seed=0),
        on_judged=lambda done: seen.append(dict(moving.tensors)),
    )
    run.run()
    end = run.end()
    lowest = min(end.curve, key=lambda point: point.held_loss)
    assert end.stopped == "patience"
    assert end.steps == lowest.step + 3 * 40 < 500
    assert moving.rate == pytest.approx(0.5 * 0.3**2)
    assert (end.best_loss, end.best_step) == (lowest.held_loss, lowest.step)
    assert end.curve[-1].held_loss > lowest.held_loss
    assert end.curve[-1].train_loss is not None
    assert end.curve[-1].train_loss < lowest.held_loss
    assert not end.still_improving
    assert lowest.step > 0
    best = seen[lowest.step // 10 - 1]
    assert all(torch.equal(run.best[name], best[name]) for name in best)


def test_small_improvements_are_kept_but_do_not_prolong_it() -> None:
    run = loop(Free(1e-6), HELD, REST, Course(steps=500, patience=30, seed=0))
    run.run()
    end = run.end()
    assert (end.stopped, end.steps) == ("patience", 90)
    assert end.best_loss < end.first_loss
    assert end.best_step == 90


def test_a_candidate_that_is_not_allowed_is_never_the_result() -> None:
    moving = Free()
    free = loop(moving, HELD, REST, Course(steps=10, patience=10, seed=0))
    free.run()
    other = Free()
    other.refused = [free.best]
    run = loop(other, HELD, REST, Course(steps=10, patience=10, seed=0))
    run.run()
    assert run.end().best_step == 0
    assert run.end().curve[-1] == free.end().curve[-1]


def test_projections_come_every_few_steps_and_before_a_judgement() -> None:
    moving = Free()
    run = loop(moving, HELD, REST, Course(steps=10, patience=50, seed=0, project_every=4))
    run.run()
    assert moving.projections == 3


class Killed(BaseException):
    """As a signal ends a process."""


def test_a_run_that_was_killed_continues_to_the_same_numbers(tmp_path: Path) -> None:
    """The state of step 30, from a process that came to step 50."""
    path, course = tmp_path / ".out.learning", Course(steps=80, patience=10, seed=3, batches=3)
    whole = loop(Free(), HELD, REST, course)
    whole.run()

    def kill(done: Progress) -> None:
        if done.step == 30:
            ended.save()
        if done.step == 50:
            raise Killed

    ended = loop(Free(), HELD, REST, course, path=path, on_judged=kill)
    with pytest.raises(Killed):
        ended.run()
    resumed = loop(Free(), HELD, REST, course, path=path)
    assert resumed.done.step == 30
    resumed.run()
    assert resumed.end() == whole.end()
    assert all(torch.equal(resumed.best[name], whole.best[name]) for name in whole.best)
    again = loop(Free(), HELD, REST, course, path=path)
    again.run()
    assert again.end() == whole.end()


def test_the_state_of_another_run_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / ".out.learning"
    Journal(path, {"seed": 1, "data": "x"}).save({"step": 1}, {"t": torch.ones(2)})
    other = Journal(path, {"seed": 2, "data": "x"})
    with pytest.raises(OutputError, match=r"\.out\.learning: the state of another run .* another seed"):
        other.load()
    assert Journal(path, {"seed": 2, "data": "x"}, force=True).load() is None
    found = Journal(path, {"seed": 1, "data": "x"}).load()
    assert found is not None
    assert found[0] == {"step": 1}
    assert torch.equal(found[1]["t"], torch.ones(2))


@pytest.mark.parametrize("cut", [0, 10, -10, None])
def test_a_state_that_was_cut_or_is_no_state_begins_anew(tmp_path: Path, cut: int | None) -> None:
    path = tmp_path / ".out.learning"
    journal = Journal(path, {"seed": 1})
    journal.save({"step": 1}, {"t": torch.ones(200)})
    path.write_bytes(b"PK\x03\x04 nothing" if cut is None else path.read_bytes()[:cut])
    assert journal.load() is None


def test_a_deadline_is_foreseen_and_what_was_learned_until_then_is_kept() -> None:
    class Slow(Free):
        def step(self, gradients: object) -> None:
            time.sleep(0.05)
            super().step(gradients)  # type: ignore[arg-type]

    run = loop(Slow(), HELD, REST, Course(steps=10_000, patience=10_000, seed=0), deadline=time.monotonic() + 1)
    run.run()
    assert run.end().stopped == "time"
    assert 0 < run.end().steps <= 20


def test_the_last_tenth_is_of_the_lowest_loss() -> None:
    falling = [CurvePoint(step, 10.0 - step, None) for step in range(11)]
    assert last_tenth(falling) == pytest.approx(1.0)
    assert last_tenth([*falling[:10], CurvePoint(10, 5.0, None)]) == 0.0
    assert last_tenth([CurvePoint(0, 1.0, None)]) == 0.0
