"""``twistd artifactd``."""

from twisted.application.service import ServiceMaker

artifactd = ServiceMaker(
    "artifactd",
    "artifactd.daemon.tap",
    "A Docker/OCI registry.",
    "artifactd",
)
