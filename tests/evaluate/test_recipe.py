"""Every metric on small networks against direct computation; kept results, failures and comparisons."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

import svdctl
from svdctl.config.evaluate_config import EvaluateConfig
from svdctl.errors import BusyFolderError, CheckpointError, DataError, EvaluationError, UnprovedError, UsageError
from svdctl.evaluate import certificate_metric
from svdctl.evaluate.attack import attack_metric
from svdctl.evaluate.calibration import calibration
from svdctl.evaluate.corruptions import corruption_metric
from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.evaluate.figures import wilson_interval
from svdctl.evaluate.results import read_rows
from svdctl.evaluate.runner import EvaluationResult
from svdctl.evaluate.runner import run as evaluate
from tests.evaluate.small import CLASSES, SIDE, Recorder, build, held_part, make, write_run
from tests.evaluate.test_cifar_c import write_cifar_c

FACTORY = "tests.evaluate.small:build"


@pytest.fixture
def linear(shared: Path, tmp_path: Path) -> Path:
    """A copy of the linear network's weights."""
    return Path(shutil.copy(shared / "linear.pth", tmp_path))


def of_linear(shared: Path, linear: Path, **flags: Any) -> EvaluateConfig:
    """The same measured on its data."""
    return make(linear, **{"model": FACTORY, "dataset": f"npz:{shared / 'data.npz'}", **flags})


def figures(result: EvaluationResult, metric: Any, place: int = 0) -> dict[str, Any]:
    return result.evaluations[place].records[metric].results


def logits_of(path: Path, images: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return svdctl.load(path)(images.float() / 255)


def test_accuracy_and_calibration_are_those_of_the_logits(shared: Path, run: Path) -> None:
    recorder = Recorder()
    result = evaluate(make(run, metrics=["accuracy", "ece"]), reporter=recorder)
    assert not result.failures
    images, labels = held_part(shared / "data.npz")
    direct = calibration(logits_of(run, images), labels)
    assert 0.5 < direct.accuracy < 1
    assert figures(result, "accuracy")["accuracy"] == direct.accuracy
    correct = round(direct.accuracy * direct.count)
    assert figures(result, "accuracy")["interval"] == list(wilson_interval(correct, direct.count))
    assert figures(result, "accuracy")["interval"][0] < direct.accuracy < figures(result, "accuracy")["interval"][1]
    ece = figures(result, "ece")
    assert ece["ece"] == pytest.approx(direct.ece, abs=1e-6)
    assert ece["nll"] == pytest.approx(direct.nll, rel=1e-5)
    assert ece["brier"] == pytest.approx(direct.brier, rel=1e-5)
    assert sum(ece["bins"]["counts"]) == len(labels)
    assert "16 training images that the run kept" in ece["temperature"]["fitted_on"]


def test_without_a_validation_part_the_temperature_is_fitted_on_half_of_the_test_set(
    shared: Path, tmp_path: Path
) -> None:
    path = shutil.copy(shared / "linear.pth", tmp_path)
    config = make(Path(path), model=FACTORY, dataset=f"npz:{shared / 'data.npz'}", metrics=["ece"])
    scaled = figures(evaluate(config, reporter=Recorder()), "ece")["temperature"]
    assert scaled["fitted_count"] == scaled["count"] == 20
    assert scaled["fitted_on"].startswith("20 test images drawn from the seed")


def test_own_corruptions_are_classified_as_by_hand(shared: Path, run: Path) -> None:
    result = evaluate(make(run, metrics=["cifar-c"], seed=5), reporter=Recorder())
    found = figures(result, "cifar-c")
    images, labels = held_part(shared / "data.npz")
    for name in ("contrast", "gaussian_noise", "gaussian_blur"):
        for severity in range(1, 6):
            changed = corrupt(images, name, severity, 5)
            share = (logits_of(run, changed).argmax(1) == labels).double().mean()
            assert found["accuracy"][name][str(severity)] == pytest.approx(float(share))
    means = found["mean_by_corruption"]
    # None of the three named lists is there whole: no figure bears such a name.
    assert found["figures"] == {"3 corruptions": pytest.approx(sum(means.values()) / 3)}
    assert found["mean"] == found["figures"]["3 corruptions"]
    assert found["source"] == "drawn"
    assert found["notes"]


def test_published_files_are_classified_as_by_hand(shared: Path, run: Path, tmp_path: Path) -> None:
    images, labels = held_part(shared / "data.npz")
    folder = tmp_path / "C"
    write_files(folder, images, labels, ("fog", "spatter"))
    result = evaluate(
        make(run, metrics=["cifar-c"], corruptions=["fog", "spatter"], cifar_c_root=folder), reporter=Recorder()
    )
    found = figures(result, "cifar-c")
    assert found["source"] == "published"
    for name in ("fog", "spatter"):
        array = np.load(folder / f"{name}.npy")
        for severity in range(1, 6):
            part = torch.from_numpy(array[40 * (severity - 1) : 40 * severity]).permute(0, 3, 1, 2)
            share = (logits_of(run, part).argmax(1) == labels).double().mean()
            assert found["accuracy"][name][str(severity)] == pytest.approx(float(share))
    # A part of the images, in whatever order they are drawn.
    config = make(run, metrics=["cifar-c"], corruptions=["fog"], cifar_c_root=folder, corruption_examples=7)
    assert figures(evaluate(config, reporter=Recorder()), "cifar-c")["count"] == 7


def write_files(folder: Path, images: torch.Tensor, labels: torch.Tensor, names: tuple[str, ...]) -> None:
    folder.mkdir()
    np.save(folder / "labels.npy", np.tile(labels.numpy(), 5))
    for seed, name in enumerate(names):
        noisy = [corrupt(images, "gaussian_noise", severity, seed) for severity in range(1, 6)]
        np.save(folder / f"{name}.npy", torch.cat(noisy).permute(0, 2, 3, 1).numpy())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "fog.npy").unlink(), r"lacks fog\.npy"),
        (lambda folder: (folder / "labels.npy").unlink(), r"no file .*labels\.npy"),
        (lambda folder: np.save(folder / "labels.npy", np.zeros(200, np.uint8)), "does not match the test set"),
        (lambda folder: (folder / "fog.npy").write_bytes((folder / "fog.npy").read_bytes()[:-9]), "cut short"),
    ],
)
def test_bad_files_stop_this_metric_alone(
    shared: Path, run: Path, tmp_path: Path, spoil: Callable[[Path], object], words: str
) -> None:
    write_files(tmp_path / "C", *held_part(shared / "data.npz"), ("fog",))
    spoil(tmp_path / "C")
    config = make(run, metrics=["accuracy", "cifar-c"], corruptions=["fog"], cifar_c_root=tmp_path / "C")
    result = evaluate(config, reporter=Recorder())
    (failure,) = result.failures
    assert failure.metric == "cifar-c"
    assert isinstance(failure.error, DataError)
    assert re.search(words, str(failure.error))
    assert set(result.evaluations[0].records) == {"accuracy"}
    assert "What failed" in (result.report or Path()).read_text()


def test_attacks_are_pyautoattacks_own(shared: Path, linear: Path) -> None:
    from pyautoattack import AutoAttack

    config = of_linear(
        shared, linear, metrics=["autoattacks"], attacks=["apgd-ce", "apgd-t"], eps=0.3, seed=7, examples="all"
    )
    result = evaluate(config, reporter=Recorder())
    found = figures(result, "autoattacks")
    images, labels = held_part(shared / "data.npz")
    model = build()
    model.load_state_dict(torch.load(linear, weights_only=True))
    direct = AutoAttack(
        model, norm="L2", eps=0.3, seed=7, version="custom", attacks=["apgd-ce", "apgd-t"], device="cpu"
    )
    direct.apgd_targeted.n_target_classes = CLASSES - 1
    direct.logger.disabled = True
    changed, _ = direct.run_standard_evaluation(images.float() / 255, labels, batch_size=250)
    stand = (model(changed).argmax(1) == labels).double().mean()
    assert found["robust_accuracy"] == pytest.approx(float(stand))
    assert 0 < found["robust_accuracy"] < found["clean_accuracy"]
    rows = (linear.parent / "eval-linear" / "attacks.csv").read_text().splitlines()
    assert rows[0] == "image,label,clean_prediction,outcome,attack,prediction,distance,nearest,kept"
    assert len(rows) == 41


def test_attacked_images_are_brought_as_near_as_the_line_to_them_allows(shared: Path, linear: Path) -> None:
    """Of a linear network the nearest change is known: margin / gradient norm; no attack can be nearer."""
    config = of_linear(shared, linear, metrics=["autoattacks", "certified"], eps=2.0, examples="all")
    result = evaluate(config, reporter=Recorder())
    assert not result.failures
    weights = torch.load(linear, weights_only=True)
    images, labels = held_part(shared / "data.npz")
    logits = images.float().div(255).flatten(1) @ weights["linear.weight"].T + weights["linear.bias"]
    away = weights["linear.weight"][labels][:, None] - weights["linear.weight"][None]
    margins = (logits.gather(1, labels[:, None]) - logits) / away.norm(dim=2).clamp_min(1e-9)
    nearest = margins.masked_fill(torch.arange(CLASSES) == labels[:, None], torch.inf).min(1).values
    broken = [row for row in read_rows(linear.parent / "eval-linear/attacks.csv") if row["outcome"] == "broken"]
    assert len(broken) > 10
    for row in broken:
        best, found, distance = float(nearest[int(row["image"])]), float(row["nearest"]), float(row["distance"])
        assert best * 0.999 <= found <= distance <= 2.0001
    # APGD ends on the ball's surface; bisection brings its images back towards the decision boundary.
    assert np.median([float(row["nearest"]) / float(row["distance"]) for row in broken]) < 0.9


def test_certificates_of_a_linear_network_are_exact(shared: Path, linear: Path) -> None:
    config = of_linear(shared, linear, metrics=["certified"], radii=["1", "20", "90"])
    found = figures(evaluate(config, reporter=Recorder()), "certified")
    weights = torch.load(linear, weights_only=True)
    weight, bias = weights["linear.weight"].double(), weights["linear.bias"].double()
    norm = float(torch.linalg.matrix_norm(weight, 2))
    assert norm <= found["lipschitz"] <= 1.11 * norm
    images, labels = held_part(shared / "data.npz")
    logits = images.double().div(255).flatten(1) @ weight.T + bias
    apart = (weight[labels][:, None] - weight[None]).norm(dim=2)
    margins = (logits.gather(1, labels[:, None]) - logits) / apart
    radii = margins.masked_fill(torch.arange(CLASSES) == labels[:, None], torch.inf).min(1).values.clamp_min(0)
    rows = read_rows(linear.parent / "eval-linear/certified.csv")
    assert [float(row["radius"]) for row in rows] == pytest.approx(radii.tolist(), rel=1e-5, abs=1e-9)
    for radius in (1, 20, 90):
        assert found["accuracy"][str(radius)] == float((radii > radius / 255).double().mean())
    assert not found["vacuous"]
    assert found["largest_radius"] == pytest.approx(float(radii.max()))


@pytest.mark.drawn
def test_everything_at_once_is_in_order_and_drawn(run: Path) -> None:
    recorder = Recorder()
    result = evaluate(make(run.parent), reporter=recorder)
    assert not result.failures
    folder = run / "eval-last"
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "results.json", "reliability.png", "corruptions.png", "corruptions.csv", "certified.png", "certified.csv",
        "attacks.csv", "details",
    }  # fmt: skip
    assert not list(folder.rglob("*.part"))
    assert not (folder / "unfinished").exists()
    contents = json.loads((folder / "results.json").read_text())
    assert [record["metric"] for record in contents["records"]] == list(recorder.kept)
    for record in contents["records"]:
        assert record["protocol"]["weights"] == contents["about"]["weights"]
        assert record["protocol"]["data"]["count"] == 40
        assert record["environment"]["versions"]["torch"]
        assert record["seconds"] >= 0
    assert result.evaluations[0].order is not None
    order = result.evaluations[0].order.figures
    assert order["certified"] <= order["attacked"] <= order["clean"]
    assert result.report == run.parent / "report.md"
    text = result.report.read_text()
    for part in ("| a/last |", "apgd-ce L2 0.5", "seed 3407", "a/eval-last/certified.png", "6 test images"):
        assert part in text


def test_what_is_finished_is_never_measured_again(shared: Path, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = evaluate(of_linear(shared, linear), reporter=Recorder())

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    with monkeypatch.context() as patch:
        patch.setattr(attack_metric, "run", forbidden)
        patch.setattr(corruption_metric, "measure", forbidden)
        patch.setattr(certificate_metric, "measure", forbidden)
        recorder = Recorder()
        second = evaluate(of_linear(shared, linear), reporter=recorder)
    assert not second.failures
    assert all(recorder.kept.values())
    for metric, record in first.evaluations[0].records.items():
        again = second.evaluations[0].records[metric]
        assert (record.kept, again.kept) == ("", "kept")
        assert record.model_dump() == again.model_dump()
    # Other settings are another figure, --force the same one anew.
    again = Recorder()
    evaluate(of_linear(shared, linear, metrics=["autoattacks"], eps=0.1), reporter=again)
    assert again.kept == {"autoattacks": ""}
    evaluate(of_linear(shared, linear, metrics=["autoattacks"]), reporter=again)
    assert again.kept == {"autoattacks": "kept"}
    evaluate(of_linear(shared, linear, metrics=["autoattacks"], force=True), reporter=again)
    assert again.kept == {"autoattacks": ""}


def test_another_checkpoint_under_the_same_name_starts_anew_and_says_so(shared: Path, run: Path) -> None:
    evaluate(make(run, metrics=["accuracy"]), reporter=Recorder())
    write_run(run, shared / "data.npz", seed=9)
    recorder = Recorder()
    evaluate(make(run, metrics=["accuracy"]), reporter=recorder)
    assert recorder.kept == {"accuracy": ""}
    assert any("other weights" in notice and "starting anew" in notice for notice in recorder.notices)


def test_an_interrupted_list_of_corruptions_goes_on(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    real = corruption_metric.corrupt

    def cut(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(corruption_metric, "corrupt", cut)
    with pytest.raises(KeyboardInterrupt):
        evaluate(make(run, metrics=["cifar-c"]), reporter=Recorder())
    monkeypatch.setattr(corruption_metric, "corrupt", lambda *arguments: real(*arguments) if counted() else None)

    def counted() -> bool:
        nonlocal calls
        calls += 1
        return True

    calls = 0
    resumed = evaluate(make(run, metrics=["cifar-c"]), reporter=Recorder())
    assert calls == 15 - 7
    fresh = evaluate(make(run, metrics=["cifar-c"], force=True), reporter=Recorder())
    assert figures(resumed, "cifar-c") == figures(fresh, "cifar-c")


def test_a_violation_of_the_order_is_told_as_a_bug(shared: Path, linear: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = certificate_metric.measure

    def boastful(*arguments: Any) -> Any:
        results, rows = real(*arguments)
        return results, [{**row, "radius": "9.0"} for row in rows]

    monkeypatch.setattr(certificate_metric, "measure", boastful)
    result = evaluate(of_linear(shared, linear, metrics=["autoattacks", "certified"], eps=1.0), reporter=Recorder())
    (failure,) = result.failures
    assert failure.metric == "order"
    assert isinstance(failure.error, EvaluationError)
    assert "BUG" in str(failure.error)
    assert "BUG" in (result.report or Path()).read_text()
    # Rows that contradict their figures are not kept: the certificate is measured again, and rightly.
    monkeypatch.undo()
    again = evaluate(of_linear(shared, linear, metrics=["autoattacks", "certified"], eps=1.0), reporter=Recorder())
    assert not again.failures


def test_one_bad_checkpoint_does_not_stop_the_others(shared: Path, run: Path) -> None:
    runs = run.parent
    bad = runs / "b"
    bad.mkdir()
    (bad / "last.pt").write_bytes((run / "last.pt").read_bytes()[:3000])
    (runs / "page.pth").write_text("<html>")
    torch.save({"weight": torch.zeros(3)}, runs / "bare.pth")
    recorder = Recorder()
    result = evaluate(make(runs, metrics=["accuracy"]), reporter=recorder)
    assert [evaluation.found.name for evaluation in result.evaluations] == ["a/last"]
    assert [line for line in recorder.lines if "->" in line] == [f"a/last  ->  {run / 'eval-last'}"]
    assert {failure.where for failure in result.failures} == {"b/last", "page", "bare"}
    assert recorder.failures == list(result.failures)
    assert all("\n" not in str(failure.error) for failure in result.failures)


def test_a_folder_whose_name_is_no_text_is_evaluated_and_reported(run: Path) -> None:
    odd = run.rename(run.with_name(os.fsdecode(b"odd\xff")))
    result = evaluate(make(run.parent, metrics=["accuracy"]), reporter=Recorder())
    assert not result.failures
    assert result.report is not None
    assert "odd\\udcff" in result.report.read_text(encoding="utf-8")
    assert list(odd.rglob("results.json"))


def test_figures_on_different_data_stand_in_different_tables(shared: Path, run: Path) -> None:
    shutil.copytree(run, run.parent / "c")
    shutil.copytree(shared / "other-run", run.parent / "b")
    result = evaluate(make(run.parent, metrics=["accuracy"]), reporter=Recorder())
    assert not result.failures
    assert [evaluation.found.name for evaluation in result.evaluations] == ["a/last", "c/last", "b/last"]
    first, second = result.tables()
    assert "data.npz" in first.title
    assert "other.npz" in second.title
    assert [[row[0].text for row in table.rows] for table in (first, second)] == [["a/last", "c/last"], ["b/last"]]
    lines = (result.report or Path()).read_text().splitlines()
    assert sum(line.startswith("## On npz:") for line in lines) == 2
    # On data that are named, the number of classes tells.
    config = make(run.parent, metrics=["accuracy"], dataset=f"npz:{shared / 'other.npz'}")
    result = evaluate(config, reporter=Recorder())
    assert {failure.where for failure in result.failures} == {"a/last", "c/last"}
    assert all("4 classes" in str(failure.error) for failure in result.failures)


def test_a_network_of_other_classes_is_refused(shared: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(shared / "linear.pth", tmp_path))
    recorder = Recorder()
    result = evaluate(make(path, model=FACTORY, dataset=f"npz:{shared / 'other.npz'}"), reporter=recorder)
    assert not any("->" in line for line in recorder.lines)
    (failure,) = result.failures
    assert isinstance(failure.error, CheckpointError)
    assert "tells 4 classes apart" in str(failure.error)
    assert "has 2" in str(failure.error)


def test_foreign_weights_need_data_and_a_network(shared: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(shared / "linear.pth", tmp_path))
    for flags, words in (({"model": FACTORY}, "add `data.kind`"), ({}, "add `network.model")):
        (failure,) = evaluate(make(path, **flags), reporter=Recorder()).failures
        assert isinstance(failure.error, UsageError)
        assert words in str(failure.error)


def test_nothing_to_evaluate_is_wrong_usage(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="there is no checkpoint"):
        evaluate(make(tmp_path), reporter=Recorder())


def test_the_papers_folders_are_filled(shared: Path, linear: Path, tmp_path: Path) -> None:
    config = of_linear(
        shared,
        linear,
        metrics=["cifar-c", "autoattacks"],
        cifar_c_res=tmp_path / "cres",
        autoattacks_res=tmp_path / "ares",
    )
    result = evaluate(config, reporter=Recorder())
    assert not result.failures
    weights = result.evaluations[0].model.weights[:12]
    assert {path.name for path in (tmp_path / "cres").iterdir()} == {f"linear-{weights}.csv", f"linear-{weights}.png"}
    assert {path.name for path in (tmp_path / "ares").iterdir()} == {f"linear-{weights}.csv", f"linear-{weights}.txt"}
    assert "robust accuracy" in (tmp_path / f"ares/linear-{weights}.txt").read_text()


def test_the_papers_protocol_carries_its_name(shared: Path, linear: Path) -> None:
    half = (0.5, 0.5, 0.5)
    config = of_linear(shared, linear, metrics=["autoattacks", "certified"], protocol="paper", mean=half, std=half)
    recorder = Recorder()
    result = evaluate(config, reporter=recorder)
    assert not result.failures
    # Not comparable with certificates, so not compared.
    assert result.evaluations[0].order is None
    text = (result.report or Path()).read_text()
    assert "| apgd-ce L2 0.5, protocol paper |" in text
    assert "protocol paper" in " ".join(recorder.lines)
    assert any("protocol paper" in notice for notice in recorder.notices)


def test_results_that_cannot_be_written_are_a_failure(run: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = evaluate(make(run, metrics=["accuracy"], out_dir=tmp_path / "file"), reporter=Recorder())
    assert isinstance(result.failures[0].error, OSError)


def test_another_process_is_not_disturbed(run: Path) -> None:
    from svdctl.evaluate.results import held

    recorder = Recorder()
    with held(run / "eval-last"):
        (failure,) = evaluate(make(run, metrics=["accuracy"]), reporter=recorder).failures
    assert not any("->" in line for line in recorder.lines)
    assert isinstance(failure.error, BusyFolderError)
    assert "another process" in str(failure.error)


def test_cifar_c_of_cifar_is_looked_for_beside_cifar(tmp_path: Path) -> None:
    """The kind of data decides the place: CIFAR-100-C is never taken from CIFAR-10-C's."""
    from svdctl.data.cifar import Cifar10, Cifar100
    from svdctl.data.images import ImageData
    from svdctl.data.train_test import TrainTest
    from svdctl.evaluate.evaluation_data import EvaluationData

    labels = np.arange(6) % 3
    for name in ("CIFAR-10-C", "CIFAR-100-C"):
        write_cifar_c(tmp_path / name)
    data = ImageData(torch.zeros(6, 3, 32, 32, dtype=torch.uint8), torch.from_numpy(labels), ("a", "b", "c"))
    settings = make(corruptions=["fog"]).settings["cifar-c"]
    for kind, name in ((Cifar10(root=tmp_path), "CIFAR-10-C"), (Cifar100(root=tmp_path), "CIFAR-100-C")):
        material = EvaluationData(kind, TrainTest(data, data))
        context = SimpleNamespace(
            data=material,
            config=make(corruptions=["fog"], seed=0),
            classifier=SimpleNamespace(device=torch.device("cpu")),
            progress=lambda *_: None,
        )
        source = corruption_metric.open_source(cast("Any", context), settings)
        assert source.identity["source"] == "published"
        assert cast("Any", source.images).args[0].folder == tmp_path / name
    assert SIDE != 32


def test_a_network_of_which_nothing_is_proved_has_all_other_figures(shared: Path, linear: Path) -> None:
    config = of_linear(
        shared, linear, metrics=["certified", "accuracy", "ece"], model="tests.evaluate.small:build_unproved"
    )
    recorder = Recorder()
    result = evaluate(config, reporter=recorder)
    assert not result.failures
    assert set(result.evaluations[0].records) == {"accuracy", "ece"}
    assert result.report is not None
    text = "nothing is certified of this network: "
    assert f"- **Certificates**: {text}" in result.report.read_text()
    assert any(line.startswith(text) and "bessel" in line for line in recorder.lines)
    alone = evaluate(config.model_copy(update={"metrics": ("certified",)}), reporter=Recorder())
    assert [type(failure.error) for failure in alone.failures] == [UnprovedError]
