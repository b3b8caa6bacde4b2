"""Elements: what is escaped, what is not."""

from pixedge.markup import Markup, element, join


def test_text_and_attributes_are_escaped_and_markup_is_not() -> None:
    found = element("p", "<b>&", element("i", "x"), title="\"'><script>", class_="a", stroke_width=2)
    assert found == (
        '<p title="&quot;&#x27;&gt;&lt;script&gt;" class="a" stroke-width="2">&lt;b&gt;&amp;<i>x</i></p>'
    )
    assert isinstance(found, Markup)


def test_void_elements_have_no_end() -> None:
    assert element("meta", name="viewport") == '<meta name="viewport">'


def test_join() -> None:
    assert join("<", Markup("<b></b>"), ">") == "&lt;<b></b>&gt;"
    assert join() == ""
