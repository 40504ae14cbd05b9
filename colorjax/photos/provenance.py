"""Records in a colored photo's XMP that a network made its colors: which software, which model, which weights."""

from dataclasses import dataclass
from typing import Any
from xml.dom import minidom
from xml.parsers.expat import ExpatError

import colorjax

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
"""IPTC's NewsCode for a photo that an algorithm has changed, the value of its property Digital Source Type."""

_RDF = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_IPTC = "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
_MEDIA = "http://ns.adobe.com/xap/1.0/mm/"
_EVENT = "http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"
_XMLNS = "http://www.w3.org/2000/xmlns/"
_PACKET = b'<?xpacket begin="\xef\xbb\xbf" id="W5M0MpCehiHzreSzNTczkc9d"?>%s<?xpacket end="w"?>'
_EMPTY = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="{_RDF}"/></x:xmpmeta>'


@dataclass(frozen=True)
class Provenance:
    """Where the colors of a photo come from.

    Attributes:
        model: name of the colorizer: of the weights that ship, or of its folder.
        checksum: SHA-256 of its weights, 64 hexadecimal digits (run.trees.checksum).
    """

    model: str
    checksum: str

    @property
    def software(self) -> str:
        """The program and its version."""
        return f"colorjax {colorjax.__version__}"

    @property
    def parameters(self) -> str:
        """The model and its weights, as they stand in the file."""
        name = "".join(c for c in self.model if c.isprintable())  # XML has no control characters
        return f"model {name}, weights sha256 {self.checksum}"


def with_provenance(xmp: bytes | None, provenance: Provenance) -> bytes:
    """A photo's XMP with the provenance in it; all else stays.

    IPTC's Digital Source Type is set, and the history (xmpMM:History) gets an event with the software and the model,
    unless it has that event already.

    Args:
        xmp: the photo's own, or None. If it is not XML that holds RDF, it is replaced.
        provenance: what to record.
    """
    try:
        return _merged((xmp or b"").rstrip(b"\0 \n") or _EMPTY.encode(), provenance)
    except (ExpatError, RecursionError, LookupError, ValueError):
        return _merged(_EMPTY.encode(), provenance)


def _merged(xmp: bytes, provenance: Provenance) -> bytes:
    document = minidom.parseString(xmp)
    root: Any = document.documentElement
    rdf = root if (root.namespaceURI, root.localName) == (_RDF, "RDF") else root.getElementsByTagNameNS(_RDF, "RDF")[0]
    descriptions = [node for node in rdf.childNodes if _is(node, _RDF, "Description")]
    for description in descriptions:
        if description.hasAttributeNS(_IPTC, "DigitalSourceType"):
            description.removeAttributeNS(_IPTC, "DigitalSourceType")
        for node in [x for x in description.childNodes if _is(x, _IPTC, "DigitalSourceType")]:
            description.removeChild(node)

    def element(name: str, namespace: str, *children: Any) -> Any:
        node = document.createElementNS(namespace, name)
        for child in children:
            node.appendChild(document.createTextNode(child) if isinstance(child, str) else child)
        return node

    # Its own names for the namespaces, as the photo's may stand for others.
    own = element("rdf:Description", _RDF, element("Iptc4xmpExt:DigitalSourceType", _IPTC, SOURCE_TYPE))
    about = descriptions[0].getAttributeNS(_RDF, "about") if descriptions else ""
    own.setAttributeNS(_RDF, "rdf:about", about)
    spaces = {"rdf": _RDF, "Iptc4xmpExt": _IPTC, "xmpMM": _MEDIA}
    for prefix, namespace in spaces.items():
        own.setAttributeNS(_XMLNS, f"xmlns:{prefix}", namespace)
    rdf.appendChild(own)

    event = element(
        "rdf:li",
        _RDF,
        element("stEvt:action", _EVENT, "edited"),
        element("stEvt:softwareAgent", _EVENT, provenance.software),
        element("stEvt:parameters", _EVENT, provenance.parameters),
    )
    event.setAttributeNS(_RDF, "rdf:parseType", "Resource")
    event.setAttributeNS(_XMLNS, "xmlns:rdf", _RDF)
    event.setAttributeNS(_XMLNS, "xmlns:stEvt", _EVENT)
    histories = [
        node for description in descriptions for node in description.childNodes if _is(node, _MEDIA, "History")
    ]
    lists = histories[0].getElementsByTagNameNS(_RDF, "Seq") if histories else []
    if not lists:
        for history in histories:  # an empty one
            history.parentNode.removeChild(history)
        own.appendChild(element("xmpMM:History", _MEDIA, element("rdf:Seq", _RDF, event)))
    elif not any(_text(node) == _text(event) for node in lists[0].getElementsByTagNameNS(_RDF, "li")):
        lists[0].appendChild(event)
    return _PACKET % root.toxml().encode()


def _is(node: Any, namespace: str, name: str) -> bool:
    return (node.namespaceURI, node.localName) == (namespace, name)


def _text(node: Any) -> list[str]:
    """The event's values, which XMP writes as elements or as attributes."""
    texts = [(x.localName, "".join(t.data for t in x.childNodes if t.nodeType == t.TEXT_NODE)) for x in node.childNodes]
    attributes = [(x.localName, x.value) for x in node.attributes.values() if x.namespaceURI == _EVENT]
    return sorted(f"{name}={value}" for name, value in (*texts, *attributes) if name)
