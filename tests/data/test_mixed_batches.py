"""Batches in parts and mixed images: the same for any number of processes, and what they are said to be."""

import math

import pytest
import torch

from svdctl.config.data_config import Augment
from svdctl.data.batches import Batches
from tests.data.test_data import small_data

MIXED = Augment(flip=True, crop=2, mixup=0.4)


@pytest.mark.parametrize("augment", [Augment(), MIXED], ids=["plain", "mixed"])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
@pytest.mark.parametrize("world", [2, 3])
def test_each_part_has_the_same_images_on_any_number_of_processes(
    augment: Augment, accumulate: int, world: int
) -> None:
    whole = Batches(small_data(), 9, 7, augment, accumulate=accumulate)
    shares = [list(Batches(small_data(), 9, 7, augment, rank, world, accumulate).epoch(1)) for rank in range(world)]
    for step, batch in enumerate(whole.epoch(1)):
        own = [share[step] for share in shares]
        assert sum(map(len, own)) == len(batch) == whole.count(step)
        parts = batch.parts()
        assert len(parts) == (accumulate if len(batch) == 9 else min(2, math.ceil(4 * accumulate / 9)))
        for place, part in enumerate(parts):
            theirs = [batch.parts()[place] for batch in own]
            assert torch.equal(whole.pixels(part), torch.cat([whole.pixels(one) for one in theirs]))
            assert torch.equal(part.own_labels, torch.cat([one.own_labels for one in theirs]))
            if augment.mixup is not None:
                assert torch.equal(part.partner_labels, torch.cat([one.partner_labels for one in theirs]))


def test_images_are_mixed_with_the_next_of_the_batch() -> None:
    plain, mixed = Batches(small_data(), 8, 7, Augment(flip=True, crop=2)), Batches(small_data(), 8, 7, MIXED)
    for alone, batch in zip(plain.epoch(2), mixed.epoch(2), strict=True):
        pixels = plain.pixels(alone)
        assert batch.mix is not None
        wanted = batch.mix * pixels + (1 - batch.mix) * pixels.roll(-1, 0)
        torch.testing.assert_close(mixed.pixels(batch), wanted)
        assert torch.equal(batch.own_labels, alone.labels)
        assert torch.equal(batch.partner_labels, alone.labels.roll(-1))


def test_shares_have_the_beta_distribution_and_belong_to_their_step() -> None:
    batches = Batches(small_data(), 2, 7, MIXED)
    shares = torch.stack([batch.mix for epoch in range(200) for batch in batches.epoch(epoch)]).double()
    assert len(shares) == 2200
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.03)
    # Of Beta(a, a): 1 / (4 (2 a + 1)).
    assert float(shares.var()) == pytest.approx(1 / (4 * 1.8), rel=0.05)
    later = next(Batches(small_data(), 2, 7, MIXED).epoch(3, start=4))
    assert later.mix == list(batches.epoch(3))[4].mix


def test_without_parts_and_mixing_a_batch_is_what_it_was() -> None:
    batch = next(Batches(small_data(), 4, 7, Augment()).epoch(0))
    assert (batch.mix, batch.sizes) == (None, ())
    assert batch.parts() == [batch]
    assert batch.own_labels is batch.labels
