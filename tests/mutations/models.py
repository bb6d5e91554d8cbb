"""Mistakes in models, their layers and weights, and in building them."""

from mutations.mutation import Mutation

MUTATIONS = [
    Mutation(
        file="big_vision/layers/act.py",
        old="weight = jnp.where(halts, 1 - halting.total, p)",
        new="weight = p",
        test="tests/layers/test_act.py::test_weights_sum_to_one"),
    Mutation(
        file="big_vision/layers/act.py",
        old="(halting.total + p >= 1 - epsilon)",
        new="(halting.total + p > 1 - epsilon)",
        test="tests/layers/test_act.py::test_the_threshold_is_enough"),
    Mutation(
        file="big_vision/layers/act.py",
        old="(halting.total + p >= 1 - epsilon) | is_last",
        new="(halting.total + p >= 1 - epsilon)",
        test="tests/layers/test_act.py::test_the_last_step_takes_what_is_left"),
    Mutation(
        file="big_vision/layers/attention/features.py",
        old="  q *= jnp.where(diagonal < 0, -1., 1.)[..., None, :]\n",
        new="",
        test="tests/layers/attention/test_favor.py::test_directions_have_no_"
             "preferred_sign"),
    Mutation(
        file="big_vision/layers/attention/features.py",
        old="_FLOOR = 1e-6",
        new="_FLOOR = 1e-4",
        test="tests/layers/attention/test_favor.py::test_what_is_added_to_"
             "positive_features"),
    Mutation(
        file="big_vision/layers/attention/features.py",
        old="jnp.sum(x ** 2, axis=-1, keepdims=True) / 2)",
        new="jnp.sum(x ** 2, axis=-1, keepdims=True))",
        test="tests/layers/attention/test_favor.py::test_is_the_sum_over_all_"
             "pairs"),
    Mutation(
        file="big_vision/layers/attention/favor.py",
        old="jnp.tri(c, dtype=bool)",
        new="jnp.tri(c, k=-1, dtype=bool)",
        test="tests/layers/attention/test_favor.py::test_causal_sums_with_any_"
             "lengths_and_chunks"),
    Mutation(
        file="big_vision/layers/attention/favor.py",
        old="q.astype(jnp.float32) * scale ** 0.5",
        new="q.astype(jnp.float32) * scale",
        test="tests/layers/attention/test_favor.py::test_is_the_sum_over_all_"
             "pairs"),
    Mutation(
        file="big_vision/layers/attention/memory_efficient.py",
        old="logits = jnp.where(columns < s, logits, -jnp.inf)",
        new="logits = logits",
        test="tests/layers/attention/test_memory_efficient.py::test_chunks_of_"
             "any_size_for_any_length"),
    Mutation(
        file="big_vision/layers/checks.py",
        old="return sides[0], sides[-1]",
        new="return 1, sides[-1]",
        test="tests/test_build.py::test_one_number_is_the_side_of_a_square_"
             "patch"),
    Mutation(
        file="big_vision/layers/stochastic_depth.py",
        old="x = (x / keep).astype(x.dtype)",
        new="x = x.astype(x.dtype)",
        test="tests/models/test_vit.py::test_expectation_of_a_dropped_branch"),
    Mutation(
        file="big_vision/layers/stochastic_depth.py",
        old="stoch_depth * i / max(depth - 1, 1)",
        new="stoch_depth * (i + 1) / depth",
        test="tests/models/test_vit.py::test_rates_of_stochastic_depth"),
    Mutation(
        file="big_vision/layers/posemb.py",
        old="new_grid[0] / grid[0], new_grid[1] / grid[1], 1",
        new="new_grid[1] / grid[1], new_grid[0] / grid[0], 1",
        test="tests/models/test_vit_load.py::test_resampling_is_aligned_at_"
             "the_corners"),
    Mutation(
        file="big_vision/layers/pooling.py",
        old="jnp.maximum(jnp.sum(mask, axis=1), 1)",
        new="mask.shape[1]",
        test="tests/layers/test_act.py::test_mean_of_nothing_is_zero_and_"
             "ignores_what_padding_holds"),
    Mutation(
        file="big_vision/layers/transformer.py",
        old='approximate=self.gelu == "tanh"',
        new="approximate=True",
        test="tests/models/test_vit.py::test_two_gelus_are_different_functions"),
    Mutation(
        file="big_vision/build.py",
        old='not statement.startswith("raise ")',
        new="False",
        test="tests/test_build.py::test_bugs_of_a_model_keep_their_errors"),
    Mutation(
        file="big_vision/build.py",
        old="package in _LIBRARIES",
        new="False",
        test="tests/test_build.py::test_bugs_of_a_model_keep_their_errors"),
    Mutation(
        file="big_vision/build.py",
        old="task._replace(load=load)",
        new="task",
        test="tests/test_build.py::test_unsuitable_weights_are_errors_of_the_"
             "config"),
    Mutation(
        file="big_vision/trainers/classification.py",
        old='jnp.full_like(head["bias"], self.head_bias)',
        new='jnp.zeros_like(head["bias"])',
        test="tests/test_build.py::test_the_head_starts_at_its_configured_bias"),
    Mutation(
        file="big_vision/weights/bit.py",
        old='place = "abc".index(letter) + 1',
        new='place = "abc".index(letter)',
        test="tests/models/test_bit.py::test_files_of_the_paper"),
    Mutation(
        file="big_vision/weights/__init__.py",
        old="if array.shape != leaf.shape or not _same_kind(array.dtype, "
            "leaf.dtype):",
        new="if not _same_kind(array.dtype, leaf.dtype):",
        test="tests/models/test_bit.py::test_loading_for_other_classes"),
]
