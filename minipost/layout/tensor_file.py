"""Files of tensors in the format safetensors, and the state of a run in one of them.

Nothing is ever unpickled.  safetensors leaves its files unreadable to other users.  We give them
the usual mode.
"""

import hashlib
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from minipost import files
from minipost.errors import MinipostError
from minipost.files import opened, parse_json

LETTERS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16", "float64": "F64"}
HEADER = 2**23  # bytes of the longest list of tensors; 700 tensors have 80,000


def write_tensors(path, tensors, before=None, aside=None, **metadata):
    """A safetensors file; with exactly one metadata key its bytes are reproducible.

    before: what to call when it is written, before it takes its place.  aside: as in `publish`.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    metadata = metadata or {"format": "pt"}

    def write(temporary):
        try:
            save_file(tensors, str(temporary), metadata)
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from None
        if before:
            before()

    files.publish(path, write, aside)


def header(file, path):
    """The bytes that begin a safetensors file: a length and a list of tensors in JSON."""
    size = file.read(8)
    length = int.from_bytes(size, "little")
    if len(size) < 8:
        raise MinipostError(f"{path}: is cut short, to {len(size)} bytes; fetch it again")
    if size == b"version ":
        raise MinipostError(f"{path}: is a pointer of Git LFS and not the file; fetch it by git "
                            "lfs pull")
    if length > HEADER:
        raise MinipostError(f"{path}: not a whole safetensors file (its list of tensors has "
                            f"{length:,} bytes; at most {HEADER:,} are read)")
    names = file.read(length)
    if len(names) < length:
        raise MinipostError(f"{path}: is cut short, in its list of tensors; fetch it again")
    return size + names


def open_tensors(path):
    """An open safetensors file; MinipostError where it is not one."""
    with opened(path) as file:
        begin = header(file, path)
        found = parse_json(begin[8:], path)  # the library takes the last of repeated names
        check_whole(path, len(begin), found, os.fstat(file.fileno()).st_size)
    try:
        return safe_open(str(path), "pt")
    except (OSError, ValueError, SafetensorError) as error:
        raise MinipostError(f"{path}: not a whole safetensors file ({str(error)[:80]})") from None


def check_whole(path, begin, found, size):
    """MinipostError where a file of this size ends before its tensors.

    begin: bytes before them.  found: the list of tensors, of which nothing is known yet.
    """
    ends = [each.get("data_offsets") for each in found.values() if isinstance(each, dict)] \
        if isinstance(found, dict) else []
    last = max((end[-1] for end in ends if isinstance(end, list) and end
                and type(end[-1]) is int), default=0)
    if size < begin + last:
        raise MinipostError(f"{path}: is cut short: it has {size:,} of its {begin + last:,} bytes; "
                            "fetch it again")


def check_tensor(file, path, part, shape, letters):
    """MinipostError unless the file's tensor of this name has this shape and type."""
    try:
        found = file.get_slice(part)
    except SafetensorError as error:
        raise MinipostError(f"{path}: {str(error)[:120]}") from None
    if tuple(found.get_shape()) != shape:
        raise MinipostError(f"{path}: {part} has shape {tuple(found.get_shape())}, config.json "
                            f"says {shape}")
    kind = found.get_dtype()
    if kind not in LETTERS.values():
        raise MinipostError(f"{path}: {part} has the type {kind}; expected float32, float16 or "
                            "bfloat16")
    if letters not in (None, kind):
        raise MinipostError(f"{path}: {part} has the type {kind}, but dtype in config.json says "
                            f"{letters}; other tools would round it")


def read_tensors(path, shapes):
    """The tensors of a file that has these and no others: {name: shape} -> {name: tensor}.

    MinipostError where one is missing, is of no use, has another shape, or is not finite.
    """
    file, found = open_tensors(path), {}
    if others := set(file.keys()) ^ shapes.keys():
        raise MinipostError(f"{path}: the tensor {min(others):.80} is missing, or belongs to "
                            "nothing here")
    for name, shape in shapes.items():
        check_tensor(file, path, name, shape, None)
        found[name] = file.get_tensor(name)
        if not found[name].isfinite().all():
            raise MinipostError(f"{path}: {name} holds values that are not finite")
    return found


def check_finite(directory, tensors):
    """MinipostError where a tensor that is to be saved is not finite."""
    broken = [name for name, x in tensors.items() if not x.isfinite().all()]
    if broken:
        raise MinipostError(f"{directory}: not saved, {broken[0]} holds values that are not finite")


def digest(path):
    """Digests of a safetensors file: of its list of tensors, and of their values."""
    values = hashlib.sha256()
    with opened(path) as file:
        begin = hashlib.sha256(header(file, path))
        while part := file.read(2**20):
            values.update(part)
    return {"header": begin.hexdigest(), "data": values.hexdigest()}


# ---- run state

def save_state(path, tensors, facts, aside=None):
    """Everything a resumed run needs, in one file: named tensors and a dict that JSON can hold.

    The file holds the SHA-256 of all of it.  aside: as in `publish`.
    """
    files.make_directory(Path(path).parent)
    text = json.dumps(facts, sort_keys=True).encode()
    # The facts are a tensor, since a header of safetensors holds at most 100 MB.
    held = {"facts": torch.frombuffer(bytearray(text), dtype=torch.uint8), **tensors}
    write_tensors(path, held, aside=aside, minipost=state_digest(held))


def load_state(path):
    """What `save_state` wrote: (tensors, facts).  MinipostError if any of it has changed since."""
    file = open_tensors(path)
    said = (file.metadata() or {}).get("minipost")
    if said is None or "facts" not in file.keys():
        raise MinipostError(f"{path}: not a run state that this version of minipost reads")
    try:
        held = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, ValueError, TypeError, RuntimeError) as error:
        raise MinipostError(f"{path}: damaged ({error})") from None
    if state_digest(held) != said:
        raise MinipostError(f"{path}: damaged; what it holds is not what was written")
    return held, json.loads(held.pop("facts").numpy().tobytes())


def state_digest(tensors):
    """The SHA-256 of names, types, shapes and values of tensors."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        tensor = tensor.detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)} ".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
