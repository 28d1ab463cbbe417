"""Writes tests/media/: one small image of every kind that is read, and beside it the pixels that Pillow sees as NAME.png.

    pip install pillow numpy
    python scripts/media_fixtures.py

The pixels are those of ImageOps.exif_transpose(image).convert("RGB"), but 16-bit grey is shown by its high byte, where Pillow clips.
"""

import io
import pathlib
import struct
import zlib

import numpy as np
from PIL import Image, ImageOps

OUT = pathlib.Path(__file__).parent.parent / "tests" / "media"
WIDTH, HEIGHT = 37, 23


def picture() -> np.ndarray:
    """A smooth picture with edges, different in every corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    red = x * 255 // (WIDTH - 1)
    green = y * 255 // (HEIGHT - 1)
    blue = np.where((x > 20) & (y < 9), 230, 40 + 3 * x)
    return np.stack([red, green, blue], -1).astype(np.uint8)


def write(name: str, data: bytes, expected: Image.Image | None = None) -> None:
    (OUT / name).write_bytes(data)
    if expected is None:
        image = Image.open(io.BytesIO(data))
        expected = ImageOps.exif_transpose(image).convert("RGB")
    expected.save(OUT / (name + ".png"))


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def main() -> None:
    OUT.mkdir(exist_ok=True)
    rgb = Image.fromarray(picture())
    grey = rgb.convert("L")
    alpha = Image.fromarray((np.mgrid[0:HEIGHT, 0:WIDTH][1] * 6).astype(np.uint8))
    rgba = rgb.copy()
    rgba.putalpha(alpha)
    la = grey.copy()
    la.putalpha(alpha)

    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        write(f"orientation{orientation}.jpg", encoded(rgb, "JPEG", quality=95, exif=exif))
    exif = Image.Exif()
    exif[0x0112] = 6
    write("orientation6.png", encoded(rgb, "PNG", exif=exif))
    write("orientation6.webp", encoded(rgb, "WEBP", lossless=True, exif=exif))
    write("orientation6.tiff", encoded(rgb, "TIFF", exif=exif))

    write("progressive.jpg", encoded(rgb, "JPEG", quality=90, progressive=True))
    write("subsampled420.jpg", encoded(rgb, "JPEG", quality=90, subsampling=2))
    write("subsampled422.jpg", encoded(rgb, "JPEG", quality=90, subsampling=1))
    write("grey.jpg", encoded(grey, "JPEG", quality=90))
    write("cmyk.jpg", encoded(rgb.convert("CMYK"), "JPEG", quality=95))
    write("restart.jpg", encoded(rgb, "JPEG", quality=90, restart_marker_blocks=1))

    write("rgb.png", encoded(rgb, "PNG"))
    write("rgba.png", encoded(rgba, "PNG"))
    write("grey.png", encoded(grey, "PNG"))
    write("grey_alpha.png", encoded(la, "PNG"))
    write("one_bit.png", encoded(grey.convert("1"), "PNG"))
    palette = rgb.quantize(17)
    write("palette.png", encoded(palette, "PNG"))
    write("palette_transparent.png", encoded(palette, "PNG", transparency=3))
    write("rgb_transparent.png", encoded(rgb, "PNG", transparency=(0, 0, 40)))
    two_bits = b"".join(b"\0" + bytes((x * 7 + y) % 256 for x in range(3)) for y in range(5))
    write("grey_two_bits.png", png(12, 5, 2, 0, two_bits))
    deep = np.asarray(grey).astype(np.uint16) * 257 // 2 + 77
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep)
    write("grey16.png", png(WIDTH, HEIGHT, 16, 0, rows), Image.fromarray((deep >> 8).astype(np.uint8)).convert("RGB"))
    deep = picture().astype(np.uint16) * 199 + 31
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep.reshape(HEIGHT, -1))
    write("rgb16.png", png(WIDTH, HEIGHT, 16, 2, rows))
    deep = np.concatenate([deep, deep[..., :1]], -1)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in deep.reshape(HEIGHT, -1))
    write("rgba16.png", png(WIDTH, HEIGHT, 16, 6, rows))

    write("palette.gif", encoded(palette, "GIF"))
    frames = [palette, rgb.rotate(180).quantize(17)]
    write("animated.gif", encoded(frames[0], "GIF", save_all=True, append_images=frames[1:], duration=100))
    write("lossless.webp", encoded(rgb, "WEBP", lossless=True))
    write("lossy.webp", encoded(rgb, "WEBP", quality=90))
    write("alpha.webp", encoded(rgba, "WEBP", lossless=True, exact=True))
    write("animated.webp", encoded(rgb, "WEBP", save_all=True, append_images=[rgb.rotate(180)], duration=100, lossless=True))
    write("rgb.bmp", encoded(rgb, "BMP"))
    write("palette.bmp", encoded(palette, "BMP"))
    write("rgb.tiff", encoded(rgb, "TIFF"))
    write("lzw.tiff", encoded(rgb, "TIFF", compression="tiff_lzw"))
    write("grey.tiff", encoded(grey, "TIFF"))
    write("cmyk.tiff", encoded(rgb.convert("CMYK"), "TIFF"))


main()
