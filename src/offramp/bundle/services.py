"""Stages that are services, in a bundle: their settings, and whom they would call.

A bundle is data of others, and its settings name hosts that inputs are sent to, and environment
variables whose content goes with them. So nobody is called whom whoever loads it has not allowed.

Layer: bundle.  Source: docs/adr/0049.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import final

from torch import nn

from offramp._core.addresses import checked_url
from offramp._core.errors import InputError, UnsupportedError
from offramp.adapters.http_settings import HttpSettings
from offramp.adapters.openai_settings import OpenAISettings
from offramp.stages import Stage, Transform

AllowNetwork = bool | str | Collection[str]


@final
@dataclass(frozen=True, kw_only=True)
class OpenAIEntry:
    """A stage that asks a chat-completions endpoint."""

    name: str
    openai: OpenAISettings


@final
@dataclass(frozen=True, kw_only=True)
class HttpEntry:
    """A stage that another server runs."""

    name: str
    transform: Transform | None
    http: HttpSettings


ServiceEntry = OpenAIEntry | HttpEntry


def is_service(stage: Stage) -> bool:
    """Whether a stage is a service, which a bundle can hold without weights."""
    return isinstance(getattr(stage.module, "settings", None), OpenAISettings | HttpSettings)


def service_entry(stage: Stage, transform: nn.Module | None) -> ServiceEntry:
    """What stands in a manifest of a service; no key is in it.

    Args:
        stage: For which `is_service` holds.
        transform: Of the stage, where a bundle can hold it.

    Raises:
        InputError: If it is none, or texts have a transform.
    """
    settings = getattr(stage.module, "settings", None)
    if isinstance(settings, HttpSettings):
        return HttpEntry(name=stage.name, transform=transform, http=settings)
    if not isinstance(settings, OpenAISettings) or transform is not None:
        raise InputError(f"Stage {stage.name!r} is no service that a bundle can hold.")
    return OpenAIEntry(name=stage.name, openai=settings)


def allowed_hosts(allow_network: AllowNetwork) -> frozenset[str] | None:
    """The hosts that may be called, in small letters; None where all may be.

    Raises:
        InputError: If it is neither a truth value, a host, nor several hosts.

    >>> sorted(allowed_hosts("api.example.com")), allowed_hosts(True), sorted(allowed_hosts(False))
    (['api.example.com'], None, [])
    """
    if isinstance(allow_network, bool):
        return None if allow_network else frozenset()
    hosts = [allow_network] if isinstance(allow_network, str) else allow_network
    if not isinstance(hosts, Collection) or not all(isinstance(host, str) for host in hosts):
        raise InputError(
            "allow_network must be True, False, or the hosts that may be called, such as "
            f"['api.example.com'], got {allow_network!r}."
        )
    return frozenset(host.lower() for host in hosts)


def service_stage(entry: ServiceEntry, allow_network: AllowNetwork) -> Stage:
    """The stage of an entry; nobody is called.

    Args:
        entry: Of a manifest.
        allow_network: As for `load`.

    Raises:
        UnsupportedError: If its host is not allowed.
        InputError: If `allow_network` is none.
        MissingExtraError: If httpx or tenacity is not installed.
    """
    settings = entry.openai if isinstance(entry, OpenAIEntry) else entry.http
    url, host = checked_url(settings.url, settings.key_env)
    hosts = allowed_hosts(allow_network)
    if hosts is not None and host.lower() not in hosts:
        key = "no key" if settings.key_env is None else f"the key in {settings.key_env}"
        raise UnsupportedError(
            f"Stage {entry.name!r} of the bundle would send its inputs to {url}, with {key}. If "
            f"you trust it, say so: load(..., allow_network=[{host!r}]), or --allow-network {host}."
        )
    # Here, so that who loads networks needs nothing of what calls services.
    if isinstance(entry, OpenAIEntry):
        from offramp.adapters.openai import openai_stage

        return openai_stage(entry.openai).named(entry.name)
    from offramp.adapters.http import http_stage

    return http_stage(entry.http, transform=entry.transform).named(entry.name)
