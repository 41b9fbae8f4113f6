"""Files beside `results.json`: pictures, tables of single images, and the folders that the paper's flags name."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from svdctl.config.evaluate_config import EvaluateConfig, Metric
from svdctl.evaluate.find_checkpoints import unique_name
from svdctl.evaluate.results import Record, ResultStore, write_rows
from svdctl.evaluate.summary_text import ball, short
from svdctl.utils.atomic_write import write_atomically


def write_outputs(
    store: ResultStore, records: Mapping[Metric, Record], name: str, config: EvaluateConfig
) -> list[Path]:
    """Draw and write what belongs to these records; the files."""
    from svdctl.evaluate.evaluation_plots import (  # matplotlib takes a second to import
        plot_certified,
        plot_corruptions,
        plot_reliability,
    )

    folder = store.folder
    files = [store.path]
    export = unique_name(name, store.weights)
    if (record := records.get("ece")) is not None:
        files.append(folder / "reliability.png")
        plot_reliability(record.results, name + record.mark, files[-1])
    if (record := records.get("cifar-c")) is not None:
        rows = _corruption_rows(record)
        files.append(folder / "corruptions.csv")
        write_rows(files[-1], rows)
        picture = folder / "corruptions.png"
        picture.unlink(missing_ok=True)
        if record.results["accuracy"]:
            files.append(picture)
            plot_corruptions(record.results, name + record.mark, picture)
        if config.cifar_c_res is not None:
            files += _paper_corruptions(config.cifar_c_res, export, picture, rows)
    attack = records.get("autoattacks")
    if attack is not None:
        files.append(folder / "attacks.csv")
        write_rows(files[-1], _marked(store, attack))
        if config.autoattacks_res is not None:
            files += _paper_attacks(config.autoattacks_res, export, folder, attack)
    if (record := records.get("certified")) is not None:
        files.append(folder / "certified.csv")
        write_rows(files[-1], _marked(store, record))
        over = attack.results if attack is not None and ball(attack.protocol).startswith("L2") else None
        if attack is not None and attack.protocol["protocol"] != "pixels":
            over = None
        radii = [float(row["radius"]) for row in store.rows(record)]
        files.append(folder / "certified.png")
        mark = record.mark or (attack.mark if attack is not None and over is not None else "")
        plot_certified(radii, config.radii, record.results["lipschitz"], name + mark, files[-1], over)
    return files


def _marked(store: ResultStore, record: Record) -> list[dict[str, str]]:
    """The rows of the images; the column `kept` tells how this call came by them, as in all tables."""
    return [{**row, "kept": record.marks} for row in store.rows(record)]


def _corruption_rows(record: Record) -> list[dict[str, object]]:
    return [
        {"corruption": name, "severity": severity, "accuracy": f"{share:.6f}", "kept": record.marks}
        for name, row in (("natural", {"0": record.results["clean"]}), *record.results["accuracy"].items())
        for severity, share in row.items()
    ]


def _paper_corruptions(target: Path, name: str, picture: Path, rows: list[dict[str, object]]) -> list[Path]:
    """`cifar_c_res`: a picture for each checkpoint, where one was drawn, and the numbers beside it."""
    target = target.expanduser()
    target.mkdir(parents=True, exist_ok=True)
    files = [target / f"{name}.csv"]
    write_rows(files[0], rows)
    (target / f"{name}.png").unlink(missing_ok=True)
    if picture.exists():
        files.append(target / f"{name}.png")
        shutil.copyfile(picture, files[-1])
    return files


def _paper_attacks(target: Path, name: str, folder: Path, record: Record) -> list[Path]:
    """`autoattacks_res`: a text for each checkpoint, and the images beside it."""
    target = target.expanduser()
    target.mkdir(parents=True, exist_ok=True)
    results = record.results
    lines = [
        f"AutoAttack {ball(record.protocol)}, seed {results['seed']}, batch {results['batch_size']}",
        f"clean accuracy: {results['clean_accuracy']:.2%}",
        *(f"after {attack}: {share:.2%}" for attack, share in results["after_attack"].items()),
        f"robust accuracy: {results['robust_accuracy']:.2%}",
        short(record) + record.mark,
        *(f"left out: {text}" for text in results["left_out"]),
        *(f"warning: {text}" for text in results["warnings"]),
    ]
    files = [target / f"{name}.txt", target / f"{name}.csv"]
    write_atomically(files[0], "\n".join(lines) + "\n")
    shutil.copyfile(folder / "attacks.csv", files[1])
    return files
