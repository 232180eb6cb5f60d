import pytest

from mhs_ray.sandbox.sandbox import trust_targets

ALWAYS = ("/etc/mhs/trust.pem", "/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")


def test_trust_stores_of_an_image_are_covered_beside_the_usual_ones() -> None:
    certifi = "/usr/local/lib/python3.11/site-packages/certifi/cacert.pem"
    assert trust_targets([certifi, certifi, ALWAYS[1]]) == (*ALWAYS, certifi)


@pytest.mark.parametrize(
    "path",
    [
        "cacert.pem",
        "/",
        "/etc/hosts",
        "/a/../etc/x.pem",
        "/a//x.pem",
        "/proc/1/x.pem",
        "/dev/x.pem",
        "/tmp/x.pem",
        "/a b.pem",
        "/a\n.pem",
        "/a.pem/",
        "/é.pem",
        f"/{'a' * 2000}.pem",
    ],
)
def test_a_path_that_no_trust_store_has_is_left_alone(path: str) -> None:
    assert trust_targets([path]) == ALWAYS


def test_there_is_an_end_to_how_many_are_covered() -> None:
    assert len(trust_targets([f"/a/{i}.pem" for i in range(1000)])) == 3 + 32
