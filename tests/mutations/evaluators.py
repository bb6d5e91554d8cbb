"""Mistakes in evaluators, in what draws images, and in "keep the best"."""

from mutations.mutation import Mutation

_GPT = "tests/proj/vqgan/test_gpt.py::"
_VQGAN = "tests/proj/vqgan/test_evaluators_vqgan.py::"
_ACCURACY = "tests/trainers/test_classification_accuracy.py::"
_BEST = "tests/run/test_best.py::"

MUTATIONS = [
    # Drawing.
    Mutation(
        file="big_vision/proj/vqgan/gpt.py",
        old="nn.gelu(y, approximate=False)",
        new="nn.gelu(y, approximate=True)",
        test=f"{_GPT}test_the_mlp_has_the_exact_gelu"),
    Mutation(
        file="big_vision/proj/vqgan/gpt.py",
        old="(0 <= label) & (label < self.num_classes)",
        new="(label < self.num_classes)",
        test=f"{_GPT}test_a_label_that_is_not_a_class_gives_nan_and_others_do_"
             "not"),
    Mutation(
        file="big_vision/proj/vqgan/gpt.py",
        old="      logits = jnp.where(is_kept, logits, -jnp.inf)",
        new="      lowest = jax.lax.top_k(logits, top_k)[0][:, -1:]\n"
            "      logits = jnp.where(logits < lowest, -jnp.inf, logits)",
        test=f"{_GPT}test_top_k_keeps_exactly_k_codes_under_ties[2]"),
    Mutation(
        file="big_vision/proj/vqgan/gpt.py",
        old="return jnp.where(is_finite, code, -1).astype(jnp.int32)",
        new="return code.astype(jnp.int32)",
        test=f"{_GPT}test_one_logit_that_is_not_finite_spoils_its_example_"
             "alone"),
    Mutation(
        file="big_vision/proj/vqgan/gpt.py",
        old="jnp.all(jnp.isfinite(logits), axis=-1)",
        new="~jnp.any(jnp.isnan(logits), axis=-1)",
        test=f"{_GPT}test_one_logit_that_is_not_finite_spoils_its_example_"
             "alone"),
    Mutation(
        file="big_vision/proj/vqgan/stage2.py",
        old='return {"image": jnp.where(is_drawn, image, jnp.nan)}',
        new='return {"image": image}',
        test="tests/proj/vqgan/test_stage2.py::"
             "test_images_that_cannot_be_drawn_are_nan"),
    Mutation(
        file="big_vision/tools/sample.py",
        old="  if label < 0 or num_classes",
        new="  if num_classes",
        test="tests/tools/test_sample.py::"
             "test_labels_that_are_not_classes_are_named"),
    Mutation(
        file="big_vision/tools/sample.py",
        old="label >= num_classes:",
        new="label > num_classes:",
        test="tests/tools/test_sample.py::"
             "test_labels_that_are_not_classes_are_named"),
    # Numbers of examples.
    Mutation(
        file="big_vision/evaluators/harness.py",
        old="np.concatenate(x)[:num_examples]",
        new="np.concatenate(x)",
        test="tests/evaluators/test_harness.py::"
             "test_collect_keeps_the_order_and_measures_exactly_the_examples_"
             "asked_for"),
    Mutation(
        file="big_vision/evaluators/harness.py",
        old="num_examples and -(-num_examples // self._batch_size)",
        new="None",
        test="tests/evaluators/test_harness.py::"
             "test_collect_reads_no_more_batches_than_it_needs"),
    Mutation(
        file="big_vision/evaluators/harness.py",
        old="not 1 <= num_examples <= self.num_examples:",
        new="not 1 <= num_examples:",
        test="tests/evaluators/test_harness.py::"
             "test_asking_for_more_examples_than_there_are_is_an_error"),
    Mutation(
        file="big_vision/proj/vqgan/frechet.py",
        old="        self._num_samples)\n    harness",
        new="        None)\n    harness",
        test=f"{_VQGAN}test_the_distance_is_of_num_samples_and_named_after_its_"
             "network"),
    Mutation(
        file="big_vision/proj/vqgan/samples.py",
        old='    harness.check_finite(values["image"], "drawn images")\n',
        new="",
        test=f"{_VQGAN}test_images_that_are_not_finite_are_an_error"),
    Mutation(
        file="big_vision/proj/vqgan/frechet.py",
        old='    harness.check_finite(found, "features of predicted images")\n',
        new="",
        test=f"{_VQGAN}test_images_that_are_not_finite_are_an_error"),
    Mutation(
        file="big_vision/proj/vqgan/reconstruction.py",
        old="image_quality.ssim(a, b),",
        new="image_quality.ssim(image, reconstruction),",
        test=f"{_VQGAN}test_reconstructions_are_clipped_before_they_are_"
             "measured"),
    # Accuracy.
    Mutation(
        file="big_vision/trainers/classification.py",
        old="  is_right = is_right.astype(jnp.float32)",
        new="  is_right = found",
        test=f"{_ACCURACY}test_an_example_is_right_if_its_class_is_predicted"),
    Mutation(
        file="big_vision/trainers/classification.py",
        old=" & (highest > labels.min(axis=-1))",
        new="",
        test=f"{_ACCURACY}test_an_example_without_a_class_is_never_right"),
    Mutation(
        file="big_vision/trainers/classification.py",
        old="    if mix is None:\n      measurements",
        new="    if True:\n      measurements",
        test=f"{_ACCURACY}test_mixed_examples_have_no_accuracy"),
    # The best checkpoint.
    Mutation(
        file="big_vision/run/checkpoints/best.py",
        old="    if self._sign * values[self._metric] > self._best:",
        new="    if self._sign * values[self._metric] >= self._best:",
        test=f"{_BEST}test_of_equally_good_checkpoints_the_earlier_is_kept"),
    Mutation(
        file="big_vision/run/checkpoints/best.py",
        old="      if expected:",
        new="      if False:",
        test=f"{_BEST}test_a_metric_that_is_expected_and_missing_is_an_error"),
    Mutation(
        file="big_vision/evaluators/schedule.py",
        old="  return all(e in ran for e in owners) and (",
        new="  return any(e in ran for e in owners) and (",
        test=f"{_BEST}test_a_metric_is_expected_when_what_measures_it_has_run"),
    Mutation(
        file="big_vision/evaluators/schedule.py",
        old="not owners or any(not e.prefix for e in owners)",
        new="not owners",
        test=f"{_BEST}test_without_a_prefix_a_metric_may_be_of_training"),
    Mutation(
        file="big_vision/run/session.py",
        old='due, "training_loss" in row))',
        new="due, False))",
        test="tests/test_train.py::"
             "test_a_misspelt_metric_of_keep_best_stops_the_run_early"),
]
