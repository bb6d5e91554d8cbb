"""Mistakes in preprocessing ops."""

from mutations.mutation import Mutation

_CHANNELS = ("tests/pp/test_ops_decode.py::"
             "test_decode_every_number_of_channels_of_every_format")
_UPRIGHT = "tests/pp/test_exif.py::test_images_are_turned_upright"
_FOUND = "tests/pp/test_exif.py::test_exif_data_is_found_after_other_segments"
_LIMIT = "tests/pp/test_ops_decode.py::test_decode_refuses_"

MUTATIONS = [
    Mutation(
        file="big_vision/pp/ops_crop.py",
        old="tf.random.stateless_uniform([], seed) < 0.5,",
        new="tf.random.stateless_uniform([], seed) < 0.4,",
        test="tests/pp/test_ops_crop.py::test_flip_lr"),
    # Channels.
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="_OPAQUE = 255",
        new="_OPAQUE = 1",
        test=f"{_CHANNELS}[jpeg rgb-4]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="    image = tf.cond(header[24] < 8, corrected, lambda: image)\n",
        new="",
        test=f"{_CHANNELS}[png palette-4]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="return tf.where(has_alpha, image, _with_alpha(image[..., :3]))",
        new="return _with_alpha(image[..., :3])",
        test=f"{_CHANNELS}[png transparent-4]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="tf.equal(size[2], 4)",
        new="tf.equal(size[2], 0)",
        test=f"{_CHANNELS}[jpeg cmyk-1]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="lambda: _decode_others(contents, channels, orient)",
        new="lambda: tf.io.decode_image("
            "contents, channels, expand_animations=False)",
        test=f"{_CHANNELS}[bmp palette-3]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old='"L" if image.mode in ("1", "L") else "RGB")',
        new='"RGB")',
        test=f"{_CHANNELS}[bmp grey-0]"),
    # Sizes.
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="  contents = check_size(contents, sides[::-1])\n",
        new="",
        test=f"{_LIMIT}bombs_by_their_header[decode-PNG]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="check_size(contents, size[:2])",
        new="contents",
        test=f"{_LIMIT}bombs_by_their_header[decode-JPEG]"),
    Mutation(
        file="big_vision/pp/ops_crop.py",
        old="checked = ops_decode.check_size(contents, shape[:2])",
        new="checked = contents",
        test=f"{_LIMIT}bombs_by_their_header["
             "decode_jpeg_and_inception_crop(4)-JPEG]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="    _check_pixels(image.height, image.width)",
        new="    pass",
        test=f"{_LIMIT}a_gif_with_a_frame_larger_than_its_canvas"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="    _check_pixels(*_size_in_header(contents))\n",
        new="",
        test=f"{_LIMIT}files_that_claim_gigabytes[GIF-50000]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="for i in (24, 27))",
        new="for i in (27, 27))",
        test=f"{_LIMIT}a_large_webp_of_the_extended_form"),
    # Orientation.
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old="  return exif.turned_jpeg(contents, image) if orient else image",
        new="  return image",
        test="tests/pp/test_exif.py::test_portrait_photographs_stand_upright"),
    Mutation(
        file="big_vision/pp/ops_crop.py",
        old="can_decode_part = exif.is_upright_jpeg if orient else ",
        new="can_decode_part = ",
        test="tests/pp/test_exif.py::test_portrait_photographs_stand_upright"),
    Mutation(
        file="big_vision/pp/exif.py",
        old="5: (True, False, False)",
        new="5: (True, True, True)",
        test=f"{_UPRIGHT}[5-jpeg]"),
    Mutation(
        file="big_vision/pp/exif.py",
        old="6: (True, False, True)",
        new="6: (True, True, False)",
        test=f"{_UPRIGHT}[6-png]"),
    Mutation(
        file="big_vision/pp/exif.py",
        old="header[37:41]",
        new="header[12:16]",
        test="tests/pp/test_exif.py::"
             "test_files_without_exif_data_are_not_searched[PNG]"),
    Mutation(
        file="big_vision/pp/ops_decode.py",
        old='exif.parse(image.info.get("exif", b""))',
        new="1",
        test=f"{_UPRIGHT}[3-webp]"),
    Mutation(
        file="big_vision/pp/exif.py",
        old='{b"II": "<", b"MM": ">"}',
        new='{b"II": "<", b"MM": "<"}',
        test=f"{_FOUND}[before0->]"),
    Mutation(
        file="big_vision/pp/exif.py",
        old="    if not 0xFFE0 <= marker <= 0xFFEF and marker != 0xFFFE:",
        new="    if not 0xFFE0 <= marker <= 0xFFEF:",
        test=f"{_FOUND}[before2-<]"),
    Mutation(
        file="big_vision/pp/exif.py",
        old="[0, 1, 2, 3, 4, 5, 20, 21]),\n",
        new="[0, 1, 2, 3, 4, 5]),\n",
        test=f"{_FOUND}[before1-<]"),
    Mutation(
        file="big_vision/pp/exif.py",
        old="return value if value in _TURNS else 1",
        new="return value",
        test="tests/pp/test_exif.py::"
             "test_damaged_or_absent_orientations_mean_upright"),
]
