"""Writes `docs/api/openapi.json` from the gateway's routes, or with --check fails when it differs from them."""

import argparse
import sys
from pathlib import Path

import orjson

from services.gateway.app import build_api
from services.gateway.openapi import openapi_document

FILE = Path(__file__).resolve().parent.parent / "docs" / "api" / "openapi.json"


def rendered() -> bytes:
    """The document as the file holds it."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    return orjson.dumps(openapi_document(build_api()), option=options)


def main() -> None:
    """Command line: no argument = write, --check = compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail on a difference, change nothing")
    content = rendered()
    if parser.parse_args().check:
        if not FILE.exists() or FILE.read_bytes() != content:
            sys.exit("docs/api/openapi.json does not match the routes; run `python -m tools.openapi`")
        return
    FILE.parent.mkdir(parents=True, exist_ok=True)
    FILE.write_bytes(content)


if __name__ == "__main__":
    main()
