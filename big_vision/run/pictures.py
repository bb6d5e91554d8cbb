"""Makes grids of images and writes them as PNG.

A picture is uint8[h, w, 1 or 3]. An evaluator may yield one in place of a
number; it goes to WORKDIR/pictures and to TensorBoard.
"""

from collections.abc import Mapping, Sequence
import io
import os
from typing import Any

import numpy as np
from PIL import Image

from big_vision import config as config_lib
from big_vision import files


def is_picture(value: Any) -> bool:
  """Returns whether a value is a picture, not a number."""
  return isinstance(value, np.ndarray) and value.ndim == 3


def to_uint8(image) -> np.ndarray:
  """Converts an image to pixels.

  Args:
    image: float[..., h, w, c] in [-1, 1]; values outside are clipped.

  Returns:
    uint8[..., h, w, c].
  """
  scaled = (np.clip(np.asarray(image, np.float64), -1, 1) + 1) * 127.5
  return np.round(scaled).astype(np.uint8)


def grid(rows: Sequence[Sequence[np.ndarray]]) -> np.ndarray:
  """Joins pictures of one size into one, with white lines between them.

  Args:
    rows: Rows of pictures uint8[h, w, c], all of the same length.

  Returns:
    uint8[rows * (h + 1) - 1, columns * (w + 1) - 1, c].
  """
  cells = np.asarray([list(row) for row in rows])
  cells = np.pad(cells, ((0, 0), (0, 0), (0, 1), (0, 1), (0, 0)),
                 constant_values=255)
  r, n, h, w, c = cells.shape
  return cells.swapaxes(1, 2).reshape(r * h, n * w, c)[:-1, :-1]


def save(path: str | os.PathLike, picture: np.ndarray):
  """Writes a PNG atomically; makes its folder if that is missing."""
  path = files.as_path(path)
  files.make_directory(path.parent)
  pixels = picture[..., 0] if picture.shape[-1] == 1 else picture
  stream = io.BytesIO()
  Image.fromarray(pixels).save(stream, "PNG")
  files.write_bytes(path, stream.getvalue())


def save_all(workdir: str | os.PathLike, step: int, values: Mapping[str, Any]):
  """Writes WORKDIR/pictures/NAME/STEP.png for every picture in `values`."""
  for name, value in values.items():
    if is_picture(value):
      path = os.path.join(workdir, "pictures", name, f"{step:08d}.png")
      if not files.is_below(path, workdir):
        raise config_lib.ConfigError(
            f"The picture {name!r} would be written to {path}, which is not "
            f"below {workdir}; change the evaluator's prefix.")
      save(path, value)
