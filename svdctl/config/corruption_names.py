"""The names of the corruptions, the list of those to evaluate, and where svdctl's differ from the published ones.

Nothing here needs torch, so that flags can be checked at once.
"""

from collections.abc import Collection, Iterable

from svdctl.config.presets import resource
from svdctl.errors import UsageError, nearest
from svdctl.utils.files import read_text

NOTES = {
    "gaussian_noise": "",
    "shot_noise": "",
    "impulse_noise": "",
    "defocus_blur": "",
    "glass_blur": "the published generator swaps pixels through array views, which in fact copies one neighbour's "
    "colour; so does this one, since the published files hold that",
    "motion_blur": "the line of taps and its weights are ImageMagick's; taps are rounded to whole pixels there too",
    "zoom_blur": "the published generator's list of zooms ends at 1.06 and at 1.11 for severities 1 and 2, one "
    "more than its bounds say, by rounding; so does this one's",
    "snow": "",
    "frost": "the published files blend in photographs of frost; this one draws ice crystals and blends a random "
    "crop of them, with the same weights",
    "fog": "",
    "brightness": "",
    "contrast": "",
    "elastic_transform": "positions between pixels are exact, where the published generator rounds those of its "
    "affine map to 1/32 pixel",
    "pixelate": "",
    "jpeg_compression": "encoded and decoded by the installed Pillow, at the published qualities",
    "speckle_noise": "",
    "gaussian_blur": "",
    "spatter": "distances to edges are exact Euclidean ones, where the published generator takes a 5 x 5 chamfer "
    "mask; an image on which no drop falls stays as it is",
    "saturate": "",
}
"""All corruptions, with a sentence for each that differs from, or depends on more than, its definition."""

CORRUPTIONS = tuple(NOTES)
"""The benchmark's 15 and the four extra ones, for which files are published as well."""

BENCHMARK = CORRUPTIONS[:15]
"""The 15 corruptions of the CIFAR-C benchmark (Hendrycks and Dietterich 2019), in its order."""

CLEAN = "natural"
"""Stands in a list of corruptions for the images as they are."""

SEVERITIES = (1, 2, 3, 4, 5)


def general_note(generator: str, side: int) -> str:
    """Return what holds for all corruptions with the constants of a published generator, of images of `side` pixels."""
    return (
        f"constants are those of {generator} for {side} x {side} images, the nearest of three published sizes; lengths "
        f"in pixels scale with the shorter side over {side}, shares, qualities, 3 x 3 stencils and noise of single "
        "pixels stay; noise that is smoothed is drawn stronger at larger sizes, so that the smoothed field varies as "
        f"much as at {side}; the random draws are svdctl's own, so pixels differ from the published files"
    )


def named_lists() -> dict[str, tuple[str, ...]]:
    """Return the lists of corruptions whose means have a name: `benchmark (15)`, `all (19)` and `corruptions.txt (18)`.

    The number in a name is that of the corruptions; the last list is the shipped one, without the clean images.
    """
    shipped = tuple(name for name in read_corruption_list() if name != CLEAN)
    lists = {"benchmark": BENCHMARK, "all": CORRUPTIONS, "corruptions.txt": shipped}
    return {f"{name} ({len(names)})": names for name, names in lists.items()}


def list_name(names: Collection[str], severities: Collection[int] = SEVERITIES) -> str:
    """Return what the mean over these corruptions and severities is called, as `benchmark (15)` or `3 corruptions`.

    Severities are named unless they are all five.
    """
    same = (title for title, listed in named_lists().items() if set(listed) == set(names))
    name = next(same, f"{len(names)} corruption{'s' * (len(names) != 1)}")
    return name if set(severities) == set(SEVERITIES) else f"{name}, severity {', '.join(map(str, severities))}"


def which_of_all(names: Collection[str]) -> str:
    """Return how many corruptions these are of all that there are, and which: the others are named if they are fewer.

    >>> from svdctl.config.corruption_names import which_of_all
    >>> which_of_all(["fog", "snow"])
    '2 of 19 corruptions (snow, fog)'
    """
    used, others = ([name for name in CORRUPTIONS if (name in names) is has] for has in (True, False))
    if not others:
        return f"all {len(CORRUPTIONS)} corruptions"
    which = f"without {', '.join(others)}" if len(others) < len(used) else ", ".join(used) or "none"
    return f"{len(used)} of {len(CORRUPTIONS)} corruptions ({which})"


def corruption_name(name: str) -> str:
    """Return the corruption meant by `name`: dashes and capitals are forgiven.

    Raises:
        UsageError: there is none of that name; the sentence offers the nearest.
    """
    if _plain(name) in CORRUPTIONS:
        return _plain(name)
    hint = nearest(_plain(name), (*CORRUPTIONS, CLEAN)) or f"; choose one of {', '.join(CORRUPTIONS)}"
    raise UsageError(f"there is no corruption {name!r}{hint}")


def expand_corruptions(words: Iterable[str]) -> tuple[str, ...]:
    """Return the corruptions meant by names and by the lists `all` and `benchmark`, each once.

    Raises:
        ValueError: with a sentence for each that there is not.
    """
    lists = {"all": CORRUPTIONS, "benchmark": BENCHMARK, CLEAN: (CLEAN,)}
    found: dict[str, None] = {}
    faults: list[str] = []
    for word in words:
        try:
            found |= dict.fromkeys(lists.get(_plain(word)) or (corruption_name(word),))
        except UsageError as error:
            faults += error.faults
    if faults:
        raise ValueError("\n".join(faults))
    return tuple(found)


def read_corruption_list() -> tuple[str, ...]:
    """Return the corruptions that `corruptions.txt` lists, one a line; `natural` stands for the clean images."""
    lines = read_text(resource("corruptions.txt")).splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def _plain(name: str) -> str:
    return name.strip().lower().replace("-", "_")
