"""The files of a table or figure, below `tables/` of the folder of runs."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from svdctl.config.table_config import Request, SpeedFigure
from svdctl.errors import UsageError
from svdctl.reproduce.job import Job
from svdctl.reproduce.run_store import RunStore
from svdctl.reproduce.table_renderers import as_json, comma_separated, latex, markdown
from svdctl.reproduce.table_results import Results
from svdctl.utils.atomic_write import write_atomically


def table_folder(out_dir: Path) -> Path:
    """Where outputs go; made when absent.

    Raises:
        UsageError: when it cannot be made.
    """
    folder = out_dir.expanduser() / "tables"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder} cannot be made ({error.strerror}); give another --out-dir") from error
    return folder


def write_table(out_dir: Path, results: Results, command: Callable[[Job], str], *, picture: bool) -> list[Path]:
    """Write a table in every format; the picture, which takes longest, only when asked for."""
    folder = table_folder(out_dir)
    name = results.plan.name
    formats: dict[str, Callable[[Results], str]] = {"md": markdown, "csv": comma_separated, "tex": latex}
    formats["json"] = partial(as_json, command=command)
    files = []
    for suffix, form in formats.items():
        files.append(folder / f"{name}.{suffix}")
        write_atomically(files[-1], form(results))
    if picture:
        from svdctl.reproduce.bar_plot import plot_bars  # matplotlib takes a second to import

        files.append(folder / f"{name}.png")
        plot_bars(results, files[-1])
    return files


def write_figure(
    request: Request, name: str, figure: SpeedFigure, store: RunStore, say: Callable[[str], None]
) -> list[Path]:
    """Measure and write a figure of speed; one that was cut off goes on where it was.

    Another command that measures at the same time would disturb: it is waited for.
    """
    told = False
    while True:
        with store.lock(f"figure-{name}") as mine:
            if mine:
                return _measured(request, name, figure, say)
        if not told:
            told = True
            say(f"another command measures {name}: waiting for it")
        time.sleep(1)


def _measured(request: Request, name: str, figure: SpeedFigure, say: Callable[[str], None]) -> list[Path]:
    from svdctl.reproduce import speed_renderers
    from svdctl.reproduce.speed import measure_figure

    folder = table_folder(request.out_dir)
    smoke = request.scale == "smoke"
    formats = {
        "md": speed_renderers.speed_markdown,
        "csv": speed_renderers.speed_csv,
        "tex": speed_renderers.speed_latex,
        "json": speed_renderers.speed_json,
    }
    stem = f"{name}-smoke" if smoke else name
    measured = folder / f".{stem}.measured.json"
    results = measure_figure(figure, smoke=smoke, file=measured, say=say)
    files = []
    for suffix, form in formats.items():
        files.append(folder / f"{stem}.{suffix}")
        write_atomically(files[-1], form(results))
    files.append(folder / f"{stem}.png")
    speed_renderers.plot_speed(results, files[-1])
    measured.unlink(missing_ok=True)
    return files
