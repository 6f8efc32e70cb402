"""Settings that were renamed or added: folders of older versions can be read, continued and restored."""

import copy
from typing import Any

from mirigor_jax import models
from mirigor_jax.data import cdp
from mirigor_jax.errors import InputError

# Old dotted key → today's dotted key.
CONFIG_KEYS: dict[str, str] = {
    "data.augment.grey": "data.augment.gray",
    "hiding": "adversarial_weight",
    "data.colors": "data.cdp.colors",
    "data.digits": "data.cdp.digits",
    "data.grid": "data.cdp.grid",
    "data.mixing": "data.cdp.mixing",
    "data.jitter": "data.cdp.jitter",
    "data.background": "data.cdp.background",
    "data.glyphs": "data.cdp.glyphs",
    "estimate.curve": "estimate.k_curve",
    "estimate.paper_k": "estimate.nt_xent_k",
    "estimate.fit_k": "estimate.batch_size",
    "estimate.also": "estimate.extra_pairings",
}
# Settings that an older config lacks → the value that older versions used in effect.
ADDED: dict[str, Any] = {
    "estimate.estimators": ["info_nce_symmetric", "nt_xent"],
    "estimate.rows": "checked",
    "data.cdp.law": "independent",
    "data.cdp.clutter": 0.0,
    "data.cdp.blur": 0.0,
    "data.cdp.noise": 0.0,
    "data.patches.bits": 10,
    "data.patches.grid": [4, 4],
    "data.patches.channels": 1,
    "data.patches.mixing": 0.45,
    "data.patches.jitter": 0,
    "data.patches.background": "spectrum",
    "data.hf.image": None,
    "data.hf.label": None,
    "features.unseen": None,
    "evaluate.seen": None,
    "train.schedule": "cosine",
    "train.drops": [0.5, 0.75],
    "train.embedding_noise": 0.1,
    "train.decoder": "linear",
    "train.decoder_width": 512,
    "train.reconstruction": 0.25,
    "train.masked": 0.75,
    "train.patch": 4,
    "train.redundancy": 5e-3,
    "train.vicreg_weights": [25.0, 25.0, 1.0],
    "train.target_decay": 0.996,
    "train.prototypes": 100,
    "encoder.place": None,
    "train.keep_every": None,
}


def current(config: dict[str, Any]) -> dict[str, Any]:
    """A stored config with today's names.

    Only configs of three kinds had other names in older versions: runs on images, runs on arrays, and studies.
    Raises InputError if today's settings can't say what the older version did.
    """
    config = copy.deepcopy(config)
    for old, new in CONFIG_KEYS.items():
        _move(config, old, new)
    if "estimate" in config and "train" in config:
        data = config["data"]
        if "schedule" not in config["train"] and data.get("rotations") and data.get("images") is not None:
            raise InputError(
                "an older version made this run with data.rotations and data.images, and counted each turn of an image "
                "as an image of its own: start again in another folder"
            )
        _measure_jitter_in_shares(data)
        for key, value in ADDED.items():
            *sections, name = key.split(".")
            section = config
            for one in sections:
                section = section.setdefault(one, {})
            section.setdefault(name, value)
        _drop_idle_options(config["encoder"])
    if "labels" in config and "estimators" in config:
        config.setdefault("seen", False)  # of a run on arrays
    if "run" in config:
        config["run"] = current(config["run"])
    if grid := config.get("study"):
        grid.setdefault("fits", [])
    for cell in config.get("study", {}).get("cells", ()):
        cell["run"] = {CONFIG_KEYS.get(key, key): value for key, value in cell["run"].items()}
    for asked in config.get("study", {}).get("estimates", ()):
        if "curve" in asked:
            asked["k_curve"] = asked.pop("curve")
    return config


def _measure_jitter_in_shares(data: dict[str, Any]) -> None:
    """Turn data.cdp.jitter into a strength. Versions without data.cdp.clutter stored it in pixels."""
    knobs = data.get("cdp", {})
    if "jitter" in knobs and "clutter" not in knobs:
        if data["size"] is None:  # images of another source, or features: the setting has no effect
            knobs["jitter"] = 0.0
            return
        longest = max(cdp.room(data["size"], tuple(knobs["grid"])))
        knobs["jitter"] = min(knobs["jitter"], longest) / max(longest, 1)


def _drop_idle_options(encoder: dict[str, Any]) -> None:
    """Set options without effect to None.

    Older configs wrote defaults out, and gave the options of a ResNet to every encoder, even if none was named.
    """
    options = {name: encoder.get(name) for name in ("width", "stem", "remat")}
    encoder.update(models.own_options(encoder["name"], options) if encoder["name"] else dict.fromkeys(options))


def _move(config: dict[str, Any], old: str, new: str) -> None:
    """Move a setting, if it is there, and make the sections that its new name needs."""
    *sections, name = old.split(".")
    section: Any = config
    for key in sections:
        section = section.get(key) if isinstance(section, dict) else None
    if not isinstance(section, dict) or name not in section:
        return
    value = section.pop(name)
    *sections, name = new.split(".")
    section = config
    for key in sections:
        section = section.setdefault(key, {})
    section[name] = value
