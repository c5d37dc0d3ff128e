"""Reads pages and drawings."""

import html.parser
import re
import xml.etree.ElementTree

VOID = {"meta", "br", "line", "rect", "circle", "path", "img"}


class Page(html.parser.HTMLParser):
    """Checks that every tag is closed in its turn; collects text and attributes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.said, self.tags, self.values = [], [], [], []
        self.sources = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.values += [value or "" for _, value in attrs]
        self.sources += [value for name, value in attrs if name == "src"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.said.append(data)


def read_page(path):
    with open(path, encoding="utf-8") as file:
        text = file.read()
    page = Page(text)
    # Nothing is loaded: no address but the name of SVG's vocabulary.
    assert set(re.findall(r"https?://[^\"' ]+", text)) <= {"http://www.w3.org/2000/svg"}
    assert not {"link", "iframe"} & set(page.tags)
    assert all(source.startswith("data:image/") for source in page.sources)
    assert "prefers-color-scheme: dark" in text and "width=device-width" in text
    return page, " ".join(page.said)


def parsed(figure):
    """The drawing of a figure, parsed; the figure must be well-formed."""
    return xml.etree.ElementTree.fromstring(figure).find("svg")


def texts(figure):
    return [text.text for text in parsed(figure).iter("text")]
