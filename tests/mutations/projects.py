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
    Mutation(
        file="big_vision/proj/nerf/lenses.py",
        old="num_steps: int = 10",
        new="num_steps: int = 1",
        test="tests/proj/nerf/test_lenses.py::test_undistorting_inverts_"
             "opencvs_distortion"),
    Mutation(
        file="big_vision/proj/nerf/cameras.py",
        old="jnp.stack([x, -y, -jnp",
        new="jnp.stack([x, y, -jnp",
        test="tests/proj/nerf/test_lenses.py::test_rays_hit_the_points_that_"
             "their_pixels_show"),
    Mutation(
        file="big_vision/proj/nerf/blender.py",
        old="lenses[:, :4] /= factor",
        new="lenses[:, :2] /= factor",
        test="tests/proj/nerf/test_lenses.py::test_rays_hit_the_points_that_"
             "their_pixels_show"),
    Mutation(
        file="big_vision/proj/nerf/transforms.py",
        old="_lens({**self.shared, **frame},",
        new="_lens({**frame, **self.shared},",
        test="tests/proj/nerf/test_lenses.py::test_rays_hit_the_points_that_"
             "their_pixels_show"),
    Mutation(
        file="big_vision/proj/nerf/radiance_field.py",
        old='frozen["lenses"][image]',
        new='frozen["lenses"][0]',
        test="tests/proj/nerf/test_lenses.py::test_training_and_evaluation_"
             "use_the_lens_of_each_image"),
    Mutation(
        file="big_vision/proj/nerf/novel_views.py",
        old="self._scene.lenses[view]",
        new="self._scene.lenses[0]",
        test="tests/proj/nerf/test_lenses.py::test_training_and_evaluation_"
             "use_the_lens_of_each_image"),
    Mutation(
        file="big_vision/proj/nerf/llff.py",
        old="  if ndc:\n"
            "    _check_forward(path, poses)\n",
        new="",
        test="tests/proj/nerf/test_scenes.py::test_a_ring_of_cameras_needs_"
             "other_coordinates"),
    Mutation(
        file="big_vision/proj/nerf/scenes.py",
        old="colour * alpha + background * (1 - alpha)",
        new="colour + background * (1 - alpha)",
        test="tests/proj/nerf/test_scenes.py::test_alpha_is_composited_once"),
    Mutation(
        file="big_vision/proj/vqgan/discriminator.py",
        old="nn.leaky_relu(x, 0.2)",
        new="nn.leaky_relu(x, 0.01)",
        test="tests/proj/vqgan/test_autoencoder.py::test_logits_of_the_"
             "discriminator_are_those_of_the_definition"),
    Mutation(
        file="big_vision/proj/vqgan/discriminator.py",
        old="stride=2 if i < self.depth else 1",
        new="stride=2",
        test="tests/proj/vqgan/test_autoencoder.py::test_a_logit_sees_as_many_"
             "pixels_as_published"),
    Mutation(
        file="big_vision/proj/vqgan/group_norm.py",
        old="min(32, max(1, channels // 4))",
        new="min(32, channels)",
        test="tests/proj/vqgan/test_autoencoder.py::test_logits_of_the_"
             "discriminator_are_those_of_the_definition"),
    Mutation(
        file="big_vision/proj/vqgan/quantizers.py",
        old="return z + jax.lax.stop_gradient(quantized - z)",
        new="return quantized",
        test="tests/proj/vqgan/test_quantizers.py::test_straight_through_"
             "gradients_reach_the_encoder_only"),
    Mutation(
        file="big_vision/proj/vqgan/quantizers.py",
        old="(self.beta, 1.0) if self.legacy else (1.0, self.beta))",
        new="(1.0, self.beta) if self.legacy else (self.beta, 1.0))",
        test="tests/proj/vqgan/test_quantizers.py::test_beta_scales_the_"
             "encoder_term_unless_legacy"),
    Mutation(
        file="big_vision/proj/vqgan/quantizers.py",
        old="jnp.sum(codebook ** 2, axis=1) - 2 *",
        new="jnp.sum(codebook ** 2, axis=1) -",
        test="tests/proj/vqgan/test_quantizers.py::test_nearest_codes_are_"
             "those_a_loop_finds"),
    Mutation(
        file="big_vision/proj/vqgan/quantizers.py",
        old="self.decay * variable.value + (1 - self.decay) * new",
        new="self.decay * variable.value + new",
        test="tests/proj/vqgan/test_quantizers.py::test_ema_codes_are_running_"
             "means_of_their_vectors"),
    Mutation(
        file="big_vision/proj/vqgan/quantizers.py",
        old='"total": put(total, vectors + apart, vectors - apart)',
        new='"total": put(total, vectors + apart, vectors + apart)',
        test="tests/proj/vqgan/test_quantizers.py::test_reviving_changes_"
             "neither_sums_nor_used_codes"),
    Mutation(
        file="big_vision/proj/pvr/problems.py",
        old="np.roll(values, -pointer)",
        new="np.roll(values, pointer)",
        test="tests/proj/pvr/test_problems.py::test_vector"),
]
