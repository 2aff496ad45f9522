"""Facts of the core, and the options that mend them."""

from __future__ import annotations

import pickle

import pytest

from ig_core.config import SettingError
from ig_core.data.latent_checks import UnfitValuesError
from pipelines.common.remedies import FIELDS, explained, explained_settings


def test_an_option_with_the_value_that_fits_is_added_to_a_fact():
    assert explained(SettingError("it is the other", codec="va-vae")) == (
        "it is the other (--data.codec va-vae)"
    )
    assert explained(SettingError("no mirrored latents", flip="off")) == (
        "no mirrored latents (--data.no-flip)"
    )
    assert explained(SettingError("too many", num_classes="", labels="FILE")) == (
        "too many (--data.num-classes, --data.classes FILE)"
    )
    assert explained(UnfitValuesError("scaled twice")) == (
        "scaled twice (--data.no-check-statistics takes them as they are)"
    )
    assert explained(ValueError("damaged")) == "damaged"


def test_an_auxiliary_head_that_is_missing_or_left_over_names_experiments():
    lacks, has = SettingError("no head", aux_layer="None"), SettingError("a head", aux_layer="")
    assert explained(lacks) == (
        "no head (--model.aux-layer None, or an experiment without _ig, such as sit_b2)"
    )
    assert explained(has) == (
        "a head (--model.aux-layer LAYER, or an experiment with _ig, such as sit_b2_ig)"
    )


def test_a_setting_may_be_that_of_another_field():
    with (
        pytest.raises(ValueError, match=r"^codec: nothing there \(--data\.codec-path\)$"),
        explained_settings("codec: ", path="data.codec_path"),
    ):
        raise SettingError("nothing there", path="")


def test_settings_travel_with_an_error_to_another_process():
    error = pickle.loads(pickle.dumps(UnfitValuesError("scaled twice")))
    assert isinstance(error, UnfitValuesError)
    assert error.settings == {"judged": "off"}
    error = pickle.loads(pickle.dumps(SettingError("it is the other", codec="va-vae")))
    assert (str(error), error.settings) == ("it is the other", {"codec": "va-vae"})


def test_fields_are_those_of_an_experiment():
    from experiments import get_experiment

    experiment = get_experiment("sit_b2_ig")
    for field in FIELDS.values():
        part, name = field.split(".")
        assert hasattr(getattr(experiment, part), name)
