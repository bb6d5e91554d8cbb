"""Mistakes in plans, and in what they count and measure."""

from mutations.mutation import Mutation

_DATA_SHEET = ("tests/tools/test_plan.py::"
               "test_step_seconds_follow_from_the_data_sheet")
_REPORT = ("tests/tools/test_plan.py::"
           "test_a_report_and_a_table_show_the_times_of_a_step")

MUTATIONS = [
    # Counting operations.
    Mutation(
        file="big_vision/hardware/flops.py",
        old="math.prod(out) * taps / dilation",
        new="math.prod(out) * taps",
        test="tests/hardware/test_flops.py::"
             "test_gradients_of_a_convolution_cost_what_it_costs"),
    Mutation(
        file="big_vision/hardware/flops.py",
        old="repeated = _num_parts(eqn, split_over)",
        new="repeated = 1",
        test="tests/hardware/test_flops.py::"
             "test_a_shard_map_counts_for_all_devices"),
    Mutation(
        file="big_vision/hardware/flops.py",
        old="named & split_over.get(id(var), named)",
        new="named",
        test="tests/hardware/test_flops.py::"
             "test_a_shard_map_counts_for_all_devices"),
    Mutation(
        file="big_vision/hardware/flops.py",
        old='axes = _asked_axes(eqn.params["jaxpr"])',
        new="axes = set()",
        test="tests/hardware/test_flops.py::"
             "test_nested_and_indexed_shard_maps_count_for_all_devices"),
    Mutation(
        file="big_vision/hardware/flops.py",
        old='math.prod(eqn.params["grid_mapping"].grid)',
        new="1",
        test="tests/hardware/test_flops.py::"
             "test_kernels_count_for_each_program_of_their_grid"),
    Mutation(
        file="big_vision/hardware/flops.py",
        old='total += max(map(_count, eqn.params["branches"]))',
        new='total += sum(map(_count, eqn.params["branches"]))',
        test="tests/hardware/test_flops.py::"
             "test_cond_counts_as_its_largest_branch"),
    # Measuring programs.
    Mutation(
        file="big_vision/hardware/program.py",
        old='users == {"dynamic-slice"}',
        new="users is None",
        test="tests/hardware/test_program.py::"
             "test_a_sum_of_which_each_device_keeps_a_part_is_a_reduce_scatter"
        ),
    Mutation(
        file="big_vision/hardware/program.py",
        old='factor = 2 if self.kind == "all-reduce" else 1',
        new="factor = 1",
        test="tests/hardware/test_program.py::"
             "test_a_sum_that_is_sliced_after_it_arrived_is_a_sum"),
    Mutation(
        file="big_vision/hardware/program.py",
        old="instruction.name not in self._continued",
        new="instruction.name",
        test="tests/hardware/test_program.py::"
             "test_a_transfer_that_spreads_over_several_fusions_counts_once"),
    Mutation(
        file="big_vision/hardware/hlo.py",
        old='"direction=LT" not in compare[0].text',
        new='"direction" not in compare[0].text',
        test="tests/hardware/test_program.py::"
             "test_trip_count_is_read_from_the_condition_of_a_tpu_loop"),
    Mutation(
        file="big_vision/hardware/hlo.py",
        old="int(part or sizes[name])",
        new="int(sizes[name])",
        test="tests/hardware/test_hlo.py::"
             "test_group_size_reads_every_notation_of_xla"),
    Mutation(
        file="big_vision/hardware/targets.py",
        old="num_hosts=math.ceil(count / 8)",
        new="num_hosts=max(1, count // 8)",
        test="tests/tools/test_plan.py::test_hosts_have_eight_devices"),
    # The plan.
    Mutation(
        file="big_vision/tools/planning/plans.py",
        old="phase.flops / len(hardware.devices) / chip.flops",
        new="phase.flops / chip.flops",
        test=_DATA_SHEET),
    Mutation(
        file="big_vision/tools/planning/plans.py",
        old="bytes_accessed / chip.bandwidth",
        new="bytes_accessed / chip.links",
        test=_DATA_SHEET),
    Mutation(
        file="big_vision/tools/planning/plans.py",
        old="high += phase.num_steps * sum(seconds)",
        new="high += sum(seconds)",
        test="tests/tools/test_plan.py::"
             "test_run_seconds_weight_phases_by_their_steps"),
    Mutation(
        file="big_vision/tools/planning/plans.py",
        old='raise DoesNotFitError(f"{_memory_use(str(error))}{where}.")',
        new='raise DoesNotFitError(f"{_memory_use(str(error))}.")',
        test="tests/tools/test_plan.py::"
             "test_the_compilers_lack_of_memory_names_the_phase"),
    Mutation(
        file="big_vision/tools/planning/plans.py",
        old="if plan.peak_bytes > hardware.chip.memory:",
        new="if plan.peak_bytes > 8 * hardware.chip.memory:",
        test="tests/proj/vqgan/test_plan_vqgan.py::"
             "test_the_worst_phase_decides_whether_a_run_fits"),
    Mutation(
        file="big_vision/tools/planning/reports.py",
        old="seconds * len(hardware.devices) / 3600",
        new="seconds / 3600",
        test=_REPORT),
    Mutation(
        file="big_vision/tools/planning/reports.py",
        old="{hours[1] * price:,.2f}",
        new="{hours[1]:,.2f}",
        test=_REPORT),
    Mutation(
        file="big_vision/tools/planning/reports.py",
        old="batch_size / low / hardware.num_hosts",
        new="batch_size / low / len(hardware.devices)",
        test=_REPORT),
    Mutation(
        file="big_vision/tools/planning/sizes.py",
        old="math.prod(shard) * leaf.dtype.itemsize",
        new="leaf.size * leaf.dtype.itemsize",
        test="tests/tools/test_plan.py::"
             "test_planned_state_has_the_bytes_of_a_real_one"),
    Mutation(
        file="big_vision/tools/planning/remedies.py",
        old="if (after := outcome(values)) not in seen:",
        new="if (after := outcome(values)):",
        test="tests/tools/test_plan.py::"
             "test_remedies_without_effect_are_left_out"),
    Mutation(
        file="big_vision/tools/plan.py",
        old='path, colon, arg = config.partition(":")',
        new='path, colon, arg = config, "", ""',
        test="tests/tools/test_plan.py::"
             "test_a_row_is_named_after_the_config_and_its_arguments"),
]
