"""The strengths of a view's augmentations; `augment` applies them on the device."""

from dataclasses import asdict, dataclass

from mirigor_jax import fields
from mirigor_jax.settings import Augment


@dataclass(frozen=True)
class Augmentation(Augment):
    """The strength of each augmentation; 0 leaves it out. The defaults are SimCLR's, see `settings.Augment`.

    crop: a random crop keeps 1 - crop to 1 of the image's area, and is resized to the image's size.
    flip, gray, blur: probabilities.
    jitter: at 1, brightness, contrast and saturation change by up to 80 %, and the hue by up to 20 % of the color
        circle, in random order, for 80 % of the images. Other values scale these changes.
    Raises InputError for a strength outside its range.
    """

    def __post_init__(self) -> None:
        fields.check(Augment, asdict(self))
