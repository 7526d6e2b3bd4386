"""Write the covering arrays of the layers' arguments: ``python -m tools.conformance.pairs``.

The arrays are kept in a file because finding them takes longer than reading them; a test holds the file to what it
has to cover.
"""

import json

from tests.conformance.layers.cases import Api
from tests.conformance.layers.catalogue import PAIRWISE
from tests.conformance.layers.covering import Row, covering
from tests.conformance.layers.factors import FACTORS, legal


def rows(api: Api) -> list[Row]:
    """Return the covering array of a class; levels that are the first of their factor are left out."""
    factors = FACTORS[api]
    found = covering(factors, lambda row: legal(api, row))
    return [{name: level for name, level in row.items() if level != factors[name][0]} for row in found]


if __name__ == "__main__":
    arrays = {api: rows(api) for api in FACTORS}
    lines = [
        f' "{api}": [\n  ' + ",\n  ".join(json.dumps(row) for row in found) + "\n ]" for api, found in arrays.items()
    ]
    PAIRWISE.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    print({api: len(found) for api, found in arrays.items()})
