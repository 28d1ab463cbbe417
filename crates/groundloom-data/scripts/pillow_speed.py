"""Decoding and resizing with Pillow, in images a second on one thread: the work of benches/pictures.rs.

    pip install pillow
    python scripts/pillow_speed.py [FOLDER]
"""

import io
import pathlib
import sys
import time

import PIL
from PIL import Image, ImageOps

FOLDER = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else pathlib.Path(__file__).parents[3] / "examples" / "photos")


def decode(data: bytes) -> Image.Image:
    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def measure(name: str, work, count: int) -> None:
    best = min(once(work) for _ in range(7))
    print(f"{name}: {count / best:.1f} images/s")


def once(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    photos = [f.read_bytes() for f in sorted(FOLDER.glob("*.jpg"))]
    decoded = [decode(p) for p in photos]
    print(f"Pillow {PIL.__version__}, {len(photos)} photographs")
    measure("decode", lambda: [decode(p) for p in photos], len(photos))
    for name in ("BILINEAR", "BICUBIC", "LANCZOS"):
        how = Image.Resampling[name]
        measure(f"resize to 300x300, {name.lower()}", lambda: [i.resize((300, 300), how) for i in decoded], len(photos))
    both = lambda: [decode(p).resize((300, 300), Image.Resampling.BILINEAR) for p in photos]
    measure("decode and resize to 300x300, bilinear", both, len(photos))


main()
