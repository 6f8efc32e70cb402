"""Images of noise."""

import numpy as np

from mirigor_jax.data.image_set import ImageSet


def noise_images(kind: str, *, count: int, size: int, seed: int) -> ImageSet:
    """A set of images of independent random bytes.

    kind: "uniform", or "gaussian" with mean 127.5 and standard deviation 64, clipped to 0 to 255.
    An image depends on its row and the seed only. Source: Lee et al. 2023, appendix C.
    """

    def read(rows: np.ndarray) -> np.ndarray:
        images = np.empty((len(rows), size, size, 3), np.uint8)
        for image, row in zip(images, rows.tolist(), strict=True):
            rng = np.random.Generator(np.random.Philox(key=np.array([seed, row], np.uint64)))
            if kind == "uniform":
                image[:] = rng.integers(256, size=image.shape, dtype=np.uint8)
            else:
                image[:] = np.clip(np.rint(127.5 + 64 * rng.standard_normal(image.shape, np.float32)), 0, 255)
        return images

    return ImageSet(f"{kind} noise", (), (), np.zeros((count, 0), np.int32), read)
