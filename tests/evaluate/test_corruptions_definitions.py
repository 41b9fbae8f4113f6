"""Every corruption against its definition: statistics of noise, sums and spreads of kernels, and a plain reference."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from benchmarks.corruptions_reference import REFERENCE, canny, to_hsv
from svdctl.config.corruption_names import CORRUPTIONS, SEVERITIES
from svdctl.evaluate.corruptions import canny as edge
from svdctl.evaluate.corruptions.blur import along_line, disk_sums, first_sources
from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.evaluate.corruptions.filters import gaussian_filter, resize_matrix
from svdctl.evaluate.corruptions.frost import plates
from svdctl.evaluate.corruptions.keyed_random import Draws
from svdctl.evaluate.corruptions.published_constants import GENERATORS, generator_of
from svdctl.evaluate.corruptions.spatter import equalized
from svdctl.evaluate.corruptions.weather import plasma
from tests.evaluate.pictures import flat, photographs

SIGMAS = {"gaussian_noise": (0.04, 0.06, 0.08, 0.09, 0.10), "speckle_noise": (0.06, 0.1, 0.12, 0.16, 0.2)}
FIXED = (
    "brightness",
    "contrast",
    "saturate",
    "pixelate",
    "gaussian_blur",
    "defocus_blur",
    "zoom_blur",
    "jpeg_compression",
)


def rows_last(images: torch.Tensor) -> np.ndarray:
    return images.permute(0, 2, 3, 1).contiguous().numpy()


PUBLISHED = [pytest.param(32, 24, id="CIFAR-C"), pytest.param(64, 12, id="Tiny-ImageNet-C")]
LARGE = pytest.param(224, 3, id="ImageNet-C")


@pytest.mark.parametrize(("side", "count"), [*PUBLISHED, LARGE])
@pytest.mark.parametrize("name", FIXED)
def test_fixed_ones_are_the_references_pixels(name: str, side: int, count: int) -> None:
    images = photographs(count, side, side)
    for severity in SEVERITIES:
        found = rows_last(corrupt(images, name, severity, 0)).astype(int)
        want = np.stack([REFERENCE[name](image, severity, None) for image in rows_last(images)]).astype(int)
        assert np.abs(found - want).max() <= 1
        assert np.mean(found != want) < 2e-3


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (33, 50), (96, 40), (130, 220)], ids=str)
@pytest.mark.parametrize("name", ["brightness", "contrast", "saturate", "pixelate", "zoom_blur", "jpeg_compression"])
def test_what_has_no_length_is_the_references_at_any_size(name: str, size: tuple[int, int]) -> None:
    images = photographs(4, *size)
    for severity in SEVERITIES:
        found = rows_last(corrupt(images, name, severity, 0)).astype(int)
        want = np.stack([REFERENCE[name](image, severity, None) for image in rows_last(images)]).astype(int)
        assert np.abs(found - want).max() <= 1


@pytest.mark.parametrize(
    ("side", "count"), [(32, 60), (64, 40), pytest.param(224, 16, marks=pytest.mark.slow)], ids=str
)
@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - set(FIXED)))
def test_random_ones_change_as_much_as_the_reference(name: str, side: int, count: int) -> None:
    images = photographs(count, side, side)
    drawn = plates(side, side).permute(0, 2, 3, 1).numpy()
    extra = {"plates": drawn} if name == "frost" else {}
    # The reference's loops over pixels take 10 ms an image of 32 pixels.
    part = {32: 12, 64: 6, 224: 2}[side] if name == "glass_blur" else len(images)
    rng = np.random.default_rng(5)
    for severity in SEVERITIES:
        found = rows_last(corrupt(images[:part], name, severity, 0)).astype(float)
        plain = rows_last(images[:part])
        want = np.stack([REFERENCE[name](image, severity, rng, **extra) for image in plain]).astype(float)
        for moment in (lambda x, plain=plain: np.abs(x - plain), lambda x, plain=plain: x - plain):
            mine, theirs = moment(found).mean((1, 2, 3)), moment(want).mean((1, 2, 3))
            # Five standard errors of the difference of the means, and a twentieth of a grey level.
            error = np.sqrt((mine.var() + theirs.var()) / part)
            assert abs(mine.mean() - theirs.mean()) < 5 * error + 0.05


@pytest.mark.parametrize("severity", SEVERITIES)
@pytest.mark.parametrize("name", SIGMAS)
def test_variance_of_noise(name: str, severity: int) -> None:
    # Far enough from 0 and 255; the mean is half a level low because levels are rounded down.
    level = 110
    noise = corrupt(flat(level, 100), name, severity, 0)[..., 1:, 1:].double() - level
    sigma = SIGMAS[name][severity - 1] * (255 if name == "gaussian_noise" else level)
    assert abs(noise.mean().item() + 0.5) < 5 * sigma / noise.numel() ** 0.5
    assert abs((noise.var().item() - 1 / 12) / sigma**2 - 1) < 0.015


@pytest.mark.parametrize("severity", SEVERITIES)
def test_variance_of_shot_noise(severity: int) -> None:
    photons = (500, 250, 100, 75, 50)[severity - 1]
    for level in (20, 60, 120):
        pixels = corrupt(flat(level, 100), "shot_noise", severity, 0)[..., 1:, 1:].double()
        # What counting does to the levels, rounding down included; near the definition's variance, without it.
        counts = np.arange(1000)
        chance = stats.poisson.pmf(counts, level / 255 * photons)
        stored = np.floor(np.minimum(counts / photons, 1) * 255 + 1e-3)
        mean = (chance * stored).sum()
        variance = (chance * (stored - mean) ** 2).sum()
        assert variance == pytest.approx(level * 255 / photons, rel=0.06)
        assert abs(pixels.mean().item() - mean) < 5 * (variance / pixels.numel()) ** 0.5
        assert abs(pixels.var().item() / variance - 1) < 0.015
    assert (corrupt(flat(0, 4), "shot_noise", severity, 0)[..., 1:, 1:] == 0).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_share_of_impulses(severity: int) -> None:
    share = (0.01, 0.02, 0.03, 0.05, 0.07)[severity - 1]
    pixels = corrupt(flat(99, 200), "impulse_noise", severity, 0)[..., 1:, 1:]
    for value in (0, 255):
        found = (pixels == value).double().mean().item()
        assert abs(found - share / 2) < 5 * (share / 2 / pixels.numel()) ** 0.5
    assert set(pixels.unique().tolist()) == {0, 99, 255}


def impulse(height: int, width: int) -> torch.Tensor:
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    image[..., height // 2, width // 2] = 255
    return image


@pytest.mark.parametrize(("size", "base"), [(28, 32), (32, 32), (64, 64), (96, 64), (224, 224)])
def test_spread_of_gaussian_blur(size: int, base: int) -> None:
    sigmas = {32: (0.4, 0.6, 0.7, 0.8, 1.0), 64: (0.5, 0.75, 1.0, 1.25, 1.5), 224: (1, 2, 3, 4, 6)}[base]
    for severity, sigma in enumerate(sigmas, start=1):
        sigma *= size / base
        answer = gaussian_filter(impulse(size, size).double(), sigma)[0, 0] / 255
        assert abs(answer.sum().item() - 1) < 1e-9
        at = torch.arange(size) - size // 2
        taps = np.exp(-0.5 * (np.arange(-int(4 * sigma + 0.5), int(4 * sigma + 0.5) + 1) / sigma) ** 2)
        half = len(taps) // 2
        variance = (np.arange(-half, half + 1) ** 2 * taps).sum() / taps.sum()
        for axis in (0, 1):
            assert abs((answer.sum(1 - axis) * at**2).sum().item() - variance) < 1e-3
        assert variance == pytest.approx(sigma**2, rel=0.05) or sigma < 0.6
        stored = corrupt(impulse(size, size), "gaussian_blur", severity, 0)[0, 0]
        assert torch.equal(stored, (answer * 255 + 1e-3).floor().byte())


@pytest.mark.parametrize("radius", [0.3, 0.5, 1.0, 1.3125, 1.5, 2.0, 3.0, 4.5, 7.2])
def test_disks(radius: float) -> None:
    images = photographs(2, 19, 30)
    at = np.arange(-int(radius), int(radius) + 1)
    kernel = (at[:, None] ** 2 + at**2 <= radius**2).astype(int)
    sums, count = disk_sums(images, radius)
    assert count == kernel.sum()
    want = ndimage.correlate(images.numpy().astype(int), kernel[None, None], mode="mirror")
    assert np.array_equal(sums.numpy(), want)


@pytest.mark.parametrize(
    ("size", "base", "radii"),
    [(28, 32, (1.0, 1.5)), (32, 32, (1.0, 1.5)), (64, 64, (2.5, 3)), (96, 64, (2.5, 3)), (224, 224, (8, 10))],
)
def test_defocus_spreads_light_with_the_size(size: int, base: int, radii: tuple[float, float]) -> None:
    at = torch.arange(size) - size // 2
    for severity, radius in zip((4, 5), radii, strict=True):
        # A bright patch, since single points fall below one level at large sizes.
        image = torch.zeros(1, 3, size, size, dtype=torch.uint8)
        image[..., at.abs() <= 2, :] = 255
        answer = corrupt(image, "defocus_blur", severity, 0)[0, 0].double().mean(1) / 255
        # Half a level is lost at each of some `2 radius` pixels.
        assert answer.sum().item() == pytest.approx(5, abs=max(0.05, radius / 100))
        # Variances add up: the patch's own is 2; a disk's along one axis is a quarter of its radius squared.
        spread = (answer * at**2).sum().item() / 5 - 2
        assert spread == pytest.approx((radius * size / base) ** 2 / 4, rel=0.45, abs=0.25)


@pytest.mark.parametrize(
    "name", ["defocus_blur", "gaussian_blur", "zoom_blur", "motion_blur", "glass_blur", "pixelate", "elastic_transform"]
)
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (45, 64), (96, 96)], ids=str)
def test_blurs_keep_one_colour(name: str, size: tuple[int, int]) -> None:
    for level in (1, 77, 200, 255):
        image = torch.full((1, 3, *size), level, dtype=torch.uint8)
        for severity in SEVERITIES:
            assert torch.equal(corrupt(image, name, severity, 0), image)


def test_motion_along_a_row() -> None:
    # From the pixel onwards, at angle 0 to the right: an impulse leaves a half-Gaussian to its left.
    image = torch.zeros(1, 1, 9, 40)
    image[..., 4, 30] = 255
    line = along_line(image, torch.zeros(1, dtype=torch.float64), 6, 2.0)[0, 0]
    taps = np.exp(-0.5 * (np.arange(13) / 2) ** 2)
    assert np.abs(line[4, 18:31].flip(0).numpy() - 255 * taps / taps.sum()).max() <= 0.6
    assert line.sum() == pytest.approx(255, abs=4)
    turned = along_line(image.mT.contiguous(), torch.full((1,), np.pi / 2, dtype=torch.float64), 6, 2.0)[0, 0]
    assert torch.equal(turned, line.T)


def test_angles_of_motion() -> None:
    blurred = [corrupt(flat(0, 60) + impulse(32, 32), "motion_blur", 5, 0)[:, 2].float()]
    image = torch.cat(blurred)
    row, column = torch.meshgrid(torch.arange(32.0) - 16, torch.arange(32.0) - 16, indexing="ij")
    mass = image.sum((1, 2))
    down, right = -(image * row).sum((1, 2)) / mass, -(image * column).sum((1, 2)) / mass
    angle = torch.rad2deg(torch.atan2(down, right))
    assert (angle.abs() < 50).all()
    assert angle.min() < -35
    assert angle.max() > 35
    assert abs(angle.mean()) < 12


@pytest.mark.parametrize("severity", [1, 2])
def test_glass_takes_neighbours_above_and_to_the_left(severity: int) -> None:
    # Each pixel is told by its colour, and without a filter each new pixel is an old one; sigma 0.25 mixes little.
    row, column = torch.meshgrid(torch.arange(32), torch.arange(32), indexing="ij")
    image = torch.stack((row * 8, column * 8, torch.zeros_like(row))).byte()[None]
    found = corrupt(image, "glass_blur", 1, severity)[0]
    down, right = row - found[0] // 8, column - found[1] // 8
    inner = (slice(2, None), slice(2, None))
    for shift in (down, right):
        assert set(shift.unique().tolist()) == {0, 1}
        assert abs(shift[inner].double().mean().item() - 0.5) < 0.1
        assert (shift[:2] == 0).all()
        assert (shift[:, :2] == 0).all()


@pytest.mark.parametrize("severity", SEVERITIES)
def test_jpeg_is_pillows(severity: int) -> None:
    qualities = {(32, 32): (80, 65, 58, 50, 40), (45, 71): (80, 65, 58, 50, 40), (224, 300): (25, 18, 15, 10, 7)}
    for size, by_severity in qualities.items():
        quality = by_severity[severity - 1]
        images = photographs(3, *size)
        for image, found in zip(
            rows_last(images), rows_last(corrupt(images, "jpeg_compression", severity, 0)), strict=True
        ):
            file = io.BytesIO()
            Image.fromarray(image).save(file, "JPEG", quality=quality)
            assert np.array_equal(np.asarray(Image.open(file)), found)


def test_brightness_adds_to_value_and_keeps_hue_and_saturation() -> None:
    image = rows_last(photographs(1))[0]
    found = rows_last(corrupt(photographs(1), "brightness", 3, 0))[0]
    hue, saturation, value = to_hsv(image / 255)
    new_hue, new_saturation, new_value = to_hsv(found / 255)
    bright = (value > 0.3) & (saturation > 0.2) & (value < 0.8)
    assert np.abs(new_value - np.minimum(value + 0.15, 1)).max() < 1.01 / 255
    assert np.abs(new_saturation - saturation)[bright].max() < 0.02
    assert np.abs((new_hue - hue + 0.5) % 1 - 0.5)[bright].max() < 0.03


def test_contrast_keeps_the_means() -> None:
    images = photographs(10).double()
    for severity, factor in enumerate((0.75, 0.5, 0.4, 0.3, 0.15), start=1):
        found = corrupt(photographs(10), "contrast", severity, 0).double()
        assert (found.mean((2, 3)) - images.mean((2, 3)) + 0.5).abs().max() < 0.3
        ratio = found.std((2, 3)) / images.std((2, 3))
        assert (ratio - factor).abs().max() < 0.02


def test_fog_is_a_fractal_from_0_to_1() -> None:
    field = plasma(Draws(torch.arange(50)), 32, 2.0)
    assert field.shape == (50, 32, 32)
    assert torch.equal(field.amin((1, 2)), torch.zeros(50, dtype=torch.float64))
    assert torch.equal(field.amax((1, 2)), torch.ones(50, dtype=torch.float64))
    # It wraps around: steps across the border are as small as inside.
    inside = (field[:, 1:] - field[:, :-1]).abs().mean()
    across = (field[:, 0] - field[:, -1]).abs().mean()
    assert 0.7 < across / inside < 1.4
    # The brightest pixel of an image stays the limit.
    images = photographs(20)
    assert (corrupt(images, "fog", 5, 0).amax((1, 2, 3)) <= images.amax((1, 2, 3))).all()


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (64, 48)], ids=str)
def test_frost_is_drawn_and_not_flat(size: tuple[int, int]) -> None:
    ice = plates(*size)
    assert ice.shape == (5, 3, 4 * max(size), 4 * max(size))
    assert ice.min() >= 0
    assert ice.max() <= 255
    assert (ice.std((1, 2, 3)) > 30).all()
    assert (ice[:, 2].mean() - ice[:, 0].mean()).item() > 5
    crops = corrupt(flat(0, 30, size[0]), "frost", 2, 0).float()
    assert crops.flatten(1).std(0).mean() > 5


def test_frost_weights_the_image() -> None:
    # From black to grey 100 the pixels rise by the image's weight: other content, other crop, so on average.
    for severity, weight in enumerate((1, 1, 0.9, 0.85, 0.75), start=1):
        dark, light = (corrupt(flat(level, 400), "frost", severity, 0).double().mean() for level in (0, 80))
        assert abs((light - dark).item() / 80 - weight) < 0.06


def test_snow_whitens_and_falls_steeply() -> None:
    images = photographs(60)
    grown = [(corrupt(images, "snow", severity, 0).double() - images).mean().item() for severity in SEVERITIES]
    assert grown[0] > 3
    assert grown == sorted(grown)
    flakes = corrupt(flat(40, 60), "snow", 1, 0)[:, 2].double()
    down = (flakes[:, 1:] - flakes[:, :-1]).abs().mean()
    right = (flakes[..., 1:] - flakes[..., :-1]).abs().mean()
    assert right > 1.3 * down


def test_spatter_has_the_colours_of_water_and_mud() -> None:
    images = flat(100, 60)
    for severity in (1, 2, 3):
        added = corrupt(images, "spatter", severity, 0).double() - images.double()
        assert added.min() > -0.5
        assert (added[:, 1].sum() / added[:, 0].sum()).item() == pytest.approx(238 / 175, rel=0.05)
        assert torch.equal(added[:, 1, 1:, 1:], added[:, 2, 1:, 1:])
    for severity in (4, 5):
        found = corrupt(images, "spatter", severity, 0)
        covered = (found != images).all(1)[:, 1:, 1:]
        assert 0.01 < covered.double().mean() < 0.3
        darkest = found[..., 1:, 1:].permute(0, 2, 3, 1)[covered].amin(0)
        assert (darkest.int() - torch.tensor([63, 42, 20])).abs().max() <= 1


def test_water_without_a_drop_changes_nothing() -> None:
    from svdctl.evaluate.corruptions.spatter import shaded

    assert torch.equal(
        shaded(torch.zeros(2, 16, 16, dtype=torch.uint8), 20), torch.zeros(2, 16, 16, dtype=torch.float64)
    )


def test_edges_and_distances() -> None:
    rng = np.random.default_rng(0)
    fields = ndimage.gaussian_filter(rng.normal(0.6, 0.4, (30, 32, 45)), (0, 1, 1))
    images = (np.where(fields < 0.65, 0, fields).clip(0, 1) * 255).astype(np.uint8)
    found = edge.canny(torch.from_numpy(images), 50, 150)
    assert np.array_equal(found.numpy(), np.stack([canny(image, 50, 150) for image in images]))
    sparse = torch.from_numpy(rng.random((30, 32, 45)) < 0.004)
    for marked in (found, sparse):
        distance = edge.distance_to(marked, 20)
        for one, answer in zip(marked.numpy(), distance.numpy(), strict=True):
            want = np.minimum(ndimage.distance_transform_edt(~one), 20) if one.any() else np.full(one.shape, 20.0)
            assert np.allclose(answer, want)


def test_hysteresis_follows_weak_edges_only_from_strong_ones() -> None:
    image = torch.zeros(2, 12, 30, dtype=torch.uint8)
    # A step that fades from 60 to 15 levels: its Sobel sum falls from 240 to 60, above 50 throughout.
    image[0, 6:] = torch.linspace(60, 15, 30).round().byte()
    # The same step, weak everywhere: 100.
    image[1, 6:] = 25
    found = edge.canny(image, 50, 150)
    assert found[0].any(0).all()
    assert not found[1].any()


def test_equalized_levels() -> None:
    image = torch.tensor([[[2.0, 2, 5], [5, 5, 9]], [[7.0, 7, 7], [7, 7, 7]]], dtype=torch.float64)
    want = [[[0, 0, 191], [191, 191, 255]], [[7, 7, 7], [7, 7, 7]]]
    assert equalized(image).tolist() == want


def test_linear_resizing_is_torchs() -> None:
    image = torch.rand(1, 1, 32, 1, dtype=torch.float64)
    for size in (28, 32, 50, 96):
        want = torch.nn.functional.interpolate(image, size=(size, 1), mode="bilinear", align_corners=False)
        assert torch.allclose(torch.from_numpy(resize_matrix(32, size)) @ image[0, 0], want[0, 0])


def test_elastic_moves_by_the_published_amounts() -> None:
    # A ramp tells how far each pixel was read from; jitter of the affine map alone at severity 1.
    ramp = (torch.arange(64) * 4 % 256).byte().expand(1, 3, 64, 64)
    column = torch.arange(64.0)
    inner = (slice(20, 44), slice(20, 44))
    for severity, jitter in ((1, 0.08), (5, 0.02)):
        moves = []
        for seed in range(60):
            found = corrupt(ramp, "elastic_transform", severity, seed)[0, 0].double() / 4
            moves.append((found - column)[inner])
        moves = torch.stack(moves)
        # The mean shift of a pixel near the centre: the mean of two corners' jitters, each uniform in +-64 jitter.
        mean = moves.mean((1, 2)).std().item()
        assert mean == pytest.approx(64 * jitter / 3**0.5 * 0.5**0.5, rel=0.35)
        # What no affine map does: a pixel's shift less the mean of two on either side, too far off to move with it.
        alone = (moves[:, :, 6:-6] - (moves[:, :, 12:] + moves[:, :, :-12]) / 2).std().item()
        if severity == 1:
            assert alone < 0.2
        else:
            # Uniform in +-1, smoothed by sigma 0.03 times 64, times 0.16 times 64 pixels.
            smooth = 1 / (2 * np.pi**0.5 * 1.92)
            assert alone == pytest.approx(10.24 / 3**0.5 * smooth * 1.5**0.5, rel=0.2)


@pytest.mark.parametrize("reach", [1, 2, 4])
def test_glass_copies_one_pixel_after_another(reach: int) -> None:
    rng = np.random.default_rng(reach)
    height, width = 40, 53
    down, right = rng.integers(-reach, reach, (2, height, width))
    want = np.arange(height * width).reshape(height, width)
    source = want.copy()
    for row in range(height - reach, reach, -1):
        for column in range(width - reach, reach, -1):
            there = row + down[row, column], column + right[row, column]
            want[row, column] = want[there]
            source[row, column] = there[0] * width + there[1]
    found = first_sources(torch.from_numpy(source).reshape(1, -1))
    assert np.array_equal(found[0].numpy(), want.ravel())


def test_each_size_has_the_constants_of_the_nearest_generator() -> None:
    sizes = {8: "CIFAR-C", 32: "CIFAR-C", 45: "CIFAR-C", 46: "Tiny-ImageNet-C", 64: "Tiny-ImageNet-C"}
    sizes |= {119: "Tiny-ImageNet-C", 120: "ImageNet-C", 224: "ImageNet-C", 512: "ImageNet-C"}
    for side, name in sizes.items():
        assert generator_of(side, side).name == generator_of(2 * side, side).name == name
    for generator in GENERATORS:
        assert generator_of(generator.side, generator.side) is generator
        assert list(generator.constants) == list(CORRUPTIONS)
        assert {len(by_severity) for by_severity in generator.constants.values()} == {5}
