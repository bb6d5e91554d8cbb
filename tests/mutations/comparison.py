"""Mistakes in the comparison of what processes were started with."""

from mutations.mutation import Mutation

_FILE = "big_vision/run/comparison.py"
_TEST = "tests/run/test_comparison.py::"

MUTATIONS = [
    Mutation(
        file=_FILE,
        old="  client.wait_at_barrier(f\"{_KEY}compared\", _TIMEOUT_MS)\n",
        new="",
        test=_TEST + "test_a_difference_is_shown_and_process_0_does_not_go_on"),
    Mutation(
        file=_FILE,
        old="      \"number of training examples\": data_size,\n",
        new="",
        test=_TEST + "test_a_difference_is_shown_and_process_0_does_not_go_on"),
    Mutation(
        file=_FILE,
        old="      \"--num_processes\": count,\n",
        new="",
        test=_TEST + "test_another_number_of_processes_is_shown"),
    Mutation(
        file=_FILE,
        old="config_lib.difference(theirs, ours)",
        new="config_lib.difference(ours, theirs)",
        test=_TEST + "test_a_difference_is_shown_and_process_0_does_not_go_on"),
    Mutation(
        file=_FILE,
        old="      digest.update(path.read_bytes() + b\"\\0\")\n",
        new="",
        test=_TEST + "test_other_code_of_a_package_that_the_config_names_is_"
             "shown"),
    Mutation(
        file="big_vision/modules.py",
        old="  _packages.add(full_name.partition(\".\")[0])\n",
        new="",
        test=_TEST + "test_other_code_of_a_package_that_the_config_names_is_"
             "shown"),
]
