"""The ``ca_file`` settings, checked before anything is opened."""

from __future__ import annotations

from artifactd.kit.start import StartError
from artifactd.settings.remote import RemoteSettings
from artifactd.settings.settings import Settings
from artifactd.settings.toml import key
from artifactd.upstream.http.tls import Trust


def check_ca_files(settings: Settings) -> None:
    """:raises StartError: naming the first ``ca_file`` that can't be used."""
    named = {f"webhook.{key(name)}": each.ca_file for name, each in settings.webhook.items()}
    for name, each in settings.repository.items():
        if isinstance(each, RemoteSettings):
            named[f"repository.{key(name)}"] = each.ca_file
    for table, path in named.items():
        try:
            Trust.load(path)
        except StartError as error:
            raise StartError(f"{table}.ca_file: {error}") from None
