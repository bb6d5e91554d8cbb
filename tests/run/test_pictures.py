"""Pictures: their pixels, grids and files, and where the writer puts them."""

import json

from big_vision.evaluators import schedule
from big_vision import config as config_lib
from big_vision.run import metrics
from big_vision.run import pictures
from big_vision.run import progress
import numpy as np
from PIL import Image
import pytest


def test_pixels_are_rounded_and_clipped():
  image = np.array([-3, -1, -0.5, 0, 1 / 127.5, 1, 2])
  assert list(pictures.to_uint8(image)) == [0, 0, 64, 128, 128, 255, 255]


def test_a_grid_has_white_lines_between_its_cells():
  cells = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones(
      (1, 2, 3, 1), np.uint8)
  grid = pictures.grid([cells[:3], cells[3:]])
  assert grid.shape == (2 * 3 - 1, 3 * 4 - 1, 1)
  for i in range(2):
    for j in range(3):
      np.testing.assert_array_equal(
          grid[3 * i:3 * i + 2, 4 * j:4 * j + 3], cells[3 * i + j])
  assert (grid[2] == 255).all() and (grid[:, [3, 7]] == 255).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_the_writer_keeps_pictures_beside_the_numbers(tmp_path, channels):
  picture = np.random.default_rng(0).integers(
      0, 256, (5, 7, channels), np.uint8)
  with metrics.Writer(str(tmp_path)) as writer:
    writer.write(3, {"a/loss": 2.0, "a/images": picture})
  row, = (tmp_path / "metrics.jsonl").read_text().splitlines()
  assert json.loads(row) == {"step": 3, "a/loss": 2.0}
  stored = np.asarray(Image.open(
      tmp_path / "pictures" / "a" / "images" / "00000003.png"))
  np.testing.assert_array_equal(
      stored, picture if channels == 3 else picture[..., 0])
  events = b"".join(path.read_bytes()
                    for path in (tmp_path / "tensorboard").iterdir())
  assert b"a/images" in events and b"\x89PNG" in events
  said = progress.format_evals(3, {"a/loss": 2.0, "a/images": picture})
  assert said == "after step 3: a/loss 2.0000"


def test_evaluators_may_yield_pictures_among_numbers():
  picture = np.zeros((2, 2, 3), np.uint8)

  class Evaluator:
    def run(self, state):
      yield "n", np.float32(state["x"])
      yield "images", picture
  values = schedule.run_all([schedule.Scheduled(
      name="e", prefix="e/", evaluator=Evaluator())], {"x": 2})
  assert values["e/n"] == 2.0 and isinstance(values["e/n"], float)
  assert values["e/images"] is picture


def test_pictures_are_written_below_the_workdir_only(tmp_path):
  """Names come from the prefixes in a config, and a config from anywhere."""
  picture = np.zeros((2, 2, 3), np.uint8)
  workdir = tmp_path / "run"
  for name in "../../images", "/" + str(tmp_path / "elsewhere"):
    with pytest.raises(config_lib.ConfigError, match="not below .*prefix"):
      pictures.save_all(str(workdir), 3, {name: picture})
  assert not list(tmp_path.iterdir())
