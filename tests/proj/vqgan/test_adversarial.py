"""Losses of generator and discriminator against closed forms."""

from big_vision.proj.vqgan import adversarial
import jax
import jax.numpy as jnp
import numpy as np

REAL, FAKE = np.array([0.5, 2.0, -1.0]), np.array([0.5, -2.0, 1.0, -0.25])


def test_discriminator_losses_by_hand():
  hinge = adversarial.DISCRIMINATOR_LOSSES["hinge"](REAL, FAKE)
  np.testing.assert_allclose(
      hinge, ((0.5 + 0 + 2) / 3 + (1.5 + 0 + 2 + 0.75) / 4) / 2, rtol=1e-6)
  vanilla = adversarial.DISCRIMINATOR_LOSSES["vanilla"](REAL, FAKE)
  np.testing.assert_allclose(vanilla, (
      -np.log(1 / (1 + np.exp(-REAL))).mean()
      - np.log(1 - 1 / (1 + np.exp(-FAKE))).mean()) / 2, rtol=1e-6)


def test_the_generator_loss_is_linear_in_the_logits():
  grad = jax.grad(adversarial.generator_loss)(jnp.array([-3.0, 0.5, 7.0]))
  np.testing.assert_allclose(grad, -1 / 3, rtol=1e-6)


def test_the_adaptive_weight_is_clipped_and_has_no_gradient():
  a, b = np.array([[3.0], [4.0]]), np.array([[0.0], [0.5]])
  np.testing.assert_allclose(
      adversarial.adaptive_weight(a, b), 5 / (0.5 + 1e-4), rtol=1e-6)
  np.testing.assert_allclose(adversarial.adaptive_weight(a, 0 * b), 1e4)
  np.testing.assert_allclose(
      adversarial.adaptive_weight(a / 50, 0 * b), 1e3, rtol=1e-5)
  assert adversarial.adaptive_weight(0 * a, b) == 0
  assert not jax.grad(adversarial.adaptive_weight)(a, b).any()
