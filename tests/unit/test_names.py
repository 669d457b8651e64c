"""Slugs are valid names and label values, and no two users share one."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from elastic_kernels import names, taints

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")


@pytest.mark.parametrize(
    ("user", "slug"),
    [
        ("ana", "ana"),
        ("ana-maria", "ana-maria"),
        ("7of9", "7of9"),
        ("ana@example.com", "ana-example-com--8e43ca37"),
        ("Ana", "ana--dea210f0"),
        ("a--b", "a-b--90827a2e"),
        ("-", "x--3973e022"),
        ("名前", "x--7ec26292"),
        ("a" * 41, "a" * 30 + "--" + "c0f8bd4d"),
    ],
)
def test_slugs(user: str, slug: str) -> None:
    assert names.slug(user) == slug


@given(st.text(min_size=1), st.integers(12, 63))
def test_every_slug_is_a_dns_label_and_a_label_value(user: str, limit: int) -> None:
    slug = names.slug(user, limit)
    assert len(slug) <= limit
    assert DNS_LABEL.fullmatch(slug)
    assert taints.is_label_value(slug)


@given(st.text(min_size=1), st.text(min_size=1))
def test_two_users_never_share_a_slug(one: str, other: str) -> None:
    assert (names.slug(one) == names.slug(other)) == (one == other)


@given(st.text(min_size=1))
def test_a_slug_is_no_other_user_of_its_own(user: str) -> None:
    # whoever calls himself by another's slug gets a different one, unless it is that user's name as it stands
    slug = names.slug(user)
    assert slug == user or names.slug(slug) != slug


@given(st.text(min_size=1), st.uuids())
def test_names_of_pods_fit(user: str, kernel_id: object) -> None:
    name = names.pod_name(user, str(kernel_id), "a1b2c3")
    assert len(name) <= 63
    assert DNS_LABEL.fullmatch(name)
