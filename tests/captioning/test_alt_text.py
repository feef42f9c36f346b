import base64
import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from showattend.captioning.alt_text import Page, find_pages, has_sidecar, write_sidecar

# An @ stands where an alt belongs.
TEMPLATE = """<!doctype html>\r
<title>How to write <img src="title.jpg"></title>\r
<!-- <img src="comment.jpg"> --><script>"<img src='script.jpg'>"</script><style>/* <img src="style.jpg"> */</style>
<textarea><img src="textarea.jpg"></textarea>
<p a=b>ünïcödé <img@ src="first.jpg"><IMG@\tSRC=second.jpg><img@/src='third.jpg'/>
<img alt src="decoration.jpg"><img alt="" src="decoration.jpg"><img src="told.jpg" ALT="a cat">
<img@
   class="wide" data-alt="x"
   title="5 > 3" src=" fourth.jpg "
/><img@ src="first.jpg" src="other.jpg"><image src="no.jpg"><p>The <img
"""
PAGE = TEMPLATE.replace("@", "")
FOUND = [(5, "first.jpg"), (5, "second.jpg"), (5, "third.jpg"), (7, "fourth.jpg"), (10, "first.jpg")]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "page.html"
    path.write_bytes(PAGE.encode())
    return path


def test_which_images_have_no_alt(path: Path) -> None:
    assert [(tag.line, tag.src) for tag in Page(str(path)).tags] == FOUND


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
def test_nothing_but_alts_is_added(path: Path, encoding: str) -> None:
    path.write_bytes(PAGE.encode(encoding))
    path.chmod(0o640)
    link = path.with_name("link.html")
    link.symlink_to(path)
    page = Page(str(link))
    page.write([(tag, f'{number} < "{tag.src}" & é') for number, tag in reversed(list(enumerate(page.tags)))])
    expected = TEMPLATE
    for number, (_, src) in enumerate(FOUND):
        expected = expected.replace("@", f' alt="{number} &lt; &quot;{src}&quot; &amp; &#233;"', 1)
    assert path.read_bytes() == expected.encode(encoding)
    assert path.stat().st_mode & 0o777 == 0o640
    assert link.is_symlink()
    assert len(list(path.parent.iterdir())) == 2  # no temporary file
    assert Page(str(path)).tags == []


def test_a_page_that_cannot_be_rewritten_stays_as_it_is(path: Path) -> None:
    page = Page(str(path))
    page.write([])
    assert path.read_bytes() == PAGE.encode()
    path.write_bytes(b"<p>New")
    with pytest.raises(OSError, match=r"cannot write .*page.html: it has been changed"):
        page.write([(page.tags[0], "a dog")])
    assert path.read_bytes() == b"<p>New"
    path.write_bytes(PAGE.encode("utf-16"))
    with pytest.raises(OSError, match=r"cannot read .*page.html: it is in UTF-16"):
        Page(str(path))
    with pytest.raises(OSError, match=r"cannot read .*nowhere.html: No such file"):
        Page(str(path.with_name("nowhere.html")))
    with pytest.raises(OSError, match=r"cannot rewrite https://example.org: only files"):
        Page("https://example.org")


@pytest.mark.parametrize(
    ("src", "base", "expected"),
    [
        ("dog.jpg", "", "site/sub/dog.jpg"),
        ("../my%20dog.jpg?v=2#top", "", "site/sub/../my dog.jpg"),
        ("h&uuml;nd.jpg", "", "site/sub/hünd.jpg"),
        ("h%FCnd.jpg", "", "site/sub/h\udcfcnd.jpg"),
        ("/images/dog.jpg", "", "site/images/dog.jpg"),
        ("file:///photos/my%20dog.jpg", "", "/photos/my dog.jpg"),
        ("https://example.org/a.jpg?x=1&amp;y=2", "", "https://example.org/a.jpg?x=1&y=2"),
        ("//example.org/a.jpg", "", "https://example.org/a.jpg"),
        ("dog.jpg", "images/", "site/sub/images/dog.jpg"),
        ("dog.jpg", "https://example.org/blog/", "https://example.org/blog/dog.jpg"),
    ],
)
def test_where_an_image_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, src: str, base: str, expected: str) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "site" / "sub" / "page.htm"
    page.parent.mkdir(parents=True)
    page.write_text((f'<base href="{base}">' if base else "") + f'<img src="{src}">', encoding="utf-8")
    [(name, root)] = find_pages(["site"], pytest.fail)
    found = Page(name)
    assert found.source(found.tags[0], root) == expected


def test_images_inside_a_page(path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    path.write_text(f'<img src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">')
    page = Page(str(path))
    source: Any = page.source(page.tags[0], "")
    assert Image.open(source).size == (3, 2)


@pytest.mark.parametrize(
    ("tag", "error"),
    [
        ("<img>", "has no src"),
        ('<img src="">', "has no src"),
        ('<img src="data:nothing">', "the data: URI is damaged"),
        ('<img src="cid:5@mail">', "cannot read cid:5@mail: neither a file nor an http"),
    ],
)
def test_images_that_cannot_be_found(path: Path, tag: str, error: str) -> None:
    path.write_text(tag)
    page = Page(str(path))
    with pytest.raises(ValueError, match=error):
        page.source(page.tags[0], "")


def test_roots_of_pages(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    (path.parent / "sub").mkdir()
    (path.parent / "sub" / "other.htm").touch()
    (path.parent / "sub" / "photo.jpg").touch()
    assert list(find_pages([".", "sub/other.htm", "sub/*.htm"], pytest.fail)) == [
        ("./page.html", "."),
        ("./sub/other.htm", "."),
        ("sub/other.htm", "sub"),
        ("sub/other.htm", "sub"),
    ]


def test_sidecars(tmp_path: Path) -> None:
    image = str(tmp_path / "my.dog.jpg")
    assert not has_sidecar(image)
    write_sidecar(image, "a dog")
    assert (tmp_path / "my.dog.txt").read_text() == "a dog\n"
    assert has_sidecar(image)
    with pytest.raises(OSError, match=r"my.dog.png: .*my.dog.txt has been written for another photo"):
        write_sidecar(str(tmp_path / "my.dog.png"), "a cat")
    assert (tmp_path / "my.dog.txt").read_text() == "a dog\n"
    with pytest.raises(OSError, match=r"cannot write .*nowhere/a.txt: No such file"):
        write_sidecar(str(tmp_path / "nowhere" / "a.jpg"), "a dog")
    assert not has_sidecar("https://example.org/a.jpg")
    with pytest.raises(OSError, match=r"no place for a text beside a URL"):
        write_sidecar("https://example.org/a.jpg", "a dog")
