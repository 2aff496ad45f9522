"""Checks of the source of an experiment's data, which is listed once a process."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from pipelines.common.remedies import explained_settings
from pipelines.store.keys import file_digest

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from experiments import DataConfig, Experiment
    from ig_core.data.latent_checks import LatentForm
    from ig_core.data.sources.listing import Listing
    from ig_core.data.sources.rows import LatentRows

PROBED_IMAGES = 16
"""First images of a reference, of which one must be usable before any work."""


def resolve_source(data: DataConfig, path: Path, *, imported: bool) -> dict[str, Any]:
    """Return the fields of the data that a source determines: paths, content, count.

    Args:
        data: Configuration of the data.
        path: Path of the source, absolute.
        imported: True if a published checkpoint stands for the training, so that of VA-VAE's
            latents the statistics are enough.

    Raises:
        ValueError: If the source has no known format, or is not what the configuration says.
    """
    from ig_core.data.latent_checks import statistics_only
    from ig_core.data.sources.rows import read_normalisation

    statistics = statistics_only(path) if data.codec == "va-vae" else None
    if statistics is None:
        classes = None if data.classes is None else Path(data.classes).expanduser().absolute()
        named = {"path": str(path), "classes": None if classes is None else str(classes)}
        content, count = _source(
            dataclasses.replace(
                data,
                path=named["path"],
                classes=named["classes"],
                content=None,
                count=None,
                codec_path=None,
                codec_sha256=None,
                encoder_sha256=None,
            ),
            file_digest(classes) if classes is not None and classes.is_file() else "",
        )
        return {**named, "content": content, "count": count}
    if not imported or data.source != "latents":
        raise ValueError(
            f"data.path must be {data.source} to learn, but {path} holds none: "
            f"{statistics.name} alone is enough with --train.from-checkpoint "
            f"only"
        )
    read_normalisation(statistics.parent, data.channels)
    return {"path": str(path), "content": file_digest(statistics), "count": 0}


# Listing ImageNet takes minutes, and a table's rows name the same source many times. One that
# changes later is found by the stage that lists it.
@functools.lru_cache(maxsize=16)
def _source(data: DataConfig, labels: str) -> tuple[str, int]:  # noqa: ARG001
    """Return identity and number of rows of a source; `labels` is the digest of its mapping."""
    from ig_core.data.sources.listing import identify
    from ig_core.data.sources.source import list_source

    classes = None if data.classes is None else Path(data.classes)
    with explained_settings():
        listing = list_source(Path(str(data.path)), data.num_classes, classes)
    if listing.has_latents != (data.source == "latents"):
        raise ValueError(
            f"data.source must be {'latents' if listing.has_latents else 'images'} "
            f"for {data.path}, which holds {listing.format}, but is "
            f"{data.source!r}"
        )
    if listing.has_latents:
        _check_latents(data, listing)
    return identify(listing), len(listing)


class ImagesOf(NamedTuple):
    """Location of the real images that samples are compared with."""

    path: str
    num_classes: int | None = None
    """Number of classes of images to learn, which are listed with their labels; else None."""
    classes: str | None = None

    @classmethod
    def reference(cls, experiment: Experiment) -> ImagesOf:
        """Return the location of the reference images, else that of the images to learn."""
        data, given = experiment.data, experiment.evaluation.reference
        return cls(str(data.path), data.num_classes, data.classes) if given is None else cls(given)

    def list(self) -> Listing:
        """List the images.

        Raises:
            ValueError: If there are none, or a part of them is missing.
        """
        from ig_core.data.sources.source import list_images, list_source

        if self.num_classes is None:
            with explained_settings(path="evaluation.reference"):
                return list_images(Path(self.path))
        classes = None if self.classes is None else Path(self.classes)
        with explained_settings():
            return list_source(Path(self.path), self.num_classes, classes)


@functools.lru_cache(maxsize=16)
def reference_identity(images: ImagesOf) -> str:
    """Return the identity of the images of a reference, computed once a process.

    Raises:
        ValueError: If there are none, or none of the first can be used.
    """
    from ig_core.data.sources.rows import image_files
    from ig_core.data.sources.source import identify_images
    from ig_core.images.crop import read_pixels

    listing = images.list()
    faults = []
    for row, content in image_files(listing, 0, min(len(listing), PROBED_IMAGES)):
        fault = content if isinstance(content, str) else None
        if not isinstance(content, str):
            pixels, fault, _ = read_pixels(content, 1)
            if pixels is not None:
                break
        faults.append(f"{row.name}: {fault}")
    else:
        raise ValueError(
            f"reference must hold images that can be used, but of {listing.root} the "
            f"first {len(faults)} cannot be, for example {faults[0]}"
        )
    return identify_images(listing)


def forget_sources() -> None:
    """Forget the listings of this process, so that changed sources are listed anew."""
    _source.cache_clear()
    reference_identity.cache_clear()


def _check_latents(data: DataConfig, listing: Listing) -> None:
    """Check that latents from all over the source are what the experiment says."""
    from ig_core.data.latent_checks import check_latents

    with _source_named(data):
        check_latents(latent_form(data), listing)


def latent_form(data: DataConfig) -> LatentForm:
    """Return the form that the latents of an experiment must have."""
    from ig_core.data.latent_checks import LatentForm

    return LatentForm(data.codec, data.channels, data.side, data.flip, data.check_statistics)


def check_rows(data: DataConfig, listing: Listing, rows: LatentRows, first: int) -> None:
    """Check that rows from `first` on are what the experiment says."""
    from ig_core.data.latent_checks import check_rows

    with _source_named(data):
        check_rows(latent_form(data), listing, rows, first)


def check_values(data: DataConfig, sums: Any, given: Any, *, rows: int) -> None:  # noqa: ANN401
    """Check that sums over latents agree with their codec and their statistics."""
    from ig_core.data.latent_checks import check_values

    with _source_named(data):
        check_values(latent_form(data), sums, given, rows=rows)


def _source_named(data: DataConfig) -> AbstractContextManager[None]:
    return explained_settings(f"data.path {data.path}: ")
