"""Configurations from presets and assignments, without flags."""

import time

import pytest

from svdctl.config.configuration import configuration
from svdctl.errors import UsageError


def test_a_preset_and_assignments() -> None:
    config = configuration("wrn-cifar100-clip", ["control.max_sigma=5", "seed=7", "layer.kind=standard"])
    assert (config.name, config.seed, config.control.max_sigma, config.layer.kind) == (
        "wrn-cifar100-clip", 7, 5, "standard",
    )  # fmt: skip
    assert configuration("lipconv5-soc").model.kind == "lipconv"


@pytest.mark.parametrize("section", ["data", "model", "control", "loss"])
def test_a_section_without_a_kind_is_a_sentence(section: str) -> None:
    with pytest.raises(UsageError, match="a kind is needed here"):
        configuration("quickstart", [f"{section}={{}}"])


def test_all_faults_come_together() -> None:
    with pytest.raises(UsageError) as caught:
        configuration("quickstart", ["oops", "epochs=0", "control.max_sigm=3"])
    assert len(caught.value.faults) == 3


def test_a_section_without_its_kind_is_a_sentence() -> None:
    from svdctl.config.train_config import TrainConfig
    from svdctl.config.validation_errors import validated

    assert validated(TrainConfig, {"data": {}}) == (None, ["`data.kind`: a kind is needed here"])


@pytest.mark.parametrize(
    ("assignment", "sentence"),
    [
        ("layer.rnk=1", "layer.rnk: there is no such key; did you mean layer.rank? (known: kind, rank, frames, "),
        ("layer.nothing=1", "layer.nothing: there is no such key (known: kind, rank, frames, "),
        ("name=3", "`name`: 3 is not valid; write a text, in quotation marks"),
        ("normalize.mean=3", "`normalize.mean`: 3 is not valid; write a list, in [ ]"),
        ("normalize=3", "`normalize`: 3 is not valid; write a section with its keys"),
        ("data={ kind = 'folder' }", "`data.path`: a value is needed: the key data.path is missing; add it"),
    ],
)
def test_what_to_write_and_which_keys_there_are(assignment: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        configuration("quickstart", [assignment])
    assert any(fault.startswith(sentence) for fault in caught.value.faults), caught.value.faults


@pytest.mark.parametrize("number", ["0x" + "F" * 20_000, "0b" + "1" * 70_000, "9" * 4_000, "9" * 20, "1" + "0" * 19])
@pytest.mark.parametrize("key", ["epochs", "seed", "batch_size", "max_steps", "optimizer.lr", "name"])
def test_whole_numbers_beyond_64_bits_are_sentences(key: str, number: str) -> None:
    if key in ("optimizer.lr", "name") and len(number) < 100:
        return  # a fraction or a text without its point or its quotation marks
    with pytest.raises(UsageError) as caught:
        configuration("quickstart", [f"{key}={number}"])
    (fault,) = caught.value.faults
    assert key in fault
    assert len(fault) < 300


def test_the_first_of_very_many_unknown_keys_are_told() -> None:
    from svdctl.config.train_config import TrainConfig
    from svdctl.config.validation_errors import MOST_FAULTS, validated

    many = {f"k{number}": 1 for number in range(50_000)}
    for table in (many, {"a": many}, {"loss": {"kind": "cross-entropy", **many}}):
        began = time.process_time()
        config, faults = validated(TrainConfig, table)
        assert time.process_time() - began < 10
        assert config is None
        assert 0 < len(faults) <= MOST_FAULTS + 1
        assert table == {"a": many} or faults[-1] == f"{50_000 - MOST_FAULTS:,} further faults are not told"


@pytest.mark.parametrize(
    "settings", [["hardware.devices=100000"], ["hardware.num_nodes=1000"], ["hardware.devices=65", "batch_size=64"]]
)
def test_more_processes_than_images_of_a_step_are_a_sentence(settings: list[str]) -> None:
    with pytest.raises(UsageError, match=r"leaves nothing for some of \d+ processes"):
        configuration("quickstart", settings)
    assert configuration("quickstart", ["hardware.devices=64", "batch_size=64"]).hardware.devices == 64


def test_known_keys_are_those_of_the_kind() -> None:
    with pytest.raises(UsageError) as caught:
        configuration("quickstart", ["control.kind=none", "control.nothing=1", "optimizer.nothing=1"])
    control, optimizer = caught.value.faults
    assert control.endswith("(known: kind)")
    assert "momentum" in optimizer
    assert "amsgrad" not in optimizer
