"""What a colored file says about its colors: read back by an XML parser, and by exiftool."""

import io
import json
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import colorjax
from colorjax.cli import predict
from colorjax.cli.arguments import Parser
from colorjax.photos.files import Photo, read_photo, write_photo
from colorjax.photos.predictor import Predictor
from colorjax.photos.provenance import Provenance, with_provenance
from colorjax.run.trained import load_trained
from colorjax.run.trees import checksum, flatten

RDF = "{http://www.w3.org/1999/02/22-rdf-syntax-ns#}"
IPTC = "{http://iptc.org/std/Iptc4xmpExt/2008-02-29/}"
MEDIA = "{http://ns.adobe.com/xap/1.0/mm/}"
XML_LANG = "{http://www.w3.org/XML/1998/namespace}lang"
EVENT = "{http://ns.adobe.com/xap/1.0/sType/ResourceEvent#}"
ENHANCED = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicallyEnhanced"
GIVEN = Provenance("food101", "ab" * 32)
OWN = b"""<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><r:RDF xmlns:r="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<r:Description r:about="uuid:1" xmlns:dc="http://purl.org/dc/elements/1.1/" xmlns:e="http://iptc.org/std/Iptc4xmpExt/2008-02-29/"
  e:DigitalSourceType="http://cv.iptc.org/newscodes/digitalsourcetype/negativeFilm" dc:format="image/png">
 <dc:title><r:Alt><r:li xml:lang="x-default">caf\xc3\xa9 &amp; cup</r:li></r:Alt></dc:title>
 <m:History xmlns:m="http://ns.adobe.com/xap/1.0/mm/" xmlns:s="http://ns.adobe.com/xap/1.0/sType/ResourceEvent#"><r:Seq>
  <r:li s:action="created" s:softwareAgent="a scanner"/></r:Seq></m:History>
</r:Description></r:RDF></x:xmpmeta>
<?xpacket end='w'?>      """


def read_rdf(xmp: bytes) -> dict[str, Any]:
    """The properties that the tests look at, by another parser than the one that wrote them."""
    root = ET.fromstring(xmp.rstrip(b"\0"))
    events = [
        {x.tag: x.text for x in li} | {k: v for k, v in li.attrib.items() if k.startswith(EVENT)}
        for li in root.iterfind(f".//{MEDIA}History/{RDF}Seq/{RDF}li")
    ]
    attribute = [x.attrib[f"{IPTC}DigitalSourceType"] for x in root.iter() if f"{IPTC}DigitalSourceType" in x.attrib]
    return {
        "source": [x.text for x in root.iter(f"{IPTC}DigitalSourceType")] + attribute,
        "events": events,
        "about": {x.attrib[f"{RDF}about"] for x in root.iter(f"{RDF}Description")},
        "titles": [x.text for x in root.iter(f"{RDF}li") if XML_LANG in x.attrib],
    }


def colored_event(provenance: Provenance) -> dict[str, str]:
    return {
        f"{EVENT}action": "edited",
        f"{EVENT}softwareAgent": f"colorjax {colorjax.__version__}",
        f"{EVENT}parameters": f"model {provenance.model}, weights sha256 {provenance.checksum}",
    }


def test_a_photo_without_xmp_gets_it() -> None:
    for xmp in (None, b"", b"\0\0"):
        assert read_rdf(with_provenance(xmp, GIVEN)) == {
            "source": [ENHANCED],
            "events": [colored_event(GIVEN)],
            "about": {""},
            "titles": [],
        }


def test_the_photos_own_xmp_stays_and_nothing_is_there_twice() -> None:
    once = with_provenance(OWN, GIVEN)
    read = read_rdf(once)
    assert read["source"] == [ENHANCED]
    scanned = {f"{EVENT}action": "created", f"{EVENT}softwareAgent": "a scanner"}
    assert read["events"] == [scanned, colored_event(GIVEN)]
    assert read["about"] == {"uuid:1"}
    assert "café & cup" in read["titles"]
    assert b'dc:format="image/png"' in once
    assert read_rdf(with_provenance(once, GIVEN)) == read
    other = Provenance("other", "cd" * 32)
    again = read_rdf(with_provenance(once, other))
    assert again["source"] == [ENHANCED]
    assert again["events"] == [*read["events"], colored_event(other)]


@pytest.mark.parametrize(
    "xmp",
    [
        b"no XML",
        b"<a/>",
        b"\xff\xfe\x00",
        b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF>no namespace</rdf:RDF></x:xmpmeta>',
        b"<r:RDF xmlns:r='http://www.w3.org/1999/02/22-rdf-syntax-ns#'>" + b"<a>" * 5000 + b"</a>" * 5000 + b"</r:RDF>",
    ],
    ids=["text", "no RDF", "bytes", "undeclared", "deep"],
)
def test_what_is_not_xmp_is_replaced(xmp: bytes) -> None:
    assert read_rdf(with_provenance(xmp, Provenance("a\x00<b>&\n", "0")))["events"] == [
        colored_event(Provenance("a<b>&", "0"))
    ]


@pytest.mark.parametrize("format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_every_format_holds_it(format: str, dtype: type) -> None:
    rgb = np.zeros((4, 6, 3), dtype)
    exif = Image.Exif()
    exif[0x8298] = "Anna"
    like = Photo(rgb, metadata={"exif": exif.tobytes(), "xmp": OWN})
    buffer = io.BytesIO()
    write_photo(rgb, like, buffer, format=format, provenance=GIVEN)
    back = read_photo(buffer.getvalue())
    read = read_rdf(back.metadata["xmp"])
    assert read["source"] == [ENHANCED]
    assert read["events"][1:] == [colored_event(GIVEN)]
    assert Image.open(buffer).getexif()[0x8298] == "Anna"
    assert like.metadata["xmp"] == OWN


def test_xmp_that_no_jpeg_holds_makes_room_for_it() -> None:
    rgb = np.zeros((4, 6, 3), np.uint8)
    large = OWN.replace(b"cup", b"cup" * 30_000)
    for format, titles in (("JPEG", 0), ("PNG", 1)):
        buffer = io.BytesIO()
        write_photo(rgb, Photo(rgb, metadata={"xmp": large}), buffer, format=format, provenance=GIVEN)
        read = read_rdf(read_photo(buffer.getvalue()).metadata["xmp"])
        assert (read["source"], sum("cup" in (x or "") for x in read["titles"])) == ([ENHANCED], titles)


def test_the_command_records_it_unless_it_is_told_not_to(untrained: Path, tmp_path: Path) -> None:
    photo = tmp_path / "cup.png"
    Image.fromarray(np.full((20, 30), 128, np.uint8)).save(photo)
    parser = Parser("predict", description="", examples="")
    predict.add_arguments(parser)
    for flags, out in (([], "with"), (["--no-provenance"], "without")):
        arguments = [str(photo), "--out", str(tmp_path / out), "--checkpoint", str(untrained), *flags]
        args = parser.parse(arguments)
        args.debug = True
        assert predict.run(args) == 0
    trained = load_trained(untrained)
    provenance = Predictor(untrained).provenance
    assert provenance == Provenance(
        untrained.name, checksum(flatten({"params": trained.params, "stats": trained.stats}))
    )
    assert read_rdf(read_photo(tmp_path / "with/cup.png").metadata["xmp"])["events"] == [colored_event(provenance)]
    assert "xmp" not in read_photo(tmp_path / "without/cup.png").metadata


@pytest.mark.skipif(not shutil.which("exiftool"), reason="needs exiftool")
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exiftool_reads_it(suffix: str, tmp_path: Path) -> None:
    rgb, target = np.zeros((4, 6, 3), np.uint8), tmp_path / f"cup{suffix}"
    exif = Image.Exif()
    exif[0x8298] = "Anna"
    like = Photo(rgb, metadata={"exif": exif.tobytes(), "xmp": OWN})
    write_photo(rgb, like, target, provenance=GIVEN)
    command = ["exiftool", "-json", "-n", "-warning", "-error", "-XMP:all", "-EXIF:Copyright", str(target)]
    (told,) = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    assert told["DigitalSourceType"] == ENHANCED
    assert told["HistorySoftwareAgent"] == ["a scanner", f"colorjax {colorjax.__version__}"]
    assert told["HistoryParameters"] == f"model food101, weights sha256 {'ab' * 32}"
    assert (told["Title"], told["Copyright"]) == ("café & cup", "Anna")
    assert not {"Warning", "Error"} & told.keys()
