"""The one kind of error that is the user's to mend: shown as a message, without a traceback."""

import difflib
import math
from collections.abc import Iterable

RESERVED = {
    "_target_",
    "_partial_",
    "_convert_",
    "_recursive_",
    "_args_",
}  # keys of a config that Hydra reads


class InputError(ValueError):
    """A value that breaks a rule. The message names the value, the rule and the remedy."""


def require_number(
    name: str, value: object, low: float, high: float = float("inf"), *, above: bool = False
) -> None:
    """Raise InputError unless `value` is a number in [low, high], or in (low, high] where `above` is set."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if (low < value if above else low <= value) and value <= high and math.isfinite(value):
            return
    rule = f"{'above' if above else 'of at least'} {low:g}" + (
        f" and at most {high:g}" if high != float("inf") else ""
    )
    raise InputError(f"{name}={value!r} is refused: it must be a finite number {rule}.")


def require_count(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise InputError unless `value` is a whole number from `low` to `high`."""
    if (
        isinstance(value, int)
        and not isinstance(value, bool)
        and low <= value
        and (high is None or value <= high)
    ):
        return
    limit = "" if high is None else f" and at most {high}"
    raise InputError(
        f"{name}={value!r} is refused: it must be a whole number of at least {low}{limit}."
    )


def require_seed(name: str, value: object) -> None:
    """Raise InputError unless `value` is a seed that every random generator takes: 0 to 2**32 - 1."""
    require_count(name, value, 0, 2**32 - 1)


def require_bool(name: str, value: object) -> None:
    """Raise InputError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} is refused: it must be true or false.")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name}={value!r} is refused: choose one of {', '.join(choices)}.")


def unknown_key(key: str, known: Iterable[str], prefix: str = "") -> InputError:
    """The error for an option that nobody reads, with the nearest known ones."""
    known = sorted(each for each in known if each not in RESERVED)
    near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1)
    listed = ", ".join(prefix + each for each in known) or "none"
    hint = f"did you mean {prefix}{near[0]}?" if near else f"known here: {listed}."
    return InputError(f"{key} is not an option: {hint}")
