"""Sentences about a race (hydra/sweeper=race): its winner, its duels, and what they are not."""

from collections.abc import Sequence
from typing import Any

from tvf.records import RACE, is_stopped_by_race
from tvf.report.configuration import Configuration
from tvf.report.words import enumerate_words, percent, signed

Race = dict[str, Any]


def race_of(configurations: Sequence[Configuration]) -> list[Race] | None:
    """What a race has decided about each configuration, if it decided on all and is over.

    None if there was none, if it is not over, or if all its jobs are done all the same: then they
    say more than the race.
    """
    races = [group.jobs[0][RACE] for group in configurations]
    if not all(races) or len({group.jobs[0]["sweep"] for group in configurations}) > 1:
        return None
    states = {job["state"] for group in configurations for job in group.jobs}
    left = bool(states - {"done", "failed"})
    places = [race["place"] for race in races]
    return races if left and races[0]["ended"] and places.count("champion") == 1 else None


def winner_of(configurations: Sequence[Configuration]) -> Configuration | None:
    """The configuration that won a race and has a score; None without one."""
    races = race_of(configurations) or []
    won = [
        group
        for group, race in zip(configurations, races, strict=False)
        if race["place"] == "champion" and group.val
    ]
    return won[0] if won else None


def rival_of(
    winner: Configuration, configurations: Sequence[Configuration]
) -> Configuration | None:
    """The configuration that came closest to the winner in a duel, an undecided one first."""
    races = race_of(configurations) or []
    own = {job["folder"] for job in winner.jobs}
    beaten = [
        (race["duel"]["decided"], abs(race["duel"]["difference"]), index)
        for index, race in enumerate(races)
        if race["duel"] and race["duel"]["to"] in own and race["duel"]["difference"] is not None
    ]
    return configurations[min(beaten)[2]] if beaten else None


def beside_winner(configurations: Sequence[Configuration]) -> list[Configuration]:
    """The configurations whose mean scores compare: after a race those with its winner's trainings.

    Means over other splits do not, as these may be easier.
    """
    winner = winner_of(configurations)
    return [
        each for each in configurations if not winner or each.scores.keys() == winner.scores.keys()
    ]


def is_settled(configurations: Sequence[Configuration]) -> bool:
    """Whether every duel of the race was decided, and its budget did not end it."""
    races = race_of(configurations) or []
    duels = [race["duel"] for race in races if race["duel"]]
    return all(duel["decided"] for duel in duels) and all(
        race["ended"] == "settled" for race in races
    )


def describe_duels(configurations: Sequence[Configuration], margin: float) -> list[str]:
    """How each duel ended, what was not trained, and what would decide what is open.

    Says so if the race had another margin than the report has. Empty without a race.
    """
    races = race_of(configurations) or []
    by_job = {job["folder"]: group for group in configurations for job in group.jobs}
    pairs = [*zip(configurations, races, strict=False)]
    sentences = [
        _describe_duel(group, by_job[race["duel"]["to"]], race)
        for group, race in pairs
        if race["duel"] and race["duel"]["to"] in by_job
    ]
    spent = bool(races) and races[0]["ended"] == "spent"
    if spent:
        budget = f" of {races[0]['budget']} jobs" if races[0]["budget"] else ""
        sentences.append(
            f"The race ended after {races[0]['jobs']} jobs, as its next block would have exceeded "
            f"its budget{budget}."
        )
    for place, why in (
        ("skipped", ", since a smaller fraction has lowered the score"),
        ("untried", ""),
    ):
        if names := [str(group) for group, race in pairs if race["place"] == place]:
            sentences.append(f"Not trained: {enumerate_words(names)}{why}.")
    if spent:
        most = races[0]["jobs"] + 2  # with another block of two jobs
        sentences.append(f"To decide, race again with hydra.sweeper.budget={most} or more.")
    elif races and not is_settled(configurations):
        sentences.append("To decide, race with further seeds or divisions in this folder.")
    if races and races[0]["margin"] != margin:
        sentences.append(
            f"The duels were decided with the race's margin of {races[0]['margin']:g}, not with "
            f"{margin:g}; a race with another margin goes on in this folder."
        )
    return sentences


def race_data(configurations: Sequence[Configuration]) -> dict[str, Any] | None:
    """A race for programs; None without one."""
    races = race_of(configurations)
    if races is None:
        return None
    by_job = {job["folder"]: group.label for group in configurations for job in group.jobs}
    listed = [
        {
            "label": group.label,
            "place": race["place"],
            "duel": race["duel"] and race["duel"] | {"to": by_job.get(race["duel"]["to"])},
        }
        for group, race in zip(configurations, races, strict=True)
    ]
    whole = {key: races[0][key] for key in ("jobs", "all", "blocks", "margin", "budget", "ended")}
    return whole | {"configurations": listed}


def _describe_duel(lost: Configuration, to: Configuration, race: Race) -> str:
    duel = race["duel"]
    after = f"after {duel['blocks']} of {race['blocks']} blocks"
    if duel["difference"] is None:
        return f"{lost} lost to {to} {after}, as most of its jobs failed."
    challenger, champion = (to, lost) if duel["won"] else (lost, to)
    chance = ""
    if duel["better"] is not None:
        chance = (
            f"; the probability that {challenger.label} is more than {race['margin']:g} better is "
            f"{percent(duel['better'])}"
        )
    ended = f"{lost} lost to {to} {after}"
    if not duel["decided"]:
        ended = f"Not decided: {lost} is behind {to} {after}"
        ended += ", and was not continued" if duel["blocks"] < race["blocks"] else ""
    return (
        f"{ended}: {challenger.label} minus {champion.label} is {signed(duel['difference'])}"
        f"{chance}."
    )


def about_race(configurations: Sequence[Configuration]) -> str | None:
    """How a race limits the statistics; None without one."""
    races = race_of(configurations)
    if races is None:
        return _about_others(configurations)
    return (
        f"A race: it took {races[0]['jobs']} of {races[0]['all']} jobs, so configurations have "
        "different numbers of trainings, on different splits. Their mean scores do not compare: "
        "charts leave out those of other trainings than the winner's, and the text's differences "
        "are on the same splits. Each duel ended as soon as it was decided, of which intervals, "
        "p-values and the winner's score take no account: they are optimistic. The command without "
        "hydra/sweeper=race trains the rest in this folder."
    )


def _about_others(configurations: Sequence[Configuration]) -> str | None:
    """That a race left out some of the jobs, where it was not a race of all configurations."""
    stopped = [str(group) for group in configurations if any(map(is_stopped_by_race, group.jobs))]
    if not stopped:
        return None
    return (
        f"A race in this folder left out jobs of {enumerate_words(stopped)}, which therefore have "
        "fewer trainings than others. The comparison takes no account of what it decided."
    )
