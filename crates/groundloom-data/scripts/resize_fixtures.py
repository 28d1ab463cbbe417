"""Writes tests/resize.tsv: hashes of what Pillow makes of generated images.

    pip install "pillow>=13" numpy xxhash
    python scripts/resize_fixtures.py > tests/resize.tsv

The images are a function of (seed, size, pattern) that tests/resize.rs computes too, so that no pixels are stored. Pillow before 13 always resizes rows first, which changes last bits of
images that are squashed much more in height than in width.
"""

import random

import numpy as np
import PIL
import xxhash
from PIL import Image

FILTERS = {
    "box": Image.Resampling.BOX,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
SIZES = [1, 2, 3, 5, 7, 13, 17, 31, 32, 33, 64, 100, 224, 255, 300, 333, 512, 640]


def noise(seed: int, count: int) -> np.ndarray:
    """splitmix64 of the position; the top byte."""
    z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(seed)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(56)).astype(np.uint8)


def main() -> None:
    assert int(PIL.__version__.split(".")[0]) >= 13
    rng = random.Random(20)
    print(f"# Pillow {PIL.__version__}: filter, width, height, new width, new height, pattern, seed, xxh3-64 of the pixels")
    for seed in range(240):
        name = rng.choice(list(FILTERS))
        if seed % 3 == 0:
            width, height = rng.randint(1, 500), rng.randint(1, 500)
            new_width, new_height = rng.randint(1, 400), rng.randint(1, 400)
        else:
            width, height, new_width, new_height = (rng.choice(SIZES) for _ in range(4))
        if seed % 11 == 0:
            new_width = width
        if seed % 13 == 0:
            new_height = height
        # Black and white noise drives the sums of bicubic and Lanczos weights out of range.
        pattern = rng.choice(["noise", "black_and_white"])
        pixels = noise(seed, width * height * 3)
        if pattern == "black_and_white":
            pixels = (pixels >> 7) * np.uint8(255)
        image = Image.fromarray(pixels.reshape(height, width, 3))
        resized = image.resize((new_width, new_height), FILTERS[name])
        digest = xxhash.xxh3_64_hexdigest(resized.tobytes())
        print(name, width, height, new_width, new_height, pattern, seed, digest, sep="\t")


main()
