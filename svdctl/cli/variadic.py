"""Options that take several values, `--seeds 1 2 3`, spread to `--seeds 1 --seeds 2 --seeds 3` for the parser."""

from collections.abc import Callable, Mapping

Takes = Callable[[str], bool]
"""Whether a word can be a further value of an option."""


def spread(arguments: list[str], options: Mapping[str, Takes]) -> list[str]:
    """Repeat the name of an option before each of its values; a word that cannot be one ends them."""
    found: list[str] = []
    current: str | None = None
    fresh = False
    for argument in arguments:
        if argument.startswith("--"):
            current = argument if argument in options else None
            fresh = current is not None
        elif current is not None and not fresh:
            if options[current](argument):
                found.append(current)
            else:
                current = None
        else:
            fresh = False
        found.append(argument)
    return found
