"""Losses of a generator and its discriminator, and their adaptive weight."""

import jax
import jax.numpy as jnp

# Losses of the discriminator: (logits of real images, logits of generated
# images) -> float32[], the mean over all patches; "vanilla" is in nats.
DISCRIMINATOR_LOSSES = {
    "hinge": lambda real, fake: 0.5 * (
        jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))),
    "vanilla": lambda real, fake: 0.5 * (
        jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))),
}


def generator_loss(fake):
  """Computes -mean D(x^), the generator's loss for all discriminator losses.

  Args:
    fake: float[b, h, w], the discriminator's logits of generated images.

  Returns:
    float32[].
  """
  return -jnp.mean(fake)


def adaptive_weight(reconstruction_grad, generator_grad):
  """Computes the weight that gives both losses gradients of the same norm.

  Args:
    reconstruction_grad: Gradient of the reconstruction loss, including its
      perceptual part, for the kernel of the decoder's last layer.
    generator_grad: Gradient of `generator_loss` for the same kernel.

  Returns:
    float32[] in [0, 1e4], a constant for differentiation.

  Source: arXiv:2012.09841, Eq. 7; 1e-4 and the limit as in the released code.
  """
  ratio = jnp.linalg.norm(reconstruction_grad.ravel()) / (
      jnp.linalg.norm(generator_grad.ravel()) + 1e-4)
  return jax.lax.stop_gradient(jnp.clip(ratio, 0, 1e4))
