"""`python -m mirigor_jax.plan`: does a run fit a TPU slice that is not here, and how fast can it be there?"""
