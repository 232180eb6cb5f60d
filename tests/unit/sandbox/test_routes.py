import ipaddress

import pytest

from mhs_ray.domain.errors import SandboxError
from mhs_ray.sandbox.routes import (
    DirectRoute,
    LocalRoute,
    RouteTable,
    address_allowed,
    direct_routes,
    normal_host,
    results_route,
    split_authority,
    split_target,
)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "0.0.0.0",
        "10.1.2.3",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "192.0.2.1",
        "198.18.0.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::1",
        "::",
        "fe80::1",
        "fc00::1",
        "fd00:ec2::254",
        "ff02::1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "64:ff9b::a9fe:a9fe",
        "2002:7f00:1::",
        "2001:0:1::1",
    ],
)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not address_allowed(ipaddress.ip_address(address))


@pytest.mark.parametrize("address", ["8.8.8.8", "52.216.8.1", "2600:1f18::1", "::ffff:8.8.8.8"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert address_allowed(ipaddress.ip_address(address))


def test_a_listed_network_is_allowed_also_in_its_mapped_form() -> None:
    networks = (ipaddress.ip_network("10.0.0.0/8"),)
    assert address_allowed(ipaddress.ip_address("10.1.2.3"), networks)
    assert address_allowed(ipaddress.ip_address("::ffff:10.1.2.3"), networks)
    assert not address_allowed(ipaddress.ip_address("192.168.0.1"), networks)


@pytest.mark.parametrize(
    "text", ["", "127.0.0.1", "2130706433", "a b", "a/b", "a@b", "a:1", "[::1]", "-a.b", "a..b", "a" * 254, "ä.example"]
)
def test_what_is_no_dns_name_is_no_host(text: str) -> None:
    assert normal_host(text) is None


def test_names_are_compared_without_case_and_final_dot() -> None:
    table = RouteTable([LocalRoute("api.app.example.com", "http://127.0.0.1:1")])
    assert table.find("API.App.Example.Com.", 443) is not None
    assert table.find("api.app.example.com..", 443) is None
    assert table.find("api.app.example.com", 80) is None
    assert table.find_plain("api.app.example.com", 80) is not None


@pytest.mark.parametrize("text", ["a", "a:", "a:0", "a:65536", "u@a:1", "a:1:2", "a:1/x", "::1:443", "a :1", ""])
def test_a_malformed_authority_is_none(text: str) -> None:
    assert split_authority(text) is None


def test_an_absolute_target_is_taken_apart_and_no_other() -> None:
    assert split_target("http://a.example:80/b?c=1") == ("http", "a.example:80", "/b?c=1")
    assert split_target("HTTP://a?c") == ("http", "a", "/?c")
    for target in ("/a", "*", "a:443", "http://", "http://[::1", "//a/b"):
        assert split_target(target) is None


def test_the_results_route_is_api_dot_host_on_its_port() -> None:
    route = results_route("app.techcyte.com", "http://10.0.0.5:8000/")
    assert (route.host, route.port, route.upstream, route.prefix) == (
        "api.app.techcyte.com",
        443,
        "http://10.0.0.5:8000",
        "/api/v3/",
    )
    assert results_route("mhs.local:8443", "https://x").port == 8443


@pytest.mark.parametrize(
    ("host", "gateway"), [("a b", "http://x"), ("", "http://x"), ("a@b", "http://x"), ("a.b", "x:1")]
)
def test_a_host_or_gateway_that_is_none_is_refused(host: str, gateway: str) -> None:
    with pytest.raises(SandboxError):
        results_route(host, gateway)


def test_a_list_that_contradicts_itself_is_refused() -> None:
    with pytest.raises(SandboxError, match="two routes"):
        RouteTable([DirectRoute("a.example"), LocalRoute("a.example", None)])
    with pytest.raises(SandboxError, match="lower-case DNS name"):
        RouteTable([DirectRoute("10.0.0.1")])
    with pytest.raises(SandboxError, match="cannot serve TLS"):
        RouteTable([DirectRoute("a.example", 3128)])


def test_direct_hosts_are_names_with_or_without_a_port() -> None:
    assert direct_routes(["api.app.techcyte.com", "models.example.com:8443", "api.app.techcyte.com:443"]) == (
        DirectRoute("api.app.techcyte.com", 443),
        DirectRoute("models.example.com", 8443),
    )


@pytest.mark.parametrize("host", ["10.0.0.1", "https://example.com", "a@b.example", "", "exa mple.com", "[::1]:443"])
def test_a_direct_host_that_is_no_name_is_refused(host: str) -> None:
    with pytest.raises(SandboxError, match="MHS_SANDBOX__DIRECT_HOSTS"):
        direct_routes([host])
