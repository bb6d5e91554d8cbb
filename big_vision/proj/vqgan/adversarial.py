"""Losses between a generator and a discriminator, and how much they weigh."""

import jax
import jax.numpy as jnp

# What moves the discriminator: (logits of real, logits of generated images).
# Means over all patches; nats for "vanilla".
DISCRIMINATOR_LOSSES = {
    "hinge": lambda real, fake: 0.5 * (
        jnp.mean(jax.nn.relu(1 - real)) + jnp.mean(jax.nn.relu(1 + fake))),
    "vanilla": lambda real, fake: 0.5 * (
        jnp.mean(jax.nn.softplus(-real)) + jnp.mean(jax.nn.softplus(fake))),
}


def generator_loss(fake):
  """-mean D(x^), for either loss of the discriminator; not its hinge."""
  return -jnp.mean(fake)


def adaptive_weight(reconstruction_grad, generator_grad):
  """How much the generator's loss weighs, so that its gradient is as large.

  Args:
    reconstruction_grad: of the reconstruction loss (perceptual part included)
      with respect to the kernel of the decoder's last layer.
    generator_grad: of `generator_loss` with respect to the same.

  Returns:
    float32[] in [0, 1e4], no gradient goes through it.

  Source: arXiv:2012.09841, Eq. 7; 1e-4 and the limit as released.
  """
  ratio = jnp.linalg.norm(reconstruction_grad.ravel()) / (
      jnp.linalg.norm(generator_grad.ravel()) + 1e-4)
  return jax.lax.stop_gradient(jnp.clip(ratio, 0, 1e4))
