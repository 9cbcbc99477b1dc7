"""Image files decoded in a TensorFlow graph, for image folders and for served images alike."""

import tensorflow as tf

# The messages of the refusals below, as the user reads them.
ANIMATED = "an animated WebP"
PALETTE = "a BMP with a palette"
OLD = "a BMP with the short header of OS/2"
DARK = "a PNG of 16 bits whose values are all below 256"

# EXIF stands in one of the first segments of a JPEG, and none is longer.
_HEADER = 1 << 16
_ORIENTATION = 0x0112
_MOST_ENTRIES = 64


def decode(content: tf.Tensor, channels: int = 0) -> tf.Tensor:
    """Decodes a PNG, JPEG, WebP, GIF (its first frame) or BMP, upright as its EXIF says.

    Args:
        content: string [], the bytes of the file.
        channels: 1 or 3 to convert to; 0 for those of the file.

    Returns:
        uint8 [height, width, channels]. Of 16 bits the upper 8 are kept.

    Raises:
        tf.errors.InvalidArgumentError: no such image, or one that TensorFlow would misread or
            crash on; the message then has `ANIMATED`, `PALETTE`, `OLD` or `DARK`.
    """
    with tf.control_dependencies(_refusals(content)):
        content = tf.identity(content)
    pixels = tf.io.decode_image(content, channels, expand_animations=False)
    pixels = tf.ensure_shape(pixels, [None, None, channels or None])
    is_jpeg = tf.strings.substr(content, 0, 2) == b"\xff\xd8"
    turned = tf.cond(is_jpeg, lambda: orientation(content), lambda: 1)
    return upright(pixels, turned)


def upright(pixels: tf.Tensor, exif_orientation: tf.Tensor) -> tf.Tensor:
    """Turns [height, width, channels] by an EXIF orientation, 1 to 8; others change nothing."""

    def one_of(*values):
        return tf.reduce_any(exif_orientation == list(values))

    shape = [None, None, pixels.shape[-1]]
    steps = (
        (one_of(5, 6, 7, 8), lambda x: tf.transpose(x, [1, 0, 2])),
        (one_of(2, 3, 6, 7), lambda x: tf.reverse(x, [1])),
        (one_of(3, 4, 7, 8), lambda x: tf.reverse(x, [0])),
    )
    for wanted, turn in steps:
        pixels = tf.cond(wanted, lambda x=pixels, t=turn: t(x), lambda x=pixels: tf.identity(x))
        pixels = tf.ensure_shape(pixels, shape)
    return pixels


def orientation(content: tf.Tensor) -> tf.Tensor:
    """Reads the EXIF orientation of a JPEG (TIFF tag 0x0112), int32 []; 1 if it has none."""
    start = tf.io.decode_raw(tf.strings.substr(content, 0, _HEADER), tf.uint8)
    # Zeros behind the end: whatever offsets a damaged file gives, there is something to read.
    data = tf.cast(tf.pad(start, [[0, 32]]), tf.int32)
    mark = b"Exif\x00\x00"
    places = tf.size(data) - len(mark)
    found = tf.reduce_all([data[i : i + places] == byte for i, byte in enumerate(mark)], axis=0)
    tiff = tf.cast(tf.argmax(found), tf.int32) + len(mark)
    little = tf.gather(data, tiff) == ord("I")

    def number(at: tf.Tensor, size: int) -> tf.Tensor:
        at = tf.clip_by_value(at, 0, tf.size(data) - size)
        digits = tf.gather(data, at[..., tf.newaxis] + tf.range(size))
        digits = tf.where(little, digits[..., ::-1], digits)
        return tf.reduce_sum(digits * [256**i for i in range(size)][::-1], axis=-1)

    # Offsets of four bytes whose first is 0: EXIF has no more than one segment.
    directory = tiff + number(tiff + 5 - tf.cast(little, tf.int32), 3)
    entries = directory + 2 + 12 * tf.range(_MOST_ENTRIES)
    held = tf.range(_MOST_ENTRIES) < number(directory, 2)
    is_it = held & (number(entries, 2) == _ORIENTATION)
    value = tf.reduce_max(tf.where(is_it, number(entries + 8, 2), 0))
    return tf.where(tf.reduce_any(found) & (value > 0), value, 1)


def _refusals(content: tf.Tensor) -> list[tf.Operation]:
    """Makes assertions that a file is not of a kind that TensorFlow misreads or crashes on."""
    start = tf.io.decode_raw(tf.strings.substr(content, 0, 32), tf.uint8)
    head = tf.cast(tf.pad(start, [[0, 32]]), tf.int32)

    def has(text: bytes, place: int = 0) -> tf.Tensor:
        return tf.reduce_all(head[place : place + len(text)] == list(text))

    # VP8X is the first chunk of every WebP that is more than one picture; bit 1 says animated.
    animated = has(b"RIFF") & has(b"WEBPVP8X", 8) & (tf.bitwise.bitwise_and(head[20], 2) > 0)
    # TensorFlow takes the indices of a palette for grey values, and any header for a long one.
    old = has(b"BM") & (head[14] < 40)
    palette = has(b"BM") & ~old & (head[28] <= 8)
    deep = has(b"\x89PNG") & (head[24] == 16)

    def dark() -> tf.Tensor:
        greatest = tf.reduce_max(tf.io.decode_png(content, dtype=tf.uint16))
        return (greatest > 0) & (greatest < 256)

    checks = [(animated, ANIMATED), (palette, PALETTE), (old, OLD)]
    checks.append((tf.cond(deep, dark, lambda: False), DARK))
    return [tf.debugging.Assert(~wrong, [what]) for wrong, what in checks]
