"""Mistakes in configs, ranges, durations, the task and the gradient step."""

from mutations.mutation import Mutation

_RANGE = ("tests/test_ranges.py::"
          "test_a_value_out_of_its_range_is_named_with_the_range")

MUTATIONS = [
    # Reading configs.
    Mutation(
        file="big_vision/config.py",
        old="  check_arguments(fn, (), kwargs, where)\n",
        new="",
        test="tests/test_ranges.py::test_call_checks_what_annotations_say"),
    Mutation(
        file="big_vision/config.py",
        old="value is not None or parameter.default is not None",
        new="value is not None",
        test="tests/test_ranges.py::test_call_checks_what_annotations_say"),
    Mutation(
        file="big_vision/config.py",
        old="elif isinstance(value, Config):",
        new="elif isinstance(value, Config) and not key:",
        test="tests/test_config.py::"
             "test_unread_keys_are_named_with_the_nearest_key_that_was_read"),
    Mutation(
        file="big_vision/config.py",
        old='"<hidden>" if _SECRET.search(key)',
        new='"<hidden>" if _SECRET.fullmatch(key)',
        test="tests/test_config.py::"
             "test_a_changed_config_is_refused_with_the_difference"),
    Mutation(
        file="big_vision/config.py",
        old="if old.get(key, absent) != new.get(key, absent)]",
        new="if key in old and old[key] != new.get(key, absent)]",
        test="tests/test_config.py::"
             "test_a_changed_config_is_refused_with_the_difference"),
    Mutation(
        file="big_vision/op_string.py",
        old='elif character == "\\\\":',
        new='elif character == "/":',
        test="tests/test_op_string.py::"
             "test_pipes_in_quotes_and_brackets_do_not_split"),
    Mutation(
        file="big_vision/tree.py",
        old="if regex.fullmatch(name)",
        new="if regex.match(name)",
        test="tests/test_tree.py::test_first_match_is_a_full_match"),
    # Ranges of numbers.
    Mutation(
        file="big_vision/ranges.py",
        old="            and not isinstance(value, bool))",
        new="            )",
        test="tests/test_ranges.py::test_accepts"),
    Mutation(
        file="big_vision/ranges.py",
        old="self.has_low and value == self.low",
        new="value == self.low",
        test="tests/test_ranges.py::test_accepts"),
    Mutation(
        file="big_vision/ranges.py",
        old="Seed = Annotated[int, Range(low=0, has_low=True, high=2 ** 31)]",
        new="Seed = Annotated[int, Range(low=0, has_low=True, high=2 ** 32)]",
        test="tests/test_ranges.py::test_accepts"),
    Mutation(
        file="big_vision/ranges.py",
        old="Decay = Annotated[float, Range(low=0, has_low=True, high=1)]",
        new="Decay = Annotated[float, Range(low=0, has_low=True, high=3)]",
        test="tests/test_ranges.py::test_accepts"),
    Mutation(
        file="big_vision/ranges.py",
        old="all(accepts(item, arguments[0]) for item in value)",
        new="all(accepts(item, arguments[0]) for item in value[:1])",
        test="tests/test_ranges.py::test_accepts"),
    Mutation(
        file="big_vision/build.py",
        old='config, "batch_size_eval", ranges.Count,',
        new='config, "batch_size_eval", ranges.CountOrZero,',
        test=f"{_RANGE}[batch_size_eval=0]"),
    Mutation(
        file="big_vision/build.py",
        old='every("log_training", 50, zero=False)',
        new='every("log_training", 50)',
        test=f"{_RANGE}[log_training_steps=0]"),
    Mutation(
        file="big_vision/optim/chain.py",
        old="  if clip := get(\"grad_clip_norm\", ranges.NotNegative):\n",
        new="  clip = get(\"grad_clip_norm\", ranges.NotNegative)\n"
            "  if clip is not None:\n",
        test="tests/optim/test_chain.py::"
             "test_gradients_are_clipped_by_their_norm_and_0_is_off"),
    Mutation(
        file="big_vision/optim/chain.py",
        old='get("grad_clip_norm", ranges.NotNegative)',
        new='get("grad_clip_norm", ranges.Number)',
        test=f"{_RANGE}[grad_clip_norm=-1]"),
    Mutation(
        file="big_vision/optim/chain.py",
        old="ranges.Decay if name in _DECAYS else ranges.NotNegative",
        new="ranges.NotNegative",
        test=_RANGE + "[optax={'b1': 1}]"),
    # Durations.
    Mutation(
        file="big_vision/durations.py",
        old="value * data_size / batch_size",
        new="value * data_size",
        test="tests/test_config.py::test_durations_in_any_unit_become_steps"),
    Mutation(
        file="big_vision/durations.py",
        old="max(1, round(steps))",
        new="round(steps)",
        test="tests/test_config.py::test_durations_in_any_unit_become_steps"),
    Mutation(
        file="big_vision/durations.py",
        old='high=1 if unit == "percent" else math.inf',
        new="high=math.inf",
        test="tests/test_config.py::test_invalid_durations_are_named"),
    Mutation(
        file="big_vision/durations.py",
        old="if steps > _MAX_STEPS:",
        new="if value > _MAX_STEPS:",
        test="tests/test_config.py::test_durations_in_any_unit_become_steps"),
    # Building a run.
    Mutation(
        file="big_vision/build.py",
        old="      seed=_get_seed(config))",
        new="      seed=0)",
        test="tests/test_build.py::"
             "test_evaluators_draw_from_the_seed_of_the_run"),
    Mutation(
        file="big_vision/build.py",
        old="if options and key not in options:",
        new="if options and not options:",
        test="tests/test_build.py::"
             "test_options_without_effect_are_errors"),
    # The task and its transformers.
    Mutation(
        file="big_vision/task.py",
        old="decay * old + (1 - decay) * new",
        new="(1 - decay) * old + decay * new",
        test="tests/test_task.py::"
             "test_the_ema_has_its_closed_form_and_is_seen_by_twins"),
    Mutation(
        file="big_vision/task.py",
        old='state["ema"], changed["params"])',
        new='state["ema"], state["params"])',
        test="tests/test_task.py::"
             "test_the_ema_has_its_closed_form_and_is_seen_by_twins"),
    Mutation(
        file="big_vision/task.py",
        old="for step in steps if 0 < step < total_steps)",
        new="for step in steps if 0 < step <= total_steps)",
        test="tests/test_task.py::test_phases_begin_at_steps_within_the_run"),
    # The gradient step.
    Mutation(
        file="big_vision/gradients.py",
        old="rngs = jax.random.split(rng, steps)",
        new="rngs = jnp.stack([rng] * steps)",
        test="tests/test_gradients.py::"
             "test_accumulation_gives_every_part_its_own_randomness"),
    Mutation(
        file="big_vision/gradients.py",
        old="lambda t, s: (t / steps)",
        new="lambda t, s: t",
        test="tests/test_gradients.py::"
             "test_accumulation_is_the_gradient_of_the_whole_batch"),
    Mutation(
        file="big_vision/gradients.py",
        old="jnp.promote_types(s.dtype, jnp.float32)",
        new="s.dtype",
        test="tests/test_gradients.py::"
             "test_accumulation_sums_in_float32_and_keeps_dtypes"),
    Mutation(
        file="big_vision/gradients.py",
        old="x.reshape(b // steps, steps, *rest).swapaxes(0, 1)",
        new="x.reshape(steps, b // steps, *rest)",
        test="tests/test_gradients.py::"
             "test_parts_take_examples_from_all_over_the_batch"),
    Mutation(
        file="big_vision/trainers/learner.py",
        old="grad if is_trainable else jnp.zeros_like(grad)",
        new="grad",
        test="tests/trainers/test_learner.py::"
             "test_frozen_parameters_stay_and_do_not_count_in_the_norm"),
    Mutation(
        file="big_vision/trainers/learner.py",
        old='"l2_updates": optax.tree.norm(updates)',
        new='"l2_updates": optax.tree.norm(grads)',
        test="tests/trainers/test_learner.py::test_a_step_by_hand"),
    Mutation(
        file="big_vision/trainers/learner.py",
        old="sched_fns={**self.optimizer.sched_fns, **task.sched_fns}",
        new="sched_fns=self.optimizer.sched_fns",
        test="tests/trainers/test_learner.py::"
             "test_finish_adds_schedules_and_the_average_if_there_is_a_decay"),
    # Sweeps.
    Mutation(
        file="big_vision/tools/sweep.py",
        old='    config_lib.check(seed, "--seeds", ranges.Seed)\n',
        new="",
        test="tests/tools/test_sweep.py::"
             "test_seeds_that_would_alias_others_are_refused"),
    Mutation(
        file="big_vision/tools/sweep.py",
        old="key = match[1], seed",
        new="key = match[1], min(s for _, s in workdirs)",
        test="tests/tools/test_sweep.py::"
             "test_a_point_starts_from_an_earlier_one_of_its_seed"),
    Mutation(
        file="big_vision/tools/sweep.py",
        old="      workdir_lib.check_config(run, point.config)\n",
        new="",
        test="tests/tools/test_sweep.py::"
             "test_a_run_of_another_config_in_the_workdir_is_refused"),
]
