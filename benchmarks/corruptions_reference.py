"""The 19 corruptions written plainly, one image at a time, with numpy, scipy and Pillow.

The yardstick of `benchmarks/corruptions.py` and an oracle of the tests: the definitions as CIFAR-C, Tiny-ImageNet-C and
ImageNet-C state them for images of 32, 64 and 224 pixels, without batches, rounding to fixed point or tables. Random
numbers come from a numpy generator, so that only distributions can be compared where there are any.
"""

import io

import numpy as np
from PIL import Image
from scipy import ndimage

STRUCTURE = np.ones((3, 3))


def strength(image, severity, at_32, at_64, at_224):
    """The numbers for a severity, of the data set whose images are nearest in size."""
    side = min(image.shape[:2])
    return (at_32 if side < 46 else at_64 if side < 120 else at_224)[severity - 1]


def stored(image):
    """From [0, 1] to bytes, rounded down as the published generator stores them."""
    return np.floor(np.clip(image, 0, 1) * 255 + 1e-3).astype(np.uint8)


def gaussian_noise(image, severity, rng):
    x = image / 255
    scale = strength(
        image, severity, (0.04, 0.06, 0.08, 0.09, 0.10), (0.04, 0.08, 0.12, 0.15, 0.18), (0.08, 0.12, 0.18, 0.26, 0.38)
    )
    return stored(x + rng.normal(scale=scale, size=x.shape))


def shot_noise(image, severity, rng):
    photons = strength(image, severity, (500, 250, 100, 75, 50), (250, 100, 50, 30, 15), (60, 25, 12, 5, 3))
    return stored(rng.poisson(image / 255 * photons) / photons)


def impulse_noise(image, severity, rng):
    chance = rng.random(image.shape)
    share = strength(
        image, severity, (0.01, 0.02, 0.03, 0.05, 0.07), (0.01, 0.02, 0.05, 0.08, 0.14), (0.03, 0.06, 0.09, 0.17, 0.27)
    )
    out = image.copy()
    out[chance < share] = 0
    out[chance < share / 2] = 255
    return out


def speckle_noise(image, severity, rng):
    x = image / 255
    scale = strength(
        image, severity, (0.06, 0.1, 0.12, 0.16, 0.2), (0.15, 0.2, 0.25, 0.3, 0.35), (0.15, 0.2, 0.35, 0.45, 0.6)
    )
    return stored(x + x * rng.normal(scale=scale, size=x.shape))


def smoothed(x, sigma, mode="nearest", truncate=4.0):
    return ndimage.gaussian_filter(x, (sigma, sigma, 0)[: x.ndim], mode=mode, truncate=truncate)


def gaussian_blur(image, severity, rng):
    sigma = strength(image, severity, (0.4, 0.6, 0.7, 0.8, 1.0), (0.5, 0.75, 1.0, 1.25, 1.5), (1, 2, 3, 4, 6))
    return stored(smoothed(image / 255, sigma))


def glass_blur(image, severity, rng):
    sigma, reach, rounds = strength(
        image,
        severity,
        ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    )
    x = stored(smoothed(image / 255, sigma))
    height, width = x.shape[:2]
    for _ in range(rounds):
        for row in range(height - reach, reach, -1):
            for column in range(width - reach, reach, -1):
                right, down = rng.integers(-reach, reach, 2)
                x[row, column] = x[row + down, column + right]
    return stored(smoothed(x / 255, sigma))


def defocus_blur(image, severity, rng):
    radius, alias_sigma = strength(
        image,
        severity,
        ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1.0, 0.2), (1.5, 0.1)),
        ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    )
    at = np.arange(-12, 13)
    disk = (at[:, None] ** 2 + at**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(disk / disk.sum(), alias_sigma, radius=1 if radius <= 8 else 2)
    return stored(ndimage.correlate(image / 255, kernel[..., None], mode="mirror"))


def along_line(x, angle, radius, sigma):
    """ImageMagick's motion blur, in grey levels."""
    step = np.arange(2 * int(np.ceil(radius)) + 1)
    weights = np.exp(-(step**2) / (2 * sigma**2))
    weights /= weights.sum()
    reach = len(step)
    padded = np.pad(x.astype(float), ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    down = np.ceil(step * np.sin(angle) - 0.5).astype(int) + reach
    right = np.ceil(step * np.cos(angle) - 0.5).astype(int) + reach
    total = np.zeros(x.shape)
    for i in step:
        total += weights[i] * padded[down[i] : down[i] + x.shape[0], right[i] : right[i] + x.shape[1]]
    return np.round(total)


def motion_blur(image, severity, rng):
    radius, sigma = strength(
        image,
        severity,
        ((6, 1.0), (6, 1.5), (6, 2.0), (8, 2.0), (9, 2.5)),
        ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    )
    return along_line(image, np.deg2rad(rng.uniform(-45, 45)), radius, sigma).astype(np.uint8)


def central_zoom(x, zoom):
    """The middle of the image, enlarged linearly and cut to the image's size."""
    size = np.array(x.shape[:2])
    part = np.ceil(size / zoom).astype(int)
    top, left = (size - part) // 2
    large = ndimage.zoom(x[top : top + part[0], left : left + part[1]], (zoom, zoom, 1), order=1)
    top, left = (large.shape[:2] - size) // 2
    return large[top : top + size[0], left : left + size[1]]


def zoom_blur(image, severity, rng):
    x = image / 255
    small = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))
    large = ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03))
    zooms = np.arange(1, *strength(image, severity, small, small, large))
    return stored((x + sum(central_zoom(x, zoom) for zoom in zooms)) / (len(zooms) + 1))


def snow(image, severity, rng):
    small = (
        (0.1, 0.2, 1.0, 0.6, 8, 3), (0.1, 0.2, 1.0, 0.5, 10, 4), (0.15, 0.3, 1.75, 0.55, 10, 4),
        (0.25, 0.3, 2.25, 0.6, 12, 6), (0.3, 0.3, 1.25, 0.65, 14, 12),
    )  # fmt: skip
    large = (
        (0.1, 0.3, 3, 0.5, 10, 4), (0.2, 0.3, 2, 0.5, 12, 4), (0.55, 0.3, 4, 0.9, 12, 8),
        (0.55, 0.3, 4.5, 0.85, 12, 8), (0.55, 0.3, 2.5, 0.85, 12, 12),
    )  # fmt: skip
    mean, std, zoom, threshold, radius, sigma = strength(image, severity, small, small, large)
    mix = strength(
        image, severity, (0.95, 0.9, 0.9, 0.85, 0.8), (0.8, 0.8, 0.7, 0.65, 0.6), (0.8, 0.7, 0.7, 0.65, 0.55)
    )
    x = image / 255
    layer = central_zoom(rng.normal(mean, std, x.shape[:2])[..., None], zoom)
    layer[layer < threshold] = 0
    layer = along_line(stored(layer), np.deg2rad(rng.uniform(-135, -45)), radius, sigma) / 255
    grey = x @ np.array([0.299, 0.587, 0.114])
    x = mix * x + (1 - mix) * np.maximum(x, grey[..., None] * 1.5 + 0.5)
    return stored(x + layer + np.rot90(layer, 2))


def plasma(size, decay, rng):
    field = np.zeros((size, size))
    step, wibble = size, 100.0
    while step >= 2:
        half = step // 2

        def mean(total, wibble=wibble):
            return total / 4 + wibble * rng.uniform(-wibble, wibble, total.shape)

        corners = field[::step, ::step]
        pairs = corners + np.roll(corners, -1, 0)
        field[half::step, half::step] = mean(pairs + np.roll(pairs, -1, 1))
        centres = field[half::step, half::step]
        field[::step, half::step] = mean(centres + np.roll(centres, 1, 0) + corners + np.roll(corners, -1, 1))
        field[half::step, ::step] = mean(centres + np.roll(centres, 1, 1) + corners + np.roll(corners, -1, 0))
        step, wibble = half, wibble / decay
    field -= field.min()
    return field / field.max()


def fog(image, severity, rng):
    amount, decay = strength(
        image,
        severity,
        ((0.2, 3.0), (0.5, 3.0), (0.75, 2.5), (1.0, 2.0), (1.5, 1.75)),
        ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    )
    x = image / 255
    brightest = x.max()
    height, width = image.shape[:2]
    size = 2 ** int(np.ceil(np.log2(max(height, width))))
    x = x + amount * plasma(size, decay, rng)[:height, :width, None]
    return stored(x * brightest / (brightest + amount))


def frost(image, severity, rng, plates=None):
    """`plates`: textures (K, P, P, 3) in grey levels; without any, random ones."""
    image_weight, frost_weight = strength(
        image,
        severity,
        ((1.0, 0.2), (1.0, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
    )
    plates = rng.random((5, 128, 128, 3)) * 255 if plates is None else plates
    plate = plates[rng.integers(len(plates))]
    top, left = rng.integers(0, len(plate) - len(image) + 1, 2)
    ice = plate[top : top + len(image), left : left + len(image)]
    return stored((image_weight * image + frost_weight * ice) / 255)


def to_hsv(x):
    value = x.max(-1)
    spread = value - x.min(-1)
    red, green, blue = np.moveaxis(x, -1, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        saturation = np.where(value > 0, spread / value, 0)
        hue = np.select(
            [spread == 0, value == red, value == green],
            [0, (green - blue) / spread, 2 + (blue - red) / spread],
            4 + (red - green) / spread,
        )
    return (hue / 6) % 1, saturation, value


def from_hsv(hue, saturation, value):
    sector = np.floor(hue * 6)
    rest = hue * 6 - sector
    low, falling, rising = (
        value * (1 - saturation), value * (1 - saturation * rest), value * (1 - saturation * (1 - rest))
    )  # fmt: skip
    table = ((value, rising, low), (falling, value, low), (low, value, rising),
             (low, falling, value), (rising, low, value), (value, low, falling))  # fmt: skip
    return np.select([(sector % 6 == i)[..., None] for i in range(6)], [np.stack(entry, -1) for entry in table])


def brightness(image, severity, rng):
    hue, saturation, value = to_hsv(image / 255)
    large = (0.1, 0.2, 0.3, 0.4, 0.5)
    added = strength(image, severity, (0.05, 0.1, 0.15, 0.2, 0.3), large, large)
    return stored(from_hsv(hue, saturation, np.clip(value + added, 0, 1)))


def saturate(image, severity, rng):
    factor, offset = strength(
        image,
        severity,
        ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
        ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    )
    hue, saturation, value = to_hsv(image / 255)
    return stored(from_hsv(hue, np.clip(saturation * factor + offset, 0, 1), value))


def contrast(image, severity, rng):
    x = image / 255
    mean = x.mean((0, 1), keepdims=True)
    large = (0.4, 0.3, 0.2, 0.1, 0.05)
    return stored((x - mean) * strength(image, severity, (0.75, 0.5, 0.4, 0.3, 0.15), large, large) + mean)


def jpeg_compression(image, severity, rng):
    file = io.BytesIO()
    quality = strength(image, severity, (80, 65, 58, 50, 40), (65, 58, 50, 40, 25), (25, 18, 15, 10, 7))
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(file))


def pixelate(image, severity, rng):
    share = strength(
        image, severity, (0.95, 0.9, 0.85, 0.75, 0.65), (0.9, 0.8, 0.7, 0.6, 0.5), (0.6, 0.5, 0.4, 0.3, 0.25)
    )
    height, width = image.shape[:2]
    small = Image.fromarray(image).resize((int(width * share), int(height * share)), Image.Resampling.BOX)
    return np.asarray(small.resize((width, height), Image.Resampling.BOX))


def sampled(x, rows, columns, mode):
    channels = [ndimage.map_coordinates(x[..., c], (rows, columns), order=1, mode=mode) for c in range(x.shape[-1])]
    return np.stack(channels, -1)


def elastic_transform(image, severity, rng):
    shift, smoothing, jitter = strength(
        image,
        severity,
        ((0.0, 0.0, 0.08), (0.05, 0.2, 0.07), (0.08, 0.06, 0.06), (0.1, 0.04, 0.05), (0.1, 0.03, 0.03)),
        ((0.0, 0.0, 0.08), (0.05, 0.3, 0.06), (0.1, 0.08, 0.06), (0.1, 0.03, 0.03), (0.16, 0.03, 0.02)),
        ((2, 0.7, 0.1), (2, 0.08, 0.2), (0.05, 0.01, 0.02), (0.07, 0.01, 0.02), (0.12, 0.01, 0.02)),
    )
    x = image / 255
    size = len(image)
    # Of images of 224 pixels the published generator takes 244 for the side.
    shift, smoothing, jitter = (number * (244 / 224 if size >= 120 else 1) for number in (shift, smoothing, jitter))
    centre, leg = np.array([size // 2, size // 2]), size // 3
    before = centre + leg * np.array([[1, 1], [1, -1], [-1, -1]])
    after = before + rng.uniform(-jitter * size, jitter * size, (3, 2))
    back = np.linalg.solve(np.column_stack((after, np.ones(3))), before)
    row, column = np.mgrid[:size, :size]
    source = np.stack((column, row, np.ones((size, size))), -1) @ back
    x = sampled(x, source[..., 1], source[..., 0], "mirror")
    right, down = (
        smoothed(rng.uniform(-1, 1, (size, size)), smoothing * size, "reflect", 3) * shift * size for _ in range(2)
    )
    return stored(sampled(x, row + down, column + right, "reflect"))


def canny(image, low, high):
    across = ndimage.sobel(image.astype(float), axis=1, mode="nearest")
    down = ndimage.sobel(image.astype(float), axis=0, mode="nearest")
    strength = np.abs(across) + np.abs(down)
    padded = np.pad(strength, 1)
    height, width = image.shape

    def at(row, column):
        return padded[1 + row : 1 + row + height, 1 + column : 1 + column + width]

    angle = np.rad2deg(np.arctan2(np.abs(down), np.abs(across)))
    same = (across < 0) == (down < 0)
    crest = np.select(
        [angle < 22.5, angle > 67.5, same],
        [(strength > at(0, -1)) & (strength >= at(0, 1)), (strength > at(-1, 0)) & (strength >= at(1, 0)),
         (strength > at(-1, -1)) & (strength > at(1, 1))],
        (strength > at(-1, 1)) & (strength > at(1, -1)),
    )  # fmt: skip
    label, _ = ndimage.label(crest & (strength > low), STRUCTURE)
    return (label > 0) & np.isin(label, label[crest & (strength > high)])


def spatter(image, severity, rng):
    at_32 = (
        (0.62, 0.1, 0.7, 0.7, 0.5, True), (0.65, 0.1, 0.8, 0.7, 0.5, True), (0.65, 0.3, 1.0, 0.69, 0.5, True),
        (0.65, 0.1, 0.7, 0.69, 0.6, False), (0.65, 0.1, 0.5, 0.68, 0.6, False),
    )  # fmt: skip
    at_64 = (
        (0.62, 0.1, 0.7, 0.7, 0.6, True), (0.65, 0.1, 0.8, 0.7, 0.6, True), (0.65, 0.3, 1, 0.69, 0.6, True),
        (0.65, 0.1, 0.7, 0.68, 0.6, False), (0.65, 0.1, 0.5, 0.67, 0.6, False),
    )  # fmt: skip
    at_224 = (
        (0.65, 0.3, 4, 0.69, 0.6, True), (0.65, 0.3, 3, 0.68, 0.6, True), (0.65, 0.3, 2, 0.68, 0.5, True),
        (0.65, 0.3, 1, 0.65, 1.5, False), (0.67, 0.4, 1, 0.65, 1.5, False),
    )  # fmt: skip
    mean, std, sigma, threshold, factor, water = strength(image, severity, at_32, at_64, at_224)
    x = image / 255
    liquid = smoothed(rng.normal(mean, std, x.shape[:2]), sigma)
    if not water:
        amount = smoothed((liquid > threshold).astype(float), factor)
        amount[amount < 0.8] = 0
        return stored(x * (1 - amount[..., None]) + amount[..., None] * np.array([63, 42, 20]) / 255)
    drops = stored(np.where(liquid < threshold, 0, liquid))
    edges = canny(drops, 50, 150)
    distance = ndimage.distance_transform_edt(~edges) if edges.any() else np.full(edges.shape, 20.0)
    relief = np.floor(ndimage.uniform_filter(np.minimum(distance, 20), 3, mode="mirror") + 1e-9).astype(np.uint8)
    counts = np.bincount(relief.ravel(), minlength=256)
    lowest = relief.min()
    if counts[lowest] < relief.size:
        share = (np.cumsum(counts) - counts[lowest]) * (255 / (relief.size - counts[lowest]))
        relief = np.round(share).clip(0, 255)[relief]
    relief = ndimage.correlate(relief.astype(float), np.array([[-2, -1, 0], [-1, 1, 1], [0, 1, 2]]), mode="mirror")
    relief = np.floor(ndimage.uniform_filter(relief.clip(0, 255), 3, mode="mirror") + 0.5)
    amount = drops * relief
    if amount.max() > 0:
        amount = amount / amount.max() * factor
    return stored(x + amount[..., None] * np.array([175, 238, 238]) / 255)


REFERENCE = {
    function.__name__: function
    for function in (
        gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost, fog,
        brightness, contrast, elastic_transform, pixelate, jpeg_compression, speckle_noise, gaussian_blur, spatter,
        saturate,
    )
}  # fmt: skip
