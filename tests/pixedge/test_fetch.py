"""Downloads from a server on 127.0.0.1; no test leaves the machine: names are looked up in a table."""

import contextlib
import socket
import ssl
import subprocess
import threading

import pytest

from pixedge import fetch
from pixedge.errors import ImageError
from pixedge.fetch import fetch_image
from pixedge.image import ImageLimits
from tests.picture_host import BODY, PUBLIC, led_astray, serving

LIMITS = ImageLimits(max_bytes=10_000)


@pytest.fixture
def server():
    with serving() as running:
        yield running


@pytest.fixture
def names(monkeypatch):
    return led_astray(monkeypatch)


def local(server, path):
    return f"http://127.0.0.1:{server.server_port}/{path}"


def refusal(url, limits=LIMITS, allow_private=True, **options):
    with pytest.raises(ImageError) as caught:
        fetch_image(url, limits, allow_private=allow_private, **options)
    text = str(caught.value)
    assert text.startswith(url)
    assert "\n" not in text
    return text


# --- what arrives ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["picture", "unsized", "chunked", "picture?size=1&q=a%20b", "hop/0", "hop/4"]
)
def test_a_picture_arrives_whole(server, path):
    assert fetch_image(local(server, path), LIMITS, allow_private=True) == BODY


def test_the_request_says_little(server, names, monkeypatch):
    for variable in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    port = server.server_port
    fetch_image(f"http://local.test:{port}/to/x?/picture", LIMITS, allow_private=True)
    for _, headers in server.seen:
        assert headers.pop("Host") == f"local.test:{port}"
        assert headers == {"Accept": "image/*", "Accept-Encoding": "identity", "User-Agent": "pixedge"}
    assert [path for path, _ in server.seen] == ["/to/x?/picture", "/picture"]


def test_odd_characters_are_quoted(server):
    with contextlib.suppress(ImageError):
        fetch_image(local(server, "bild ä.png?q=ü x&r=%41#part"), LIMITS, allow_private=True)
    assert server.seen[0][0] == "/bild%20%C3%A4.png?q=%C3%BC%20x&r=%41"


def test_a_redirect_may_be_relative_and_may_change_the_host(server, names):
    url = f"http://local.test:{server.server_port}/to/x?http://public.test:{server.server_port}/hop/1"
    assert fetch_image(url, LIMITS, allow_private=True) == BODY
    assert names["asked"] == ["local.test", "public.test", "public.test", "public.test"]


# --- limits ------------------------------------------------------------------------------------------------


def test_size(server):
    assert "has 10,001 bytes and the limit is 10,000" in refusal(local(server, "large"))
    assert "more bytes than the limit of 10,000" in refusal(local(server, "flood"))
    exact = ImageLimits(max_bytes=len(BODY))
    for path in ("picture", "unsized", "chunked"):
        assert fetch_image(local(server, path), exact, allow_private=True) == BODY
        assert f"{len(BODY) - 1:,}" in refusal(local(server, path), ImageLimits(max_bytes=len(BODY) - 1))


@pytest.mark.parametrize("path", ["drip", "dripping"])
def test_time_is_counted_in_all_and_not_per_byte(server, path):
    assert "took longer than 0.4 s" in refusal(local(server, path), timeout=0.4)


def test_time_covers_the_look_up(monkeypatch):
    release = threading.Event()
    monkeypatch.setattr(fetch, "_lookup", lambda host, port: release.wait(10) and [])
    assert "took longer than 0.2 s" in refusal("http://slow.test/x", timeout=0.2)
    assert not release.is_set()
    release.set()


def test_time_covers_a_silent_server():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/x"
        assert "took longer than 0.2 s" in refusal(url, timeout=0.2)
        assert "took longer than 0.2 s" in refusal(url.replace("http", "https"), timeout=0.2)


def test_five_redirects_and_no_more(server):
    assert "redirects more than 5 times" in refusal(local(server, "hop/5"))
    assert len(server.seen) == 6


def test_unusable_answers(server):
    assert "answers 404 Not Found" in refusal(local(server, "nothing"))
    assert f"was cut off after {len(BODY):,} of {len(BODY) + 5:,} bytes" in refusal(local(server, "short"))
    assert "encoding 'gzip'" in refusal(local(server, "zipped"))
    assert "cannot be downloaded" in refusal(local(server, "nonsense"))


def test_nobody_answers():
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert "cannot be downloaded" in refusal(f"http://127.0.0.1:{port}/x")


# --- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "127.8.9.10",
            "localhost",
            "LOCALHOST",
            "0.0.0.0",
            "2130706433",
            "0x7f000001",
        ),
        *("0x7f.1", "127.1", "017700000001", "0", "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:7f00:1]"),
        *(
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "192.0.2.1",
            "198.18.0.1",
        ),
        *("224.0.0.1", "240.0.0.1", "255.255.255.255", "[fe80::1]", "[fc00::1]", "[fec0::1]", "[ff02::1]"),
        *(
            "[64:ff9b::127.0.0.1]",
            "[64:ff9b::a9fe:a9fe]",
            "[2002:7f00:1::]",
            "[2001:db8::1]",
            "[::127.0.0.1]",
        ),
    ],
)
def test_private_addresses_are_refused_in_every_spelling(host, monkeypatch):
    """The system's own resolver reads these; it needs no network for numbers and for localhost."""
    monkeypatch.setattr(fetch.socket, "create_connection", None)  # never reached
    for url in (f"http://{host}/x.png", f"https://{host}:8443/x.png"):
        text = refusal(url, allow_private=False)
        assert "not a public address" in text or "is not known" in text
        if not host.startswith("["):
            assert "not a public address" in text


def test_one_private_address_among_public_ones_is_enough(names):
    names["mixed.test"] = [PUBLIC, "10.0.0.1"]
    assert "mixed.test is at 10.0.0.1" in refusal("http://mixed.test/x", allow_private=False)


@pytest.mark.parametrize(
    "goal", ["http://127.0.0.1/x", "http://[::1]/", "//10.0.0.1/x", "https://169.254.169.254/latest"]
)
def test_a_redirect_into_the_private_network_is_refused(server, names, goal):
    url = f"http://public.test:{server.server_port}/to/x?{goal}"
    assert "which is not a public address" in refusal(url, allow_private=False)
    assert len(server.seen) == 1


@pytest.mark.parametrize("goal", ["file:///etc/passwd", "ftp://public.test/x", "data:image/png;base64,AAAA"])
def test_a_redirect_to_another_scheme_is_refused(server, names, goal):
    url = f"http://public.test:{server.server_port}/to/x?{goal}"
    assert "only http and https are allowed" in refusal(url, allow_private=False)


def test_the_checked_address_is_the_one_connected_to(server, names, monkeypatch):
    """A name that answers differently the second time is asked once only, and never by the connection."""
    answers = [[PUBLIC], ["127.0.0.1"]]
    connected = []
    connect = fetch.socket.create_connection

    def note(address, timeout):
        connected.append(address[0])
        return connect(address, timeout=timeout)

    monkeypatch.setattr(fetch, "_lookup", lambda host, port: answers.pop(0))
    monkeypatch.setattr(fetch.socket, "create_connection", note)
    assert fetch_image(f"http://rebind.test:{server.server_port}/picture", LIMITS) == BODY
    assert connected == [PUBLIC]
    assert len(answers) == 1
    assert server.seen[0][1]["Host"] == f"rebind.test:{server.server_port}"


def test_the_next_address_is_tried_where_one_is_dead(server, names, monkeypatch):
    names["two.test"] = ["198.51.100.7", "127.0.0.1"]
    connect = fetch.socket.create_connection

    def dead(address, timeout):
        if address[0] == "198.51.100.7":
            raise ConnectionRefusedError(111, "Connection refused")
        return connect(address, timeout=timeout)

    monkeypatch.setattr(fetch.socket, "create_connection", dead)
    assert fetch_image(f"http://two.test:{server.server_port}/picture", LIMITS, allow_private=True) == BODY


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("file:///etc/passwd", "only http and https"),
        ("ftp://public.test/x", "only http and https"),
        ("picture.png", "only http and https"),
        ("http://", "not a valid address"),
        ("http://user:secret@public.test/x", "user name"),
        ("http://@public.test/x", "user name"),
        ("http://public.test:99999/x", "not a valid address"),
        ("http://public.test:0/x", "not a valid address"),
        ("http://[::1/x", "not a valid address"),
        ("http://a b/x", "not a valid address"),
        ("http://a%00b/x", "not a valid address"),
        ("http://..../x", "not a valid address"),
        ("http://public.test\\@127.0.0.1/x", "user name"),
        ("http://unknown.test/x", "is not known"),
    ],
)
def test_odd_addresses_are_refused(names, url, reason):
    assert reason in refusal(url, allow_private=False)


# --- TLS ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A certificate for local.test that signs itself."""
    folder = tmp_path_factory.mktemp("tls")
    command = (
        "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=local.test -keyout key.pem -out it.pem"
    )
    try:
        subprocess.run(
            [*command.split(), "-addext", "subjectAltName=DNS:local.test"],
            cwd=folder,
            check=True,
            capture_output=True,
        )
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no openssl program to make a certificate with: {error}")
    return folder


def test_the_certificate_is_verified_against_the_name(certificate, names, monkeypatch):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate / "it.pem", certificate / "key.pem")
    names["other.test"] = ["127.0.0.1"]
    with serving(context) as server:
        url = f"https://local.test:{server.server_port}/picture"
        assert "has no valid certificate" in refusal(url)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate / "it.pem"))
        assert fetch_image(url, LIMITS, allow_private=True) == BODY
        assert server.seen[-1][1]["Host"] == f"local.test:{server.server_port}"
        assert "has no valid certificate" in refusal(url.replace("local", "other"))
