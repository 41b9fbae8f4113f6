"""A kept figure is the one that was measured, or it is measured again and the reason is told."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from svdctl.cli.evaluation_flags import resolve_evaluation
from svdctl.config.corruption_names import BENCHMARK, CORRUPTIONS, list_name, named_lists
from svdctl.evaluate import evaluation_plots
from svdctl.evaluate.corruptions import corruption_metric
from svdctl.evaluate.figures import wilson_interval
from svdctl.evaluate.runner import EvaluationResult
from svdctl.evaluate.runner import run as evaluate
from svdctl.registry import DATA, METRICS
from svdctl.utils.measurement_cache import MeasurementCache, checksum
from tests.evaluate.small import Recorder, held_part, make, write_data

FACTORY = "tests.evaluate.small:build"


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They take longer than all the rest."""
    for name in ("plot_certified", "plot_corruptions", "plot_reliability"):
        monkeypatch.setattr(evaluation_plots, name, lambda *_: None)


@pytest.fixture
def linear(shared: Path, tmp_path: Path) -> Path:
    """A copy of the linear network's weights and of its data."""
    shutil.copy(shared / "data.npz", tmp_path)
    return Path(shutil.copy(shared / "linear.pth", tmp_path))


def measured(
    linear: Path, *metrics: str, recorder: Recorder | None = None, **flags: Any
) -> tuple[EvaluationResult, Recorder]:
    recorder = recorder or Recorder()
    # At a large eps an attack breaks every image in its first restart: seconds less.
    given = {
        "model": FACTORY,
        "dataset": f"npz:{linear.parent / 'data.npz'}",
        "corruptions": ["contrast"],
        "eps": 9.0,
        **flags,
    }
    result = evaluate(make(linear, metrics=list(metrics), **given), reporter=recorder)
    assert not result.failures
    return result, recorder


def figures(result: EvaluationResult, metric: Any) -> dict[str, Any]:
    return result.evaluations[0].records[metric].results


def results_file(linear: Path) -> Path:
    return linear.parent / "eval-linear" / "results.json"


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    contents = json.loads(path.read_text())
    change(contents)
    path.write_text(json.dumps(contents))


def reseal(contents: dict[str, Any]) -> None:
    """What a person does who forges the checksums too."""
    head = {name: contents[name] for name in ("format", "version", "about")}
    contents["sha256"] = checksum(head, {})
    for record in contents["records"]:
        record.pop("sha256", None)
        record["sha256"] = checksum(contents["about"], record)


CHANGES: dict[str, tuple[str, Callable[[dict[str, Any]], object]]] = {
    "accuracy": ("accuracy", lambda results: results.update(accuracy=0.999)),
    "interval": ("accuracy", lambda results: results.update(interval=[0.0, 1.0])),
    "counts": (
        "accuracy",
        lambda results: results.update(correct=13, accuracy=13 / 40, interval=list(wilson_interval(13, 40))),
    ),
    "text": ("accuracy", lambda results: results.update(accuracy="1.0")),
    "certificate": ("certified", lambda results: results["accuracy"].update({"255": 1.0})),
    "constant": ("certified", lambda results: results.update(lipschitz=results["lipschitz"] / 100)),
    "corruption": ("cifar-c", lambda results: results["accuracy"]["contrast"].update({"1": 0.975})),
    "mean": ("cifar-c", lambda results: results.update(mean=62.68)),
    "named mean": ("cifar-c", lambda results: results.update(figures={"benchmark (15)": 0.99})),
}


@pytest.mark.parametrize(
    ("name", "sealed"),
    # Counts that fit one another and their checksum are beyond what a file can show (docs/reliability.md).
    [(name, sealed) for name in CHANGES for sealed in (False, True) if not (name == "counts" and sealed)],
)
def test_a_changed_figure_is_measured_again(linear: Path, name: str, sealed: bool) -> None:
    metric, change = CHANGES[name]
    first, _ = measured(linear, metric)
    path = results_file(linear)
    edit(path, lambda contents: change(contents["records"][0]["results"]))
    if sealed:
        edit(path, reseal)
    again, recorder = measured(linear, metric)
    assert recorder.kept == {metric: ""}
    assert figures(again, metric) == figures(first, metric)
    (notice,) = [text for text in recorder.notices if "measured again" in text]
    assert ("checksum" in notice) is not sealed
    assert measured(linear, metric)[1].kept == {metric: "kept"}


def test_no_flipped_bit_of_the_results_changes_a_figure(linear: Path) -> None:
    first, _ = measured(linear, "accuracy")
    path = results_file(linear)
    sound = path.read_bytes()
    draw = random.Random(0)
    told = 0
    for _ in range(60):
        damaged = bytearray(sound)
        damaged[draw.randrange(len(damaged))] ^= 1 << draw.randrange(8)
        path.write_bytes(damaged)
        again, recorder = measured(linear, "accuracy")
        assert figures(again, "accuracy") == figures(first, "accuracy")
        told += any("measured again" in text for text in recorder.notices)
        assert bool(recorder.notices) or recorder.kept == {"accuracy": "kept"}
    assert told > 40


def test_rows_of_images_are_covered_too(linear: Path) -> None:
    measured(linear, "certified")
    (rows,) = (linear.parent / "eval-linear/details").iterdir()
    before = rows.read_text()
    rows.write_text(before.replace(",1,0.", ",1,9.", 1))
    assert rows.read_text() != before
    _, recorder = measured(linear, "certified")
    assert recorder.kept == {"certified": ""}
    assert any(f"{rows} fails its checksum" in text for text in recorder.notices)
    assert rows.read_text() == before


def test_a_kept_figure_says_so_everywhere(linear: Path) -> None:
    from svdctl.cli.evaluation_progress import result_json, result_table

    fresh, _ = measured(linear, "accuracy", "certified", "cifar-c")
    assert "(kept)" not in result_table(fresh)
    assert "(kept)" not in (fresh.report or Path()).read_text()
    again, recorder = measured(linear, "accuracy", "certified", "cifar-c")
    assert set(recorder.kept.values()) == {"kept"}
    # Accuracy, four radii, one mean of corruptions.
    assert result_table(again).count("(kept)") == 6
    report = (again.report or Path()).read_text()
    assert report.count("% (kept)") >= 6
    for metric in json.loads(result_json(again))["checkpoints"][0]["metrics"].values():
        assert metric["kept"] == "kept"
    for name in ("certified.csv", "corruptions.csv"):
        header, *lines = (results_file(linear).parent / name).read_text().splitlines()
        assert header.endswith(",kept")
        assert all(line.endswith(",kept") for line in lines)


def as_before(linear: Path) -> None:
    """The results as the version without checksums wrote them."""
    images, labels = held_part(linear.parent / "data.npz")
    digest = hashlib.sha256()
    for tensor in (images, labels):
        digest.update(repr((tuple(tensor.shape), tensor.dtype)).encode() + tensor.numpy().tobytes())

    def change(contents: dict[str, Any]) -> None:
        records = contents["records"]
        for record in records:
            for name in ("sha256", "details_sha256", "network"):
                del record[name]
            del record["protocol"]["data"]["fingerprint"]
            record["protocol"]["data"]["sha256"] = digest.hexdigest()
            for name in ("version", "held_out"):
                record["protocol"].pop(name, None)
            record["results"].pop("warnings", None) if record["metric"] == "ece" else None
            if record["metric"] == "cifar-c":
                del record["results"]["figures"]
                record["results"] |= {"benchmark": ["contrast"], "benchmark_mean": record["results"]["mean"]}
        checkpoint = {**contents["about"], **contents["remarks"]}
        contents.clear()
        contents |= {"format": "svdctl.evaluation", "version": 1, "checkpoint": checkpoint, "records": records}

    edit(results_file(linear), change)


def test_results_without_a_checksum_are_read_marked_and_replaced(linear: Path) -> None:
    metrics = ("accuracy", "ece", "cifar-c", "autoattacks", "certified")
    first, _ = measured(linear, *metrics, examples="2")
    as_before(linear)
    # Two metrics have another version since.
    old = dict.fromkeys(metrics, "kept, no checksum") | dict.fromkeys(("ece", "certified"), "")
    for _ in range(2):
        again, recorder = measured(linear, *metrics, examples="2")
        assert recorder.kept == old
        assert {metric: figures(again, metric) for metric in metrics} == {
            metric: figures(first, metric) for metric in metrics
        }
        assert "(kept, no checksum)" in (again.report or Path()).read_text()
        old |= dict.fromkeys(("ece", "certified"), "kept")
    measured(linear, "accuracy", "certified", force=True)
    assert measured(linear, *metrics, examples="2")[1].kept == dict.fromkeys(metrics, "kept") | {
        "cifar-c": "kept, no checksum",
        "autoattacks": "kept, no checksum",
    }
    assert len(json.loads(results_file(linear).read_text())["records"]) == len(metrics)


@pytest.mark.parametrize("name", [name for name in CHANGES if name != "counts"])
def test_a_changed_figure_without_a_checksum_that_cannot_be_right_is_measured_again(linear: Path, name: str) -> None:
    metric, change = CHANGES[name]
    first, _ = measured(linear, metric)
    as_before(linear)
    edit(results_file(linear), lambda contents: change(contents["records"][0]["results"]))
    again, recorder = measured(linear, metric)
    assert recorder.kept == {metric: ""}
    assert figures(again, metric) == figures(first, metric)


def test_a_certificate_that_its_rows_contradict_is_measured_again(linear: Path) -> None:
    """Figures and checksums forged, the rows of the images left as they are."""
    first, _ = measured(linear, "certified")

    def forge(contents: dict[str, Any]) -> None:
        results = contents["records"][0]["results"]
        results |= {"accuracy": dict.fromkeys(results["accuracy"], 1.0), "clean": 1.0, "largest_radius": 9.0}
        reseal(contents)

    edit(results_file(linear), forge)
    again, recorder = measured(linear, "certified")
    assert recorder.kept == {"certified": ""}
    assert any("contradicts the figures: measured again" in text for text in recorder.notices)
    assert figures(again, "certified") == figures(first, "certified")


def test_a_kept_certificate_is_proved_again(linear: Path) -> None:
    """Everything forged, rows and checksums included, but for the proof of L."""
    first, _ = measured(linear, "certified")

    def forge(contents: dict[str, Any]) -> None:
        record = contents["records"][0]
        rows = results_file(linear).parent / record["details"]
        lines = [",".join([*line.split(",")[:3], "1", "9.0"]) for line in rows.read_text().splitlines()[1:]]
        rows.write_text("\n".join([rows.read_text().splitlines()[0], *lines]))
        record["details_sha256"] = hashlib.sha256(rows.read_bytes()).hexdigest()
        record["results"] |= {
            "accuracy": dict.fromkeys(record["results"]["accuracy"], 1.0), "clean": 1.0, "lipschitz": 1e-3,
            "largest_radius": 9.0, "mean_radius": 9.0,
        }  # fmt: skip
        reseal(contents)

    edit(results_file(linear), forge)
    again, recorder = measured(linear, "certified")
    assert recorder.kept == {"certified": ""}
    assert any("with L = 0.001, and" in text for text in recorder.notices)
    assert figures(again, "certified") == figures(first, "certified")


def stop_after(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, calls: int) -> None:
    real, made = getattr(owner, name), [0]

    def stopping(*arguments: Any) -> Any:
        found = real(*arguments)
        made[0] += 1
        if made[0] == calls:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(owner, name, stopping)


def unfinished(linear: Path) -> Path:
    (path,) = (linear.parent / "eval-linear/unfinished").iterdir()
    return path


@pytest.fixture
def cut_off(linear: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The state of an attack that was stopped after its first batch."""
    with monkeypatch.context() as patch:
        stop_after(patch, MeasurementCache, "put", 2)
        with pytest.raises(KeyboardInterrupt):
            measured(linear, "autoattacks", batch_size=3)
    return unfinished(linear)


def old_state(path: Path, **changes: Any) -> None:
    """The same state as the version without checksums kept it."""
    record = torch.load(path, weights_only=True)["records"][0]
    torch.save({**record["state"], "nearest": record["nearest"], **changes}, path)


def test_no_changed_state_of_an_attack_changes_its_figure(
    linear: Path, cut_off: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = cut_off.read_bytes()
    whole, recorder = measured(linear, "autoattacks", batch_size=3)
    assert any("going on after batch" in text for text in recorder.notices)
    contents = torch.load(_written(cut_off, sound), weights_only=True)
    state = contents["records"][0]["state"]

    def resealed(**changes: Any) -> None:
        record = {**contents["records"][0], "state": {**state, **changes}}
        record.pop("sha256")
        seal = checksum(contents["about"], record)
        torch.save({**contents, "records": [{**record, "sha256": seal}]}, cut_off)

    one_more = state["broken_by"].clone()
    one_more[one_more == -1] = -2
    spoiled: list[Callable[[], object]] = [
        lambda: old_state(cut_off, fingerprint=None),
        lambda: old_state(cut_off, fingerprint="0" * 64),
        lambda: torch.save({**contents, "records": [{**contents["records"][0], "nearest": torch.ones(6)}]}, cut_off),
        lambda: resealed(broken_by=one_more),
        lambda: resealed(fingerprint=None),
        lambda: resealed(clean_predictions=state["clean_predictions"] + 1),
        lambda: cut_off.write_bytes(sound[:-100]),
        lambda: cut_off.write_bytes(b"PK\x03\x04"),
    ]  # fmt: skip
    place = sound.index(state["distances"].numpy().tobytes())
    spoiled.append(lambda: cut_off.write_bytes(sound[:place] + bytes([sound[place] ^ 1]) + sound[place + 1 :]))
    for spoil in spoiled:
        (linear.parent / "eval-linear/results.json").unlink()
        _written(cut_off, sound)
        spoil()
        recorder = Recorder()
        with monkeypatch.context() as patch:
            stop_after(patch, MeasurementCache, "put", 1)
            with pytest.raises(KeyboardInterrupt):
                measured(linear, "autoattacks", batch_size=3, recorder=recorder)
        assert not any("going on after batch" in text for text in recorder.notices)
        assert any(str(cut_off) in text for text in recorder.notices)
        begun = torch.load(cut_off, weights_only=True)["records"][0]["state"]
        assert begun["batches_done"] == 0
    again, _ = measured(linear, "autoattacks", batch_size=3)
    assert figures(again, "autoattacks") == figures(whole, "autoattacks")


def _written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)
    return path


def test_an_old_state_is_gone_on_with_and_the_figure_says_so(linear: Path, cut_off: Path) -> None:
    old_state(cut_off)
    result, recorder = measured(linear, "autoattacks", batch_size=3)
    assert any("going on after batch" in text for text in recorder.notices)
    assert any("wrote no checksums" in text for text in figures(result, "autoattacks")["warnings"])


@pytest.mark.parametrize("value", [999, -5, "7", 3.5, None, 41])
@pytest.mark.parametrize("form", ["old", "sealed", "forged"])
def test_counts_that_cannot_be_are_counted_again(
    linear: Path, monkeypatch: pytest.MonkeyPatch, value: object, form: str
) -> None:
    with monkeypatch.context() as patch:
        stop_after(patch, corruption_metric, "corrupt", 3)
        with pytest.raises(KeyboardInterrupt):
            measured(linear, "cifar-c")
    path = unfinished(linear)

    def change(contents: dict[str, Any]) -> None:
        contents["records"][1]["correct"] = value
        if form == "forged":
            reseal(contents)

    if form == "old":
        path.write_text(json.dumps({"natural": value, "contrast 1": value}))
    else:
        edit(path, change)
    result, recorder = measured(linear, "cifar-c")
    assert any("measured again" in text for text in recorder.notices)
    assert figures(result, "cifar-c") == figures(measured(linear, "cifar-c", force=True)[0], "cifar-c")


@pytest.mark.parametrize("what", ["pixel", "label", "fewer"])
def test_results_of_other_data_are_not_used(linear: Path, what: str) -> None:
    measured(linear, "accuracy")
    arrays = dict(np.load(linear.parent / "data.npz"))
    if what == "pixel":
        arrays["x_test"][0, 0, 0, 0] ^= 1
    elif what == "label":
        arrays["y_test"][[0, 1]] = arrays["y_test"][[1, 0]]
    else:
        arrays["x_test"], arrays["y_test"] = arrays["x_test"][:-1], arrays["y_test"][:-1]
    np.savez(linear.parent / "data.npz", **arrays)
    assert measured(linear, "accuracy")[1].kept == {"accuracy": ""}


def test_a_published_file_that_changes_in_its_middle_is_other_data(linear: Path) -> None:
    images, labels = held_part(linear.parent / "data.npz")
    folder = linear.parent / "C"
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels.numpy(), 5))
    array = np.tile(images.permute(0, 2, 3, 1).numpy(), (5, 1, 1, 1))
    np.save(folder / "fog.npy", array)
    flags = {"corruptions": ["fog"], "cifar_c_root": folder}
    measured(linear, "cifar-c", **flags)
    assert measured(linear, "cifar-c", **flags)[1].kept == {"cifar-c": "kept"}
    array[100] = 255 - array[100]
    np.save(folder / "fog.npy", array)
    assert measured(linear, "cifar-c", **flags)[1].kept == {"cifar-c": ""}


def test_no_two_checkpoints_share_a_folder_of_results(linear: Path, tmp_path: Path) -> None:
    """Names that are equal in their first 100 characters, in one call and in two; names that differ in a slash."""
    weights = torch.load(linear, weights_only=True)
    out = tmp_path / "out"
    paths = [tmp_path / ("n" * 120 + tail) for tail in ("a.pth", "b.pth")] + [tmp_path / "other" / linear.name]
    for number, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        torch.save({name: value * (number + 2) for name, value in weights.items()}, path)
    flags = {"model": FACTORY, "dataset": f"npz:{tmp_path / 'data.npz'}", "metrics": ["accuracy"], "out_dir": out}
    for group in ([*paths[:2], linear], [paths[2]]):
        assert not evaluate(make(*group, **flags), reporter=Recorder()).failures
    folders = [path for path in out.iterdir() if path.is_dir()]
    assert len(folders) == 4
    for path in (*paths, linear):
        recorder = Recorder()
        evaluate(make(path, **flags), reporter=recorder)
        assert recorder.kept == {"accuracy": "kept"}
        assert not any("other weights" in text for text in recorder.notices)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (BENCHMARK, ["benchmark (15)"]),
        (CORRUPTIONS, ["benchmark (15)", "all (19)", "corruptions.txt (18)"]),
        ([name for name in CORRUPTIONS if name != "glass_blur"], ["corruptions.txt (18)"]),
        ([name for name in BENCHMARK if name != "glass_blur"], ["14 corruptions"]),
        (["fog"], ["1 corruption"]),
        ((*BENCHMARK, "saturate"), ["benchmark (15)", "16 corruptions"]),
    ],
)
def test_a_mean_over_corruptions_bears_the_name_of_what_it_is_over(names: list[str], expected: list[str]) -> None:
    share = {name: place / 100 for place, name in enumerate(CORRUPTIONS)}
    table = {name: {str(severity): share[name] for severity in range(1, 6)} for name in names}
    found = corruption_metric.means_of(table)["figures"]
    assert list(found) == expected
    lists = {expected[-1]: names, **named_lists()}
    for name in expected:
        assert found[name] == pytest.approx(sum(share[one] for one in lists[name]) / len(lists[name]))
    only = corruption_metric.means_of({name: {"1": 0.5, "3": 0.5} for name in names})["figures"]
    assert list(only) == [f"{name}, severity 1, 3" for name in expected]


def test_list_names() -> None:
    assert [len(names) for names in named_lists().values()] == [15, 19, 18]
    assert list_name(BENCHMARK[::-1]) == "benchmark (15)"


def test_every_table_says_over_which_corruptions_its_mean_is(linear: Path) -> None:
    from svdctl.cli.evaluation_progress import result_table

    result, recorder = measured(linear, "cifar-c", corruptions=["benchmark"], severities=["1"])
    name = "benchmark (15), severity 1"
    assert list(figures(result, "cifar-c")["figures"]) == [name]
    for text in (result_table(result), (result.report or Path()).read_text()):
        assert f"corrupted, {name}" in text
    assert any(line.startswith("benchmark (15) at severity 1: ") for line in recorder.lines)


@pytest.mark.parametrize(
    ("last", "words"),
    [
        ("softmax", "the network returns probabilities in place of logits"),
        ("sigmoid", "all outputs of the network lie between 0 and 1"),
        ("log_softmax", None),
        ("logits", None),
    ],
)
def test_a_network_that_returns_probabilities_is_named(linear: Path, last: str, words: str | None) -> None:
    for _ in range(2):  # told again when the figure is kept
        result, recorder = measured(linear, "ece", model=f"tests.evaluate.small:build_{last}")
        report = (result.report or Path()).read_text()
        if words is None:
            assert "probabilities" not in report + " ".join(recorder.notices)
        else:
            assert any(f"linear: {words}" in text for text in recorder.notices)
            assert f"warning: {words}" in report


def test_other_data_of_the_held_out_part_change_the_calibration(tmp_path: Path, shared: Path) -> None:
    """The temperature is fitted on a part of the training set, which the test part does not tell."""
    from tests.evaluate.small import write_run

    data = write_data(tmp_path / "data.npz")
    write_run(tmp_path / "run", data, steps=2)
    config = make(tmp_path / "run", metrics=["accuracy", "ece"])
    evaluate(config, reporter=Recorder())
    arrays = dict(np.load(data))
    arrays["x_train"] = 255 - arrays["x_train"]
    np.savez(data, **arrays)
    recorder = Recorder()
    evaluate(config, reporter=recorder)
    assert recorder.kept == {"accuracy": "kept", "ece": ""}


def test_a_longer_list_of_corruptions_measures_what_is_new_alone(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = measured(linear, "cifar-c", corruptions=["contrast"])
    drawn: list[str] = []
    real = corruption_metric.corrupt

    def counted(*arguments: Any) -> torch.Tensor:
        drawn.append(arguments[1])
        return real(*arguments)

    monkeypatch.setattr(corruption_metric, "corrupt", counted)
    both, recorder = measured(linear, "cifar-c", corruptions=["contrast", "brightness"])
    assert recorder.kept == {"cifar-c": ""}
    assert drawn == ["brightness"] * len(figures(both, "cifar-c")["accuracy"]["contrast"])
    assert figures(both, "cifar-c")["accuracy"]["contrast"] == figures(first, "cifar-c")["accuracy"]["contrast"]
    fresh, _ = measured(linear, "cifar-c", corruptions=["contrast", "brightness"], force=True)
    assert figures(fresh, "cifar-c") == figures(both, "cifar-c")
    # A shorter list is in it, and the table beside the results keeps what is known.
    drawn.clear()
    shorter, _ = measured(linear, "cifar-c", corruptions=["brightness"])
    assert not drawn
    assert list(figures(shorter, "cifar-c")["accuracy"]) == ["brightness"]
    assert "contrast" in (results_file(linear).parent / "corruptions.csv").read_text()
    # Others are drawn from another seed.
    measured(linear, "cifar-c", corruptions=["brightness"], seed=7)
    assert set(drawn) == {"brightness"}


@pytest.mark.parametrize(
    ("kind", "init", "count"), [("svdctl", "svdctl", 15), ("svdctl", "paper", 19), ("paper", "", 19)]
)
def test_the_benchmarks_corruptions_are_taken_but_for_networks_that_follow_the_paper(
    kind: str, init: str, count: int
) -> None:
    from types import SimpleNamespace

    from svdctl.evaluate.evaluated_model import EvaluatedModel

    training: Any = SimpleNamespace(init=init) if init else None
    network: Any = torch.nn.Identity()
    model = EvaluatedModel(network, "", {"kind": kind}, None, None, None, training)
    context: Any = SimpleNamespace(
        config=resolve_evaluation({}).config, model=model, data=SimpleNamespace(data=DATA.get("digits").config())
    )
    names = METRICS.get("cifar-c").settings_for(context).names
    assert names == {15: BENCHMARK, 19: CORRUPTIONS}[count]


def test_titles_of_pictures_do_not_say_that_figures_were_kept(linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from svdctl.evaluate import evaluation_plots

    said: list[str] = []
    for name in ("plot_corruptions", "plot_reliability"):
        monkeypatch.setattr(evaluation_plots, name, lambda results, title, *_: said.append(title))
    measured(linear, "ece", "cifar-c")
    _, recorder = measured(linear, "ece", "cifar-c")
    assert set(recorder.kept.values()) == {"kept"}
    assert said == ["linear"] * len(said)
    assert len(said) >= 4


def test_lines_of_figures_are_in_words() -> None:
    from svdctl.evaluate.metrics.cifar_c import _in_words

    assert _in_words("2 corruptions, severity 1, 5") == "2 corruptions at severities 1 and 5"
    assert _in_words("benchmark (15), severity 3") == "benchmark (15) at severity 3"
    assert _in_words("all (19)") == "all (19)"
