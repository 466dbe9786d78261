"""What a file is, by its first bytes: so that a refusal can say what was found and not only what was not."""

from __future__ import annotations

LEGACY_TORCH = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How every file of `torch.save` before 1.6 begins: the magic number, pickled."""

_BY_START: tuple[tuple[bytes, str], ...] = (
    (b"PK\x03\x04", "a zip archive, as torch.save writes (.pt)"),
    (LEGACY_TORCH, "a pickle, as torch.save wrote before 1.6 (.pt)"),
    (b"version https://git-lfs", "a git-lfs pointer: the real file was not fetched"),
    (b"GGUF", "a GGUF file"),
    (b"\x89HDF\r\n", "an HDF5 file"),
    (b"\x93NUMPY", "a NumPy array file"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x28\xb5\x2f\xfd", "a zstd archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ", "an xz archive"),
    (b"\x7fELF", "a program (ELF)"),
    (b"\x89PNG", "a PNG image"),
)

_HINTS: tuple[tuple[str, str], ...] = (
    ("git-lfs", "fetch the real file with `git lfs pull`"),
    ("HTML", "the download gave a web page, perhaps an error or a log-in; fetch the file again"),
    ("archive, as torch", "rename it to .pt, or save it with safetensors"),
    ("as torch.save wrote", "rename it to .pt, or save it with safetensors"),
    ("gzip", "decompress it first"),
    ("zstd", "decompress it first"),
    ("bzip2", "decompress it first"),
    ("xz", "decompress it first"),
)


def looks_like_safetensors(head: bytes) -> bool:
    """Eight bytes of little-endian header length, then a JSON object: `{` is mandated by the format."""
    return len(head) >= 9 and head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 1 << 40


def identify(head: bytes) -> str | None:
    """What a file that begins with `head` (512 bytes are enough) is, in words; None when that cannot be told."""
    for start, name in _BY_START:
        if head.startswith(start):
            return name
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype html", b"<html", b"<head")):
        return "an HTML page"
    if text.startswith(b"<?xml"):
        return "an XML or HTML page"
    if len(head) > 262 and head[257:262] == b"ustar":
        return "a tar archive"
    if looks_like_safetensors(head):
        return "a safetensors file"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "a pickle"
    if text.startswith((b"{", b"[")):
        return "a JSON text"
    if head and not head.strip(b"\0"):
        return "zeros only: a download that was not finished, or a hole in the file system"
    return None


def hint_for(found: str) -> str | None:
    """What to do with a file that turned out to be `found`."""
    return next((hint for word, hint in _HINTS if word in found), None)
