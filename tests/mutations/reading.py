"""Mistakes in opening files that may be pipes, and in what errors suggest."""

from mutations.mutation import Mutation

_NEVER_WAITS = (
    "tests/test_files.py::test_reading_never_waits_for_a_pipe_or_a_device")
_CAMERAS = ("tests/proj/nerf/test_scenes.py::"
            "test_cameras_and_distances_in_a_pipe_are_refused")

MUTATIONS = [
    Mutation(
        file="big_vision/files.py",
        old="  if not stat.S_ISREG(mode):",
        new="  if stat.S_ISFIFO(mode):",
        test=_NEVER_WAITS),
    Mutation(
        file="big_vision/files.py",
        old="os.O_RDONLY | os.O_NONBLOCK",
        new="os.O_RDONLY",
        test=_NEVER_WAITS),
    Mutation(
        file="big_vision/files.py",
        old="(stat.S_ISCHR, \"device\")",
        new="(stat.S_ISCHR, \"socket\")",
        test=_NEVER_WAITS),
    Mutation(
        file="big_vision/weights/files.py",
        old="return files.open_regular(file)",
        new="return open(file, \"rb\")",
        test="tests/models/test_vit_load.py::"
             "test_weights_in_a_pipe_are_refused"),
    Mutation(
        file="big_vision/pp/ops_labels.py",
        old="      with files.open_regular(path) as file:\n",
        new="      with open(path, \"rb\") as file:\n",
        test="tests/pp/test_ops_labels.py::"
             "test_a_table_in_a_pipe_is_refused"),
    Mutation(
        file="big_vision/proj/nerf/transforms.py",
        old="with data_files.open_file(fname) as file:",
        new="with open(fname, \"rb\") as file:",
        test=_CAMERAS),
    Mutation(
        file="big_vision/proj/nerf/llff.py",
        old="with data_files.open_file(fname) as file:",
        new="with open(fname, \"rb\") as file:",
        test=_CAMERAS),
    Mutation(
        file="big_vision/proj/nerf/scenes.py",
        old="with data_files.open_file(fname) as file:",
        new="with open(fname, \"rb\") as file:",
        test=_CAMERAS),
    Mutation(
        file="big_vision/config.py",
        old="found.append((f\"{self._path}.{key}\", sorted(self._asked)))",
        new="found.append((f\"{self._path}.{key}\", sorted(\n"
            "            self._asked - set(self._values))))",
        test="tests/test_config.py::"
             "test_unread_keys_are_named_with_the_nearest_key_that_was_read"),
    Mutation(
        file="big_vision/evaluators/schedule.py",
        old="isinstance(value, (Mapping, str))",
        new="isinstance(value, Mapping)",
        test="tests/evaluators/test_schedule.py::"
             "test_values_that_are_no_numbers_or_pictures_are_named"),
]
