"""Rows become runs: equal ones once, names and places without effect on which are equal."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from svdctl.cli.reproduce import command_line
from svdctl.cli.training_flags import resolve
from svdctl.errors import UsageError
from svdctl.reproduce.plan import Plan, make_plan
from svdctl.reproduce.table_files import Request
from svdctl.train.run_hash import run_hash

SAME = [
    "name=other",
    "out_dir=elsewhere",
    "log.every_steps=3",
    "log.wandb=offline",
    "data.root=/somewhere",
    "hardware.accelerator=cpu",
    "hardware.compile=true",
    "hardware.channels_last=false",
    "hardware.devices=2",
    "hardware.num_nodes=2",
    "checkpoint.keep=true",
    "checkpoint.every_epochs=1",
]
OTHER = [
    "seed=1",
    "epochs=3",
    "batch_size=64",
    "optimizer.lr=0.2",
    "control.max_sigma=8",
    "layer.rank=191",
    "hardware.precision=bf16-mixed",
    "evaluation.select=validation",
    "data.kind=cifar100",
    "max_steps=3",
    "checkpoint.every_steps=3",
]


@pytest.mark.parametrize("change", [*SAME, *OTHER])
def test_what_makes_two_runs_one(change: str) -> None:
    base = resolve({"preset": "wrn-cifar10-divide"}).config
    changed = resolve({"preset": "wrn-cifar10-divide", "set": [change]}).config
    assert changed != base
    assert (run_hash(changed) == run_hash(base)) == (change in SAME)


def test_checkpoints_matter_where_they_seal_between_evaluations() -> None:
    hashes = {
        run_hash(
            resolve(
                {"preset": "wrn-cifar10-divide", "set": ["evaluation.every_epochs=5", f"checkpoint.every_epochs={n}"]}
            ).config
        )
        for n in (1, 2)
    }
    assert len(hashes) == 2


def test_a_written_configuration_has_the_hash_of_its_run(tmp_path: Path) -> None:
    from svdctl.config.presets import to_toml

    config = make_plan(Request(tables=("table3",))).tables[0].rows[5].config
    (tmp_path / "config.toml").write_text(to_toml(config))
    assert run_hash(resolve({"preset": str(tmp_path / "config.toml")}).config) == run_hash(config)


def test_shared_runs_are_planned_once_and_measured_for_all(tiny: Path, tmp_path: Path) -> None:
    second = tmp_path / "second.toml"
    second.write_text(tiny.read_text().replace('"accuracy", "cifar-c", "ece", "autoattack"', '"certified-36"'))
    plan = make_plan(Request(tables=(str(tiny), str(second))))
    runs = plan.jobs()
    assert len(runs) == 2
    assert runs[0].metrics == ("accuracy", "cifar-c", "ece", "autoattacks", "certified")
    third = tmp_path / "third.toml"
    third.write_text(tiny.read_text().replace("examples = 3", "examples = 4"))
    runs = make_plan(Request(tables=(str(tiny), str(third)))).jobs()
    assert (len({run.key for run in runs}), len({run.id for run in runs})) == (2, 4)


def test_the_paper_tables_have_no_equal_rows_at_full_scale_and_share_some_at_smoke_scale() -> None:
    tables = ("table2", "table3", "table-vgg")
    counts = {scale: len(make_plan(Request(tables=tables, scale=scale)).jobs()) for scale in ("full", "smoke")}  # type: ignore[arg-type]
    assert counts["full"] == 42
    assert counts["smoke"] < 42


def test_requests(planned: Callable[..., Plan], tmp_path: Path) -> None:
    (table,) = planned().tables
    assert [row.row.name for row in table.rows] == ["none-full", "divide-tt8"]
    assert table.name == "tiny"
    (table,) = planned(rows=("div*",), seeds=(1, 2, 3), set=("epochs=5",), scale="smoke").tables
    assert (table.name, table.seeds, table.overrides) == ("tiny-smoke-part", (1, 2, 3), ("epochs=5",))
    assert table.title.startswith("SMOKE SCALE")
    (row,) = table.rows
    assert [run.config.seed for run in row.jobs] == [1, 2, 3]
    assert len({run.key for run in row.jobs}) == 3
    assert {run.config.epochs for run in row.jobs} == {5}
    assert {run.config.max_steps for run in row.jobs} == {3}
    assert row.jobs[1].config.name == "tiny-smoke-divide-tt8-s2"
    assert row.config.out_dir == tmp_path / "runs"
    assert "--set layer.rank=8" in command_line(row.jobs[0])
    assert command_line(row.jobs[0]).startswith("svdctl train --preset wrn-cifar10-divide --set ")


def test_places_and_wandb_reach_the_runs() -> None:
    (table,) = make_plan(Request(tables=("table2",), dataset_root=Path("/d"), wandb="offline")).tables
    assert {str(row.config.data.root) for row in table.rows} == {"/d"}
    assert {(row.config.log.wandb, row.config.log.wandb_group) for row in table.rows} == {("offline", "table2")}


def test_static_columns_alone_train_nothing(planned: Callable[..., Plan]) -> None:
    plan = planned(columns="static")
    assert plan.tables[0].columns == ("parameters", "compression", "control-cost")
    assert plan.tables[0].name == "tiny-static"
    assert plan.jobs() == []


def test_patterns_that_match_nothing_and_tables_without_smoke(tiny: Path) -> None:
    with pytest.raises(UsageError) as caught:
        make_plan(Request(tables=("table2", "figure-speed"), rows=("divid-*", "none*", "zz")))
    assert len(caught.value.faults) == 2
    assert "did you mean divide-full?" in str(caught.value)
    tiny.write_text(tiny.read_text().replace('[smoke]\nset = ["max_steps=3"]\n', ""))
    with pytest.raises(UsageError, match=r"no \[smoke\] section"):
        make_plan(Request(tables=(str(tiny),), scale="smoke"))


@pytest.mark.parametrize(
    ("table", "fields", "title"),
    [
        ("table2", {}, "WRN-16-10 on CIFAR-10 under control of singular values"),
        ("table3", {}, "WRN-16-10 on CIFAR-100 under control of singular values"),
        ("table-vgg", {}, "VGG-19 on CIFAR-10 and CIFAR-100 under control of singular values"),
        ("table1", {"columns": "static"}, "LipConvNet on CIFAR-10: SOC and SOTT"),
        ("table3", {"set": ("data.kind=cifar10",)}, "WRN-16-10 on CIFAR-10 under control of singular values"),
        ("table2", {"set": ("data.kind=npz", "data.path=mine.npz")}, "WRN-16-10 on npz:mine.npz under control of "),
    ],
)
def test_the_title_names_the_networks_and_data_that_are_used(table: str, fields: dict[str, Any], title: str) -> None:
    (plan,) = make_plan(Request(tables=(table,), **fields)).tables
    assert plan.title.startswith(title)


@pytest.mark.parametrize("table", ["table1", "table2", "table3", "table-vgg"])
def test_no_paper_table_at_smoke_scale_claims_data_that_it_did_not_use(table: str) -> None:
    (plan,) = make_plan(Request(tables=(table,), scale="smoke")).tables
    assert "embedded digits" in plan.title
    assert "CIFAR" not in plan.title


def test_a_title_of_a_users_own_names_data_that_are_put_in_place_of_its_own(
    planned: Callable[..., Plan], tiny: Path
) -> None:
    assert planned().tables[0].title == "Tiny networks"
    (table,) = planned(set=("data.kind=cifar10",)).tables
    assert table.title == "Tiny networks (data: CIFAR-10)"
    tiny.write_text(tiny.read_text().replace('"max_steps=3"', '"max_steps=3", "data.kind=cifar100"'))
    assert planned(scale="smoke").tables[0].title.endswith(": Tiny networks (data: CIFAR-100)")
    assert planned().tables[0].title == "Tiny networks"
