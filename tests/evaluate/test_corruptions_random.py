"""The draws: a published stream, and the distributions that they claim."""

import hashlib

import numpy as np
import pytest
import torch
from scipy import stats

from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.evaluate.corruptions.keyed_random import Draws, image_keys, normal_table
from svdctl.evaluate.corruptions.noise import poisson, poisson_tables


def draws(count: int = 1, first: int = 0) -> Draws:
    return Draws(torch.arange(first, first + count) * 1_000_003)


def test_the_stream_is_splitmix64() -> None:
    # The first outputs for seed 1234567 that implementations of SplitMix64 are checked with.
    want = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    assert [word % 2**64 for word in Draws(torch.tensor([1234567])).words(5)[0].tolist()] == want


def test_calls_go_on_where_the_last_one_stopped() -> None:
    one, two = draws(3), draws(3)
    assert torch.equal(torch.cat((one.words(5), one.words(7)), 1), two.words(12))


def test_bits_are_the_pieces_of_the_words() -> None:
    word = draws(2).words(3)
    for width in (16, 32):
        pieces = draws(2).bits(2, 192 // width // 2 - 1, width=width).flatten(1)
        mask, per_word = (1 << width) - 1, 64 // width
        want = torch.stack([(word >> (width * part)) & mask for part in range(per_word)], 2).flatten(1)
        assert torch.equal(pieces.long(), want[:, : pieces.shape[1]])


def test_keys_depend_on_everything() -> None:
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    images[1, 2, 7, 7] = 1
    keys = [int(key) for args in (("fog", 1, 0), ("fog", 1, 1), ("fog", 2, 0), ("snow", 1, 0), ("fog", 10, -1))
            for key in image_keys(images, *args)]  # fmt: skip
    assert len(set(keys)) == 10


@pytest.mark.parametrize("width", [16, 32])
def test_bits_are_uniform_and_independent(width: int) -> None:
    sample = draws(400).bits(2500, width=width).numpy()
    assert stats.chisquare(np.bincount((sample >> (width - 8)).ravel(), minlength=256)).pvalue > 1e-4
    assert stats.chisquare(np.bincount((sample & 255).ravel(), minlength=256)).pvalue > 1e-4
    # Neighbours in a stream, and the same place in neighbouring streams.
    for a, b in ((sample[:, 1:], sample[:, :-1]), (sample[1:], sample[:-1]), (sample[:, 4:], sample[:, :-4])):
        pairs = (a >> (width - 4)) * 16 + (b >> (width - 4))
        assert stats.chisquare(np.bincount(pairs.ravel(), minlength=256)).pvalue > 1e-4


def test_normal_draws() -> None:
    table = normal_table()
    assert torch.equal(table, -table.flip(0))
    assert abs(table.square().mean().item() - 1) < 1e-6
    assert abs((table**4).mean().item() - 3) < 2e-3
    assert table.max() > 4.3
    assert torch.equal(table * 8192, (table * 8192).round())
    sample = draws(1000).normal(1000).flatten().numpy()
    assert stats.kstest(sample, "norm").pvalue > 1e-4
    assert abs(sample.mean()) < 4e-3
    assert abs(sample.var() - 1) < 6e-3
    assert abs(np.mean(np.abs(sample) > 3) / 0.0026998 - 1) < 0.1


def test_uniform_draws() -> None:
    sample = draws(1000).uniform(1000).flatten().numpy()
    assert -1 < sample.min() < -0.9999
    assert 0.9999 < sample.max() < 1
    assert stats.kstest(sample, stats.uniform(-1, 2).cdf).pvalue > 1e-4


@pytest.mark.parametrize("photons", [500, 250, 100, 75, 50])
def test_poisson_is_the_inverse_distribution_function(photons: int) -> None:
    class Chosen(Draws):
        """Hands out these numbers, extremes among them."""

        def bits(self, *shape: int, width: int) -> torch.Tensor:
            rest = np.random.default_rng(0).integers(0, 2**32, int(np.prod(shape)) - len(extremes))
            return torch.from_numpy(np.concatenate((extremes, rest))).view(1, *shape)

    extremes = np.concatenate((np.arange(40), np.arange(40) * 2**22, 2**32 - 1 - np.arange(40), [2**31] * 40))
    extremes = np.tile(extremes, 20)
    for level in (0, 1, 7, 100, 254, 255):
        images = torch.full((1, 3, 40, 60), level, dtype=torch.uint8)
        found = poisson(images, photons, Chosen(torch.zeros(1, dtype=torch.int64))).flatten().numpy()
        chance = Chosen(torch.zeros(1, dtype=torch.int64)).bits(3, 40, 60, width=32).flatten().numpy()
        # Between the last count that has less than this probability and the first that has more, to 2^-32.
        rate = level / 255 * photons
        assert (stats.poisson.cdf(found, rate) >= (chance - 1) / 2**32).all()
        assert (stats.poisson.cdf(found - 1, rate) <= (chance + 1) / 2**32).all()


def test_poisson_tables_are_small() -> None:
    cumulative, guide = poisson_tables(500)
    assert cumulative.numel() * 8 + guide.numel() * 4 < 3_000_000


def test_poisson_counts_in_the_large() -> None:
    images = torch.full((300, 3, 32, 32), 51, dtype=torch.uint8)
    counts = poisson(images, 50, draws(300)).flatten().numpy()
    seen = np.bincount(counts, minlength=40)
    expected = stats.poisson.pmf(np.arange(len(seen)), 10) * len(counts)
    common = expected > 20
    assert stats.chisquare(seen[common], expected[common] * seen[common].sum() / expected[common].sum()).pvalue > 1e-4


def test_these_pixels_never_change() -> None:
    # Recorded when this was written: a change here changes every user's corrupted data sets.
    images = (torch.arange(2 * 3 * 32 * 32) * 7919 % 251).byte().view(2, 3, 32, 32)
    want = {
        "gaussian_noise": "82822214f31aade0",
        "shot_noise": "f193e04ed8cc3f3d",
        "impulse_noise": "481bff1a6377cdc0",
        "speckle_noise": "2611a4b38c317fbf",
        "glass_blur": "01e08b05024c98f2",
    }
    found = {name: hashlib.sha256(corrupt(images, name, 1, 0).numpy().tobytes()).hexdigest()[:16] for name in want}
    assert found == want
