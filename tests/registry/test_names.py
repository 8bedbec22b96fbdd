"""From the names in requests to images and back."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import TestCase

from artifactd.oci.errors import NameUnknown
from artifactd.oci.names import ImageName, RepositoryName
from artifactd.registry.registry import Names

NAMES = Names(["local", "team"], "local")
NO_DEFAULT = Names(["local", "team"], None)
COMPONENTS = st.sampled_from(["local", "team", "a", "b-c"])


class NamesTests(TestCase):
    def resolved(self, names: Names, text: str) -> ImageName:
        return names.resolve(RepositoryName.parse(text))

    def test_the_first_component_picks_a_repository(self) -> None:
        for names in (NAMES, NO_DEFAULT):
            self.assertEqual(self.resolved(names, "team/a/b"), ImageName("team", "a/b"))
            self.assertEqual(self.resolved(names, "local/a"), ImageName("local", "a"))

    def test_any_other_name_belongs_to_the_default_repository(self) -> None:
        for text in ("a", "a/b", "teams/a", "team-2/a", "a/team/b"):
            self.assertEqual(self.resolved(NAMES, text), ImageName("local", text))

    def test_a_single_component_picks_no_repository(self) -> None:
        self.assertEqual(self.resolved(NAMES, "team"), ImageName("local", "team"))
        self.assertEqual(self.resolved(NAMES, "local"), ImageName("local", "local"))

    def test_without_a_default_other_names_are_unknown(self) -> None:
        for text in ("a", "a/b", "team"):
            with self.assertRaisesRegex(NameUnknown, "begin with one of local, team"):
                self.resolved(NO_DEFAULT, text)

    def test_a_mirrors_path_may_begin_with_the_registry_that_it_stands_for(self) -> None:
        hosts = {"docker.io": "docker.io", "index.docker.io": "docker.io", "k8s.example": "k8s"}
        names = Names(("local", "docker.io", "k8s"), "local", {"docker.io": "library/"}, hosts)
        for name, namespace, repository, image in (
            ("docker.io/alpine", "docker.io", "docker.io", "library/alpine"),
            ("docker.io/org/app", "Index.Docker.io", "docker.io", "org/app"),
            ("index.docker.io/org/app", "index.docker.io", "docker.io", "org/app"),
            ("k8s.example/pause", "k8s.example", "k8s", "pause"),
            # An organisation may be called as the repository is here; and no other host is meant.
            ("k8s/pause", "k8s.example", "k8s", "k8s/pause"),
            ("docker.io/org/app", "k8s.example", "k8s", "docker.io/org/app"),
            ("docker.io", "docker.io", "docker.io", "library/docker.io"),
        ):
            found = names.mirrored(RepositoryName.parse(name), namespace)
            self.assertEqual(found, ImageName(repository, image))

    def test_an_image_is_listed_by_its_short_name_where_that_means_it(self) -> None:
        for image, listed in (
            (ImageName("local", "a"), "a"),
            (ImageName("local", "team"), "team"),
            (ImageName("local", "team/a"), "local/team/a"),
            (ImageName("local", "local/a"), "local/local/a"),
            (ImageName("team", "a"), "team/a"),
        ):
            self.assertEqual(NAMES.listed(image), listed)
            self.assertEqual(NO_DEFAULT.listed(image), str(image))

    def test_the_library_comes_before_a_single_component(self) -> None:
        names = Names(["local", "docker.io"], "local", {"docker.io": "library/"})
        for text, image in (
            ("docker.io/alpine", "library/alpine"),
            ("docker.io/library/alpine", "library/alpine"),
            ("docker.io/grafana/grafana", "grafana/grafana"),
        ):
            self.assertEqual(self.resolved(names, text), ImageName("docker.io", image))
        self.assertEqual(self.resolved(names, "local/alpine"), ImageName("local", "alpine"))

    def test_a_mirrors_request_names_the_registry_it_is_for(self) -> None:
        names = Names(["local", "hub"], "local", {"hub": "library/"}, {"docker.io": "hub"})
        name = RepositoryName("alpine")
        for namespace in ("docker.io", "Docker.IO"):
            self.assertEqual(names.mirrored(name, namespace), ImageName("hub", "library/alpine"))
        with self.assertRaises(NameUnknown):
            names.mirrored(name, "ghcr.io")

    @settings(deadline=None)
    @given(COMPONENTS, st.lists(COMPONENTS, min_size=1, max_size=3))
    def test_a_listed_name_means_the_image_that_it_is_of(
        self, repository: str, components: list[str]
    ) -> None:
        for names in (NAMES, NO_DEFAULT):
            if repository in names.repositories:
                image = ImageName(repository, "/".join(components))
                self.assertEqual(self.resolved(names, names.listed(image)), image)
