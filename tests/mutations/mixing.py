"""Mistakes in mixup and CutMix."""

from mutations.mutation import Mutation

_BOXES = ("tests/test_mixing.py::"
          "test_cutmix_boxes_have_the_places_and_areas_of_the_paper")

MUTATIONS = [
    Mutation(
        file="big_vision/mixing.py",
        old="weight = jnp.maximum(weight, 1 - weight)",
        new="weight = jnp.minimum(weight, 1 - weight)",
        test="tests/test_mixing.py::"
             "test_mixup_mixes_pixels_and_labels_by_the_same_weight"),
    Mutation(
        file="big_vision/mixing.py",
        old="_blend(1 - inside.mean(), ",
        new="_blend(inside.mean(), ",
        test="tests/test_mixing.py::"
             "test_cutmix_labels_are_the_area_of_the_box"),
    Mutation(
        file="big_vision/mixing.py",
        old="inside = span(h, rng_y)[:, None] & span(w, rng_x)[None, :]",
        new="inside = span(h, rng_y)[:, None] & span(w, rng_y)[None, :]",
        test=_BOXES),
    Mutation(
        file="big_vision/mixing.py",
        old="side = jnp.sqrt(1 - jax.random.beta(rng_area, p, p))",
        new="side = 1 - jax.random.beta(rng_area, p, p)",
        test=_BOXES),
    Mutation(
        file="big_vision/mixing.py",
        old="center = jax.random.uniform(rng_center, maxval=size)",
        new="center = size / 2",
        test=_BOXES),
]
