"""Mistakes in files, checkpoints and metrics that a power cut would show."""

from mutations.mutation import Mutation

_FILES = "big_vision/files.py"
_FOLDERS = "big_vision/run/checkpoints/folders.py"
_MANAGER = "big_vision/run/checkpoints/manager.py"
_METRICS = "big_vision/run/metrics.py"
_WORKDIR = "big_vision/run/workdir.py"
_TEST_FILES = "tests/test_files.py::"
_TEST_DURABILITY = "tests/run/test_durability.py::"
_ORDER = _TEST_DURABILITY + (
    "test_a_step_is_on_the_disk_before_its_marker_and_that_before_removals")

MUTATIONS = [
    Mutation(
        file=_FILES,
        old="    file.flush()\n    os.fsync(file.fileno())\n  os.replace",
        new="    file.flush()\n  os.replace",
        test=_TEST_FILES + "test_content_is_on_the_disk_before_its_name_and_"
             "both_at_the_end"),
    Mutation(
        file=_FILES,
        old="  os.replace(temporary, target)\n  sync(os.path.dirname(target))",
        new="  os.replace(temporary, target)",
        test=_TEST_FILES + "test_content_is_on_the_disk_before_its_name_and_"
             "both_at_the_end"),
    Mutation(
        file=_FILES,
        old="target = os.path.realpath(path)",
        new="target = os.fspath(path)",
        test=_TEST_FILES + "test_links_stay_links_and_pipes_are_written_to"),
    Mutation(
        file=_FILES,
        old="if os.path.exists(target) and not os.path.isfile(target):",
        new="if False:",
        test=_TEST_FILES + "test_links_stay_links_and_pipes_are_written_to"),
    Mutation(
        file=_FILES,
        old="  path.mkdir(exist_ok=True)\n  sync(path.parent)",
        new="  path.mkdir(exist_ok=True)",
        test=_TEST_FILES + "test_new_directories_are_on_the_disk_in_their_"
             "parents"),
    Mutation(
        file=_FILES,
        old="topdown=False",
        new="topdown=True",
        test=_TEST_FILES + "test_a_tree_is_synced_from_its_leaves_to_its_name"),
    Mutation(
        file=_FILES,
        old="      self._file.flush()\n      os.fsync(self._file.fileno())",
        new="      self._file.flush()",
        test=_TEST_FILES + "test_a_growing_file_is_visible_at_once_and_synced_"
             "on_demand"),
    Mutation(
        file=_FILES,
        old="    elif time.monotonic() >= self._next_upload:\n",
        new="    else:\n",
        test=_TEST_FILES + "test_an_object_store_gets_whole_files"),
    Mutation(
        file=_FOLDERS,
        old="  files.sync_tree(path)\n  files.write_text(",
        new="  files.write_text(",
        test=_ORDER),
    Mutation(
        file=_FOLDERS,
        old="  files.sync_tree(path)\n"
            "  files.write_text(path / COMMITTED, \"\")",
        new="  files.write_text(path / COMMITTED, \"\")\n"
            "  files.sync_tree(path)",
        test=_ORDER),
    Mutation(
        file=_MANAGER,
        old="files.write_text(self._directory / folders.SAVING, str(step))",
        new="(self._directory / folders.SAVING).write_text(str(step))",
        test=_ORDER),
    Mutation(
        file="big_vision/run/session.py",
        old="          \"num_rows\": self._writer.num_rows,\n",
        new="",
        test="tests/test_train.py::"
             "test_a_lost_config_and_lost_rows_are_noticed"),
    Mutation(
        file="big_vision/run/session.py",
        old="          \"config\": self._config,\n",
        new="",
        test="tests/test_train.py::"
             "test_a_lost_config_and_lost_rows_are_noticed"),
    Mutation(
        file=_METRICS,
        old="self._last_step, self.num_rows = rows[-1][\"step\"], len(rows)",
        new="self._last_step = rows[-1][\"step\"]",
        test=_TEST_DURABILITY + "test_resumed_writers_count_the_rows_they_"
             "keep"),
    Mutation(
        file=_METRICS,
        old="if row[\"step\"] <= step]\n  if len(steps)",
        new="]\n  if len(steps)",
        test=_TEST_DURABILITY + "test_missing_rows_are_said"),
    Mutation(
        file=_METRICS,
        old=", filename_suffix=f\".{purge_step}\"",
        new="",
        test=_TEST_DURABILITY + "test_the_files_of_a_workdir_live_in_an_object_"
             "store"),
    Mutation(
        file=_WORKDIR,
        old="for step in reversed(steps):",
        new="for step in steps:",
        test=_TEST_DURABILITY + "test_a_lost_config_is_read_from_the_newest_"
             "readable_checkpoint"),
    Mutation(
        file=_WORKDIR,
        old="    except checkpoints.CheckpointDamaged:\n      continue\n",
        new="    except checkpoints.CheckpointDamaged:\n      break\n",
        test=_TEST_DURABILITY + "test_a_lost_config_is_read_from_the_newest_"
             "readable_checkpoint"),
]
