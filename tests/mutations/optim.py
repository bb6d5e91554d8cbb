"""Mistakes in optimizers."""

from mutations.mutation import Mutation

MUTATIONS = [
    Mutation(
        file="big_vision/optim/adafactor.py",
        old="beta2_cap, 1.0 - (jnp",
        new="1.0, 1.0 - (jnp",
        test="tests/optim/test_adafactor.py::test_adafactors_decay_grows_up_"
             "to_its_cap"),
    Mutation(
        file="big_vision/optim/adafactor.py",
        old="+ 1.0) ** -rate",
        new="+ 2.0) ** -rate",
        test="tests/optim/test_adafactor.py::test_adafactor_by_hand"),
    Mutation(
        file="big_vision/optim/adafactor.py",
        old="debias=False",
        new="debias=True",
        test="tests/optim/test_adafactor.py::test_adafactor_by_hand"),
    Mutation(
        file="big_vision/optim/chain.py",
        old="decay * mult, mask",
        new='decay * mult * config["lr"], mask',
        test="tests/optim/test_chain.py::test_decay_does_not_depend_on_lr"),
    Mutation(
        file="big_vision/optim/chain.py",
        old="chain.append(optax.masked(_make_core(config), trained))",
        new="chain.append(_make_core(config))",
        test="tests/optim/test_chain.py::test_frozen_parameters_have_no_state_"
             "and_do_not_count_in_the_norm"),
    Mutation(
        file="big_vision/optim/chain.py",
        old="optax.masked(optax.clip_by_global_norm(clip), trained)",
        new="optax.clip_by_global_norm(clip)",
        test="tests/optim/test_chain.py::test_frozen_parameters_have_no_state_"
             "and_do_not_count_in_the_norm"),
    Mutation(
        file="big_vision/optim/chain.py",
        old='_DECAYED = ((".*/kernel$", 1.0),)',
        new='_DECAYED = ((".*", 1.0),)',
        test="tests/optim/test_chain.py::test_parameters_other_than_kernels_"
             "do_not_decay"),
    Mutation(
        file="big_vision/optim/chain.py",
        old="optax.scale(mult), mask",
        new="optax.scale(1.0), mask",
        test="tests/optim/test_chain.py::test_three_steps_of_the_whole_chain_"
             "by_hand"),
    Mutation(
        file="big_vision/trainers/learner.py",
        old="        grad if is_trainable else jnp.zeros_like(grad)), grads, "
            "self.trainable)",
        new="        grad), grads, self.trainable)",
        test="tests/trainers/test_learner.py::test_frozen_parameters_stay_and_"
             "do_not_count_in_the_norm"),
    Mutation(
        file="big_vision/trainers/learner.py",
        old='return {"params": params, "opt": opt}, {',
        new='return {"params": params}, {',
        test="tests/trainers/test_learner.py::test_the_optimizer_keeps_its_"
             "state_between_steps"),
]
