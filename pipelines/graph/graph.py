"""Graph of an experiment: its artifacts, their dependencies and keys.

A node's key is a hash of its kind, its version, its slice of the configuration and the keys of
its inputs. Nothing about workers, devices, micro-batches or places of files enters
a key; the global batch size and the sizes of shards do.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ig_core.data.label_pools import beyond_balanced, random_pool
from pipelines.graph.node import INCEPTION, Node, key_part
from pipelines.store.keys import content_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from experiments import Experiment
    from ig_core.config import Guidance


@dataclass(frozen=True)
class Point:
    """Point of a report: a checkpoint evaluated under a guidance."""

    step: int
    guidance: Guidance
    """In canonical form, so that it is found by equality."""
    num_samples: int
    evaluate: Node
    images: tuple[Node, ...]


class Graph:
    """Nodes of an experiment."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        evaluation = experiment.evaluation
        self.data = self._data()
        self.extractor = self._extractor()
        self.reference = self._reference()
        self.checkpoints = tuple(map(self.checkpoint, experiment.train.checkpoint_steps))
        self.curve: Mapping[tuple[int, Guidance], Point] = {
            (step, guidance): self.point(step, guidance, evaluation.curve_samples)
            for step in experiment.train.checkpoint_steps
            for guidance in _in_order(experiment.baseline, experiment.guidance)
        }
        """FID over training: each checkpoint under the baseline and under the own guidance."""
        self.final: Mapping[Guidance, Point] = {
            guidance: self.point(experiment.train.last_step, guidance, evaluation.num_samples)
            for guidance in experiment.guidances
        }
        """The last checkpoint by guidance."""

    @property
    def baseline(self) -> Point:
        """The last checkpoint under the guidance that others are compared with."""
        return self.final[self.experiment.baseline]

    @property
    def headline(self) -> Point:
        """The last checkpoint under the experiment's own guidance."""
        return self.final[self.experiment.guidance.canonical()]

    def curve_of(self, guidance: Guidance) -> dict[int, Point]:
        """Return the points of the curve under a guidance, by step."""
        wanted = guidance.canonical()
        return {step: point for (step, each), point in self.curve.items() if each == wanted}

    def holdout(self, *guidances: Guidance) -> dict[Guidance, Point]:
        """Return the last checkpoint under the baseline and other guidances, on holdout noise.

        That noise had no part in choosing among guidances: a number on it may be quoted.
        """
        evaluation = self.experiment.evaluation
        return {
            guidance: self.point(
                self.experiment.train.last_step,
                guidance,
                evaluation.num_samples,
                noise_seed=evaluation.holdout_noise_seed,
            )
            for guidance in _in_order(self.experiment.baseline, *guidances)
        }

    def chosen_holdout(self, chosen: Guidance) -> dict[Guidance, Point]:
        """Return `holdout` of the guidance with the lowest FID; empty if there was no choice."""
        return self.holdout(chosen) if len(self.final) > 1 else {}

    @property
    def most_holdout_images(self) -> int:
        """Images of `chosen_holdout` at most, whichever guidance it will be."""
        return max(
            sum(
                int(node.config["stop"] - node.config["start"])
                for point in self.chosen_holdout(guidance).values()
                for node in point.images
            )
            for guidance in self.final
        )

    @property
    def needed(self) -> tuple[Node, ...]:
        """`targets`, and the holdout evaluations of every guidance that may be chosen."""
        holdout = self.holdout(*self.final).values()
        return tuple(dict.fromkeys((*self.targets, *(point.evaluate for point in holdout))))

    @property
    def targets(self) -> tuple[Node, ...]:
        """Nodes that the report shows; everything else is built on the way."""
        points = (*self.curve.values(), *self.final.values())
        # A published checkpoint is judged without the data that it was trained on.
        data = () if self.experiment.train.imported else (self.data,)
        shown = (*data, *(point.images[0] for point in self.final.values()))
        return tuple(dict.fromkeys((*shown, *(point.evaluate for point in points))))

    @property
    def run_key(self) -> str:
        """Identity of the experiment: a hash of everything but its name and resources."""
        experiment = self.experiment
        same = dataclasses.replace(
            experiment,
            ig_scales=experiment.scales,
            guidance=experiment.guidance.canonical(),
            sampler=experiment.sampler.canonical(),
            optim=experiment.optim.canonical(),
        )
        values = key_part(same)
        if experiment.train.imported:  # of a training that is not done here nothing counts
            del values["loss"], values["optim"]
            values["train"] = {"checkpoint_sha256": experiment.train.checkpoint_sha256}
            if experiment.data.source != "digits":
                values["data"] = {name: node.key for name, node in self._normalisation().items()}
                values["data"] |= {
                    "codec": experiment.data.codec,
                    "codec_sha256": experiment.data.codec_sha256,
                }
        return content_key(values)

    def checkpoint(self, step: int) -> Node:
        """Return the checkpoint after `step` steps; its hash is the same however long training is.

        A published checkpoint is identified by its file and the architecture that it is read as.
        """
        if self.experiment.train.imported:
            digest = self.experiment.train.checkpoint_sha256
            read = {"model": key_part(self.experiment.model), "file_sha256": digest}
            return Node("checkpoint", read, at_step=step)
        train = key_part(self.experiment.train)
        del train["steps"], train["checkpoint_every"]
        config = {
            "model": key_part(self.experiment.model),
            "loss": key_part(self.experiment.loss),
            "optim": key_part(self.experiment.optim.canonical()),
            "train": train,
        }
        return Node("checkpoint", config, {"data": self.data}, at_step=step)

    def resume(self, step: int) -> Node:
        """Return the state after `step` steps that only the training itself goes on from.

        No artifact is made from it, so that it may be deleted at any time.
        """
        return dataclasses.replace(self.checkpoint(step), kind="resume")

    def point(
        self, step: int, guidance: Guidance, num_samples: int, noise_seed: int | None = None
    ) -> Point:
        """Return the point of a checkpoint under a guidance: its images and their evaluation.

        Args:
            step: Step of the checkpoint.
            guidance: Guidance of the samples.
            num_samples: Number of images.
            noise_seed: Seed of the sampling noise; None for that of the evaluation.
        """
        evaluation, guidance = self.experiment.evaluation, guidance.canonical()
        seed = evaluation.seed if noise_seed is None else noise_seed
        sampling = {
            "guidance": key_part(guidance),
            "sampler": key_part(self.experiment.sampler.canonical()),
            "seed": seed,
        }
        checkpoint, data = {"checkpoint": self.checkpoint(step)}, self.experiment.data
        if data.codec != "none":
            sampling["decoder"] = {"codec": data.codec, "sha256": data.codec_sha256}
            checkpoint |= self._normalisation()
        images = [
            Node("images", {**sampling, "labels": "balanced", **shard}, checkpoint)
            for shard in _shards(num_samples, evaluation.shard_size)
        ]
        config: dict[str, Any] = {"num_samples": num_samples}
        if evaluation.labels == "random":
            classes = self.experiment.model.num_classes
            config |= {"labels": "random", "seed": seed, "num_classes": classes}
            beyond = len(beyond_balanced(random_pool(seed, num_samples, classes)))
            sampling |= {"labels": "random", "num_samples": num_samples}
            images += [
                Node("images", {**sampling, **shard}, checkpoint)
                for shard in _shards(beyond, evaluation.shard_size)
            ]
        sample = Node("sample", config, _numbered(images))
        return Point(step, guidance, num_samples, self.evaluation(images, sample), tuple(images))

    def evaluation(self, images: Iterable[Node], sample: Node) -> Node:
        """Return the evaluation of images that lie in shards."""
        evaluation = self.experiment.evaluation
        layers = {"spatial": True} if evaluation.extractor == INCEPTION else {}
        features = [
            Node("features", layers, {"images": i, "extractor": self.extractor}) for i in images
        ]
        metrics = ("groups", "kid_subsets", "kid_subset_size", "isc_splits")
        return Node(
            "evaluate",
            {name: getattr(evaluation, name) for name in metrics},
            {"reference": self.reference, "sample": sample, **_numbered(features)},
        )

    def evaluation_of(self, images: str, *, in_order: bool) -> Node:
        """Return the evaluation of images that another program made.

        Args:
            images: Digest of the images; as many are taken as are evaluated.
            in_order: Whether any run of them is a fair sample of all; else they are shuffled.
        """
        count = self.experiment.evaluation.num_samples
        shards = _shards(count, self.experiment.evaluation.shard_size)
        nodes = [Node("images", {"sha256": images, **shard}) for shard in shards]
        sample = Node("sample", {"num_samples": count}, _numbered(nodes))
        evaluate = self.evaluation(nodes, sample)
        if in_order:
            return evaluate
        return dataclasses.replace(evaluate, config={**evaluate.config, "shuffle_seed": 0})

    def _normalisation(self) -> dict[str, Node]:
        """Return the input with the normalisation of latents: the data that were learnt.

        Of a published checkpoint no data are read: SD-VAE's factor is known, and the statistics of
        VA-VAE's latents lie beside them.
        """
        data = self.experiment.data
        if data.source == "latents" and self.experiment.train.imported:
            return {} if data.codec == "sd-vae" else {"listing": self.data.inputs["listing"]}
        return {"data": self.data}

    def _data(self) -> Node:
        """Return the training data: digits, or shards of latents that are bound together.

        Each shard is an artifact of its own, and so encoding is spread, shared and continued like
        sampling. Latents that another program made become the same shards: one kind of file is
        read in training, wherever the store is.
        """
        data, config = self.experiment.data, key_part(self.experiment.data)
        if data.source == "digits":
            return Node("data", config)
        listing = Node("listing", {"content": data.content})
        made_by = ("source", "codec", "encoder_sha256", "channels", "side", "resolution", "flip")
        same = {name: getattr(data, name) for name in made_by}
        del config["codec_sha256"]  # latents are what they are, whatever decodes their samples
        parts = [
            Node("latents", {**same, **shard}, {"listing": listing})
            for shard in _shards(data.count or 0, data.shard_size)
        ]
        return Node("data", config, {"listing": listing, **_numbered(parts)})

    def _reference(self) -> Node:
        """Return the reference: of the digits, of images that are cropped, or of a file."""
        experiment, evaluation = self.experiment, self.experiment.evaluation
        given = evaluation.reference is not None
        if not given and experiment.data.source == "digits":
            return Node("reference", {}, {"data": self.data, "extractor": self.extractor})
        config: dict[str, Any] = {"sha256": evaluation.reference_sha256}
        learnt = not given and experiment.data.source == "images"
        if evaluation.reference_content is not None or learnt:
            config = {
                "images": evaluation.reference_content,
                "resolution": experiment.reference_side,
            }
        return Node("reference", config, {"extractor": self.extractor})

    def _extractor(self) -> Node:
        evaluation = self.experiment.evaluation
        config: dict[str, Any] = {"name": evaluation.extractor}
        if evaluation.extractor == INCEPTION or evaluation.extractor_weights is not None:
            # The weights' content is their identity, not where they lie.
            return Node("extractor", config | {"weights_sha256": evaluation.weights_sha256})
        config |= {"epochs": evaluation.extractor_epochs, "seed": evaluation.extractor_seed}
        return Node("extractor", config, {"data": self.data})


def _in_order(*guidances: Guidance) -> list[Guidance]:
    """Return canonical guidances, each once, sorted by their fields: first by ig_scale."""
    return sorted({guidance.canonical() for guidance in guidances}, key=dataclasses.astuple)


def _shards(count: int, size: int) -> list[dict[str, int]]:
    return [{"start": start, "stop": min(start + size, count)} for start in range(0, count, size)]


def _numbered(nodes: Iterable[Node]) -> dict[str, Node]:
    return {f"part-{number:05d}": node for number, node in enumerate(nodes)}
