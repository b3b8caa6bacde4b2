"""Pictures of OpenAI messages: from data: URLs, from hosts that were allowed, from below one folder."""

import base64
import copy
import io
import os

import numpy as np
import pytest
from PIL import Image

from pixedge.errors import ImageError, MessageError, UsageError
from pixedge.image import ImageLimits
from pixedge.messages import read_messages
from pixedge.serve.media import AllowedHost, MediaSettings, read_pictures
from tests.picture_host import led_astray, serving


def png(colour="red", size=(5, 4)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def data_url(data):
    return "data:image/png;base64," + base64.b64encode(data).decode()


def asking(*urls):
    parts = [{"type": "image_url", "image_url": {"url": url, "detail": "auto"}} for url in urls]
    return [{"role": "user", "content": [{"type": "text", "text": "What?"}, *parts]}]


FIT = (1024, 16)


def colour(picture):
    """The colour in the middle of a picture that was brought to the encoder's size."""
    _, height, width = picture.pixels.shape
    share = picture.pixels[:, height // 2, width // 2] * (0.26862954, 0.26130258, 0.27577711)
    return tuple(np.rint(np.add(share, (0.48145466, 0.4578275, 0.40821073)) * 255).astype(int))


def refusal(urls, settings=None, kind=ImageError):
    with pytest.raises(kind) as caught:
        read_pictures(asking(*urls), settings or MediaSettings(), FIT)
    text = str(caught.value)
    assert "\n" not in text
    return text


# --- data: URLs --------------------------------------------------------------------------------------------


def test_pictures_come_in_order_and_the_messages_stay_as_they_were():
    messages = [
        {"role": "system", "content": "Be brief."},
        *asking(data_url(png("red")), data_url(png("blue"))),
        {"role": "assistant", "content": "Both."},
        {"role": "user", "content": [{"type": "image_url", "image_url": data_url(png("lime", (3, 2)))}]},
    ]
    before = copy.deepcopy(messages)
    read = read_pictures(messages, MediaSettings(), FIT)
    assert messages == before
    turns = read_messages(read)
    assert [colour(image) for turn in turns for image in turn.images] == [
        (255, 0, 0),
        (0, 0, 255),
        (0, 255, 0),
    ]
    assert turns[1].parts[0] == "What?"
    assert turns[3].images[0].size == (3, 2)


@pytest.mark.parametrize("messages", [None, 7, "x", {}, [], [3], [{"content": 5}], [{"role": "user"}]])
def test_what_is_no_conversation_is_left_to_the_one_who_knows(messages):
    assert read_pictures(messages, MediaSettings(), FIT) == messages


def test_a_data_url_that_holds_no_picture():
    assert "without ;base64," in refusal(["data:image/png,abc"], kind=MessageError)
    assert "not valid base64" in refusal(["data:image/png;base64,@@@"], kind=MessageError)
    assert "not valid base64" in refusal(["data:image/png;base64,ä"], kind=MessageError)
    assert "is empty" in refusal(["data:image/png;base64,"])
    assert "picture of message 0, part 1 is not a picture" in refusal([data_url(b"hello")])
    assert "image_url of type dict" not in refusal([None], kind=MessageError)


def test_limits_of_one_picture_and_of_all():
    small = MediaSettings(limits=ImageLimits(max_bytes=200, max_pixels=50, max_images=3), max_total_pixels=70)
    url = data_url(png(size=(6, 6)))
    assert "has 201 bytes and the limit is 200" in refusal([data_url(bytes(201))], small)
    assert "is not a picture" in refusal([data_url(bytes(200))], small)
    assert "60 pixels (10 x 6) and the limit is 50" in refusal([data_url(png(size=(10, 6)))], small)
    assert "up to message 0, part 2 have more than 70 pixels together" in refusal([url, url], small)
    assert len(read_pictures(asking(url), small, FIT)) == 1
    assert "4 pictures were given and the limit is 3" in refusal(["data:nonsense"] * 4, small)


def test_parts_of_a_message_are_bounded():
    """Each part costs time in Python, during which nothing else goes on; millions fit into a body."""
    parts = [{"type": "text", "text": "x"}] * 1024
    read_pictures([{"role": "user", "content": parts}], MediaSettings(), FIT)
    for refuse in (lambda messages: read_pictures(messages, MediaSettings(), FIT), read_messages):
        with pytest.raises(MessageError, match=r"message 0 has 1,025 parts and the limit is 1,024; join"):
            refuse([{"role": "user", "content": [*parts, parts[0]]}])


def test_a_picture_cannot_be_smuggled_in_as_another_part():
    for part in ({"type": "image", "image": "/etc/passwd"}, {"type": "image", "image": None}):
        with pytest.raises(MessageError, match="'image_url'"):
            read_pictures([{"role": "user", "content": [part]}], MediaSettings(), FIT)


# --- hosts -------------------------------------------------------------------------------------------------


def test_hosts_are_allowed_by_name_by_subdomain_and_by_port():
    plain, below, port = map(AllowedHost.parse, ("Example.com", "*.example.com", "example.com:8443"))
    assert plain.matches("example.com", 443) and plain.matches("example.com", 80)
    for host, at in (
        ("example.com", 22),
        ("a.example.com", 443),
        ("example.com.", 443),
        ("xexample.com", 443),
    ):
        assert not plain.matches(host, at)
    assert below.matches("a.b.example.com", 80)
    assert not below.matches("example.com", 80) and not below.matches("badexample.com", 80)
    assert port.matches("example.com", 8443) and not port.matches("example.com", 443)
    assert AllowedHost.parse("[2606:4700::1]:81").matches("2606:4700::1", 81)
    assert AllowedHost.parse("bücher.example").matches("xn--bcher-kva.example", 443)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*.com",
        "http://a.com",
        "a.com/x",
        "a.com:0",
        "a.com:99999",
        "a b",
        "a.*.com",
        "u@a.com",
        "ä" * 80,
    ],
)
def test_what_is_no_host_is_wrong_usage(text):
    with pytest.raises(UsageError, match="--allow-host"):
        AllowedHost.parse(text)


@pytest.fixture
def table(monkeypatch):
    return led_astray(monkeypatch)


def test_no_host_is_asked_unless_it_was_allowed(table):
    text = refusal(["https://public.test/a.png"])
    assert "is not allowed" in text
    settings = MediaSettings(hosts=(AllowedHost.parse("other.test"),))
    assert refusal(["https://public.test/a.png"], settings) == text
    assert table["asked"] == []


def test_a_refusal_says_the_same_whatever_the_inner_network_looks_like(table):
    table |= {"inner.public.test": ["10.1.2.3"], "mixed.public.test": ["93.184.216.34", "127.0.0.1"]}
    settings = MediaSettings(hosts=(AllowedHost.parse("*.public.test"),))
    texts = {
        refusal([f"http://{name}/x"], settings).replace(name, "NAME")
        for name in (
            "inner.public.test",
            "mixed.public.test",
            "nosuch.public.test",
            "elsewhere.test",
            "10.1.2.3",
        )
    }
    assert len(texts) == 1
    assert "10.1.2.3" not in texts.pop()


def test_an_allowed_host_is_fetched_from_and_each_redirect_is_checked_again(table):
    with serving() as server:
        port = server.server_port
        settings = MediaSettings(hosts=(AllowedHost.parse(f"public.test:{port}"),))
        base = f"http://public.test:{port}"
        assert "is not a picture" in refusal([f"{base}/picture"], settings)  # it arrived, though
        assert "is not a picture" in refusal([f"{base}/hop/2"], settings)
        assert "answers 404 Not Found" in refusal([f"{base}/nothing"], settings)
        table["asked"].clear()
        for goal in (
            "http://127.0.0.1/x",
            "http://other.test/",
            f"http://local.test:{port}/picture",
            "//[::1]/",
        ):
            assert "is not allowed" in refusal([f"{base}/to/x?{goal}"], settings)
        assert table["asked"] == ["public.test"] * 4


def test_all_downloads_of_a_request_share_one_time(table):
    with serving() as server:
        settings = MediaSettings(hosts=(AllowedHost.parse(f"public.test:{server.server_port}"),), timeout=0.3)
        assert "does not answer in time" in refusal(
            [f"http://public.test:{server.server_port}/drip"], settings
        )


# --- files -------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    inside = tmp_path / "media"
    (inside / "deep er").mkdir(parents=True)
    (inside / "red.png").write_bytes(png())
    (inside / "deep er" / "blue ä.png").write_bytes(png("blue"))
    (tmp_path / "secret.png").write_bytes(png("black"))
    (inside / "link.png").symlink_to(tmp_path / "secret.png")
    (inside / "out").symlink_to(tmp_path)
    (inside / "near.png").symlink_to("red.png")
    os.mkfifo(inside / "pipe.png")
    return inside


def test_files_below_the_folder(folder):
    settings = MediaSettings(folder=folder)
    for url in (
        "file:red.png",
        "file:./red.png",
        f"file://{folder}/red.png",
        f"file://localhost{folder}/red.png",
    ):
        assert colour(read_pictures(asking(url), settings, FIT)[0]["content"][1]["image"]) == (255, 0, 0)
    blue = read_pictures(asking("file:deep%20er/blue%20%C3%A4.png"), settings, FIT)[0]["content"][1]["image"]
    assert colour(blue) == (0, 0, 255)
    tiny = MediaSettings(folder=folder, limits=ImageLimits(max_bytes=10))
    assert "and the limit is 10" in refusal(["file:red.png"], tiny)


@pytest.mark.parametrize(
    "path",
    [
        "../secret.png",
        "deep%20er/../../secret.png",
        "..%2fsecret.png",
        "%2e%2e/secret.png",
        "link.png",
        "near.png",
        "out/secret.png",
        "pipe.png",
        "deep%20er",
        "",
        ".",
        "missing.png",
        "red.png%00.png",
        "red.png/x",
        "%ff.png",
        "/etc/passwd",
        "//etc/passwd",
        "///etc/passwd",
        "//elsewhere/red.png",
        "red.png?x",
        "red.png#x",
        "a" * 5000,
        "\ud800",
    ],
)
def test_nothing_outside_the_folder_and_nothing_but_files(folder, path):
    text = refusal([f"file:{path}"], MediaSettings(folder=folder))
    assert "which is no file below the server's media folder" in text
    assert len(text) < 300


def test_files_are_off_without_a_folder(folder):
    assert "is not allowed" in refusal([f"file://{folder}/red.png"])
    with pytest.raises(UsageError, match="is not a folder"):
        MediaSettings(folder=folder / "red.png")


@pytest.mark.parametrize(
    "url", ["ftp://public.test/x", "/etc/passwd", "red.png", "", "javascript:1", "blob:x", "\0"]
)
def test_other_schemes(url):
    text = refusal([url], MediaSettings(folder=None, hosts=(AllowedHost.parse("public.test"),)))
    assert "is not allowed; send a data: URL" in text
