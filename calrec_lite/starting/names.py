"""What columns are usually called, and what a name says of a column."""

import re
from typing import Literal

Role = Literal["user", "item", "time"]

# Of each role: whole names, then words that may be part of one; both without capitals and separators.
WHOLE: dict[Role, frozenset[str]] = {
    "user": frozenset(
        "user userid uid customer customerid customerno customernumber clientid client visitor visitorid member "
        "memberid reviewerid reviewer account accountid household householdid householdkey buyer buyerid shopper "
        "shopperid person personid patron patronid who profile profileid kunde kundeid kundennr kundennummer "
        "nutzer nutzerid".split()
    ),
    "item": frozenset(
        "item itemid iid itemkey product productid productcode productno sku asin parentasin article articleid movieid "
        "bookid businessid gameid appid trackid songid isbn isbn13 ean upc gtin stockcode newsid news recipeid videoid "
        "artistid materialid artikel artikelid artikelnr artikelnummer produktid produktnr "
        "produktnummer what".split()
    ),
    "time": frozenset(
        "time timestamp ts date datetime day unixtime unixreviewtime reviewtime createdat created boughtat purchasedat "
        "orderedat orderdate invoicedate purchasedate eventtime eventdate tdat when datum zeit".split()
    ),
}
WORDS: dict[Role, frozenset[str]] = {
    "user": frozenset(
        "user customer cust client visitor member buyer shopper household reviewer account kunde".split()
    ),
    "item": frozenset(
        "item product sku asin article movie book business game track song isbn stock artikel news video".split()
    ),
    "time": frozenset("time timestamp date datetime datum day".split()),
}
# Labels of texts, in the order in which an item is worded, and what their columns are called.
TEXTS: dict[str, frozenset[str]] = {
    "Title": frozenset(
        "title name productname itemname producttitle itemtitle movietitle booktitle gamename prodname description "
        "itemdescription productdescription headline label bezeichnung titel artikelname "
        "artikelbezeichnung produktname produktbezeichnung".split()
    ),
    "Category": frozenset(
        "category categories maincategory maincat productcategory department departmentname genre genres class "
        "producttype producttypename type group productgroupname section kategorie warengruppe "
        "produktgruppe artikelgruppe rubrik".split()
    ),
    "Brand": frozenset(
        "brand brandname maker manufacturer vendor author authors artist publisher developer marke hersteller".split()
    ),
    "Year": frozenset("year releaseyear publicationyear yearofpublication".split()),
    "Price": frozenset("price listprice unitprice preis".split()),
}
GENERAL = frozenset("userid user itemid item time timestamp date title category categories brand price".split())


def squeezed(name: str) -> str:
    """A name without capitals, separators and accents' marks: `Customer ID` and `customer_id` are one."""
    return re.sub(r"[^a-z0-9]", "", name.lower())


def parts(name: str) -> list[str]:
    """The words of a name, whether by separators or by capitals: `reviewerID` is `reviewer`, `id`."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", " ", name)
    return [part for part in re.split(r"[^a-z0-9]+", spaced.lower()) if part]


def named(name: str, role: Role) -> int:
    """How much a name says that a column is of a role: 2 as a whole, 1 by one of its words, 0 not at all."""
    if squeezed(name) in WHOLE[role]:
        return 2
    return int(any(part in WORDS[role] for part in parts(name)))


def label_of(name: str) -> str | None:
    """The label whose columns are called so."""
    return next((label for label, usual in TEXTS.items() if squeezed(name) in usual), None)


def is_known(name: str) -> bool:
    """Whether a name is one that columns usually have."""
    return label_of(name) is not None or any(named(name, role) == 2 for role in WHOLE)


def own_label(name: str) -> str:
    """A label made of a column's own name: `shelf_life` becomes `Shelf life`."""
    words = " ".join(parts(name)) or name
    return words[:1].upper() + words[1:]
