"""Print the seconds that this machine takes to compile and run 50 training steps of a network that is not ours."""

import time

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax


class Convolutions(nn.Module):
    @nn.compact
    def __call__(self, x):
        for width in (16, 32, 64):
            x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
        return nn.Dense(10)(jnp.mean(x, axis=(1, 2)))


start = time.perf_counter()
network, optimizer = Convolutions(), optax.adam(1e-3)
images = jax.random.normal(jax.random.key(0), (32, 64, 64, 3))
params = network.init(jax.random.key(1), images)
state = optimizer.init(params)


@jax.jit
def step(params, state):
    loss, gradients = jax.value_and_grad(lambda p: jnp.mean(network.apply(p, images) ** 2))(params)
    updates, state = optimizer.update(gradients, state)
    return optax.apply_updates(params, updates), state, loss


for _ in range(50):
    params, state, loss = step(params, state)
jax.block_until_ready(loss)
print(time.perf_counter() - start)
