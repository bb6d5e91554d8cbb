"""The ViT against timm's, which reads our files by itself."""

from big_vision import tree
from big_vision.models import vit
import jax
import numpy as np
import pytest

from benchmarks import peers
from tests import drawn

pytestmark = pytest.mark.peer

K = 5
SIZES = dict(width=32, depth=2, num_heads=4, mlp_dim=128)


def _params(model, image):
  rng = np.random.default_rng(0)
  return jax.tree.map(
      lambda leaf: rng.normal(scale=0.3, size=leaf.shape).astype(np.float32),
      drawn.shapes(model, image))


def _theirs(path, image, num_classes=K, **kw):
  """Logits of timm's model with the weights of our file."""
  torch, timm = peers.import_timm()
  model = timm.models.vision_transformer.VisionTransformer(
      img_size=image.shape[1:3], num_classes=num_classes, embed_dim=32, depth=2,
      num_heads=4, patch_size=4, dynamic_img_size=False, fc_norm=False, **kw)
  model.load_pretrained(path)
  with torch.no_grad():
    return model.eval()(torch.from_numpy(
        image.transpose(0, 3, 1, 2).copy())).numpy()


@pytest.mark.parametrize("gelu,act_layer", [
    ("erf", "gelu"), ("tanh", "gelu_tanh")])
@pytest.mark.parametrize("pool_type,kw", [
    ("gap", dict(class_token=False, global_pool="avg")),
    ("map", dict(class_token=False, global_pool="map")),
    ("tok", dict(class_token=True, global_pool="token", no_embed_class=True))])
def test_logits(tmp_path, pool_type, kw, gelu, act_layer):
  """With the same GELU and a LayerNorm epsilon of 1e-6, the numbers agree."""
  image = np.random.default_rng(1).normal(
      size=(2, 16, 16, 3)).astype(np.float32)
  # timm reads a MAP head of the width of the MLPs, and no logits behind it.
  num_classes = None if pool_type == "map" else K
  model = vit.Model(
      num_classes, patch_size=4, pool_type=pool_type, gelu=gelu, **SIZES)
  params = _params(model, image)
  path = str(tmp_path / "weights.npz")
  np.savez(path, **{f"params/{name}": leaf for name, leaf in
                    tree.flatten_with_names(params)})
  logits, _ = jax.jit(model.apply)({"params": params}, image)
  theirs = _theirs(path, image, num_classes=num_classes or 0,
                   act_layer=act_layer, **kw)
  assert np.abs(logits).max() > 0.5
  np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-4)


def test_files_of_the_first_generation_mean_the_same(tmp_path):
  """In those files, the class token has a position embedding."""
  image = np.random.default_rng(1).normal(
      size=(2, 16, 16, 3)).astype(np.float32)
  model = vit.Model(K, patch_size=4, pool_type="tok", gelu="erf", **SIZES)
  init = _params(model, image)
  stored = {}
  for name, leaf in tree.flatten_with_names(init):
    if "encoderblock" in name:
      name = name.replace("LayerNorm_1", "LayerNorm_2").replace(
          "Attention_0", "Attention_1").replace("MlpBlock_0", "MlpBlock_3")
    if name == "pos_embedding":
      name = "Transformer/posembed_input/pos_embedding"
      leaf = np.concatenate([np.full((1, 1, 32), 0.5, np.float32), leaf], 1)
    stored[name] = leaf
  path = str(tmp_path / "weights.npz")
  np.savez(path, **stored)
  params = vit.load(init, path, {})
  logits, _ = jax.jit(model.apply)({"params": params}, image)
  theirs = _theirs(path, image, class_token=True, global_pool="token")
  np.testing.assert_allclose(logits, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant,name", [
    ("Ti/16", "vit_tiny_patch16_224"), ("B/32", "vit_base_patch32_224")])
def test_parameter_counts(variant, name):
  """Counts agree, except for the class token's position embedding."""
  torch, timm = peers.import_timm()
  with torch.device("meta"):
    theirs = getattr(timm.models.vision_transformer, name)()
  model = vit.Model(1000, variant=variant, pool_type="tok")
  ours = tree.num_elements(
      drawn.shapes(model, drawn.image((1, 224, 224, 3))))
  assert sum(p.numel() for p in theirs.parameters()) == ours + model.width
