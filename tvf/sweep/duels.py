"""The rule of a race: who meets whom, when a duel ends, and which jobs it needs next.

A race is replayed from its start by the finished jobs alone, so that it decides the same whenever
and wherever it is resumed.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tvf.records import Row
from tvf.report import Duel

Results = Mapping[tuple[int, int], Row | None]  # by candidate and block; None if the job failed
Compare = Callable[[Sequence[Row], Sequence[Row]], Duel | None]  # champion's jobs, challenger's

FALL = 0.8  # once a fraction has lowered the score with this probability, larger ones are skipped


@dataclass(frozen=True)
class Meeting:
    """A duel between two candidates, by position, and the blocks that it took.

    `duel` is what their jobs say; None if too few are done. `decided` says whether one was shown to
    be the better choice; if not, the higher mean won.
    """

    champion: int
    challenger: int
    blocks: int
    duel: Duel | None
    won: bool  # by the challenger
    decided: bool


@dataclass(frozen=True)
class Round:
    """How a race stands: its champion, the duels so far, and how many jobs they took.

    `needed` are the jobs to train next, by candidate and block; none if the race is over. `skipped`
    are candidates that need not compete: a smaller fraction has lowered the score already. `spent`
    says whether the race ended because its budget did.
    """

    champion: int
    meetings: tuple[Meeting, ...]
    skipped: tuple[int, ...]
    jobs: int
    needed: tuple[tuple[int, int], ...] = ()
    spent: bool = False


def race_round(
    fractions: Sequence[float | None],
    blocks: int,
    results: Results,
    compare: Compare,
    *,
    climb: bool = True,
    budget: int | None = None,
) -> Round:
    """Replay a race by the results so far, and say what it needs next.

    `fractions` are those of the candidates in the order in which they compete; None where layers
    are named. `compare` compares jobs by `compare_trainings`. With `climb`, larger fractions are
    skipped once a fraction has probably lowered the score. At most `budget` jobs are needed.
    """
    arena = _Arena(blocks, results, compare, budget)
    champion, meetings, skipped, peak = 0, [], [], None

    def stand(**more: Any) -> Round:
        return Round(champion, tuple(meetings), tuple(skipped), len(arena.used), **more)

    for challenger, fraction in enumerate(fractions[1:], 1):
        if peak is not None and fraction is not None and fraction > peak:
            skipped.append(challenger)
            continue
        meeting = arena.meet(champion, challenger)
        if arena.needed:
            return stand(needed=arena.needed)
        if meeting:
            meetings.append(meeting)
            champion = challenger if meeting.won else champion
        if arena.spent:
            return stand(spent=True)
        if climb and fraction is not None and fraction != fractions[0]:
            own = [each for each in meetings if fractions[each.challenger] == fraction]
            peak = fraction if all(map(_has_fallen, own)) else None
    return stand()


def _has_fallen(meeting: Meeting) -> bool:
    return not meeting.won and meeting.duel is not None and (meeting.duel.lower or 0.0) >= FALL


@dataclass
class _Arena:
    """Where duels take place: counts the jobs that they take, and stops them at the budget."""

    blocks: int
    results: Results
    compare: Compare
    budget: int | None
    used: set[tuple[int, int]] = field(default_factory=set)
    needed: tuple[tuple[int, int], ...] = ()
    spent: bool = False

    def meet(self, champion: int, challenger: int) -> Meeting | None:
        """The duel of two candidates; None if `needed` jobs are missing, or none may be trained."""
        rows: tuple[list[Row], list[Row]] = ([], [])
        duel, block = None, 0
        for block in range(self.blocks):
            jobs = ((champion, block), (challenger, block))
            if self.budget is not None and len({*self.used, *jobs}) > self.budget:
                self.spent = True
                if not block:
                    return None
                break
            if missing := tuple(job for job in jobs if job not in self.results):
                self.needed = missing
                return None
            self.used |= {*jobs}
            for own, job in zip(rows, jobs, strict=True):
                row = self.results[job]
                own += [] if row is None else [row]
            failed = [block + 1 - len(own) for own in rows]
            if failed[0] != failed[1] and 2 * max(failed) > block + 1:  # most of one's have failed
                won = failed[0] > failed[1]
                return Meeting(champion, challenger, block + 1, None, won, decided=False)
            duel = self.compare(*rows) if rows[0] else None
            if duel and duel.decided:
                won = (duel.better or 0.0) > 0.5
                return Meeting(champion, challenger, block + 1, duel, won, decided=True)
        blocks = block if self.spent else self.blocks
        won = duel is not None and duel.mean > 0
        return Meeting(champion, challenger, blocks, duel, won, decided=False)
