"""Mistakes in sources of data, their order, and the input pipeline."""

from mutations.mutation import Mutation

MUTATIONS = [
    Mutation(
        file="big_vision/datasets/order.py",
        old="  within = (block * tf.gather(counts, source_idx)\n"
            "            + slot - tf.gather(edges, source_idx))",
        new="  within = slot - tf.gather(edges, source_idx)",
        test="tests/test_input_pipeline.py::test_a_mixture_reaches_every_"
             "example_of_a_source_larger_than_a_block"),
    Mutation(
        file="big_vision/input_pipeline.py",
        old="    seed = order.op_seed(position, self._seed)\n",
        new="    seed = order.op_seed(\n"
            "        position % len(part.source), self._seed)\n",
        test="tests/test_input_pipeline.py::"
             "test_random_ops_draw_anew_in_each_epoch"),
    Mutation(
        file="big_vision/run/progress.py",
        old="min(1.0, (waited - self._mark.waited) / seconds)",
        new="min(1.0, waited / seconds)",
        test="tests/run/test_progress.py::"
             "test_data_stall_is_the_share_of_each_interval"),
    Mutation(
        file="big_vision/run/progress.py",
        old="paused=self._paused, waited=waited)\n    else:",
        new="paused=self._paused, waited=0.0)\n    else:",
        test="tests/run/test_progress.py::"
             "test_data_stall_is_the_share_of_each_interval"),
    Mutation(
        file="big_vision/datasets/order.py",
        old="_SHUFFLE_ROUNDS = 8",
        new="_SHUFFLE_ROUNDS = 4",
        test="tests/datasets/test_order.py::"
             "test_every_example_is_equally_often_at_every_place"),
    Mutation(
        file="big_vision/datasets/order.py",
        old="(_shuffle(offset, size, seed, epoch, _SALT_SHUFFLE)",
        new="(_shuffle(offset, size, seed, epoch * 0, _SALT_SHUFFLE)",
        test="tests/datasets/test_order.py::"
             "test_every_example_is_equally_often_at_every_place"),
    Mutation(
        file="big_vision/datasets/folder_tree.py",
        old="return sorted(path for folder in self.walk() for path in "
            "folder.pictures)",
        new="return sorted(self.pictures)",
        test="tests/datasets/test_folder.py::"
             "test_pictures_in_folders_of_a_class_belong_to_it"),
    Mutation(
        file="big_vision/datasets/folder_tree.py",
        old="  if not entry.is_file():\n"
            "    return \"not a regular file\"\n",
        new="",
        test="tests/datasets/test_folder.py::"
             "test_only_regular_files_of_bounded_size_are_read"),
    Mutation(
        file="big_vision/datasets/folder_tree.py",
        old="    if (status.st_dev, status.st_ino) in ancestors:",
        new="    if False:",
        test="tests/datasets/test_folder.py::"
             "test_only_regular_files_of_bounded_size_are_read"),
    Mutation(
        file="big_vision/datasets/folder_splits.py",
        old="(\"val\", \"valid\", \"validation\", \"dev\", \"eval\")",
        new="(\"val\", \"validation\")",
        test="tests/datasets/test_folder.py::"
             "test_splits_have_their_usual_names"),
    Mutation(
        file="big_vision/datasets/folder_splits.py",
        old="      why = (\"has no class folders\" if _role(name)",
        new="      continue\n"
            "      why = (\"has no class folders\" if _role(name)",
        test="tests/datasets/test_folder.py::"
             "test_a_test_folder_without_classes_is_reported"),
    Mutation(
        file="big_vision/datasets/folder_splits.py",
        old="  if roles and \"train\" not in roles:",
        new="  if False:",
        test="tests/datasets/test_folder.py::"
             "test_splits_that_cannot_be_told_are_errors"),
    Mutation(
        file="big_vision/datasets/folder.py",
        old="@functools.cache\n",
        new="",
        test="tests/datasets/test_folder.py::"
             "test_what_is_used_and_what_is_not_is_printed_once"),
    Mutation(
        file="big_vision/datasets/folder.py",
        old="    return data_files.printable(os.path.join(self._path, "
            "self._files[index][0]))",
        new="    return os.path.join(self._path, self._files[index][0])",
        test="tests/test_input_pipeline.py::"
             "test_a_damaged_example_whose_name_is_not_utf8_is_replaced"),
    Mutation(
        file="big_vision/datasets/data_files.py",
        old="    file = files.open_regular(path)\n",
        new="    file = open(path, \"rb\")\n",
        test="tests/datasets/test_jsonl.py::"
             "test_a_file_of_examples_must_be_regular_and_fit_"
             "into_memory[bv:npz]"),
    Mutation(
        file="big_vision/datasets/data_files.py",
        old="  if num_bytes > max(_HARMLESS_BYTES, _MAX_RATIO * "
            "stored_bytes):",
        new="  if num_bytes > max(_HARMLESS_BYTES, 100 * stored_bytes):",
        test="tests/datasets/test_arrays.py::"
             "test_one_hot_labels_are_not_taken_for_a_bomb"),
    Mutation(
        file="big_vision/datasets/data_files.py",
        old="  if num_bytes > max(_HARMLESS_BYTES, _MAX_RATIO * "
            "stored_bytes):",
        new="  if num_bytes > 10 * max(_HARMLESS_BYTES, _MAX_RATIO * "
            "stored_bytes):",
        test="tests/datasets/test_arrays.py::"
             "test_arrays_that_would_fill_the_memory_are_refused"),
    Mutation(
        file="big_vision/datasets/data_files.py",
        old="  if not stat.S_ISREG(status.st_mode):\n"
            "    return f\"is a",
        new="  if False:\n"
            "    return f\"is a",
        test="tests/datasets/test_jsonl.py::"
             "test_only_regular_files_of_bounded_size_are_read"),
    Mutation(
        file="big_vision/datasets/jsonl.py",
        old="(ValueError, RecursionError)",
        new="ValueError",
        test="tests/datasets/test_jsonl.py::test_a_bad_line_is_named"),
    Mutation(
        file="big_vision/datasets/jsonl.py",
        old="          text.encode()",
        new="          text.encode(errors=\"replace\")",
        test="tests/datasets/test_jsonl.py::test_a_bad_line_is_named"),
    Mutation(
        file="big_vision/tools/prepare_dataset.py",
        old="      size = math.prod(shape)",
        new="      size = int(np.prod(shape, dtype=np.int64))",
        test="tests/tools/test_prepare_dataset.py::"
             "test_an_idx_file_that_unfolds_to_too_much_is_refused"),
    Mutation(
        file="big_vision/tools/prepare_dataset.py",
        old="      data = file.read(size + 1)",
        new="      data = file.read(size)",
        test="tests/tools/test_prepare_dataset.py::"
             "test_an_idx_file_that_unfolds_to_too_much_is_refused"),
    Mutation(
        file="big_vision/input_pipeline.py",
        old="    if self.batch_size > self.data_size:",
        new="    if self.batch_size >= self.data_size:",
        test="tests/test_input_pipeline.py::"
             "test_one_class_and_batches_larger_than_the_data_are_noted"),
    Mutation(
        file="big_vision/input_pipeline.py",
        old="    self.class_names = names if same else None",
        new="    self.class_names = names",
        test="tests/test_input_pipeline.py::"
             "test_names_of_classes_are_known_unless_sources_differ"),
    Mutation(
        file="big_vision/run/workdir.py",
        old="  if stored != list(class_names):",
        new="  if len(stored) != len(class_names):",
        test="tests/run/test_workdir.py::"
             "test_names_of_classes_are_kept_and_may_not_change"),
    Mutation(
        file="big_vision/evaluators/predictions.py",
        old="self._data.class_names",
        new="None",
        test="tests/evaluators/test_evaluator_predictions.py::test_digits"),
    Mutation(
        file="big_vision/datasets/tfds/records.py",
        old="  if unreadable:\n",
        new="  if False:\n",
        test="tests/datasets/tfds/test_opening.py::"
             "test_a_missing_file_is_named_when_opened"),
    Mutation(
        file="big_vision/proj/nerf/scenes.py",
        old="  check_files([fname], \"to open\")",
        new="  check_files([], \"to open\")",
        test="tests/proj/nerf/test_scenes.py::"
             "test_images_that_would_hang_or_fill_the_memory_are_refused"),
    Mutation(
        file="big_vision/proj/nerf/scenes.py",
        old="  missing = [fname for fname in fnames "
            "if data_files.find_unreadable([fname])]",
        new="  missing = []",
        test="tests/proj/nerf/test_scenes.py::"
             "test_images_that_would_hang_or_fill_the_memory_are_refused"),
    Mutation(
        file="big_vision/tools/eval_only.py",
        old="  workdir_lib.check_class_names(workdir, built.data.class_names)",
        new="  assert built.data.class_names",
        test="tests/tools/test_eval_only.py::"
             "test_data_with_other_classes_is_not_evaluated"),
]
