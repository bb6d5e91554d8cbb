"""Turns images upright, as the orientation in their EXIF data says.

Cameras store pixels as their sensor reads them and note how they were held.

Most files of a data set have no EXIF data, so a comparison of a few bytes comes
first, and only files that it does not rule out are searched, in Python. EXIF
data that follows the pixels of a PNG is not used.
"""

import struct

import numpy as np
import tensorflow as tf

_PREFIX = b"Exif\0\0"
_TAG = 0x0112
_SHORT = 3  # The type of the tag's value.
# By orientation: whether height and width are swapped, and then whether rows
# and columns are reversed.
_TURNS = {
    1: (False, False, False), 2: (False, False, True), 3: (False, True, True),
    4: (False, True, False), 5: (True, False, False), 6: (True, False, True),
    7: (True, True, True), 8: (True, True, False)}


def turn_upright(image, orientation: int) -> np.ndarray:
  """Turns an array [h, w, c] of an orientation in [1, 8] upright."""
  is_swapped, *is_reversed = _TURNS[int(orientation)]
  if is_swapped:
    image = image.swapaxes(0, 1)
  axes = [axis for axis in (0, 1) if is_reversed[axis]]
  return np.ascontiguousarray(np.flip(image, axes))


def turned_jpeg(contents, image):
  """Returns the image of a JPEG upright.

  Args:
    contents: string[], the file.
    image: uint8[h, w, c], its pixels as they are stored.
  """
  return tf.cond(
      _is_plain_jpeg(contents), lambda: image,
      lambda: _turned(contents, image))


def turned_png(contents, header, image):
  """Returns the image of a PNG upright.

  Args:
    contents: string[], the file.
    header: uint8[n], its first bytes, n at least 41.
    image: uint8[h, w, c], its pixels as they are stored.
  """
  # A file whose first block after the header has pixels need not be searched.
  return tf.cond(
      tf.reduce_all(tf.equal(header[37:41], list(b"IDAT"))), lambda: image,
      lambda: _turned(contents, image))


def is_upright_jpeg(contents):
  """Returns bool[], whether string[] is a JPEG file of an upright image."""
  return tf.cond(
      _is_plain_jpeg(contents), lambda: True,
      lambda: tf.io.is_jpeg(contents) & tf.numpy_function(
          lambda contents: read_orientation(contents) == 1, [contents], tf.bool,
          stateful=False))


def _is_plain_jpeg(contents):
  """Returns bool[], whether a file is a JPEG that cannot have EXIF data.

  Such a file begins with a JFIF segment, of 16 bytes, and a quantization table:
  EXIF data would be between the two, or first.
  """
  header = tf.io.decode_raw(contents, tf.uint8, fixed_length=22)
  return tf.reduce_all(tf.equal(
      tf.gather(header, [0, 1, 2, 3, 4, 5, 20, 21]),
      tf.constant(list(b"\xff\xd8\xff\xe0\0\x10\xff\xdb"), tf.uint8)))


def _turned(contents, image):
  """Searches a file, and turns its image if necessary."""
  orientation = tf.numpy_function(
      lambda contents: np.int32(read_orientation(contents)), [contents],
      tf.int32, stateful=False)
  return tf.cond(
      tf.equal(orientation, 1), lambda: image,
      lambda: tf.ensure_shape(tf.numpy_function(
          turn_upright, [image, orientation], tf.uint8, stateful=False),
                              [None, None, image.shape[-1]]))


def to_bytes(contents) -> bytes:
  """Converts a string argument of `tf.numpy_function`: an array if eager."""
  return contents if isinstance(contents, bytes) else contents.item()


def read_orientation(contents) -> int:
  """Returns the orientation that a JPEG or PNG file states, or 1.

  Args:
    contents: The file, bytes or an array that holds them.
  """
  contents = to_bytes(contents)
  find = _find_in_jpeg if contents[:2] == b"\xff\xd8" else _find_in_png
  try:
    return parse(find(contents))
  except (struct.error, IndexError):  # No EXIF data, or a damaged file.
    return 1


def parse(data: bytes) -> int:
  """Returns the orientation in EXIF data, or 1 if it is absent or damaged."""
  try:
    value = _parse_tiff(data.removeprefix(_PREFIX))
  except struct.error:  # The data ends too early.
    value = 1
  return value if value in _TURNS else 1


def _find_in_jpeg(contents):
  """Returns the EXIF data of a JPEG file; raises IndexError without any."""
  place = 2
  while True:
    marker, length = struct.unpack_from(">HH", contents, place)
    # Only applications' segments and comments come before EXIF data.
    if not 0xFFE0 <= marker <= 0xFFEF and marker != 0xFFFE:
      raise IndexError("no EXIF data")
    data = contents[place + 4:place + 2 + length]
    if marker == 0xFFE1 and data.startswith(_PREFIX):
      return data
    place += 2 + length


def _find_in_png(contents):
  """Returns the EXIF data of a PNG file; raises IndexError without any."""
  place = 8
  while True:
    length, kind = struct.unpack_from(">I4s", contents, place)
    if kind == b"IDAT":
      raise IndexError("no EXIF data before the pixels")
    if kind == b"eXIf":
      return contents[place + 8:place + 8 + length]
    place += 12 + length


def _parse_tiff(data):
  """Returns the orientation in EXIF data, which has the layout of TIFF."""
  order = {b"II": "<", b"MM": ">"}.get(data[:2])
  if order is None:
    return 1
  place, = struct.unpack_from(f"{order}I", data, 4)
  count, = struct.unpack_from(f"{order}H", data, place)
  for i in range(count):
    tag, kind, _, value = struct.unpack_from(
        f"{order}HHIH", data, place + 2 + 12 * i)
    if tag == _TAG:
      return value if kind == _SHORT else 1
  return 1
