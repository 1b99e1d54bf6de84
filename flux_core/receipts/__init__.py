"""What a picture says of how it was made: written into it, read from it, held against it."""

from .hashes import content_hash, pixels_hash
from .png import png_bytes, read_png_texts, saved_pixels
from .receipt import KEY, Receipt, machine

__all__ = [
    "KEY",
    "Receipt",
    "content_hash",
    "machine",
    "pixels_hash",
    "png_bytes",
    "read_png_texts",
    "saved_pixels",
]
