"""Tests how names in configs become modules, and which modules are refused."""

import sys

from big_vision import config as config_lib
from big_vision import modules
import pytest


@pytest.mark.parametrize("kind, name, full_name", [
    ("model", "vit", "big_vision.models.vit"),
    ("trainer", "classification", "big_vision.trainers.classification"),
    ("evaluator", "knn", "big_vision.evaluators.knn"),
    ("model", "proj.vqgan.gpt", "big_vision.proj.vqgan.gpt"),
    ("trainer", "proj.vqgan.stage1", "big_vision.proj.vqgan.stage1"),
    ("source", "proj.nerf.blender", "big_vision.proj.nerf.blender"),
    ("pp module", "ops_crop", "big_vision.pp.ops_crop"),
])
def test_names_are_module_paths(kind, name, full_name):
  assert modules.find(kind, name).__name__ == full_name


def test_the_error_for_an_unknown_name_suggests_the_nearest():
  with pytest.raises(config_lib.ConfigError,
                     match="Unknown model 'vti'.*did you mean 'vit'"):
    modules.find("model", "vti")
  with pytest.raises(config_lib.ConfigError, match="'mylab.no.such'"):
    modules.find("trainer", "mylab.no.such")


@pytest.mark.parametrize("kind, name, lacks", [
    ("model", "proj.vqgan.lpips", "Model"),
    ("trainer", "proj.vqgan.perceptual", "make_task"),
    ("evaluator", "harness", "Evaluator"),
    ("source", "proj.nerf.cameras", "open_source"),
    ("model", "json.decoder", "Model"),
])
def test_a_module_that_lacks_what_its_kind_requires_is_refused(
    kind, name, lacks):
  with pytest.raises(config_lib.ConfigError,
                     match=f"is not a {kind}: it does not define '{lacks}'"):
    modules.find(kind, name)


def test_lists_offer_all_modules_of_a_kind_and_no_others():
  assert modules.list_names("model") == [
      "bit", "bit_paper", "mlp_mixer", "proj.nerf.mlp", "proj.nerf.voxels",
      "proj.vqgan.autoencoder", "proj.vqgan.discriminator", "proj.vqgan.gpt",
      "text_transformer", "universal_transformer", "vit"]
  assert modules.list_names("trainer") == [
      "classification", "proj.nerf.radiance_field", "proj.vqgan.stage1",
      "proj.vqgan.stage2"]
  assert modules.list_names("source") == [
      "proj.nerf.blender", "proj.nerf.llff", "proj.pvr.problems"]
  assert "harness" not in modules.list_names("evaluator")
  for kind in modules.KINDS:
    for name in modules.list_names(kind):
      modules.find(kind, name)


def test_a_missing_import_of_the_module_itself_is_not_an_unknown_name(
    tmp_path, monkeypatch):
  (tmp_path / "mylab_broken.py").write_text("import no_such_dependency\n")
  (tmp_path / "mylab").mkdir()
  (tmp_path / "mylab" / "broken.py").write_text("import no_such_dependency\n")
  monkeypatch.syspath_prepend(str(tmp_path))
  with pytest.raises(ModuleNotFoundError, match="no_such_dependency"):
    modules.find("model", "mylab.broken")
  sys.modules.pop("mylab", None)
