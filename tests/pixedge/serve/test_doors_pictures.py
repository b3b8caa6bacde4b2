"""Addresses, redirects, files and pictures that a server must not follow, open or decode.

Each case has a name and its refusal. The server has been told to allow the very hosts that are tried, so that
what refuses is the check of their addresses and nothing before it.
"""

import io
import struct
import tracemalloc
import zlib

import pytest
from PIL import Image

from pixedge import fetch
from pixedge.image import ImageLimits
from pixedge.serve.media import AllowedHost, MediaSettings
from tests.doors import data_url, door, error_of, png, png_chunk, png_of, post, question
from tests.picture_host import PUBLIC, led_astray, serving

NOT_ALLOWED = "which is not allowed or does not answer in time"

ADDRESSES = {
    "loopback": "127.0.0.1",
    "loopback elsewhere in its block": "127.8.9.10",
    "localhost by name": "localhost",
    "localhost in capitals": "LOCALHOST",
    "unspecified": "0.0.0.0",
    "decimal": "2130706433",
    "hexadecimal": "0x7f000001",
    "hexadecimal with dots": "0x7f.1",
    "octal": "017700000001",
    "octal with dots": "0177.0.0.1",
    "two parts": "127.1",
    "zero": "0",
    "private 10": "10.1.2.3",
    "private 172": "172.16.0.1",
    "private 192": "192.168.1.1",
    "link-local, where clouds keep keys": "169.254.169.254",
    "link-local in decimal": "2852039166",
    "shared by carriers": "100.64.0.1",
    "for documentation": "192.0.2.1",
    "for benchmarks": "198.18.0.1",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "IPv6 loopback": "[::1]",
    "IPv6 unspecified": "[::]",
    "IPv6-mapped": "[::ffff:127.0.0.1]",
    "IPv6-mapped in hexadecimal": "[::ffff:a9fe:a9fe]",
    "IPv6-compatible": "[::127.0.0.1]",
    "IPv6 link-local": "[fe80::1]",
    "IPv6 unique local": "[fc00::1]",
    "IPv6 site-local": "[fec0::1]",
    "IPv6 multicast": "[ff02::1]",
    "NAT64": "[64:ff9b::7f00:1]",
    "6to4": "[2002:7f00:1::]",
}


@pytest.fixture(scope="module")
def media(tmp_path_factory):
    folder = tmp_path_factory.mktemp("outer") / "media"
    folder.mkdir()
    (folder / "red.png").write_bytes(png())
    (folder.parent / "secret.png").write_bytes(png())
    (folder / "link.png").symlink_to(folder.parent / "secret.png")
    return folder


@pytest.fixture(scope="module")
def host():
    with serving() as server:
        yield server


@pytest.fixture(scope="module")
def client(tmp_path_factory, media, host):
    names = {
        *ADDRESSES.values(),
        "*.public.test",
        f"public.test:{host.server_port}",
        f"*.public.test:{host.server_port}",
    }
    settings = MediaSettings(
        hosts=tuple(map(AllowedHost.parse, sorted(names))),
        folder=media,
        limits=ImageLimits(max_bytes=200_000, max_pixels=1_000_000, max_images=8),
        max_total_pixels=1_500_000,
        timeout=5.0,
    )
    with door(tmp_path_factory.getbasetemp(), media=settings) as client:
        yield client


def refusal(client, *urls):
    return error_of(post(client, question("What?", *urls)), 400)


# --- addresses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
def test_an_address_inside(client, address, monkeypatch):
    monkeypatch.setattr(fetch.socket, "create_connection", None)  # nothing may be connected to
    url = f"http://{address}/secret"
    assert refusal(client, url) == f"message 0, part 0 points to '{url}', {NOT_ALLOWED}; send a data: URL"


def test_a_name_that_changes_between_check_and_use(client, host, monkeypatch):
    """It is looked up once; what was checked is what is connected to."""
    led_astray(monkeypatch)
    answers = [[PUBLIC], ["127.0.0.1"]]
    connected = []
    connect = fetch.socket.create_connection

    def note(address, timeout):
        connected.append(address[0])
        return connect(address, timeout=timeout)

    monkeypatch.setattr(fetch, "_lookup", lambda host, port: answers.pop(0))
    monkeypatch.setattr(fetch.socket, "create_connection", note)
    assert "is not a picture" in refusal(client, f"http://a.public.test:{host.server_port}/picture")
    assert (connected, answers) == ([PUBLIC], [["127.0.0.1"]])


def test_a_name_with_one_private_address_among_public_ones(client, monkeypatch):
    table = led_astray(monkeypatch)
    table["mixed.public.test"] = [PUBLIC, "10.0.0.1"]
    assert NOT_ALLOWED in refusal(client, "http://mixed.public.test/x")


REDIRECTS = {
    "redirected to loopback": "http://127.0.0.1/x",
    "redirected to the metadata address": "http://169.254.169.254/latest/meta-data/",
    "redirected to IPv6 loopback": "//[::1]/x",
    "redirected to a host not on the list": "http://elsewhere.test/x",
    "redirected to another port": "//public.test:22/",
    "redirected to a file": "file:///etc/passwd",
    "redirected to ftp": "ftp://public.test/x",
    "redirected to a user name": "http://public.test@127.0.0.1/",
}


@pytest.mark.parametrize("goal", REDIRECTS.values(), ids=REDIRECTS)
def test_a_redirect(client, host, goal, monkeypatch):
    led_astray(monkeypatch)
    text = refusal(client, f"http://public.test:{host.server_port}/to/x?{goal}")
    assert NOT_ALLOWED in text or "only http and https are allowed" in text or "user name" in text


ANSWERS = {
    "an answer that is inflated by gzip": ("zipped", "encoding 'gzip'"),
    "an answer larger than it may be": ("flood", "more bytes than the limit of 200,000"),
    "an answer without a picture": ("picture", "is not a picture"),
    "an answer cut off": ("short", "was cut off"),
    "a ring of redirects": ("hop/9", "redirects more than 5 times"),
    "no HTTP at all": ("nonsense", NOT_ALLOWED),
}


@pytest.mark.parametrize(("path", "reason"), ANSWERS.values(), ids=ANSWERS)
def test_an_answer(client, host, path, reason, monkeypatch):
    led_astray(monkeypatch)
    assert reason in refusal(client, f"http://public.test:{host.server_port}/{path}")


SCHEMES = {
    "a file outside": "file:///etc/passwd",
    "a file by way of two dots": "file:../secret.png",
    "a file by way of encoded dots": "file:%2e%2e%2fsecret.png",
    "a file by way of a link": "file:link.png",
    "a file on another machine": "file://elsewhere/share/red.png",
    "a device": "file:///dev/zero",
    "ftp": "ftp://public.test/x.png",
    "gopher": "gopher://127.0.0.1:6379/_INFO",
    "dict": "dict://127.0.0.1:11211/stats",
    "a script": "javascript:alert(1)",
    "a blob": "blob:http://127.0.0.1/1",
    "a path": "/etc/passwd",
    "nothing": "",
    "a line break in the address": "http://public.test/\r\nX-Evil: 1",
    "a NUL in the address": "http://public.test\x00.elsewhere.test/",
    "a user name that looks like a host": "http://public.test@127.0.0.1/x",
    "a backslash": "http://public.test\\@127.0.0.1/x",
    "a port that nobody allowed": "http://a.public.test:6379/x",
    "no host": "http:///x.png",
    "half a surrogate": "http://\ud800/",
}


@pytest.mark.parametrize("url", SCHEMES.values(), ids=SCHEMES)
def test_an_address_of_another_kind(client, url, monkeypatch):
    table = led_astray(monkeypatch)
    monkeypatch.setattr(fetch.socket, "create_connection", None)
    text = refusal(client, url)
    assert any(
        words in text for words in ("not allowed", "no file below", "not a valid address", "user name")
    )
    assert "127.0.0.1" not in text.replace(repr(url), "")
    assert table["asked"] in ([], ["public.test"])


# --- pictures ----------------------------------------------------------------------------------------------


def gif_bomb():
    return (
        b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0) + b"," + struct.pack("<4HB", 0, 0, 65535, 65535, 0)
    )


def jpeg_of_scans(count=600):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    at = data.rindex(b"\xff\xda")
    return data[:at] + data[at:-2] * count + b"\xff\xd9"


def tiff_of_a_tile():
    """A picture of a pixel in one tile of 60,000 x 60,000."""
    entries = [(256, 3, 1), (257, 3, 1), (258, 3, 8), (259, 3, 1), (262, 3, 1), (277, 3, 1)]
    entries += [(322, 3, 60000), (323, 3, 60000), (324, 4, 8), (325, 4, 10)]
    body = b"".join(
        struct.pack("<HHIHxx" if kind == 3 else "<HHII", tag, kind, 1, value) for tag, kind, value in entries
    )
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(entries)) + body + bytes(4)


PICTURES = {
    "a PNG of 3,600,000,000 pixels": (png_of(60_000, 60_000), "3,600,000,000 pixels"),
    "a PNG a pixel too large": (png_of(1_000_001, 1), "1,000,001 pixels"),
    "a PNG without pixels": (png_of(10, 10), "truncated"),
    "a GIF with a frame of 4,294,836,225 pixels": (gif_bomb(), "4,294,836,225 pixels"),
    "a TIFF with a tile of 3,600,000,000 pixels": (tiff_of_a_tile(), "3,600,000,000 pixels"),
    "a WebP canvas of 16,384 x 16,384": (
        b"RIFF"
        + struct.pack("<I", 22)
        + b"WEBPVP8X"
        + struct.pack("<I", 10)
        + bytes(4)
        + b"\xff\x3f\0\xff\x3f\0",
        "268,435,456 pixels",
    ),
    "a JPEG of 600 scans": (jpeg_of_scans(), "JPEG scans"),
    "a truncated JPEG": (jpeg_of_scans(1)[:200], "truncated"),
    "a page": (b"<html><script>alert(1)</script>", "is not a picture"),
    "an SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) (r) file\n", "is not a picture"),
    "a PDF": (b"%PDF-1.7\n", "is a PDF, not a picture"),
    "a ZIP": (b"PK\3\4", "is not a picture"),
    "no bytes": (b"", "is empty"),
    "too many bytes": (bytes(200_001), "has 200,001 bytes and the limit is 200,000"),
}


@pytest.mark.parametrize(("data", "reason"), PICTURES.values(), ids=PICTURES)
def test_a_picture(client, data, reason):
    text = refusal(client, data_url(data))
    assert text.startswith("the picture of message 0, part 0 ")
    assert reason in text


@pytest.mark.parametrize("name", [b"zTXt", b"iCCP"])
def test_what_stands_beside_a_picture_is_not_inflated(client, name):
    beside = png_chunk(name, b"a\0\0" + zlib.compress(bytes(90_000_000), 9))
    assert post(client, question("What?", data_url(png_of(1, 1, bytes(4), beside)))).status_code == 200


def test_a_picture_with_more_bytes_than_pixels_is_inflated_no_further_than_its_pixels(client):
    bomb = data_url(png_of(10, 10, bytes(100_000_000)))
    tracemalloc.start()
    answer = post(client, question("What?", bomb))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert answer.status_code == 200
    assert peak < 20_000_000


def test_pictures_that_are_too_much_together(client):
    large = data_url(png((1000, 800)))
    assert "up to message 0, part 1 have more than 1,500,000 pixels together" in refusal(client, large, large)


def test_ten_thousand_pictures(client):
    url = data_url(png((1, 1)))
    text = error_of(post(client, question("What?", *[url] * 10_000)), 400)
    assert "10000 pictures were given and the limit is 8" in text


def test_after_all_that_a_picture_is_answered(client):
    answer = post(client, question("What?", data_url(png()), "file:red.png"))
    assert answer.status_code == 200
    assert answer.json()["usage"]["prompt_tokens_details"]["image_tokens"] == 4
