"""Mistakes in the projects: NeRF, VQGAN, pointer value retrieval."""

from mutations.mutation import Mutation

MUTATIONS = [
    Mutation(
        file="big_vision/proj/nerf/rendering.py",
        old="jax.random.split(rng, 4)",
        new="[rng] * 4",
        test="tests/proj/nerf/test_rendering.py::test_jitter_samples_and_"
             "noise_are_drawn_independently"),
    Mutation(
        file="big_vision/proj/nerf/rendering.py",
        old="[jnp.zeros_like(depth[:, :1]), before], axis=-1)",
        new="[depth[:, :1], before], axis=-1)",
        test="tests/proj/nerf/test_rendering.py::test_composite_is_the_sum_of_"
             "the_paper"),
    Mutation(
        file="big_vision/proj/nerf/rendering.py",
        old="t[:, :-1], last], -1) * length[:, None]",
        new="t[:, :-1], last], -1)",
        test="tests/proj/nerf/test_rendering.py::test_interval_lengths_scale_"
             "with_the_direction"),
    Mutation(
        file="big_vision/proj/nerf/rendering.py",
        old="  t, weights = jax.lax.stop_gradient((t, weights))\n",
        new="",
        test="tests/proj/nerf/test_rendering.py::test_no_gradient_flows_"
             "through_sample_positions"),
    Mutation(
        file="big_vision/proj/nerf/rendering.py",
        old="pdf = weights[:, 1:-1] + 1e-5",
        new="pdf = weights[:, :-2] + 1e-5",
        test="tests/proj/nerf/test_rendering.py::test_importance_sampling_"
             "inverts_the_distribution"),
    Mutation(
        file="big_vision/proj/nerf/rendering.py",
        old="-2 * near / oz], axis=-1))",
        new="2 * near / oz], axis=-1))",
        test="tests/proj/nerf/test_rendering.py::test_ndc_is_the_perspective_"
             "of_the_camera"),
    Mutation(
        file="big_vision/proj/nerf/rendering.py",
        old='viewed = normalize(rays["direction"])',
        new='viewed = rays["direction"]',
        test="tests/proj/nerf/test_rendering.py::test_fields_get_unit_"
             "directions"),
    Mutation(
        file="big_vision/proj/nerf/lenses.py",
        old="2 * p1 * x * y + p2 * (r2 + 2 * x * x)",
        new="2 * p2 * x * y + p1 * (r2 + 2 * x * x)",
        test="tests/proj/nerf/test_lenses.py::test_undistorting_inverts_"
             "opencvs_distortion"),
]
