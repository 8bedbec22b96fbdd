"""Package metadata; the settings of the development tools are in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

_INIT = Path(__file__).with_name("artifactd") / "__init__.py"
_TEST = [
    "hypothesis>=6.100",
    # JSON Schema, by Julian Berman: what Python projects validate JSON with; oras needs it, too.
    "jsonschema>=4.20,<5",
    "oras>=0.2.30",
    # Drives a browser, by the Selenium project; and axe-core for it, which Deque Systems keeps.
    "selenium>=4.20,<5",
    "selenium-axe-python>=2.2,<3",
]

setup(
    name="artifactd",
    version=re.findall(r'__version__ = "(.+)"', _INIT.read_text())[0],
    description="A Docker/OCI registry daemon on Twisted, run by twistd",
    long_description="A genuine OCI registry: Docker, podman, skopeo and oras push and pull.",
    author="The artifactd authors",
    license="MIT",
    license_files=["LICENSE"],
    classifiers=[
        "Framework :: Twisted",
        "Intended Audience :: System Administrators",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Programming Language :: Python :: 3.14",
        "Typing :: Typed",
    ],
    package_dir={"": "."},  # makes an editable install one path, which finds the plugin too
    python_requires=">=3.11",
    packages=find_packages(include=["artifactd", "artifactd.*"]),
    # Added to Twisted's own package: twisted/plugins has no __init__.py, here or there.
    py_modules=["twisted.plugins.artifactd_plugin", "twisted.plugins.artifactd_endpoints"],
    package_data={
        "artifactd": ["py.typed"],
        "artifactd.catalog": ["schema/*.sql"],
        "artifactd.web": ["openapi.json"],
        "artifactd.web.page": ["templates/*.html", "static/*"],
    },
    install_requires=[
        "attrs>=23.2",
        "bcrypt>=4.1,<6",
        # LRU and TTL caches, by Thomas Kemmer: what Python projects keep bounded dicts in.
        "cachetools>=5.5,<9",
        "cryptography>=42",
        "hyperlink>=21",
        # Templates of the page, by the Pallets project; escapes all that they insert.
        "jinja2>=3.1.4,<4",
        "klein>=24.8",
        "msgspec>=0.19",
        "prometheus-client>=0.20",
        # JSON Web Tokens, by Jose Padilla and contributors: what Python projects verify them with.
        "PyJWT[crypto]>=2.10,<3",
        "service-identity>=24.2",  # before, it fails with the pyOpenSSL of today
        "tqdm>=4.66",
        "treq>=24.9",
        "twisted[tls]>=25.5,<27",  # artifactd.web rests on names that Twisted may move
        "txaio>=23.6",
    ],
    extras_require={
        "test": _TEST,
        "dev": [
            *_TEST,
            "mypy>=1.15",
            "mypy-zope>=1.0.9",
            "ruff>=0.9",
            "towncrier>=23.11",
            "types-cachetools",
            "types-jsonschema",
            "types-setuptools",
            "types-tqdm",
        ],
    },
    entry_points={"console_scripts": ["artifactd = artifactd.commands.main:main"]},
    zip_safe=False,
)
