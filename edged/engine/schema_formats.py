"""The formats of JSON Schema, said in keywords that llguidance has. Pure.

Formats are enforced, as most validators do. llguidance's own dates know no leap years, and its times have too many leap
seconds, so only some of its formats are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_DATE = (
    r"(?:[0-9]{4}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    r"|02-(?:0[1-9]|1[0-9]|2[0-8]))"
    r"|(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:[02468][048]|[13579][26])00)-02-29)"
)
_TIME = (
    r"(?:(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]+)?(?:[zZ]|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
    r"|23:59:60(?:\.[0-9]+)?(?:[zZ]|[+-]00:00))"
)
"""Of RFC 3339; leap seconds in UTC alone."""
_GROUP = "[0-9A-Fa-f]{1,4}"
_IPV4 = r"(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV6_OVER_4 = "|".join(
    (
        f"(?:{_GROUP}:){{6}}",
        *(f"(?:(?:{_GROUP}:){{0,{4 - n}}}{_GROUP})?::(?:{_GROUP}:){{{n}}}" for n in range(5)),
        f"::(?:{_GROUP}:){{5}}",
    )
)
_FROM_160 = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U000efffd"
"""`ucschar` of RFC 3987, without the holes at the ends of planes: what an IRI has beside a URI's characters."""
_PRIVATE = "\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd"
"""`iprivate`, for queries."""
_SCHEME = r"[A-Za-z][A-Za-z0-9+\-.]*:"


def _reference(scheme: str, more: str = "", private: str = "") -> str:
    """A pattern of references of RFC 3986, with the characters of RFC 3987 that are given. Hosts in it are names."""
    name = rf"(?:[A-Za-z0-9\-._~!$&'()*+,;={more}]|%[0-9A-Fa-f]{{2}})"
    part = rf"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@{more}]|%[0-9A-Fa-f]{{2}})"
    first = part if scheme else rf"(?:[A-Za-z0-9\-._~!$&'()*+,;=@{more}]|%[0-9A-Fa-f]{{2}})"
    authority = rf"//(?:(?:{name}|:)*@)?{name}*(?::[0-9]*)?(?:/{part}*)*"
    path = rf"(?:{authority}|/(?:{part}+(?:/{part}*)*)?|{first}+(?:/{part}*)*|)"
    return rf"^{scheme}{path}(?:\?(?:{part}|[/?{private}])*)?(?:#(?:{part}|[/?])*)?$"


_URI = {"format": "uri"}
"""Addresses in brackets as hosts are left to this one."""
_IRI = {"pattern": _reference(_SCHEME, _FROM_160, _PRIVATE)}
SAID: Mapping[str, Mapping[str, Any]] = {
    "date": {"pattern": f"^{_DATE}$"},
    "time": {"pattern": f"^{_TIME}$"},
    "date-time": {"pattern": f"^{_DATE}[tT]{_TIME}$"},
    "ipv6": {"anyOf": [{"format": "ipv6"}, {"pattern": f"^(?:{_IPV6_OVER_4}){_IPV4}$"}]},
    "hostname": {"format": "hostname", "maxLength": 253},
    "uri-reference": {"anyOf": [_URI, {"pattern": _reference("")}]},
    "iri": {"anyOf": [_URI, _IRI]},
    "iri-reference": {"anyOf": [_URI, _IRI, {"pattern": _reference("", _FROM_160, _PRIVATE)}]},
    "json-pointer": {"pattern": r"^(?:/(?:[^~/]|~[01])*)*$"},
    "relative-json-pointer": {"pattern": r"^(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^~/]|~[01])*)*)$"},
}
"""What a format says. All of it binds texts alone."""
_OTHERS = "duration email ipv4 uuid uri idn-email idn-hostname uri-template regex".split()
STANDARD = frozenset({*SAID, *_OTHERS})
"""The formats of the standard. Others are annotations; llguidance refuses those of these that it does not know."""
