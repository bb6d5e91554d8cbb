"""Measures time and memory of attention, forward and gradient, by length.

  python -m benchmarks.attention [--lengths 1024,4096] [--causal]

`benchmarks/growth.py` says how they are measured.
"""

import jax
import jax.numpy as jnp

from benchmarks import growth
from big_vision.layers import attention
from big_vision.layers.attention import features


def main():
  parser = growth.make_parser(
      __doc__, [1024 * 2 ** i for i in range(7)], attention.IMPLEMENTATIONS)
  parser.add_argument("--causal", action="store_true")
  parser.add_argument("--heads", type=int, default=1)
  parser.add_argument("--head_dim", type=int, default=64)
  parser.add_argument("--num_features", type=int, default=256)
  parser.add_argument("--dtype", default="float32")
  args = parser.parse_args()

  def make(impl, length):
    """Returns value and gradient of attention, and a maker of its inputs."""
    rngs = jax.random.split(jax.random.key(0), 5)
    options = {}
    if impl == "favor":
      options["projection"] = features.draw_projection(
          rngs[4], (args.num_features, args.head_dim))

    def loss(q, k, v, target):
      out = attention.attend(
          q, k, v, impl=impl, causal=args.causal, **options)
      return jnp.sum(out.astype(jnp.float32) * target)

    shape = (args.batch, length, args.heads, args.head_dim)
    return jax.value_and_grad(loss, argnums=(0, 1, 2)), lambda: tuple(
        jax.random.normal(rng, shape, args.dtype) for rng in rngs[:4])

  print(f"{jax.devices()[0].device_kind}, batch {args.batch}, {args.heads} "
        f"head(s) of {args.head_dim}, {args.dtype}, causal {args.causal}, "
        f"{args.num_features} features, {args.rounds} rounds")
  growth.run(args, make)


if __name__ == "__main__":
  main()
