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
]
