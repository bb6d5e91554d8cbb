"""The stored file has the model's predictions and the images it saw."""

import base64
import io
import json

from big_vision import sharding
from big_vision.evaluators import harness
from big_vision.evaluators import predictions
from PIL import Image
import jax
import numpy as np
from sklearn import datasets

from tests.array_data import assert_is_key


def test_digits(tmp_path):
  mesh = sharding.make_mesh()
  where = sharding.batch_sharding(mesh, sharding.default_rules(mesh))

  def predict(state, batch, *, rng=None):
    assert_is_key(rng)
    logits = batch["labels"] * 2. + jax.nn.one_hot(3, 10) * state["bias"]
    return logits, {}

  outfile = tmp_path / "predictions.json"
  evaluator = predictions.Evaluator(
      predict, harness.Loader(where, 16),
      data=dict(name="bv:digits", split="test"),
      pp_fn="value_range(-1, 1, 0, 16)|onehot(10, key='label', "
            "key_result='labels')|keep('image', 'labels')",
      outfile=str(outfile), num_examples=20)
  digits = {image.astype(int).tobytes(): int(label) for image, label in zip(
      *(lambda d: (d.images, d.target))(datasets.load_digits()))}
  for bias, right in ((0., True), (9., False)):
    assert not list(evaluator.run({"bias": bias}))
    stored = json.loads(outfile.read_text())
    assert stored["class_names"] == list("0123456789")
    examples = stored["examples"]
    assert len(examples) == 20
    for example in examples:
      assert example["prediction"] == (example["label"] if right else 3)
      expected = np.exp(2. if right else 9. + 2. * (example["label"] == 3))
      rest = 9 if right or example["label"] == 3 else 8 + np.exp(2.)
      np.testing.assert_allclose(
          example["probability"], expected / (expected + rest), rtol=1e-5)
      pixels = np.asarray(Image.open(io.BytesIO(
          base64.b64decode(example["png_base64"]))))
      original = np.round(pixels / 255 * 16).astype(int)
      assert digits[original.tobytes()] == example["label"]
