"""Mistakes in mixup and CutMix."""

from mutations.mutation import Mutation

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
]
