"""What a recipe may say about its images."""

from __future__ import annotations

from typing import Annotated, TypeAlias

from pydantic import Field

from ticket_export.recipe.section import Fraction, Problems, Section

Channels: TypeAlias = tuple[float, ...]
Pixels: TypeAlias = Annotated[int, Field(ge=0)]

_SOURCES = ("digits", "arrays", "folder", "hub", "hub:<name>")
_HUB = "hub:"
# Readers of the package datasets, not names on the hub
_READERS = ("arrow", "imagefolder", "parquet", "webdataset")


class DataSection(Section):
    """Which images, how they are split and brought to one size, and how training images are varied.

    Attributes:
        source: `digits` (embedded), `arrays` (an .npz), `folder` (class folders of images), `hub:<name>` (a
            set on the Hugging Face hub) or `hub` (files that the package `datasets` reads: class folders,
            parquet, or what save_to_disk wrote).
        path: the .npz with train_x, train_y, test_x, test_y, or the folder.
        config: of a set that has several.
        revision: commit of a set on the hub; None is the newest, whose commit is then in the keys.
        train_split: the split, or the folder below `path`, that trains and validates.
        test_split: the one that tests.
        image_column: of a set that `datasets` reads; None is the only one that holds images.
        label_column: of such a set; None is the only one that holds classes.
        resize: pixels of the shorter side after scaling; 0 leaves images as they are, all of one size.
        crop: side of the square taken from the middle after that; 0 is `resize`.
        streamed: images are decoded by worker processes when they are needed, in three channels, and not held
            in memory.
        workers: processes that decode streamed images; None is one per core of the training. No key has it.
        mean: per channel, subtracted after the pixels are scaled to 0..1; empty means no normalisation.
        std: per channel, divided by after `mean` is subtracted; as many values as `mean`.
        holdout_fraction: share of the training images that validates; the test set picks nothing.
        train_limit: images that train, the same for every replicate; 0 is all that do not validate.
        random_resized_crop: smallest share of its area that a random part of a training image covers, which
            is scaled to `crop`; 0 is off, ImageNet's usual value is 0.08.
        rotation: training images are turned by a random angle of at most this many degrees; 0 is off.
        pad_crop: pixels of zero padding before a random crop to the original size; 0 is off.
        flip: mirror half of the training images left to right.
        cutout: side of a square set to the mean at a random place, in pixels; 0 is off.
    """

    source: str
    path: str | None = None
    config: str | None = None
    revision: str | None = None
    train_split: str = "train"
    test_split: str = "test"
    image_column: str | None = None
    label_column: str | None = None
    resize: Pixels = 0
    crop: Pixels = 0
    streamed: bool = False
    workers: Annotated[int, Field(ge=0)] | None = None
    mean: Channels = ()
    std: Channels = ()
    holdout_fraction: Fraction
    train_limit: Annotated[int, Field(ge=0)] = 0
    random_resized_crop: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    rotation: Annotated[float, Field(ge=0.0, le=180.0)] = 0.0
    pad_crop: Pixels = 0
    flip: bool = False
    cutout: Pixels = 0

    @property
    def is_on_hub(self) -> bool:
        """Return whether the images come from the hub by name."""
        return self.source.startswith(_HUB)

    def _problems(self) -> Problems:
        if not self.is_on_hub and self.source not in _SOURCES[:-1]:
            yield "source", f"{self.source!r} is not one of {', '.join(_SOURCES)}"
            return
        yield from self._place_problems()
        yield from self._unread_problems()
        yield from self._size_problems()
        if len(self.mean) != len(self.std):
            yield "std", f"holds {len(self.std)} values, but mean holds {len(self.mean)}"
        if any(value <= 0 for value in self.std):
            yield "std", f"should be above 0 in every channel, got {list(self.std)}"
        if self.train_split == self.test_split:
            yield "test_split", f"{self.test_split!r} is train_split too, and the test set picks nothing"

    def _place_problems(self) -> Problems:
        if self.source == "digits" and self.path is not None:
            yield "path", f"the digits are embedded and read no file, got {self.path!r}"
        if self.source in ("arrays", "folder", "hub") and not self.path:
            yield "path", f"is required with source {self.source} (--set data.path=...)"
        if not self.is_on_hub:
            return
        name = self.source.removeprefix(_HUB)
        if self.path is not None:
            yield (
                "path",
                f"has no effect with a set on the hub (write source hub for files), got {self.path!r}",
            )
        elif not name:
            yield "source", "names no set (write hub:<name>, or hub with path for files)"
        elif name.startswith(("/", ".", "~")):
            yield "source", f"{name!r} is no name on the hub (write source hub and path {name})"
        elif name in _READERS:
            yield "source", f"{name!r} is read from files (write source hub and path)"

    def _unread_problems(self) -> Problems:
        """Yield what is said and would not be listened to."""
        is_table = self.source == "hub" or self.is_on_hub
        only = {
            "config": is_table,
            "image_column": is_table,
            "label_column": is_table,
            "revision": self.is_on_hub,
            "train_split": is_table or self.source == "folder",
            "test_split": is_table or self.source == "folder",
            "resize": is_table or self.source == "folder",
            "streamed": is_table or self.source == "folder",
        }
        for field, has_effect in only.items():
            value = getattr(self, field)
            if not has_effect and value != type(self).model_fields[field].default:
                yield field, f"has no effect with source {self.source}, got {value!r}"
        if self.workers is not None and not self.streamed:
            yield "workers", f"has no effect unless streamed is true, got {self.workers}"

    def _size_problems(self) -> Problems:
        if self.crop and not self.resize:
            yield "crop", f"needs resize, got {self.crop} with resize 0"
        elif self.crop > self.resize:
            yield "crop", f"{self.crop} is above resize ({self.resize})"
        if self.random_resized_crop and not self.streamed:
            yield "random_resized_crop", "needs streamed true: images in memory are of one size already"
        elif self.random_resized_crop and not self.resize:
            yield "random_resized_crop", "needs resize: the size of the images that come out"
