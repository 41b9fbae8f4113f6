"""Runs of earlier versions keep their names: a key that is new changes no hash of a configuration without it."""

import pytest

from svdctl.config.configuration import configuration
from svdctl.config.presets import list_presets
from svdctl.train.run_hash import run_hash

OTHER = (
    "data={kind='folder', path='x'}",
    "layer.kind=standard",
    "control.kind=clip",
    "optimizer={kind='adam'}",
    "schedule={kind='steps', at=[0.5], factor=0.1}",
)
HASHES = {
    ("lipconv-quickstart",): "753ca688f4f5",
    ("lipconv20-soc",): "f7f7baf7bb35",
    ("lipconv20-sott128",): "38f10d3a0c8c",
    ("lipconv20-sott256",): "df486ba28cfc",
    ("lipconv30-soc",): "bb2fd0361d8e",
    ("lipconv30-sott128",): "343a5ab572ea",
    ("lipconv30-sott256",): "fbbbd12f09ec",
    ("lipconv5-cifar100-soc",): "1db7b9866cd8",
    ("lipconv5-cifar100-sott128",): "6628677b572e",
    ("lipconv5-soc",): "006cfd144d5d",
    ("lipconv5-sott128",): "c15183c9a9f4",
    ("lipconv5-sott256",): "370a2c3d7777",
    ("quickstart",): "eed0a207a5f7",
    ("vgg-cifar10",): "ae818f68dc49",
    ("vgg-cifar10-clip",): "a96eb0a61f27",
    ("vgg-cifar10-divide",): "4be612d725dd",
    ("vgg-cifar100",): "c7e71745b617",
    ("vgg-cifar100-divide",): "c99d107c5721",
    ("wrn-cifar10",): "1f72f1b6b1c3",
    ("wrn-cifar10-divide",): "63bc3859dea4",
    ("wrn-cifar10-tt",): "c07f763f78ab",
    ("wrn-cifar100",): "d5e8c28dd194",
    ("wrn-cifar100-clip",): "41834def28d0",
    ("wrn-cifar100-divide",): "6a445c4235d1",
    ("quickstart", *OTHER): "0bd62e79e68c",
}
"""`run_hash` by preset and assignments, as of the first version that names runs so."""


@pytest.mark.parametrize("given", HASHES, ids=lambda given: "-".join(given)[:40])
def test_hashes_stay(given: tuple[str, ...]) -> None:
    """Where this fails, the default of a new key belongs into `NEWER`, or the key is to be absent by default."""
    assert run_hash(configuration(given[0], given[1:])) == HASHES[given]


def test_every_preset_is_among_them() -> None:
    assert {given[0] for given in HASHES} >= set(list_presets())
