"""How strong the augmentations of a view are; `augment` applies them on the device."""

from dataclasses import asdict, dataclass

from mirigor_jax.errors import InputError

# A crop of no area is none, and a hue that has turned half round is back at a jitter of 2.5; the others are
# probabilities.
MOST = {"crop": 0.99, "jitter": 2.5}


@dataclass(frozen=True)
class Augmentation:
    """How strong each augmentation is; 0 leaves it out. The defaults are SimCLR's.

    crop: a part of 1 - crop to 1 of the image's area becomes the image. flip, gray, blur: probabilities.
    jitter: brightness, contrast and saturation change by up to 80 % and hue by up to 20 % of the color circle, times
    this, in random order, for 80 % of the images.
    Raises InputError for a strength outside its range.
    """

    crop: float = 0.92
    flip: float = 0.5
    jitter: float = 1.0
    gray: float = 0.2
    blur: float = 0.5

    def __post_init__(self) -> None:
        for name, strength in asdict(self).items():
            if not 0 <= strength <= (most := MOST.get(name, 1.0)):
                raise InputError(f"{name}={strength:g}: expected 0 (leaves it out) to {most:g}")
