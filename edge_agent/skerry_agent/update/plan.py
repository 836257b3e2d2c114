"""Which files of a release this device downloads. Pure.

The manifest stays whole, and with it what its signature covers: the digest of the bundle is computed from the list of
files, not from the files. A device may leave files that it will not read; whatever it reads is held to its digest.

The signed desired state may name the forms that devices like this one found fastest. Then, of each network that such a
form is of, the device leaves the files of the other forms. All else stays: golden sets, training step, drift edges, and
networks of which no form is named. A release that failed here once is downloaded whole, so that the device can measure
for itself, and fall back to float32, before it refuses it. Float32 stays, too, where the device makes models of its own
out of it.
"""

from __future__ import annotations

from collections.abc import Mapping

from skerry_agent.update.desired import Instruction
from skerry_contract.v1.release_pb2 import FileEntry

#: Form that models made on the device are made of.
OWN = "fp32"


def files_to_hold(target: Instruction, failures: Mapping[str, int], *, keep_own: bool) -> list[FileEntry]:
    """Files to download, in the order of the manifest.

    Args:
        target: Names a release.
        failures: Failed attempts by bundle digest (hexadecimal).
        keep_own: Whether the float32 form of the release's own network is held besides.

    Raises:
        ValueError: The target names no release.
    """
    manifest, preferred = target.manifest, target.state.preferred_variants
    if manifest is None:
        raise ValueError("a target names a release")
    if not preferred or failures.get(target.digest, 0):
        return list(manifest.files)
    wanted = [variant for variant in manifest.variants if variant.name in set(preferred)]
    decided = {variant.rung for variant in wanted}
    kept = [variant for variant in manifest.variants if variant.rung not in decided] + wanted
    if keep_own:
        kept += [variant for variant in manifest.variants if variant.rung == 0 and variant.name == OWN]
    kept_paths = {variant.path for variant in kept} | {variant.golden for variant in manifest.variants}
    left = {variant.path for variant in manifest.variants} - kept_paths
    return [entry for entry in manifest.files if entry.path not in left]
