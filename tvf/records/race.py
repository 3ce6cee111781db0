"""What a race (hydra/sweeper=race) has decided, in the manifest of its sweep."""

from pathlib import Path
from typing import Any

from tvf.files import read_json, write_json
from tvf.lease import Lease
from tvf.records.job import LEASE

WHOLE = ("jobs", "all", "blocks", "margin")
OUT = ("lost", "behind", "skipped")  # places whose jobs the race launches no more
DUEL = {"blocks", "to", "won", "decided", "difference", "better", "lower"}


def note_race(folder: Path, race: dict[str, Any]) -> None:
    """Record how the race in `folder` stands.

    `race` counts the `jobs` that it took, of `all` jobs, and the `blocks` of each configuration;
    `margin` is that of its duels, `budget` the most jobs that it may take, or None. `ended` is
    settled (by the last duel), spent (by the budget), or None while it runs. `configurations`
    lists, in the order in which they compete, the folders of their `jobs`, and their `place`:
    champion, lost, behind (not decided), skipped or untried. One that lost or is behind also has
    the `duel`: after how many `blocks`, `to` a job of which other one, whether that was `won` by
    the challenger and `decided`, and the `difference` with the probabilities `better` and `lower`,
    None where unknown.
    """
    with Lease(folder / LEASE):
        manifest = read_json(folder / "sweep.json")
        write_json(folder / "sweep.json", manifest | {"race": race})


def read_race(folder: Path) -> dict[str, Any] | None:
    """The race in `folder` as noted; None if there was none, or if its jobs were launched again."""
    race = read_json(folder / "sweep.json").get("race")
    listed = race.get("configurations") if isinstance(race, dict) else None
    if not isinstance(race, dict) or not isinstance(listed, list):
        return None
    numbers = all(isinstance(race.get(key), int | float) for key in WHOLE)
    return race if numbers and all(map(_is_valid, listed)) else None


def race_by_job(folder: Path) -> dict[str, dict[str, Any]]:
    """What the race says of each job's configuration, by the jobs' folders; empty without one.

    `stopped` says whether the race launches no more of its jobs.
    """
    race = read_race(folder)
    if race is None:
        return {}
    whole = {key: race[key] for key in WHOLE}
    whole |= {key: race.get(key) for key in ("budget", "ended")}
    return {
        name: whole
        | {key: each.get(key) for key in ("place", "duel")}
        | {"stopped": bool(whole["ended"]) or each.get("place") in OUT}
        for each in race["configurations"]
        for name in each["jobs"]
    }


def _is_valid(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("jobs"), list):
        return False
    duel = entry.get("duel")
    known = duel is None or (isinstance(duel, dict) and duel.keys() >= DUEL)
    return known and all(isinstance(name, str) for name in entry["jobs"])
