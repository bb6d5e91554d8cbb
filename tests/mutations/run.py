"""Mistakes in what watches, stops and ends a run."""

from mutations.mutation import Mutation

MUTATIONS = [
    # What ends with an error.
    Mutation(
        file="big_vision/run/session.py",
        old="      self.batches.close()\n      raise\n",
        new="      raise\n",
        test="tests/test_train.py::"
             "test_an_invalid_config_leaves_no_thread_that_reads_data"),
    Mutation(
        file="big_vision/tools/sweep.py",
        old="  if not rows and len(failed) < len(points):",
        new="  if False:",
        test="tests/tools/test_sweep.py::"
             "test_a_metric_that_no_point_has_leaves_the_table_as_it_is"),
    # A request to stop.
    Mutation(
        file="big_vision/run/interrupts.py",
        old="      if self._signal is not None:\n        return None\n",
        new="",
        test="tests/run/test_interrupts.py::"
             "test_a_signal_skips_or_abandons_what_may_be_abandoned"),
    Mutation(
        file="big_vision/run/interrupts.py",
        old="    except _Abandoned:\n      return None\n    finally:",
        new="    finally:",
        test="tests/run/test_interrupts.py::"
             "test_a_signal_skips_or_abandons_what_may_be_abandoned"),
    # The watchdog.
    Mutation(
        file="big_vision/run/watchdog.py",
        old="step_s: ranges.NotNegative | None = 1800,",
        new="step_s: ranges.NotNegative | None = 180000,",
        test="tests/run/test_watchdog.py::test_the_documented_defaults"),
    Mutation(
        file="big_vision/run/watchdog.py",
        old="peer_s: ranges.NotNegative | None = 120,",
        new="peer_s: ranges.NotNegative | None = 12000,",
        test="tests/run/test_watchdog.py::test_the_documented_defaults"),
    Mutation(
        file="big_vision/run/watchdog.py",
        old="step=step_s,",
        new="step=100 * step_s,",
        test="tests/run/test_watchdog.py::"
             "test_the_limits_given_are_the_limits_that_count"),
    Mutation(
        file="big_vision/run/watchdog.py",
        old="if position is before else 0.0",
        new="if position == before else 0.0",
        test="tests/run/test_watchdog.py::"
             "test_progress_is_what_counts_and_other_limits_do_not"),
    Mutation(
        file="big_vision/run/watchdog.py",
        old="min(now - last, 3 * self._poll_s)",
        new="now - last",
        test="tests/run/test_watchdog.py::test_a_stopped_process_may_go_on"),
    Mutation(
        file="big_vision/run/watchdog.py",
        old='if self._is_asked_to_stop and phase != "checkpoint":',
        new="if self._is_asked_to_stop:",
        test="tests/run/test_watchdog.py::"
             "test_saving_after_a_signal_is_not_cut_short"),
    Mutation(
        file="big_vision/run/watchdog.py",
        old="  _compiled.add(kind)\n",
        new="",
        test="tests/run/test_watchdog.py::"
             "test_the_first_step_of_a_kind_compiles"),
    # What processes know of each other.
    Mutation(
        file="big_vision/run/peers.py",
        old="return step, PHASES.index(phase.split(\"/\")[0])",
        new="return PHASES.index(phase.split(\"/\")[0]), step",
        test="tests/run/test_peers.py::"
             "test_places_are_ordered_by_how_much_is_done"),
    Mutation(
        file="big_vision/run/peers.py",
        old="process != self.index and process not in silent)",
        new="process != self.index)",
        test="tests/run/test_peers.py::"
             "test_only_a_living_process_that_is_behind_is_waited_for"),
    Mutation(
        file="big_vision/run/peers.py",
        old="if seconds > limit and not self._has_ended(process)}",
        new="if seconds > limit}",
        test="tests/run/test_peers.py::"
             "test_a_silent_process_is_lost_and_one_that_ended_is_not"),
    Mutation(
        file="big_vision/run/peers.py",
        old="is_news = report != self._seen.get(process)",
        new="is_news = word is not self._seen.get(process)",
        test="tests/run/test_peers.py::"
             "test_a_silent_process_is_lost_and_one_that_ended_is_not"),
    # The end of a process.
    Mutation(
        file="big_vision/run/ending.py",
        old='_try(lambda: _print("\\n".join(filter(None, lines))), _PRINT_S)',
        new='_print("\\n".join(filter(None, lines)))',
        test="tests/run/test_ending.py::"
             "test_a_pipe_that_nobody_reads_does_not_keep_a_process"),
    # The console and signals.
    Mutation(
        file="big_vision/run/console.py",
        old="    except OSError:\n",
        new="    except BrokenPipeError:\n",
        test="tests/run/test_console.py::"
             "test_printing_never_ends_a_program[> /dev/full 2>&1]"),
    Mutation(
        file="big_vision/run/console.py",
        old="os.open(os.devnull, os.O_RDWR)) <= 2:",
        new="os.open(os.devnull, os.O_RDWR)) < 0:",
        test="tests/run/test_console.py::"
             "test_printing_never_ends_a_program[2>&-]"),
    Mutation(
        file="big_vision/run/console.py",
        old='errors="backslashreplace"',
        new='errors="strict"',
        test="tests/run/test_console.py::"
             "test_letters_that_the_encoding_lacks_are_escaped"),
    Mutation(
        file="big_vision/run/interrupts.py",
        old="  if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:\n"
            "    signals.append(signal.SIGHUP)\n",
        new="  signals.append(signal.SIGHUP)\n",
        test="tests/run/test_interrupts.py::"
             "test_a_terminal_that_closes_means_nothing_under_nohup"),
    Mutation(
        file="big_vision/run/watchdog.py",
        old="signal.SIGINT, signal.SIGHUP}",
        new="signal.SIGINT}",
        test="tests/run/test_watchdog.py::"
             "test_grace_after_a_signal_even_when_python_runs_no_handlers"),
    # The command line and config files.
    Mutation(
        file="big_vision/run/command_line.py",
        old="    if not takes_arguments:\n",
        new="    if takes_arguments:\n",
        test="tests/run/test_command_line.py::"
             "test_mistakes_on_the_command_line"),
    Mutation(
        file="big_vision/files.py",
        old="errno.EDQUOT, ",
        new="",
        test="tests/run/test_command_line.py::test_every_error_ends_with_its_"
             "code_and_only_surprises_with_a_traceback"),
    Mutation(
        file="big_vision/run/command_line.py",
        old="trace, error = error.trace(), error.error",
        new="error = error.error",
        test="tests/run/test_command_line.py::"
             "test_errors_raised_by_a_config_file"),
    Mutation(
        file="big_vision/run/config_files.py",
        old="inspect.signature(get_config).bind(*args)",
        new="pass",
        test="tests/run/test_config_files.py::test_mistakes"),
    Mutation(
        file="big_vision/run/command_line.py",
        old="return os.path.expanduser(argument)",
        new="return argument",
        test="tests/run/test_command_line.py::"
             "test_a_tilde_in_the_workdir_is_the_home_directory"),
    Mutation(
        file="big_vision/run/command_line.py",
        old="    metrics.MetricsDamaged: exit_codes.STORAGE,\n",
        new="",
        test="tests/run/test_command_line.py::test_every_error_ends_with_its_"
             "code_and_only_surprises_with_a_traceback"),
    # What a workdir from elsewhere may do.
    Mutation(
        file="big_vision/evaluators/schedule.py",
        old="if outfile and workdir and not files.is_below(outfile, workdir):",
        new="if False:",
        test="tests/evaluators/test_schedule.py::"
             "test_evaluators_write_below_the_workdir_only"),
    Mutation(
        file="big_vision/files.py",
        old="else os.path.realpath(path)\n  directory",
        new="else path\n  directory",
        test="tests/test_files.py::test_what_is_below_a_directory"),
    Mutation(
        file="big_vision/files.py",
        old='os.path.join(directory, "")',
        new="directory",
        test="tests/test_files.py::test_what_is_below_a_directory"),
    Mutation(
        file="big_vision/run/pictures.py",
        old="if not files.is_below(path, workdir):",
        new="if False:",
        test="tests/run/test_pictures.py::"
             "test_pictures_are_written_below_the_workdir_only"),
    Mutation(
        file="big_vision/run/metrics.py",
        old='      if type(row.get("step")) is not int:\n'
            '        raise ValueError("it has no step")\n',
        new="",
        test="tests/tools/test_report.py::test_broken_workdirs_are_named"),
    # Several processes, checkpoints.
    Mutation(
        file="big_vision/run/cluster.py",
        old="    if found.index == 0:\n      _check_port(found.address)\n",
        new="",
        test="tests/run/test_cluster.py::test_a_port_that_is_taken"),
    Mutation(
        file="big_vision/run/cluster.py",
        old="socket.SO_REUSEADDR, 1)",
        new="socket.SO_REUSEADDR, 0)",
        test="tests/run/test_cluster.py::"
             "test_a_port_that_a_run_has_just_used_is_free"),
    Mutation(
        file="big_vision/run/cluster.py",
        old="  if not _has_tpu():\n    _do_not_look_for_tpu()\n",
        new="",
        test="tests/run/test_cluster.py::"
             "test_the_tpu_runtime_is_not_loaded_where_there_is_no_tpu"),
    Mutation(
        file="big_vision/run/cluster.py",
        old="      factories[\"tpu\"] = dataclasses.replace(\n"
            "          factories[\"tpu\"], factory=fail, fail_quietly=True)\n",
        new="      factories.pop(\"tpu\")\n",
        test="tests/run/test_cluster.py::"
             "test_the_tpu_runtime_is_not_loaded_where_there_is_no_tpu"),
    Mutation(
        file="big_vision/run/checkpoints/manager.py",
        old="      files.make_directory(self._directory)\n"
            "      folders.remove_partial",
        new="      folders.remove_partial",
        test="tests/run/test_checkpoint_faults.py::"
             "test_a_directory_that_is_removed_while_the_run_goes_on"),
    Mutation(
        file="big_vision/run/console.py",
        old='rb"[IW]',
        new='rb"[IWE]',
        test="tests/run/test_console.py::"
             "test_only_the_logs_of_native_libraries_are_dropped"),
]
