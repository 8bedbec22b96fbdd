"""
Manifests and indexes: image-spec, manifest.md, image-index.md and descriptor.md; and the Docker
schema 2 documents they come from.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Annotated, Literal, TypeVar

import msgspec
from attrs import field, frozen

from artifactd.oci.errors import DigestInvalid, ManifestInvalid
from artifactd.oci.foreign import (
    NESTING,
    VALUES,
    decode_foreign,
    each_object,
    field_of,
    read_loosely,
    spelt,
)
from artifactd.oci.names import Digest

# The fields that make an object with a digest a descriptor.
_DESCRIBING = frozenset({"mediaType", "size"})


@frozen
class ManifestBounds:
    """
    The bounds of a manifest.

    :ivar nesting: how deep arrays and objects may be nested.
    :ivar entries: the number of descriptors, but that of the subject; 0: any number.
    :ivar annotations: the number of annotations of the document, and of each of its descriptors; 0:
        any number.
    """

    nesting: int = NESTING
    entries: int = 10_000
    annotations: int = 1000

    @property
    def values(self) -> int:
        """The number of values in the whole document; 0, if any number of entries is accepted."""
        return self.entries and max(VALUES, self.entries * _ENTRY_VALUES)

    def entries_problem(self, entries: int) -> str | None:
        """Return the reason to refuse so many entries; ``None``: there is none."""
        if self.entries and entries > self.entries:
            return f"it has {entries} entries: at most {self.entries} are accepted here"
        return None

    def annotations_problem(self, annotations: Iterable[Mapping[str, str] | None]) -> str | None:
        """Return the reason to refuse one of ``annotations``; ``None``: all are accepted."""
        most = max((len(each) for each in annotations if each), default=0)
        if self.annotations and most > self.annotations:
            return f"it has {most} annotations: at most {self.annotations} are accepted here"
        return None


# An entry of an index with a platform and ten annotations.
_ENTRY_VALUES = 20

BOUNDS = ManifestBounds()
"""The default bounds."""


OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"

IMAGE_TYPES = frozenset({OCI_MANIFEST, DOCKER_MANIFEST})
INDEX_TYPES = frozenset({OCI_INDEX, DOCKER_LIST})
MANIFEST_TYPES = IMAGE_TYPES | INDEX_TYPES

Sparse = Literal["no", "indexes", "images"]
"""
Which manifests may refer to content that their image lacks: none, indexes, or image manifests too.
"""


def may_lack(sparse: Sparse, media_type: str) -> bool:
    """Whether manifests of ``media_type`` may refer to content that their image lacks."""
    return sparse == "images" or (sparse == "indexes" and media_type in INDEX_TYPES)


# Layers that a registry need not hold: image-spec, media-types.md, and Docker's foreign layers.
_NON_DISTRIBUTABLE = (
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.docker.image.rootfs.foreign.diff.tar",
)


@frozen
class Descriptor:
    """
    The description of a blob or manifest inside another document (image-spec, descriptor.md).

    :ivar size: in bytes.
    :ivar optional: whether the content may be absent from the registry: it is non-distributable, or
        has ``urls`` to be fetched from.
    """

    media_type: str
    digest: Digest
    size: int
    optional: bool = False


@frozen
class Manifest:
    """
    A manifest as pushed: its exact bytes and what was read from them.

    :ivar content: the bytes as received; never re-encoded.
    :ivar digest: the digest of ``content``.
    :ivar media_type: as pushed, without parameters.
    :ivar artifact_type: ``artifactType``, or for an image manifest without one the config's media
        type ("Listing Referrers"); ``None`` if neither is there.
    :ivar blobs: the config and the layers.
    :ivar children: the manifests an index lists.
    :ivar others: the digests of all other descriptors in the document, each once, but that of the
        subject.  They are held as far as the image has them, and nothing is checked about them.
    """

    content: bytes = field(repr=False)
    digest: Digest
    media_type: str
    artifact_type: str | None = None
    subject: Digest | None = None
    annotations: Mapping[str, str] = field(factory=dict)
    blobs: tuple[Descriptor, ...] = ()
    children: tuple[Descriptor, ...] = ()
    others: tuple[Digest, ...] = ()

    @property
    def total_size(self) -> int:
        """Bytes of the manifest and of the blobs and manifests that it lists, each once."""
        listed = {each.digest: each.size for each in (*self.blobs, *self.children)}
        return len(self.content) + sum(listed.values())


# If it is signed, its digest is not that of its bytes; few clients of today take it.
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1+json"
_SCHEMA_1_TYPES = frozenset(
    {_SCHEMA_1, "application/vnd.docker.distribution.manifest.v1+prettyjws"}
)

# RFC 6838, 4.2: it becomes a header of every answer.
_OTHER_TYPE = re.compile(
    r"application/[a-z0-9][a-z0-9!#$&^_.+-]{0,121}\+json", re.ASCII | re.IGNORECASE
)

_Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]


# RFC 6838, 4.2: type and subtype have at most 127 characters each.
MEDIA_TYPE_LENGTH = 255
"""The most characters of a media type, and so of an artifact type."""

_MediaType = Annotated[str, msgspec.Meta(max_length=MEDIA_TYPE_LENGTH)]


class _Descriptor(msgspec.Struct, rename="camel"):
    media_type: Annotated[str, msgspec.Meta(min_length=1, max_length=MEDIA_TYPE_LENGTH)]
    digest: str
    size: _Size
    urls: list[str] | None = None
    annotations: dict[str, str] | None = None


class _Document(msgspec.Struct, rename="camel"):
    """The fields of all types of manifests; the type decides which are required."""

    schema_version: int | None = None
    media_type: _MediaType | None = None
    artifact_type: _MediaType | None = None
    config: _Descriptor | None = None
    layers: list[_Descriptor] | None = None
    manifests: list[_Descriptor] | None = None
    subject: _Descriptor | None = None
    annotations: dict[str, str] | None = None


class _OtherDocument(msgspec.Struct, rename="camel"):
    """A document of an unknown type, which is accepted if the settings allow it."""

    media_type: _MediaType | None = None
    artifact_type: _MediaType | None = None
    subject: _Descriptor | None = None
    annotations: dict[str, str] | None = None


_T = TypeVar("_T", _Document, _OtherDocument)

_document = msgspec.json.Decoder(_Document)
_other = msgspec.json.Decoder(_OtherDocument)


def is_manifest_type(media_type: str, *, other_types: bool) -> bool:
    """
    Whether manifests may have a media type, given without parameters; those of the specs are in
    lower case.

    :param other_types: the same as for :func:`parse_manifest`.
    """
    if media_type in MANIFEST_TYPES:
        return True
    return (
        other_types and media_type.lower() != _SCHEMA_1 and bool(_OTHER_TYPE.fullmatch(media_type))
    )


def parse_manifest(
    content: bytes,
    content_type: str | None,
    digest: Digest | None = None,
    *,
    other_types: bool,
    bounds: ManifestBounds = BOUNDS,
) -> Manifest:
    """
    Read and check a pushed manifest.

    :param content_type: the request's ``Content-Type``; parameters are ignored.  Without one the
        document's own ``mediaType`` counts.
    :param digest: the digest it was pushed under, or ``None`` for a push by tag (then sha256).
    :param other_types: keep any other ``application/*+json`` too, its structure unchecked; all that
        it describes is among the manifest's ``others``.
    :param bounds: the bounds of the document.
    :raises ManifestInvalid: if type or structure are wrong, or it exceeds ``bounds``, or two
        readers could read it differently.
    :raises DigestInvalid: if ``digest`` is not that of ``content``.
    """
    actual = _digest_of(content, digest)
    declared = _declared(content_type) or None
    if declared is not None and declared not in MANIFEST_TYPES:
        return _parse_other(content, declared, actual, bounds, allowed=other_types)
    document, described = _decode(_document, content, bounds)
    media_type = _agreed_type(declared, document.media_type)
    if media_type not in MANIFEST_TYPES:
        return _parse_other(content, media_type, actual, bounds, allowed=other_types)
    if document.schema_version != 2:
        raise ManifestInvalid("schemaVersion must be 2", {"schemaVersion": document.schema_version})
    artifact_type = document.artifact_type or None
    if media_type in IMAGE_TYPES:
        blobs = _image_blobs(document)
        children: tuple[Descriptor, ...] = ()
        if artifact_type is None and document.config is not None:
            artifact_type = document.config.media_type
    else:
        # Some builders list layers and a config in an index: blobs, by their media type.
        listed = _index_children(document)
        blobs = tuple(d for d in listed if d.media_type not in MANIFEST_TYPES)
        children = tuple(d for d in listed if d.media_type in MANIFEST_TYPES)
    subject = _descriptor("subject", document.subject).digest if document.subject else None
    return Manifest(
        content=content,
        digest=actual,
        media_type=media_type,
        artifact_type=artifact_type,
        subject=subject,
        annotations=document.annotations or {},
        blobs=blobs,
        children=children,
        others=_others(described, subject, (*blobs, *children)),
    )


def read_manifest(
    content: bytes,
    content_type: str | None,
    digest: Digest | None = None,
    *,
    bounds: ManifestBounds = BOUNDS,
) -> Manifest:
    """
    Read a manifest that an upstream sent, or one that is here.

    Clients of the upstream have to do with what it has, so nothing is demanded of its fields.
    Bounded JSON is, so that what it describes can be held: descriptors with a digest and a size.
    Of what :func:`parse_manifest` accepts, it reads the same.

    :param content_type: as the upstream sent it.  A manifest's type in the document itself counts
        more, since the digest covers it; without either, the fields tell the type.
    :param digest: the digest it was asked for under, or ``None``.
    :param bounds: the bounds of the document.
    :raises ManifestInvalid: if it is no JSON object or exceeds ``bounds``, or its type is unknown.
    :raises DigestInvalid: if ``digest`` is not that of ``content``.
    """
    actual = _digest_of(content, digest)
    described: list[Digest] = []

    def look(fields: Mapping[str, object]) -> None:
        if any(field_of(fields, name) is not None for name in _DESCRIBING):
            described.extend(_loose_digest(field_of(fields, "digest")))

    try:
        document = read_loosely(content, look, nesting=bounds.nesting, values=bounds.values)
    except (RecursionError, ValueError) as error:
        raise ManifestInvalid(f"not a manifest that can be read: {error}") from None
    if not isinstance(document, dict):
        raise ManifestInvalid("not a manifest that can be read: it is no JSON object")
    media_type = _type_sent(document, _declared(content_type))
    config, subject = _loose_object(document, "config"), _loose_object(document, "subject")
    layers, children = _loose_list(document, "layers"), _loose_list(document, "manifests")
    annotations = _loose_annotations(document)
    about = next(iter(_loose_digest(field_of(subject, "digest"))), None)
    entries = len(described) - (about in described)
    problem = bounds.entries_problem(max(entries, len(layers) + len(children)))
    problem = problem or bounds.annotations_problem(
        _loose_annotations(each) for each in (document, config, subject, *layers, *children)
    )
    if problem is not None:
        raise ManifestInvalid(f"not a manifest that can be read: {problem}")
    artifact_type = _text(document, "artifactType")
    listed: list[Descriptor] = []
    if media_type in IMAGE_TYPES:
        artifact_type = artifact_type or _text(config, "mediaType")
        listed = _loose_descriptors([config, *layers])
    elif media_type in INDEX_TYPES:
        # Without a media type, an entry may be a manifest or a blob.
        listed = [each for each in _loose_descriptors(children) if each.media_type]
    elif media_type.lower() in _SCHEMA_1_TYPES:
        for layer in _loose_list(document, "fsLayers"):
            described.extend(_loose_digest(field_of(layer, "blobSum")))
    is_child = media_type in INDEX_TYPES
    return Manifest(
        content=content,
        digest=actual,
        media_type=media_type,
        artifact_type=artifact_type or None,
        subject=about,
        annotations=annotations,
        blobs=tuple(d for d in listed if not (is_child and d.media_type in MANIFEST_TYPES)),
        children=tuple(d for d in listed if is_child and d.media_type in MANIFEST_TYPES),
        others=_others(described, about, listed),
    )


# The most characters of a URL that is asked for.
_URL_LENGTH = 4096


@frozen
class ForeignLayer:
    """
    Where a blob is that the registry need not have.

    :ivar size: in bytes.
    :ivar urls: http and https URLs, at least one.
    """

    size: int
    urls: tuple[str, ...]


def foreign_layer(
    content: bytes, digest: Digest, *, bounds: ManifestBounds = BOUNDS
) -> ForeignLayer | None:
    """
    What a manifest that is here says about where the blob ``digest`` is (descriptor.md, ``urls``).

    Takes as long as parsing the manifest.

    :returns: ``None`` if it names no URL, or is no JSON.
    """
    found: list[ForeignLayer] = []

    def look(fields: Mapping[str, object]) -> None:
        if field_of(fields, "digest") == str(digest):
            urls, size = field_of(fields, "urls"), _loose_size(fields)
            usable = [url for url in urls if _is_url(url)] if isinstance(urls, list) else []
            if usable and size is not None:
                found.append(ForeignLayer(size, tuple(usable)))

    with suppress(RecursionError, ValueError):
        read_loosely(content, look, nesting=bounds.nesting, values=bounds.values)
    return found[0] if found else None


def _is_url(value: object) -> bool:
    if not isinstance(value, str) or len(value) > _URL_LENGTH:
        return False
    return value.lower().startswith(("http://", "https://"))


# Fields of a manifest; an error page that is called a manifest has none of them.
_OWN = ("schemaVersion", "mediaType", "config", "layers", "manifests")


def _type_sent(document: Mapping[str, object], declared: str) -> str:
    """
    The media type of an upstream's document.

    :raises ManifestInvalid: if nothing tells it.
    """
    own = _known_case(_text(document, "mediaType"))
    if own.lower() == declared.lower():
        own = declared
    is_own = any(field_of(document, name) is not None for name in _OWN)
    if is_own and field_of(document, "schemaVersion") != 1:
        for media_type in (own, declared):
            if media_type in MANIFEST_TYPES:
                return media_type
    for media_type in (own, declared):
        is_other = media_type not in MANIFEST_TYPES and bool(_OTHER_TYPE.fullmatch(media_type))
        if is_other or media_type.lower() in _SCHEMA_1_TYPES:
            return media_type
    # As containers/image guesses it.
    config, children = _loose_object(document, "config"), _loose_list(document, "manifests")
    if any(_loose_digest(field_of(each, "digest")) for each in (config, *children)):
        first = _text(children[0] if children else config, "mediaType")
        types = (DOCKER_LIST, OCI_INDEX) if children else (DOCKER_MANIFEST, OCI_MANIFEST)
        return types[not first.startswith("application/vnd.docker.")]
    raise ManifestInvalid("media type not accepted: neither its bytes nor their sender tell one")


def _text(fields: Mapping[str, object], name: str) -> str:
    """
    A media type as far as there is one.

    :raises ManifestInvalid: if it is longer than any is: it would be kept in memory and listed.
    """
    value = field_of(fields, name)
    text = value if isinstance(value, str) else ""
    if len(text) > MEDIA_TYPE_LENGTH:
        raise ManifestInvalid(f"{name} is longer than {MEDIA_TYPE_LENGTH} characters")
    return _clean(text)


def _clean(text: str) -> str:
    """Surrogates without their other half have no UTF-8."""
    return text.encode(errors="replace").decode()


def _loose_digest(value: object) -> list[Digest]:
    """The digest in a list of one, or an empty list if it is none."""
    with suppress(DigestInvalid):
        return [Digest.parse(value)] if isinstance(value, str) else []
    return []


def _loose_object(fields: Mapping[str, object], name: str) -> Mapping[str, object]:
    value = field_of(fields, name)
    return value if isinstance(value, dict) else {}


def _loose_list(fields: Mapping[str, object], name: str) -> list[Mapping[str, object]]:
    value = field_of(fields, name)
    return [each for each in value if isinstance(each, dict)] if isinstance(value, list) else []


def _loose_annotations(fields: Mapping[str, object]) -> dict[str, str]:
    return {
        _clean(key): _clean(value)
        for key, value in _loose_object(fields, "annotations").items()
        if isinstance(value, str)
    }


def _loose_size(fields: Mapping[str, object]) -> int | None:
    size = field_of(fields, "size")
    if not isinstance(size, int) or isinstance(size, bool):
        return None
    return size if 0 <= size < 2**63 else None


def _loose_descriptors(entries: Iterable[Mapping[str, object]]) -> list[Descriptor]:
    """Those of ``entries`` that have a digest and a size."""
    found = []
    for entry in entries:
        size = _loose_size(entry)
        if size is None:
            continue
        media_type, has_urls = _text(entry, "mediaType"), bool(field_of(entry, "urls"))
        for digest in _loose_digest(field_of(entry, "digest")):
            found.append(_described(media_type, digest, size, has_urls=has_urls))
    return found


def _digest_of(content: bytes, digest: Digest | None) -> Digest:
    """The digest of ``content``.  :raises DigestInvalid: if it is not ``digest``."""
    actual = Digest.of(content, digest.algorithm) if digest else Digest.of(content)
    if digest is not None and digest != actual:
        raise DigestInvalid(
            "the manifest's bytes do not have the digest they were pushed under",
            {"digest": str(digest), "actual": str(actual)},
        )
    return actual


def _declared(content_type: str | None) -> str:
    """The media type of a ``Content-Type``, without parameters; empty without one."""
    return _known_case((content_type or "").split(";", 1)[0].strip())


def _parse_other(
    content: bytes, media_type: str, digest: Digest, bounds: ManifestBounds, *, allowed: bool
) -> Manifest:
    if not is_manifest_type(media_type, other_types=allowed):
        raise ManifestInvalid(
            "media type not accepted: push an OCI manifest or index, or a Docker schema 2 manifest"
            " or list; for others an administrator sets other_media_types on the repository",
            {"mediaType": media_type[:200]},
        )
    document, described = _decode(_other, content, bounds)
    _agreed_type(media_type, document.media_type)
    subject = _descriptor("subject", document.subject).digest if document.subject else None
    return Manifest(
        content=content,
        digest=digest,
        media_type=media_type,
        artifact_type=document.artifact_type or None,
        subject=subject,
        annotations=document.annotations or {},
        others=_others(described, subject, ()),
    )


def _others(
    described: list[Digest], subject: Digest | None, listed: Iterable[Descriptor]
) -> tuple[Digest, ...]:
    """Those of ``described`` that are not ``listed``, without the subject's own descriptor."""
    if subject in described:
        described.remove(subject)  # once: another field may describe it as well
    known = {descriptor.digest for descriptor in listed}
    return tuple(digest for digest in dict.fromkeys(described) if digest not in known)


def _decode(
    decoder: msgspec.json.Decoder[_T], content: bytes, bounds: ManifestBounds
) -> tuple[_T, list[Digest]]:
    """Decode a document.  Returns it with the digests in all its descriptors."""
    described: list[Digest] = []
    outer: Mapping[str, object] = {}

    def look(fields: Mapping[str, object]) -> None:
        nonlocal outer
        outer = fields  # the document's own come last
        digest = fields.get("digest")
        if isinstance(digest, str) and not _DESCRIBING.isdisjoint(fields):
            with suppress(DigestInvalid):
                described.append(Digest.parse(digest))

    try:
        document = decode_foreign(decoder, content, nesting=bounds.nesting, values=bounds.values)
        each_object(content, look)
    except (RecursionError, ValueError) as error:
        raise ManifestInvalid(f"not a manifest that is accepted: {error}") from None
    problem = _excess(document, len(described), bounds) or _misspelt(document, outer)
    if problem is not None:
        raise ManifestInvalid(f"not a manifest that is accepted: {problem}")
    return document, described


def _excess(
    document: _Document | _OtherDocument, described: int, bounds: ManifestBounds
) -> str | None:
    """
    The bound that ``document`` exceeds; ``None``: none.

    :param described: the number of descriptors in it.
    """
    entries: list[_Descriptor] = []
    if isinstance(document, _Document):
        entries = [*(document.layers or ()), *(document.manifests or ())]
        entries += [document.config] if document.config is not None else []
    given = [document.annotations, *(entry.annotations for entry in entries)]
    if document.subject is not None:
        given.append(document.subject.annotations)
        described -= 1
    return bounds.entries_problem(max(len(entries), described)) or bounds.annotations_problem(given)


def _misspelt(document: _Document | _OtherDocument, fields: Mapping[str, object]) -> str | None:
    """
    The reason to refuse a field that is spelt in another case; ``None``: there is none.

    Most clients would read it, and artifactd would take it for absent.

    :param fields: those of the document, also under their names in the spec.
    """
    for name in fields:
        meant = spelt(name)
        if meant != name and meant in document.__struct_encode_fields__:
            return f"{meant!r} is spelt in another case"
    return None


def _known_case(media_type: str) -> str:
    """Return ``media_type`` as it is, but the types of the specs in lower case."""
    lower = media_type.lower()
    return lower if lower in MANIFEST_TYPES else media_type


def _agreed_type(declared: str | None, embedded: str | None) -> str:
    """The media type: ``Content-Type`` MUST match ``mediaType`` ("Pushing Manifests")."""
    if declared and embedded and declared.lower() != embedded.lower():  # RFC 6838, 4.2
        raise ManifestInvalid(
            "the manifest's mediaType contradicts the request's Content-Type",
            {"mediaType": embedded[:200], "Content-Type": declared[:200]},
        )
    media_type = declared or _known_case(embedded or "")
    if not media_type:
        raise ManifestInvalid("no media type: send a Content-Type header")
    return media_type


def _descriptor(where: str, wire: _Descriptor) -> Descriptor:
    try:
        digest = Digest.parse(wire.digest)
    except DigestInvalid as error:
        raise ManifestInvalid(f"{where}: {error.message}", error.detail) from None
    return _described(wire.media_type, digest, wire.size, has_urls=bool(wire.urls))


def _described(media_type: str, digest: Digest, size: int, *, has_urls: bool) -> Descriptor:
    optional = has_urls or media_type.lower().startswith(_NON_DISTRIBUTABLE)
    return Descriptor(_known_case(media_type), digest, size, optional)


def _image_blobs(document: _Document) -> tuple[Descriptor, ...]:
    if document.manifests:
        # One document readable as two kinds is a known way to hide content from a scanner.
        raise ManifestInvalid("an image manifest must not have a manifests field")
    if document.config is None:
        raise ManifestInvalid("an image manifest needs a config")
    # Go writes a list of none as null, or not at all.
    layers = (_descriptor(f"layers[{i}]", layer) for i, layer in enumerate(document.layers or ()))
    return (_descriptor("config", document.config), *layers)


def _index_children(document: _Document) -> tuple[Descriptor, ...]:
    if document.config is not None or document.layers:
        raise ManifestInvalid("an index must not have a config or layers")
    children = enumerate(document.manifests or ())
    return tuple(_descriptor(f"manifests[{i}]", child) for i, child in children)
