"""The error for a mistake that the user can fix: a message, printed without a traceback."""

import difflib
import math
import os
from collections.abc import Iterable

# Config keys that Hydra itself reads.
RESERVED = {"_target_", "_partial_", "_convert_", "_recursive_", "_args_"}


class InputError(ValueError):
    """A value that breaks a rule. The message names the value, the rule and the remedy."""


def require_number(
    name: str, value: object, low: float, high: float = math.inf, *, above: bool = False
) -> None:
    """Raise InputError unless `value` is a number in [low, high], or in (low, high] if `above`."""
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        if (low < value if above else low <= value) and value <= high:
            return
    lower = f"above {low:g}" if above else f"of at least {low:g}"
    upper = f" and at most {high:g}" if high != math.inf else ""
    raise InputError(f"{name}={value!r} must be a finite number {lower}{upper}.")


def require_count(name: str, value: object, low: int, high: int | None = None) -> None:
    """Raise InputError unless `value` is a whole number from `low` to `high`."""
    if isinstance(value, int) and not isinstance(value, bool):
        if low <= value and (high is None or value <= high):
            return
    upper = "" if high is None else f" and at most {high}"
    raise InputError(f"{name}={value!r} must be a whole number of at least {low}{upper}.")


def require_seed(name: str, value: object) -> None:
    """Raise InputError unless `value` is a seed that every generator accepts: 0 to 2**32 - 1."""
    require_count(name, value, 0, 2**32 - 1)


def require_bool(name: str, value: object) -> None:
    """Raise InputError unless `value` is true or false."""
    if not isinstance(value, bool):
        raise InputError(f"{name}={value!r} must be true or false.")


def require_path(name: str, value: object) -> None:
    """Raise InputError unless `value` can be the path of a file or folder."""
    if isinstance(value, str | os.PathLike) and value != "":
        return
    quoted = f" Quote a number: '{name}=\"{value}\"'." if type(value) in (int, float) else ""
    raise InputError(f"{name}={value!r} must be a path.{quoted}")


def require_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `choices`."""
    if value not in choices:
        raise InputError(f"{name}={value} must be one of {', '.join(choices)}.")


def unknown_key(
    key: str, known: Iterable[str], prefix: str = "", everywhere: Iterable[str] = ()
) -> InputError:
    """Return the error for an option that does not exist, with the closest one that does.

    That is one of `known`, or else the only one of `everywhere` with the same last word.
    """
    names = sorted(name for name in known if name not in RESERVED)
    near = difflib.get_close_matches(key.rpartition(".")[2], names, n=1)
    elsewhere = [one for one in everywhere if one.rpartition(".")[2] == key.rpartition(".")[2]]
    if near:
        hint = f"did you mean {prefix}{near[0]}?"
    elif len(elsewhere) == 1:
        hint = f"did you mean {elsewhere[0]}?"
    else:
        hint = f"valid options: {', '.join(prefix + name for name in names) or 'none'}."
    return InputError(f"{key} is not an option: {hint}")
