"""Settings of the search job: one class for each of its actions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, CliPositionalArg

from visao_ray.core.errors import InputError
from visao_ray.core.settings import (
    CommandSettings,
    JobSettings,
    PluginOptions,
    StoreJobSettings,
    split_commas,
)
from visao_ray.store.settings import VersionOptions

Split = Literal["train", "val", "test"]


class SpaceOptions(BaseSettings):
    """Option that names the extractor of avg, max and both."""

    extractor: str | None = Field(
        None, description="extractor of avg, max and both, if the store has more than one"
    )


class SearchSettings(PluginOptions, JobSettings):
    """Search for similar images in a store, and measure how good the search is.

    ACTION --help shows the flags of an action.
    """

    job: ClassVar[str] = "search"
    example: ClassVar[str] = (
        "query --store s3://bucket/store --vectors avg --key s3://bucket/scans/a.png"
    )

    action: CliPositionalArg[Literal["build", "query", "evaluate"]] = Field(
        description="build: create or update the index of vectors; query: show the images that are "
        "most similar to others; evaluate: measure how many neighbours share the class of a query"
    )

    @classmethod
    def by_action(cls) -> dict[str, type[CommandSettings]]:
        """Return the class of each action."""
        return {"build": BuildSettings, "query": QuerySettings, "evaluate": RetrievalSettings}

    @classmethod
    def variant(cls, arguments: Sequence[str], values: Mapping[str, Any]) -> type[Self]:
        """Return the settings class of the action on a command line.

        Args:
            arguments: arguments of the command line.
            values: values of the settings file.

        Returns:
            The settings class of the action; without one, the class that explains the actions.

        Raises:
            InputError: there is no such action.
        """
        actions = cls.by_action()
        words = [one for one in arguments if one in actions]
        words += [one for one in arguments[:1] if not one.startswith("-")]
        action = words[0] if words else values.get("action")
        if action is None:
            return cls
        if action not in actions:
            raise InputError(f"ACTION {action}: choose one of {', '.join(actions)}")
        return actions[action]  # type: ignore[return-value]


class BuildSettings(SpaceOptions, StoreJobSettings, SearchSettings):
    """Create the search index of vectors, or bring it to what the store has now.

    extract and predict update the indexes of their store by themselves.
    """

    job: ClassVar[str] = "search"
    example: ClassVar[str] = "build --store s3://bucket/store --vectors avg"

    vectors: str = Field(
        description="vectors to index: avg, max, both, or a model with embeddings (or the start of "
        "its name)"
    )


class QuerySettings(SpaceOptions, StoreJobSettings, SearchSettings):
    """Show the images that are most similar to others: by key, or by files outside the store.

    Writes neighbours.csv and neighbours.html. The query itself is not among its neighbours.
    """

    job: ClassVar[str] = "search"
    example: ClassVar[str] = (
        "query --store s3://bucket/store --vectors avg --key s3://bucket/scans/a.png "
        "--where \"split = 'train' AND label = 'vazio'\""
    )
    again: ClassVar[str] = "The same command again searches what the index has then."
    writes: ClassVar[tuple[str, ...]] = ("neighbours.csv", "neighbours.html")

    vectors: str = Field(description="vectors to search in, as in build")
    key: list[str] = Field([], description="key of an image of the store; may be repeated")
    file: list[str] = Field(
        [], description="path or URI of an image that need not be in the store; may be repeated"
    )
    k: int = Field(20, ge=1, le=1000, description="number of neighbours")
    where: str | None = Field(
        None,
        description="SQL condition on key, label, group, split, chapter, batch, first_seen, width, "
        "height, mode or bytes, such as batch = '2026-11-24'",
    )
    other_groups: bool = Field(
        False, description="leave out images of the query's own group (patient or container)"
    )
    weights: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        ["imagenet"], description="--file: weights of the network of the vectors, as in extract"
    )
    model: str | None = Field(
        None, description="--file: the .keras file of the model, if --vectors names one"
    )

    @model_validator(mode="after")
    def _something_to_search(self) -> QuerySettings:
        if not self.key and not self.file:
            raise ValueError("--key is missing: an image of the store (or --file, another image)")
        return self


class RetrievalSettings(SpaceOptions, VersionOptions, SearchSettings):
    """Measure how many neighbours share the class of a query.

    The query and all images of its group are left out of the gallery. The first of --vectors is in
    the metrics of result.json; the others are compared with it on the same queries. Writes
    search.html and the table neighbours.
    """

    example: ClassVar[str] = (
        "evaluate --store s3://bucket/store --vectors avg,max,both --queries val --gallery train "
        "--out out/search"
    )
    writes: ClassVar[tuple[str, ...]] = ("search.html", "neighbours")

    store: str = Field(description="store with the vectors")
    vectors: Annotated[list[str], BeforeValidator(split_commas)] = Field(
        min_length=1,
        description="vectors to search in: avg, max, both, a model with embeddings (or the start "
        "of its name), pca128:avg and so on; may be repeated",
    )
    queries: Split = Field("val", description="split of the queries")
    gallery: Annotated[list[Split], BeforeValidator(split_commas)] = Field(
        ["train"], min_length=1, description="splits that are searched, such as train,val"
    )
    limit: int | None = Field(None, ge=1, description="use so many queries, drawn by --seed (all)")
    protocol: Literal["gallery", "study"] = Field(
        "gallery",
        description="study: as the 2019 study did, for comparison only: batches of 512, and the "
        "query counts as its own first neighbour",
    )
    replicates: int = Field(1000, ge=100, description="bootstrap replicates (whole groups)")

    @field_validator("vectors")
    @classmethod
    def _each_once(cls, names: list[str]) -> list[str]:
        if len(set(names)) < len(names):
            raise ValueError("the same vectors are given twice")
        return names
