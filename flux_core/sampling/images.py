"""Pictures as people have them, and as the VAE reads them.

pictures (B, H, W, 3) in [0, 1];  pixels (B, 3, H, W) in [-1, 1]
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..bounds import brief
from ..errors import PictureError
from ..pictures import OVERSHOOT, open_picture, over_white, plain, to_tensor
from ..record import ReadFrom, note, stamp_of

#: How bright red, green and blue are, by ITU-R 601.
LUMA = (0.299, 0.587, 0.114)


def to_pixels(images: Tensor) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] to the VAE's (B, 3, H, W) in [-1, 1].

    They lie in memory as a picture of their own does: a part of another's would be encoded with
    other last bits.
    """
    return images[..., :3].contiguous().movedim(-1, 1).float() * 2 - 1


def to_images(pixels: Tensor) -> Tensor:
    """The VAE's (B, 3, H, W) to pictures (B, H, W, 3) float32 in [0, 1] on the CPU."""
    return (pixels.float() / 2 + 0.5).clamp(0, 1).movedim(1, -1).cpu()


def scaled_to(
    pixels: Tensor, height: int, width: int, mode: str = "nearest-exact", crop: bool = True
) -> Tensor:
    """Pixels (B, C, H, W) in another size, cut to its shape around their middle where ``crop``, as
    the host scales what does not fit."""
    inner = cut_to_shape(pixels, height, width) if crop else pixels
    return F.interpolate(inner, (height, width), mode=mode)


def cut_to_shape(pixels: Tensor, height: int, width: int) -> Tensor:
    """The middle of pixels (B, C, H, W) that has the shape of ``height`` x ``width``."""
    rows, columns = pixels.shape[-2:]
    top = left = 0
    if columns * height > width * rows:
        left = round((columns - columns * (width / height) / (columns / rows)) / 2)
    elif columns * height < width * rows:
        top = round((rows - rows * (columns / rows) / (width / height)) / 2)
    return pixels[..., top : rows - top, left : columns - left]


def as_pictures(value: object, name: str) -> Tensor:
    """Pictures (B, H, W, 3) in [0, 1] from what people have: a tensor or an array of floats in
    [0, 1] or of bytes, (H, W), (H, W, C) or (B, H, W, C), a PIL picture, a file, or a list of
    these.

    Raises ``ValueError`` naming the argument.
    """
    if isinstance(value, list | tuple) and value:
        pictures = [as_pictures(each, name) for each in value]
        if len({picture.shape[1:] for picture in pictures}) != 1:
            raise ValueError(f"{name} has pictures of several sizes, expected one or more of one")
        return torch.cat(pictures)
    if isinstance(value, str | Path):
        value = picture_of(value, name)
    if isinstance(value, Image.Image):
        return to_tensor(over_white(plain(value)))[None]
    tensor = as_unit(value, name)
    if tensor.ndim == 2:
        tensor = tensor[..., None]
    if tensor.ndim == 3:
        tensor = tensor[None]
    if tensor.ndim != 4 or tensor.shape[-1] not in (1, 3, 4) or not tensor.numel():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected (B, H, W, 3)")
    return tensor.expand(*tensor.shape[:3], 3) if tensor.shape[-1] == 1 else tensor[..., :3]


def picture_of(path: str | Path, name: str) -> Image.Image:
    """A picture's file; raises ``PictureError`` naming the argument and the file."""
    note("input", picture=ReadFrom(Path(path), stamp=stamp_of(Path(path))))
    try:
        return open_picture(path)
    except PictureError as error:
        raise PictureError(f"{name}: {error}") from error


def as_masks(value: object, name: str) -> Tensor:
    """Masks (B, H, W) in [0, 1] from (H, W), (B, H, W), (B, 1, H, W), the grey of a picture (H, W,
    C) or (B, H, W, C), of a PIL picture or of a file, or a list of these.

    Raises ``ValueError`` naming the argument.
    """
    if isinstance(value, list | tuple) and value:
        masks = [as_masks(each, name) for each in value]
        if len({mask.shape[1:] for mask in masks}) != 1:
            raise ValueError(f"{name} has masks of several sizes, expected one or more of one")
        return torch.cat(masks)
    if isinstance(value, str | Path):
        value = picture_of(value, name)
    if isinstance(value, Image.Image):
        return to_tensor(plain(value).convert("L"))[None]
    tensor = as_unit(value, name)
    if tensor.ndim == 4 and tensor.shape[1] == 1:
        tensor = tensor[:, 0]
    elif tensor.ndim in (3, 4) and tensor.shape[-1] in (1, 3, 4):  # no mask is so narrow
        tensor = grey_of(tensor)
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.ndim != 3 or not tensor.numel():
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected (B, H, W)")
    return tensor


def grey_of(picture: Tensor) -> Tensor:
    """How bright a picture (..., H, W, C) is, (..., H, W), as Pillow's grey has it."""
    if picture.shape[-1] == 1:
        return picture[..., 0]
    return picture[..., :3] @ picture.new_tensor(LUMA)


def as_unit(value: object, name: str) -> Tensor:
    """A tensor or array of any shape as floats in [0, 1]."""
    tensor = of_array(value, name) if isinstance(value, np.ndarray) else value
    if not isinstance(tensor, Tensor):
        raise ValueError(f"{name} is a {type(value).__name__}, expected a tensor or a picture")
    if tensor.layout != torch.strided or tensor.is_complex() or tensor.device.type == "meta":
        raise ValueError(f"{name} is a tensor without numbers of pictures: {brief(value)}")
    tensor = tensor.detach().cpu()
    if tensor.dtype == torch.uint8:
        return tensor.float() / 255
    if tensor.dtype == torch.bool:
        return tensor.float()
    low, high = (float(x) for x in tensor.float().aminmax()) if tensor.numel() else (0.0, 0.0)
    if not (low >= -OVERSHOOT and high <= 1 + OVERSHOOT):  # NaN is neither
        raise ValueError(f"{name} has values from {low:g} to {high:g}, expected 0 to 1")
    return tensor.float().clamp(0, 1)


def of_array(array: np.ndarray, name: str) -> Tensor:
    """An array of any shape, order and byte order as a tensor."""
    if array.dtype.kind not in "fuib":
        raise ValueError(f"{name} is an array of {array.dtype}, expected numbers of pictures")
    kinds = {np.dtype(np.uint8): np.uint8, np.dtype(bool): bool}
    array = np.ascontiguousarray(array, kinds.get(array.dtype, np.float32))
    return torch.from_numpy(array if array.flags.writeable else array.copy())


def rows_for(batch: int, value: Tensor, name: str) -> Tensor:
    """A tensor (rows, ...) of which there is one for all or one for each of a batch."""
    if len(value) not in (1, batch):
        raise ValueError(f"{name} has {len(value)} pictures, the batch {batch}: expected 1 or all")
    return value
