from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from mhs_ray.domain.errors import SlideFetchError
from mhs_ray.slides.url_guard import UrlPolicy


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fc00::1", "fd00:ec2::254", "::ffff:127.0.0.1",
        "::ffff:169.254.169.254",
        "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::", "100.100.100.200", "168.63.129.16",
    ],
)  # fmt: skip
def test_an_address_inside_is_refused(address: str) -> None:
    assert not UrlPolicy().permits(ipaddress.ip_address(address), "example.org", 443)


@pytest.mark.parametrize("address", ["52.216.1.1", "8.8.8.8", "2600:1f18::1", "::ffff:8.8.8.8", "64:ff9b::808:808"])
def test_an_address_of_the_internet_is_allowed(address: str) -> None:
    assert UrlPolicy().permits(ipaddress.ip_address(address), "example.org", 443)


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "fd00:ec2::254", "::ffff:169.254.169.254", "fe80::1", "0.0.0.0"]
)
def test_metadata_is_refused_even_where_private_addresses_are_allowed(address: str) -> None:
    policy = UrlPolicy(allow_private=True, allow_hosts=frozenset({"example.org"}))
    assert not policy.permits(ipaddress.ip_address(address), "example.org", 80)
    assert policy.permits(ipaddress.ip_address("10.0.0.1"), "other.org", 80)


def test_a_listed_host_may_be_private_on_its_port_only() -> None:
    policy = UrlPolicy(allow_hosts=frozenset({"localhost:9000"}))
    assert policy.permits(ipaddress.ip_address("127.0.0.1"), "LOCALHOST.", 9000)
    assert not policy.permits(ipaddress.ip_address("127.0.0.1"), "localhost", 8265)


@pytest.mark.parametrize(
    "url",
    [
        "ftp://h/x", "gopher://h/x", "/etc/passwd", "", "http://", "http:///x", "https://user:pw@h/x", "http://[::1",
        "http://h:99999/x", "file:///etc/passwd", "file://host/x", "http://bad.example/x",
    ],
)  # fmt: skip
def test_a_url_of_a_wrong_form_is_refused(url: str) -> None:
    with pytest.raises(SlideFetchError) as error:
        UrlPolicy(deny_hosts=frozenset({"bad.example"})).check_url(url)
    assert error.value.reason == "refused"
    assert not error.value.transient


@pytest.mark.parametrize("host", ["localhost", "127.1", "2130706433", "0x7f000001", "017700000001"])
def test_a_name_or_odd_number_that_leads_inside_is_refused(host: str) -> None:
    with pytest.raises(SlideFetchError, match=r"inside this network|cannot be resolved"):
        UrlPolicy().addresses(host, 80)


def test_a_file_url_is_taken_from_its_folders_only_also_through_links(tmp_path: Path) -> None:
    inside, outside = tmp_path / "slides", tmp_path / "secret"
    inside.mkdir()
    outside.write_text("x")
    (inside / "a b.svs").write_text("x")
    (inside / "link").symlink_to(outside)
    policy = UrlPolicy(file_roots=(inside,))
    assert policy.check_file((inside / "a b.svs").as_uri()) == (inside / "a b.svs").resolve()
    for name in ("link", "../secret", "%2e%2e/secret"):
        with pytest.raises(SlideFetchError):
            policy.check_file(f"{inside.as_uri()}/{name}")
