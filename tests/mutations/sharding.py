"""Mistakes in meshes, and in how states and batches are split."""

from mutations.mutation import Mutation

_LIMIT = ("tests/test_sharding.py::"
          "test_fsdp_leaves_arrays_up_to_its_limit_whole")

MUTATIONS = [
    Mutation(
        file="big_vision/sharding/strategy.py",
        old="itemsize <= min_size_to_shard_mb",
        new="itemsize < min_size_to_shard_mb",
        test=_LIMIT),
    Mutation(
        file="big_vision/sharding/strategy.py",
        old="min_size_to_shard_mb * 2 ** 20",
        new="min_size_to_shard_mb * 2 ** 21",
        test=_LIMIT),
    Mutation(
        file="big_vision/sharding/strategy.py",
        old="min_size_to_shard_mb: ranges.NotNegative = 4)",
        new="min_size_to_shard_mb: ranges.NotNegative = 1)",
        test=_LIMIT),
    Mutation(
        file="big_vision/sharding/strategy.py",
        old="leaf.size * leaf.dtype.itemsize <=",
        new="leaf.size * 4 <=",
        test=_LIMIT),
    Mutation(
        file="big_vision/sharding/strategy.py",
        old="largest = max(free,",
        new="largest = min(free,",
        test="tests/test_sharding.py::"
             "test_fsdp_takes_the_largest_free_dimension_that_divides"),
    Mutation(
        file="big_vision/sharding/strategy.py",
        old="return [axis if i == dim % len(spec) else entry",
        new="return [axis if i == dim else entry",
        test="tests/test_sharding.py::test_shard_dim_counts_from_both_ends"),
    Mutation(
        file="big_vision/sharding/rules.py",
        old='"shard_dim(\'model\', -3)"),',
        new='"shard_dim(\'model\', -1)"),',
        test="tests/test_sharding.py::"
             "test_tensor_parallelism_splits_heads_and_hidden_units"),
    Mutation(
        file="big_vision/sharding/rules.py",
        old='return [("act_batch", mesh.axis_names)]',
        new='return [("act_batch", mesh.axis_names[0])]',
        test="tests/test_sharding.py::"
             "test_fsdp_over_two_axes_splits_leaves_that_do_not_divide_by_all_"
             "devices"),
    Mutation(
        file="big_vision/sharding/placement.py",
        old="np.prod([sharding.mesh.shape[axis] for axis in axes])",
        new="np.prod([sharding.mesh.shape[axis] for axis in axes[:1]])",
        test="tests/test_sharding.py::"
             "test_the_rule_for_act_batch_splits_the_batch"),
    Mutation(
        file="big_vision/sharding/mesh.py",
        old="if sizes.count(-1) > 1 or num_devices % known:",
        new="if num_devices % known:",
        test="tests/test_sharding.py::test_mesh_errors"),
]
