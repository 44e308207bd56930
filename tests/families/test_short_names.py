from __future__ import annotations

import pytest

from masklet.families.family import Config
from masklet.families.short_names import MAX_CHARACTERS, lengthened, shortened
from masklet.testing import stand_in_weights, tiny_config, tiny_edgetam_config, tiny_sam1_config


@pytest.mark.parametrize("config", [tiny_config(), tiny_sam1_config(), tiny_edgetam_config()], ids=str)
def test_every_key_fits_and_comes_back(config: Config) -> None:
    keys = list(stand_in_weights(config))
    longer = [key.replace("blocks.0.", "blocks.47.") for key in keys]
    names = {shortened(key): key for key in [*keys, *longer]}
    assert len(names) == len({*keys, *longer})
    assert max(map(len, names)) <= MAX_CHARACTERS
    assert all(lengthened(name) == key for name, key in names.items())
    assert max(map(len, keys)) > MAX_CHARACTERS


def test_names_are_changed_by_whole_words() -> None:
    assert shortened("sam_mask_decoder.iou_token.weight") == "dec.iou_token.weight"
    assert shortened("my_sam_mask_decoder.weight") == "my_sam_mask_decoder.weight"
    assert lengthened("dec.decoder.mean") == "sam_mask_decoder.decoder.running_mean"
