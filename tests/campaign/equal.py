"""Whether two folders hold the same, as far as it can be said."""

import hashlib
import json
from pathlib import Path
from typing import Any

VOLATILE = ("log.jsonl", "checkpoints", "cache", "tmp")  # what tells of the way, not of the result


def content(folder: Path) -> dict[str, Any]:
    """Relative path -> JSON as data, other files as a hash."""
    out: dict[str, Any] = {}
    for file in sorted(f for f in folder.rglob("*") if f.is_file()):
        name = file.relative_to(folder).as_posix()
        if any(part in VOLATILE for part in name.split("/")):
            continue
        read = file.read_bytes()
        try:
            out[name] = json.loads(read) if file.suffix == ".json" else hashlib.sha256(read).hexdigest()
        except ValueError:
            out[name] = "no JSON"
    return out


def common(a: Any, b: Any) -> Any:
    """What two values have in common: of mappings the keys whose values have something, of others all or nothing."""
    if isinstance(a, dict) and isinstance(b, dict):
        # Rounded times are alike in two runs by chance, and so is the size of a file that holds them.
        chance = {key for key in a if str(key).endswith("seconds")}
        chance |= {"size"} if a.get("sha256") != b.get("sha256") else set()
        return {key: None if key in chance else common(a[key], b[key]) for key in a if key in b}
    return a if a == b else None


def difference(known: Any, found: Any, at: str = "") -> str:
    """The first place where `found` is not as `known`, "" where there is none; what is None there may be anything."""
    if isinstance(known, dict):
        if not isinstance(found, dict) or known.keys() != found.keys():
            return f"{at}: {sorted(known.keys() ^ (found.keys() if isinstance(found, dict) else set()))[:5]}"
        return next((d for key in known if (d := difference(known[key], found[key], f"{at}/{key}"))), "")
    return "" if known is None or known == found else f"{at}: another value"
