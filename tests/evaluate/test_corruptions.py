"""What every corruption promises: the same pixels for the same image, at any size, in any company."""

import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from svdctl.config.corruption_names import BENCHMARK, CORRUPTIONS, NOTES, SEVERITIES, read_corruption_list
from svdctl.errors import ShapeError, UsageError
from svdctl.evaluate.corruptions import corruption_functions
from svdctl.evaluate.corruptions.corruption_functions import corrupt
from svdctl.evaluate.corruptions.corruption_sheet import contact_sheet, sample_images
from tests.evaluate.pictures import flat, photographs

SEEDED = [
    "gaussian_noise",
    "shot_noise",
    "impulse_noise",
    "speckle_noise",
    "glass_blur",
    "motion_blur",
    "snow",
    "frost",
    "fog",
    "elastic_transform",
    "spatter",
]
SIZES = [(28, 28), (32, 32), (64, 64), (96, 96), (32, 48), (61, 40), (8, 8), (224, 224), (70, 130)]


def test_nineteen_of_which_fifteen_are_the_benchmark() -> None:
    assert len(set(CORRUPTIONS)) == 19
    assert CORRUPTIONS[:15] == BENCHMARK
    assert set(corruption_functions._FUNCTIONS) == set(CORRUPTIONS)
    assert tuple(NOTES) == CORRUPTIONS


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_pixels_depend_on_the_image_alone(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    images = photographs(20)
    for severity in SEVERITIES:
        before = images.clone()
        whole = corrupt(images, name, severity, 3)
        assert torch.equal(images, before), "the input was written to"
        assert whole.dtype == torch.uint8
        assert whole.shape == images.shape
        assert whole.is_contiguous()
        order = torch.randperm(len(images), generator=torch.Generator().manual_seed(severity))
        assert torch.equal(corrupt(images[order], name, severity, 3), whole[order])
        alone = torch.cat([corrupt(image[None], name, severity, 3) for image in images[:5]])
        assert torch.equal(alone, whole[:5])
        with monkeypatch.context() as patch:
            patch.setattr(corruption_functions, "_CHUNK", 7 * images[:1].numel())
            assert torch.equal(corrupt(images, name, severity, 3), whole)
        strided = images.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        assert torch.equal(corrupt(strided, name, severity, 3), whole)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_seed_and_severity_matter_where_they_should(name: str) -> None:
    images = photographs(8)
    levels = [corrupt(images, name, severity, 0) for severity in SEVERITIES]
    for lower, higher in pairwise(levels):
        assert not torch.equal(lower, higher)
    for number, image in enumerate(images):
        other = corrupt(image[None], name, 3, 1)[0]
        assert torch.equal(other, levels[2][number]) != (name in SEEDED)


def test_severities_use_draws_of_their_own() -> None:
    # Were the stream the same, a stronger noise would flip every pixel that a weaker one flips.
    image = flat(128, 40)
    weak, strong = (corrupt(image, "impulse_noise", severity, 0) != 128 for severity in (1, 5))
    assert (weak & ~strong).any()


def test_another_process_with_other_threads_gives_the_same() -> None:
    code = (
        "import hashlib, torch; from svdctl.evaluate.corruptions.corruption_functions import corrupt\n"
        "images = (torch.arange(8 * 3072) * 7919 % 251).byte().view(8, 3, 32, 32)\n"
        f"pixels = [corrupt(images, name, 3, 7).numpy().tobytes() for name in {SEEDED!r}]\n"
        "digest = hashlib.sha256(b''.join(pixels)).hexdigest()"
    )
    here: dict[str, str] = {}
    exec(code, here)
    other = f"import torch; torch.set_num_threads(2)\n{code}\nprint(digest)"
    done = subprocess.run([sys.executable, "-c", other], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == here["digest"]


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_any_size(name: str, size: tuple[int, int]) -> None:
    images = photographs(3, *size)
    for severity in (1, 5):
        found = corrupt(images, name, severity, 0)
        assert found.shape == images.shape
        assert found.dtype == torch.uint8
        change = (found.float() - images.float()).abs().mean()
        # A blur of a tenth of a pixel, which it is at 8 x 8, changes nothing.
        assert change < 100
        assert change > 0.005 or size == (8, 8)


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"pixelate", "jpeg_compression"}))
def test_the_change_is_about_as_large_at_other_sizes(name: str) -> None:
    # The same smooth pictures, so that only the corruption's own scale is compared. Severity 3 is clear of lengths that
    # fall below one pixel; JPEG's blocks and the share of pixelate do not scale.
    small = torch.nn.functional.avg_pool2d(photographs(60).float(), 4)
    # From 46 and from 120 pixels on the constants are those of other generators.
    for sides in ((32, 44), (64, 96, 118), (160, 224)):
        change = []
        for side in sides:
            images = torch.nn.functional.interpolate(small, size=(side, side), mode="bicubic").clamp(0, 255).byte()
            images = images[: max(8, 60 * 32 // side)]
            change.append((corrupt(images, name, 3, 0).float() - images.float()).abs().mean())
        allowed = 1.8 if name in ("glass_blur", "spatter") else 1.35
        assert max(change) / min(change) < allowed


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_extreme_images(name: str) -> None:
    for level in (0, 255):
        images = torch.full((2, 3, 32, 32), level, dtype=torch.uint8)
        for severity in SEVERITIES:
            assert corrupt(images, name, severity, 0).dtype == torch.uint8
    assert corrupt(images[:0], name, 1, 0).shape == (0, 3, 32, 32)


def test_equal_images_are_corrupted_equally() -> None:
    images = photographs(1).expand(4, -1, -1, -1)
    for name in SEEDED:
        found = corrupt(images, name, 2, 0)
        assert torch.equal(found, found[:1].expand_as(found))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_distance_grows_with_severity(name: str) -> None:
    # Those of CIFAR-C that are not meant to: other rules by severity, or the same shift with less smoothing.
    images = photographs(200)
    change = [(corrupt(images, name, s, 0).float() - images.float()).square().mean().item() for s in SEVERITIES]
    if name in ("saturate", "spatter", "elastic_transform", "frost", "glass_blur", "motion_blur"):
        rising = {
            "saturate": (0, 1),
            "spatter": (0, 1, 2),
            "frost": (0, 1),
            "glass_blur": (0, 3),
            "motion_blur": (0, 2, 4),
        }
        change = [change[index] for index in rising.get(name, (4, 1))]
    assert change == sorted(change)
    assert change[0] < change[-1]


@pytest.mark.parametrize(
    ("name", "severity", "seed", "words"),
    [
        ("gausian_noise", 1, 0, "did you mean gaussian_noise?"),
        ("Fogg", 1, 0, "did you mean fog?"),
        ("xyzzy", 1, 0, "choose one of gaussian_noise, shot_noise"),
        ("fog", 0, 0, "severities 1 to 5"),
        ("fog", 6, 0, "severities 1 to 5"),
        ("fog", 2.5, 0, "severity must be a whole number, not 2.5"),
        ("fog", 1, "a", "seed must be a whole number, not 'a'"),
        ("natural", 1, 0, "there is no corruption 'natural'"),
    ],
)
def test_wrong_requests(name: str, severity: int, seed: int, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        corrupt(photographs(1), name, severity, seed)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_with_dashes_and_other_whole_numbers() -> None:
    want = corrupt(photographs(2), "impulse_noise", 2, 5)
    assert torch.equal(corrupt(photographs(2), "Impulse-Noise", np.int64(2), np.int32(5)), want)
    assert not torch.equal(corrupt(photographs(2), "impulse_noise", 2, -(2**80)), want)


@pytest.mark.parametrize(
    "images",
    [
        torch.zeros(1, 3, 32, 32),
        torch.zeros(3, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 2, 32, 32, dtype=torch.uint8),
        torch.zeros(1, 3, 7, 32, dtype=torch.uint8),
    ],
    ids=["float", "one image", "two channels", "too small"],
)
def test_wrong_images(images: torch.Tensor) -> None:
    with pytest.raises(ShapeError, match="images to corrupt must"):
        corrupt(images, "fog", 1, 0)


def test_the_shipped_list() -> None:
    names = read_corruption_list()
    assert names[0] == "natural"
    assert len(names) == len(set(names)) == 19
    assert set(names) <= {*CORRUPTIONS, "natural"}
    assert set(CORRUPTIONS) - set(names) == {"glass_blur"}


def test_the_sheet_shows_what_corrupt_gives(tmp_path: Path) -> None:
    path = contact_sheet(tmp_path / "sheet.png")
    image = np.asarray(Image.open(path))
    for name, severity in (("fog", 1), ("saturate", 5), ("gaussian_noise", 3)):
        tile = corrupt(sample_images(), name, severity, 0)[1].permute(1, 2, 0).numpy().repeat(3, 0).repeat(3, 1)
        height, width = (size - 96 for size in image.shape[:2])
        alike = np.ones((height, width), dtype=bool)
        for at in (0, 20, 50, 95):
            alike &= (image[at : at + height, at : at + width] == tile[at, at]).all(-1)
        assert any(np.array_equal(image[y : y + 96, x : x + 96], tile) for y, x in np.argwhere(alike)), name


def test_the_sheet_takes_other_images_and_refuses_other_places(tmp_path: Path) -> None:
    assert Image.open(contact_sheet(tmp_path / "wide.png", photographs(1, 100, 80))).height > 19 * 100
    with pytest.raises(UsageError, match="cannot be written"):
        contact_sheet(tmp_path / "no" / "sheet.png", photographs(1, 8, 8))
    with pytest.raises(UsageError, match="ending"):
        contact_sheet(tmp_path / "sheet.xyz", photographs(1, 8, 8))


def test_names_come_without_torch() -> None:
    code = (
        "import sys, svdctl.config.corruption_names as r, svdctl.evaluate.corruptions\n"
        "r.CORRUPTIONS, r.read_corruption_list(), r.corruption_name('fog')\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_cuda_gives_the_same_pixels(name: str) -> None:
    images = photographs(20)
    for severity in SEVERITIES:
        there = corrupt(images.cuda(), name, severity, 0)
        assert there.is_cuda
        apart = (there.cpu().int() - corrupt(images, name, severity, 0).int()).abs()
        assert apart.max() <= 1
        assert (apart > 0).float().mean() < 1e-3
