"""Whether a run fits slices of TPUs that are not here, and how fast it can be there: python -m mirigor_jax.plan."""
