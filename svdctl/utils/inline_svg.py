"""Pictures as `<svg>` elements within a page: texts stay text, and nothing in them comes from outside."""

import io
import re
import warnings
from xml.etree import ElementTree as ET

from svdctl.errors import SvdctlError
from svdctl.utils.matplotlib_defaults import Figure, with_defaults
from svdctl.utils.printable import printable

_ELEMENTS = frozenset({"svg", "g", "defs", "path", "pattern", "use", "text", "tspan", "clipPath", "rect", "image"})
_PAGE_HAS_IT = frozenset({"font-family"})
"""Properties that the page's own style sheet sets for all pictures."""
_REFERENCE = re.compile(r"url\(#([^)]+)\)")


def svg_text(figure: Figure, name: str, description: str) -> str:
    """Return a picture as an `<svg>` element for `html_page.PagePicture`.

    A page whose Content-Security-Policy allows no `style` attributes shows it as it is: styles become attributes.

    Args:
        figure: the picture, drawn.
        name: begins its ids; no two pictures of a page have the same.
        description: what it shows, for those who do not see it.
    """
    out = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with with_defaults({"svg.fonttype": "none", "svg.hashsalt": "svdctl"}), warnings.catch_warnings():
        # Texts stay texts, and are shown in a font of the reader's.
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from")
        figure.savefig(out, format="svg", metadata=metadata, transparent=True)
    root = ET.fromstring(out.getvalue())  # comments are lost here, which repeat every text
    _drop_styles(root)
    referred = {found for element in root.iter() for found in _references(element)}
    for element in root.iter():
        _rewrite(element, name, referred)
    # matplotlib writes points.
    width, height = (round(float(root.attrib.pop(key).removesuffix("pt")) * 4 / 3) for key in ("width", "height"))
    root.attrib.pop("version", None)
    root.attrib |= {
        "width": str(width),
        "height": str(height),
        "role": "img",
        "aria-label": printable(description),
    }
    return ET.tostring(root, encoding="unicode")


def _drop_styles(element: ET.Element) -> None:
    """Remove style sheets and metadata: matplotlib's one rule for all elements is in the page's style sheet."""
    for child in [*element]:
        if _tag(child) in ("style", "metadata"):
            element.remove(child)
        else:
            _drop_styles(child)


def _tag(element: ET.Element) -> str:
    return element.tag.rpartition("}")[2]


def _references(element: ET.Element) -> list[str]:
    """Return the ids that an element refers to."""
    found = [match for value in element.attrib.values() for match in _REFERENCE.findall(value)]
    return found + [value[1:] for key, value in element.attrib.items() if key.endswith("href") and value[:1] == "#"]


def _rewrite(element: ET.Element, name: str, referred: set[str]) -> None:
    """Give an element names without name space, attributes in place of its style, and ids that no other picture has."""
    element.tag = _tag(element)
    if element.tag not in _ELEMENTS:
        raise SvdctlError(f"BUG: a picture has an element {element.tag!r}, which pages do not show")
    attributes: dict[str, str] = {}
    for key, value in element.attrib.items():
        if key == "style":
            parts = (part.partition(":") for part in value.split(";") if part.strip())
            attributes |= {key.strip(): text.strip() for key, _, text in parts if key.strip() not in _PAGE_HAS_IT}
        elif key == "id":
            attributes |= {"id": f"{name}-{value}"} if value in referred else {}
        elif key.endswith("href"):
            if not value.startswith(("#", "data:image/png;base64,")):
                raise SvdctlError("BUG: a picture refers to something outside of the page")
            attributes["href"] = f"#{name}-{value[1:]}" if value[0] == "#" else value
        else:
            attributes[key.rpartition("}")[2]] = value
    element.attrib.clear()
    element.attrib |= {key: _REFERENCE.sub(rf"url(#{name}-\1)", value) for key, value in attributes.items()}
    if element.tag not in ("text", "tspan"):
        element.text = None
    element.tail = None
