"""Compares the input pipeline with plain decoding and resizing.

  python -m benchmarks.input_pipeline [--images 64] [--batches 24]

JPEGs of 500x375 pixels, cropped from the photographs in scikit-learn, go
through decode_jpeg_and_inception_crop(224)|flip_lr|value_range(-1, 1). The peer
is a tf.data pipeline that only decodes and resizes the same files.
"""

import argparse
import os
import tempfile

from benchmarks import timing
from big_vision import input_pipeline
from big_vision import sharding
import jax
import numpy as np
from PIL import Image
from sklearn import datasets
import tensorflow as tf

_PP = ("decode_jpeg_and_inception_crop(224)|flip_lr|value_range(-1, 1)"
       "|keep('image', 'label')")


def write_photographs(root: str, count: int):
  """Writes `count` different crops as JPEG files of two classes."""
  photos = datasets.load_sample_images().images
  generator = np.random.default_rng(0)
  for i in range(count):
    photo = photos[i % len(photos)]
    y = generator.integers(0, photo.shape[0] - 375 + 1)
    x = generator.integers(0, photo.shape[1] - 500 + 1)
    folder = os.path.join(root, f"class{i % 2}")
    os.makedirs(folder, exist_ok=True)
    Image.fromarray(photo[y:y + 375, x:x + 500]).save(
        os.path.join(folder, f"{i}.jpg"), quality=90)


def main():
  parser = argparse.ArgumentParser(
      description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--images", type=int, default=64)
  parser.add_argument("--batch", type=int, default=32)
  parser.add_argument("--batches", type=int, default=24)
  parser.add_argument("--rounds", type=int, default=7)
  args = parser.parse_args()
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  where = sharding.batch_sharding(mesh, sharding.default_rules(mesh))
  with tempfile.TemporaryDirectory() as root:
    write_photographs(root, args.images)
    files = tf.io.gfile.glob(f"{root}/*/*.jpg")
    pipeline = input_pipeline.make_training(
        dict(data=dict(name="bv:folder", path=root, split="train"),
             batch_size=args.batch, pp=_PP), seed=0)

    def load(fname):
      image = tf.io.decode_jpeg(tf.io.read_file(fname), channels=3)
      return tf.image.resize(image, (224, 224))

    # Both stay open, so that starting is not measured. In the other's turn they
    # prefetch, but only a few of many batches.
    plain = iter(
        tf.data.Dataset.from_tensor_slices(files).repeat()
        .map(load, num_parallel_calls=tf.data.AUTOTUNE)
        .batch(args.batch).prefetch(2))
    with pipeline.start(0, where) as ours:
      def take(batches):
        for _ in range(args.batches):
          batch = next(batches)
          if isinstance(batch, dict):
            jax.block_until_ready(batch)
      seconds = timing.alternate(
          {"ours": lambda: take(ours),
           "decode and resize": lambda: take(plain)},
          args.rounds)
  timing.report(seconds, args.batch * args.batches / os.cpu_count(),
                "images/s/core")


if __name__ == "__main__":
  main()
