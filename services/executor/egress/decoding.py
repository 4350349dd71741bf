"""Undoing a content coding within a limit: at most one layer of gzip or deflate."""

import zlib

from services.executor.egress.errors import EgressError


def decode_body(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """The body without its `Content-Encoding`. Raises EgressError: not decodable, unasked for, or over `max_bytes`.

    Memory stays within `max_bytes` however strong the compression.
    """
    coding = encoding.strip().lower()
    if coding in {"", "identity"} or not body:
        return body
    if coding in {"gzip", "x-gzip"}:
        return _inflate(body, (zlib.MAX_WBITS | 16,), max_bytes)
    if coding == "deflate":
        # RFC 9110 §8.4.1.2 means zlib; some servers send the raw stream.
        return _inflate(body, (zlib.MAX_WBITS, -zlib.MAX_WBITS), max_bytes)
    raise EgressError(
        "UNSUPPORTED_ENCODING",
        f"The server's answer has the content encoding {coding[:64]!r}, although none was asked for. "
        "One layer of gzip or deflate is read.",
    )


def _inflate(body: bytes, window_bits: tuple[int, ...], max_bytes: int) -> bytes:
    for bits in window_bits:
        decoded, rest = bytearray(), body
        try:
            while rest:
                stream = zlib.decompressobj(bits)
                decoded += stream.decompress(rest, max_bytes + 1 - len(decoded))
                if len(decoded) > max_bytes:
                    raise EgressError(
                        "RESPONSE_TOO_LARGE",
                        f"The server's answer is larger than the limit of {max_bytes} bytes when unpacked.",
                    )
                if not stream.eof:
                    raise zlib.error("cut short")
                rest = stream.unused_data  # a gzip file may have several members
        except zlib.error:
            continue
        return bytes(decoded)
    raise EgressError("INVALID_RESPONSE", "The server's answer is compressed and damaged.", retryable=True)
