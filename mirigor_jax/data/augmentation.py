"""How strong the augmentations of a view are; `augment` applies them on the device."""

from dataclasses import asdict, dataclass

from mirigor_jax import fields
from mirigor_jax.settings import Augment


@dataclass(frozen=True)
class Augmentation(Augment):
    """How strong each augmentation is; 0 leaves it out. The defaults are SimCLR's, see `settings.Augment`.

    crop: a part of 1 - crop to 1 of the image's area becomes the image. flip, gray, blur: probabilities.
    jitter: brightness, contrast and saturation change by up to 80 % and hue by up to 20 % of the color circle, times
    this, in random order, for 80 % of the images.
    Raises InputError for a strength outside its range.
    """

    def __post_init__(self) -> None:
        fields.check(Augment, asdict(self))
