"""Vision research in JAX: one loop, configs that run, runs that repeat."""
